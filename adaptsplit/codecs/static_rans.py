"""rANS (Duda, arXiv:1311.2540) of symbols under fixed tables, and histograms as few bytes that travel with them.

A table is a row of cumulative frequencies from 0 to 2**16. A *histogram* states a table in 4 or 6 bits a symbol: level
0 is a symbol that does not occur, and level k > 0 a weight of 2**((k - top) / steps) of the most frequent one's, where
``steps`` is 1 level an octave (4 bits) or 4 (6 bits). Both ends turn levels into frequencies by integers alone.
Rounding to octaves costs about 0.03 bits a symbol, to quarter octaves 0.002: half the variance of a uniform error, in
nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from adaptsplit.codecs.context_compile import run_kernel, to_words
from adaptsplit.codecs.context_kernel import SCALE_BITS, STATE_WORDS
from adaptsplit.codecs.packing import Codes, pack, packed_size, unpack
from adaptsplit.errors import CodecError

TOTAL = 1 << SCALE_BITS
MAX_STATIC_VALUES = 1 << 18
COARSE, FINE = 4, 6
FINE_FROM = 1 << 13
"""Symbols from which a finer histogram pays: 0.03 bits of each are then worth more than 2 bits of some 100 levels."""

_STEPS = {COARSE: 1, FINE: 4}
_INTERVAL_BITS = SCALE_BITS + 1

Symbols = NDArray[np.int64]
Tables = NDArray[np.int64]


def encode_static(symbols: Symbols, which: Symbols, tables: Tables, *, compiled: bool | None = None) -> bytes:
    """(n,) symbols, the i-th under row ``which[i]`` of ``tables`` (t, L + 1) -> an odd number of bytes, at least 5."""
    place, flat = which * tables.shape[1] + symbols, tables.ravel()
    start = flat.take(place)
    words = to_words(start << _INTERVAL_BITS | (flat.take(place + 1) - start), compiled=compiled)
    return words.astype("<u2").tobytes()[:-1]


def decode_static(data: bytes, which: Symbols, tables: Tables, *, compiled: bool | None = None) -> Symbols:
    """Inverse of ``encode_static``: (n,) symbols; CodecError for bytes that it never writes, in work bounded by n."""
    if len(data) % 2 == 0 or not 2 * STATE_WORDS - 1 <= len(data) <= 2 * (which.size + STATE_WORDS):
        raise CodecError(f"{len(data)} range-coded bytes for {which.size} symbols: not written by us")
    words = np.frombuffer(data + b"\0", "<u2").astype(np.int64)
    out = np.zeros(which.size, np.int64)
    arguments = (words, words.size, which, which.size, tables, tables.shape[1] - 1, out)
    if not run_kernel("read_static", arguments, compiled):
        raise CodecError("range-coded symbols do not end where their bytes do: not written by us")
    return out


def histogram_bits(count: int) -> int:
    """Bits a level of the histogram of ``count`` symbols."""
    return FINE if count >= FINE_FROM else COARSE


def histogram(symbols: Symbols, size: int) -> Codes:
    """(n,) symbols below ``size``, n > 0 -> the levels (size,) of their histogram."""
    counts = np.bincount(symbols, minlength=size)
    bits = histogram_bits(symbols.size)
    top, steps = (1 << bits) - 1, _STEPS[bits]
    octaves = np.log2(counts.max() / np.maximum(counts, 1))
    levels = np.clip(top - np.rint(octaves * steps), 1, top)
    return cast("Codes", np.where(counts > 0, levels, 0).astype(np.uint8))


def table_of(levels: Codes, bits: int) -> Tables:
    """(size,) levels, not all zero -> (size + 1,) cumulative frequencies."""
    weights = _weights(bits)[levels]
    used = int((weights > 0).sum())
    found = np.where(weights > 0, np.maximum(1, weights * (TOTAL - used) // weights.sum()), 0)
    found[levels.argmax()] += TOTAL - found.sum()
    return np.concatenate([np.zeros(1, np.int64), found.cumsum()])


def stated(symbols: Symbols, size: int) -> tuple[Tables, bytes]:
    """(n,) symbols below ``size``, n > 0 -> (the table of their histogram, the bytes that state it)."""
    levels, bits = histogram(symbols, size), histogram_bits(symbols.size)
    return table_of(levels, bits), pack(levels, bits)


def read_histogram(data: bytes, offset: int, size: int, count: int) -> tuple[Tables, int]:
    """Return (table of ``size`` symbols, offset behind it); CodecError when damaged."""
    bits = histogram_bits(count)
    end = offset + packed_size(size, bits)
    levels = unpack(data[offset:end], size, bits)
    if not levels.any():
        raise CodecError("a histogram without symbols: not written by us")
    return table_of(levels, bits), end


def stacked(tables: Sequence[Tables]) -> Tables:
    """Tables of unequal lengths as rows of one array; symbols beyond a table's end have frequency 0."""
    width = max(table.size for table in tables)
    return np.stack([np.pad(table, (0, width - table.size), constant_values=TOTAL) for table in tables])


def _weights(bits: int) -> NDArray[Any]:
    """Weight of each level: 0, then 2**((k - 1) / steps + 8), exactly."""
    quarter = 4 // _STEPS[bits]
    return np.array([0, *(isqrt(isqrt(1 << (32 + (k - 1) * quarter))) for k in range(1, 1 << bits))], np.int64)
