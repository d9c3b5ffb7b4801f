"""A frame source that flies a camera over maps; ``flight`` and ``tiles`` differ only in how a map is made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adaptsplit.frames.base import CELLS, SIZE, Frame, Labels, check_index, generator
from adaptsplit.frames.camera import (
    Conditions,
    Pose,
    View,
    World,
    fly,
    look_up,
    random_grain,
    random_pose,
    random_view,
    shoot,
    squared,
    weather,
)
from adaptsplit.frames.signals import Image

SEGMENTS = {"model-train": 200, "calibration": 4, "train": 12, "validation": 4, "test": 8}
"""Flights per split."""
FRAMES_PER_SEGMENT = 300

_MAP, _PATH, _WEATHER, _GRAIN = range(4)  # purposes of random streams
_CACHED = 3
_POOL = 6
_POOL_LIFE = 384  # frames drawn before one map of the pool is replaced


@dataclass(frozen=True, slots=True)
class Flight:
    """One segment, ready to be photographed."""

    world: World
    poses: list[Pose]
    views: list[View]


class WorldSource:
    """Flights over maps that ``make_world(rng)`` builds; see ``FrameSource`` for the interface.

    Maps are built when first needed and the last few are kept. ``batch`` keeps a pool of maps of its own and replaces
    one of them every few hundred frames: what it returns depends on ``rng`` and on the calls before.
    ``squared_share`` of the frames of ``batch`` lie squarely on the map's 64-pixel grid.
    """

    def __init__(
        self,
        name: str,
        classes: list[str],
        make_world: Callable[[np.random.Generator], World],
        *,
        split: str,
        seed: int,
        conditions: Conditions,
        squared_share: float = 0.0,
    ) -> None:
        self.name = name
        self.split = split
        self.classes = list(classes)
        self.conditions = conditions
        count = SEGMENTS[split]
        self.segments = [(k * FRAMES_PER_SEGMENT, FRAMES_PER_SEGMENT) for k in range(count)]
        self._seed = seed
        self._squared_share = squared_share
        self._make_world = make_world
        self._flights: OrderedDict[int, Flight] = OrderedDict()
        self._pool: list[World] = []
        self._drawn = 0

    def __len__(self) -> int:
        return len(self.segments) * FRAMES_PER_SEGMENT

    def pose(self, index: int) -> Pose:
        """Return where the camera is at frame ``index``."""
        check_index(index, len(self))
        segment, step = divmod(index, FRAMES_PER_SEGMENT)
        return self._flight(segment).poses[step]

    def world(self, segment: int) -> World:
        """Return the map of a segment."""
        check_index(segment, len(self.segments))
        return self._flight(segment).world

    def frame(self, index: int) -> Frame:
        """Return frame ``index`` (IndexError outside the split)."""
        check_index(index, len(self))
        segment, step = divmod(index, FRAMES_PER_SEGMENT)
        flight = self._flight(segment)
        pose = flight.poses[step]
        grain = random_grain(generator(self._seed, self.split, index, _GRAIN))
        image = shoot(flight.world, pose, flight.views[step], grain)
        return Frame(image, look_up(flight.world, pose), index, segment)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Image, Labels]:
        """Return ``count`` random training frames: (count, 256, 256, 3) uint8, (count, 16) int16."""
        images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
        labels = np.empty((count, CELLS), dtype=np.int16)
        for k in range(count):
            world = self._draw_world(rng)
            pose = self._draw_pose(rng, world)
            images[k] = shoot(world, pose, random_view(rng, self.conditions), random_grain(rng))
            labels[k] = look_up(world, pose)
        return images, labels

    def _draw_pose(self, rng: np.random.Generator, world: World) -> Pose:
        pose = random_pose(rng, world.side, self.conditions)
        return squared(pose) if rng.random() < self._squared_share else pose

    def _draw_world(self, rng: np.random.Generator) -> World:
        if len(self._pool) < _POOL:
            self._pool.append(self._random_world(rng))
        elif self._drawn % _POOL_LIFE == 0:
            self._pool[int(rng.integers(_POOL))] = self._random_world(rng)
        self._drawn += 1
        return self._pool[int(rng.integers(len(self._pool)))]

    def _random_world(self, rng: np.random.Generator) -> World:
        segment = int(rng.integers(len(self.segments)))
        return self._make_world(generator(self._seed, self.split, segment, _MAP))

    def _flight(self, segment: int) -> Flight:
        if segment not in self._flights:
            self._flights[segment] = self._build(segment)
            if len(self._flights) > _CACHED:
                self._flights.popitem(last=False)
        self._flights.move_to_end(segment)
        return self._flights[segment]

    def _build(self, segment: int) -> Flight:
        def stream(purpose: int) -> np.random.Generator:
            return generator(self._seed, self.split, segment, purpose)

        world = self._make_world(stream(_MAP))
        poses = fly(stream(_PATH), FRAMES_PER_SEGMENT, world.side, self.conditions)
        views = weather(stream(_WEATHER), FRAMES_PER_SEGMENT, self.conditions)
        return Flight(world, poses, views)
