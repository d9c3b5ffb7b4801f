"""The adaptive context coder: quantised codes under models of their neighbours, entropy-coded with rANS.

Order-0 entropy is no floor for features: values beside, above and in the previous channel tell much about the next one.
The models are in ``context_kernel`` and ``context_tables``; they start from priors and adapt as they go, so there are
no tables to send. With numba a value takes some 30 to 60 ns; without it *encoding* takes the fast path
and says so in the container, and decoding runs the same functions as plain Python, some microseconds per value.

The container's codec byte is 0x09; its form byte is that of ``fastpath`` with one more way of storing codes: 0
bit-packed, 1 zstd, 2 context-coded. A context-coded payload is the ranges, then 16-bit little-endian words of which the
last lacks its upper byte (always zero). Tensors of more than 2**18 values or 4096 channels take the fast path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.codecs.base import FeatureCodec, Features, feature_codecs
from adaptsplit.codecs.container import Container, build_container, parse_container
from adaptsplit.codecs.context_compile import from_words, intervals, is_compiled, to_words
from adaptsplit.codecs.context_kernel import STATE_WORDS
from adaptsplit.codecs.fastpath import STORAGE_SHIFT, expect, form_of, store_fast
from adaptsplit.codecs.features import restore_codes
from adaptsplit.codecs.packing import Codes, packed_size
from adaptsplit.codecs.quantise import BITS, Grid
from adaptsplit.errors import CodecError

CONTEXT_KIND = 0x09
CODED = 2
MAX_CODED_VALUES = 1 << 18
MAX_CODED_CHANNELS = 1 << 12

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ContextCodec:
    """``q{bits}t-context`` (one range per tensor) and ``q{bits}c-context`` (one per channel); see the module."""

    bits: int
    per_channel: bool

    @property
    def name(self) -> str:
        """Id in ``feature_codecs``, such as ``q4t-context``."""
        return f"{Grid(self.bits, self.per_channel).prefix}-context"

    def encode(self, features: NDArray[Any]) -> bytes:
        """(C, H, W) finite floats -> container; CodecError for another rank, no values, NaN or infinity."""
        grid = Grid(self.bits, self.per_channel)
        head, codes = grid.quantise(features)
        channels, height, width = features.shape
        storage, stored = _store(codes, (channels, height, width), self.bits)
        return build_container(CONTEXT_KIND, form_of(grid, storage), features.shape, head + stored)

    def decode(self, data: bytes) -> Features:
        """Container of this codec -> (C, H, W) finite float32; CodecError for anything else."""
        container = parse_container(data)
        grid = expect(container, CONTEXT_KIND, self.name)
        if (grid.bits, grid.per_channel) != (self.bits, self.per_channel):
            raise CodecError(f"container of {grid.prefix}-context, expected {self.name}")
        return self.decode_parsed(container)

    def decode_parsed(self, container: Container) -> Features:
        """Like ``decode``, of a container that is parsed already and known to be of this kind."""
        grid = Grid(self.bits, self.per_channel)
        channels, height, width = container.shape
        head, stored = grid.split(container.payload, channels)
        shape, storage = (channels, height, width), container.form >> STORAGE_SHIFT
        if storage == CODED:
            codes = _read_coded(stored, shape, self.bits)
        else:
            codes = restore_codes(stored, channels * height * width, self.bits, storage)
        return grid.restore(head, codes, shape)


def _store(codes: Codes, shape: Shape, bits: int) -> tuple[int, bytes]:
    if not is_compiled() or codes.size > MAX_CODED_VALUES or shape[0] > MAX_CODED_CHANNELS:
        return store_fast(codes, bits)
    coded = write_coded(codes, shape, bits)
    return (CODED, coded) if len(coded) < packed_size(codes.size, bits) else store_fast(codes, bits)


def write_coded(codes: Codes, shape: Shape, bits: int, *, compiled: bool | None = None) -> bytes:
    """(n,) codes -> context-coded bytes. ``compiled`` forces or forbids numba; the bytes do not depend on it."""
    words = to_words(intervals(codes, shape, bits, compiled=compiled), compiled=compiled)
    return words.astype("<u2").tobytes()[:-1]


def _read_coded(stored: bytes, shape: Shape, bits: int) -> Codes:
    """Inverse of ``write_coded``; CodecError for what it never writes, before any work where it can be told."""
    count = shape[0] * shape[1] * shape[2]
    if count > MAX_CODED_VALUES or shape[0] > MAX_CODED_CHANNELS:
        raise CodecError(f"context-coded shape {shape}; at most {MAX_CODED_VALUES} values: not written by us")
    if len(stored) % 2 == 0 or not 2 * STATE_WORDS - 1 <= len(stored) < packed_size(count, bits):
        raise CodecError(f"{len(stored)} context-coded bytes for {count} values: not written by us")
    return read_coded(stored, shape, bits)


def read_coded(stored: bytes, shape: Shape, bits: int, *, compiled: bool | None = None) -> Codes:
    """Inverse of ``write_coded``, of an odd number of bytes, at least 5; CodecError if damaged."""
    words = np.frombuffer(stored + b"\0", "<u2").astype(np.int64)
    return from_words(words, shape, bits, compiled=compiled)


def _register_all() -> dict[tuple[int, bool], ContextCodec]:
    codecs = [ContextCodec(bits, per_channel) for bits in BITS for per_channel in (False, True)]
    for codec in codecs:
        checked: FeatureCodec = codec
        feature_codecs.register(codec.name)(checked)
    return {(codec.bits, codec.per_channel): codec for codec in codecs}


CONTEXT_BY_GRID = _register_all()
