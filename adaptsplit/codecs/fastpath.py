"""The fast path: quantise, pack, zstd at level 1. For maps of tens of thousands of values, and as a fallback.

The container's codec byte is 0x0A; its form byte is that of ``grid_codec``, with codes stored 0 bit-packed or 1 by
zstd. The layouts are those of ``features``.
"""

from __future__ import annotations

import threading

import numpy as np
import zstandard

from adaptsplit.codecs.features import LAYOUT, PACKED, ZSTD, restore_codes
from adaptsplit.codecs.grid_codec import GridCodec, Shape, register_grid_codecs
from adaptsplit.codecs.packing import Codes, pack, packed_size

FAST_KIND = 0x0A
FAST_LEVEL = 1

_local = threading.local()


@register_grid_codecs
class FastCodec(GridCodec):
    """``q{bits}t-fast`` (one range per tensor) and ``q{bits}c-fast`` (one range per channel); see the module."""

    __slots__ = ()
    kind = FAST_KIND
    suffix = "fast"

    def store(self, codes: Codes, shape: Shape) -> tuple[int, bytes]:
        """As ``store_fast``."""
        return store_fast(codes, self.bits)

    def restore(self, stored: bytes, shape: Shape, storage: int) -> Codes:
        """Packed or zstd."""
        return restore_codes(stored, shape[0] * shape[1] * shape[2], self.bits, storage)


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
