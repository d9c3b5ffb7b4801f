"""The grids of all uniform codecs: stored ranges, levels, and quantisation at memory speed (float32, few passes).

The tensor's range is two float16 numbers, rounded outwards, so every value lies inside it; per channel, a range is two
bytes that count 255ths of the tensor's range, rounded outwards too. |decoded - value| <= step / 2, up to float32
rounding; values beyond +-65504 saturate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from adaptsplit.codecs.base import Features
from adaptsplit.codecs.packing import Codes
from adaptsplit.errors import CodecError

BITS = (2, 3, 4, 6, 8)
FLOAT16_MAX = 65504.0
_HEAD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Grid:
    """Uniform levels, ``bits`` (2, 3, 4, 6, 8) each, over the range of the tensor or of each channel."""

    bits: int
    per_channel: bool

    @property
    def prefix(self) -> str:
        """How codec names state the grid, such as ``q4c``."""
        return f"q{self.bits}{'c' if self.per_channel else 't'}"

    def head_bytes(self, channels: int) -> int:
        """Bytes that the stored ranges take."""
        return _HEAD_BYTES + (2 * channels if self.per_channel else 0)

    def split(self, payload: bytes, channels: int) -> tuple[bytes, bytes]:
        """Split a payload into stored ranges and stored codes; CodecError when it is too short."""
        size = self.head_bytes(channels)
        if len(payload) < size:
            raise CodecError(f"payload of {len(payload)} bytes; the ranges alone take {size}")
        return payload[:size], payload[size:]

    def quantise(self, features: NDArray[Any]) -> tuple[bytes, Codes]:
        """(C, H, W) finite floats -> (stored ranges, (n,) codes); CodecError for another rank, NaN or infinity."""
        values, lows, highs = self._measured(features)
        low, high = outward(float(lows.min()), -1), outward(float(highs.max()), 1)
        head = np.array([low, high], dtype="<f2").tobytes()
        if self.per_channel:
            span = max(high - low, 1e-30)
            below = np.floor((lows.astype(np.float64) - low) / span * 255).clip(0, 255)
            above = np.ceil((highs.astype(np.float64) - low) / span * 255).clip(0, 255)
            head += below.astype(np.uint8).tobytes() + above.astype(np.uint8).tobytes()
        starts, steps = self.levels(head, len(values))
        scale = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps > 0)
        scaled = (values - starts) * scale
        scaled += np.float32(0.5)
        return head, scaled.astype(np.uint8).ravel()

    def restore(self, head: bytes, codes: Codes, shape: tuple[int, int, int]) -> Features:
        """Inverse of ``quantise``, up to half a step; CodecError when the stored ranges are not ours."""
        starts, steps = self.levels(head, shape[0])
        values: Features = codes.reshape(shape).astype(np.float32)
        values *= steps
        values += starts
        return values

    def _measured(self, features: NDArray[Any]) -> tuple[Features, Features, Features]:
        """Return float32 values, and their minima and maxima, per channel or (1,)."""
        values = np.asarray(features)
        if values.ndim != 3 or values.size == 0 or values.dtype.kind != "f":
            raise CodecError(
                f"features {values.dtype} {values.shape}; expected (C, H, W) floats with at least one value"
            )
        groups = values.reshape(len(values) if self.per_channel else 1, -1)
        lows, highs = groups.min(axis=1), groups.max(axis=1)
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            raise CodecError("features contain NaN or infinity; repair the model (training diverged?) or its input")
        if max(-lows.min(), highs.max()) > FLOAT16_MAX:
            values, lows, highs = (part.clip(-FLOAT16_MAX, FLOAT16_MAX) for part in (values, lows, highs))
        return values.astype(np.float32, copy=False), lows.astype(np.float32), highs.astype(np.float32)

    def levels(self, head: bytes, channels: int) -> tuple[Features, Features]:
        """Read stored ranges: lowest level and step, (C or 1, 1, 1); CodecError when they are not finite, ordered."""
        low, high = (float(v) for v in np.frombuffer(head, dtype="<f2", count=2))
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise CodecError(f"range {low} to {high}; expected two finite numbers in ascending order")
        lows, highs = np.array([low]), np.array([high])
        if self.per_channel:
            parts = np.frombuffer(head, np.uint8, 2 * channels, _HEAD_BYTES).reshape(2, channels).astype(np.float64)
            if np.any(parts[0] > parts[1]):
                raise CodecError("a channel's range ends before it begins: not written by us")
            lows, highs = low + (high - low) * parts / 255
        steps = ((highs - lows) / ((1 << self.bits) - 1)).astype(np.float32)
        return lows.astype(np.float32).reshape(-1, 1, 1), steps.reshape(-1, 1, 1)


def checked_features(features: NDArray[Any]) -> Features:
    """(C, H, W) finite floats -> float32 within the limits of float16; CodecError for anything else."""
    values = np.asarray(features)
    if values.ndim != 3 or values.size == 0 or values.dtype.kind != "f":
        raise CodecError(f"features {values.dtype} {values.shape}; expected (C, H, W) floats with at least one value")
    if not np.isfinite(values).all():
        raise CodecError("features contain NaN or infinity; repair the model (training diverged?) or its input")
    return values.clip(-FLOAT16_MAX, FLOAT16_MAX).astype(np.float32)


def outward(value: float, direction: int) -> float:
    """Nearest float16 at or beyond ``value`` in ``direction`` (-1 down, +1 up)."""
    half = np.float16(value)
    if (float(half) - value) * direction < 0:
        half = cast("np.float16", np.nextafter(half, np.float16(direction * np.inf)))
    return float(half)
