"""``tiles:PATH``: flights over maps put together from real labelled tiles, such as EuroSAT.

PATH is a folder of class folders (``CLASS/FILE``) or a plain tar of one. Every picture belongs to exactly one split,
by its file name alone (no folder, with suffix, UTF-8), for example ``AnnualCrop_1.jpg``: let h be the SHA-1 of that
name in hexadecimal, a = int(h[0:8], 16) % 100 and b = int(h[8:16], 16) % 100. Then

    a < 60        model-train
    60 <= a < 70  calibration
    70 <= a < 85  train (b < 75) or validation (b >= 75)
    85 <= a       test

A map shows only pictures of its split: regions of 6 to 10 tiles across, each tile a random picture of the region's
class, turned and mirrored at random.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from adaptsplit.errors import DataError
from adaptsplit.frames.base import find_path
from adaptsplit.frames.camera import Conditions, World
from adaptsplit.frames.pictures import decode_picture, to_square, walk_folder, walk_tar
from adaptsplit.frames.regions import lay_out
from adaptsplit.frames.signals import Image
from adaptsplit.frames.worldsource import WorldSource

TILE = 64
"""Side of a tile, pixels."""
ACROSS_TILES = 40
"""Tiles along a side of a map."""
ACROSS_REGIONS = 5
CONDITIONS = Conditions(haze=0.3, blur=5.0, noise=8.0, light=0.15, zoom=0.05)
"""Milder than in ``flight``: the tiles are hard enough."""
MAX_CLASSES = 1000


def open_tiles(argument: str, *, split: str, seed: int, data: Path | None) -> WorldSource:
    """Open the tiles at PATH; DataError when a picture cannot be used or a class has none in the split."""
    path = find_path(argument, source="tiles", data=data)
    tiles = load_tiles(path, split)

    def make_world(rng: np.random.Generator) -> World:
        return assemble(rng, list(tiles.values()))

    name = f"tiles:{argument}"
    return WorldSource(name, list(tiles), make_world, split=split, seed=seed, conditions=CONDITIONS, squared_share=0.3)


def split_of(file: str) -> str:
    """Return the split of a picture by its file name, as the module's text defines."""
    digest = hashlib.sha1(file.encode(), usedforsecurity=False).hexdigest()
    share, half = int(digest[:8], 16) % 100, int(digest[8:16], 16) % 100
    if share < 60:
        return "model-train"
    if share < 70:
        return "calibration"
    if share < 85:
        return "train" if half < 75 else "validation"
    return "test"


def load_tiles(path: Path, split: str) -> dict[str, Image]:
    """Return the split's tiles, class name (sorted) -> (n, 64, 64, 3) uint8; others are not decoded."""
    found: dict[str, list[Image]] = {}
    for entry in walk_folder(path) if path.is_dir() else walk_tar(path):
        tiles = found.setdefault(entry.folder, [])
        if len(found) > MAX_CLASSES:
            raise DataError(f"{path}: more than {MAX_CLASSES} class folders; expected CLASS/FILE")
        if split_of(entry.file) == split:
            tiles.append(to_square(decode_picture(entry.read(), entry.place), TILE))
    if not found:
        raise DataError(f"{path}: no pictures in class folders; expected CLASS/FILE.jpg (or png, webp, bmp)")
    empty = sorted(name for name, tiles in found.items() if not tiles)
    if empty:
        raise DataError(f"{path}: no picture of class {empty[0]!r} falls into split {split!r}; add more pictures")
    return {name: np.stack(found[name]) for name in sorted(found)}


def assemble(rng: np.random.Generator, tiles: list[Image]) -> World:
    """Draw one map: regions of one class each, filled with random tiles of that class."""
    regions = lay_out(rng, ACROSS_TILES, ACROSS_REGIONS, len(tiles), warp=1.5)
    plan = np.asarray(regions.classes, dtype=np.uint16)[regions.ids]
    canvas = np.empty((ACROSS_TILES * TILE, ACROSS_TILES * TILE, 3), dtype=np.uint8)
    draws = rng.random((ACROSS_TILES, ACROSS_TILES))
    turns = rng.integers(0, 8, (ACROSS_TILES, ACROSS_TILES))
    for row, column in np.ndindex(ACROSS_TILES, ACROSS_TILES):
        stock = tiles[plan[row, column]]
        tile = np.rot90(stock[int(draws[row, column] * len(stock))], int(turns[row, column]) % 4)
        tile = tile[::-1] if turns[row, column] >= 4 else tile
        canvas[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = tile
    return World(Pillow.fromarray(canvas), plan.repeat(TILE, 0).repeat(TILE, 1))
