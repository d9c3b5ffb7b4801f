"""SLICER, a codec without training for maps without a bottleneck: ``slicer-k{percent}-d{decibels}``.

After Sung et al., "Why Should the Server Do It All?" (arXiv:2511.11608), whose abstract was at hand; where it is silent
the rule below, and the byte format, are ours.

1. *Asymmetric top-K.* Positive and negative values are ranked apart by magnitude; of each sign the largest ``keep`` of
   a hundred stay, all others become 0. After a ReLU there is one sign only.
2. *Magnitude groups.* What stays is sorted by magnitude and cut into 4 groups of equal size (measured: 2 to 8 differ
   little, 4 is best or next to it).
3. *Adaptive bits.* With b bits, a group of n values of magnitudes low to high has 2**b cells of width
   w = (high - low) / 2**b and is decoded to their middles: distortion n w**2 / 12. From b = 0, the group of the widest
   cell gets one bit more (the steepest fall of distortion per bit sent) until all groups together are ``budget_db``
   decibels below the energy of what stayed, or all have 8 bits.

Payload: low and high of every group (float16, rounded outwards), bits of every group (4 bits each), a histogram of 9
symbols (0 dropped, 1 to 4 positive, 5 to 8 negative, by group), the stream's length (3 bytes, little endian), one
symbol a value as rANS (``static_rans``), and the groups' codes, packed. The form byte numbers the preset. Codec byte
0x0D. At most 2**18 values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.codecs.base import FeatureCodec, Features, feature_codecs
from adaptsplit.codecs.container import Container, build_container, parse_container
from adaptsplit.codecs.grid_codec import as_number
from adaptsplit.codecs.packing import Codes, pack, packed_size, unpack
from adaptsplit.codecs.quantise import checked_features, outward
from adaptsplit.codecs.static_rans import (
    MAX_STATIC_VALUES,
    Symbols,
    decode_static,
    encode_static,
    read_histogram,
    stated,
)
from adaptsplit.errors import CodecError

SLICER_KIND = 0x0D
GROUPS = 4
MAX_BITS = 8
KEEP_PERCENT = (10, 25, 50, 75, 100)
BUDGET_DB = (10, 15, 20, 30)

_SYMBOLS = 2 * GROUPS + 1
_EDGE_BYTES = 4 * GROUPS
_HEAD_BYTES = _EDGE_BYTES + GROUPS // 2

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SlicerCodec:
    """``slicer-k{keep}-d{budget_db}``: values kept of 100 of each sign, and distortion budget, decibels."""

    keep: int
    budget_db: int

    @property
    def name(self) -> str:
        """Id in ``feature_codecs``, such as ``slicer-k50-d15``."""
        return f"slicer-k{self.keep}-d{self.budget_db}"

    @property
    def form(self) -> int:
        """The container's form byte: number of the preset."""
        return PRESETS.index(self)

    def encode(self, features: NDArray[Any]) -> bytes:
        """(C, H, W) finite floats -> container; CodecError for another rank, too many values, NaN or infinity."""
        values = checked_features(features)
        if values.size > MAX_STATIC_VALUES:
            raise CodecError(f"{values.size} values; slicer takes at most {MAX_STATIC_VALUES}: use q4t-fast")
        flat = values.ravel()
        kept = np.flatnonzero(top_of(flat, self.keep / 100))
        magnitudes = np.abs(flat[kept])
        group = groups_of(magnitudes)
        edges = edges_of(magnitudes, group)
        bits = bits_of(edges, group, magnitudes, self.budget_db)
        symbols = np.zeros(flat.size, np.int64)
        symbols[kept] = 1 + group + GROUPS * (flat[kept] < 0)
        return build_container(SLICER_KIND, self.form, values.shape, _write(symbols, group, magnitudes, edges, bits))

    def decode(self, data: bytes) -> Features:
        """Container of this codec -> (C, H, W) finite float32; CodecError for anything else."""
        container = parse_container(data)
        if (container.kind, container.form) != (SLICER_KIND, self.form):
            found = f"0x{container.kind:02x}/{container.form}"
            raise CodecError(f"codec bytes {found}, expected 0x{SLICER_KIND:02x}/{self.form} ({self.name})")
        return self.decode_parsed(container)

    def decode_parsed(self, container: Container) -> Features:
        """Like ``decode``, of a container that is parsed already and known to be of this codec."""
        channels, height, width = container.shape
        return _read(container.payload, channels * height * width).reshape(channels, height, width)


def top_of(values: Features, share: float) -> NDArray[np.bool_]:
    """Which of (n,) values stay: the largest ``share`` by magnitude of the positive and of the negative ones."""
    kept = np.zeros(values.size, np.bool_)
    for signed in (values, -values):
        count = int(np.ceil(share * np.count_nonzero(signed > 0)))
        if count:
            kept |= signed >= np.partition(signed, signed.size - count)[signed.size - count]
    return kept


def groups_of(magnitudes: Features) -> Symbols:
    """Group 0 to 3 of each of (n,) magnitudes: equal sizes, by rank; equal magnitudes share the lowest group."""
    ordered = np.sort(magnitudes)
    ranks = np.searchsorted(ordered, magnitudes, side="left")
    return ranks * GROUPS // max(1, magnitudes.size)


def edges_of(magnitudes: Features, group: Symbols) -> Floats:
    """Smallest and largest magnitude of each group (4, 2), as float16 rounded outwards; 0, 0 of an empty group."""
    edges = np.zeros((GROUPS, 2))
    for index in range(GROUPS):
        members = magnitudes[group == index]
        if members.size:
            edges[index] = max(0.0, outward(float(members.min()), -1)), outward(float(members.max()), 1)
    return edges


def bits_of(edges: Floats, group: Symbols, magnitudes: Features, budget_db: float) -> list[int]:
    """Bits of each group, 0 to 8: step 3 of the module's text."""
    sizes = np.bincount(group, minlength=GROUPS)
    budget = float(np.square(magnitudes, dtype=np.float64).sum()) * 10 ** (-budget_db / 10)
    cells, bits = edges[:, 1] - edges[:, 0], [0] * GROUPS
    while float((sizes * cells**2).sum()) / 12 > budget and min(bits) < MAX_BITS:
        widest = max(range(GROUPS), key=lambda index: (bits[index] < MAX_BITS, cells[index]))
        bits[widest] += 1
        cells[widest] /= 2
    return bits


def _write(symbols: Symbols, group: Symbols, magnitudes: Features, edges: Floats, bits: list[int]) -> bytes:
    table, packed = stated(symbols, _SYMBOLS)
    stream = encode_static(symbols, np.zeros_like(symbols), table[None])
    codes = [_codes(magnitudes[group == index], edges[index], bits[index]) for index in range(GROUPS)]
    return b"".join(
        (
            edges.astype("<f2").tobytes(),
            pack(np.array(bits, np.uint8), 4),
            packed,
            len(stream).to_bytes(3, "little"),
            stream,
            *(pack(part, width) for part, width in zip(codes, bits, strict=True)),
        )
    )


def _codes(magnitudes: Features, edge: Floats, bits: int) -> Codes:
    scale = (1 << bits) / max(edge[1] - edge[0], 1e-30)
    codes: Codes = ((magnitudes - edge[0]) * scale).clip(0, (1 << bits) - 1).astype(np.uint8)
    return codes


def _read(payload: bytes, count: int) -> Features:
    if count > MAX_STATIC_VALUES:
        raise CodecError(f"slicer container of {count} values; at most {MAX_STATIC_VALUES}: not written by us")
    edges, bits = _read_groups(payload)
    table, offset = read_histogram(payload, _HEAD_BYTES, _SYMBOLS, count)
    length = as_number(payload, offset, 3)
    end = offset + 3 + length
    symbols = decode_static(payload[offset + 3 : end], np.zeros(count, np.int64), table[None])
    values = np.zeros(count, np.float32)
    group = np.where(symbols > 0, (symbols - 1) % GROUPS, -1)
    for index in range(GROUPS):
        places = np.flatnonzero(group == index)
        size = packed_size(places.size, bits[index])
        codes = unpack(payload[end : end + size], places.size, bits[index])
        values[places] = edges[index, 0] + (codes + 0.5) * ((edges[index, 1] - edges[index, 0]) / (1 << bits[index]))
        end += size
    if end != len(payload):
        raise CodecError(f"payload of {len(payload)} bytes, its groups end at {end}: not written by us")
    return np.where(symbols > GROUPS, -values, values)


def _read_groups(payload: bytes) -> tuple[Floats, list[int]]:
    if len(payload) < _HEAD_BYTES:
        raise CodecError(f"payload of {len(payload)} bytes; the groups alone take {_HEAD_BYTES}")
    edges = np.frombuffer(payload, "<f2", 2 * GROUPS).astype(np.float64).reshape(GROUPS, 2)
    bits = unpack(payload[_EDGE_BYTES:_HEAD_BYTES], GROUPS, 4)
    ordered = np.isfinite(edges).all() and np.all(edges[:, 0] <= edges[:, 1]) and np.all(edges[:, 0] >= 0)
    if not ordered or bits.max() > MAX_BITS:
        raise CodecError("groups without two finite magnitudes in order and 0 to 8 bits: not written by us")
    return edges, [int(width) for width in bits]


PRESETS = tuple(SlicerCodec(keep, budget) for keep in KEEP_PERCENT for budget in BUDGET_DB)


def slicer_of(container: Container) -> SlicerCodec:
    """Return the preset that made ``container``; CodecError when there is none of its number."""
    if container.form >= len(PRESETS):
        raise CodecError(f"slicer preset {container.form}; this release has {len(PRESETS)}: not written by us")
    return PRESETS[container.form]


def _register_all() -> None:
    for codec in PRESETS:
        checked: FeatureCodec = codec
        feature_codecs.register(codec.name)(checked)


_register_all()
