"""Uncertainty of evaluation results: a hierarchical bootstrap, paired differences, gap closed.

Episodes are not independent: those on one recording share its weather, those on one segment more so. The bootstrap
therefore draws recordings, within them segments, within them episodes (Davison and Hinkley 1997, section 3.8; Ren et
al. 2010, "Nonparametric bootstrapping for hierarchical data"); the training runs of one agent are drawn on a crossed
level. A resample is a row of episode weights, so every interval is one matrix product and all controllers share the
same resamples, as they share the same episodes. Letters: E episodes, W resamples, S training runs, M rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import DataError
from adaptsplit.evaluation.metrics import BINS, PERCENTILES, LatencyCounts, bin_latency_s

Floats = NDArray[np.float64]

RESAMPLES = 2000
LATENCY_RESAMPLES = 500
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % confidence interval; ``low`` and ``high`` are NaN where it is unknown."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Resamples:
    """Common resamples: ``weights`` (W, E), each row summing to 1; ``seed`` makes the draws of training runs."""

    weights: Floats
    seed: int

    def runs(self, count: int) -> Floats:
        """Return (W, count) weights of training runs, each row summing to 1."""
        rng = np.random.default_rng([self.seed, 1, count])
        drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=len(self.weights))
        return np.asarray(drawn / count, dtype=np.float64)


def resample(levels: Sequence[NDArray[np.generic]], *, count: int = RESAMPLES, seed: int = 0) -> Resamples:
    """Draw hierarchical resamples of E episodes.

    ``levels``: outermost first, each an (E,) array of group labels (recording, segment); the episodes themselves are
    the innermost level. A level with a single group adds nothing. DataError when there are no episodes.
    """
    if not levels or len(levels[0]) == 0 or any(len(level) != len(levels[0]) for level in levels):
        raise DataError("bootstrap: expected levels of equal, non-zero length (one label per episode)")
    rng = np.random.default_rng([seed, 0])
    drawn = np.zeros((count, len(levels[0])), dtype=np.float64)
    _draw(rng, levels, np.arange(len(levels[0])), np.ones(count, dtype=np.int64), drawn)
    return Resamples(drawn / drawn.sum(axis=1, keepdims=True), seed)


def _draw(
    rng: np.random.Generator,
    levels: Sequence[NDArray[np.generic]],
    members: NDArray[np.int64],
    copies: NDArray[np.int64],
    out: Floats,
) -> None:
    """Spread ``copies`` (W,) of one group over its children, each copy drawing as many as there are children."""
    if not levels:
        share = np.full(len(members), 1.0 / len(members))
        out[:, members] = rng.multinomial(copies * len(members), share)
        return
    labels = levels[0][members]
    children = np.unique(labels)
    drawn = rng.multinomial(copies * len(children), np.full(len(children), 1.0 / len(children)))
    for child, times in zip(children, drawn.T, strict=True):
        _draw(rng, levels[1:], members[labels == child], times, out)


def intervals(values: Floats, resamples: Resamples) -> list[Interval]:
    """Return the mean and its interval of each row of (M, E) values; episodes that are NaN are left out."""
    means, draws = _weighted(values, resamples)
    low, high = _bounds(draws)
    return [Interval(float(m), float(a), float(b)) for m, a, b in zip(means, low, high, strict=True)]


def _weighted(values: Floats, resamples: Resamples) -> tuple[Floats, Floats]:
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    count = known.sum(axis=1)
    means = np.divide(filled.sum(axis=1), count, out=np.full(len(values), np.nan), where=count > 0)
    draws = resamples.weights @ filled.T
    if not known.all():
        mass = resamples.weights @ known.T.astype(np.float64)
        draws = np.divide(draws, mass, out=np.full(draws.shape, np.nan), where=mass > 0)
    return means, draws


def _bounds(draws: Floats) -> tuple[Floats, Floats]:
    """Percentile bounds of (W, M) draws; NaN draws are left out, a column without any gives NaN."""
    tail = (1.0 - LEVEL) / 2.0
    if np.isfinite(draws).all():
        low, high = np.quantile(draws, [tail, 1.0 - tail], axis=0)
        return low, high
    low, high = np.full(draws.shape[1], np.nan), np.full(draws.shape[1], np.nan)
    for i, column in enumerate(draws.T):
        known = column[np.isfinite(column)]
        if len(known):
            low[i], high[i] = np.quantile(known, [tail, 1.0 - tail])
    return low, high


def draws_of(values: Floats, resamples: Resamples) -> Floats:
    """Return (W,) resampled means of (E,) values, or of (S, E) values of S training runs (a crossed level)."""
    if values.ndim == 1:
        return _weighted(values[None], resamples)[1][:, 0]
    per_run = _weighted(values, resamples)[1]
    return np.asarray((per_run * resamples.runs(len(values))).sum(axis=1), dtype=np.float64)


def interval(values: Floats, resamples: Resamples) -> Interval:
    """Return the mean and interval of (E,) values, or of (S, E) values of S training runs."""
    low, high = _bounds(draws_of(values, resamples)[:, None])
    known = values[np.isfinite(values)]
    return Interval(float(known.mean()) if known.size else float("nan"), float(low[0]), float(high[0]))


def paired(values: Floats, reference: Floats, resamples: Resamples) -> Interval:
    """Return the mean paired difference of (E,) or (S, E) values to the (E,) reference on the same episodes."""
    return interval(values - reference, resamples)


def gap_closed(values: Floats, best_static: Floats, oracle: Floats, resamples: Resamples) -> Interval | None:
    """Return sum(controller - best static) / sum(oracle - best static) with its interval.

    None where the interval of the denominator touches zero: then there is no gap that could be closed.
    """
    gap = paired(oracle, best_static, resamples)
    if not gap.low > 0:
        return None
    gain = values - best_static
    numerator, denominator = draws_of(gain, resamples), draws_of(oracle - best_static, resamples)
    usable = denominator > 0
    low, high = _bounds((numerator[usable] / denominator[usable])[:, None])
    return Interval(float(gain.mean()) / gap.value, float(low[0]), float(high[0]))


def interquartile_mean(values: Floats, resamples: Resamples) -> Interval:
    """Return the mean of the middle half of (E,) or (S, E) values (Agarwal et al. 2021), with its interval."""
    table = np.atleast_2d(values)
    runs = resamples.runs(len(table)) if len(table) > 1 else np.ones((len(resamples.weights), 1))
    weights = (runs[:, :, None] * resamples.weights[:, None, :]).reshape(len(runs), -1)
    order = np.argsort(table.ravel())
    ordered = table.ravel()[order]
    point = _middle(ordered, np.full((1, ordered.size), 1.0 / ordered.size))[0]
    low, high = _bounds(_middle(ordered, weights[:, order])[:, None])
    return Interval(float(point), float(low[0]), float(high[0]))


def _middle(ordered: Floats, weights: Floats) -> Floats:
    top = np.clip(np.cumsum(weights, axis=1), 0.25, 0.75)
    inside = np.diff(top, axis=1, prepend=0.25)
    return np.asarray(inside @ ordered / 0.5, dtype=np.float64)


def probability_of_improvement(values: Floats, reference: Floats, resamples: Resamples) -> Interval:
    """Return the share of episodes (and runs) in which the controller beats the reference; a tie counts one half."""
    difference = values - reference
    return interval((difference > 0) + 0.5 * (difference == 0), resamples)


def latency_intervals(latency: LatencyCounts, resamples: Resamples) -> dict[str, Interval]:
    """Return the percentiles of pooled latencies, in seconds, with intervals exact to the 2 % of a histogram bin."""
    weights = resamples.weights[:LATENCY_RESAMPLES].astype(np.float32)
    used = np.flatnonzero(latency.counts.any(axis=0))
    if used.size == 0:
        return {key: Interval(float("nan"), float("nan"), float("nan")) for key in PERCENTILES}
    cumulative = np.cumsum(weights @ latency.counts[:, used].astype(np.float32), axis=1)
    middle = bin_latency_s()[used]
    result = {}
    for key, q in PERCENTILES.items():
        reached = (cumulative < q * cumulative[:, -1:] * (1 - 1e-6)).sum(axis=1)
        draws = np.sort(middle[np.minimum(reached, len(used) - 1)])
        value, tail = latency.percentiles[key], (1.0 - LEVEL) / 2.0
        low, high = draws[int(tail * len(draws))], draws[min(len(draws) - 1, int((1.0 - tail) * len(draws)))]
        result[key] = Interval(value, float(min(low, value)), float(max(high, value)))
    return result


def merge_latencies(tables: Sequence[LatencyCounts]) -> LatencyCounts:
    """Pool the latencies of several training runs over the same episodes (percentiles to a bin's 2 %)."""
    if len(tables) == 1:
        return tables[0]
    counts: NDArray[np.int32] = np.stack([table.counts for table in tables]).sum(axis=0, dtype=np.int32)
    total = np.cumsum(counts.sum(axis=0))
    middle = bin_latency_s()
    places = {key: int(np.searchsorted(total, q * total[-1])) for key, q in PERCENTILES.items()}
    percentiles = {
        key: float(middle[min(place, BINS - 1)]) if total[-1] else float("nan") for key, place in places.items()
    }
    return LatencyCounts(percentiles, counts)
