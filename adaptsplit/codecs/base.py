"""What a codec is, and the two registries of codecs."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adaptsplit.registry import Registry

Features = NDArray[np.float32]
Image = NDArray[np.uint8]


class FeatureCodec(Protocol):
    """Turns a bottleneck's output into a container and back. Lossy; thread-safe; holds no state between calls."""

    @property
    def name(self) -> str:
        """Id in ``feature_codecs``."""

    def encode(self, features: NDArray[Any]) -> bytes:
        """(C, H, W) finite floats -> container; CodecError for anything else."""

    def decode(self, data: bytes) -> Features:
        """Container of this codec -> (C, H, W) finite float32; CodecError for anything else."""


class ImageCodec(Protocol):
    """Turns an RGB image into a container and back. Lossy; thread-safe; holds no state between calls."""

    @property
    def name(self) -> str:
        """Id in ``image_codecs``."""

    def encode(self, image: Image) -> bytes:
        """(H, W, 3) uint8 -> container; CodecError for anything else."""

    def decode(self, data: bytes) -> Image:
        """Container of this codec -> (H, W, 3) uint8; CodecError for anything else."""


feature_codecs: Registry[FeatureCodec] = Registry("feature codec")
image_codecs: Registry[ImageCodec] = Registry("image codec")
