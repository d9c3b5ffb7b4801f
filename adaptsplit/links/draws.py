"""Seeded draws whose bits do not depend on the numpy version: raw PCG64 words, turned into numbers here."""

from __future__ import annotations

import numpy as np

from adaptsplit.links.trace import Array


class Draws:
    """One stream of random numbers per (seed, purpose); streams of different purposes are independent.

    numpy promises the raw words of PCG64 and the mixing of SeedSequence for ever, but not its distributions.
    """

    __slots__ = ("_bits",)

    def __init__(self, seed: int, purpose: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose,)))

    def uniform(self, count: int) -> Array:
        """(count,) in (0, 1), 53 bits each, never 0 or 1."""
        words = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, count: int) -> Array:
        """(count,) standard normal (Box and Muller, 1958)."""
        pairs = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self.uniform(pairs)))
        angle = 2.0 * np.pi * self.uniform(pairs)
        return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]

    def exponential(self, mean: float) -> float:
        """One exponential draw."""
        return float(-mean * np.log(self.uniform(1)[0]))


def ar1(draws: Draws, count: int, correlation: float) -> Array:
    """(count,) stationary AR(1): mean 0, variance 1, autocorrelation ``correlation ** k`` at lag k."""
    noise = draws.normal(count)
    noise[1:] *= np.sqrt(1.0 - correlation**2)
    values = noise.tolist()
    for k in range(1, count):
        values[k] += correlation * values[k - 1]
    return np.array(values)


def ar1_between(draws: Draws, correlation: Array) -> Array:
    """(len(correlation) + 1,) stationary, mean 0, variance 1; neighbours ``k`` and ``k + 1`` have ``correlation[k]``.

    With ``correlation[k] = exp(-step_k / length)`` the autocorrelation is ``exp(-distance / length)`` for steps of any
    size (a process of Ornstein and Uhlenbeck, sampled where the device is).
    """
    noise = draws.normal(correlation.size + 1)
    noise[1:] *= np.sqrt(np.maximum(0.0, 1.0 - correlation**2))
    values = noise.tolist()
    for k, factor in enumerate(correlation.tolist()):
        values[k + 1] += factor * values[k]
    return np.array(values)


def redrawn(draws: Draws, distance: Array, length: float) -> Array:
    """(H,) uniform in (0, 1), held along the way and redrawn after exponential distances with mean ``length``.

    ``distance`` is the way covered so far, not falling. The autocorrelation is ``exp(-distance / length)``.
    """
    span = float(distance[-1] - distance[0])
    events = np.cumsum(-length * np.log(draws.uniform(256 + int(1.1 * span / length))))
    while events[-1] < span:
        events = np.append(events, events[-1] + np.cumsum(-length * np.log(draws.uniform(256))))
    values = draws.uniform(events.size + 1)
    held: Array = values[np.searchsorted(events, distance - distance[0], side="right")]
    return held
