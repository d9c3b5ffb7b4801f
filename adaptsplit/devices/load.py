"""Load of a device by other work: idle and busy spells that alternate, independent of what the controller does."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from adaptsplit.config import Config
from adaptsplit.devices.modulation import Array, held, samples_in, sojourns
from adaptsplit.links.draws import Draws

_PURPOSE = 301  # of the random numbers: none of the link generators uses it


class LoadSpec(Config):
    """Two loads (fractions of the board, 0 .. 1) and the mean duration of a spell of each, s (exponential).

    The levels and durations are a scenario's choice; nothing here is a measurement.
    """

    idle_load: float = Field(ge=0, le=1)
    busy_load: float = Field(ge=0, le=1)
    mean_idle_s: float = Field(gt=0)
    mean_busy_s: float = Field(gt=0)

    @property
    def busy_share(self) -> float:
        """Long-run share of time with the busy load."""
        return self.mean_busy_s / (self.mean_idle_s + self.mean_busy_s)


def load_trace(spec: LoadSpec, seed: int, duration_s: float, dt_s: float = 0.1) -> Array:
    """(H,) loads at 0, ``dt_s``, 2 ``dt_s`` ...; the process is stationary from the first sample on.

    ConfigError unless ``duration_s`` is a whole number of steps.
    """
    count = samples_in(duration_s, dt_s)
    draws = Draws(seed, _PURPOSE)
    starts, states = sojourns(draws, (spec.mean_idle_s, spec.mean_busy_s), duration_s)
    instants: Array = np.arange(count, dtype=np.float64) * dt_s
    return held(starts, np.array([spec.idle_load, spec.busy_load])[states], instants)
