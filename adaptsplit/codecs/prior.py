"""Codecs with a learned prior: integers of a trained or fitted grid under per-channel tables: ``prior-{id}``.

The tables are a factorised prior (Balle et al., "Variational image compression with a scale hyperprior", ICLR 2018,
section 2; Matsubara et al., "Supervised Compression for Resource-Constrained Edge Computing Systems", WACV 2022): of
each channel the probability of every integer, the same at all places. They do not travel. Both ends load the same table
file, and a container names it by the first 8 bytes of the tables' SHA-256; a decoder that does not know it says so.

Table file (``.npz``, three arrays; the trainer of a bottleneck's entropy model writes the same):

    offset  (C,) int32          the integer that symbol 0 stands for
    cdf     (C, L + 1) uint32   cumulative frequencies, from 0 to 1 << 16; every symbol has at least 1
    scale   (C,) float32        integers are round(feature * scale), clipped to offset .. offset + L - 1

Payload: the id (8 bytes), then one rANS stream (``static_rans``) of all symbols, channel by channel. A symbol costs at
most 16 bits, also of features that the tables were not made for. Form byte 0, codec byte 0x0E. At most 2**18 values.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from adaptsplit.codecs.base import FeatureCodec, Features, feature_codecs
from adaptsplit.codecs.container import Container, build_container, parse_container
from adaptsplit.codecs.quantise import FLOAT16_MAX, checked_features
from adaptsplit.codecs.static_rans import MAX_STATIC_VALUES, TOTAL, Symbols, decode_static, encode_static
from adaptsplit.errors import CodecError
from adaptsplit.files import write_whole
from adaptsplit.npz import read_npz

PRIOR_KIND = 0x0E
MAX_CHANNELS = 1 << 12
MAX_SYMBOLS = 1 << 12
MAX_FILE_BYTES = 8 << 20
MAX_SCALE = 1e9
_ID_BYTES = 8


@dataclass(frozen=True, eq=False)
class PriorTable:
    """Tables of C channels with L symbols each, as in the module's text; CodecError unless they fit together."""

    offset: NDArray[np.int32]
    cdf: NDArray[np.uint32]
    scale: NDArray[np.float32]

    def __post_init__(self) -> None:
        fault = _fault(self.offset, self.cdf, self.scale)
        if fault:
            raise CodecError(f"prior table: {fault}; fit or export it again")

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits that name these tables."""
        shape = np.array(self.cdf.shape, "<u4")
        parts = (shape, self.offset.astype("<i4"), self.cdf.astype("<u4"), self.scale.astype("<f4"))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[: 2 * _ID_BYTES]

    def symbols(self, features: NDArray[Any]) -> Symbols:
        """Symbols (C, H, W), each 0 .. L - 1, of finite features (C, H, W)."""
        codes = np.rint(features * self.scale[:, None, None]) - self.offset[:, None, None]
        return codes.clip(0, self.cdf.shape[1] - 2).astype(np.int64)

    def restore(self, symbols: Symbols) -> Features:
        """Features (C, H, W) float32 that ``symbols`` stand for."""
        values = (symbols + self.offset[:, None, None]) / self.scale[:, None, None].astype(np.float64)
        return values.astype(np.float32)

    def bits(self, symbols: Symbols) -> float:
        """Code length of ``symbols`` (C, H, W) under the tables, bits."""
        frequency = np.diff(self.cdf.astype(np.int64), axis=1)
        chosen = np.take_along_axis(frequency, symbols.reshape(len(symbols), -1), axis=1)
        return float(-np.log2(chosen / TOTAL).sum())

    def save(self, path: Path) -> None:
        """Write the table file."""
        buffer = io.BytesIO()
        np.savez(buffer, offset=self.offset, cdf=self.cdf, scale=self.scale)
        write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a table file; CodecError names the file and what is wrong with it."""
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """Read a table file's bytes, without pickle and in bounded memory; ``where`` is named in errors."""
        try:
            if len(data) > MAX_FILE_BYTES:
                raise ValueError(f"{len(data)} bytes; at most {MAX_FILE_BYTES}")
            arrays = read_npz(data, MAX_FILE_BYTES, 3)
            return cls(*(arrays[name] for name in ("offset", "cdf", "scale")))
        except (ValueError, KeyError, CodecError) as error:
            raise CodecError(f"{where}: not a prior table ({error}); fit or export it again") from error


def fit_prior(features: NDArray[Any], levels: int = 16) -> PriorTable:
    """Fit tables to calibration features (n, C, H, W): ``levels`` integers over each channel's range, and their shares.

    A symbol that did not occur has a frequency of 1 / 2**16, so other features cost more and are still exact.
    """
    maps = np.moveaxis(np.asarray(features, np.float64), 1, 0).reshape(features.shape[1], -1)
    low, high = maps.min(axis=1), maps.max(axis=1)
    scale = ((levels - 1) / np.maximum(high - low, 1e-6)).astype(np.float32)
    offset = np.rint(low * scale).astype(np.int32)
    codes = np.rint(maps * scale[:, None]).astype(np.int64) - offset[:, None]
    counts = np.stack([np.bincount(row.clip(0, levels - 1), minlength=levels) for row in codes])
    edges = np.concatenate([np.zeros((len(maps), 1)), counts.cumsum(axis=1)], axis=1) / maps.shape[1]
    cdf = np.rint(edges * (TOTAL - levels)) + np.arange(levels + 1)
    return PriorTable(offset, cdf.astype(np.uint32), scale)


@dataclass(frozen=True)
class PriorCodec:
    """``prior-{id}``: features of the table's channels, in the table's steps; see the module."""

    table: PriorTable

    @property
    def name(self) -> str:
        """Id in ``feature_codecs``, once registered."""
        return f"prior-{self.table.id}"

    def encode(self, features: NDArray[Any]) -> bytes:
        """(C, H, W) finite floats -> container; CodecError for other channels, too many values, NaN or infinity."""
        values = checked_features(features)
        if len(values) != len(self.table.scale) or values.size > MAX_STATIC_VALUES:
            raise CodecError(f"features {values.shape}; {self.name} takes {len(self.table.scale)} channels")
        symbols = self.table.symbols(values)
        stream = encode_static(symbols.ravel(), _which(values.shape), self.table.cdf.astype(np.int64))
        return build_container(PRIOR_KIND, 0, values.shape, bytes.fromhex(self.table.id) + stream)

    def decode(self, data: bytes) -> Features:
        """Container of this codec -> (C, H, W) finite float32; CodecError for anything else."""
        container = parse_container(data)
        if container.kind != PRIOR_KIND:
            raise CodecError(f"codec byte 0x{container.kind:02x}, expected 0x{PRIOR_KIND:02x} ({self.name})")
        return self.decode_parsed(container)

    def decode_parsed(self, container: Container) -> Features:
        """Like ``decode``, of a container that is parsed already."""
        channels, count = container.shape[0], int(np.prod(container.shape))
        found = container.payload[:_ID_BYTES].hex()
        if found != self.table.id or container.form:
            raise CodecError(f"container of prior-{found}, form {container.form}; expected {self.name}, form 0")
        if channels != len(self.table.scale) or count > MAX_STATIC_VALUES:
            raise CodecError(f"shape {container.shape} under {self.name}: not written by us")
        stream = container.payload[_ID_BYTES:]
        symbols = decode_static(stream, _which(container.shape), self.table.cdf.astype(np.int64))
        return self.table.restore(symbols.reshape(container.shape))


def register_prior(table: PriorTable) -> PriorCodec:
    """Make ``table`` known in this process, to ``get_codec`` and to decoders; return its codec. Idempotent."""
    codec = PriorCodec(table)
    if codec.name not in feature_codecs:
        checked: FeatureCodec = codec
        feature_codecs.register(codec.name)(checked)
    return codec


def register_priors(folder: Path) -> list[PriorCodec]:
    """Make all table files ``prior-*.npz`` of a folder known; CodecError names one that is damaged."""
    return [register_prior(PriorTable.load(path)) for path in sorted(folder.glob("prior-*.npz"))]


def prior_of(container: Container) -> PriorCodec:
    """Return the registered codec whose table ``container`` names; CodecError when it is not known here."""
    name = f"prior-{container.payload[:_ID_BYTES].hex()}"
    if name not in feature_codecs:
        raise CodecError(f"codec {name} is not known here; load its table file on this side, too (register_prior)")
    codec = feature_codecs.get(name)
    assert isinstance(codec, PriorCodec)
    return codec


def _which(shape: tuple[int, ...]) -> Symbols:
    return np.repeat(np.arange(shape[0]), shape[1] * shape[2])


def _fault(offset: NDArray[Any], cdf: NDArray[Any], scale: NDArray[Any]) -> str:
    """What is wrong with three arrays, or an empty text."""
    kinds = ", ".join(str(part.dtype) for part in (offset, cdf, scale))
    if kinds != "int32, uint32, float32":
        return f"offset, cdf, scale are {kinds}; expected int32, uint32, float32"
    channels, edges = cdf.shape if cdf.ndim == 2 else (0, 0)
    if not (0 < channels <= MAX_CHANNELS and 1 < edges <= MAX_SYMBOLS + 1) or offset.shape != (channels,):
        return f"offset {offset.shape}, cdf {cdf.shape}; expected (C,), (C, L + 1), L at most {MAX_SYMBOLS}"
    if np.any(cdf[:, 0] != 0) or np.any(cdf[:, -1] != TOTAL) or np.any(np.diff(cdf.astype(np.int64), axis=1) < 1):
        return f"a row of cdf does not rise from 0 to {TOTAL}, at every symbol"
    if scale.shape != (channels,) or not np.all((scale > 0) & (scale <= MAX_SCALE)):
        return f"scale is not (C,) positive finite numbers, at most {MAX_SCALE:g}"
    reach = np.abs(offset.astype(np.float64)) + edges
    return "" if np.all(reach / scale <= 4 * FLOAT16_MAX) else f"symbols stand for values beyond {4 * FLOAT16_MAX:g}"
