"""Seeded generators of link traces: the same seed and parameters give the same trace.

Every generator is called ``generator(seed, duration_s, parameters)``, its parameters are a frozen record with units in
the names. Adding one: a parameter record, a function, and ``@generator("name", Parameters)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adaptsplit.config import Config, parse
from adaptsplit.errors import ConfigError
from adaptsplit.links.draws import Draws, ar1
from adaptsplit.links.trace import MAX_SAMPLES, Array, LinkTrace
from adaptsplit.registry import Registry

Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, le=1e12)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
RoundTrip = Annotated[float, Field(ge=0, le=600)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
SampleLength = Annotated[float, Field(ge=0.001, le=60)]
P = TypeVar("P", bound=Config)


@dataclass(frozen=True, slots=True)
class LinkGenerator:
    """One registered generator: its parameter record and the function."""

    name: str
    parameters: type[Config]
    make: Callable[[int, float, Any], LinkTrace]

    def __call__(
        self, seed: int, duration_s: float, parameters: Config | Mapping[str, object] | None = None
    ) -> LinkTrace:
        """Generate one trace; ``parameters`` as a record, as a mapping (strict), or None for the defaults."""
        if not isinstance(parameters, self.parameters):
            if isinstance(parameters, Config):
                raise ConfigError(
                    f"link generator {self.name}: found {type(parameters).__name__}, "
                    f"expected {self.parameters.__name__} or a mapping"
                )
            parameters = parse(self.parameters, parameters or {}, f"parameters of link generator {self.name}")
        if not (isinstance(seed, int) and seed >= 0):
            raise ConfigError(f"link generator {self.name}: seed {seed!r}, expected a whole number, at least 0")
        if not (math.isfinite(duration_s) and duration_s > 0):
            raise ConfigError(f"link generator {self.name}: duration {duration_s!r} s, expected a number above 0")
        return self.make(seed, duration_s, parameters)


link_generators: Registry[LinkGenerator] = Registry("link generator")
Make = Callable[[int, float, P], LinkTrace]


def generator(name: str, parameters: type[P]) -> Callable[[Make[P]], Make[P]]:
    """Return a decorator that registers a generator function with its parameter record."""

    def add(make: Make[P]) -> Make[P]:
        link_generators.register(name)(
            LinkGenerator(name, parameters, cast("Callable[[int, float, Any], LinkTrace]", make))
        )
        return make

    return add


class ConstantParameters(Config):
    """A link that never changes."""

    capacity_bps: Positive = 2e6
    rtt_s: RoundTrip = 0.05
    loss: Fraction = 0.0
    dt_s: SampleLength = 1.0


@generator("constant", ConstantParameters)
def constant(seed: int, duration_s: float, parameters: ConstantParameters) -> LinkTrace:
    """Constant capacity; the seed only enters the name."""
    count = _samples("constant", duration_s, parameters.dt_s)
    flat = np.ones(count)
    return _trace(
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
    count = _samples("gilbert-elliott", duration_s, p.dt_s)
    leave = {True: p.dt_s / p.mean_good_s, False: p.dt_s / p.mean_bad_s}
    draws = Draws(seed, 0).uniform(count).tolist()
    good = draws[0] < p.share_good
    states = [good]
    for draw in draws[1:]:
        good = good ^ (draw < leave[good])
        states.append(good)
    flags = np.array(states)
    return _trace(
        "gilbert-elliott",
        seed,
        p,
        np.where(flags, p.good_bps, p.bad_bps),
        np.where(flags, p.rtt_good_s, p.rtt_bad_s),
        np.where(flags, p.loss_good, p.loss_bad),
    )


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


@generator("markov", MarkovParameters)
def markov(seed: int, duration_s: float, parameters: MarkovParameters) -> LinkTrace:
    """Markov-modulated capacity (see ``MarkovParameters``), begun in its stationary distribution."""
    return _modulated("markov", seed, duration_s, parameters)


@generator("lte-drone", LteDroneParameters)
def lte_drone(seed: int, duration_s: float, parameters: LteDroneParameters) -> LinkTrace:
    """``markov`` with the figures of recorded LTE uplinks (see ``LteDroneParameters``)."""
    return _modulated("lte-drone", seed, duration_s, parameters)


def _modulated(name: str, seed: int, duration_s: float, p: MarkovParameters) -> LinkTrace:
    count = _samples(name, duration_s, p.dt_s)
    level = np.array(p.levels_bps)[_states(seed, count, p)]
    variation = ar1(Draws(seed, 1), count, math.exp(-p.dt_s / p.variation_s))
    capacity = level * np.exp(p.variation * variation - p.variation**2 / 2)
    capacity = np.where(_outages(seed, count, p), 0.0, np.clip(capacity, p.floor_bps, p.ceiling_bps))
    rtt = np.minimum(p.base_rtt_s + p.rtt_bits / level, max(p.max_rtt_s, p.base_rtt_s))
    return _trace(name, seed, p, capacity, rtt, np.full(count, p.loss))


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


def _samples(name: str, duration_s: float, dt_s: float) -> int:
    count = max(1, math.ceil(round(duration_s / dt_s, 6)))
    if count > MAX_SAMPLES:
        raise ConfigError(f"link generator {name}: {count} samples, at most {MAX_SAMPLES}; shorten it or raise dt_s")
    return count


def _trace(name: str, seed: int, parameters: Any, capacity: Array, rtt: Array, loss: Array) -> LinkTrace:
    # Whole bit/s and microseconds: the last bit of exp or log differs between processors, the trace must not.
    note = f"generated by {name}, seed {seed}, parameters {parameters.model_dump_json()}"
    dt_s = parameters.dt_s
    return LinkTrace(f"{name}-{seed}", name, dt_s, np.rint(capacity), np.round(rtt, 6), loss, None, (note,))
