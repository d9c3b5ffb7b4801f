"""A real camera as a device sees it: each frame of the run is the newest picture at the moment when it is taken up.

A camera that gives nothing makes the frame fail, and so a miss, or the answer of what had run; the run goes on, and the
camera is opened again (``adaptsplit.frames.capture``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from adaptsplit.device_bridge.camera import KEPT, Shot
from adaptsplit.frames.base import CELLS, UNLABELLED, Frame
from adaptsplit.frames.capture import Capture

READY_S = 10.0


class LiveCamera:
    """``frames`` shots of a capture (None: until stopped); ``capture`` is closed with it. A context manager.

    period_s: how long a frame may be waited for, s: the time between two frames of the run.
    """

    first = 0

    def __init__(self, capture: Capture, frames: int | None, period_s: float) -> None:
        self.frames = frames
        self.capture = capture
        self._period_s = period_s
        self._shots: OrderedDict[int, Shot] = OrderedDict()
        self._ready = False
        self._lock = threading.Lock()

    def __enter__(self) -> LiveCamera:
        return self

    def __exit__(self, *exception: object) -> None:
        self.capture.close()

    def wait_ready(self) -> None:
        """Block until the camera gives pictures; forget those of the warm-up. RunError when it gives none."""
        self.capture.newest(READY_S)
        with self._lock:
            self._shots.clear()
            self._ready = True

    def shot(self, number: int) -> Shot:
        """Return frame ``number``: the newest picture when it is asked for first, the same one afterwards; RunError."""
        with self._lock:
            if number not in self._shots:
                self._shots[number] = self._take(number)
                if len(self._shots) > KEPT:
                    self._shots.popitem(last=False)
            return self._shots[number]

    def labels(self, number: int) -> NDArray[np.int16] | None:
        """Return None: nobody knows what a camera really sees."""
        return None

    def _take(self, number: int) -> Shot:
        image, before = self.capture.newest(self._period_s if self._ready else READY_S)
        return Shot(Frame(image, np.full(CELLS, UNLABELLED, dtype=np.int16), number, 0), before)
