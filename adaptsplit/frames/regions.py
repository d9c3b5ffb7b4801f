"""The lay of the land: a map is cut into warped Voronoi regions, each of one class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow


@dataclass(frozen=True, slots=True)
class Regions:
    """``ids`` (side, side) uint8 region of every pixel of a coarse map; ``classes`` class of every region."""

    ids: NDArray[np.uint8]
    classes: list[int]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> NDArray[np.float32]:
    """Return smooth noise in [0, 1], ``shape`` (rows, columns) float32, whose bumps are about ``cell`` pixels wide."""
    rows, columns = (max(2, math.ceil(size / cell) + 2) for size in shape)
    coarse = Pillow.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    box = (0.5, 0.5, 0.5 + shape[1] / cell, 0.5 + shape[0] / cell)
    fine = coarse.resize((shape[1], shape[0]), Pillow.Resampling.BICUBIC, box=box)
    return np.asarray(fine, dtype=np.float32) / np.float32(255.0)


def lay_out(rng: np.random.Generator, side: int, across: int, classes: int, warp: float) -> Regions:
    """Cut a square of ``side`` pixels into ``across`` x ``across`` regions with borders bent by ``warp`` pixels.

    Every class appears as often as any other (to within one region), in random places.
    """
    pitch = side / across
    rows, columns = np.meshgrid(np.arange(across), np.arange(across), indexing="ij")
    jitter = 0.2 + 0.6 * rng.random((2, across, across))
    centre_y = ((rows + jitter[0]) * pitch).ravel().astype(np.float32)
    centre_x = ((columns + jitter[1]) * pitch).ravel().astype(np.float32)
    grid = np.arange(side, dtype=np.float32)
    y = grid[:, None] + warp * (2 * smooth_noise(rng, (side, side), pitch / 4) - 1)
    x = grid[None, :] + warp * (2 * smooth_noise(rng, (side, side), pitch / 4) - 1)
    nearest = np.full((side, side), np.inf, dtype=np.float32)
    ids = np.zeros((side, side), dtype=np.uint8)
    for k in range(across * across):
        distance = (y - centre_y[k]) ** 2 + (x - centre_x[k]) ** 2
        closer = distance < nearest
        ids[closer] = k
        nearest = np.minimum(nearest, distance)
    return Regions(ids, _deal(rng, across * across, classes))


def _deal(rng: np.random.Generator, regions: int, classes: int) -> list[int]:
    """Deal the classes out like shuffled packs of cards."""
    packs = [rng.permutation(classes) for _ in range(math.ceil(regions / classes))]
    chosen = np.concatenate(packs)[:regions]
    return [int(k) for k in rng.permutation(chosen)]
