"""Training batches: drawn, turned and compressed frames, made ahead of the training step by one worker.

Batch ``i`` depends on (seed, i) alone, so that a resumed run sees the batches that the uninterrupted one would
have, as far as the source itself remembers nothing.
"""

from __future__ import annotations

import io
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from adaptsplit.errors import RunError
from adaptsplit.frames.base import FrameSource
from adaptsplit.models.recipe import CELLS, Augment, Recipe

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int16]

QUEUE_LENGTH = 4
REUSE_GAP = 16
TIMEOUT_S = 300.0
PURPOSE_DRAW, PURPOSE_CHANGE = 1, 2


Opener = Callable[[], FrameSource]
"""Opens the frame source; a picklable callable (``functools.partial(open_frames, ...)``), for it crosses processes."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images (n, 256, 256, 3) uint8 and labels (n, 16) int16."""

    images: Images
    labels: Labels


def make_batch(source: FrameSource, recipe: Recipe, seed: int, index: int, cache: dict[int, Batch]) -> Batch:
    """Return batch ``index``: fresh frames, frames of earlier batches drawn again in ``cache``, all changed anew."""
    training = recipe.training
    reuse = min(training.reuse, training.batch)
    share = training.batch // reuse
    counts = [training.batch - share * (reuse - 1)] + [share] * (reuse - 1)
    parts = []
    for age, count in enumerate(counts):
        drawn = _drawn(source, seed, index - age * REUSE_GAP, counts[0], cache)
        parts.append(Batch(drawn.images[:count], drawn.labels[:count]))
    for old in [key for key in cache if key < index - (reuse - 1) * REUSE_GAP]:
        del cache[old]
    rng = np.random.default_rng([seed, PURPOSE_CHANGE, index])
    changed = [_change(b.images[i], b.labels[i], recipe.augment, rng) for b in parts for i in range(len(b.images))]
    return Batch(np.stack([image for image, _ in changed]), np.stack([labels for _, labels in changed]))


class BatchStream:
    """Context manager over batches ``start`` .. ``stop - 1``, made by one worker a few batches ahead.

    The worker is a spawned process where the recipe says ``background: true``, else a thread.
    RunError when the worker fails or stays silent.
    """

    def __init__(self, opener: Opener, recipe: Recipe, seed: int, start: int, stop: int) -> None:
        self._args = (opener, recipe, seed, start, stop)
        self._count = stop - start
        self._worker: Any = None
        self._queue: Any = None
        self._stop: Any = None

    def __enter__(self) -> BatchStream:
        if self._args[1].training.background:
            context = multiprocessing.get_context("spawn")
            self._queue, self._stop = context.Queue(QUEUE_LENGTH), context.Event()
            self._worker = context.Process(target=_produce, args=(*self._args, self._queue, self._stop), daemon=True)
        else:
            self._queue, self._stop = queue.Queue(QUEUE_LENGTH), threading.Event()
            self._worker = threading.Thread(target=_produce, args=(*self._args, self._queue, self._stop), daemon=True)
        self._worker.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        while self._worker.is_alive():
            try:
                self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
        self._worker.join()

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._count):
            item = self._next()
            if isinstance(item, str):
                raise RunError(f"making a training batch failed: {item}; check the frame source")
            yield item

    def _next(self) -> Batch | str:
        waited = 0.0
        while waited < TIMEOUT_S:
            try:
                item: Batch | str = self._queue.get(timeout=1.0)
                return item
            except queue.Empty:
                waited += 1.0
                if not self._worker.is_alive() and self._queue.empty():
                    return "the worker process ended"
        return f"no batch for {TIMEOUT_S:.0f} s"


def _produce(opener: Opener, recipe: Recipe, seed: int, start: int, stop: int, target: Any, stopped: Any) -> None:
    cache: dict[int, Batch] = {}
    source: FrameSource | None = None
    for index in range(start, stop):
        try:
            source = source or opener()
            item: Batch | str = make_batch(source, recipe, seed, index, cache)
        except Exception as error:  # whatever it is, the training loop must hear of it
            item = f"{type(error).__name__}: {error}"
        while not stopped.is_set():
            try:
                target.put(item, timeout=0.2)
                break
            except queue.Full:
                continue
        if stopped.is_set() or isinstance(item, str):
            return


def _drawn(source: FrameSource, seed: int, index: int, count: int, cache: dict[int, Batch]) -> Batch:
    if index not in cache:
        # Batches before the first one exist too: the first batches also hold frames "of earlier batches".
        rng = np.random.default_rng([seed, PURPOSE_DRAW, index + (1 << 32)])
        cache[index] = Batch(*source.batch(rng, count))
    return cache[index]


def _change(image: Images, labels: Labels, augment: Augment, rng: np.random.Generator) -> tuple[Images, Labels]:
    grid = labels.reshape(CELLS, CELLS)
    if augment.turns:
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        image, grid = np.rot90(image, turns), np.rot90(grid, turns)
        if mirror:
            image, grid = image[:, ::-1], grid[:, ::-1]
    if rng.random() < augment.compress:
        image = _compress(image, augment, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(grid).reshape(-1)


def _compress(image: Images, augment: Augment, rng: np.random.Generator) -> Images:
    low, high = augment.quality
    quality = int(rng.integers(low, high + 1))
    webp = rng.random() < augment.webp
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image))
    if webp:
        picture.save(buffer, "WEBP", quality=quality, method=0)
    else:
        picture.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
