"""The rANS pipeline: asymmetric quantisation, sparse form, search of a shape, rANS: ``q{bits}{scope}-rans``.

After Sung et al., "Range Asymmetric Numeral Systems-Based Lightweight Intermediate Feature Compression for Split
Computing of Deep Neural Networks" (arXiv:2511.11664), whose abstract was at hand: the byte format is ours.

1. Codes on the asymmetric grid of ``quantise``; z is the most frequent code (the paper's zero point, after a ReLU).
2. The T codes are read as N rows of K = T / N. The sparse form lists, row by row, the values v that are not z, their
   columns c, and how many each row has, r: the paper's modified CSR.
3. N is the divisor of T that makes nnz H(c) + N H(r) + tables smallest, with H the order-0 entropy: v does not depend
   on it. Candidates have K of at most 1024.
4. v, c and r are coded as one rANS stream, each under a histogram that is sent (``static_rans``).

Payload: z (1 byte), N and nnz (3 bytes each, little endian), three histograms, the stream; with nnz = 0, N is 0 and
nothing follows. Where that is not smaller, and above 2**18 values, codes are stored packed. Storage: 0 packed, 2
sparse. Codec byte 0x0C.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.codecs.features import PACKED, restore_codes
from adaptsplit.codecs.grid_codec import GridCodec, Shape, as_number, register_grid_codecs
from adaptsplit.codecs.packing import Codes, pack, packed_size
from adaptsplit.codecs.static_rans import (
    MAX_STATIC_VALUES,
    Symbols,
    decode_static,
    encode_static,
    histogram_bits,
    read_histogram,
    stacked,
    stated,
)
from adaptsplit.errors import CodecError

RANS_KIND = 0x0C
SPARSE = 2
MAX_COLUMNS = 1 << 10
_HEAD_BYTES = 7


@register_grid_codecs
class SparseRansCodec(GridCodec):
    """``q{bits}t-rans`` (one range per tensor) and ``q{bits}c-rans`` (one per channel); see the module."""

    __slots__ = ()
    kind = RANS_KIND
    suffix = "rans"

    def store(self, codes: Codes, shape: Shape) -> tuple[int, bytes]:
        """Sparse where that is smaller than packed."""
        if codes.size <= MAX_STATIC_VALUES:
            stored = write_sparse(codes, self.bits)
            if len(stored) < packed_size(codes.size, self.bits):
                return SPARSE, stored
        return PACKED, pack(codes, self.bits)

    def restore(self, stored: bytes, shape: Shape, storage: int) -> Codes:
        """Inverse of ``store``; CodecError for what it never writes, before any work where it can be told."""
        count = shape[0] * shape[1] * shape[2]
        if storage == PACKED:
            return restore_codes(stored, count, self.bits, storage)
        if storage != SPARSE or count > MAX_STATIC_VALUES or len(stored) >= packed_size(count, self.bits):
            raise CodecError(f"form {storage} of {len(stored)} bytes for {count} values: not written by us")
        return read_sparse(stored, count, self.bits)


def write_sparse(codes: Codes, bits: int, *, compiled: bool | None = None) -> bytes:
    """(n,) codes -> z, N, nnz, histograms, stream. ``compiled`` forces or forbids numba; the bytes are the same."""
    zero = int(np.bincount(codes).argmax())
    places = np.flatnonzero(codes != zero)
    if places.size == 0:
        return bytes((zero,)) + bytes(_HEAD_BYTES - 1)
    rows = best_rows(places, codes.size)
    columns = codes.size // rows
    row = places // columns  # numpy divides by a constant fast, but takes remainders one by one
    parts = [codes[places].astype(np.int64), places - row * columns, np.bincount(row, minlength=rows)]
    sizes = (1 << bits, columns, columns + 1)
    tables, packed = zip(*(stated(part, size) for part, size in zip(parts, sizes, strict=True)), strict=True)
    head = bytes((zero,)) + rows.to_bytes(3, "little") + int(places.size).to_bytes(3, "little")
    stream = encode_static(np.concatenate(parts), _which(parts), stacked(tables), compiled=compiled)
    return head + b"".join(packed) + stream


def read_sparse(stored: bytes, count: int, bits: int, *, compiled: bool | None = None) -> Codes:
    """Inverse of ``write_sparse``: (count,) codes; CodecError for what it never writes."""
    zero, rows, filled = as_number(stored, 0, 1), as_number(stored, 1, 3), as_number(stored, 4, 3)
    if zero >> bits:
        raise CodecError(f"code {zero} in a {bits}-bit tensor: not written by us")
    codes = np.full(count, zero, np.uint8)
    if filled == 0 and rows == 0 and len(stored) == _HEAD_BYTES:
        return codes
    if not 0 < filled < count or not 0 < rows <= count or count % rows or count // rows > MAX_COLUMNS:
        raise CodecError(f"{filled} values in {rows} rows for a tensor of {count}: not written by us")
    values, columns, lengths = _read_parts(stored, (filled, filled, rows), (1 << bits, count // rows), compiled)
    places = _places(columns, lengths, count // rows)
    if np.any(values == zero):
        raise CodecError("a sparse value equals the one that is left out: not written by us")
    codes[places] = values
    return codes


def _read_parts(
    stored: bytes, counts: tuple[int, int, int], sizes: tuple[int, int], compiled: bool | None
) -> list[Symbols]:
    tables, offset = [], _HEAD_BYTES
    for count, size in zip(counts, (*sizes, sizes[1] + 1), strict=True):
        table, offset = read_histogram(stored, offset, size, count)
        tables.append(table)
    which = np.repeat(np.arange(3), counts)
    symbols = decode_static(stored[offset:], which, stacked(tables), compiled=compiled)
    return np.split(symbols, np.cumsum(counts)[:2])


def _places(columns: Symbols, lengths: Symbols, width: int) -> Symbols:
    """Places of the values in the flat tensor; CodecError unless they ascend and fit the rows' lengths."""
    if lengths.sum() != columns.size:
        raise CodecError(f"rows of {lengths.sum()} values, the header says {columns.size}: not written by us")
    places = np.repeat(np.arange(lengths.size), lengths) * width + columns
    if np.any(np.diff(places) <= 0):
        raise CodecError("sparse columns do not ascend: not written by us")
    return places


def best_rows(places: Symbols, count: int) -> int:
    """Number of rows N, a divisor of ``count``, at which places cost least (step 3 of the module's text)."""
    columns = [k for k in range(1, min(count, MAX_COLUMNS) + 1) if count % k == 0]
    return count // min(columns, key=lambda k: _cost_bits(places, count, k))


def _cost_bits(places: Symbols, count: int, columns: int) -> float:
    rows = count // columns
    tables = columns * histogram_bits(places.size) + (columns + 1) * histogram_bits(rows)
    row = places // columns
    return tables + _entropy_bits(places - row * columns) + _entropy_bits(np.bincount(row, minlength=rows))


def _entropy_bits(symbols: Symbols) -> float:
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(symbols.size * np.log2(symbols.size) - (counts * np.log2(counts)).sum())


def _which(parts: list[NDArray[Any]]) -> Symbols:
    return np.repeat(np.arange(len(parts)), [part.size for part in parts])
