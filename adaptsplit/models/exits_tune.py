"""Thresholds of successive exits, tuned to a target accuracy or cost, with the whole curve on unseen frames."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import ConfigError
from adaptsplit.runtime.exits import Floats, threshold_stops

MULTIPLIERS = np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 49)])
"""Prices of a wrong answer, relative to the dearest exit's cost, that the search for thresholds tries (ours)."""
BLENDS = 64
"""Settings tried between two neighbours that prices found: prices only find the corners of the curve's hull (ours)."""
PASSES = 8
ALWAYS, NEVER = 0.0, 2.0
"""Thresholds at or below any score, and above all."""


@dataclass(frozen=True, slots=True)
class ExitPoint:
    """One setting of all thresholds (E - 1,) and what it gives: accuracy, mean cost, share of frames per exit (E,).

    ``accuracy`` and ``cost`` are those of the frames that chose the thresholds, ``held_accuracy`` and ``held_cost``
    those of frames that did not.
    """

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    held_accuracy: float
    held_cost: float
    held_shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tuned:
    """The setting that meets the target, and the whole curve, by rising cost."""

    chosen: ExitPoint
    curve: tuple[ExitPoint, ...]


def tune_thresholds(
    scores: NDArray[np.floating],
    correct: NDArray[np.floating],
    costs: NDArray[np.floating] | tuple[float, ...],
    *,
    target_accuracy: float | None = None,
    target_latency: float | None = None,
    held_out: float = 0.5,
) -> Tuned:
    """Choose a threshold per exit: the cheapest that reach ``target_accuracy``, or the best within ``target_latency``.

    ``scores`` (E, n) and ``correct`` (E, n; 0 or 1, or the share of right cells) in the order of time; ``costs`` (E,)
    what a frame costs in all that stops at each exit (seconds, MACs, ...; ascending). The last ``held_out`` of the
    frames choose nothing: neighbours in time are alike, so the split is one cut. Settings minimise cost + price x error
    for rising prices, by exact line searches over one threshold after the other, or lie between such settings. The
    target is met on the choosing frames; read ``held_accuracy`` for what to expect. ConfigError for a target out of
    reach, which names the best.
    """
    limits = np.asarray(costs, np.float64)
    _check(scores, correct, limits, target_accuracy, target_latency, held_out)
    cut = round(scores.shape[1] * (1.0 - held_out))
    part = _Sample(scores[:, :cut].astype(np.float64), correct[:, :cut].astype(np.float64), limits)
    held = _Sample(scores[:, cut:].astype(np.float64), correct[:, cut:].astype(np.float64), limits)
    curve = _curve(part, held)
    return Tuned(_choose(curve, target_accuracy, target_latency), curve)


@dataclass(frozen=True, slots=True)
class _Sample:
    scores: Floats
    correct: Floats
    costs: Floats

    def gives(self, thresholds: Floats) -> tuple[float, float, tuple[float, ...]]:
        """Return accuracy, mean cost and shares per exit."""
        stops = threshold_stops(self.scores, thresholds)
        right = self.correct[stops, np.arange(len(stops))]
        shares = np.bincount(stops, minlength=len(self.scores)) / len(stops)
        return float(right.mean()), float(self.costs[stops].mean()), tuple(float(s) for s in shares)


def _curve(part: _Sample, held: _Sample) -> tuple[ExitPoint, ...]:
    """Return the settings that no other one beats in both accuracy and cost, by rising cost."""
    corners = []
    thresholds = np.full(len(part.scores) - 1, ALWAYS)
    for price in MULTIPLIERS * float(part.costs[-1]):
        thresholds = _descend(part, price, thresholds)
        corners.append(thresholds)
    between = [setting for a, b in pairwise(corners) if not np.array_equal(a, b) for setting in _blends(part, a, b)]
    unique = {tuple(float(t) for t in setting): setting for setting in [*corners, *between]}
    points = [_point(key, setting, part, held) for key, setting in unique.items()]
    best, kept = -1.0, []
    for point in sorted(points, key=lambda point: (point.cost, -point.accuracy)):
        if point.accuracy > best:
            kept.append(point)
            best = point.accuracy
    return tuple(kept)


def _point(key: tuple[float, ...], thresholds: Floats, part: _Sample, held: _Sample) -> ExitPoint:
    accuracy, cost, _ = part.gives(thresholds)
    return ExitPoint(key, accuracy, cost, *held.gives(thresholds))


def _blends(part: _Sample, a: Floats, b: Floats) -> list[Floats]:
    """Return settings between two, evenly spaced in the share of frames that lie below each threshold."""
    ordered = np.sort(part.scores[:-1], axis=1)
    count = ordered.shape[1]
    ranks = [
        np.array([np.searchsorted(row, limit) for row, limit in zip(ordered, setting, strict=True)])
        for setting in (a, b)
    ]
    padded = np.concatenate([ordered, np.full((len(ordered), 1), NEVER)], axis=1)
    steps = np.linspace(0.0, 1.0, BLENDS + 2)[1:-1]
    places = [np.rint(ranks[0] + (ranks[1] - ranks[0]) * step).astype(int).clip(0, count) for step in steps]
    return [padded[np.arange(len(padded)), place] for place in places]


def _descend(part: _Sample, price: float, start: Floats) -> Floats:
    """Minimise mean cost + price x error: line searches from the last exit to the first until nothing changes."""
    losses = part.costs[:, None] + price * (1.0 - part.correct)
    thresholds = start.copy()
    for _ in range(PASSES):
        before = thresholds.copy()
        for exit_index in reversed(range(len(thresholds))):
            thresholds[exit_index] = _line_search(part.scores, losses, thresholds, exit_index)
        if np.array_equal(before, thresholds):
            break
    return thresholds


def _line_search(scores: Floats, losses: Floats, thresholds: Floats, exit_index: int) -> float:
    """Return the best threshold of one exit: stop the frames above it, let the others go on as the others say."""
    arrives = (scores[:exit_index] < thresholds[:exit_index, None]).all(0)
    if not arrives.any():
        return float(thresholds[exit_index])
    later = threshold_stops(scores[exit_index + 1 :, arrives], thresholds[exit_index + 1 :]) + exit_index + 1
    goes_on = losses[later, np.flatnonzero(arrives)]
    score = scores[exit_index, arrives]
    order = np.argsort(-score, kind="stable")
    gain = np.concatenate([[0.0], np.cumsum((losses[exit_index, arrives] - goes_on)[order])])
    # A threshold can only lie between different scores.
    sorted_scores = score[order]
    allowed = np.concatenate([[True], np.append(sorted_scores[1:] != sorted_scores[:-1], True)])
    count = int(np.where(allowed, gain, np.inf).argmin())
    if count == 0:
        return NEVER
    return ALWAYS if count == len(score) else float(sorted_scores[count - 1])


def _choose(curve: tuple[ExitPoint, ...], accuracy: float | None, latency: float | None) -> ExitPoint:
    if accuracy is not None:
        met = [point for point in curve if point.accuracy >= accuracy]
        if not met:
            best = max(point.accuracy for point in curve)
            raise ConfigError(f"target accuracy {accuracy:g} is out of reach: the best setting gives {best:.4f}")
        return met[0]
    assert latency is not None
    within = [point for point in curve if point.cost <= latency]
    if not within:
        raise ConfigError(f"target latency {latency:g} is out of reach: the cheapest setting costs {curve[0].cost:.4g}")
    return within[-1]


def _check(
    scores: NDArray[np.floating],
    correct: NDArray[np.floating],
    costs: Floats,
    accuracy: float | None,
    latency: float | None,
    held_out: float,
) -> None:
    if (accuracy is None) == (latency is None):
        raise ConfigError("give one target: target_accuracy or target_latency")
    if scores.ndim != 2 or scores.shape != correct.shape or costs.shape != (len(scores),) or len(scores) < 2:
        raise ConfigError(
            f"scores {scores.shape}, correct {correct.shape}, costs {costs.shape}; "
            "expected (E, n), (E, n), (E,) with E of at least 2"
        )
    if (np.diff(costs) < 0).any():
        raise ConfigError("costs fall with depth; give what a frame costs in all that stops at each exit")
    if not 0.0 < held_out < 1.0 or round(scores.shape[1] * (1.0 - held_out)) in (0, scores.shape[1]):
        raise ConfigError(f"held_out {held_out:g} of {scores.shape[1]} frames leaves one side empty")
