"""The split model: recipes, architecture, losses, calibration, export, and one short training run end to end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from adaptsplit.config import parse
from adaptsplit.errors import ConfigError, ModelError, RunError, UnknownNameError
from adaptsplit.frames.base import open_frames
from adaptsplit.frames.pool import FramePool
from adaptsplit.models import Recipe, load_recipe, recipe_names
from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.calibration import fit_answer, fit_temperature, nll
from adaptsplit.models.fit import fit
from adaptsplit.models.layers import fold_all, quantise
from adaptsplit.models.macs import count_macs
from adaptsplit.models.storage import export, for_inference, load_model
from adaptsplit.models.stream import BatchStream
from adaptsplit.models.training import learning_rate, new_state, train, train_step
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder

CLASSES = tuple("abcdefghij")
EMPTY: dict[str, object] = {}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _smoke(**training: object) -> Recipe:
    recipe = load_recipe("smoke")
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def _with_statistics(model: SplitModel) -> SplitModel:
    """Give every batch norm statistics that differ from the initial ones."""
    generator = torch.Generator().manual_seed(3)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator) * 0.2)
            part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def frames() -> FramePool:
    """24 real frames, in memory."""
    source = open_frames("flight", split="model-train")
    found = [source.frame(12 * index) for index in range(24)]
    images, labels = np.stack([f.image for f in found]), np.stack([f.labels for f in found])
    return FramePool("few", "model-train", CLASSES, images, labels)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_builds_its_model(name: str) -> None:
    model = SplitModel(load_recipe(name).model, CLASSES)
    assert {part.name for part in model.describe()} >= {"stem", "tail", "deep.exit"}


def test_the_reference_model_keeps_its_budget() -> None:
    model = SplitModel(load_recipe("reference").model, CLASSES)
    macs = {part.name: part.macs for part in model.describe()}
    full = macs["stem"] + macs["tail"] + sum(value for name, value in macs.items() if name.startswith("trunk."))
    assert macs["stem.exit"] <= 0.05 * full
    assert 300e6 < full < 500e6
    assert sum(p.numel() for p in model.parameters()) < 900_000


def test_a_faulty_recipe_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'reference'"):
        load_recipe("referense")
    value = load_recipe("smoke").model_dump(mode="json")
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        parse(Recipe, value | {"training": value["training"] | {"step": 3}}, "here")
    branch = value["model"]["branches"][0] | {"cut": "nowhere"}
    with pytest.raises(ConfigError, match="stages are stem, shallow, mid"):
        parse(Recipe, value | {"model": value["model"] | {"branches": [branch]}}, "here")


def test_a_bottleneck_that_the_strides_do_not_reach_is_refused() -> None:
    config = load_recipe("smoke").model
    wrong = config.branches[0].model_copy(update={"bottleneck": (4, 8, 8)})
    with pytest.raises(ConfigError, match="make them agree"):
        SplitModel(config.model_copy(update={"branches": (wrong,)}), CLASSES)


def test_macs_of_layers_known_by_hand() -> None:
    assert count_macs(nn.Conv2d(3, 16, 3, 2, 1), torch.zeros(1, 3, 64, 64)) == (32 * 32 * 16 * 27, (16, 32, 32))
    assert count_macs(nn.Conv2d(8, 8, 3, 1, 1, groups=8), torch.zeros(1, 8, 10, 10))[0] == 100 * 8 * 9
    assert count_macs(nn.Linear(30, 7), torch.zeros(1, 30))[0] == 210


def test_parts_add_up_to_the_whole() -> None:
    model = SplitModel(load_recipe("smoke").model, CLASSES)
    parts = {part.name: part.macs for part in model.describe()}
    total = parts["stem"] + parts["trunk.shallow"] + parts["trunk.mid"] + parts["tail"]
    assert total == count_macs(model, torch.zeros(1, 3, 256, 256))[0]


def test_folding_batch_norms_changes_nothing() -> None:
    model = _with_statistics(SplitModel(load_recipe("smoke").model, CLASSES))
    image = torch.rand(2, 3, 256, 256)
    with torch.no_grad():
        before = [model(image), *model.head("deep", image)]
        fold_all(model)
        after = [model(image), *model.head("deep", image)]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_quantiser_errs_by_half_a_step_and_passes_gradients(per_channel: bool) -> None:
    x = torch.randn(2, 5, 8, 8, requires_grad=True)
    y = quantise(x, 4, per_channel=per_channel)
    dims = (2, 3) if per_channel else (1, 2, 3)
    step = (x.amax(dims, keepdim=True) - x.amin(dims, keepdim=True)) / 15
    assert bool(((y - x).abs() <= step / 2 + 1e-5).all())
    assert len(torch.unique(y[0, 0].detach().round(decimals=4))) <= 16
    y.sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 1).all())


def test_the_learning_rate_rises_and_falls() -> None:
    training = _smoke(steps=100, warmup=0.1, lr=1.0).training
    rates = [learning_rate(training, step) for step in range(100)]
    assert int(np.argmax(rates)) in (9, 10)
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.001


def test_the_loss_falls_on_a_batch_seen_again(frames: FramePool) -> None:
    recipe = _smoke(steps=1000, warmup=0.0, lr=0.01)
    with BatchStream(lambda: frames, recipe, 0, 0, 1) as stream:
        (batch,) = stream
    state = new_state(recipe, CLASSES, 0)
    losses = [float(train_step(state, batch, recipe, 0).loss.detach()) for _ in range(15)]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(frames: FramePool, tmp_path: Path) -> None:
    recipe = _smoke(steps=6, checkpoint_every=3, batch=4)

    def run(folder: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        model = train(recipe, CLASSES, lambda: frames, folder, seed=5, progress=False, stop_after=stop_after)
        return model.state_dict()

    whole = run(tmp_path / "whole")
    half = run(tmp_path / "parts", stop_after=3)
    parts = run(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(not torch.equal(half[key], parts[key]) for key in whole)
    with pytest.raises(ConfigError, match="made with seed 5"):
        train(recipe, CLASSES, lambda: frames, tmp_path / "parts", seed=6, progress=False)


def test_a_damaged_checkpoint_is_refused(frames: FramePool, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="delete it"):
        train(_smoke(), CLASSES, lambda: frames, tmp_path, seed=0, progress=False)


def test_the_worker_process_makes_the_batches_that_a_thread_makes(frames: FramePool, tmp_path: Path) -> None:
    for index, image in enumerate(frames.images[:6]):
        place = tmp_path / f"class{index % 2}" / f"{index}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(place)
    opener = partial(open_frames, f"folder:{tmp_path}", split="model-train")
    found = []
    for background in (True, False):
        with BatchStream(opener, _smoke(background=background, batch=4), 0, 0, 2) as stream:
            found.append(list(stream))
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a.images, b.images)
        assert np.array_equal(a.labels, b.labels)


def test_a_failing_source_ends_the_run_with_its_message() -> None:
    opener = partial(open_frames, "nosuch", split="model-train")
    with BatchStream(opener, _smoke(), 0, 0, 2) as stream, pytest.raises(RunError, match="unknown frame source"):
        next(iter(stream))


def test_turned_frames_keep_cells_and_labels_together(frames: FramePool) -> None:
    """Paint each cell with its label: after any turn the colour of a cell must still be its label."""
    cells = frames.labels.reshape(-1, 4, 4).repeat(64, axis=1).repeat(64, axis=2)
    images = np.stack([cells * 20] * 3, axis=-1).astype(np.uint8)
    painted = FramePool("painted", "model-train", CLASSES, images, frames.labels)
    recipe = _smoke(batch=16)
    recipe = recipe.model_copy(update={"augment": recipe.augment.model_copy(update={"compress": 0.0})})
    with BatchStream(lambda: painted, recipe, 1, 0, 1) as stream:
        (batch,) = stream
    centres = batch.images[:, 32::64, 32::64, 0].reshape(-1, 16) // 20
    assert np.array_equal(centres, batch.labels)


def test_a_fitted_temperature_lowers_nll_and_calibration_error() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 8))
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = (odds.cumsum(-1) > rng.random((4000, 1))).argmax(-1)
    fitted = fit_answer(logits * 3, labels)
    assert fitted.temperature == pytest.approx(3.0, rel=0.08)
    assert fitted.nll_after < fitted.nll_before
    assert fitted.ece_after < 0.05 < 0.2 < fitted.ece_before
    assert sum(b.count for b in fitted.reliability_after) == 4000
    best = fit_temperature(logits, labels)
    assert nll(logits, labels, best) <= min(nll(logits, labels, best * f) for f in (0.9, 1.1))


def test_onnx_agrees_with_torch_and_the_weights_come_back(tmp_path: Path) -> None:
    model = for_inference(_with_statistics(SplitModel(load_recipe("smoke").model, CLASSES)))
    model.branch("stem").exit.temperature.fill_(1.7)
    model.full_temperature.fill_(0.6)
    export(model, tmp_path, name="x", training={}, calibration={})
    folder = ModelFolder.open(tmp_path)
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    head, full = DeviceRuntime(folder).head("stem", image), EdgeRuntime(folder).full(image)
    features, logits = model.head("stem", x)
    assert np.abs(head.features - features[0].numpy()).max() < 1e-3
    assert np.allclose(head.exit_probabilities, logits.softmax(-1)[0].numpy(), atol=1e-4)
    assert np.allclose(full.probabilities, (model(x) / 0.6).softmax(-1)[0].numpy(), atol=1e-4)
    again = load_model(tmp_path)
    assert torch.equal(again(x), model(x))
    (tmp_path / "weights.safetensors").unlink()
    assert ModelFolder.open(tmp_path).card.params > 0
    with pytest.raises(ModelError, match="adaptsplit fit"):
        load_model(tmp_path)


def test_an_unfolded_model_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="for_inference"):
        export(SplitModel(load_recipe("smoke").model, CLASSES), tmp_path, name="x", training={}, calibration={})


@pytest.mark.slow
def test_fit_trains_calibrates_and_exports_a_model_that_runs(tmp_path: Path) -> None:
    recipe = _smoke(steps=6, checkpoint_every=6, log_every=2)
    result = fit(recipe, "flight", tmp_path / "model", progress=False, threads=1)
    folder = ModelFolder.open(result.folder)
    assert [json.loads(line)["step"] for line in (result.folder / "training.jsonl").read_text().splitlines()] == [
        2,
        4,
        6,
    ]
    assert folder.card.calibration["split"] == "calibration"
    for answer in folder.card.calibration["answers"].values():
        assert answer["nll_after"] <= answer["nll_before"] + 1e-9
    frame = open_frames("flight", split="test").frame(0)
    features = DeviceRuntime(folder).head("deep", frame.image).features
    assert features.shape == folder.card.branch("deep").bottleneck
    assert 0.1 < float(EdgeRuntime(folder).tail("deep", features).confidence) <= 1.0
    with pytest.raises(ConfigError, match="finished model"):
        fit(recipe, "flight", result.folder, progress=False)


def test_an_unknown_source_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'flight'"):
        fit("smoke", "fligth", tmp_path, progress=False, threads=1)
