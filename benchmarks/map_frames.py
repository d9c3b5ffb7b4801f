"""Frames over a map, for benchmarks: which cells are pure is known, and a model can be scored on those alone.

A cell is pure when its whole footprint on the map is of one class; a mixed cell is labelled by the class at its centre,
so that no model can be always right on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaptsplit.frames import open_frames
from adaptsplit.frames.camera import pure_cells
from adaptsplit.frames.worldsource import WorldSource

Image = NDArray[np.uint8]
Prediction = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MapFrames:
    """N frames of one split: images, labels (N, 16), which cells are pure (N, 16)."""

    images: list[Image]
    labels: NDArray[np.int16]
    pure: NDArray[np.bool_]

    def score(self, predictions: list[Prediction]) -> tuple[float, float]:
        """Return the share of right cells of N predictions (16,): of all, and of the pure ones."""
        right = np.array(predictions) == self.labels
        return float(right.mean()), float(right[self.pure].mean())


def load_frames(frames: str, split: str, data: Path | None, count: int) -> MapFrames:
    """Return ``count`` frames spread over a split of ``flight`` or ``tiles:PATH``."""
    source = open_frames(frames, split=split, data=data)
    assert isinstance(source, WorldSource), "flight or tiles: the map tells which cells are pure"
    chosen = np.unique(np.linspace(0, len(source) - 1, count).astype(int))
    found = [source.frame(int(i)) for i in chosen]
    pure = [pure_cells(source.world(f.segment), source.pose(int(i))) for f, i in zip(found, chosen, strict=True)]
    return MapFrames([f.image for f in found], np.array([f.labels for f in found]), np.array(pure))
