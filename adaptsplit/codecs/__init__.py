"""Codecs: bottleneck features and images to bytes and back, in one checked container.

>>> import numpy as np
>>> from adaptsplit.codecs import decode_container, get_codec
>>> data = get_codec("q4c-zstd").encode(np.zeros((8, 4, 4), np.float32))
>>> decode_container(data).shape
(8, 4, 4)
"""

from __future__ import annotations

from adaptsplit.codecs.base import FeatureCodec, Features, Image, ImageCodec, feature_codecs, image_codecs
from adaptsplit.codecs.container import Container, build_container, parse_container
from adaptsplit.codecs.context import ContextCodec
from adaptsplit.codecs.fastpath import FastCodec
from adaptsplit.codecs.features import UNIFORM_BY_KIND, UniformCodec
from adaptsplit.codecs.grid_codec import GRID_FAMILIES, GridCodec, grid_codec_of
from adaptsplit.codecs.images import PILLOW_BY_KIND, PillowCodec
from adaptsplit.codecs.prior import PRIOR_KIND, PriorCodec, PriorTable, fit_prior, prior_of, register_prior
from adaptsplit.codecs.runlength import RunLengthCodec
from adaptsplit.codecs.slicer import SLICER_KIND, SlicerCodec, slicer_of
from adaptsplit.codecs.sparse_rans import SparseRansCodec
from adaptsplit.errors import CodecError, UnknownNameError
from adaptsplit.registry import did_you_mean

__all__ = [
    "Container",
    "ContextCodec",
    "FastCodec",
    "FeatureCodec",
    "ImageCodec",
    "PillowCodec",
    "PriorCodec",
    "PriorTable",
    "RunLengthCodec",
    "SlicerCodec",
    "SparseRansCodec",
    "UniformCodec",
    "build_container",
    "codec_of",
    "decode_container",
    "feature_codecs",
    "fit_prior",
    "get_codec",
    "image_codecs",
    "parse_container",
    "register_prior",
]


def get_codec(name: str) -> FeatureCodec | ImageCodec:
    """Return the feature or image codec called ``name``; UnknownNameError names the nearest one."""
    if name in feature_codecs:
        return feature_codecs.get(name)
    if name in image_codecs:
        return image_codecs.get(name)
    known = feature_codecs.names() + image_codecs.names()
    raise UnknownNameError(f"unknown codec {name!r}{did_you_mean(name, known)} Known: {', '.join(known)}.")


def codec_of(container: Container) -> UniformCodec | GridCodec | SlicerCodec | PriorCodec | PillowCodec:
    """Return the codec that made ``container``; CodecError when there is none."""
    uniform = UNIFORM_BY_KIND.get(container.kind)
    if uniform is not None:
        return uniform
    if container.kind in GRID_FAMILIES:
        return grid_codec_of(container)
    if container.kind == SLICER_KIND:
        return slicer_of(container)
    if container.kind == PRIOR_KIND:
        return prior_of(container)
    pillow = PILLOW_BY_KIND.get((container.kind, container.form))
    if pillow is None:
        raise CodecError(f"codec bytes {container.kind:#x}/{container.form}: no codec of this release wrote them")
    return pillow


def decode_container(data: bytes) -> Features | Image:
    """Decode any container of ours: (C, H, W) float32 features or an (H, W, 3) uint8 image; CodecError otherwise."""
    container = parse_container(data)
    return codec_of(container).decode_parsed(container)
