"""``camera:FILE``: a recording as a frame source, ten frames a second of it, unlabelled; needs the extra ``camera``.

Frame k is the picture at k / 10 s of the recording. Like a folder it has no splits: every split shows all of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit.errors import ConfigError, DataError
from adaptsplit.frames.base import CELLS, FPS, SIZE, UNLABELLED, Frame, Labels, check_index, find_path
from adaptsplit.frames.capture import cv2, is_live, shown, square
from adaptsplit.frames.signals import Image


def open_camera(argument: str, *, split: str, seed: int, data: Path | None) -> VideoSource:
    """Open the recording at PATH; ConfigError for a camera: only a device can see that."""
    del seed
    if is_live(f"camera:{argument}"):
        raise ConfigError(f"camera:{shown(argument)} is live; only `adaptsplit device` takes it; give a recording here")
    path = find_path(argument, source="camera", data=data)
    if not path.is_file():
        raise DataError(f"{path}: not a file; give a recording, or a number for a camera")
    return VideoSource(f"camera:{argument}", path, split)


class VideoSource:
    """Frames of a recording, decoded in order; going back begins anew, so keep to the order of time."""

    def __init__(self, name: str, path: Path, split: str) -> None:
        self.name, self.split = name, split
        self.classes: list[str] = []
        self._path = path
        self._reader = self._open()
        opencv = cv2()
        self._rate = float(self._reader.get(opencv.CAP_PROP_FPS))
        pictures = int(self._reader.get(opencv.CAP_PROP_FRAME_COUNT))
        if not (math.isfinite(self._rate) and self._rate > 0.0) or pictures < 1:
            raise DataError(f"{path}: no pictures, or no rate, in its header; write it anew with ffmpeg")
        self._length = max(math.ceil(pictures / self._rate * FPS - 1e-9), 1)
        self.segments = [(0, self._length)]
        self._next = 0
        self._last: tuple[int, Image] | None = None

    def __len__(self) -> int:
        return self._length

    def frame(self, index: int) -> Frame:
        """Return the picture at ``index`` / 10 s; DataError where the recording cannot be read."""
        check_index(index, self._length)
        wanted = math.floor(index / FPS * self._rate + 1e-6)
        if self._last is None or self._last[0] != wanted:
            self._last = wanted, self._decode(wanted)
        return Frame(self._last[1], _no_labels(), index, 0)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Image, Labels]:
        """Return ``count`` frames drawn at random, in the order of time, half of them mirrored."""
        images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
        for k, index in enumerate(np.sort(rng.integers(self._length, size=count))):
            image = self.frame(int(index)).image
            images[k] = image[:, ::-1] if rng.random() < 0.5 else image
        return images, np.full((count, CELLS), UNLABELLED, dtype=np.int16)

    def _decode(self, wanted: int) -> Image:
        if wanted < self._next:
            self._reader.release()
            self._reader, self._next = self._open(), 0
        while self._next <= wanted:
            if not self._reader.grab():
                raise DataError(f"{self._path}: ends after {self._next} pictures, its header says more; write it anew")
            self._next += 1
        good, picture = self._reader.retrieve()
        if not good:
            raise DataError(f"{self._path}: picture {wanted} cannot be decoded")
        return square(picture)

    def _open(self) -> Any:
        reader = cv2().VideoCapture(str(self._path))
        if not reader.isOpened():
            raise DataError(f"{self._path}: not a recording that OpenCV reads; write it anew as MJPEG or H.264")
        return reader


def _no_labels() -> Labels:
    return np.full(CELLS, UNLABELLED, dtype=np.int16)
