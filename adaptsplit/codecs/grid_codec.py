"""The frame of every codec that quantises on a :class:`Grid` and then stores the codes its own way.

The container's form byte is ``bits``, plus 0x10 when ranges are per channel, plus 0x20 times how the codes are stored:
0 bit-packed, 1 zstd, higher numbers as the family says. A family states its codec byte and suffix, and two functions;
``register_grid_codecs`` makes one codec of every width and scope.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from numpy.typing import NDArray

from adaptsplit.codecs.base import FeatureCodec, Features, feature_codecs
from adaptsplit.codecs.container import Container, build_container, parse_container
from adaptsplit.codecs.packing import Codes
from adaptsplit.codecs.quantise import BITS, Grid
from adaptsplit.errors import CodecError

PER_CHANNEL = 0x10
STORAGE_SHIFT = 5

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class GridCodec(ABC):
    """``q{bits}{scope}-{suffix}``: one range per tensor (scope ``t``) or per channel (``c``)."""

    bits: int
    per_channel: bool

    kind: ClassVar[int]
    suffix: ClassVar[str]

    @property
    def name(self) -> str:
        """Id in ``feature_codecs``, such as ``q4t-fast``."""
        return f"{self.grid.prefix}-{self.suffix}"

    @property
    def grid(self) -> Grid:
        """Ranges and levels."""
        return Grid(self.bits, self.per_channel)

    @abstractmethod
    def store(self, codes: Codes, shape: Shape) -> tuple[int, bytes]:
        """(n,) codes -> (storage, bytes)."""

    @abstractmethod
    def restore(self, stored: bytes, shape: Shape, storage: int) -> Codes:
        """Inverse of ``store``; CodecError for what it never writes, in work bounded by ``shape``."""

    def encode(self, features: NDArray[Any]) -> bytes:
        """(C, H, W) finite floats -> container; CodecError for another rank, no values, NaN or infinity."""
        grid = self.grid
        head, codes = grid.quantise(features)
        channels, height, width = features.shape
        storage, stored = self.store(codes, (channels, height, width))
        return build_container(self.kind, form_of(grid, storage), features.shape, head + stored)

    def decode(self, data: bytes) -> Features:
        """Container of this codec -> (C, H, W) finite float32; CodecError for anything else."""
        container = parse_container(data)
        grid = expect(container, self.kind, self.name)
        if grid != self.grid:
            raise CodecError(f"container of {grid.prefix}-{self.suffix}, expected {self.name}")
        return self.decode_parsed(container)

    def decode_parsed(self, container: Container) -> Features:
        """Like ``decode``, of a container that is parsed already and known to be of this codec."""
        channels, height, width = container.shape
        grid, shape = self.grid, (channels, height, width)
        head, stored = grid.split(container.payload, channels)
        return grid.restore(head, self.restore(stored, shape, container.form >> STORAGE_SHIFT), shape)


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


GRID_FAMILIES: dict[int, type[GridCodec]] = {}
"""Families by codec byte."""

G = TypeVar("G", bound=type[GridCodec])


def register_grid_codecs(family: G) -> G:
    """Class decorator: register the codec of every width and scope, and the family by its codec byte."""
    for bits in BITS:
        for per_channel in (False, True):
            codec: FeatureCodec = family(bits, per_channel)
            feature_codecs.register(codec.name)(codec)
    GRID_FAMILIES[family.kind] = family
    return family


def grid_codec_of(container: Container) -> GridCodec:
    """Return the codec of one of ``GRID_FAMILIES`` that made ``container``; CodecError for a grid that is not ours."""
    family = GRID_FAMILIES[container.kind]
    grid = expect(container, container.kind, family.suffix)
    return family(grid.bits, grid.per_channel)


def as_number(data: bytes, offset: int, size: int) -> int:
    """Little-endian number of ``size`` bytes at ``offset``; CodecError when the payload ends before."""
    if len(data) < offset + size:
        raise CodecError(f"payload of {len(data)} bytes ends inside its header: truncated")
    return int.from_bytes(data[offset : offset + size], "little")
