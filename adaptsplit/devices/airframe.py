"""Craft: power of level flight, battery, time aloft and the charge that flying home takes."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator

from adaptsplit.config import Config
from adaptsplit.devices.base import Preset
from adaptsplit.errors import ConfigError

_JOULES_PER_WH = 3600.0


class RotaryWing(Config):
    """Level-flight power of a rotary wing from its geometry (Zeng, Xu and Zhang, Energy minimization for wireless
    communication with rotary-wing UAV, IEEE TWC 2019, equation 12)::

        P(V) = P0 (1 + 3 V^2/U^2) + Pi sqrt(sqrt(1 + V^4/(4 v0^4)) - V^2/(2 v0^2)) + d0 rho s A V^3 / 2

    ``blade_w`` P0 and ``induced_w`` Pi at hover, W; ``tip_speed`` U and ``induced_speed`` v0 at hover, m/s; ``drag`` d0
    and ``solidity`` s, ratios; ``air_kg_per_m3`` rho; ``disc_m2`` A.
    """

    blade_w: float = Field(gt=0)
    induced_w: float = Field(gt=0)
    tip_speed: float = Field(gt=0)
    induced_speed: float = Field(gt=0)
    drag: float = Field(ge=0)
    solidity: float = Field(gt=0)
    air_kg_per_m3: float = Field(gt=0)
    disc_m2: float = Field(gt=0)

    def power_w(self, speed_m_per_s: float) -> float:
        """Level-flight power at a speed, W."""
        blade = self.blade_w * (1 + 3 * speed_m_per_s**2 / self.tip_speed**2)
        ratio = speed_m_per_s**2 / (2 * self.induced_speed**2)
        induced = self.induced_w * math.sqrt(math.sqrt(1 + ratio**2) - ratio)
        body = self.drag * self.air_kg_per_m3 * self.solidity * self.disc_m2 * speed_m_per_s**3 / 2
        return blade + induced + body


class AirframePreset(Preset):
    """A craft and its battery: level-flight power and capacity (Wh).

    Power is either a polynomial of speed, ``level_power_w`` (W, v in m/s, lowest power first), or ``rotary``.
    """

    level_power_w: tuple[float, ...] = ()
    rotary: RotaryWing | None = None
    max_speed_m_per_s: float = Field(gt=0)
    battery_wh: float = Field(gt=0)

    @model_validator(mode="after")
    def _one_power_model(self) -> Self:
        if bool(self.level_power_w) == (self.rotary is not None):
            raise ValueError("expected exactly one of level_power_w and rotary")
        return self

    @property
    def hover_w(self) -> float:
        """Power at zero speed, W."""
        return self.flight_power_w(0.0)

    @property
    def battery_j(self) -> float:
        """Capacity, J."""
        return self.battery_wh * _JOULES_PER_WH

    def flight_power_w(self, speed_m_per_s: float) -> float:
        """Level-flight power, W; ConfigError outside the speeds that the model covers."""
        if not 0 <= speed_m_per_s <= self.max_speed_m_per_s:
            raise ConfigError(f"speed {speed_m_per_s} m/s; {self.name} was measured from 0 to {self.max_speed_m_per_s}")
        if self.rotary is not None:
            return self.rotary.power_w(speed_m_per_s)
        return sum(factor * speed_m_per_s**i for i, factor in enumerate(self.level_power_w))

    def battery_fraction(self, start: float, seconds: float, extra_j: float = 0.0, speed_m_per_s: float = 0.0) -> float:
        """Battery left (0..1) after flying ``seconds`` and spending ``extra_j`` on compute and radio."""
        spent = self.flight_power_w(speed_m_per_s) * seconds + extra_j
        return max(0.0, start - spent / self.battery_j)

    def time_aloft_s(self, fraction: float, speed_m_per_s: float = 0.0, extra_w: float = 0.0) -> float:
        """Seconds that ``fraction`` (0..1) of the battery lasts at a speed, with ``extra_w`` >= 0 of other work."""
        if not 0 <= fraction <= 1 or not extra_w >= 0:
            raise ConfigError(f"fraction {fraction}, extra {extra_w} W; expected 0 <= fraction <= 1 and extra >= 0")
        return fraction * self.battery_j / (self.flight_power_w(speed_m_per_s) + extra_w)

    def reserve_fraction(self, distance_home_m: float, speed_m_per_s: float, extra_w: float = 0.0) -> float:
        """Share of the battery that flying ``distance_home_m`` >= 0 home takes; above 1: out of reach.

        Still air, level flight; landing and a pilot's margin are not in it. ConfigError when the speed is 0.
        """
        if not (distance_home_m >= 0 and speed_m_per_s > 0 and extra_w >= 0):
            raise ConfigError(
                f"distance {distance_home_m} m, speed {speed_m_per_s} m/s, extra {extra_w} W; expected >= 0, > 0, >= 0"
            )
        power = self.flight_power_w(speed_m_per_s) + extra_w
        return power * distance_home_m / speed_m_per_s / self.battery_j
