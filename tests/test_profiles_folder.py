"""From a model folder with learned entropy models to its profile and a scenario: which codecs, which bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cases import SMALL_SCENARIO, command
from PIL import Image

from adaptsplit.codecs import decode_container, feature_codecs, fit_prior, register_prior
from adaptsplit.decision import BranchSpec
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.frames import open_frames
from adaptsplit.models.fit import fit
from adaptsplit.profiles import FrameSpec, Profile, folder_branches, measure, reference_branches
from adaptsplit.profiles.reference import IMAGE_CODECS, SPLIT_CODECS
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder

NAMES = ("stem", "shallow", "mid", "deep")
FRAMES = 8
RECIPE = """
name: tiny-entropic
base: smoke
model: {prior: true}
training: {steps: 6, batch: 4, rate_weight: 0.1}
calibration: {frames: 8}
"""
SCENARIO = SMALL_SCENARIO | {
    "name": "tiny",
    "description": "A tiny model with learned codecs over a steady uplink.",
    "links": {
        split: [{"kind": "generate", "generator": "constant", "seeds": [1], "duration_s": 20, "family": "steady"}]
        for split in ("train", "validation", "test")
    },
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A frame source that is cheap to make: two classes of ten noisy 64 x 64 tiles."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label, name in enumerate(("field", "water")):
        (root / name).mkdir()
        for i in range(10):
            tile = rng.normal(90 + 60 * label, 30, (64, 64, 3))
            Image.fromarray(np.clip(tile, 0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def learned(pictures: str, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A tiny model with a learned entropy model on every bottleneck, trained for six steps."""
    root = tmp_path_factory.mktemp("learned")
    (root / "tiny.yaml").write_text(RECIPE)
    torch.set_num_threads(1)
    fit(root / "tiny.yaml", pictures, root / "model", progress=False, threads=1)
    return ModelFolder.open(root / "model")


@pytest.fixture(scope="module")
def plain(learned: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The same networks in a folder without the tables of ``shallow`` and ``deep``."""
    path = shutil.copytree(learned.path, tmp_path_factory.mktemp("plain") / "model")
    card = json.loads((path / "model.json").read_text())
    gone = [name for name in card["files"] if name.startswith(("prior-shallow", "prior-deep"))]
    for name in gone:
        del card["files"][name]
    (path / "model.json").write_text(json.dumps(card))
    assert len(gone) == 6
    return ModelFolder.open(path)


@pytest.fixture(scope="module")
def profiled(learned: ModelFolder, pictures: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profiled") / "profile"
    few = ("--limit", str(FRAMES), "--image-codecs", "webp-10,jpeg-75", "--json")
    command("profile", learned.path, "--frames", pictures, "--out", out, *few)
    return out


def test_a_folder_with_learned_codecs_is_measured_with_them(profiled: Path, learned: ModelFolder) -> None:
    branches = Profile.load(profiled, "train").branches
    assert [branch.name for branch in branches] == [*NAMES, "offload", "local"]
    assert [branch.codecs for branch in branches[:4]] == [learned.prior_codecs(name) for name in NAMES]
    assert len({codec for branch in branches[:4] for codec in branch.codecs}) == 12
    assert branches[4] == BranchSpec("offload", "offload", ("webp-10", "jpeg-75"), exit="stem")


def test_payloads_and_answers_are_those_of_the_learned_coder(
    profiled: Path, learned: ModelFolder, pictures: str
) -> None:
    profile, source = Profile.load(profiled, "test"), open_frames(pictures, split="test")
    device, edge = DeviceRuntime(learned), EdgeRuntime(learned)
    for row in (0, FRAMES - 1):
        for b, name in enumerate(NAMES):
            features = device.head(name, source.frame(row).image).features
            sent = [feature_codecs.get(codec).encode(features) for codec in learned.prior_codecs(name)]
            assert profile.payload_bytes[row, b].tolist() == [len(data) for data in sent]
            for rate, data in enumerate(sent):
                restored = decode_container(data)
                assert restored.dtype == np.float32
                answer = edge.tail(name, restored)  # type: ignore[arg-type]
                assert np.array_equal(profile.tail_prediction[row, b, rate], answer.prediction)
    means = profile.payload_bytes.mean(axis=0)[:4]
    assert (np.diff(means, axis=1) > 0).all(), "fewest bytes first"


def test_a_scenario_on_it_judges_two_static_decisions(profiled: Path, pictures: str, tmp_path: Path) -> None:
    scenario, chosen = tmp_path / "tiny.yaml", ("static:deep/0/1.01", "static:deep/2/1.01")
    scenario.write_text(yaml.safe_dump(SCENARIO | {"profile": str(profiled), "frames": pictures}))
    out = ("--out", tmp_path / "report", "--json")
    judged = json.loads(command("evaluate", scenario, "--agents", ",".join(chosen), "--episodes", "2", *out))
    rows = {row["name"]: row for row in judged["controllers"]}
    payload = Profile.load(profiled, "test").payload_bytes[:, NAMES.index("deep")]
    for name, rate in zip(chosen, (0, 2), strict=True):
        metrics = rows[name]["metrics"]
        assert metrics["offload_ratio"] == metrics["remote_ratio"] == 1
        assert payload[:, rate].min() <= metrics["bytes"] <= payload[:, rate].max()
    assert payload[:, 0].max() < payload[:, 2].min()


def test_a_branch_without_a_learned_codec_has_the_usual_ones(plain: ModelFolder) -> None:
    codecs = [branch.codecs for branch in folder_branches(plain)]
    assert codecs == [
        plain.prior_codecs("stem"),
        SPLIT_CODECS,
        plain.prior_codecs("mid"),
        SPLIT_CODECS,
        IMAGE_CODECS,
        (),
    ]
    assert [branch.name for branch in folder_branches(plain)] == [branch.name for branch in reference_branches()]


def test_chosen_codecs_and_the_word_prior(learned: ModelFolder) -> None:
    for branch in folder_branches(learned, ("q2c-zstd", "prior", "q8t-zstd"), ("webp-30",)):
        if branch.kind == "split":
            assert branch.codecs == ("q2c-zstd", *learned.prior_codecs(branch.name), "q8t-zstd")
    assert folder_branches(learned, ("q4c-fast",), ("webp-30",))[3:] == (
        BranchSpec("deep", "split", ("q4c-fast",)),
        BranchSpec("offload", "offload", ("webp-30",), exit="stem"),
        BranchSpec("local", "local"),
    )


def test_codecs_that_cannot_be_are_refused(plain: ModelFolder, learned: ModelFolder) -> None:
    with pytest.raises(UnknownNameError, match="feature codec 'q4c-zsdt'; did you mean 'q4c-zstd'"):
        folder_branches(learned, ("q4c-zsdt",))
    with pytest.raises(UnknownNameError, match="image codec 'wepb-30'; did you mean 'webp-30'"):
        folder_branches(learned, (), ("wepb-30",))
    with pytest.raises(ConfigError, match=r"'stem': codecs q4c-zstd,q4c-zstd; expected at most 32, each once"):
        folder_branches(learned, ("q4c-zstd", "q4c-zstd"))
    with pytest.raises(ConfigError, match=r"branch 'shallow' has no learned entropy model.*`prior: true`"):
        folder_branches(plain, ("prior",))


def test_a_codec_that_cannot_code_what_its_branch_sends_is_refused_at_once(learned: ModelFolder, pictures: str) -> None:
    card = learned.card.branch("mid")
    other = register_prior(fit_prior(np.zeros((1, card.bottleneck[0] + 1, 4, 4), np.float32)))
    branches = [BranchSpec("stem", "split", ("q4c-zstd",)), BranchSpec("mid", "split", (other.name,))]
    with pytest.raises(ConfigError, match=rf"branch 'mid' sends 4x16x16 values: .*{other.name} takes 5 channels"):
        measure(learned.path, FrameSpec(pictures, "test"), branches, workers=2)


def test_the_command_refuses_what_it_cannot_read(learned: ModelFolder, pictures: str, tmp_path: Path) -> None:
    start = ("profile", str(learned.path), "--frames", pictures, "--out", str(tmp_path / "out"))
    for option, text, message in (
        ("--codecs", "q4c-zstd,", "expected names with commas between them"),
        ("--codecs", "q4c-zsdt", "did you mean 'q4c-zstd'"),
        ("--image-codecs", "", "expected names with commas between them"),
        ("--image-codecs", "q4c-zstd", "unknown image codec 'q4c-zstd'"),
    ):
        with pytest.raises((ConfigError, UnknownNameError), match=message):
            command(*start, option, text)
    assert not (tmp_path / "out").exists()
