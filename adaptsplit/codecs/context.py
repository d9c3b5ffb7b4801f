"""The adaptive context coder: quantised codes under models of their neighbours, entropy-coded with rANS.

Order-0 entropy is no floor for features: values beside, above and in the previous channel tell much about the next one.
The models are in ``context_kernel`` and ``context_tables``; they start from priors and adapt as they go, so there are
no tables to send. With numba a value takes some 15 to 35 ns; without it *encoding* takes the fast path
and says so in the container, and decoding runs the same functions as plain Python, some microseconds per value.

The container's codec byte is 0x09; its form byte is that of ``grid_codec`` with one more way of storing codes: 0
bit-packed, 1 zstd, 2 context-coded. A context-coded payload is the ranges, then 16-bit little-endian words of which the
last lacks its upper byte (always zero). Tensors of more than 2**18 values or 4096 channels take the fast path.
"""

from __future__ import annotations

import numpy as np

from adaptsplit.codecs.context_compile import from_words, intervals, is_compiled, to_words
from adaptsplit.codecs.context_kernel import STATE_WORDS
from adaptsplit.codecs.fastpath import store_fast
from adaptsplit.codecs.features import restore_codes
from adaptsplit.codecs.grid_codec import GridCodec, Shape, register_grid_codecs
from adaptsplit.codecs.packing import Codes, packed_size
from adaptsplit.errors import CodecError

CONTEXT_KIND = 0x09
CODED = 2
MAX_CODED_VALUES = 1 << 18
MAX_CODED_CHANNELS = 1 << 12


@register_grid_codecs
class ContextCodec(GridCodec):
    """``q{bits}t-context`` (one range per tensor) and ``q{bits}c-context`` (one per channel); see the module."""

    __slots__ = ()
    kind = CONTEXT_KIND
    suffix = "context"

    def store(self, codes: Codes, shape: Shape) -> tuple[int, bytes]:
        """Context-coded where numba is here and that is smaller than packed; else as the fast path does."""
        if not is_compiled() or codes.size > MAX_CODED_VALUES or shape[0] > MAX_CODED_CHANNELS:
            return store_fast(codes, self.bits)
        coded = write_coded(codes, shape, self.bits)
        return (CODED, coded) if len(coded) < packed_size(codes.size, self.bits) else store_fast(codes, self.bits)

    def restore(self, stored: bytes, shape: Shape, storage: int) -> Codes:
        """Inverse of ``store``; CodecError for what it never writes, before any work where it can be told."""
        count = shape[0] * shape[1] * shape[2]
        if storage != CODED:
            return restore_codes(stored, count, self.bits, storage)
        if count > MAX_CODED_VALUES or shape[0] > MAX_CODED_CHANNELS:
            raise CodecError(f"context-coded shape {shape}; at most {MAX_CODED_VALUES} values: not written by us")
        if len(stored) % 2 == 0 or not 2 * STATE_WORDS - 1 <= len(stored) < packed_size(count, self.bits):
            raise CodecError(f"{len(stored)} context-coded bytes for {count} values: not written by us")
        return read_coded(stored, shape, self.bits)


def write_coded(codes: Codes, shape: Shape, bits: int, *, compiled: bool | None = None) -> bytes:
    """(n,) codes -> context-coded bytes. ``compiled`` forces or forbids numba; the bytes do not depend on it."""
    words = to_words(intervals(codes, shape, bits, compiled=compiled), compiled=compiled)
    return words.astype("<u2").tobytes()[:-1]


def read_coded(stored: bytes, shape: Shape, bits: int, *, compiled: bool | None = None) -> Codes:
    """Inverse of ``write_coded``, of an odd number of bytes, at least 5; CodecError if damaged."""
    words = np.frombuffer(stored + b"\0", "<u2").astype(np.int64)
    return from_words(words, shape, bits, compiled=compiled)
