"""Recipes: bases, stages, teachers, losses, sparse heads, adapted tails, weight noise, events."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adaptsplit.config import parse
from adaptsplit.errors import ConfigError
from adaptsplit.frames.base import Frame
from adaptsplit.models import Recipe, load_recipe, recipe_names
from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.calibration import calibrate
from adaptsplit.models.layers import ConvUnit, filters_rounded, round_some_filters
from adaptsplit.models.losses import _distance, _taught, joint_step
from adaptsplit.models.recipe import Calibration, ModelConfig, Stage
from adaptsplit.models.storage import export, for_inference, load_model
from adaptsplit.models.stream import BatchStream
from adaptsplit.models.training import TrainingState, new_state, stage_at, train, train_step
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder, ScoreCard
from adaptsplit.runtime.exits import confidence

CLASSES = tuple("abcde")
REFERENCE_DIGEST = "64820de3922fcef50efa6e606893232d26d3af2db68d8f58a5e00ef6178cfd68"
"""Stands in the shipped model's card: the recipe that made it."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Noise:
    """Sixteen frames whose cells are coloured by their class; cheap to make."""

    name, split, classes, segments = "noise", "model-train", list(CLASSES), [(0, 16)]

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, len(CLASSES), (16, 16)).astype(np.int16)
        cells = self.labels.reshape(-1, 4, 4).repeat(64, axis=1).repeat(64, axis=2)
        noise = rng.integers(0, 40, (16, 256, 256, 3))
        self.images = (cells[..., None] * 40 + noise).astype(np.uint8)

    def __len__(self) -> int:
        return 16

    def frame(self, index: int) -> Frame:
        return Frame(self.images[index], self.labels[index], index, 0)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.integers(16, size=count)
        return self.images[chosen], self.labels[chosen]


SOURCE = Noise()


def smoke(name: str = "smoke", model: dict[str, object] | None = None, **training: object) -> Recipe:
    """Return recipe ``name`` on the smoke model, without augmentation, for a few float32 steps."""
    recipe, base = load_recipe(name), load_recipe("smoke")
    config = base.model.model_dump() | {"prior": recipe.model.prior} | (model or {})
    settings = {"steps": 10, "batch": 4, "bfloat16": False, "background": False, "reuse": 1, **training}
    return recipe.model_copy(
        update={
            "model": ModelConfig.model_validate(config),
            "training": recipe.training.model_copy(update=settings),
            "augment": recipe.augment.model_copy(update={"compress": 0.0}),
        }
    )


def run(recipe: Recipe, steps: int, state: TrainingState | None = None) -> TrainingState:
    """Train ``recipe`` for ``steps`` more steps."""
    state = state or new_state(recipe, CLASSES, 0)
    with BatchStream(lambda: SOURCE, recipe, 0, state.step, state.step + steps) as batches:
        for batch in batches:
            train_step(state, batch, recipe, 0)
    return state


def one_batch(count: int = 4) -> tuple[Tensor, Tensor]:
    image = torch.from_numpy(SOURCE.images[:count]).permute(0, 3, 1, 2).float() / 255
    return image, torch.from_numpy(SOURCE.labels[:count]).long()


def test_the_recipe_of_the_shipped_model_is_what_it_was() -> None:
    recipe = load_recipe("reference")
    assert recipe.digest() == REFERENCE_DIGEST
    assert recipe.plan()[0][1].train == ("trunk", "tail", "bottlenecks", "exits")
    changed = recipe.model_copy(update={"stages": (Stage(name="all", full_weight=0.5),)})
    assert changed.digest() != REFERENCE_DIGEST


def test_the_default_loss_is_what_it_was() -> None:
    """Golden: the loss of the first release on these frames, from its own code."""
    recipe = smoke()
    model = new_state(recipe, CLASSES, 0).model
    image, labels = one_batch()
    result = joint_step(model, image, labels, recipe, torch.Generator().manual_seed(1))
    assert float(result.loss.detach()) == pytest.approx(5.019954681396484, rel=1e-4)


def test_every_shipped_recipe_is_named_in_the_issue_or_the_base() -> None:
    assert set(recipe_names()) >= {
        *("ce", "kd", "reconstruction", "hnd", "ghnd", "staged", "qat", "entropic"),
        *("exits-joint", "exits-separate", "exits-distilled", "reference", "smoke"),
    }


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_trains_through_all_its_stages(name: str) -> None:
    recipe = smoke(name, steps=5)
    state = run(recipe, 5)
    assert {stage_at(recipe, step).stage.name for step in range(5)} == {stage.name for _, stage in recipe.plan()}
    assert all(bool(torch.isfinite(value).all()) for value in state.average.state_dict().values())


def test_a_base_is_what_a_file_builds_on(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nbase: smoke\ntraining: {steps: 7}\n")
    (tmp_path / "next.yaml").write_text("name: next\nbase: mine.yaml\nnoise: {none: 0.25}\n")
    found, smoke_recipe = load_recipe(tmp_path / "next.yaml"), load_recipe("smoke")
    assert (found.name, found.training.steps, found.noise.none) == ("next", 7, 0.25)
    assert found.training.lr == smoke_recipe.training.lr
    assert found.model == smoke_recipe.model


def test_the_recipe_of_the_documentation_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(page.split("```yaml")[1].split("```")[0])
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.training.steps == 4000
    assert [stage.name for stage in recipe.stages] == ["teacher", "split", "exits"]
    assert all(f"`{name}`" in page for name in recipe_names())


def test_faulty_bases_and_stages_are_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.write_text("name: loop\nbase: loop.yaml\n")
    with pytest.raises(ConfigError, match="let no recipe be its own base"):
        load_recipe(loop)
    loop.write_text("name: loop\nbase: smke\n")
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        load_recipe(loop)
    loop.write_text("name: loop\nbase: [smoke]\n")
    with pytest.raises(ConfigError, match="expected a recipe's name"):
        load_recipe(loop)
    value = load_recipe("smoke").model_dump(mode="json")
    for stages, message in (
        ([{"name": "a", "share": 0.5}], "add up to 0.5"),
        ([{"name": "a", "share": 0.5}, {"name": "a", "share": 0.5}], "a name of its own"),
        ([{"name": "a", "train": ["trunc"]}], "stages.0.train.0"),
        ([{"name": "a", "hiden_weight": 1.0}], "did you mean 'hidden_weight'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(Recipe, value | {"stages": stages}, "here")


def test_a_stage_fills_in_what_training_says() -> None:
    recipe = smoke(distil=0.25, exit_weight=2.0)
    stage = Stage(name="x", branch_weight=3.0).settled(recipe.training)
    assert (stage.distil, stage.exit_distil, stage.exit_weight, stage.branch_weight) == (0.25, 0.25, 2.0, 3.0)
    assert Stage(name="x", exit_distil=9.0).settled(recipe.training).exit_distil == 9.0


def test_stages_take_their_shares_of_the_steps() -> None:
    recipe = smoke("staged", steps=10)
    assert [start for start, _ in recipe.plan()] == [0, 5, 6, 8]
    assert stage_at(recipe, 5).stage.name == "bottlenecks"
    assert (stage_at(recipe, 9).start, stage_at(recipe, 9).stop) == (8, 10)
    assert [start for start, _ in smoke("staged", steps=4).plan()] == [0, 1, 2, 3]


def test_what_a_stage_does_not_train_stands_still() -> None:
    recipe = smoke("exits-separate", steps=10)
    state = run(recipe, 8)
    run(recipe, 1, state)  # the new stage begins from the averaged weights
    before = copy.deepcopy(state.model.state_dict())
    run(recipe, 1, state)
    moved = {key for key, value in state.model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert all(".exit." in key for key in moved)


def test_a_frozen_teacher_does_not_learn_and_survives_a_checkpoint(tmp_path: Path) -> None:
    recipe = smoke("hnd", steps=6, checkpoint_every=4)
    whole = train(recipe, CLASSES, lambda: SOURCE, tmp_path / "whole", seed=1, progress=False)
    train(recipe, CLASSES, lambda: SOURCE, tmp_path / "parts", seed=1, progress=False, stop_after=4)
    saved = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert saved["teacher"] is not None
    parts = train(recipe, CLASSES, lambda: SOURCE, tmp_path / "parts", seed=1, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
    log = [json.loads(line) for line in (tmp_path / "whole" / "training.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in log} <= {"teacher", "head", "exits"}


def test_distillation_is_nothing_where_student_and_teacher_agree() -> None:
    recipe = smoke(smoothing=0.0)
    logits, labels = torch.randn(3, 16, 5), torch.zeros(3, 16, dtype=torch.long)
    plain = _taught(logits, logits, labels, recipe, 0.0)
    assert torch.allclose(_taught(logits, logits, labels, recipe, 4.0, 2.0), plain, atol=1e-5)
    other = _taught(logits, logits.flip(-1), labels, recipe, 4.0, 2.0) - plain
    by_hand = nn.functional.kl_div(
        (logits / 2).log_softmax(-1).flatten(0, 1),
        (logits.flip(-1) / 2).softmax(-1).flatten(0, 1),
        reduction="batchmean",
    )
    assert float(other) == pytest.approx(4.0 * 4.0 * float(by_hand), rel=1e-4)


def test_the_distance_of_maps_counts_in_variances() -> None:
    aim = torch.randn(4, 3, 8, 8) * 5 + 2
    assert float(_distance(aim, aim)) == 0.0
    assert float(_distance(aim.mean().expand_as(aim), aim)) == pytest.approx(1.0, rel=1e-2)


def test_hnd_asks_for_the_last_map_and_ghnd_for_the_deeper_ones_too() -> None:
    image, labels = one_batch()
    losses = {}
    for name in ("hnd", "ghnd"):
        recipe = smoke(name)
        model = new_state(recipe, CLASSES, 0).model.eval()
        stage = recipe.plan()[1][1]
        result = joint_step(model, image, labels, recipe, torch.Generator().manual_seed(1), stage, copy.deepcopy(model))
        losses[name] = float(result.loss.detach())
        assert (not result.tails) == (name == "hnd")
    assert losses["ghnd"] > losses["hnd"] > 0


def test_reconstruction_learns_to_give_the_map_back() -> None:
    stage = load_recipe("reconstruction").stages[1].model_copy(update={"share": 1.0, "lr": 0.01})
    recipe = smoke(steps=24).model_copy(update={"stages": (stage,)})
    state, losses = new_state(recipe, CLASSES, 0), []
    with BatchStream(lambda: SOURCE, recipe, 0, 0, 24) as batches:
        for batch in batches:
            losses.append(float(train_step(state, batch, recipe, 0).loss.detach()))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_a_sparse_head_has_a_fraction_of_the_macs_and_still_exports(tmp_path: Path) -> None:
    wide = {"trunk": [{"name": "shallow", "width": 32, "blocks": 1, "stride": 1}], "stem": [16, 32]}
    branch = load_recipe("smoke").model.branches[1].model_dump() | {"decoder": 16}
    config = {**wide, "branches": [branch | {"cut": "shallow"}]}
    macs = {}
    for groups in (1, 2):
        model = SplitModel(smoke(model={**config, "head_groups": groups}).model, CLASSES)
        macs[groups] = {part.name: part.macs for part in model.describe()}
    assert macs[2]["trunk.shallow"] * 2 == macs[1]["trunk.shallow"]
    assert macs[2]["stem"] == macs[1]["stem"]
    assert macs[2]["tail"] == macs[1]["tail"]
    export(for_inference(model.eval()), tmp_path, name="sparse", training={}, calibration={})
    assert load_model(tmp_path).config.head_groups == 2


def test_a_sparse_convolution_sees_every_other_channel_only() -> None:
    unit = ConvUnit(32, 32, relu=False, folded=True, groups=2)
    x = torch.randn(1, 32, 4, 4, requires_grad=True)
    y = unit(x)
    y[0, 0].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum((1, 2)) > 0
    assert np.flatnonzero(seen.numpy()).tolist() == list(range(0, 32, 2))


def test_a_group_that_is_too_narrow_is_refused() -> None:
    value = load_recipe("smoke").model.model_dump() | {"head_groups": 2}
    with pytest.raises(ConfigError, match="each group needs 16 channels"):
        parse(ModelConfig, value, "here")


def test_depth_adds_blocks_to_the_encoder() -> None:
    base = load_recipe("smoke").model
    deeper = base.branches[0].model_copy(update={"depth": 2})
    models = [SplitModel(base.model_copy(update={"branches": (b,)}), CLASSES) for b in (base.branches[0], deeper)]
    macs = [{part.name: part.macs for part in model.describe()}["stem.encoder"] for model in models]
    assert macs[1] - macs[0] == 2 * 2 * 16 * 16 * 16 * 16 * 9  # 2 blocks of 2 convolutions, 16 x 16, 16 to 16 channels


def test_an_adapted_tail_is_a_branchs_own(tmp_path: Path) -> None:
    recipe = smoke(model={"adapted_tails": ["deep"]})
    with pytest.raises(ConfigError, match="adapted_tails names 'deeep'"):
        parse(ModelConfig, recipe.model.model_dump() | {"adapted_tails": ["deeep"]}, "here")
    model = for_inference(run(recipe, 2).average)
    export(model, tmp_path, name="own", training={}, calibration={})
    folder = ModelFolder.open(tmp_path)
    assert "tail-deep.onnx" in folder.card.files
    assert "tail-stem.onnx" not in folder.card.files
    image, _ = one_batch(1)
    for name in ("deep", "stem"):
        features = DeviceRuntime(folder).head(name, SOURCE.images[0]).features
        found = EdgeRuntime(folder).tail(name, features).probabilities
        assert np.allclose(found, model.remote(name, model.head(name, image)[0]).softmax(-1)[0].numpy(), atol=1e-4)
    shared = model.tail(model.branch("deep").decoder(model.head("deep", image)[0])).softmax(-1)[0].numpy()
    assert not np.allclose(EdgeRuntime(folder).tail("deep", features_of(folder)).probabilities, shared, atol=1e-3)


def features_of(folder: ModelFolder) -> np.ndarray:
    return DeviceRuntime(folder).head("deep", SOURCE.images[0]).features


def test_weight_noise_rounds_filters_and_lets_gradients_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 8, 3, 3, requires_grad=True)
    full = round_some_filters(weight, 1.0, generator)
    steps = (full / (weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127)).detach()
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    half = round_some_filters(weight, 0.5, generator).detach()
    changed = (half != weight.detach()).flatten(1).any(1).float().mean()
    assert 0.25 < float(changed) < 0.75
    full.sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad == 1).all())
    unit, x = ConvUnit(16, 16), torch.randn(1, 16, 4, 4)
    plain = unit.eval()(x)
    with filters_rounded(unit, 1.0, generator):
        assert not torch.equal(unit(x), plain)
    assert torch.equal(unit(x), plain)


def test_an_entropy_model_reaches_the_model_folder(tmp_path: Path) -> None:
    from adaptsplit.codecs import decode_container, get_codec

    recipe = smoke("entropic", steps=4)
    model = for_inference(run(recipe, 2).average)
    export(model, tmp_path, name="entropic", training={}, calibration={})
    folder = ModelFolder.open(tmp_path)
    assert {f"prior-{name}-{rate}.npz" for name in model.branches for rate in ("0.5", "1", "2")} < set(
        folder.card.files
    )
    features = DeviceRuntime(folder).head("mid", SOURCE.images[0]).features
    sent = [get_codec(name).encode(features) for name in folder.prior_codecs("mid")]
    assert len(sent[0]) < len(sent[1]) < len(sent[2])
    restored = decode_container(sent[1])
    rounded = model.branch("mid").coded(torch.from_numpy(features)[None], 4)[0].numpy()
    assert np.allclose(restored, rounded, atol=1e-4)


def test_a_cascade_answers_with_all_exits_up_to_its_own(tmp_path: Path) -> None:
    recipe = smoke(model={"cascade": True})
    model = for_inference(run(recipe, 3).average)
    report = calibrate(model, SOURCE, Calibration(frames=16))
    assert [len(weights) for weights in report["ensembles"].values()] == [1, 2, 3, 4]
    model.branch("deep").exit.ensemble.copy_(torch.tensor([0.3, 0.1, 0.0, 0.7]))
    export(model, tmp_path, name="cascade", training={}, calibration={})
    image, _ = one_batch(1)
    alone = model.exit_logits(model.maps(image))
    by_hand = sum(w * v.log_softmax(-1) for w, v in zip((0.3, 0.1, 0.0, 0.7), alone.values(), strict=True))
    found = DeviceRuntime(ModelFolder.open(tmp_path)).head("deep", SOURCE.images[0]).exit_probabilities
    assert isinstance(by_hand, Tensor)
    assert np.allclose(found, by_hand.softmax(-1)[0].numpy(), atol=1e-4)
    card = ModelFolder.open(tmp_path).card
    link = 16 * len(CLASSES) ** 2
    assert (
        card.branch("shallow").macs_exit == 2 * card.branch("stem").macs_exit + link
    )  # two like exits, and their link
    assert torch.equal(load_model(tmp_path).branch("deep").exit.ensemble, model.branch("deep").exit.ensemble)


def test_an_exit_of_a_cascade_hears_the_one_before_and_teaches_it_nothing() -> None:
    model = new_state(smoke(model={"cascade": True}), CLASSES, 0).model.eval()
    maps = model.maps(one_batch()[0])
    before = model.exit_logits(maps)
    bias = model.branch("stem").exit.classifier.linear.bias
    assert bias is not None
    before["shallow"].sum().backward()
    assert bias.grad is None
    with torch.no_grad():
        bias[0] += 5.0
    after = model.exit_logits(maps)
    assert not torch.allclose(before["shallow"], after["shallow"])


def test_the_score_of_the_recipe_is_what_the_device_reports(tmp_path: Path) -> None:
    model = for_inference(run(smoke(), 2).average)
    entropy = calibrate(model, SOURCE, Calibration(frames=4, score="entropy"))
    assert entropy["scores"]["deep"] == {"kind": "entropy"}
    settings = Calibration(frames=16, score="correctness")
    export(model, tmp_path, name="score", training={}, calibration=calibrate(model, SOURCE, settings))
    folder = ModelFolder.open(tmp_path)
    head = DeviceRuntime(folder).head("deep", SOURCE.images[0])
    card = folder.card.branch("deep").exit_score
    assert card is not None
    assert card.kind == "correctness"
    expected = float(card.score()(head.exit_probabilities).mean())
    assert head.exit_confidence == pytest.approx(expected, abs=1 / 4096)
    assert head.exit_confidence != pytest.approx(float(confidence(head.exit_probabilities).mean()), abs=1e-3)
    assert ScoreCard(kind="entropy").score()(np.eye(3)).tolist() == pytest.approx([1.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match="has 1 weights; expected 4"):
        parse(ScoreCard, {"kind": "correctness", "weights": [1.0]}, "here")


def test_events_are_written_where_asked(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = smoke(steps=4, log_every=2)
    train(recipe, CLASSES, lambda: SOURCE, tmp_path, seed=0, progress=False, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4]
    assert "exits/stem" in events.Tags()["scalars"]
