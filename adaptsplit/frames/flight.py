"""``flight``: the embedded world, a procedural land seen from above by a drone. Needs no data.

Ten land covers in regions of about 500 pixels. Worlds are seeded by (seed, split, segment), so splits share no pixel.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from adaptsplit.errors import ConfigError
from adaptsplit.frames.camera import Conditions, World
from adaptsplit.frames.landcover import COVERS, PALETTE, Layers, make_site
from adaptsplit.frames.regions import Regions, lay_out, smooth_noise
from adaptsplit.frames.worldsource import WorldSource

SIDE = 2560
"""Side of a map, pixels."""
ACROSS = 5
"""Regions along a side."""
COARSE = 4
"""Map pixels per pixel of the region plan."""
CONDITIONS = Conditions()
_FOREIGN = 0.4  # largest share that a region's colours take from another class
_CONTRAST = 30.0  # least difference of brightness between ground and things, grey levels


def open_flight(argument: str, *, split: str, seed: int, data: Path | None) -> WorldSource:
    """Open the embedded world; it takes no path, and ``data`` is not needed."""
    del data
    if argument:
        raise ConfigError(f"frames 'flight' takes no path, found {argument!r}; write flight")
    return WorldSource("flight", list(COVERS), build_world, split=split, seed=seed, conditions=CONDITIONS)


def build_world(rng: np.random.Generator) -> World:
    """Draw one map from a random stream."""
    regions = lay_out(rng, SIDE // COARSE, ACROSS, len(COVERS), warp=18.0)
    labels = np.asarray(regions.classes, dtype=np.uint8)[regions.ids].repeat(COARSE, 0).repeat(COARSE, 1)
    canvas = Pillow.new("RGB", (SIDE, SIDE))
    shade = 0.82 + 0.36 * smooth_noise(rng, (SIDE, SIDE), 300.0)
    for region in range(len(regions.classes)):
        _draw_region(rng, canvas, labels, regions, region, shade)
    _draw_roads(rng, canvas)
    return World(canvas, labels)


def _draw_region(
    rng: np.random.Generator,
    canvas: Pillow.Image,
    labels: NDArray[np.uint8],
    regions: Regions,
    region: int,
    shade: NDArray[np.float32],
) -> None:
    inside = regions.ids == region
    if not inside.any():
        return
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    top, left = int(rows[0]), int(columns[0])
    bottom, right = int(rows[-1]) + 1, int(columns[-1]) + 1
    shape = ((bottom - top) * COARSE, (right - left) * COARSE)
    mask = Pillow.fromarray(inside[top:bottom, left:right].astype(np.uint8) * 255)
    mask = mask.resize((shape[1], shape[0]), Pillow.Resampling.BILINEAR)
    window = (slice(top * COARSE, bottom * COARSE), slice(left * COARSE, right * COARSE))
    label = regions.classes[region]
    labels[window][np.asarray(mask) >= 128] = label
    name = list(COVERS)[label]
    picture = _paint(rng, name, COVERS[name](make_site(rng, shape)), shade[window])
    solid = regions.ids[top:bottom, left:right].repeat(COARSE, 0).repeat(COARSE, 1) == region
    base = Pillow.fromarray(np.maximum(np.asarray(mask), solid.astype(np.uint8) * 255))
    canvas.paste(Pillow.fromarray(picture), (left * COARSE, top * COARSE), base)


def _paint(rng: np.random.Generator, name: str, layers: Layers, shade: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour the layers and light the relief from the upper left: (rows, columns, 3) uint8."""
    ground, thing = _colours(rng, name)
    height = layers.height
    light = np.zeros_like(height)
    light[2:, 2:] = height[2:, 2:] - height[:-2, :-2]
    fine = rng.integers(0, 32, height.shape, dtype=np.uint8).astype(np.float32)
    lit = (1.0 + 0.55 * light) * shade + (fine - 15.5) * np.float32(0.006)
    picture = np.empty((*height.shape, 3), dtype=np.uint8)
    for channel in range(3):
        plane = layers.cover * (thing[channel] - ground[channel]) + ground[channel]
        picture[..., channel] = np.clip(plane * lit, 0.0, 255.0)
    return picture


def _colours(rng: np.random.Generator, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return RGB of ground and things: the class's own, mixed with another class's, under a random cast."""
    other = list(PALETTE)[int(rng.integers(len(PALETTE)))]
    share = _FOREIGN * float(rng.random())
    cast = (0.72 + 0.5 * rng.random()) * (0.9 + 0.2 * rng.random(3))
    own, foreign = np.array(PALETTE[name], dtype=np.float32), np.array(PALETTE[other], dtype=np.float32)
    ground, thing = (1.0 - share) * own + share * foreign
    sign = math.copysign(1.0, float(own[1].mean() - own[0].mean()))
    lack = _CONTRAST - sign * float(thing.mean() - ground.mean())
    thing += sign * max(0.0, lack)
    return (ground * cast).astype(np.float32), (thing * cast).astype(np.float32)


def _draw_roads(rng: np.random.Generator, canvas: Pillow.Image) -> None:
    """Draw three winding roads right across the map; they belong to no class."""
    pen = ImageDraw.Draw(canvas)
    along = np.linspace(-50.0, SIDE + 50.0, 90)
    for _ in range(3):
        level, slope = SIDE * (0.1 + 0.8 * rng.random()), 0.5 * (rng.random() - 0.5)
        swing, phase, period = 120.0 * rng.random(), 2 * math.pi * rng.random(), 600.0 + 900.0 * rng.random()
        across = level + slope * (along - SIDE / 2) + swing * np.sin(2 * math.pi * along / period + phase)
        points = np.stack([along, across] if rng.random() < 0.5 else [across, along], axis=1)
        grey = int(120 + 70 * rng.random())
        line = [(float(x), float(y)) for x, y in points]
        pen.line(line, fill=(grey // 2, grey // 2, grey // 2), width=11, joint="curve")
        pen.line(line, fill=(grey, grey, grey - 4), width=8, joint="curve")
