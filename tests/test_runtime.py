"""The runtime: verified model folders, answers of device and edge; all without torch at run time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adaptsplit.errors import ModelError
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder, softmax


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights, made by the real export."""
    import torch

    from adaptsplit.models import load_recipe
    from adaptsplit.models.architecture import SplitModel
    from adaptsplit.models.storage import export, for_inference

    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = for_inference(SplitModel(load_recipe("smoke").model, tuple("abcdefgh")))
    model.branch("mid").tail_temperature.fill_(0.25)
    folder = tmp_path_factory.mktemp("model")
    export(model, folder, name="random", training={}, calibration={})
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)


def test_device_and_edge_give_whole_answers(made: Path, image: np.ndarray) -> None:
    opened = ModelFolder.open(made)
    device, edge = DeviceRuntime(opened), EdgeRuntime(opened)
    device.warm_up()
    edge.warm_up()
    for card in opened.card.branches:
        head = device.head(card.name, image)
        answer = edge.tail(card.name, head.features)
        assert head.features.shape == card.bottleneck
        assert head.features.dtype == np.float32
        assert head.exit_probabilities.shape == answer.probabilities.shape == (16, 8)
        assert head.prediction.shape == answer.prediction.shape == (16,)
        assert np.allclose(head.exit_probabilities.sum(-1), 1, atol=1e-5)
        assert head.exit_confidence == pytest.approx(float(head.exit_probabilities.max(-1).mean()), abs=1 / 8192)
        assert (head.exit_confidence * 4096).is_integer()


def test_local_and_offload_are_the_same_full_model(made: Path, image: np.ndarray) -> None:
    opened = ModelFolder.open(made)
    assert np.array_equal(
        DeviceRuntime(opened).local(image).probabilities, EdgeRuntime(opened).full(image).probabilities
    )


def test_the_tail_temperature_sharpens_the_answer(made: Path, folder: Path, image: np.ndarray) -> None:
    card = json.loads((folder / "model.json").read_text())
    for branch in card["branches"]:
        branch["tail_temperature"] = 1.0
    (folder / "model.json").write_text(json.dumps(card))
    features = DeviceRuntime(ModelFolder.open(made)).head("mid", image).features
    sharp = EdgeRuntime(ModelFolder.open(made)).tail("mid", features)
    plain = EdgeRuntime(ModelFolder.open(folder)).tail("mid", features)
    assert sharp.confidence > plain.confidence
    assert np.array_equal(sharp.prediction, plain.prediction)


@pytest.mark.parametrize("name", ["head-stem.onnx", "tail.onnx", "trunk.onnx", "decoder-deep.onnx"])
def test_one_flipped_bit_is_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=rf"{name}.*damaged"):
        ModelFolder.open(folder)


def test_a_missing_folder_or_file_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere.*adaptsplit fit"):
        ModelFolder.open(tmp_path / "nowhere")
    (folder / "tail.onnx").unlink()
    with pytest.raises(ModelError, match=r"tail\.onnx"):
        ModelFolder.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "adaptsplit.model/9"}, "schema"),
        ({"classes": []}, "classes"),
        ({"files": {"../../etc/passwd": "0" * 64}}, "files"),
        ({"files": {}}, "lists no file"),
        ({"surprise": 1}, "unknown key"),
    ],
)
def test_a_faulty_model_card_is_refused(folder: Path, change: dict[str, object], message: str) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | change))
    with pytest.raises(ModelError, match=message):
        ModelFolder.open(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_model_card_that_is_not_an_object_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.json"):
        ModelFolder.open(folder)


def test_wrong_inputs_are_named(made: Path, image: np.ndarray) -> None:
    opened = ModelFolder.open(made)
    with pytest.raises(ModelError, match=r"\(256, 256, 3\) uint8"):
        DeviceRuntime(opened).head("stem", image[:100])
    with pytest.raises(ModelError, match="float32"):
        DeviceRuntime(opened).local(image.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="branches are stem, shallow, mid, deep"):
        DeviceRuntime(opened).head("steam", image)
    with pytest.raises(ModelError, match=r"shape \[1, 3, 3, 3\]"):
        EdgeRuntime(opened).tail("stem", np.zeros((3, 3, 3), np.float32))


def test_the_digest_changes_with_the_model(made: Path, folder: Path) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | {"name": "other"}))
    assert ModelFolder.open(made).digest != ModelFolder.open(folder).digest


def test_the_runtime_imports_nothing_of_the_training_stack() -> None:
    code = (
        "import sys, adaptsplit.runtime, adaptsplit.models;"
        "print([m for m in ('torch', 'onnx', 'gymnasium', 'numba', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_softmax_survives_large_logits() -> None:
    probabilities = softmax(np.array([[1e4, 0.0, -1e4]], np.float32), 0.05)
    assert np.allclose(probabilities, [[1, 0, 0]])
