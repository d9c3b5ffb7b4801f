"""Codecs: bottleneck features and images to bytes and back, in one checked container.

>>> import numpy as np
>>> from adaptsplit.codecs import decode_container, get_codec
>>> data = get_codec("q4c-zstd").encode(np.zeros((8, 4, 4), np.float32))
>>> decode_container(data).shape
(8, 4, 4)
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptsplit.codecs.base import FeatureCodec, Features, Image, ImageCodec, feature_codecs, image_codecs
from adaptsplit.codecs.container import Container, build_container, parse_container
from adaptsplit.codecs.context import CONTEXT_BY_GRID, CONTEXT_KIND, ContextCodec
from adaptsplit.codecs.fastpath import FAST_BY_GRID, FAST_KIND, FastCodec, expect
from adaptsplit.codecs.features import UNIFORM_BY_KIND, UniformCodec
from adaptsplit.codecs.images import PILLOW_BY_KIND, PillowCodec
from adaptsplit.errors import CodecError, UnknownNameError
from adaptsplit.registry import did_you_mean

__all__ = [
    "Container",
    "ContextCodec",
    "FastCodec",
    "FeatureCodec",
    "ImageCodec",
    "PillowCodec",
    "UniformCodec",
    "build_container",
    "codec_of",
    "decode_container",
    "feature_codecs",
    "get_codec",
    "image_codecs",
    "parse_container",
]


def get_codec(name: str) -> FeatureCodec | ImageCodec:
    """Return the feature or image codec called ``name``; UnknownNameError names the nearest one."""
    if name in feature_codecs:
        return feature_codecs.get(name)
    if name in image_codecs:
        return image_codecs.get(name)
    known = feature_codecs.names() + image_codecs.names()
    raise UnknownNameError(f"unknown codec {name!r}{did_you_mean(name, known)} Known: {', '.join(known)}.")


def codec_of(container: Container) -> UniformCodec | FastCodec | ContextCodec | PillowCodec:
    """Return the codec that made ``container``; CodecError when there is none."""
    uniform = UNIFORM_BY_KIND.get(container.kind)
    if uniform is not None:
        return uniform
    if container.kind in (CONTEXT_KIND, FAST_KIND):
        grid = expect(container, container.kind, "context or fast")
        by_grid: Mapping[tuple[int, bool], ContextCodec | FastCodec]
        by_grid = CONTEXT_BY_GRID if container.kind == CONTEXT_KIND else FAST_BY_GRID
        return by_grid[grid.bits, grid.per_channel]
    pillow = PILLOW_BY_KIND.get((container.kind, container.form))
    if pillow is None:
        raise CodecError(f"codec bytes {container.kind:#x}/{container.form}: no codec of this release wrote them")
    return pillow


def decode_container(data: bytes) -> Features | Image:
    """Decode any container of ours: (C, H, W) float32 features or an (H, W, 3) uint8 image; CodecError otherwise."""
    container = parse_container(data)
    return codec_of(container).decode_parsed(container)
