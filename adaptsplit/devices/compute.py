"""Compute boards: effective speed, power and heat, and what becomes of a profile's times on another board."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adaptsplit.config import Config
from adaptsplit.devices.base import Preset
from adaptsplit.errors import ConfigError


class ThermalPreset(Config):
    """Heat of a board: one thermal resistance (K/W of board power) and time constant (s), and its throttling.

    From ``soft_c`` on the clock is at most ``soft_speed`` of the full one, from ``hard_c`` on ``hard_speed``; either
    limit is left ``hysteresis_k`` below it. ``ambient_c`` is the air around the board, not the weather.
    """

    ambient_c: float = Field(ge=-60, le=100)
    k_per_w: float = Field(gt=0)
    tau_s: float = Field(gt=0)
    soft_c: float = Field(le=150)
    soft_speed: float = Field(gt=0, le=1)
    hard_c: float = Field(le=150)
    hard_speed: float = Field(gt=0, le=1)
    hysteresis_k: float = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.ambient_c < self.soft_c <= self.hard_c:
            raise ValueError(f"ambient {self.ambient_c}, soft {self.soft_c}, hard {self.hard_c} degC: must ascend")
        if self.hard_speed > self.soft_speed:
            raise ValueError(f"hard_speed {self.hard_speed} above soft_speed {self.soft_speed}: exchange them")
        return self


class ComputePreset(Preset):
    """A board: effective multiply-accumulates per second in convolutional networks, one image at a time; power (W).

    ``macs_per_s`` None means the host on which a profile was measured. ``scalar_slowdown`` is how many times longer
    one core takes than the profiling host's for code that is not a network: codecs, content signals, the decision.
    ``minimum_clock`` is the lowest clock over the highest; 1 where the clock is not modelled.
    """

    macs_per_s: float | None = Field(gt=0)
    scalar_slowdown: float = Field(gt=0)
    idle_w: float = Field(ge=0)
    active_w: float = Field(ge=0)
    minimum_clock: float = Field(default=1.0, gt=0, le=1)
    thermal: ThermalPreset | None = None

    def compute_energy_j(self, busy_s: float) -> float:
        """Energy above idle of ``busy_s`` seconds of computing, J."""
        return (self.active_w - self.idle_w) * busy_s


def scale_factor(profile_host_macs_per_s: float, preset: ComputePreset) -> float:
    """Factor from stage times measured on the profile's host to those MODELLED for ``preset``: host rate / preset rate.

    One number for all networks (codecs and signals have ``scalar_slowdown``): it ignores caches, threads and operators
    that suit one machine better than another, so scaled times are a stated model, never a measurement. ConfigError
    when the host's rate is not positive.
    """
    if not profile_host_macs_per_s > 0:
        raise ConfigError(f"host rate {profile_host_macs_per_s} MAC/s; expected > 0: measure the profile again")
    return 1.0 if preset.macs_per_s is None else profile_host_macs_per_s / preset.macs_per_s


def kept_spread(quantiles_s: NDArray[Any]) -> NDArray[np.float64]:
    """Ratios (..., Q) of stage-time quantiles (..., Q), s, to their median: what a scaled profile keeps.

    Scaling multiplies every quantile by one factor, so the ratios are the profiling host's on every board; the board's
    own spread (its governor, its other processes) is not in them. The median is the mean of the two middle quantiles.
    ConfigError when a median is not positive.
    """
    times = np.asarray(quantiles_s, dtype=np.float64)
    median = np.median(times, axis=-1, keepdims=True)
    if times.shape[-1] == 0 or not (median > 0).all():
        raise ConfigError("stage-time quantiles have a median of 0 s or less; expected > 0: measure the profile again")
    ratios: NDArray[np.float64] = times / median
    return ratios


def scaling_note(profile_host: str, preset: ComputePreset) -> str:
    """Return the sentence that goes with every number from a scaled profile: measured there, or modelled, and how."""
    if preset.macs_per_s is None:
        return f"Stage times as measured on {profile_host}."
    return (
        f"Stage times are MODELLED for {preset.name}: measured on {profile_host}, networks scaled to"
        f" {preset.macs_per_s / 1e9:.3g} GMAC/s, other code to {preset.scalar_slowdown:.3g} times the host's time;"
        " their spread is the host's."
    )
