"""Observations of a block of rows, scaled together so that the compiler vectorises it.

The numbers are those of ``adaptsplit.observation.normalise`` to 1e-6; a test compares. The logarithm is spelt out (an
atanh series on the mantissa, in single precision like the observation) because a call per field and row would cost more
than the physics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation
from adaptsplit.envs.compiled import compiled, inlined

Array = NDArray[Any]

BLOCK = 64
SIZE = observation.SIZE
_LOGS = np.flatnonzero([field.scale == "log" for field in observation.FIELDS])
_LOW = observation._LOW.astype(np.float32)
_PER_SPAN = (1.0 / (observation._HIGH - observation._LOW)).astype(np.float32)
_MANTISSA, _ONE, _HALF = np.int32(0x7FFFFF), np.int32(0x3F800000), np.int32(0x3F000000)
_ROOT_TWO = np.int32(0x3504F3)  # mantissa bits of sqrt(2)
_BIAS, _SHIFT = np.int32(127), np.int32(23)
_0, _1, _2, _TINY = np.float32(0), np.float32(1), np.float32(2), np.float32(1e-30)
_LN2, _3, _5, _7, _9 = (np.float32(x) for x in (0.6931471805599453, 1 / 3, 1 / 5, 1 / 7, 1 / 9))


class Buffers(NamedTuple):
    """Scratch of one thread."""

    raw: Array  # (BLOCK, D) f4 physical values
    column: Array  # (BLOCK,) f4
    bits: Array  # (BLOCK,) i4, the same memory as ``column``
    exponent: Array  # (BLOCK,) f4
    who: Array  # (BLOCK,) i8 the rows that the values belong to


def buffers() -> Buffers:
    """Return scratch for one thread."""
    column = np.zeros(BLOCK, dtype=np.float32)
    raw, exponent = np.zeros((BLOCK, SIZE), dtype=np.float32), np.zeros(BLOCK, dtype=np.float32)
    return Buffers(raw, column, column.view(np.int32), exponent, np.zeros(BLOCK, dtype=np.int64))


@inlined
def _logarithm(column: Array, bits: Array, exponent: Array, count: int) -> None:
    """Replace positive numbers by their natural logarithm."""
    for j in range(count):
        mantissa = bits[j] & _MANTISSA
        high = mantissa > _ROOT_TWO
        exponent[j] = np.float32((bits[j] >> _SHIFT) - _BIAS) + (_1 if high else _0)
        bits[j] = mantissa | (_HALF if high else _ONE)
    for j in range(count):
        f = (column[j] - _1) / (column[j] + _1)
        g = f * f
        column[j] = exponent[j] * _LN2 + _2 * f * (_1 + g * (_3 + g * (_5 + g * (_7 + g * _9))))


@compiled
def scale_block(scratch: Buffers, count: int, observations: Array) -> None:
    """Scale ``count`` rows of raw values to 0..1 into the rows ``who`` of ``observations`` (n, D)."""
    raw, column = scratch.raw, scratch.column
    for k in range(_LOGS.shape[0]):
        d = _LOGS[k]
        for j in range(count):
            column[j] = max(raw[j, d], _TINY)
        _logarithm(column, scratch.bits, scratch.exponent, count)
        for j in range(count):
            raw[j, d] = column[j]
    for j in range(count):
        out = observations[scratch.who[j]]
        for d in range(SIZE):
            scaled = (raw[j, d] - _LOW[d]) * _PER_SPAN[d]
            scaled = scaled if scaled == scaled else _0
            out[d] = max(min(scaled, _1), _0)
