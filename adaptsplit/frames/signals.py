"""Content signals: what a device can know of a frame for a fraction of a millisecond, before any network runs.

Both work on the grey values of every fourth pixel in each direction (a 64 x 64 view of a 256 x 256 frame).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

SHARPNESS_BOUNDS = (0.0, 1.0)
DIFFERENCE_BOUNDS = (0.0, 1.0)
_STEP = 4
_GREEN = 1


def _grey(image: Image) -> NDArray[np.int16]:
    """Return every fourth pixel's green value (the channel nearest to luminance), (H/4, W/4) int16."""
    return image[::_STEP, ::_STEP, _GREEN].astype(np.int16)


def sharpness(image: Image) -> float:
    """Return the mean absolute step between neighbouring samples, as a share of full scale, in [0, 1].

    ``image`` is (H, W, 3) uint8. Haze, blur and smooth ground lower it; noise and structure raise it. Typical frames
    lie between 0.005 and 0.15.
    """
    grey = _grey(image)
    down, right = np.abs(grey[1:] - grey[:-1]), np.abs(grey[:, 1:] - grey[:, :-1])
    return float((int(down.sum()) / down.size + int(right.sum()) / right.size) / 510.0)


def difference(image: Image, previous: Image | None) -> float:
    """Return the mean absolute change from ``previous`` (same shape), as a share of full scale, in [0, 1].

    It compares means of 16 x 16 pixel blocks, so that it follows the scene and not the shift of a fine pattern. Sides
    are multiples of 16 (256 for every frame). Without a previous frame (the first of a flight) it is 0.
    """
    if previous is None:
        return 0.0
    change = np.abs(_block_sums(_grey(image)) - _block_sums(_grey(previous)))
    return float(int(change.sum()) / (change.size * _STEP * _STEP * 255.0))


def _block_sums(grey: NDArray[np.int16]) -> NDArray[np.int16]:
    """Sum 4 x 4 samples, at most 4080: (h, w) -> (h/4, w/4) int16."""
    rows: NDArray[np.int16] = grey[0::4] + grey[1::4] + grey[2::4] + grey[3::4]
    sums: NDArray[np.int16] = rows[:, 0::4] + rows[:, 1::4] + rows[:, 2::4] + rows[:, 3::4]
    return sums


def image_hash(image: Image) -> bytes:
    """Return the first 8 bytes of the SHA-256 of the pixels (row-major RGB): equal images, equal hashes."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()[:8]
