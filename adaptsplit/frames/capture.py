"""Reading a camera with OpenCV (extra ``camera``): a device, a network stream, a GStreamer pipeline.

    camera:0                    the first V4L2 camera (``camera:/dev/video2`` names one)
    camera:rtsp://HOST/PATH     a network camera (http:// too, whatever OpenCV's FFmpeg reads)
    camera:gst:PIPELINE         needs an OpenCV that was built with GStreamer; the wheels on PyPI are not
    camera:FILE                 a recording: an ordinary frame source (``adaptsplit.frames.video``), not live

A reader thread keeps the newest frames; one that nobody took is forgotten. A camera that goes away is opened again.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import MissingExtraError, RunError
from adaptsplit.frames.base import SIZE
from adaptsplit.frames.signals import Image

log = logging.getLogger("adaptsplit.camera")

RETRY_S = 1.0
OPEN_MS, READ_MS = 5000, 3000  # a network camera that says nothing for so long is gone; assumptions
KEPT = 16


class Reader(Protocol):
    """What ``cv2.VideoCapture`` offers, as far as it is used."""

    def isOpened(self) -> bool:
        """Whether it could be opened."""

    def grab(self) -> bool:
        """Wait for the next frame; False at the end, or when the camera has gone."""

    def retrieve(self) -> tuple[bool, Any]:
        """Decode the grabbed frame."""

    def release(self) -> None:
        """Close it."""


def cv2() -> Any:
    """Return OpenCV; MissingExtraError without it."""
    try:
        import cv2 as module
    except ImportError as missing:
        raise MissingExtraError("opencv-python-headless", "camera") from missing
    if "OPENCV_LOG_LEVEL" not in os.environ:  # it would write a line at every try to open a camera that is away
        module.utils.logging.setLogLevel(module.utils.logging.LOG_LEVEL_ERROR)
    return module


def is_live(source: str) -> bool:
    """Whether ``camera:...`` names a camera rather than a recording."""
    name, _, place = source.partition(":")
    live = place.isdecimal() or place.startswith(("/dev/video", "gst:")) or "://" in place
    return name == "camera" and live


def shown(place: str) -> str:
    """Return a camera's address without user and password, for messages."""
    parts = urlsplit(place) if "://" in place else None
    if parts is None or "@" not in parts.netloc:
        return place
    return parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]).geturl()


def open_reader(place: str) -> Reader:
    """Open a camera by OpenCV; the reader says whether it is there."""
    opencv = cv2()
    if place.startswith("gst:"):
        reader: Reader = opencv.VideoCapture(place.removeprefix("gst:"), opencv.CAP_GSTREAMER)
        return reader
    if "://" in place:
        limits = [opencv.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, opencv.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS]
        return opencv.VideoCapture(place, opencv.CAP_FFMPEG, limits)  # type: ignore[no-any-return]
    camera = opencv.VideoCapture(int(place) if place.isdecimal() else place)
    camera.set(opencv.CAP_PROP_BUFFERSIZE, 1)
    return camera  # type: ignore[no-any-return]


def square(picture: NDArray[np.uint8]) -> Image:
    """Return OpenCV's picture (rows, columns, 3 BGR, or grey) as a frame: its middle square, 256 x 256 x 3, RGB."""
    from PIL import Image as Pillow  # here: every device imports this module, few have a camera of OpenCV's

    from adaptsplit.frames.pictures import to_square

    pixels = np.asarray(picture, dtype=np.uint8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return to_square(Pillow.fromarray(np.ascontiguousarray(pixels[:, :, 2::-1])), SIZE)


class Capture:
    """Reads a camera on a thread of its own from its construction on.

    Args:
        place: what stands after ``camera:``.
        period_s: time between the frames that the device takes; closer ones are not decoded.
        stale_s: a newest frame older than this is none.
        opener: opens the camera (tests give one of their own).
    """

    def __init__(
        self,
        place: str,
        period_s: float,
        stale_s: float = 0.5,
        opener: Callable[[str], Reader] = open_reader,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if opener is open_reader:
            cv2()
        self.counts: Counter[str] = Counter()
        self._place, self._opener, self._clock = place, opener, clock
        self._period_s, self._stale_s = period_s, stale_s
        self._frames: deque[tuple[float, Image]] = deque(maxlen=KEPT)
        self._change = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="camera", daemon=True)
        self._thread.start()

    def newest(self, timeout_s: float) -> tuple[Image, Image | None]:
        """Return the newest frame and the one a period before it, if there is one; RunError when there is none."""
        until = self._clock() + timeout_s
        with self._change:
            while not self._fresh():
                left = until - self._clock()
                if left <= 0.0 or self._closing.is_set():
                    raise RunError(self._why())
                self._change.wait(min(left, 0.1))
            at, image = self._frames[-1]
            return image, self._before(at)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        with self._change:
            self._change.notify_all()
        self._thread.join(timeout=3.0)

    def _fresh(self) -> bool:
        return bool(self._frames) and self._clock() - self._frames[-1][0] <= self._stale_s

    def _before(self, at: float) -> Image | None:
        """Return the frame nearest to one period before ``at``, if it is within half a period of that."""
        gaps = [(abs(at - self._period_s - when), image) for when, image in self._frames if when < at]
        gap, image = min(gaps, key=lambda item: item[0], default=(math.inf, None))
        return image if gap <= 0.5 * self._period_s else None

    def _why(self) -> str:
        place = shown(self._place)
        if not self.counts["opened"]:
            return f"camera {place} cannot be opened; is it there, free, and readable for this user?"
        return f"camera {place} has given no frame for {self._stale_s:g} s; it is opened again as soon as it is back"

    def _loop(self) -> None:
        while not self._closing.is_set():
            try:
                self._read()
            except Exception:
                log.exception("camera %s failed", shown(self._place))
            self.counts["lost"] += 1
            self._closing.wait(RETRY_S)

    def _read(self) -> None:
        reader = self._opener(self._place)
        try:
            if not reader.isOpened():
                return
            self.counts["opened"] += 1
            kept_at = -math.inf
            while not self._closing.is_set() and reader.grab():
                now = self._clock()
                if now - kept_at < 0.5 * self._period_s:
                    continue
                good, picture = reader.retrieve()
                if good:
                    kept_at = now
                    self._keep(now, square(picture))
        finally:
            reader.release()

    def _keep(self, now: float, image: Image) -> None:
        with self._change:
            self._frames.append((now, image))
            self.counts["frames"] += 1
            self._change.notify_all()
