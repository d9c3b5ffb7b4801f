"""The camera of a live run: frames of a source in flight order, rendered ahead so that rendering disturbs no timing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import ConfigError
from adaptsplit.frames.base import Frame, FrameSource

AHEAD = 400
AHEAD_ENDLESS = 50  # frames of a run without end: 10 MB of images
KEPT = 64


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame and the image before it in its flight (None at the flight's start)."""

    frame: Frame
    previous: NDArray[np.uint8] | None


class ShotSource(Protocol):
    """What a device sees: ``frames`` of it (None: until it is stopped), from number ``first`` of its source on."""

    @property
    def frames(self) -> int | None:
        """How many frames."""

    @property
    def first(self) -> int:
        """Index of frame 0 in its source; 0 where there is none."""

    def wait_ready(self) -> None:
        """Block until the first frame can be taken; the run begins afterwards."""

    def shot(self, number: int) -> Shot:
        """Return frame ``number`` of the run."""

    def labels(self, number: int) -> NDArray[np.int16] | None:
        """Return the labels of a frame that is still kept, None otherwise."""


def flight_order(source: FrameSource, first: int, count: int) -> list[int]:
    """Return ``count`` frame indices from ``first`` on, looping within its flight, as the simulator does."""
    for start, length in source.segments:
        if start <= first < start + length:
            return [start + (first - start + k) % length for k in range(count)]
    raise ConfigError(f"first frame {first}: {source.name} has frames 0 to {len(source) - 1}")


def endless_order(source: FrameSource, first: int) -> Iterator[int]:
    """Yield frame indices from ``first`` on, looping within its flight for ever; ConfigError as ``flight_order``."""
    flight_order(source, first, 1)
    start, length = next((s, n) for s, n in source.segments if s <= first < s + n)
    return (start + (first - start + k) % length for k in count())


class Camera:
    """Renders the frames of ``order`` ahead of their use on a thread of its own; a context manager.

    An ``order`` that is an iterator has no end.
    """

    def __init__(self, source: FrameSource, order: Sequence[int] | Iterator[int], ahead: int = AHEAD) -> None:
        self.source = source
        self.frames = len(order) if isinstance(order, Sequence) else None
        indices = iter(order)
        self.first = next(indices)
        self._order = chain([self.first], indices)
        self._starts = {start for start, _ in source.segments}
        self._ahead = ahead
        self._ready: dict[int, Shot] = {}
        self._wanted = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._render, name="camera", daemon=True)

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join(timeout=5.0)

    def wait_ready(self) -> None:
        """Block until the first ``ahead`` frames are rendered."""
        self._wait(min(self._ahead, self.frames or self._ahead) - 1)

    def shot(self, number: int) -> Shot:
        """Return frame ``number`` of the run; blocks while it is being rendered."""
        with self._change:
            self._wanted = max(self._wanted, number)
            self._change.notify_all()
        return self._wait(number)

    def labels(self, number: int) -> NDArray[np.int16] | None:
        """Return the labels of a frame that is still kept, None otherwise."""
        with self._change:
            shot = self._ready.get(number)
        return None if shot is None else shot.frame.labels

    def _wait(self, number: int) -> Shot:
        with self._change:
            while number not in self._ready:
                if self._failure is not None:
                    raise self._failure
                self._change.wait()
            return self._ready[number]

    def _render(self) -> None:
        last: tuple[int, NDArray[np.uint8]] | None = None
        for number, index in enumerate(self._order):
            with self._change:
                while number > self._wanted + self._ahead and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
            try:
                frame, before = self.source.frame(index), self._before(index, last)
            except Exception as error:
                with self._change:
                    self._failure = error
                    self._change.notify_all()
                return
            last = index, frame.image
            with self._change:
                self._ready[number] = Shot(frame, before)
                for old in [n for n in self._ready if n <= self._wanted - KEPT]:  # a busy device passes over frames
                    del self._ready[old]
                self._change.notify_all()

    def _before(self, index: int, last: tuple[int, NDArray[np.uint8]] | None) -> NDArray[np.uint8] | None:
        if index in self._starts:
            return None
        if last is not None and last[0] == index - 1:
            return last[1]
        return self.source.frame(index - 1).image
