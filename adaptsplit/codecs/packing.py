"""Packing of small codes into bytes, by shifts on whole arrays.

``numpy.packbits`` reaches only some 64 Mvalues/s at 6 bits, so odd widths are kept as a wide plane followed by a narrow
one: 3 bits = crumbs + bits, 6 bits = nibbles + crumbs. Padding bits are zero, and checked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import CodecError

Codes = NDArray[np.uint8]

_PLANES = {0: (), 1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``pack`` makes of ``count`` codes of ``bits`` bits."""
    return sum(-(-count * width // 8) for width in _PLANES[bits])


def pack(codes: Codes, bits: int) -> bytes:
    """(n,) codes below ``2**bits`` -> bytes; ``bits`` is 0 to 8."""
    planes, shift = [], bits
    for width in _PLANES[bits]:
        shift -= width
        plane: Codes = ((codes >> shift) & ((1 << width) - 1)).astype(np.uint8)
        planes.append(_pack_plane(plane, width))
    return b"".join(planes)


def unpack(data: bytes, count: int, bits: int) -> Codes:
    """Inverse of ``pack``; CodecError when the length or the padding does not fit."""
    if len(data) != packed_size(count, bits):
        raise CodecError(f"{len(data)} packed bytes, {count} codes of {bits} bits take {packed_size(count, bits)}")
    codes = np.zeros(count, dtype=np.uint8)
    offset, shift = 0, bits
    for width in _PLANES[bits]:
        shift -= width
        size = -(-count * width // 8)
        plane = _unpack_plane(np.frombuffer(data, np.uint8, size, offset), count, width)
        codes |= plane << shift
        offset += size
    return codes


def _pack_plane(values: Codes, width: int) -> bytes:
    per = 8 // width
    padded = np.pad(values, (0, -values.size % per)) if values.size % per else values
    out = padded[0::per].copy()
    for i in range(1, per):
        out |= padded[i::per] << (i * width)
    return out.tobytes()


def _unpack_plane(data: Codes, count: int, width: int) -> Codes:
    per = 8 // width
    out = np.empty((data.size, per), dtype=np.uint8)
    for i in range(per):
        out[:, i] = (data >> (i * width)) & ((1 << width) - 1)
    values = out.ravel()
    if values[count:].any():
        raise CodecError("padding bits are not zero: not written by us")
    return values[:count]
