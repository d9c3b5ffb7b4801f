"""Markov-modulated links: states of capacity with sojourns, sub-second variation and outages."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adaptsplit.config import Config
from adaptsplit.links.chain import MarkovChain, chained
from adaptsplit.links.draws import Draws, ar1
from adaptsplit.links.generation import (
    Fraction,
    Positive,
    Rate,
    RoundTrip,
    SampleLength,
    Seconds,
    generated,
    generator,
    sample_count,
)
from adaptsplit.links.trace import Array, LinkTrace


class MarkovParameters(Config):
    """Markov-modulated capacity with sub-second variation and outages.

    levels_bps: mean capacity of each state, rising. mean_sojourn_s: mean (exponential) time between moves. A move goes
    up with probability up_probability, else down; at an end the move that cannot be made is a stay.
    variation, variation_s: standard deviation of ln(capacity) around its state and its correlation time; the mean is
    kept. outages_per_minute, outage_min_s, outage_mean_s, outage_max_s: outages begin as a Poisson process and last
    min + an exponential time, cut at max; no capacity meanwhile.
    base_rtt_s + rtt_bits / level, at most max_rtt_s: the round trip rises where capacity falls, since grants,
    retransmissions and the few packets that are always on their way take longer on a slow link.
    """

    levels_bps: tuple[Positive, ...] = Field(default=(2.5e5, 1e6, 4e6), min_length=1, max_length=64)
    mean_sojourn_s: Seconds = 2.0
    up_probability: float = Field(default=0.5, gt=0, lt=1)
    variation: float = Field(default=0.3, ge=0, le=2)
    variation_s: Seconds = 0.2
    floor_bps: Rate = 0.0
    ceiling_bps: Positive = 1e12
    outages_per_minute: float = Field(default=0.5, ge=0, le=60)
    outage_min_s: float = Field(default=0.5, ge=0, le=600)
    outage_mean_s: Seconds = 1.5
    outage_max_s: Seconds = 5.0
    base_rtt_s: RoundTrip = 0.05
    rtt_bits: float = Field(default=0.0, ge=0, le=1e9)
    max_rtt_s: RoundTrip = 0.5
    loss: Fraction = 0.0
    dt_s: SampleLength = 0.05

    @model_validator(mode="after")
    def _orders(self) -> MarkovParameters:
        if list(self.levels_bps) != sorted(set(self.levels_bps)):
            raise ValueError("levels_bps must rise from level to level; sort them")
        if not self.outage_min_s <= self.outage_mean_s <= self.outage_max_s:
            raise ValueError("outage_min_s <= outage_mean_s <= outage_max_s does not hold; put them in order")
        if self.floor_bps > self.ceiling_bps:
            raise ValueError("floor_bps is above ceiling_bps; exchange them")
        return self

    @property
    def shares(self) -> Array:
        """(states,) stationary share of each state: detailed balance gives (up / (1 - up)) ** state, normalised."""
        weights = (self.up_probability / (1 - self.up_probability)) ** np.arange(len(self.levels_bps))
        shares: Array = weights / weights.sum()
        return shares


class LteDroneParameters(MarkovParameters):
    """An LTE-like uplink of a moving device, set by the four LTE uplinks recorded with Mahimahi's Saturator.

    ============================  =======================================  ====================  ==================
    figure                        ATT-driving, ATT-driving-2016,           here (seeds 0 to 19)  parameter
                                  Verizon-short, TMobile-short
    ============================  =======================================  ====================  ==================
    median, Mbit/s (1 s bins)     1.04, 1.57, 5.69, 11.5                   1.58                  levels_bps
    p5 to p95, Mbit/s             0.0-1.2, 0.03-4.8, 1.2-11.4, 2.5-27.5    0.15-8.3              levels_bps
    autocorrelation of            0.71, 0.24, 0.50, 0.72 at 1 s            0.73 at 1 s           mean_sojourn_s
    ln(capacity) (100 ms bins)    0.47, 0.12, 0.13, 0.64 at 5 s            0.42 at 5 s
    variation within 1 s          0.33, 0.64, 0.31, 0.26                   0.37                  variation
    gaps > 0.5 s per minute       2.7, 4.5, 0.4, 0.4                       1.2                   outages_per_minute
    their median and p95, s       1.0 and 3.3, 1.1 and 3.3 (ATT)           1.1 and 3.6           outage_*
    ============================  =======================================  ====================  ==================

    The autocorrelation is that of ln(capacity + 0.12 Mbit/s); gaps were counted in the same 100 ms bins.
    The levels sit at the lower end of the recordings, where a choice between branches and rates matters. Round trip:
    55 ms at high rate, two packets' worth of bits more at low rate. The loss is what remains after link-layer
    retransmission. Mahimahi's files hold neither, so these two are assumptions.
    """

    levels_bps: tuple[Positive, ...] = Field(
        default=(1.5e5, 2.7e5, 4.8e5, 8.5e5, 1.5e6, 2.7e6, 4.8e6, 8.5e6), min_length=1, max_length=64
    )
    mean_sojourn_s: Seconds = 0.8
    up_probability: float = Field(default=0.52, gt=0, lt=1)
    variation: float = Field(default=0.45, ge=0, le=2)
    variation_s: Seconds = 0.15
    floor_bps: Rate = 5e4
    ceiling_bps: Positive = 1.2e7
    outages_per_minute: float = Field(default=1.5, ge=0, le=60)
    outage_mean_s: Seconds = 1.4
    base_rtt_s: RoundTrip = 0.055
    rtt_bits: float = Field(default=24_000.0, ge=0, le=1e9)
    max_rtt_s: RoundTrip = 0.3
    loss: Fraction = 0.002


@generator("markov", MarkovParameters, ("transition", MarkovChain))
def markov(seed: int, duration_s: float, parameters: MarkovParameters | MarkovChain) -> LinkTrace:
    """Markov-modulated capacity, begun in its stationary distribution.

    ``MarkovParameters`` describe it by figures; a ``MarkovChain`` by its matrix (the key ``transition``), as
    ``fit_markov`` finds it in a trace.
    """
    if isinstance(parameters, MarkovChain):
        return chained("markov", seed, duration_s, parameters)
    return _modulated("markov", seed, duration_s, parameters)


@generator("lte-drone", LteDroneParameters)
def lte_drone(seed: int, duration_s: float, parameters: LteDroneParameters) -> LinkTrace:
    """``markov`` with the figures of recorded LTE uplinks (see ``LteDroneParameters``)."""
    return _modulated("lte-drone", seed, duration_s, parameters)


def _modulated(name: str, seed: int, duration_s: float, p: MarkovParameters) -> LinkTrace:
    count = sample_count(name, duration_s, p.dt_s)
    level = np.array(p.levels_bps)[_states(seed, count, p)]
    variation = ar1(Draws(seed, 1), count, math.exp(-p.dt_s / p.variation_s))
    capacity = level * np.exp(p.variation * variation - p.variation**2 / 2)
    capacity = np.where(_outages(seed, count, p), 0.0, np.clip(capacity, p.floor_bps, p.ceiling_bps))
    rtt = np.minimum(p.base_rtt_s + p.rtt_bits / level, max(p.max_rtt_s, p.base_rtt_s))
    return generated(name, seed, p, capacity, rtt, np.full(count, p.loss))


def _states(seed: int, count: int, p: MarkovParameters) -> NDArray[np.int64]:
    """(count,) state at the start of each sample."""
    draws = Draws(seed, 0)
    top = len(p.levels_bps) - 1
    state = min(int(np.searchsorted(np.cumsum(p.shares), draws.uniform(1)[0])), top)
    states = np.empty(count, dtype=np.int64)
    at, t = 0, 0.0
    while at < count:
        t += draws.exponential(p.mean_sojourn_s)
        end = min(count, max(at, math.ceil(t / p.dt_s)))
        states[at:end] = state
        at = end
        step = 1 if draws.uniform(1)[0] < p.up_probability else -1
        state = min(max(state + step, 0), top)
    return states


def _outages(seed: int, count: int, p: MarkovParameters) -> NDArray[np.bool_]:
    """(count,) true where there is no capacity; the gap to the next outage counts from the end of the last."""
    flags = np.zeros(count, dtype=np.bool_)
    if p.outages_per_minute == 0:
        return flags
    draws = Draws(seed, 2)
    t = draws.exponential(60 / p.outages_per_minute)
    while t < count * p.dt_s:
        length = min(p.outage_min_s + draws.exponential(p.outage_mean_s - p.outage_min_s), p.outage_max_s)
        flags[math.ceil(t / p.dt_s) : math.ceil((t + length) / p.dt_s)] = True
        t += length + draws.exponential(60 / p.outages_per_minute)
    return flags
