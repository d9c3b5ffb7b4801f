"""From outcome records to the numbers that are reported, per episode.

``METRICS`` is the one list of them: results.json, the report and the terminal tables derive from it. Most are means
over frames, so the mean over episodes (all of the same length F) is the mean over all frames. Latency percentiles are
of all frames pooled; ``LatencyCounts`` keeps a fine histogram per episode, from which the bootstrap resamples them.
Letters: E episodes, F frames per episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import DataError
from adaptsplit.outcome import OUTCOME, Outcomes, Path

Floats = NDArray[np.float64]

PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

_FINEST_S, _COARSEST_S, _STEP = 1e-4, 1e2, 0.02
BINS = int(np.ceil(np.log(_COARSEST_S / _FINEST_S) / _STEP)) + 2
"""Histogram bins: below 0.1 ms, 2 % wide steps up to 100 s, and above (a result that never came)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One reported number; ``better`` is +1 where more is better, -1 where less is, 0 where neither."""

    name: str
    unit: str
    better: Literal[-1, 0, 1]
    meaning: str


METRICS: tuple[Metric, ...] = (
    Metric("reward", "per frame", 1, "the scenario's objective, mean per frame"),
    Metric("quality", "", 1, "fraction of cells right, mean over all frames; a miss counts 0"),
    Metric("miss_ratio", "", -1, "share of frames without an answer by the deadline"),
    Metric("fallback_ratio", "", -1, "share of frames sent, or passed over by the sender, and answered by their exit"),
    Metric("exit_ratio", "", 0, "share of frames answered by an exit that reached its threshold"),
    Metric("local_ratio", "", 0, "share of frames answered by the full model on the device"),
    Metric("stale_ratio", "", 0, "share of frames skipped and answered again with the answer of an earlier frame"),
    Metric("offload_ratio", "", 0, "share of frames whose data was sent to the edge, whatever became of it"),
    Metric("remote_ratio", "", 0, "share of frames answered by the edge by the deadline"),
    Metric("energy_mj", "mJ", -1, "energy of the device above idle per frame: compute and radio"),
    Metric("compute_mj", "mJ", -1, "its compute part"),
    Metric("radio_mj", "mJ", -1, "its radio part"),
    Metric("bytes", "bytes", -1, "payload bytes handed to the link, mean over all frames"),
    Metric("switches", "", 0, "share of frames whose branch differs from that of the frame decided before"),
    Metric("agreement", "", 0, "share of cells on which exit and tail agree, over sent frames"),
)
LATENCIES: tuple[Metric, ...] = (
    Metric("answer_latency_ms", "ms", -1, "camera to answer, over answered frames (misses are counted apart)"),
    Metric("remote_latency_ms", "ms", -1, "camera to the edge's result, over sent frames, not capped by the deadline"),
)
NAMES = tuple(metric.name for metric in METRICS)


@dataclass(frozen=True, slots=True)
class LatencyCounts:
    """Latencies of E episodes: exact pooled percentiles (s) and a histogram per episode, ``counts`` (E, BINS)."""

    percentiles: dict[str, float]
    counts: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class EpisodeTable:
    """What one controller did in E episodes.

    ``means``: (E,) per name of ``NAMES`` (NaN where an episode has no such frame). ``shares``: over all frames,
    ``path`` by ``Path`` name, and over decided frames ``branch``, ``rate`` and ``threshold``.
    """

    means: dict[str, Floats]
    answer: LatencyCounts
    remote: LatencyCounts
    shares: dict[str, dict[str, float]]


def episode_table(outcomes: Outcomes, reward: NDArray[np.floating], space: DecisionSpace) -> EpisodeTable:
    """Reduce (E, F) outcomes and their (E, F) reward; DataError when they are not of that form."""
    check_outcomes(outcomes)
    if reward.shape != outcomes.shape:
        raise DataError(f"reward of shape {reward.shape} for outcomes of shape {outcomes.shape}; expected the same")
    return EpisodeTable(
        means=_means(outcomes, np.asarray(reward, dtype=np.float64)),
        answer=latency_counts(outcomes["answer_latency_s"]),
        remote=latency_counts(outcomes["remote_latency_s"]),
        shares=decision_shares(outcomes, space),
    )


def check_outcomes(outcomes: Outcomes) -> None:
    """Raise DataError unless ``outcomes`` is a non-empty (E, F) array of outcome records with known paths."""
    if outcomes.dtype != OUTCOME or outcomes.ndim != 2 or outcomes.size == 0:
        raise DataError(
            f"outcomes of shape {outcomes.shape} and type {outcomes.dtype}; "
            "expected a non-empty (episodes, frames) array of adaptsplit.outcome.OUTCOME records"
        )
    worst = int(outcomes["path"].max())
    if worst > max(Path):
        raise DataError(f"outcomes: path {worst}; expected 0 to {int(max(Path))} (adaptsplit.outcome.Path)")


def _means(outcomes: Outcomes, reward: Floats) -> dict[str, Floats]:
    path = outcomes["path"]
    compute = outcomes["compute_j"].astype(np.float64)
    radio = outcomes["radio_j"].astype(np.float64)
    frames = {
        "reward": reward,
        "quality": outcomes["quality"],
        "miss_ratio": path == Path.MISS,
        "fallback_ratio": (path == Path.FALLBACK_LATE) | (path == Path.FALLBACK_PASSED),
        "exit_ratio": path == Path.EXIT,
        "local_ratio": path == Path.LOCAL,
        "stale_ratio": path == Path.STALE,
        "offload_ratio": outcomes["sent_bytes"] > 0,
        "remote_ratio": path == Path.REMOTE,
        "energy_mj": 1e3 * (compute + radio),
        "compute_mj": 1e3 * compute,
        "radio_mj": 1e3 * radio,
        "bytes": outcomes["sent_bytes"],
        "switches": outcomes["switched"],
        "agreement": outcomes["agreement"],
    }
    return {name: nanmean_rows(np.asarray(values, dtype=np.float64)) for name, values in frames.items()}


def nanmean_rows(values: Floats) -> Floats:
    """Return the mean of each row over its numbers, NaN for a row without any."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0), dtype=np.float64)


def latency_counts(latency_s: NDArray[np.floating]) -> LatencyCounts:
    """Count (E, F) latencies in seconds; NaN entries are left out, inf is a result that never came."""
    episodes = latency_s.shape[0]
    known = ~np.isnan(latency_s)
    row = np.nonzero(known)[0]
    values = latency_s[known].astype(np.float64)
    place = np.log(np.clip(values, _FINEST_S / 2, 2 * _COARSEST_S) / _FINEST_S) / _STEP
    column = np.clip(np.floor(place).astype(np.int64) + 1, 0, BINS - 1)
    counts = np.bincount(row * BINS + column, minlength=episodes * BINS).reshape(episodes, BINS)
    ordered = np.sort(values)
    return LatencyCounts({key: _pick(ordered, q) for key, q in PERCENTILES.items()}, counts.astype(np.int32))


def _pick(ordered: Floats, q: float) -> float:
    """Quantile of sorted values without interpolation, so that inf stays inf; NaN of none."""
    return float(ordered[max(0, int(np.ceil(q * len(ordered))) - 1)]) if len(ordered) else float("nan")


def bin_latency_s() -> Floats:
    """Return (BINS,) the latency that stands for each bin, in seconds; inf for the last."""
    middle = _FINEST_S * np.exp(_STEP * (np.arange(BINS) - 0.5))
    middle[-1] = np.inf
    return np.asarray(middle, dtype=np.float64)


def decision_shares(outcomes: Outcomes, space: DecisionSpace) -> dict[str, dict[str, float]]:
    """Return how often each way of answering, branch, rate and threshold occurs (each group sums to 1)."""
    decided = outcomes[outcomes["branch"] >= 0]
    branches, rates, _ = space.shape
    if decided.size and (decided["branch"].max() >= branches or decided["rate"].max() >= rates):
        raise DataError("outcomes: a branch or rate outside the decision space; were they made with another scenario?")
    path = np.bincount(outcomes["path"].ravel(), minlength=len(Path)) / outcomes.size
    count = max(1, decided.size)
    branch = np.bincount(decided["branch"], minlength=branches) / count
    rate = np.bincount(np.maximum(decided["rate"], 0), minlength=rates) / count
    rules = zip(space.thresholds, space.patience, strict=True)
    chosen = [np.isclose(decided["threshold"], a) & np.isclose(decided["patience"], b) for a, b in rules]
    return {
        "path": {item.name.lower(): float(path[item]) for item in Path},
        "branch": {spec.name: float(share) for spec, share in zip(space.branches, branch, strict=True)},
        "rate": {str(i): float(share) for i, share in enumerate(rate)},
        "threshold": {name: float(which.sum()) / count for name, which in zip(space.rule_names, chosen, strict=True)},
    }
