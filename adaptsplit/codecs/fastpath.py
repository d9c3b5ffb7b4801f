"""The fast path: quantise, pack, zstd at level 1. For maps of tens of thousands of values, and as a fallback.

The container's codec byte is 0x0A; its form byte is ``bits``, plus 0x10 when ranges are per channel, plus 0x20 times
how the codes are stored: 0 bit-packed, 1 zstd. The layouts are those of ``features``.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from adaptsplit.codecs.base import FeatureCodec, Features, feature_codecs
from adaptsplit.codecs.container import Container, build_container, parse_container
from adaptsplit.codecs.features import LAYOUT, PACKED, ZSTD, restore_codes
from adaptsplit.codecs.packing import Codes, pack, packed_size
from adaptsplit.codecs.quantise import BITS, Grid
from adaptsplit.errors import CodecError

FAST_KIND = 0x0A
FAST_LEVEL = 1
PER_CHANNEL = 0x10
STORAGE_SHIFT = 5

_local = threading.local()


@dataclass(frozen=True, slots=True)
class FastCodec:
    """``q{bits}t-fast`` (one range per tensor) and ``q{bits}c-fast`` (one range per channel); see the module."""

    bits: int
    per_channel: bool

    @property
    def name(self) -> str:
        """Id in ``feature_codecs``, such as ``q4t-fast``."""
        return f"{Grid(self.bits, self.per_channel).prefix}-fast"

    def encode(self, features: NDArray[Any]) -> bytes:
        """(C, H, W) finite floats -> container; CodecError for another rank, no values, NaN or infinity."""
        grid = Grid(self.bits, self.per_channel)
        head, codes = grid.quantise(features)
        storage, stored = store_fast(codes, self.bits)
        return build_container(FAST_KIND, form_of(grid, storage), features.shape, head + stored)

    def decode(self, data: bytes) -> Features:
        """Container of this codec -> (C, H, W) finite float32; CodecError for anything else."""
        container = parse_container(data)
        grid = expect(container, FAST_KIND, self.name)
        if (grid.bits, grid.per_channel) != (self.bits, self.per_channel):
            raise CodecError(f"container of {grid.prefix}-fast, expected {self.name}")
        return self.decode_parsed(container)

    def decode_parsed(self, container: Container) -> Features:
        """Like ``decode``, of a container that is parsed already and known to be of this kind."""
        grid = Grid(self.bits, self.per_channel)
        channels, height, width = container.shape
        head, stored = grid.split(container.payload, channels)
        storage = container.form >> STORAGE_SHIFT
        codes = restore_codes(stored, channels * height * width, self.bits, storage)
        return grid.restore(head, codes, (channels, height, width))


def form_of(grid: Grid, storage: int) -> int:
    """Form byte of a grid and a way of storing the codes."""
    return grid.bits | (PER_CHANNEL if grid.per_channel else 0) | storage << STORAGE_SHIFT


def expect(container: Container, kind: int, name: str) -> Grid:
    """Return the grid that the form byte states; CodecError for another codec byte or a grid that is not ours."""
    if container.kind != kind:
        raise CodecError(f"codec byte 0x{container.kind:02x}, expected 0x{kind:02x} ({name})")
    grid = Grid(container.form & 0xF, bool(container.form & PER_CHANNEL))
    if grid.bits not in BITS:
        raise CodecError(f"form 0x{container.form:02x}: {grid.bits} bits, expected one of {BITS}: not written by us")
    return grid


def store_fast(codes: Codes, bits: int) -> tuple[int, bytes]:
    """Return (storage, bytes): zstd over the layout for ``bits``, or bit-packed where that is not larger."""
    compressed: bytes = _compressor().compress(_pack_wide(codes, LAYOUT[bits]))
    if len(compressed) < packed_size(codes.size, bits):
        return ZSTD, compressed
    return PACKED, pack(codes, bits)


def _pack_wide(codes: Codes, width: int) -> bytes:
    """As ``pack`` for 2, 4 and 8 bits, on words of a byte per code instead of strided bytes."""
    if width == 8 or codes.size % (8 // width):
        return pack(codes, width)
    if width == 4:
        pairs = codes.view("<u2")
        return bytes((pairs | pairs >> 4).astype(np.uint8).data)
    fours = codes.view("<u4")
    return bytes((fours | fours >> 6 | fours >> 12 | fours >> 18).astype(np.uint8).data)


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's compressor: making one takes longer than compressing a bottleneck."""
    found: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if found is None:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            FAST_LEVEL, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=0, write_checksum=0
        )
        found = _local.compressor = zstandard.ZstdCompressor(compression_params=parameters)
    return found


def _register_all() -> dict[tuple[int, bool], FastCodec]:
    codecs = [FastCodec(bits, per_channel) for bits in BITS for per_channel in (False, True)]
    for codec in codecs:
        checked: FeatureCodec = codec
        feature_codecs.register(codec.name)(checked)
    return {(codec.bits, codec.per_channel): codec for codec in codecs}


FAST_BY_GRID = _register_all()
