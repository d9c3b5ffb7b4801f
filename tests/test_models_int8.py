"""8-bit export of the packaged model: files, agreement, the runtime's choice, and what is refused."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from adaptsplit.errors import ConfigError, ModelError
from adaptsplit.frames import Frame, open_frames
from adaptsplit.models.int8 import Int8Report, export_int8
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder

PACKAGED = Path(str(resources.files("adaptsplit.data"))) / "flight" / "model"


class Few:
    """Twelve frames of the calibration split, kept."""

    def __init__(self) -> None:
        source = open_frames("flight", split="calibration")
        self.name, self.split, self.classes, self.segments = source.name, source.split, source.classes, [(0, 12)]
        self._frames = [source.frame(25 * i) for i in range(12)]

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> Frame:
        return self._frames[index]

    def batch(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError


Made = tuple[Path, Int8Report, Few]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    source, out = Few(), tmp_path_factory.mktemp("int8") / "model"
    return out, export_int8(PACKAGED, source, out=out, calibration_frames=6, check_frames=6), source


def test_every_graph_has_an_8_bit_version_that_is_smaller(made: Made) -> None:
    folder = ModelFolder.open(made[0])
    floats = [name for name in folder.card.files if name.endswith(".onnx") and ".int8." not in name]
    assert len(floats) == 10
    for name in floats:
        assert folder.graph(name, "int8").stat().st_size < folder.graph(name).stat().st_size


def test_answers_agree_with_the_float_model(made: Made) -> None:
    _, report, _ = made
    assert report.frames == report.calibration_frames == 6
    assert set(report.answers) >= {"full", "exit:stem", "tail:deep"}
    for name, answer in report.answers.items():
        assert answer.agreement > 0.9, name
        assert abs(answer.int8_accuracy - answer.float_accuracy) < 0.06, name
    assert all(time.float_ms > 0 and time.ratio > 0 for time in report.times.values())
    assert set(report.times) == {name for name in ModelFolder.open(PACKAGED).card.files if name.endswith(".onnx")}


def test_the_runtime_takes_the_precision_that_it_is_told(made: Made) -> None:
    folder, image = ModelFolder.open(made[0]), made[2].frame(3).image
    packaged = DeviceRuntime(ModelFolder.open(PACKAGED)).head("mid", image).features
    exact = DeviceRuntime(folder).head("mid", image).features
    rough = DeviceRuntime(folder, precision="int8").head("mid", image).features
    assert np.array_equal(packaged, exact)
    assert not np.array_equal(exact, rough)
    assert np.abs(exact - rough).mean() < 0.1 * exact.std()
    answers = [EdgeRuntime(folder, precision=p).tail("mid", exact).probabilities for p in ("float", "int8")]  # type: ignore[arg-type]
    assert 0 < np.abs(answers[0] - answers[1]).max() < 0.3


def test_a_model_folder_can_prefer_its_8_bit_graphs(made: Made, tmp_path: Path) -> None:
    card = json.loads((made[0] / "model.json").read_text())
    assert card["precision"] == "float"
    assert card["int8"]["split"] == "calibration"
    for name in card["files"]:
        (tmp_path / name).write_bytes((made[0] / name).read_bytes())
    (tmp_path / "model.json").write_text(json.dumps(card | {"precision": "int8"}))
    folder, image = ModelFolder.open(tmp_path), made[2].frame(3).image
    asked = DeviceRuntime(folder, precision="int8").head("stem", image).features
    assert np.array_equal(DeviceRuntime(folder).head("stem", image).features, asked)


def test_a_copy_leaves_the_shipped_folder_as_it_was(made: Made) -> None:
    opened = ModelFolder.open(PACKAGED)
    assert opened.card.int8 is None
    assert not list(PACKAGED.glob("*.int8.onnx"))
    with pytest.raises(ModelError, match="no 8-bit graphs"):
        DeviceRuntime(opened, precision="int8").head("stem", made[2].frame(0).image)


def test_what_cannot_be_done_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        export_int8(PACKAGED, made[2], out=made[0], calibration_frames=2, check_frames=2)
    with pytest.raises(ConfigError, match="the source has 12 frames; int8 export takes 40"):
        export_int8(PACKAGED, made[2], out=tmp_path / "x", calibration_frames=20, check_frames=20)
    assert not (tmp_path / "x").exists()
