"""Image codecs of the ``offload`` branch: WebP and JPEG through Pillow, inside the same container.

Decoding is bounded: the payload must be exactly the declared format in the plain variant that we write (simple lossy
WebP, baseline JPEG of one scan: no animation, no scans without end), and its own header must state the container's
image size before Pillow sees it, so no bomb is ever unpacked. libjpeg reads a scan of a few bytes as a whole image of
zeros, so a JPEG whose first scan lacks a component, and others may follow, is refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adaptsplit.codecs.base import Image, ImageCodec, image_codecs
from adaptsplit.codecs.container import FIRST_IMAGE_KIND, Container, build_container, parse_container
from adaptsplit.errors import CodecError

QUALITIES = tuple(range(5, 100, 5))
WEBP_METHOD = 1
"""A quarter of the time of libwebp's default effort (4) for 3 to 8 % more bytes on 256 x 256 frames."""

Format = Literal["webp", "jpeg"]
_FORMATS: tuple[Format, ...] = ("webp", "jpeg")
_OTHER = frozenset((0x01, *range(0xC1, 0xDC))) - {0xC4, 0xDB}
"""Markers before the scan of no baseline JPEG: other frames, restarts, begin and end; tables (C4, DB) may stand."""


@dataclass(frozen=True, slots=True)
class PillowCodec:
    """``webp-{q}`` (fast effort) and ``jpeg-{q}`` (baseline, optimised tables, 4:2:0)."""

    format: Format
    quality: int

    @property
    def name(self) -> str:
        """Id in ``image_codecs``, such as ``webp-50``."""
        return f"{self.format}-{self.quality}"

    @property
    def kind(self) -> int:
        """The container's codec byte."""
        return FIRST_IMAGE_KIND + _FORMATS.index(self.format)

    def encode(self, image: Image) -> bytes:
        """(H, W, 3) uint8 -> container; CodecError for another shape or type."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise CodecError(f"image {image.dtype} {image.shape}; expected (H, W, 3) uint8")
        from PIL import Image as PillowImage  # here: a device that sends no images does without

        buffer = io.BytesIO()
        picture = PillowImage.fromarray(np.ascontiguousarray(image))
        if self.format == "webp":
            picture.save(buffer, "WEBP", quality=self.quality, method=WEBP_METHOD)
        else:
            picture.save(buffer, "JPEG", quality=self.quality, optimize=True)
        return build_container(self.kind, self.quality, image.shape[:2], buffer.getvalue())

    def decode(self, data: bytes) -> Image:
        """Container of this codec -> (H, W, 3) uint8; CodecError for anything else."""
        container = parse_container(data)
        if (container.kind, container.form) != (self.kind, self.quality):
            raise CodecError(
                f"codec bytes {container.kind:#x}/{container.form}, expected {self.kind:#x}/{self.quality}"
            )
        return self.decode_parsed(container)

    def decode_parsed(self, container: Container) -> Image:
        """Like ``decode``, of a container that is parsed already and known to be of this kind."""
        height, width = container.shape
        size = _webp_size(container.payload) if self.format == "webp" else _jpeg_size(container.payload)
        if size != (height, width):
            raise CodecError(f"{self.format} image of {size}, the container says {(height, width)}")
        from PIL import Image as PillowImage

        try:
            with PillowImage.open(io.BytesIO(container.payload), formats=[self.format.upper()]) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
            raise CodecError(f"{self.format} image cannot be decoded ({error})") from error
        if pixels.shape != (height, width, 3):
            raise CodecError(f"{self.format} image of shape {pixels.shape}, expected {(height, width, 3)}")
        return pixels


def _webp_size(data: bytes) -> tuple[int, int]:
    """(H, W) of a simple lossy WebP file (RFC 9649, section 2.5); CodecError for any other variant."""
    plain = data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 " and data[23:26] == b"\x9d\x01\x2a" and len(data) >= 30
    if not plain or int.from_bytes(data[4:8], "little") + 8 != len(data):
        raise CodecError("payload is not a simple lossy WebP image")
    width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
    return height & 0x3FFF, width & 0x3FFF


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """(H, W) of a baseline JPEG file of one scan (ITU T.81, annex B); CodecError for any other."""
    offset, size, components = 2, (0, 0), 0
    while data[:2] == b"\xff\xd8" and offset + 9 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xDA and components and data[offset + 4] == components:
            return size
        if marker in _OTHER or (marker == 0xC0 and components):
            break
        if marker == 0xC0:
            numbers = data[offset + 5 : offset + 7], data[offset + 7 : offset + 9]
            size = int.from_bytes(numbers[0], "big"), int.from_bytes(numbers[1], "big")
            components = int.from_bytes(data[offset + 9 : offset + 10], "big")
        offset += 2 + max(2, int.from_bytes(data[offset + 2 : offset + 4], "big"))
    raise CodecError("payload is not a baseline JPEG image of one scan")


def _register_all() -> dict[tuple[int, int], PillowCodec]:
    codecs = [PillowCodec(form, quality) for form in _FORMATS for quality in QUALITIES]
    for codec in codecs:
        checked: ImageCodec = codec
        image_codecs.register(codec.name)(checked)
    return {(codec.kind, codec.quality): codec for codec in codecs}


PILLOW_BY_KIND = _register_all()
