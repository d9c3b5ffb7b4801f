"""Seeded generators of link traces, all of them registered by importing this module.

Two are small enough to stand here; ``markov`` and ``lte-drone`` are in ``markov.py``, ``air-to-ground`` is in its own.
"""

from __future__ import annotations

import numpy as np
from pydantic import model_validator

from adaptsplit.config import Config
from adaptsplit.links.air_to_ground import AirToGroundParameters
from adaptsplit.links.chain import MarkovChain
from adaptsplit.links.draws import Draws
from adaptsplit.links.generation import (
    Fraction,
    LinkGenerator,
    Positive,
    Rate,
    RoundTrip,
    SampleLength,
    Seconds,
    generated,
    generator,
    link_generators,
    sample_count,
)
from adaptsplit.links.markov import LteDroneParameters, MarkovParameters
from adaptsplit.links.trace import LinkTrace

__all__ = [
    "AirToGroundParameters",
    "ConstantParameters",
    "GilbertElliottParameters",
    "LinkGenerator",
    "LteDroneParameters",
    "MarkovChain",
    "MarkovParameters",
    "generator",
    "link_generators",
]


class ConstantParameters(Config):
    """A link that never changes."""

    capacity_bps: Positive = 2e6
    rtt_s: RoundTrip = 0.05
    loss: Fraction = 0.0
    dt_s: SampleLength = 1.0


@generator("constant", ConstantParameters)
def constant(seed: int, duration_s: float, parameters: ConstantParameters) -> LinkTrace:
    """Constant capacity; the seed only enters the name."""
    count = sample_count("constant", duration_s, parameters.dt_s)
    flat = np.ones(count)
    return generated(
        "constant", seed, parameters, flat * parameters.capacity_bps, flat * parameters.rtt_s, flat * parameters.loss
    )


class GilbertElliottParameters(Config):
    """Two states with geometric sojourns; the means are exact, whatever the sample length."""

    good_bps: Positive = 5e6
    bad_bps: Rate = 3e5
    mean_good_s: Seconds = 8.0
    mean_bad_s: Seconds = 2.0
    loss_good: Fraction = 0.0
    loss_bad: Fraction = 0.02
    rtt_good_s: RoundTrip = 0.05
    rtt_bad_s: RoundTrip = 0.12
    dt_s: SampleLength = 0.05

    @model_validator(mode="after")
    def _sojourns_reach_a_sample(self) -> GilbertElliottParameters:
        if min(self.mean_good_s, self.mean_bad_s) < self.dt_s:
            raise ValueError(f"a mean sojourn is below dt_s = {self.dt_s:g} s; choose a shorter sample")
        return self

    @property
    def share_good(self) -> float:
        """Stationary share of time in the good state: mean_good / (mean_good + mean_bad)."""
        return self.mean_good_s / (self.mean_good_s + self.mean_bad_s)

    @property
    def mean_loss(self) -> float:
        """Stationary loss."""
        return self.share_good * self.loss_good + (1 - self.share_good) * self.loss_bad


@generator("gilbert-elliott", GilbertElliottParameters)
def gilbert_elliott(seed: int, duration_s: float, parameters: GilbertElliottParameters) -> LinkTrace:
    """Two-state Markov link (Gilbert 1960; Elliott 1963), begun in its stationary distribution.

    A sample leaves the good state with probability ``dt / mean_good``, the bad one with ``dt / mean_bad``.
    """
    p = parameters
    count = sample_count("gilbert-elliott", duration_s, p.dt_s)
    leave = {True: p.dt_s / p.mean_good_s, False: p.dt_s / p.mean_bad_s}
    draws = Draws(seed, 0).uniform(count).tolist()
    good = draws[0] < p.share_good
    states = [good]
    for draw in draws[1:]:
        good = good ^ (draw < leave[good])
        states.append(good)
    flags = np.array(states)
    return generated(
        "gilbert-elliott",
        seed,
        p,
        np.where(flags, p.good_bps, p.bad_bps),
        np.where(flags, p.rtt_good_s, p.rtt_bad_s),
        np.where(flags, p.loss_good, p.loss_bad),
    )
