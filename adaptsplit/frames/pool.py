"""Frames held in memory: drawn once from a slow source, then drawn from again and again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptsplit.frames.base import Frame, FrameSource, Labels
from adaptsplit.frames.signals import Image


class FramePool:
    """A frame source over N frames in memory: ``images`` (N, 256, 256, 3) uint8 and ``labels`` (N, 16) int16."""

    def __init__(self, name: str, split: str, classes: Sequence[str], images: Image, labels: Labels) -> None:
        self.name, self.split, self.classes = name, split, list(classes)
        self.images, self.labels = images, labels
        self.segments = [(0, len(images))]

    @classmethod
    def drawn(cls, source: FrameSource, count: int, seed: int = 0) -> FramePool:
        """Return ``count`` training frames of a source."""
        return cls(source.name, source.split, source.classes, *source.batch(np.random.default_rng(seed), count))

    def __len__(self) -> int:
        return len(self.images)

    def frame(self, index: int) -> Frame:
        """Return frame ``index``."""
        return Frame(self.images[index], self.labels[index], index, 0)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Image, Labels]:
        """Return ``count`` frames of the pool, with replacement."""
        chosen = rng.integers(len(self), size=count)
        return self.images[chosen], self.labels[chosen]
