"""Quantisation and run-length coding: ``q{bits}{scope}-rle``, the plain codec that others have to beat.

After "Quantization and Run-Length Coding are Enough" (IEEE Globecom 2023): title and idea were at hand, not the byte
format, which is ours. Codes are read channel by channel, line by line; a run of equal codes is a *token* (code, length
- 1), with the length in 2, 4 or 8 bits, whichever is smallest for the tensor; longer runs are several tokens. Payload:
number of tokens (3 bytes, little endian), codes and lengths, each packed. Where that is not smaller, codes are stored
packed. The form byte's storage is 0 packed, 3, 4, 5: runs of 2, 4, 8 bits. Codec byte 0x0B.
"""

from __future__ import annotations

import numpy as np

from adaptsplit.codecs.features import PACKED, restore_codes
from adaptsplit.codecs.grid_codec import GridCodec, Shape, as_number, register_grid_codecs
from adaptsplit.codecs.packing import Codes, pack, packed_size, unpack
from adaptsplit.errors import CodecError

RLE_KIND = 0x0B
RUN_BITS = {3: 2, 4: 4, 5: 8}
_COUNT_BYTES = 3


@register_grid_codecs
class RunLengthCodec(GridCodec):
    """``q{bits}t-rle`` (one range per tensor) and ``q{bits}c-rle`` (one per channel); see the module."""

    __slots__ = ()
    kind = RLE_KIND
    suffix = "rle"

    def store(self, codes: Codes, shape: Shape) -> tuple[int, bytes]:
        """The smallest of packed codes and the three widths of runs."""
        starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
        lengths = np.diff(starts, append=codes.size)
        sizes = {storage: _size(lengths, self.bits, width) for storage, width in RUN_BITS.items()}
        best = min(sizes, key=lambda storage: sizes[storage])
        if sizes[best] >= packed_size(codes.size, self.bits):
            return PACKED, pack(codes, self.bits)
        return best, _write(codes[starts], lengths, self.bits, RUN_BITS[best])

    def restore(self, stored: bytes, shape: Shape, storage: int) -> Codes:
        """Inverse of ``store``; CodecError for what it never writes."""
        count = shape[0] * shape[1] * shape[2]
        if storage not in RUN_BITS:
            return _packed(stored, count, self.bits, storage)
        width = RUN_BITS[storage]
        tokens = as_number(stored, 0, _COUNT_BYTES)
        middle = _COUNT_BYTES + packed_size(tokens, self.bits)
        if not 0 < tokens <= count or len(stored) != middle + packed_size(tokens, width):
            raise CodecError(f"{tokens} runs in {len(stored)} bytes for {count} values: not written by us")
        codes = unpack(stored[_COUNT_BYTES:middle], tokens, self.bits)
        lengths = unpack(stored[middle:], tokens, width).astype(np.int64) + 1
        if lengths.sum() != count or np.any((codes[1:] == codes[:-1]) & (lengths[:-1] < 1 << width)):
            raise CodecError(f"runs of {lengths.sum()} values for {count}, or of equal neighbours: not written by us")
        return np.repeat(codes, lengths)


def _packed(stored: bytes, count: int, bits: int, storage: int) -> Codes:
    if storage != PACKED:
        raise CodecError(f"form {storage}; expected {PACKED} (packed) or 3 to 5 (runs): not written by us")
    return restore_codes(stored, count, bits, storage)


def _size(lengths: np.ndarray, bits: int, width: int) -> int:
    tokens = int(-(-lengths // (1 << width)).sum())
    return _COUNT_BYTES + packed_size(tokens, bits) + packed_size(tokens, width)


def _write(values: Codes, lengths: np.ndarray, bits: int, width: int) -> bytes:
    pieces = -(-lengths // (1 << width))
    ends = pieces.cumsum() - 1
    runs = np.full(int(pieces.sum()), (1 << width) - 1, np.uint8)
    runs[ends] = lengths - (pieces - 1) * (1 << width) - 1
    head = len(runs).to_bytes(_COUNT_BYTES, "little")
    return head + pack(np.repeat(values, pieces), bits) + pack(runs, width)
