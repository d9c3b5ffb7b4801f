"""The camera: a smooth path over a map, and what air, motion and sensor do to the picture.

The frame turns with the heading (up = forward), so motion blur runs along its columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from adaptsplit.frames.base import FPS, GRID, SIZE, Labels
from adaptsplit.frames.signals import Image

_MARGIN = 230.0  # half the diagonal of a frame, its blur and its smallest zoom
_NOISE_SIDE = 512
_AIRLIGHT = np.array([198.0, 206.0, 216.0], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Conditions:
    """How bad the view gets. Each figure is the worst case; the present state drifts between 0 and it.

    haze: share of the contrast that the air takes, 0..1. blur: motion blur, pixels. noise: standard deviation of the
    sensor's noise, grey levels. light: relative change of brightness. zoom: relative change of scale.
    speed: ground speed, pixels per second (lowest, highest).
    """

    haze: float = 0.5
    blur: float = 9.0
    noise: float = 12.0
    light: float = 0.2
    zoom: float = 0.07
    speed: tuple[float, float] = (70.0, 170.0)


@dataclass(frozen=True, slots=True)
class World:
    """A map: ``canvas`` RGB, square; ``labels`` (side, side) class of every pixel."""

    canvas: Pillow.Image
    labels: NDArray[np.uint8] | NDArray[np.uint16]

    @property
    def side(self) -> int:
        """Pixels along a side."""
        return int(self.labels.shape[0])


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the camera is: map position (pixels), heading (rad), zoom (frame pixels per map pixel)."""

    x: float
    y: float
    heading: float
    zoom: float = 1.0
    mirror: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """State of air and sensor: haze 0..1, blur (pixels, >= 1), noise (grey levels), gain per channel (3,)."""

    haze: float
    blur: int
    noise: float
    gain: tuple[float, float, float]


CLEAR = View(haze=0.0, blur=1, noise=0.0, gain=(1.0, 1.0, 1.0))


def drift(rng: np.random.Generator, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a smooth random process over ``seconds`` with values in [0, 1]: three sines of 6 to 45 s period."""
    periods = 6.0 * (45.0 / 6.0) ** rng.random(3)
    phases = 2.0 * math.pi * rng.random(3)
    waves = np.sin(2.0 * math.pi * seconds[:, None] / periods + phases) * np.sqrt(periods / 45.0)
    return np.asarray(0.5 + 0.5 * np.tanh(1.3 * waves.sum(axis=1)))


def fly(rng: np.random.Generator, count: int, side: int, conditions: Conditions) -> list[Pose]:
    """Return ``count`` poses of a smooth flight that stays inside a map of ``side`` pixels."""
    seconds = np.arange(count, dtype=np.float64) / FPS
    turn = 0.5 * (drift(rng, seconds) - 0.5)
    low, high = conditions.speed
    steps = (low + (high - low) * drift(rng, seconds)) / FPS
    zooms = 1.0 + conditions.zoom * (2.0 * drift(rng, seconds) - 1.0)
    x, y = (_MARGIN + (side - 2 * _MARGIN) * rng.random(2)).tolist()
    heading = 2.0 * math.pi * float(rng.random())
    rate = 0.0
    poses = []
    for k in range(count):
        poses.append(Pose(x, y, heading, float(zooms[k])))
        wanted = float(turn[k]) + _homing(x, y, heading, side)
        rate += 0.25 * (wanted - rate)
        heading += rate / FPS
        x = min(max(x + float(steps[k]) * math.sin(heading), _MARGIN), side - _MARGIN)
        y = min(max(y - float(steps[k]) * math.cos(heading), _MARGIN), side - _MARGIN)
    return poses


def _homing(x: float, y: float, heading: float, side: int) -> float:
    """Turn rate (rad/s) towards the middle of the map; grows from 0 as the border comes near."""
    half = side / 2.0
    east, north = half - x, y - half
    reach = math.hypot(east, north) / (half - _MARGIN)
    error = math.remainder(math.atan2(east, north) - heading, 2.0 * math.pi)
    return 1.4 * error * min(max((reach - 0.45) / 0.4, 0.0), 1.0)


def weather(rng: np.random.Generator, count: int, conditions: Conditions) -> list[View]:
    """Return the state of air and sensor for ``count`` consecutive frames."""
    seconds = np.arange(count, dtype=np.float64) / FPS
    haze, blur, noise, light, warm = (drift(rng, seconds) for _ in range(5))
    gain = 1.0 + conditions.light * (2.0 * light - 1.0)
    tint = 0.05 * (2.0 * warm - 1.0)
    return [
        View(
            haze=float(conditions.haze * haze[k] ** 1.5),
            blur=1 + round(float(conditions.blur * blur[k] ** 2)),
            noise=float(2.0 + conditions.noise * noise[k] ** 2),
            gain=(float(gain[k] * (1 + tint[k])), float(gain[k]), float(gain[k] * (1 - tint[k]))),
        )
        for k in range(count)
    ]


def shoot(world: World, pose: Pose, view: View, grain: tuple[int, int]) -> Image:
    """Return the picture (256, 256, 3) uint8. ``grain`` is an offset into the noise field, 0..255 each."""
    pixels = _blur(_look(world, pose, SIZE + view.blur - 1), view.blur)
    share = 1.0 - view.haze
    slope = np.float32(share) * np.array(view.gain, dtype=np.float32)
    pixels *= slope
    pixels += np.float32(view.haze) * _AIRLIGHT + np.float32(0.5)
    if view.noise > 0.0:
        row, column = grain
        pixels += np.float32(view.noise) * noise_field()[row : row + SIZE, column : column + SIZE]
    np.clip(pixels, 0.0, 255.0, out=pixels)
    return pixels.astype(np.uint8)


def _look(world: World, pose: Pose, rows: int) -> Image:
    """Resample the map at the pose: (rows, 256, 3) uint8, centred on the pose."""
    (a, b), (d, e) = _axes(pose)
    half_x, half_y = SIZE / 2.0, rows / 2.0
    offset_x = pose.x - a * half_x - b * half_y
    offset_y = pose.y - d * half_x - e * half_y
    matrix = (a, b, offset_x, d, e, offset_y)
    size = (SIZE, rows)
    return np.asarray(
        world.canvas.transform(size, Pillow.Transform.AFFINE, matrix, resample=Pillow.Resampling.BILINEAR)
    )


def _axes(pose: Pose) -> tuple[tuple[float, float], tuple[float, float]]:
    """Map pixels per frame pixel: ((dx/dcolumn, dx/drow), (dy/dcolumn, dy/drow))."""
    cosine, sine = math.cos(pose.heading) / pose.zoom, math.sin(pose.heading) / pose.zoom
    side = -1.0 if pose.mirror else 1.0
    return (side * cosine, -sine), (side * sine, cosine)


def _blur(pixels: Image, length: int) -> NDArray[np.float32]:
    """Average ``length`` rows: (256 + length - 1, 256, 3) -> (256, 256, 3) float32."""
    if length == 1:
        return pixels.astype(np.float32)
    # Sums of fewer than 257 bytes fit 16 bits, so differences of wrapped running sums are exact.
    sums = np.zeros((pixels.shape[0] + 1, *pixels.shape[1:]), dtype=np.uint16)
    np.cumsum(pixels, axis=0, dtype=np.uint16, out=sums[1:])
    return (sums[length:] - sums[:-length]).astype(np.float32) / np.float32(length)


def look_up(world: World, pose: Pose) -> Labels:
    """Return the class at the centre of each cell, (16,) int16, row-major."""
    return np.ascontiguousarray(classes_in(world, pose, 1)[:, 0])


def pure_cells(world: World, pose: Pose, points: int = 16) -> NDArray[np.bool_]:
    """Return (16,) whether a cell holds one class only, looked up at ``points`` x ``points`` places of it."""
    classes = classes_in(world, pose, points)
    return np.asarray(np.all(classes == classes[:, :1], axis=1))


def classes_in(world: World, pose: Pose, points: int) -> Labels:
    """Return (16, points * points) int16, the classes at a grid of places in each cell, cells row-major."""
    (a, b), (d, e) = _axes(pose)
    count = GRID * points
    middles = (np.arange(count) + 0.5) * (SIZE / count) - SIZE / 2.0
    rows, columns = np.meshgrid(middles, middles, indexing="ij")
    x = np.floor(pose.x + a * columns + b * rows).astype(np.intp)
    y = np.floor(pose.y + d * columns + e * rows).astype(np.intp)
    last = world.side - 1
    found = world.labels[np.clip(y, 0, last), np.clip(x, 0, last)].astype(np.int16)
    cells = found.reshape(GRID, points, GRID, points).transpose(0, 2, 1, 3)
    labels: Labels = np.ascontiguousarray(cells.reshape(GRID * GRID, points * points))
    return labels


@lru_cache(maxsize=1)
def noise_field() -> NDArray[np.float32]:
    """Return the sensor's noise, (512, 512, 3) float32, mean 0, deviation 1 (sum of four uniform bytes)."""
    raw = np.random.PCG64(np.random.SeedSequence(20)).random_raw(_NOISE_SIDE * _NOISE_SIDE * 3 // 2)
    parts = raw.view(np.uint8).reshape(_NOISE_SIDE, _NOISE_SIDE, 3, 4).astype(np.int16).sum(axis=3)
    field: NDArray[np.float32] = ((parts - 510.0) / math.sqrt(4 * (256**2 - 1) / 12)).astype(np.float32)
    return field


def random_pose(rng: np.random.Generator, side: int, conditions: Conditions) -> Pose:
    """Return a random pose for training: any place, heading and scale of the map, mirrored half of the time."""
    x, y = (_MARGIN + (side - 2 * _MARGIN) * rng.random(2)).tolist()
    zoom = 1.0 + conditions.zoom * (2.0 * float(rng.random()) - 1.0)
    return Pose(x, y, 2.0 * math.pi * float(rng.random()), zoom, bool(rng.random() < 0.5))


def squared(pose: Pose) -> Pose:
    """Return the nearest pose whose cells are 64-pixel squares of the map's grid, at scale 1."""
    cell = SIZE // GRID
    turns = round(pose.heading / (0.5 * math.pi))
    return Pose(cell * round(pose.x / cell), cell * round(pose.y / cell), 0.5 * math.pi * turns, 1.0, pose.mirror)


def random_view(rng: np.random.Generator, conditions: Conditions) -> View:
    """Return one state of air and sensor, distributed as in ``weather``."""
    return weather(rng, 1, conditions)[0]


def random_grain(rng: np.random.Generator) -> tuple[int, int]:
    """Return a random offset into the noise field."""
    row, column = rng.integers(0, _NOISE_SIDE - SIZE, 2).tolist()
    return row, column
