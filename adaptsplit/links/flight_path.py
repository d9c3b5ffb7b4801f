"""Where a drone is at which time: waypoints, or a flight out, round in circles and back."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from adaptsplit.config import Config
from adaptsplit.links.draws import Draws
from adaptsplit.links.propagation import MAX_HEIGHT_M, MIN_HEIGHT_M
from adaptsplit.links.trace import Array

CIRCLE_STEPS = 36  # sides of the polygon that stands for a circle: 0.4 % shorter than it

Ground = Annotated[float, Field(ge=-20_000, le=20_000)]
Height = Annotated[float, Field(ge=MIN_HEIGHT_M, le=MAX_HEIGHT_M)]
Span = Annotated[float, Field(ge=0, le=10_000)]


class FlightPath(Config):
    """A closed flight, repeated for as long as the trace lasts; the middle base station stands at (0, 0).

    waypoints_m: (x, y, height), flown in order and back to the first; they replace all but the speeds and
    random_start. Otherwise the drone climbs at home (home_m from the station, bearing drawn), leaves at height_m for
    a place whose distance from the station is drawn from distance_m and whose bearing is drawn, flies ``laps``
    circles of radius circle_m round it, returns and lands at 1.5 m. speed_mps, climb_mps: over ground and vertical; a
    leg takes the longer of its two times. random_start: begin at a drawn moment of the flight instead of at home.
    The speed is that of least power of a small quadrotor; the other defaults are assumptions.
    """

    waypoints_m: tuple[tuple[Ground, Ground, Height], ...] | None = Field(default=None, min_length=1, max_length=1000)
    speed_mps: float = Field(default=8.0, gt=0, le=100)
    climb_mps: float = Field(default=2.5, gt=0, le=50)
    height_m: Height = 40.0
    home_m: Span = 200.0
    distance_m: tuple[Span, Span] = (500.0, 1500.0)
    circle_m: Span = 100.0
    laps: int = Field(default=2, ge=0, le=100)
    random_start: bool = False

    @model_validator(mode="after")
    def _band_in_order(self) -> FlightPath:
        if self.distance_m[0] > self.distance_m[1]:
            raise ValueError("distance_m must be [nearest, farthest]; exchange them")
        return self

    def corners(self, seed: int) -> Array:
        """Return (corners, 3) x, y and height of the closed path, m; the first is not repeated at the end."""
        if self.waypoints_m is not None:
            return np.array(self.waypoints_m)
        home_bearing, bearing, place = Draws(seed, 10).uniform(3).tolist()
        home = self.home_m * _direction(2 * math.pi * home_bearing)
        near, far = self.distance_m
        centre = (near + (far - near) * place) * _direction(2 * math.pi * bearing)
        way = home - centre
        first = math.atan2(float(way[1]), float(way[0])) if way.any() else 0.0
        steps = np.arange(CIRCLE_STEPS * self.laps + 1) * (2 * math.pi / CIRCLE_STEPS)
        circle = [centre + self.circle_m * _direction(first + step) for step in steps.tolist()]
        level = np.array([home, *circle, home])
        path = np.column_stack((level, np.full(len(level), self.height_m)))
        return np.vstack(((*home, MIN_HEIGHT_M), path))

    def positions(self, seed: int, times_s: Array) -> Array:
        """Return (H, 3) x, y and height, m, at ``times_s`` (H,), s."""
        corners = self.corners(seed)
        closed = np.vstack((corners, corners[:1]))
        steps = np.diff(closed, axis=0)
        legs = np.maximum(np.hypot(steps[:, 0], steps[:, 1]) / self.speed_mps, np.abs(steps[:, 2]) / self.climb_mps)
        at = np.concatenate(([0.0], np.cumsum(legs)))
        if at[-1] == 0:  # one waypoint: the drone hovers
            return np.broadcast_to(corners[0], (times_s.size, 3)).copy()
        start = Draws(seed, 11).uniform(1)[0] * at[-1] if self.random_start else 0.0
        phase = np.mod(times_s + start, at[-1])
        return np.column_stack([np.interp(phase, at, closed[:, axis]) for axis in range(3)])


def _direction(angle: float) -> Array:
    return np.array([math.cos(angle), math.sin(angle)])
