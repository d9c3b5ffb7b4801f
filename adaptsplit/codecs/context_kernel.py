"""The arithmetic of the context coder: models, mixing and rANS, on integers alone.

Every function here is plain Python on sequences of integers. numba compiles these very functions where it is installed
(``context_compile``; of ``find``, ``find_one`` and ``learn`` it takes the forms of ``context_vector``, which do a whole
row at once); elsewhere they run on lists, about a thousand times slower, and give the same bytes. No float takes part,
so every machine agrees.

A *row* is 16 cumulative frequencies of one context, of 2**15 in all; entries beyond the alphabet are 2**15. A symbol is
coded with the mean of three rows (weights 2, 1, 1); each row then moves towards the symbol by 1 / 2**rate, slower the
more it has seen. The entropy coder behind is rANS (Duda, arXiv:1311.2540) with a 40-bit state and 16-bit words:
encoding runs backwards over the intervals that the models gave forwards.
"""

from __future__ import annotations

from typing import Any

Ints = Any
"""A list of int or a numpy array of int64, of one or two dimensions."""

WIDTH = 16
SCALE_BITS = 16
STATE_LOW = 1 << 24
STATE_WORDS = 3
MAX_COUNT = 127
ACTIVITIES = 4
EXPECTATIONS = 31
CROSS_ROW = EXPECTATIONS * ACTIVITIES
FINE_ROW = CROSS_ROW + WIDTH * WIDTH
CHANNEL_ROW = FINE_ROW + WIDTH
_SCALE = 1 << SCALE_BITS
_MASK = _SCALE - 1
_RENORM = STATE_LOW << 16 >> SCALE_BITS
_INTERVAL_BITS = SCALE_BITS + 1
_INTERVAL_MASK = (1 << _INTERVAL_BITS) - 1


def spatial_row(left: int, up: int, up_left: int, up_right: int) -> int:
    """Index of the row for what the neighbours in this channel lead to expect, and how much they differ."""
    expected = (3 * left + 3 * up + up_right + up_left) >> 2
    unrest = abs(left - up) + abs(up - up_right) + abs(up_left - up)
    activity = (unrest > 0) + (unrest > 2) + (unrest > 5)
    return expected * ACTIVITIES + activity


def cross_row(left: int, up: int, previous: int) -> int:
    """Index of the row for the mean neighbour together with the previous channel's value at this place."""
    return CROSS_ROW + ((left + up + 1) >> 1) * WIDTH + previous


def below(rows: Ints, a: int, b: int, c: int, symbol: int) -> int:
    """Cumulative frequency, of 2**16, below ``symbol``: the mean of rows ``a`` (twice), ``b`` and ``c``."""
    return int(2 * rows[a][symbol] + rows[b][symbol] + rows[c][symbol]) >> 1 if symbol < WIDTH else _SCALE


def find(rows: Ints, a: int, b: int, c: int, slot: int) -> int:
    """Symbol whose interval of the mixed row holds ``slot``, by bisection."""
    symbol = 8 if below(rows, a, b, c, 8) <= slot else 0
    for step in (4, 2, 1):
        symbol += step if below(rows, a, b, c, symbol + step) <= slot else 0
    return symbol


def below_one(rows: Ints, row: int, symbol: int) -> int:
    """As ``below``, of a single row."""
    return int(2 * rows[row][symbol]) if symbol < WIDTH else _SCALE


def find_one(rows: Ints, row: int, slot: int) -> int:
    """As ``find``, in a single row."""
    symbol = 8 if below_one(rows, row, 8) <= slot else 0
    for step in (4, 2, 1):
        symbol += step if below_one(rows, row, symbol + step) <= slot else 0
    return symbol


def learn(rows: Ints, index: int, targets: Ints, target: int, rate: int) -> None:
    """Move row ``index`` towards row ``target`` of ``targets``, by 1 / 2**rate of the way."""
    row, aim = rows[index], targets[target]
    for i in range(WIDTH):
        row[i] += (aim[i] - row[i]) >> rate


def rate_of(counts: Ints, rates: Ints, index: int) -> int:
    """Rate at which row ``index`` learns now; counts the visit."""
    count = counts[index]
    counts[index] = min(count + 1, MAX_COUNT)
    return int(rates[count])


def model(high: Ints, fine: Ints, shape: Ints, rows: Ints, counts: Ints, rates: Ints, targets: Ints, out: Ints) -> None:
    """Write ``start << 17 | frequency`` of every symbol to ``out``, in coding order.

    ``high`` starts with one channel of zeros, which stands before the first channel; ``fine`` holds the bits below the
    upper four; ``shape`` is (C, H, W, bits).
    """
    channels, height, width, bits = shape[0], shape[1], shape[2], shape[3]
    area, at, place = height * width, 0, height * width
    for channel in range(channels):
        c = CHANNEL_ROW + channel
        for y in range(height):
            left = up = high[place - width] if y > 0 else 0
            up_left = up
            for x in range(width):
                if y > 0:
                    up = high[place - width]
                    up_right = high[place - width + 1] if x + 1 < width else up
                else:
                    up_left = up = up_right = left
                a = spatial_row(left, up, up_left, up_right)
                b = cross_row(left, up, high[place - area])
                symbol = high[place]
                start = below(rows, a, b, c, symbol)
                out[at] = start << _INTERVAL_BITS | (below(rows, a, b, c, symbol + 1) - start)
                at += 1
                learn(rows, a, targets, symbol, rate_of(counts, rates[0], a))
                learn(rows, b, targets, symbol, rate_of(counts, rates[0], b))
                learn(rows, c, targets, symbol, rate_of(counts, rates[0], c))
                if bits > 4:
                    row, value = FINE_ROW + symbol, fine[place - area]
                    start = below_one(rows, row, value)
                    out[at] = start << _INTERVAL_BITS | (below_one(rows, row, value + 1) - start)
                    at += 1
                    learn(rows, row, targets, WIDTH + value, rate_of(counts, rates[1], row))
                up_left, left = up, symbol
                place += 1


def write(intervals: Ints, count: int, words: Ints) -> int:
    """rANS: code ``intervals`` backwards into 16-bit ``words``; return how many. The state is the last three."""
    state, used = STATE_LOW, 0
    for at in range(count - 1, -1, -1):
        start, frequency = intervals[at] >> _INTERVAL_BITS, intervals[at] & _INTERVAL_MASK
        if state >= frequency * _RENORM:
            words[used] = state & _MASK
            used += 1
            state >>= 16
        quotient = state // frequency
        state = (quotient << SCALE_BITS) + state - quotient * frequency + start
    for shift in (0, 16, 32):
        words[used] = state >> shift & _MASK
        used += 1
    return used


def read(
    words: Ints, at: int, shape: Ints, rows: Ints, counts: Ints, rates: Ints, targets: Ints, high: Ints, fine: Ints
) -> bool:
    """Inverse of ``model`` and ``write``: fill ``high`` and ``fine``; False when we never write such words.

    ``at`` is the number of words, at least three. Damaged words that end early repeat the first one; the
    work is bounded by the shape alone.
    """
    channels, height, width, bits = shape[0], shape[1], shape[2], shape[3]
    area, place = height * width, height * width
    at -= STATE_WORDS
    state = words[at] | words[at + 1] << 16 | words[at + 2] << 32
    if state < STATE_LOW or state >= STATE_LOW << 16:
        return False
    for channel in range(channels):
        c = CHANNEL_ROW + channel
        for y in range(height):
            left = up = high[place - width] if y > 0 else 0
            up_left = up
            for x in range(width):
                if y > 0:
                    up = high[place - width]
                    up_right = high[place - width + 1] if x + 1 < width else up
                else:
                    up_left = up = up_right = left
                a = spatial_row(left, up, up_left, up_right)
                b = cross_row(left, up, high[place - area])
                slot = state & _MASK
                symbol = find(rows, a, b, c, slot)
                start = below(rows, a, b, c, symbol)
                end = below(rows, a, b, c, symbol + 1)
                state = (end - start) * (state >> SCALE_BITS) + slot - start
                if state < STATE_LOW:
                    at -= 1
                    state = state << 16 | words[max(at, 0)]
                learn(rows, a, targets, symbol, rate_of(counts, rates[0], a))
                learn(rows, b, targets, symbol, rate_of(counts, rates[0], b))
                learn(rows, c, targets, symbol, rate_of(counts, rates[0], c))
                high[place] = symbol
                if bits > 4:
                    row, slot = FINE_ROW + symbol, state & _MASK
                    value = find_one(rows, row, slot)
                    start, end = below_one(rows, row, value), below_one(rows, row, value + 1)
                    state = (end - start) * (state >> SCALE_BITS) + slot - start
                    if state < STATE_LOW:
                        at -= 1
                        state = state << 16 | words[max(at, 0)]
                    learn(rows, row, targets, WIDTH + value, rate_of(counts, rates[1], row))
                    fine[place - area] = value
                up_left, left = up, symbol
                place += 1
        if at < 0:
            return False
    return bool(at == 0 and state == STATE_LOW)
