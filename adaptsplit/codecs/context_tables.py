"""What the context coder knows before the first symbol: rows, how fast they learn, and what they learn towards.

The rows of neighbour contexts start peaked at the expected value, with a width that grows with the neighbours' unrest;
a channel's own row and the rows of the fine bits start flat. All constants here were chosen on bottlenecks of the
reference model and on maps of a residual network (docs/codecs.md); they are part of the format, so a change of any of
them needs a new codec byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from adaptsplit.codecs.context_kernel import (
    ACTIVITIES,
    CHANNEL_ROW,
    CROSS_ROW,
    EXPECTATIONS,
    FINE_ROW,
    MAX_COUNT,
    WIDTH,
)

Table = NDArray[np.int64]
Rows = NDArray[np.uint16]

COARSE_BITS = 4
_TOTAL = 1 << 15
_FLOOR = {4: 64, 8: 32, 16: 24}
_FINE_FLOOR = 8
_STEADY_RATE = {4: 5, 8: 6, 16: 6}
_STEADY_FINE_RATE = 7
_LEARNED_FROM = ((0, 2), (1, 3), (4, 4), (12, 5), (32, 6), (96, 7))
_PEAKED_COUNT, _FINE_COUNT, _FLAT_COUNT = 1, 8, 0
_WIDTH_UNIT = 3
_CROSS_WIDTH = 21


@dataclass(frozen=True, slots=True)
class ContextTables:
    """Tables of one coding run: ``rows`` (r, 16) and ``counts`` (r,) change as it goes; the others are constant.

    ``rates`` (2, 128) is the learning rate by count, of the coarse and of the fine rows; ``targets`` (32, 16) is what a
    row learns towards, of every coarse and then of every fine symbol.
    """

    rows: Rows
    counts: Table
    rates: Table
    targets: Rows


def fresh_tables(bits: int, channels: int) -> ContextTables:
    """Return the tables at the start of a tensor of ``channels`` channels and ``bits`` bits (2, 3, 4, 6 or 8)."""
    known = _known(bits)
    flat = np.array(_flat(1 << min(bits, COARSE_BITS)), np.uint16)
    rows = np.concatenate([known.rows, np.broadcast_to(flat, (channels, WIDTH))])
    counts = np.concatenate([known.counts, np.full(channels, _FLAT_COUNT, np.int64)])
    return ContextTables(rows, counts, known.rates, known.targets)


@lru_cache
def _known(bits: int) -> ContextTables:
    coarse, fine = 1 << min(bits, COARSE_BITS), 1 << max(0, bits - COARSE_BITS)
    rows = [*_spatial_rows(coarse), *_cross_rows(coarse), *[_flat(fine)] * WIDTH]
    counts = np.full(CHANNEL_ROW, _PEAKED_COUNT, np.int64)
    counts[FINE_ROW:] = _FINE_COUNT
    rates = [_rates(_STEADY_RATE[coarse]), _rates(_STEADY_FINE_RATE)]
    targets = _targets(coarse, _FLOOR[coarse]) + _targets(fine, _FINE_FLOOR)
    return ContextTables(np.array(rows, np.uint16), counts, np.array(rates, np.int64), np.array(targets, np.uint16))


def _spatial_rows(size: int) -> list[list[int]]:
    widths = [(2 + 2 * unrest + unrest * unrest) * _WIDTH_UNIT for unrest in range(ACTIVITIES)]
    return [_peaked(size, 2 * expected + 1, width) for expected in range(EXPECTATIONS) for width in widths]


def _cross_rows(size: int) -> list[list[int]]:
    assert FINE_ROW - CROSS_ROW == WIDTH * WIDTH
    return [_peaked(size, 4 * mean, _CROSS_WIDTH) for mean in range(WIDTH) for _ in range(WIDTH)]


def _peaked(size: int, centre: int, width: int) -> list[int]:
    """Row whose frequencies halve every ``width / 16`` symbols away from ``centre / 4``, on straight lines between."""
    weights = []
    for symbol in range(size):
        halvings, rest = divmod(4 * abs(4 * symbol - centre), width)
        weight = 1 << max(0, 14 - halvings)
        weights.append(max(1, weight - weight * rest // (2 * width)))
    floor, total = _FLOOR[size], sum(weights)
    starts = [floor * i + sum(weights[:i]) * (_TOTAL - floor * size) // total for i in range(size)]
    return _padded(starts)


def _flat(size: int) -> list[int]:
    return _padded([_TOTAL * symbol // size for symbol in range(size)])


def _targets(size: int, floor: int) -> list[list[int]]:
    """Rows of certainty: all but ``floor`` for every other symbol."""
    return [
        _padded([floor * i if i <= symbol else _TOTAL - floor * (size - i) for i in range(size)])
        for symbol in range(WIDTH)
    ]


def _rates(steady: int) -> list[int]:
    learned = [max(rate for since, rate in _LEARNED_FROM if count >= since) for count in range(MAX_COUNT + 1)]
    return [min(steady, rate) for rate in learned]


def _padded(starts: list[int]) -> list[int]:
    return starts + [_TOTAL] * (WIDTH - len(starts))
