"""How sure a gap between a simulated and a live run is: a block bootstrap over the frames that both share.

Frame k of the one is frame k of the other: same picture, same moment of the link. Neighbours are not independent (a
delay or a decision lasts), so blocks of consecutive frames are drawn, and from both runs the same (circular block
bootstrap: Politis and Romano 1992, in "Exploring the Limits of Bootstrap"). Letters: R repeats, F frames, W resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import DataError
from adaptsplit.evaluation.live import Floats, LiveRow, gap_of, reduced, values_of
from adaptsplit.evaluation.statistics import LEVEL, Interval
from adaptsplit.outcome import Outcomes

BLOCK = 10  # frames, 1 s at 10 Hz: about the 3rd root of 300 frames, doubled as decisions hold on for some frames
RESAMPLES = 1000
PIECE_BYTES = 4 << 20  # of one column that is drawn at a time; ten such are alive at once: 42 MB for an hour of frames


def block_resamples(frames: int, block: int = BLOCK, count: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Return (W, F) indices of frames, in blocks of consecutive ones that wrap around; DataError for no frames."""
    return next(_pieces(frames, count, block, count, seed))


def _pieces(
    frames: int, size: int, block: int = BLOCK, count: int = RESAMPLES, seed: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of ``block_resamples``, at most ``size`` at a time; the same ones whatever the size."""
    if frames < 1 or block < 1:
        raise DataError(f"bootstrap of {frames} frames in blocks of {block}; expected at least one of each")
    rng = np.random.default_rng([seed, frames])
    for first in range(0, count, size):
        begin = rng.integers(frames, size=(min(size, count - first), math.ceil(frames / block)))
        drawn = (begin[..., None] + np.arange(block)) % frames
        yield np.asarray(drawn.reshape(len(begin), -1)[:, :frames], dtype=np.int64)


def piece_size(repeats: int, frames: int) -> int:
    """Return how many resamples of (R, F) records are drawn at a time: a column of them has about 4 MiB."""
    return min(max(PIECE_BYTES // (8 * repeats * frames), 1), RESAMPLES)


def with_intervals(
    rows: Sequence[LiveRow], simulated: Outcomes, live: Outcomes, count: int = RESAMPLES
) -> list[LiveRow]:
    """Give each row of one controller its gap's 95 % interval.

    Args:
        rows: made of the same records; a gap is a fraction of the simulated value where its tolerance is one.
        simulated: (R, F) records.
        live: (F,) records of the same frames.
        count: of resamples.
    """
    values = values_of(simulated), values_of(live[None])
    ours, theirs = [], []
    for index in _pieces(len(live), piece_size(*simulated.shape), count=count):
        ours.append(_numbers(values[0], index))
        theirs.append(_numbers(values[1], index))
    return [replace(row, interval=_interval(row, ours, theirs)) for row in rows]


def _numbers(values: Mapping[str, Floats], index: NDArray[np.int64]) -> dict[str, Floats]:
    """Every number (W,) of the (R, F) values of records in which frames ``index`` (W, F) were drawn."""
    return reduced({name: np.moveaxis(value[:, index], 0, 1).reshape(len(index), -1) for name, value in values.items()})


def _interval(row: LiveRow, simulated: list[dict[str, Floats]], live: list[dict[str, Floats]]) -> Interval:
    pairs = (np.concatenate([part[row.column.name] for part in parts]) for parts in (simulated, live))
    gaps = np.array([gap_of(row.column, float(a), float(b)) for a, b in zip(*pairs, strict=True)])
    known, tail = gaps[np.isfinite(gaps)], (1.0 - LEVEL) / 2.0
    low, high = np.quantile(known, [tail, 1.0 - tail]) if known.size else (np.nan, np.nan)
    return Interval(row.gap, float(low), float(high))
