"""Targets of fuzzing: frame containers of every family of codecs, and tables of learned priors."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from fuzz_policies import arrays_of
from fuzzing import FILE_S, Target, sealed
from numpy.typing import NDArray

from adaptsplit import fuzzing as fz
from adaptsplit.codecs import (
    PriorTable,
    build_container,
    decode_container,
    fit_prior,
    get_codec,
    parse_container,
    register_prior,
)
from adaptsplit.codecs.container import FIRST_IMAGE_KIND

MOST_BYTES = 160 << 20  # a container may state 2^22 values or 2^23 pixels
FEATURES = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
PICTURE = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
CODECS: dict[str, list[str]] = {
    **{how: [f"q{bits}{share}-{how}" for bits in (2, 3, 8) for share in "tc"] for how in ("zstd", "fast")},
    "context": ["q2c-context", "q4t-context", "q6c-context", "q8t-context"],
    "rle": ["q2t-rle", "q4c-rle", "q8t-rle"],
    "rans": ["q2t-rans", "q3c-rans", "q4t-rans"],
    "slicer": ["slicer-k25-d10", "slicer-k50-d20", "slicer-k100-d30"],
    "prior": ["prior"],
    "webp": ["webp-50"],
    "jpeg": ["jpeg-50"],
}


def read_container(data: bytes) -> None:
    """Decode a container; what comes out has the shape that it states, and is finite."""
    decoded = decode_container(data)
    shape = parse_container(data).shape
    assert decoded.shape == (shape if decoded.dtype == np.float32 else (*shape, 3))
    assert np.isfinite(decoded).all()


@functools.lru_cache
def prior() -> PriorTable:
    """Return a table of three features."""
    return fit_prior(np.stack([FEATURES, 2 * FEATURES, -FEATURES]), 8)


def container(family: str) -> Target:
    """Containers of one family of codecs: of small maps where half of all values is 0, or of an image."""
    chosen: list[Any] = [register_prior(prior()) if name == "prior" else get_codec(name) for name in CODECS[family]]
    values: Any = PICTURE if family in ("webp", "jpeg") else np.maximum(FEATURES, np.float32(0))
    whole: list[bytes] = [codec.encode(values) for codec in chosen]
    mutators: list[fz.Mutator] = [fz.sealed_of(data[:-4], sealed) for data in whole]
    mutators += [functools.partial(_other_container, data) for data in whole]
    if family == "prior":  # every payload but those of an encoder is refused: some are of one, of any features
        some = [chosen[0].encode(np.full((3, 2, 2), k / 4, np.float32)) for k in range(-40, 40)]
        mutators.append(lambda rng: bytes(rng.choice(some)))
    return Target(whole, mutators, read_container, most_bytes=MOST_BYTES)


def _other_container(data: bytes, rng: random.Random) -> bytes:
    """A container that is whole, of another payload, shape, codec or form byte."""
    found, kind = parse_container(data), rng.randrange(4)
    form = rng.randrange(256) if kind == 0 else found.form
    codec = rng.randrange(FIRST_IMAGE_KIND) if kind == 1 and found.kind < FIRST_IMAGE_KIND else found.kind
    shape = tuple(max(1, size + rng.choice((0, 0, -1, 1, 7, 30))) for size in found.shape) if kind == 2 else found.shape
    return build_container(codec, form, shape, fz.damaged(found.payload, rng) if kind else found.payload)


def prior_table() -> Target:
    """The file of a learned prior."""
    with TemporaryDirectory(prefix="adaptsplit-fuzz-") as folder:
        place = Path(folder) / "prior.npz"
        prior().save(place)
        data = place.read_bytes()

    def read(content: bytes) -> None:
        table = PriorTable.parse(content, "prior.npz")
        assert np.isfinite(table.restore(table.symbols(np.full((len(table.scale), 1, 1), 1e4, np.float32)))).all()

    mutators: list[fz.Mutator] = [fz.bytes_of(data), functools.partial(_other_table, arrays_of(data))]
    return Target([data], mutators, read, 10_000, most_s=FILE_S, most_bytes=32 << 20)


def _other_table(arrays: dict[str, NDArray[Any]], rng: random.Random) -> bytes:
    """A prior table one array of which has another type, shape or number."""
    name = rng.choice(sorted(arrays))
    changed = {**arrays, name: fz.other_array(arrays[name], rng)}
    return fz.zip_bytes({f"{key}.npy": fz.npy_bytes(value) for key, value in changed.items()})


FRAMES: dict[str, Callable[[], Target]] = {
    **{f"codec-{family}": functools.partial(container, family) for family in CODECS},
    "prior-table": prior_table,
}
