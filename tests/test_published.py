"""Published tables: facts as their sources state them, aggregates recovered by every sampled profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptsplit.devices import compute_presets, scale_factor
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.profiles import Profile
from adaptsplit.profiles.published import (
    SEEDS,
    PublishedTable,
    best_plan,
    no_network,
    plans,
    published_names,
    published_profile,
    published_table,
    to_profile,
    write_published,
)
from adaptsplit.profiles.published.__main__ import main
from adaptsplit.profiles.published.modelling import exit_model

NAMES = published_names()
WITH_EXITS = [name for name in NAMES if name.startswith("branchynet")]
WITHOUT_EXITS = [name for name in NAMES if name not in WITH_EXITS]


def column(profile: Profile, name: str) -> int:
    return [branch.name for branch in profile.branches].index(name)


def test_the_tables_that_are_promised_exist() -> None:
    wanted = {"tx2-vgg16", "tx2-tiny-yolov2", "orin-nx-yolov8n", "pi-gpu-mobilenetv2", "pi-gpu-resnet18"}
    assert wanted | {"branchynet-lenet", "branchynet-alexnet", "branchynet-resnet"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_says_where_it_comes_from(name: str) -> None:
    table = published_table(name)
    assert table.name == name
    assert any(word in " ".join(table.sources.values()) for word in ("commit", "arXiv"))
    assert "assumed" in table.modelled["spread"]


# Golden entries, copied by hand from the sources and not from the YAML files.
GOLDEN_CUTS = [
    ("tx2-vgg16", "p01", 0.1482, 102761824 // 8),
    ("tx2-vgg16", "p17", 0.4031, 3212648 // 8),
    ("tx2-vgg16", "p21", 0.4839, 132416 // 8),
    ("tx2-tiny-yolov2", "p20", 0.0613, 1385864 // 8),
    ("pi-gpu-mobilenetv2", "s01", 0.11654773 / 8, 12845560 // 8),
    ("pi-gpu-mobilenetv2", "s18", 1.73067692 / 8, 62783),
    ("pi-gpu-resnet18", "s08", 1.56717766 / 8, 100415),
    ("pi-gpu-inceptionv3", "s19", 6.37296113 / 8, 8255),
    ("pi-gpu-vgg16", "s30", 14.04210985 / 8, 401471),
    ("pi-gpu-alexnet", "s06", 0.28641042 / 8, 129855),
    ("pi-gpu-resnet50", "s16", 5.27558336 / 8, 401471),
]


@pytest.mark.parametrize(("name", "cut", "device_s", "size"), GOLDEN_CUTS)
def test_golden_entries(name: str, cut: str, device_s: float, size: int) -> None:
    found = {item.name: item for item in published_table(name).cuts}[cut]
    assert found.device_s == pytest.approx(device_s, abs=1e-6)
    assert found.codecs[0].bytes == size


@pytest.mark.parametrize(
    ("name", "count"),
    [("tx2-vgg16", 21), ("pi-gpu-alexnet", 12), ("pi-gpu-resnet18", 8), ("pi-gpu-vgg16", 30), ("pi-gpu-resnet50", 18)],
)
def test_number_of_cut_points(name: str, count: int) -> None:
    assert len(published_table(name).cuts) == count  # tx2-vgg16: 23 points with the input and local


def test_vgg16_features_are_float32_tensors() -> None:
    """Bytes of a float32 tensor of VGG16's known shapes, plus at most 200 bytes of framing."""
    shapes = {"p01": 64 * 224**2, "p03": 64 * 112**2, "p10": 256 * 28**2, "p19": 25088, "p21": 4096}
    for cut in published_table("tx2-vgg16").cuts:
        if cut.name in shapes:
            assert 0 <= cut.codecs[0].bytes - 4 * shapes[cut.name] <= 200
    assert published_table("tx2-vgg16").macs_full == 15_470_264_320


def test_orin_split_totals_are_the_published_ones() -> None:
    published_ms = {
        ("p3", "fp16"): 42.472,
        ("p3", "int8"): 44.806,
        ("p3", "int4"): 44.922,
        ("p4", "fp16"): 41.979,
        ("p4", "int8"): 44.303,
        ("p4", "int4"): 44.280,
        ("p5", "fp16"): 41.206,
        ("p5", "int8"): 43.587,
        ("p5", "int4"): 43.268,
    }
    found = {(p.branch, p.codec): 1e3 * p.latency_s for p in plans(published_table("orin-nx-yolov8n"), None, "cuts")}
    assert found == pytest.approx(published_ms, abs=1e-3)


def test_orin_full_local_beats_every_split_even_without_a_network() -> None:
    local, _, *splits = plans(published_table("orin-nx-yolov8n"), None)
    assert local.branch == "local"
    assert min(plan.latency_s for plan in splits) - local.latency_s == pytest.approx(9.437e-3, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if published_table(name).claims])
def test_the_best_cut_is_the_one_that_the_source_names(name: str) -> None:
    table = published_table(name)
    for claim in table.claims:
        best = best_plan(table, claim.uplink_bps, claim.objective, claim.among)
        assert best.branch == claim.best, claim.source


@pytest.mark.parametrize(
    ("network", "split"),
    [("resnet50", 1), ("vgg16", 1), ("alexnet", 3), ("resnet18", 1), ("mobilenetv2", 1), ("inceptionv3", 2)],
)
def test_best_pi_to_gpu_split_agrees_with_measured_transfers(network: str, split: int) -> None:
    """Argmin of the measured head + tail + transfer times (gigabit link), against our bytes over 939 Mbit/s."""
    assert best_plan(published_table(f"pi-gpu-{network}"), 939e6, "latency", "cuts").branch == f"s{split:02d}"


@pytest.mark.parametrize(
    ("network", "measured_s", "best_s"),
    [
        # head + tail + transfer of 8 images as measured on the source's 1.5 Mbit/s link, seconds
        ("resnet18", {"s05": 10.1495, "s06": 10.2953, "s07": 5.9336, "s08": 6.0770}, 5.9336),
        ("mobilenetv2", {"s08": 3.7369, "s14": 4.9662, "s15": 3.0102, "s16": 2.9965, "s17": 2.9971}, 2.9965),
        ("inceptionv3", {"s16": 19.9650, "s17": 28.7637, "s18": 28.7721, "s19": 5.6747}, 5.6747),
    ],
)
def test_best_split_of_a_slow_link_is_within_one_percent(
    network: str, measured_s: dict[str, float], best_s: float
) -> None:
    best = best_plan(published_table(f"pi-gpu-{network}"), 1.5e6, "latency", "cuts").branch
    assert measured_s[best] <= 1.01 * best_s


def test_a_faster_uplink_never_makes_the_best_plan_send_less() -> None:
    """Theory: the bytes of the latency-optimal plan fall (weakly) as the uplink slows (Topkis)."""
    for name in NAMES:
        table = published_table(name)
        sizes = {("local", ""): 0, ("input", "raw"): table.input_bytes}
        sizes |= {(cut.name, codec.name): codec.bytes for cut in table.cuts for codec in cut.codecs}
        chosen = [best_plan(table, rate) for rate in np.geomspace(1e4, 1e11, 40)]
        sent = [sizes[plan.branch, plan.codec] for plan in chosen]
        assert sent == sorted(sent)
        assert chosen[0].branch == "local"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [100, 512])
def test_qualities_hold_within_half_a_frame(name: str, frames: int) -> None:
    table = published_table(name)
    for seed in range(2):
        profile = to_profile(table, "train", frames, seed)
        tail = profile.tail_quality().mean(axis=0, dtype=np.float64)
        for cut in table.cuts:
            for r, codec in enumerate(cut.codecs):
                wanted = table.accuracy if codec.quality is None else codec.quality
                assert abs(tail[column(profile, cut.name), r] - wanted) <= 0.5 / frames + 1e-9
        for branch in ("input", "local"):
            assert abs(tail[column(profile, branch), 0] - table.accuracy) <= 0.5 / frames + 1e-9


@pytest.mark.parametrize("name", WITH_EXITS)
@pytest.mark.parametrize("frames", [200, 2000])
def test_exits_hold_at_the_published_rule(name: str, frames: int) -> None:
    table = published_table(name)
    profile = to_profile(table, "test", frames, 5)
    exits, tails = profile.exit_quality(), profile.tail_quality()
    for cut in table.cuts:
        assert cut.exit is not None
        b, model = column(profile, cut.name), exit_model(cut.exit, table.classes)
        leaves = profile.exit_confidence[:, b] >= cut.exit.confidence
        assert abs(leaves.mean() - cut.exit.share) <= 0.5 / frames
        assert abs(exits[leaves, b].mean() - model.above) <= 0.5 / leaves.sum()
        assert abs(np.where(leaves, exits[:, b], tails[:, b, 0]).mean() - cut.exit.overall) <= 0.5 / frames + 1e-9


def test_published_exit_shares_of_branchynet() -> None:
    for name, shares in {
        "branchynet-alexnet": [0.656, 0.252, 0.092],
        "branchynet-resnet": [0.415, 0.138, 0.447],
    }.items():
        profile = to_profile(published_table(name), "train", 1000)
        first, both = (profile.exit_confidence[:, column(profile, f"exit{i}")] >= 0.7 for i in (1, 2))
        assert not np.any(first & ~both), "what leaves at exit 1 never reaches exit 2"
        assert [first.mean(), (both & ~first).mean(), (~both).mean()] == pytest.approx(shares, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "shares", "last_ms", "mean_ms"),
    [
        ("branchynet-lenet", [0.943, 0.057], 2.7755, 0.62),
        ("branchynet-alexnet", [0.656, 0.252, 0.092], 9.8484, 6.32),
        ("branchynet-resnet", [0.415, 0.138, 0.447], 128.714, 73.5),
    ],
)
def test_modelled_exit_times_reproduce_the_published_mean(
    name: str, shares: list[float], last_ms: float, mean_ms: float
) -> None:
    """``last_ms``: the whole BranchyNet, exits included, by the same rule."""
    times = [*(1e3 * cut.device_s for cut in published_table(name).cuts), last_ms]
    assert sum(s * t for s, t in zip(shares, times, strict=True)) == pytest.approx(mean_ms, rel=1e-3)


@pytest.mark.parametrize("name", WITH_EXITS)
def test_exit_confidences_are_calibrated(name: str) -> None:
    """In five equal groups by confidence, the accuracy is the mean confidence within four standard errors."""
    profile = to_profile(published_table(name), "train", 20_000)
    for cut in published_table(name).cuts:
        b = column(profile, cut.name)
        order = np.argsort(profile.exit_confidence[:, b], kind="stable")
        for group in np.array_split(order, 5):
            said, is_right = profile.exit_confidence[group, b].mean(), profile.exit_quality()[group, b].mean()
            assert abs(said - is_right) < 0.035


@pytest.mark.parametrize("name", WITHOUT_EXITS)
def test_without_exits_a_late_frame_is_a_wrong_frame(name: str) -> None:
    profile = published_profile(name, "train")
    split = [b for b, branch in enumerate(profile.branches) if branch.kind == "split"]
    assert not profile.exit_confidence[:, split].any()
    assert not profile.exit_quality()[:, split].any()
    assert not profile.agreement()[:, split].any()


def test_one_difficulty_orders_cuts_and_codecs() -> None:
    """A frame that a worse codec gets right, every better one gets right, in whatever cut."""
    profile = published_profile("orin-nx-yolov8n", "train")
    columns = profile.tail_quality().reshape(len(profile), -1)
    for worse, better in zip(*(order := np.argsort(columns.mean(axis=0)))[None][:, :-1], order[1:], strict=True):
        assert np.all(columns[:, better] >= columns[:, worse])


def test_splits_share_aggregates_and_no_frame() -> None:
    for name in ("tx2-vgg16", "branchynet-lenet"):
        splits = [published_profile(name, split) for split in SEEDS]
        hashes = [{row.tobytes() for row in profile.image_hash} for profile in splits]
        assert all(len(found) == len(profile) for found, profile in zip(hashes, splits, strict=True))
        assert not hashes[0] & hashes[1] | hashes[0] & hashes[2] | hashes[1] & hashes[2]
        assert not np.array_equal(splits[0].tail_quality(), splits[1].tail_quality())
        assert splits[0].tail_quality().mean() == pytest.approx(splits[1].tail_quality().mean(), abs=1e-6)


def test_a_stale_answer_is_no_better_than_a_guess() -> None:
    """No table has a sequence of frames, so an answer must not hold for the next frame."""
    profile = published_profile("tx2-vgg16", "train")
    assert profile.retention() < 0.02


def test_stage_times_keep_their_mean_and_run_at_scale_one() -> None:
    for name in NAMES:
        table, profile = published_table(name), published_profile(name, "train")
        for cut in table.cuts:
            b = column(profile, cut.name)
            assert profile.head_s[b].mean() == pytest.approx(cut.device_s, rel=1e-5)
            assert np.median(profile.head_s[b]) == pytest.approx(cut.device_s, rel=1e-5)
        assert profile.head_s[-1].mean() == pytest.approx(table.local_s, rel=1e-5)
        assert profile.host_macs_per_s == pytest.approx(table.macs_full / table.local_s)
        assert scale_factor(profile.host_macs_per_s, compute_presets.get("edge-server")) == 1.0


def test_same_arguments_same_profile_and_written_folders_load(tmp_path: Path) -> None:
    folder = write_published("branchynet-resnet", tmp_path / "out", 64)
    for split, seed in SEEDS.items():
        again, loaded = to_profile(published_table("branchynet-resnet"), split, 64, seed), Profile.load(folder, split)
        for name, array in again.arrays().items():
            np.testing.assert_array_equal(array, loaded.arrays()[name], name)
        assert loaded.model.name == "published:branchynet-resnet"
        assert loaded.model.digest == published_table("branchynet-resnet").digest


def test_profiles_serve_summaries_and_the_whole_decision_space() -> None:
    for name in NAMES:
        profile = published_profile(name, "train")
        assert profile.summary().tail_quality.shape == profile.space((1.01,)).shape[:2]
        assert len(profile.space((0.7, 1.01)).table) > len(profile.branches)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["write", str(tmp_path), "tx2-tiny-yolov2", "--frames", "32"]) == 0
    assert len(Profile.load(tmp_path / "tx2-tiny-yolov2", "test")) == 32
    assert main(["list"]) == 0
    assert "Jetson Orin NX" in capsys.readouterr().out
    assert main(["show", "tx2-vgg"]) == 2
    assert "did you mean 'tx2-vgg16'" in capsys.readouterr().err


def test_errors_name_what_is_known() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'tx2-vgg16'.*Known: branchynet-alexnet"):
        published_table("published:tx2-vgg61")
    with pytest.raises(ConfigError, match="split 'tset'; did you mean 'test'"):
        published_profile("tx2-vgg16", "tset")
    with pytest.raises(ConfigError, match="frames 3, seed 0: expected 16 to 20000"):
        to_profile(published_table("tx2-vgg16"), "train", 3)
    with pytest.raises(ConfigError, match="seed -1"):
        to_profile(published_table("tx2-vgg16"), "train", 64, -1)
    with pytest.raises(ConfigError, match=r"uplink 0\.0 bit/s; expected > 0"):
        list(plans(published_table("tx2-vgg16"), 0.0))
    assert "not to export or fly" in str(no_network("published:tx2-vgg16"))


def test_names_with_and_without_prefix_are_the_same_table() -> None:
    table: PublishedTable = published_table("published:tx2-vgg16")
    assert table.digest == published_table("tx2-vgg16").digest
    assert published_profile("tx2-vgg16", "train") is published_profile("tx2-vgg16", "train")
