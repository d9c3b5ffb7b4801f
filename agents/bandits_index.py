"""Index policies: from the statistics of each arm to the number by which the next arm is chosen.

All take (n, K) arrays of a row's arms: ``counts`` (plays, discounted or of a window where so configured), ``sums`` and
``squares`` of rewards in 0..1. The time t is the row's sum of counts. Only arms with a positive count are meaningful;
the caller plays the others first. ``explore`` multiplies ln t; 1 is the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.bandits_beta import beta_quantile

Floats = NDArray[np.float64]

UCB_V_ZETA = 1.2  # Audibert, Munos, Szepesvari 2009: their bound below is for these
UCB_V_C = 1.0
KL_STEPS = 24  # halvings of the interval: the index is exact to 2^-24


@dataclass(frozen=True, slots=True)
class Counts:
    """Statistics of the arms, (n, K) each, with empty arms guarded: ``counts`` is at least 1e-9.

    ``time`` is t where it is not the sum of counts (side observations count more than once a frame).
    """

    counts: Floats
    sums: Floats
    squares: Floats
    explore: float = 1.0
    time: float | None = None

    @property
    def mean(self) -> Floats:
        """(n, K) mean reward, in 0..1."""
        return np.asarray(np.clip(self.sums / self.counts, 0.0, 1.0))

    @property
    def variance(self) -> Floats:
        """(n, K) variance of the rewards."""
        return np.asarray(np.maximum(self.squares / self.counts - (self.sums / self.counts) ** 2, 0.0))

    @property
    def log_t(self) -> Floats:
        """(n, 1) ``explore`` ln t, at least 0."""
        total = (
            self.counts.sum(axis=1, keepdims=True) if self.time is None else np.full((len(self.counts), 1), self.time)
        )
        return np.asarray(self.explore * np.log(np.maximum(total, 1.0)))


Index = Callable[[Counts], Floats]


def ucb1(x: Counts) -> Floats:
    """Return mean + sqrt(2 ln t / s): UCB1 (Auer, Cesa-Bianchi, Fischer 2002, figure 1).

    Regret at most ``8 sum ln(n) / gap + (1 + pi^2 / 3) sum gap`` (their theorem 1). With a discount it is D-UCB, with a
    window SW-UCB (Garivier, Moulines 2011; B = 1, xi = 1/2).
    """
    return np.asarray(x.mean + np.sqrt(2.0 * x.log_t / x.counts))


def ucb_tuned(x: Counts) -> Floats:
    """Return mean + sqrt(ln t / s min(1/4, V + sqrt(2 ln t / s))): UCB1-Tuned (the same paper, section 4; no bound)."""
    width = x.log_t / x.counts
    bound = x.variance + np.sqrt(2.0 * width)
    return np.asarray(x.mean + np.sqrt(width * np.minimum(0.25, bound)))


def ucb_v(x: Counts) -> Floats:
    """Return mean + sqrt(2 V e / s) + 3 c e / s with e = zeta ln t: UCB-V (Audibert, Munos, Szepesvari 2009, eq. 1).

    Regret at most ``10 sum (variance / gap + 2) ln n`` for zeta = 1.2, c = 1 and rewards in 0..1.
    """
    width = UCB_V_ZETA * x.log_t / x.counts
    return np.asarray(x.mean + np.sqrt(2.0 * x.variance * width) + 3.0 * UCB_V_C * width)


def kl_ucb(x: Counts) -> Floats:
    """Return the largest q in 0..1 with ``s d(mean, q) <= ln t``: KL-UCB (Garivier, Cappe 2011, algorithm 1, c = 0).

    d is the Bernoulli divergence. Its regret is asymptotically ``sum gap / d(mean, best) ln n`` (their theorem 1), the
    lower bound of Lai and Robbins for Bernoulli rewards; bounded rewards keep the bound.
    """
    p, budget = np.clip(x.mean, 1e-12, 1.0 - 1e-12), x.log_t / x.counts
    # d(p, q) = entropy - p ln q - (1 - p) ln(1 - q): only the last two terms change with q.
    target = budget - (p * np.log(p) + (1.0 - p) * np.log1p(-p))
    low, high = p, np.ones_like(p)
    for _ in range(KL_STEPS):
        q = 0.5 * (low + high)
        inside = -p * np.log(q) - (1.0 - p) * np.log(np.maximum(1.0 - q, 1e-300)) <= target
        low, high = np.where(inside, q, low), np.where(inside, high, q)
    return np.asarray(low)


def bayes_ucb(x: Counts) -> Floats:
    """Return the quantile 1 - 1/t of the posterior Beta(1 + S, 1 + s - S): Bayes-UCB (Kaufmann, Cappe, Garivier 2012).

    A uniform prior and c = 0, as they use in their experiments (their theorem 1 has c >= 5). S is the sum of rewards;
    a reward between 0 and 1 counts as that share of a success.
    """
    successes = np.clip(x.sums, 0.0, x.counts)
    level = 1.0 - np.exp(-np.maximum(x.log_t, np.log(2.0)))
    level = np.broadcast_to(np.minimum(level, 1.0 - 1e-9), x.sums.shape)
    return beta_quantile(level, 1.0 + successes, 1.0 + x.counts - successes)


def splitee(x: Counts) -> Floats:
    """Return mean + sqrt(ln t / s): the index of SplitEE (Bajpai, Trivedi, Yadav, Hanawal 2023) with its constant 1."""
    return np.asarray(x.sums / x.counts + np.sqrt(x.log_t / x.counts))
