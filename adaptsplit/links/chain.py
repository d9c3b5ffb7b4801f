"""A Markov chain of link states given by its matrix, and the fit of one to a trace."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adaptsplit.config import Config
from adaptsplit.errors import ConfigError
from adaptsplit.links.draws import Draws
from adaptsplit.links.generation import Fraction, Rate, RoundTrip, SampleLength, generated, sample_count
from adaptsplit.links.trace import Array, LinkTrace

MAX_STATES = 64
ROW_TOLERANCE = 1e-6  # a row written by hand with six digits passes

Probability = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(ge=0, le=3)]


class MarkovChain(Config):
    """A chain of ``n`` link states that moves once per sample.

    transition: (n, n) probabilities, row ``i`` from state ``i``; each row sums to 1, and every state reaches every
    other. levels_bps: (n,) mean capacity of each state, bit/s; 0 is an outage. variation: (n,) standard deviation of
    ln(capacity) within a state, drawn anew for every sample, mean kept; none when left out. rtt_s, loss: (n,), or one
    value for all. dt_s: length of a sample, s. source: where the figures come from.
    """

    levels_bps: tuple[Rate, ...] = Field(min_length=1, max_length=MAX_STATES)
    transition: tuple[tuple[Probability, ...], ...] = Field(min_length=1, max_length=MAX_STATES)
    variation: tuple[Spread, ...] | None = None
    rtt_s: RoundTrip | tuple[RoundTrip, ...] = 0.05
    loss: Fraction | tuple[Fraction, ...] = 0.0
    dt_s: SampleLength = 0.1
    source: str = "given by hand"

    @model_validator(mode="after")
    def _fits_together(self) -> MarkovChain:
        states = len(self.levels_bps)
        if not any(self.levels_bps):
            raise ValueError("levels_bps are all 0, so nothing would ever be delivered; give one above 0")
        if [len(row) for row in self.transition] != [states] * states:
            raise ValueError(f"transition must have {states} rows of {states} probabilities, one per level")
        for i, row in enumerate(self.transition):
            if abs(math.fsum(row) - 1) > ROW_TOLERANCE:
                raise ValueError(f"row {i} of transition sums to {math.fsum(row):g}, expected 1; mend it")
        for name, values in (("variation", self.variation), ("rtt_s", self.rtt_s), ("loss", self.loss)):
            if isinstance(values, tuple) and len(values) != states:
                raise ValueError(f"{name} has {len(values)} values, expected {states}, one per level")
        apart = _unreached(np.array(self.transition))
        if apart is not None:
            raise ValueError(f"state {apart[1]} is never reached from state {apart[0]}; leave it out or link them")
        return self

    @property
    def shares(self) -> Array:
        """(n,) stationary share of time in each state: the solution of ``pi P = pi`` with ``sum(pi) = 1``."""
        matrix = self.matrix
        system = np.vstack((matrix.T - np.eye(len(matrix)), np.ones(len(matrix))))
        target = np.append(np.zeros(len(matrix)), 1.0)
        found = np.clip(np.linalg.lstsq(system, target, rcond=None)[0], 0.0, None)
        shares: Array = found / found.sum()
        return shares

    @property
    def matrix(self) -> Array:
        """(n, n) the transition matrix, its rows scaled to sum to 1."""
        matrix = np.array(self.transition)
        scaled: Array = matrix / matrix.sum(axis=1, keepdims=True)
        return scaled

    @property
    def mean_sojourn_s(self) -> Array:
        """(n,) mean time in each state before it is left, s: ``dt / (1 - p_ii)``; infinite for a single state."""
        with np.errstate(divide="ignore"):
            sojourn: Array = self.dt_s / (1.0 - np.diag(self.matrix))
        return sojourn

    @property
    def mean_bps(self) -> float:
        """Stationary mean of the capacity, bit/s."""
        return float(self.shares @ np.array(self.levels_bps))

    def autocorrelation(self, lags: Sequence[int]) -> Array:
        """(len(lags),) stationary autocorrelation of the capacity at ``lags`` samples; ConfigError if it is constant.

        ``cov(k) = sum_ij pi_i l_i (P^k)_ij l_j - mean^2``; the variation within states adds to the variance alone.
        """
        levels, shares, matrix = np.array(self.levels_bps), self.shares, self.matrix
        within = np.expm1(np.square(self._variation)) * levels**2
        mean = float(shares @ levels)
        variance = float(shares @ (levels**2 + within)) - mean**2
        if variance <= 1e-12 * mean**2:
            raise ConfigError("the capacity of this chain is constant, it has no autocorrelation")
        covariance = [
            float((shares * levels) @ np.linalg.matrix_power(matrix, lag) @ levels) - mean**2 if lag else variance
            for lag in lags
        ]
        return np.array(covariance) / variance

    @property
    def _variation(self) -> Array:
        return np.array(self.variation or (0.0,) * len(self.levels_bps))


def fit_markov(trace: LinkTrace, states: int = 6) -> MarkovChain:
    """Fit a chain to a trace.

    Samples without capacity are one state. The others are cut at quantiles into states of about equal time, fewer
    where values repeat: a constant trace has one state. Transitions are counted from sample to sample, and from the
    last to the first, as the trace is looped; so the chain's stationary shares are exactly the trace's, and every
    state reaches every other. Within a state, ln(capacity) varies so that mean and variance are the trace's.

    A chain of first order forgets faster than recorded links do. Over six of them (five Mahimahi uplinks at 0.5 to 1 s,
    Starlink at 1 s) the autocorrelation of capacity at one sample was 0.72 to 0.93 in the recording, and lower in the
    chain by at most 0.14 with 6 states, 0.07 with 12; at five samples by at most 0.32 and 0.23.

    Args:
        trace: (H,) samples; average it first (``dt_s`` of its reader) where a sample is too short to hold a packet.
        states: how many at most, 1 to 64, the state without capacity included.

    Raises:
        ConfigError: ``states`` or the length of a sample out of range.
    """
    if not 1 <= states <= MAX_STATES:
        raise ConfigError(f"{states} states, expected 1 to {MAX_STATES}")
    state = _states_of(trace.capacity_bps, states)
    count = int(state.max()) + 1
    pairs = np.zeros((count, count))
    np.add.at(pairs, (state, np.roll(state, -1)), 1.0)
    time = pairs.sum(axis=1)
    mean = np.bincount(state, trace.capacity_bps) / time
    spread = np.bincount(state, (trace.capacity_bps - mean[state]) ** 2) / time
    ratio = np.divide(spread, mean**2, out=np.zeros(count), where=mean > 0)
    rtt = np.bincount(state, trace.rtt_s) / time
    loss = np.bincount(state, trace.loss) / time
    return MarkovChain(
        levels_bps=tuple(np.rint(mean).tolist()),
        transition=tuple(tuple(row) for row in (pairs / time[:, None]).tolist()),
        variation=tuple(np.round(np.sqrt(np.log1p(ratio)), 6).tolist()),
        rtt_s=tuple(np.round(rtt, 6).tolist()),
        loss=tuple(np.round(loss, 9).tolist()),
        dt_s=trace.dt_s,
        source=f"fitted to {trace.name}: {len(trace)} samples of {trace.dt_s:g} s",
    )


def chained(name: str, seed: int, duration_s: float, chain: MarkovChain) -> LinkTrace:
    """Return a trace of ``chain``, begun in its stationary distribution."""
    count = sample_count(name, duration_s, chain.dt_s)
    states = len(chain.levels_bps)
    state = _walk(Draws(seed, 0), count, chain)
    sigma = chain._variation[state]
    factor = np.exp(sigma * Draws(seed, 1).normal(count) - sigma**2 / 2)
    capacity = np.array(chain.levels_bps)[state] * factor
    rtt, loss = (np.broadcast_to(np.array(values), states)[state] for values in (chain.rtt_s, chain.loss))
    return generated(name, seed, chain, np.minimum(capacity, 1e12), rtt, loss)


def _walk(draws: Draws, count: int, chain: MarkovChain) -> NDArray[np.int64]:
    """(count,) the state of each sample."""
    rows = np.cumsum(chain.matrix, axis=1).tolist()
    top = len(rows) - 1
    uniform = draws.uniform(count).tolist()
    state = min(bisect_right(np.cumsum(chain.shares).tolist(), uniform[0]), top)
    states = [state]
    for draw in uniform[1:]:
        state = min(bisect_right(rows[state], draw), top)
        states.append(state)
    return np.array(states)


def _states_of(capacity: Array, states: int) -> NDArray[np.int64]:
    """(H,) the state of each sample, numbered from 0 without gaps, capacity rising with the number."""
    positive = capacity[capacity > 0]
    some_zero = positive.size < capacity.size
    parts = max(1, states - some_zero)
    cuts = np.unique(np.quantile(positive, np.arange(1, parts) / parts))
    raw = np.where(capacity > 0, 1 + np.searchsorted(cuts, capacity, side="right"), 0)
    if states == 1:
        raw = np.zeros_like(raw)
    numbered: NDArray[np.int64] = np.unique(raw, return_inverse=True)[1].astype(np.int64)
    return numbered


def _unreached(matrix: Array) -> tuple[int, int] | None:
    """A pair of states of which the second is never reached from the first, or None."""
    reach = (matrix > 0) | np.eye(len(matrix), dtype=bool)
    for _ in range(max(1, len(matrix).bit_length())):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    missing = np.argwhere(~reach)
    return (int(missing[0][0]), int(missing[0][1])) if missing.size else None
