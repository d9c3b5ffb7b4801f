"""From timed rows to uniform samples: what the readers share."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import LinkError
from adaptsplit.links.container import Table
from adaptsplit.links.trace import MAX_SAMPLES, Array

MAX_GAP_S = 10.0
SAME_TIME = 1e-5  # of a sample
MAX_MEASURED_LOSS = 0.99  # a sample that lost all it sent only says that loss was high; 1 would never end


def hold(place: object, start_s: Array, end_s: float, values: Array, dt_s: float) -> Array:
    """Average a piecewise constant signal over uniform samples of ``dt_s``; totals (bits) are kept.

    Args:
        place: what errors name.
        start_s: (M,) strictly increasing times at which each value begins, s.
        end_s: the end of the last value, s.
        values: (M,) the values; NaN is unknown, and the mean is taken over the known part of a sample.
        dt_s: sample length of the result, s.

    Returns:
        (H,) the mean over each sample; the last sample reaches ``end_s`` or beyond, where the last value holds on.
    """
    unknown = np.isnan(values)
    if not unknown.any():
        return _hold(place, start_s, end_s, values, dt_s)
    share = _hold(place, start_s, end_s, np.where(unknown, 0.0, 1.0), dt_s)
    total = _hold(place, start_s, end_s, np.where(unknown, 0.0, values), dt_s)
    mean: Array = np.divide(total, share, out=np.full(share.size, np.nan), where=share > 1e-6)
    if not unknown.all():
        mean = np.clip(mean, np.nanmin(values), np.nanmax(values))
    return mean


def _hold(place: object, start_s: Array, end_s: float, values: Array, dt_s: float) -> Array:
    span = end_s - float(start_s[0])
    ratio = span / dt_s
    if not ratio <= MAX_SAMPLES:  # true for NaN as well
        raise LinkError(
            f"{place}: {span:g} s in samples of {dt_s:g} s are {ratio:.0f} samples, at most {MAX_SAMPLES}; "
            "look for a wrong timestamp, or choose a longer sample"
        )
    samples = max(1, math.ceil(round(ratio, 6)))
    edges = np.append(start_s - start_s[0], max(span, samples * dt_s))
    total = np.concatenate(([0.0], np.cumsum(values * np.diff(edges))))
    grid = np.minimum(np.arange(samples + 1) * dt_s, edges[-1])
    mean = np.diff(np.interp(grid, edges, total)) / dt_s
    # The differences of a long sum leave dust; it must neither turn an outage into a crawl nor leave the range.
    mean[np.abs(mean) < 1e-9 * float(np.abs(values).max(initial=0.0))] = 0.0
    mean = np.clip(mean, values.min(), values.max())
    # A sample within one row is that row's value exactly; times of day are only good to some 1e-7 s.
    first = np.searchsorted(edges, grid[:-1] + SAME_TIME * dt_s, side="right") - 1
    last = np.searchsorted(edges, grid[1:] - SAME_TIME * dt_s, side="left") - 1
    exact: Array = np.where(first >= last, values[np.minimum(first, values.size - 1)], mean)
    return exact


def spread(place: object, start_s: Array, end_s: float, columns: dict[str, Array], dt_s: float) -> dict[str, Array]:
    """Return every column of ``columns`` as ``hold`` samples it."""
    return {name: hold(place, start_s, end_s, values, dt_s) for name, values in columns.items()}


def per_second(table: Table, lines: Array, seconds: Array, columns: dict[str, Array]) -> tuple[dict[str, Array], int]:
    """Average rows that are timed to a second, some of it twice and some never, over a grid of 1 s.

    Args:
        table: named in errors.
        lines: (M,) the line of each row, for errors.
        seconds: (M,) whole seconds, s.
        columns: name -> (M,) values; NaN is unknown.

    Returns:
        name -> (H,), where a missing second repeats the one before, and the number of missing seconds.

    Raises:
        LinkError: seconds that fall, or a gap of more than 10 s.
    """
    steps = np.diff(seconds)
    bad = np.flatnonzero(~((steps >= 0) & (steps <= MAX_GAP_S)))
    if bad.size:
        at = int(bad[0])
        expected = f"0 to {MAX_GAP_S:g} s; cut the recording there"
        table.fail(int(lines[at + 1]), f"{steps[at]:g} s after the row before", expected)
    at_second = (seconds - seconds[0]).astype(np.int64)
    present = np.bincount(at_second) > 0
    latest = np.maximum.accumulate(np.where(present, np.arange(present.size), 0))
    sampled = {name: _mean_at(at_second, values, present.size)[latest] for name, values in columns.items()}
    return sampled, int(present.size - present.sum())


def _mean_at(index: NDArray[np.int64], values: Array, size: int) -> Array:
    known = ~np.isnan(values)
    count = np.bincount(index[known], minlength=size)
    total = np.bincount(index[known], values[known], minlength=size)
    mean: Array = np.divide(total, count, out=np.full(size, np.nan), where=count > 0)
    return mean
