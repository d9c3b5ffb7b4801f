"""The ten land covers of the ``flight`` world, drawn as two layers: what stands on the ground, and how high.

The covers share their elements on purpose (crowns, rows, roofs) and differ in how these are arranged: a forest and an
orchard have the same trees, a field and a solar park the same rows. Colours overlap widely too, so that a network must
look at tens of pixels at once, and a small one makes more mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit.frames.regions import smooth_noise

Plane = NDArray[np.float32]
_REACH = 6  # largest radius of a crown, pixels


@dataclass(frozen=True, slots=True)
class Layers:
    """``cover`` share of the object colour and ``height`` relief, both (rows, columns) float32 in [0, 1]."""

    cover: Plane
    height: Plane


@dataclass(frozen=True, slots=True)
class Site:
    """A piece of map to be drawn: its random stream, shape, and coordinates ``u``, ``v`` along a random direction."""

    rng: np.random.Generator
    shape: tuple[int, int]
    angle: float
    u: Plane
    v: Plane

    def between(self, low: float, high: float) -> float:
        """Return a uniform draw."""
        return low + (high - low) * float(self.rng.random())

    def noise(self, cell: float) -> Plane:
        """Return smooth noise in [0, 1] over the site."""
        return smooth_noise(self.rng, self.shape, cell)


def make_site(rng: np.random.Generator, shape: tuple[int, int]) -> Site:
    """Return a site of (rows, columns) with a random direction."""
    angle = math.pi * float(rng.random())
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    columns = np.arange(shape[1], dtype=np.float32)[None, :]
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return Site(rng, shape, angle, columns * cosine + rows * sine, rows * cosine - columns * sine)


def _lattice(site: Site, pitch: float, across: float, jitter: float) -> tuple[Plane, Plane]:
    """Return (row, column) of points on a lattice along the site's direction, each moved by up to ``jitter`` pixels."""
    reach = math.hypot(*site.shape)
    u = np.arange(-reach, reach, pitch)
    v = np.arange(-reach, reach, across)
    grid_u, grid_v = (plane.ravel() for plane in np.meshgrid(u, v))
    columns = grid_u * math.cos(site.angle) - grid_v * math.sin(site.angle)
    rows = grid_u * math.sin(site.angle) + grid_v * math.cos(site.angle)
    inside = (rows > 0) & (rows < site.shape[0]) & (columns > 0) & (columns < site.shape[1])
    rows, columns = rows[inside], columns[inside]
    moved = jitter * (2.0 * site.rng.random((2, rows.size)) - 1.0)
    rows = np.clip(rows + moved[0], 0.0, site.shape[0] - 1.0)
    columns = np.clip(columns + moved[1], 0.0, site.shape[1] - 1.0)
    return rows.astype(np.float32), columns.astype(np.float32)


def _crowns(site: Site, rows: Plane, columns: Plane, radius: tuple[float, float]) -> Plane:
    """Return domes (height 0..1) of random radius at the given points; overlaps keep the higher one."""
    pad = 2 * _REACH
    field = np.zeros((site.shape[0] + 2 * pad, site.shape[1] + 2 * pad), dtype=np.float32)
    span = np.arange(-_REACH, _REACH + 1)
    dy, dx = (plane.ravel() for plane in np.meshgrid(span, span, indexing="ij"))
    inside = dy**2 + dx**2 <= _REACH**2
    dy, dx = dy[inside], dx[inside]
    radii = (radius[0] + (radius[1] - radius[0]) * site.rng.random(rows.size)).astype(np.float32)
    tall = (0.7 + 0.3 * site.rng.random(rows.size)).astype(np.float32)
    dome = tall[:, None] * (1.0 - (dy**2 + dx**2).astype(np.float32) / (radii**2)[:, None])
    start = (rows.astype(np.intp) + pad) * field.shape[1] + columns.astype(np.intp) + pad
    np.maximum.at(field.reshape(-1), start[:, None] + (dy * field.shape[1] + dx), dome)
    return field[pad:-pad, pad:-pad]


def _trees(site: Site, rows: Plane, columns: Plane, keep: NDArray[np.bool_]) -> Layers:
    crowns = _crowns(site, rows[keep], columns[keep], (3.2, 5.6))
    return Layers(np.minimum(1.0, 2.5 * crowns), crowns)


def forest(site: Site) -> Layers:
    """Crowns at random, dense."""
    pitch = site.between(7.5, 9.5)
    rows, columns = _lattice(site, pitch, pitch, 0.62 * pitch)
    return _trees(site, rows, columns, site.rng.random(rows.size) < 0.93)


def orchard(site: Site) -> Layers:
    """The same crowns on a lattice."""
    pitch = site.between(9.5, 12.5)
    rows, columns = _lattice(site, pitch, pitch * site.between(0.95, 1.2), 0.1 * pitch)
    return _trees(site, rows, columns, site.rng.random(rows.size) < 0.95)


def pasture(site: Site) -> Layers:
    """Grass with single crowns and small groups of them."""
    rows, columns = _lattice(site, 10.0, 10.0, 6.0)
    groups = site.noise(55.0)[rows.astype(np.intp), columns.astype(np.intp)]
    trees = _trees(site, rows, columns, site.rng.random(rows.size) < 0.1 + 0.5 * (groups > 0.72))
    grass = 0.35 * site.noise(4.0) + 0.15 * site.noise(20.0)
    return Layers(np.maximum(trees.cover, grass), np.maximum(trees.height, 0.35 * grass))


def wetland(site: Site) -> Layers:
    """Pools between patches of crowns and reed."""
    wet = site.noise(26.0)
    rows, columns = _lattice(site, 8.5, 8.5, 5.0)
    dry = wet[rows.astype(np.intp), columns.astype(np.intp)] > 0.5
    trees = _trees(site, rows, columns, dry & (site.rng.random(rows.size) < 0.75))
    reed = np.clip(6.0 * (wet - 0.45), 0.0, 0.6) * (0.6 + 0.4 * site.noise(3.5))
    return Layers(np.maximum(trees.cover, reed), np.maximum(trees.height, 0.3 * reed))


def crops(site: Site) -> Layers:
    """Straight rows."""
    pitch = site.between(8.0, 12.5)
    bend = 3.0 * site.noise(120.0)
    rows = 0.5 + 0.5 * np.sin((2 * math.pi / pitch) * (site.v + bend))
    stand = 0.55 + 0.45 * site.noise(7.0)
    return Layers(rows * stand, 0.6 * rows * stand)


def solar(site: Site) -> Layers:
    """Straight rows of tables with gaps."""
    pitch, length = site.between(9.0, 13.0), site.between(22.0, 34.0)
    row = np.abs(np.mod(site.v / pitch, 1.0) - 0.5)
    table = np.abs(np.mod(site.u / length, 1.0) - 0.5)
    panel = np.clip((0.33 - row) * pitch, 0.0, 1.0) * np.clip((0.42 - table) * length, 0.0, 1.0)
    return Layers(panel * (0.85 + 0.15 * site.noise(4.0)), 0.6 * panel)


def water(site: Site) -> Layers:
    """Waves: rows whose crests wander and fade."""
    pitch = site.between(7.5, 12.0)
    bend = 26.0 * site.noise(48.0) + 5.0 * site.noise(12.0)
    crests = 0.5 + 0.5 * np.sin((2 * math.pi / pitch) * (site.v + bend))
    strength = site.between(0.3, 0.75) * site.noise(30.0)
    return Layers(crests * strength + 0.25 * site.noise(150.0), 0.45 * crests * strength)


def bare(site: Site) -> Layers:
    """Rough soil without direction, some stones."""
    rough = site.noise(5.5) * (0.4 + 0.6 * site.noise(30.0))
    rows, columns = _lattice(site, 14.0, 14.0, 9.0)
    few = site.rng.random(rows.size) < 0.06
    stones = _crowns(site, rows[few], columns[few], (2.0, 4.0))
    return Layers(np.clip(0.8 * rough + 0.3 * site.noise(70.0), 0.0, 1.0), np.maximum(0.55 * rough, 0.8 * stones))


def _roofs(site: Site, pitch: tuple[float, float], fill: tuple[float, float], share: float) -> Plane:
    """Return roofs (0..1) on a ``share`` of the lots of ``pitch`` pixels; one fills ``fill`` of each side."""
    lots = 64
    sizes = fill[0] + (fill[1] - fill[0]) * site.rng.random((2, lots, lots)).astype(np.float32)
    sizes *= site.rng.random((lots, lots)) < share
    lot_u, lot_v = site.u / np.float32(pitch[0]), site.v / np.float32(pitch[1])
    floor_u, floor_v = np.floor(lot_u), np.floor(lot_v)
    at = (floor_u.astype(np.int16) & (lots - 1), floor_v.astype(np.int16) & (lots - 1))
    edge_u = (0.5 * sizes[0][at] - np.abs(lot_u - floor_u - 0.5)) * pitch[0]
    edge_v = (0.5 * sizes[1][at] - np.abs(lot_v - floor_v - 0.5)) * pitch[1]
    roof: Plane = np.clip(np.minimum(edge_u, edge_v), 0.0, 1.0)
    return roof


def residential(site: Site) -> Layers:
    """Houses on small lots, trees between them, a street after every second row."""
    pitch = site.between(19.0, 25.0)
    roofs = _roofs(site, (pitch, pitch * 1.15), (0.4, 0.72), 0.9)
    rows, columns = _lattice(site, 12.0, 12.0, 7.0)
    trees = _crowns(site, rows, columns, (2.5, 4.5)) * (site.noise(40.0) > 0.42)
    street = np.clip((np.abs(np.mod(site.v / (pitch * 2.3), 1.0) - 0.5) - 0.44) * pitch * 2.3, 0.0, 1.0)
    garden = 0.5 * np.maximum(0.0, trees) * (1.0 - roofs)
    return Layers(np.maximum(roofs, 0.55 * street), np.maximum(0.8 * roofs, garden) * (1.0 - 0.8 * street))


def industrial(site: Site) -> Layers:
    """Large roofs with yards between, ribs on the roofs."""
    pitch = site.between(44.0, 62.0)
    roofs = _roofs(site, (pitch, pitch * site.between(0.6, 0.9)), (0.55, 0.88), 0.85)
    ribs = 0.85 + 0.15 * np.sin((2 * math.pi / site.between(7.0, 10.0)) * site.u)
    yard = _roofs(site, (9.5, 12.0), (0.35, 0.6), 0.3) * (1.0 - roofs)
    return Layers(np.maximum(roofs * ribs, 0.7 * yard), np.maximum(roofs * ribs, 0.4 * yard))


COVERS: dict[str, Callable[[Site], Layers]] = {
    "water": water,
    "forest": forest,
    "crops": crops,
    "orchard": orchard,
    "pasture": pasture,
    "wetland": wetland,
    "bare": bare,
    "residential": residential,
    "industrial": industrial,
    "solar": solar,
}
"""Class name -> how it is drawn; the order is the label."""

PALETTE: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "water": ((44, 82, 104), (84, 124, 140)),
    "forest": ((48, 62, 40), (70, 104, 54)),
    "crops": ((150, 128, 92), (92, 116, 54)),
    "orchard": ((140, 130, 88), (70, 104, 54)),
    "pasture": ((124, 142, 80), (78, 104, 56)),
    "wetland": ((54, 80, 84), (92, 112, 62)),
    "bare": ((140, 116, 90), (176, 154, 124)),
    "residential": ((104, 114, 84), (176, 128, 108)),
    "industrial": ((122, 120, 114), (176, 178, 180)),
    "solar": ((126, 134, 92), (50, 62, 96)),
}
"""Class name -> usual RGB of the ground and of what stands on it."""
