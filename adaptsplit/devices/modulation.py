"""A process that stays in a state for an exponential time, then moves to another state: load and server traffic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import ConfigError
from adaptsplit.links.draws import Draws

Array = NDArray[np.float64]
_MAX_SAMPLES = 10_000_000


def exponentials(draws: Draws, count: int) -> Array:
    """(count,) exponential draws of mean 1."""
    return -np.log(draws.uniform(count))


def sojourns(draws: Draws, mean_s: Sequence[float], duration_s: float) -> tuple[Array, NDArray[np.int64]]:
    """Start times (m,) in s, the first 0, and states (m,) of a stationary Markov process over ``duration_s``.

    State i lasts an exponential time of mean ``mean_s[i]``; the next one is any other state, equally likely, so two
    states alternate. The first is drawn by its share of time, ``mean_s[i] / sum(mean_s)``: there is no warm-up.
    """
    state = int(np.searchsorted(np.cumsum(mean_s) / sum(mean_s), draws.uniform(1)[0]))
    now, starts, states = 0.0, [0.0], [state]
    while len(mean_s) > 1:
        now += draws.exponential(mean_s[state])
        if now >= duration_s:
            break
        state = (state + 1 + int(draws.uniform(1)[0] * (len(mean_s) - 1))) % len(mean_s)
        starts.append(now)
        states.append(state)
    return np.array(starts), np.array(states, dtype=np.int64)


def samples_in(duration_s: float, dt_s: float) -> int:
    """Return how many steps of ``dt_s`` make up ``duration_s``; ConfigError unless it is a whole number of them."""
    if not (dt_s > 0 and duration_s > 0 and duration_s / dt_s <= _MAX_SAMPLES):
        raise ConfigError(f"{duration_s} s in steps of {dt_s} s; expected both > 0 and at most {_MAX_SAMPLES} steps")
    count = round(duration_s / dt_s)
    if abs(count * dt_s - duration_s) > 1e-6 * dt_s * max(1, count):
        raise ConfigError(f"{duration_s} s is not a whole number of steps of {dt_s} s; give a multiple of the step")
    return max(1, count)


def held(starts: Array, values: NDArray[Any], instants: Array) -> NDArray[Any]:
    """Values at ``instants``: each holds from its start to the next."""
    return np.asarray(values[np.searchsorted(starts, instants, side="right") - 1])
