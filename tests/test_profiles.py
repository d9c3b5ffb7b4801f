"""Profiles: measured with real sessions, real codecs and real frames; stored, checked, summarised, compared."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from adaptsplit.codecs import get_codec
from adaptsplit.decision import BranchSpec
from adaptsplit.errors import ConfigError, ProfileError
from adaptsplit.frames import image_hash, open_frames, sharpness
from adaptsplit.profiles import FrameSpec, Profile, ProfileSummary, compare, measure, progress_bar, reference_branches
from adaptsplit.profiles.arrays import QUANTILES, SPECS
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder

SPEC = FrameSpec("flight", "test", seed=0)
BRANCHES = (
    BranchSpec("stem", "split", ("q2c-zstd", "q4t-zstd", "q8t-zstd")),
    BranchSpec("deep", "split", ("q3t-zstd", "q6c-zstd")),
    BranchSpec("offload", "offload", ("webp-10", "jpeg-75"), exit="deep"),
    BranchSpec("local", "local"),
)
FRAMES = [0, 1, 2, 3, 40, 41, 299, 300]


class Net:
    """A little ONNX graph: poolings and 1x1 convolutions with fixed random weights."""

    def __init__(self, name: str, shape: tuple[int, ...], seed: int) -> None:
        self.inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape])]
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.outputs: list[Any] = []
        self.rng = np.random.default_rng(seed)

    def pool(self, x: str, size: int, out: str) -> str:
        """Average over size x size."""
        shape = [size, size]
        self.nodes.append(helper.make_node("AveragePool", [x], [out], kernel_shape=shape, strides=shape))
        return out

    def conv(self, x: str, channels: tuple[int, int], out: str) -> str:
        """Mix channels (in, out)."""
        kernel = self.rng.normal(0, 4, (channels[1], channels[0], 1, 1)).astype(np.float32)
        kernel -= kernel.mean(axis=1, keepdims=True)
        self.weights.append(numpy_helper.from_array(kernel, f"{out}_w"))
        self.nodes.append(helper.make_node("Conv", [x, f"{out}_w"], [out], kernel_shape=[1, 1]))
        return out

    def cells(self, x: str, classes: int, out: str) -> None:
        """(1, K, 4, 4) -> (1, 16, K)."""
        self.weights.append(numpy_helper.from_array(np.array([1, classes, 16], np.int64), f"{out}_s"))
        self.nodes.append(helper.make_node("Reshape", [x, f"{out}_s"], [f"{out}_r"]))
        self.nodes.append(helper.make_node("Transpose", [f"{out}_r"], [out], perm=[0, 2, 1]))
        self.output(out, (16, classes))

    def output(self, name: str, shape: tuple[int, ...]) -> None:
        """Declare an output."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape]))

    def save(self, path: Path) -> None:
        """Write the file."""
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, str(path))


def head(path: Path, channels: int, classes: int, seed: int) -> None:
    """image -> features (channels, 16, 16), exit_logits."""
    net = Net("image", (3, 256, 256), seed)
    net.conv(net.pool("image", 16, "pooled"), (3, channels), "features")
    net.output("features", (channels, 16, 16))
    net.cells(net.conv(net.pool("features", 4, "cells"), (channels, classes), "scores"), classes, "exit_logits")
    net.save(path)


def to_hidden(path: Path, name: str, shape: tuple[int, int, int], seed: int) -> None:
    """image or features -> hidden (6, 16, 16)."""
    net = Net(name, shape, seed)
    x = net.pool(name, 16, "pooled") if name == "image" else name
    net.conv(x, (shape[0], 6), "hidden")
    net.output("hidden", (6, 16, 16))
    net.save(path)


def tail(path: Path, classes: int) -> None:
    """hidden -> logits."""
    net = Net("hidden", (6, 16, 16), 9)
    net.cells(net.conv(net.pool("hidden", 4, "cells"), (6, classes), "scores"), classes, "logits")
    net.save(path)


def make_model(folder: Path, classes: list[str], seed: int = 0) -> Path:
    """Write a model folder with branches stem (5 channels) and deep (3 channels)."""
    folder.mkdir()
    for i, (name, channels) in enumerate((("stem", 5), ("deep", 3))):
        head(folder / f"head-{name}.onnx", channels, len(classes), seed + i)
        to_hidden(folder / f"decoder-{name}.onnx", "features", (channels, 16, 16), seed + 10 + i)
    to_hidden(folder / "trunk.onnx", "image", (3, 256, 256), seed + 20)
    tail(folder / "tail.onnx", len(classes))
    card = {"depth": 0, "cut": "x", "macs_head": 10, "macs_exit": 1, "macs_decoder": 2}
    card |= {"temperature": 1.0, "tail_temperature": 1.5}
    branches = [{"name": n, "bottleneck": [c, 16, 16], **card} for n, c in (("stem", 5), ("deep", 3))]
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.onnx"))}
    value = {"schema": "adaptsplit.model/1", "name": "tiny", "classes": classes, "cells": [4, 4], "params": 1}
    value |= {"input": {"height": 256, "width": 256}, "branches": branches, "training": {}, "calibration": {}}
    value |= {"full": {"macs_features": 4608, "macs_tail": 960, "temperature": 1.2}, "files": files}
    (folder / "model.json").write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", open_frames("flight", split="test").classes)


@pytest.fixture(scope="module")
def profile(model: Path) -> Profile:
    return measure(model, SPEC, BRANCHES, frames=FRAMES, date="2026-01-02")


@pytest.fixture
def saved(profile: Profile, tmp_path: Path) -> Path:
    profile.save(tmp_path / "profile")
    return tmp_path / "profile"


def test_shapes_follow_the_decision_space(profile: Profile) -> None:
    assert len(profile) == len(FRAMES)
    assert profile.tail_prediction.shape == (8, 4, 3, 16)
    assert profile.tail_s.shape == (4, 3, QUANTILES)
    assert profile.index.tolist() == FRAMES
    assert profile.segments == [(0, 4), (4, 2), (6, 1), (7, 1)]
    assert not profile.labels.flags.writeable


def test_rows_are_what_runtime_and_codecs_give(profile: Profile, model: Path) -> None:
    folder = ModelFolder.open(model)
    device, edge = DeviceRuntime(folder), EdgeRuntime(folder)
    row = 5
    frame = open_frames("flight", split="test").frame(FRAMES[row])
    result = device.head("deep", frame.image)
    codec: Any = get_codec("q6c-zstd")
    data = codec.encode(result.features)
    answer = edge.tail("deep", codec.decode(data))
    assert np.array_equal(profile.labels[row], frame.labels)
    assert profile.image_hash[row].tobytes() == image_hash(frame.image)
    assert profile.sharpness[row] == pytest.approx(sharpness(frame.image))
    assert np.array_equal(profile.exit_prediction[row, 1], result.prediction)
    assert np.array_equal(profile.exit_prediction[row, 2], result.prediction)
    assert profile.exit_confidence[row, 1] == pytest.approx(result.exit_confidence, abs=1 / 4096)
    assert profile.payload_bytes[row, 1, 1] == len(data)
    assert np.array_equal(profile.tail_prediction[row, 1, 1], answer.prediction)
    assert profile.tail_confidence[row, 1, 1] == pytest.approx(answer.confidence, abs=1 / 4096)


def test_offload_rows_are_the_full_model_on_the_decoded_image(profile: Profile, model: Path) -> None:
    frame = open_frames("flight", split="test").frame(FRAMES[2])
    codec: Any = get_codec("webp-10")
    data = codec.encode(frame.image)
    answer = EdgeRuntime(ModelFolder.open(model)).full(codec.decode(data))
    assert profile.payload_bytes[2, 2, 0] == len(data)
    assert np.array_equal(profile.tail_prediction[2, 2, 0], answer.prediction)


def test_local_answers_alone(profile: Profile) -> None:
    local = 3
    assert not profile.payload_bytes[:, local].any()
    assert not profile.encode_s[local].any()
    assert (profile.head_s[local] > 0).all()
    assert (profile.agreement()[:, local] == 1).all()
    rate = profile.model.macs_full / float(np.median(profile.head_s[local]))
    assert profile.host_macs_per_s == pytest.approx(rate, rel=0.5)


def test_missing_rates_repeat_the_last(profile: Profile) -> None:
    assert np.array_equal(profile.payload_bytes[:, 1, 1], profile.payload_bytes[:, 1, 2])
    assert np.array_equal(profile.tail_prediction[:, 2, 1], profile.tail_prediction[:, 2, 2])


def test_more_bits_more_bytes_and_closer_answers(profile: Profile) -> None:
    means = profile.payload_bytes.mean(axis=0)
    assert (np.diff(means[0]) > 0).all()
    assert (np.diff(means[2, :2]) > 0).all()
    assert (profile.head_s > 0).all()
    assert (profile.tail_s[:3] > 0).all()


def test_difference_restarts_with_each_flight(profile: Profile) -> None:
    assert profile.difference[0] == 0
    assert profile.difference[FRAMES.index(300)] == 0
    assert (profile.difference[[1, 2, 3, 4, 6]] > 0).all()


def test_quality_is_counted_by_hand(profile: Profile) -> None:
    right = [(profile.exit_prediction[n, 0] == profile.labels[n]).sum() / 16 for n in range(len(profile))]
    assert profile.exit_quality()[:, 0] == pytest.approx(right)
    same = (profile.exit_prediction[3, 0] == profile.tail_prediction[3, 0, 2]).mean()
    assert profile.agreement()[3, 0, 2] == pytest.approx(same)


def test_unlabelled_cells_do_not_count(profile: Profile) -> None:
    labels = profile.labels.copy()
    labels[0] = -1
    labels[1, 1:] = -1
    partly = dataclasses.replace(profile, labels=labels)
    assert np.isnan(partly.exit_quality()[0]).all()
    assert set(np.unique(partly.tail_quality()[1])) <= {0.0, 1.0}
    assert np.isfinite(partly.summary().tail_quality).all()
    nothing = dataclasses.replace(profile, labels=np.full_like(labels, -1)).summary()
    assert nothing.exit_quality == pytest.approx(profile.exit_confidence.mean(axis=0))
    assert "nan" in dataclasses.replace(profile, labels=np.full_like(labels, -1)).describe()


def test_workers_give_the_same_profile(profile: Profile, model: Path) -> None:
    frames = [*FRAMES, *range(100, 130)]
    calls: list[tuple[int, int]] = []
    parallel = measure(
        model, SPEC, BRANCHES, frames=frames, workers=2, progress=lambda done, total: calls.append((done, total))
    )
    rows = [int(np.flatnonzero(parallel.index == index)[0]) for index in FRAMES]
    for name in ("labels", "exit_prediction", "tail_prediction", "tail_confidence", "payload_bytes", "difference"):
        assert np.array_equal(parallel.arrays()[name][rows], profile.arrays()[name]), name
    assert parallel.index.tolist() == sorted(frames)
    assert calls[-1] == (len(frames), len(frames))


def test_save_and_load_are_inverse(profile: Profile, saved: Path) -> None:
    loaded = Profile.load(saved, "test")
    for name, array in profile.arrays().items():
        assert np.array_equal(loaded.arrays()[name], array), name
    assert loaded.branches == profile.branches
    assert loaded.measured == profile.measured
    assert loaded.measured.date == "2026-01-02"
    before = (saved / "profile-test.npz").read_bytes()
    loaded.save(saved)
    assert (saved / "profile-test.npz").read_bytes() == before


def test_splits_share_a_folder(profile: Profile, saved: Path) -> None:
    dataclasses.replace(profile, split="train").save(saved)
    assert len(Profile.load(saved, "train")) == len(Profile.load(saved, "test"))
    with pytest.raises(ProfileError, match="did you mean 'train'"):
        Profile.load(saved, "tran")


def test_another_model_needs_another_folder(profile: Profile, saved: Path) -> None:
    other = profile.model.model_copy(update={"digest": "0" * 64})
    with pytest.raises(ProfileError, match="another folder"):
        dataclasses.replace(profile, model=other).save(saved)


def test_select_keeps_some_branches(profile: Profile) -> None:
    part = profile.select(["local", "deep"])
    assert [branch.name for branch in part.branches] == ["local", "deep"]
    assert part.tail_prediction.shape == (8, 2, 2, 16)
    assert np.array_equal(part.payload_bytes[:, 1], profile.payload_bytes[:, 1, :2])
    with pytest.raises(ProfileError, match="no branch"):
        profile.select(["mid"])
    with pytest.raises(ProfileError, match="exit 'deep'"):
        profile.select(["offload", "stem"])


def test_describe_has_a_row_per_branch_and_rate(profile: Profile) -> None:
    text = profile.describe()
    rows = [line for line in text.splitlines() if line.startswith(("stem", "deep", "offload", "local"))]
    assert len(rows) == 3 + 2 + 2 + 1
    assert "webp-10" in text
    assert "GMAC/s" in text


def test_summary_means(profile: Profile) -> None:
    summary = profile.summary()
    assert summary.branches == ("stem", "deep", "offload", "local")
    assert summary.payload_bytes[0, 1] == pytest.approx(profile.payload_bytes[:, 0, 1].mean())
    assert summary.tail_quality[2, 0] == pytest.approx(profile.tail_quality()[:, 2, 0].mean())
    level = 12
    reached = profile.exit_confidence[:, 0] >= summary.levels[level] - 1e-9
    assert summary.exit_ratio[0, level] == pytest.approx(reached.mean())
    assert summary.exit_ratio[0, 0] == 1.0
    if 0 < reached.sum() < len(profile):
        below = profile.tail_quality()[~reached, 0, 1].mean()
        assert summary.tail_quality_below[0, 1, level] == pytest.approx(below)
    mixed = summary.exit_ratio * summary.exit_quality_above + (1 - summary.exit_ratio) * summary.exit_quality_below
    assert mixed == pytest.approx(np.broadcast_to(summary.exit_quality[:, None], mixed.shape), abs=1e-6)


def test_summary_is_json(profile: Profile) -> None:
    summary = profile.summary()
    text = json.dumps(summary.to_dict())
    assert len(text) < 60_000
    back = ProfileSummary.from_dict(json.loads(text))
    assert back.tail_quality_below == pytest.approx(summary.tail_quality_below, rel=1e-5)
    assert back.branches == summary.branches


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.pop("levels"), "expected the keys"),
        (lambda value: value.update(extra=1), "expected the keys"),
        (lambda value: value.update(head_s=["fast"] * 4), "head_s"),
        (lambda value: value.update(head_s=[1.0]), "head_s"),
        (lambda value: value.update(head_s=[None] * 4), "head_s"),
        (lambda value: value.update(signal_s=[1.0]), "signal_s"),
        (lambda value: value.update(branches="stem"), "branches"),
        (lambda value: value.update(tail_quality=3.0), "tail_quality"),
        (lambda value: value.update(exit_ratio=[[float("nan")] * 41] * 4), "exit_ratio"),
    ],
)
def test_broken_summaries_are_refused(profile: Profile, change: Callable[[Any], Any], message: str) -> None:
    value = profile.summary().to_dict()
    change(value)
    with pytest.raises(ProfileError, match=message):
        ProfileSummary.from_dict(value)


def test_comparing_a_profile_with_itself_finds_nothing(profile: Profile, model: Path) -> None:
    fresh = measure(model, SPEC, BRANCHES, frames=FRAMES[2:5])
    found = {item.name: item for item in compare(profile, fresh)}
    assert all(item.ok for item in found.values())
    assert found["exit agreement"].value == 1.0
    assert found["bytes"].value == 0.0
    assert found["head_s ratio"].limit is None
    assert "limit 0.99" in str(found["tail agreement"])


def test_comparing_finds_what_changed(profile: Profile) -> None:
    hashes, sizes, answers = profile.image_hash.copy(), profile.payload_bytes.copy(), profile.tail_prediction.copy()
    hashes[3, 0] ^= 1
    sizes[:, 1, 0] += sizes[:, 1, 0] // 20
    answers[0, 0, 1, :4] = (answers[0, 0, 1, :4] + 1) % len(profile.classes)
    changed = dataclasses.replace(profile, image_hash=hashes, payload_bytes=sizes, tail_prediction=answers)
    verdicts = {item.name: item.ok for item in compare(profile, changed)}
    assert not verdicts["image hashes"]
    assert not verdicts["bytes"]
    assert not verdicts["tail agreement"]
    assert verdicts["exit agreement"]


def test_comparing_other_things_is_an_error(profile: Profile) -> None:
    with pytest.raises(ProfileError, match="different branches"):
        compare(profile, profile.select(["stem"]))
    elsewhere = dataclasses.replace(profile, index=profile.index + np.int32(1000))
    with pytest.raises(ProfileError, match="does not have it"):
        compare(profile, elsewhere)


@pytest.mark.parametrize(
    ("branches", "frames", "message"),
    [
        ((BranchSpec("mid", "split", ("q2c-zstd",)),), [0], "no branch 'mid'"),
        ((BranchSpec("stem", "split", ("webp-10",)),), [0], "is no feature codec"),
        ((BranchSpec("stem", "split", ("q2c-zstd",)), BranchSpec("o", "offload", ("q2c-zstd",), "stem")), [0], "image"),
        (BRANCHES, [], "distinct indices"),
        (BRANCHES, [1, 1], "distinct indices"),
        (BRANCHES, [10**6], "distinct indices"),
    ],
)
def test_wrong_requests_are_refused(model: Path, branches: Any, frames: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(model, SPEC, branches, frames=frames)


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use the model that was trained"):
        measure(make_model(tmp_path / "other", ["a", "b"]), SPEC, BRANCHES, frames=[0])


def rewrite(folder: Path, change: Callable[[dict[str, NDArray[Any]]], None]) -> None:
    """Change stored arrays and seal the file again, as a broken tool would."""
    path = folder / "profile-test.npz"
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    seal(folder, buffer.getvalue())


def seal(folder: Path, data: bytes) -> None:
    """Write npz bytes and their hash into the card."""
    (folder / "profile-test.npz").write_bytes(data)
    card = json.loads((folder / "profile.json").read_text())
    card["splits"]["test"]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "profile.json").write_text(json.dumps(card))


def put(name: str, value: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[dict[str, NDArray[Any]]], None]:
    """Replace one array."""
    return lambda arrays: arrays.update({name: value(arrays[name])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("labels"), "expected index, segment"),
        (lambda arrays: arrays.update(extra=np.zeros(3)), "extra"),
        (put("labels", lambda a: a + np.int16(100)), "'labels' ranges"),
        (put("labels", lambda a: a.astype(np.int32)), "'labels' is int32"),
        (put("labels", lambda a: a[:0]), "0 frames"),
        (put("labels", lambda a: a[0, 0]), "0 frames"),
        (put("labels", lambda a: a[:, :9]), "'labels' is int16 \\(8, 9\\)"),
        (put("payload_bytes", lambda a: -a), "'payload_bytes' ranges"),
        (put("payload_bytes", lambda a: a[:3]), "'payload_bytes' is int32"),
        (put("head_s", lambda a: a * np.float32(np.nan)), "'head_s' contains NaN"),
        (put("tail_s", lambda a: a[..., ::-1].copy()), "'tail_s': quantiles must ascend"),
        (put("exit_confidence", lambda a: a.astype(np.float32)), "stored confidences"),
        (put("tail_confidence", lambda a: a + np.uint16(9000)), "'tail_confidence' ranges"),
        (put("tail_prediction", lambda a: a + np.uint8(200)), "'tail_prediction' ranges"),
        (put("labels", lambda a: np.array([{"a": 1}], dtype=object)), "header says|Python objects|expected"),
    ],
)
def test_broken_arrays_are_named(saved: Path, change: Callable[[Any], None], message: str) -> None:
    rewrite(saved, change)
    with pytest.raises(ProfileError, match=message) as caught:
        Profile.load(saved, "test")
    assert "profile-test.npz" in str(caught.value)
    assert "measure again" in str(caught.value)


def test_flipped_and_truncated_files_are_refused(saved: Path) -> None:
    path = saved / "profile-test.npz"
    data = path.read_bytes()
    for damaged in (data[:-1], data[: len(data) // 2], b"", data[:100] + b"\0" + data[101:]):
        path.write_bytes(damaged)
        with pytest.raises(ProfileError, match="damaged; copy the folder again"):
            Profile.load(saved, "test")
    path.unlink()
    with pytest.raises(ProfileError, match="cannot be read"):
        Profile.load(saved, "test")


def test_damage_under_a_good_hash_never_gives_a_traceback(saved: Path) -> None:
    data = (saved / "profile-test.npz").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(0, len(damaged)))] = int(rng.integers(0, 256))
        seal(saved, bytes(damaged[: int(rng.integers(1, len(data)))] if rng.random() < 0.3 else damaged))
        try:
            Profile.load(saved, "test")
        except ProfileError:
            refused += 1
    assert refused > 250


def test_a_forged_array_header_allocates_nothing(saved: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for spec in SPECS:
            header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000, 16), }".ljust(117) + b"\n"
            archive.writestr(f"{spec.name}.npy", b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header)
    seal(saved, buffer.getvalue())
    with pytest.raises(ProfileError, match="header says"):
        Profile.load(saved, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "JSON object"),
        ("{}", "missing"),
        ('{"schema": "adaptsplit.profile/9"}', "schema"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff", "not valid JSON"),
    ],
)
def test_broken_cards_are_refused(saved: Path, text: str, message: str) -> None:
    (saved / "profile.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ProfileError, match=message):
        Profile.load(saved, "test")


def test_contradicting_branches_are_refused(saved: Path) -> None:
    card = json.loads((saved / "profile.json").read_text())
    card["branches"][2]["exit"] = "nowhere"
    (saved / "profile.json").write_text(json.dumps(card))
    with pytest.raises(ProfileError, match="nowhere"):
        Profile.load(saved, "test")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="adaptsplit profile"):
        Profile.load(tmp_path / "nowhere", "test")


def test_reference_space_is_ordered_by_size() -> None:
    branches = reference_branches()
    assert [branch.name for branch in branches] == ["stem", "shallow", "mid", "deep", "offload", "local"]
    assert branches[4].exit == "stem"
    frame = open_frames("flight", split="test").frame(0).image
    sizes = [len(codec.encode(frame)) for codec in map(get_codec, branches[4].codecs)]  # type: ignore[arg-type]
    assert sizes == sorted(sizes)


def test_progress_bar_draws_nothing_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("measuring", quiet=True) as progress:
        progress(1, 2)
    with progress_bar("measuring") as progress:
        progress(2, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "measuring" in captured.err


def test_copying_a_profile_keeps_it_whole(saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    assert len(Profile.load(copy, "test")) == len(FRAMES)
