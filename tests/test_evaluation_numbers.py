"""Evaluation: metrics known by hand, and statistics held against theory."""

from __future__ import annotations

import numpy as np
import pytest

from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.errors import DataError
from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.knobs import KNOBS, frozen_table, value_name
from adaptsplit.evaluation.metrics import NAMES, episode_table, latency_counts
from adaptsplit.objective import Objective
from adaptsplit.outcome import OUTCOME, Outcomes, Path

SPACE = DecisionSpace(
    (
        BranchSpec("stem", "split", ("a", "b")),
        BranchSpec("offload", "offload", ("jpeg-50",), "stem"),
        BranchSpec("local", "local"),
    ),
    (0.0, 0.8, 1.01),
)


def by_hand() -> Outcomes:
    """Two episodes of four frames: one of each way to answer, then a quiet one."""
    records = np.zeros((2, 4), dtype=OUTCOME)
    records["patience"] = 1.0
    records["remote_latency_s"] = records["agreement"] = np.nan
    rows = [
        # path, branch, quality, answer, remote, bytes, compute, radio, switched
        (Path.REMOTE, 0, 1.0, 0.100, 0.100, 1000, 0.01, 0.03, 0),
        (Path.FALLBACK_LATE, 1, 0.5, 0.200, 0.300, 3000, 0.02, 0.05, 1),
        (Path.EXIT, 0, 0.5, 0.040, np.nan, 0, 0.01, 0.0, 1),
        (Path.MISS, -1, 0.0, np.nan, np.nan, 0, 0.0, 0.0, 0),
    ]
    for record, row in zip(records[0], rows, strict=True):
        names = ("path", "branch", "quality", "answer_latency_s", "remote_latency_s", "sent_bytes")
        for name, value in zip((*names, "compute_j", "radio_j", "switched"), row, strict=True):
            record[name] = value
    records[0]["rate"][3] = -1
    records[1]["path"], records[1]["branch"], records[1]["quality"] = Path.LOCAL, 2, 0.75
    records[1]["answer_latency_s"] = [0.05, 0.06, 0.07, 0.08]
    return records


def table_of(outcomes: Outcomes):  # type: ignore[no-untyped-def]
    return episode_table(outcomes, Objective(quality=1.0, bytes_per_kib=0.1).reward(outcomes), SPACE)


def test_metrics_by_hand() -> None:
    table = table_of(by_hand())
    expected = {
        "quality": [0.5, 0.75],
        "reward": [(2.0 - 0.1 * 4000 / 1024) / 4, 0.75],
        "miss_ratio": [0.25, 0],
        "fallback_ratio": [0.25, 0],
        "exit_ratio": [0.25, 0],
        "local_ratio": [0, 1],
        "offload_ratio": [0.5, 0],
        "remote_ratio": [0.25, 0],
        "energy_mj": [30, 0],
        "compute_mj": [10, 0],
        "radio_mj": [20, 0],
        "bytes": [1000, 0],
        "switches": [0.5, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table.means[name], values, rtol=1e-6, err_msg=name)
    assert set(table.means) == set(NAMES)


def test_latencies_leave_out_misses_and_frames_that_were_not_sent() -> None:
    table = table_of(by_hand())
    assert table.answer.percentiles == pytest.approx({"p50": 0.07, "p95": 0.2, "p99": 0.2}, rel=1e-6)
    assert table.remote.percentiles == pytest.approx({"p50": 0.1, "p95": 0.3, "p99": 0.3}, rel=1e-6)
    assert table.answer.counts.sum(axis=1).tolist() == [3, 4]
    assert table.remote.counts.sum(axis=1).tolist() == [2, 0]


def test_result_that_never_came_is_counted_as_infinite() -> None:
    counted = latency_counts(np.array([[0.1, np.inf, np.nan]]))
    assert counted.percentiles["p99"] == np.inf
    assert counted.counts[0, -1] == 1


def test_shares_sum_to_one_over_decided_frames() -> None:
    shares = table_of(by_hand()).shares
    assert shares["branch"] == pytest.approx({"stem": 2 / 7, "offload": 1 / 7, "local": 4 / 7})
    assert {group: sum(parts.values()) for group, parts in shares.items()} == pytest.approx(dict.fromkeys(shares, 1.0))


@pytest.mark.parametrize("broken", ["flat", "type", "empty", "path", "reward", "branch"])
def test_broken_outcomes_give_errors_of_ours(broken: str) -> None:
    outcomes, reward = by_hand(), np.zeros((2, 4))
    if broken == "flat":
        outcomes = outcomes.ravel()
    elif broken == "type":
        outcomes = np.zeros((2, 4))
    elif broken == "empty":
        outcomes = outcomes[:0]
    elif broken == "path":
        outcomes["path"][0, 0] = 9
    elif broken == "reward":
        reward = np.zeros((2, 3))
    else:
        outcomes["branch"][0, 0] = 7
    with pytest.raises(DataError, match="outcomes"):
        episode_table(outcomes, reward, SPACE)


def levels(recordings: int, segments: int, episodes: int) -> list[np.ndarray]:
    each = np.arange(recordings * segments * episodes)
    return [each // (segments * episodes), each // episodes % segments]


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    where = levels(40, 2, 2)
    resamples = stats.resample(where, count=600, seed=3)
    data = rng.normal(size=(300, 40))[:, where[0]] + 0.5 * rng.normal(size=(300, 160))
    found = stats.intervals(data, resamples)
    coverage = np.mean([interval.low <= 0 <= interval.high for interval in found])
    assert 0.90 <= coverage <= 0.985
    plain = stats.intervals(data, stats.resample([np.zeros(160)], count=600))
    assert np.mean([i.low <= 0 <= i.high for i in plain]) < coverage - 0.1, "recordings must widen the interval"


def test_resamples_are_hierarchical_weights() -> None:
    where = levels(3, 2, 4)
    resamples = stats.resample(where, count=500, seed=0)
    np.testing.assert_allclose(resamples.weights.sum(axis=1), 1)
    np.testing.assert_allclose(resamples.weights.mean(axis=0), 1 / 24, atol=0.01)
    per_recording = resamples.weights @ np.eye(3)[where[0]]
    np.testing.assert_allclose(per_recording * 3, np.round(per_recording * 3), atol=1e-9)
    again = stats.resample(where, count=500, seed=0)
    assert np.array_equal(resamples.weights, again.weights)


def test_training_runs_are_a_level() -> None:
    resamples = stats.resample(levels(10, 1, 4), seed=0)
    noise = np.random.default_rng(0).normal(size=40)
    same, apart = np.stack([noise] * 5), np.stack([noise + shift for shift in (-2, -1, 0, 1, 2)])
    narrow, wide = stats.interval(same, resamples), stats.interval(apart, resamples)
    single = stats.interval(noise, resamples)
    assert (narrow.low, narrow.high) == pytest.approx((single.low, single.high))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert wide.value == pytest.approx(noise.mean())


def test_gap_closed_by_hand_and_undefined() -> None:
    resamples = stats.resample(levels(8, 1, 5), seed=0)
    base = np.random.default_rng(0).normal(size=40)
    oracle = base + np.linspace(0.5, 1.5, 40)
    half = base + 0.5 * (oracle - base)
    found = stats.gap_closed(half, base, oracle, resamples)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    runs = stats.gap_closed(np.stack([base, oracle]), base, oracle, resamples)
    assert runs is not None
    assert runs.value == pytest.approx(0.5)
    assert runs.low == pytest.approx(0.0)
    assert runs.high == pytest.approx(1.0)
    coin = base + np.where(np.arange(40) % 2, 1.0, -1.0)
    assert stats.gap_closed(half, base, coin, resamples) is None


def test_interquartile_mean_drops_the_tails() -> None:
    resamples = stats.resample([np.arange(8)], seed=0)
    values = np.array([-1000.0, 1, 2, 3, 4, 5, 6, 1000])
    assert stats.interquartile_mean(values, resamples).value == pytest.approx(3.5)


def test_probability_of_improvement_counts_ties_as_half() -> None:
    resamples = stats.resample([np.arange(4)], seed=0)
    found = stats.probability_of_improvement(np.array([1.0, 1, 0, 0]), np.array([0.0, 0, 0, 1]), resamples)
    assert found.value == pytest.approx(0.625)
    assert found.low <= 0.625 <= found.high


def test_latency_interval_holds_the_exact_percentile() -> None:
    rng = np.random.default_rng(0)
    latency = latency_counts(rng.lognormal(-3, 0.5, size=(40, 200)))
    found = stats.latency_intervals(latency, stats.resample([np.arange(40)], seed=0))
    for key, interval in found.items():
        assert interval.low <= latency.percentiles[key] <= interval.high
        assert interval.high / interval.low < 1.5
    merged = stats.merge_latencies([latency, latency])
    assert merged.percentiles["p95"] == pytest.approx(latency.percentiles["p95"], rel=0.03)


def test_bootstrap_without_episodes_is_refused() -> None:
    with pytest.raises(DataError, match="one label per episode"):
        stats.resample([np.array([])])


def test_frozen_tables_hold_the_knob_still() -> None:
    for knob, size in zip(KNOBS, SPACE.shape, strict=True):
        tables = [frozen_table(SPACE, knob, value) for value in range(size)]
        assert {tuple(row) for table in tables for row in table} == {tuple(row) for row in SPACE.table}
    names = {SPACE.name(row) for row in frozen_table(SPACE, "threshold", 1)}
    assert names == {"stem/0/0.8", "stem/1/0.8", "offload/0/0.8", "local/0/0"}
    assert value_name(SPACE, "threshold", 1) == "0.8"
