"""What a bandit remembers of its arms: plain, discounted or windowed statistics, and what it has tried.

Letters: n rows, K arms, N outcomes, W length of the window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.bandits_arms import Arms, Floats, Ints
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes

NEVER = -(10**9)


@dataclass(frozen=True, slots=True)
class Memory:
    """How old rewards lose their weight: by ``discount`` per outcome of the row (1: never), or after ``window``
    outcomes (0: never). ConfigError for both at once or numbers outside their range.
    """

    discount: float = 1.0
    window: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.discount <= 1.0:
            raise ConfigError(f"discount={self.discount:g}: expected a number in (0, 1], such as discount=0.99")
        if self.window < 0 or (self.window and self.discount < 1.0):
            raise ConfigError(
                f"window={self.window}, discount={self.discount:g}: expected a window of at least 0 outcomes, and not "
                "both ways of forgetting; leave one out"
            )


@dataclass(frozen=True, slots=True)
class Ring:
    """The last W outcomes of each row: ``arm`` (n, W), -1 for none, ``reward`` (n, W); ``at`` (n,) put in so far."""

    arm: Ints
    reward: Floats
    at: Ints

    def copy(self) -> Ring:
        """Return a copy with arrays of its own."""
        return Ring(self.arm.copy(), self.reward.copy(), self.at.copy())


@dataclass(frozen=True, slots=True)
class ArmState:
    """A bandit's state: ``statistics`` (3, n, K), its counts, sums and squares of rewards, and the window's ``ring``.

    ``tried`` (n, K) is the decision at which each arm was last chosen, out of ``decisions`` so far; ``last`` (n,) the
    arm chosen since the last call of ``learn``, -1 for none.
    """

    statistics: Floats
    tried: Ints
    decisions: int
    last: Ints
    ring: Ring

    @property
    def counts(self) -> Floats:
        """(n, K) plays, after forgetting."""
        return np.asarray(self.statistics[0])

    @property
    def sums(self) -> Floats:
        """(n, K) sums of rewards, after forgetting."""
        return np.asarray(self.statistics[1])


def start(n: int, arms: int, memory: Memory, warm: float = 0.0, prior: Floats | None = None) -> ArmState:
    """Return the state of n rows; ``warm`` pseudo-plays of each arm have paid its ``prior`` (K,), if given.

    They count as Bernoulli plays, whose variance is the largest that a mean allows.
    """
    weight = warm if prior is not None else 0.0
    mean = np.zeros(arms) if prior is None else prior
    pseudo = np.stack([np.full(arms, weight), weight * mean, weight * mean])
    never = np.full((n, arms), NEVER, dtype=np.int64)
    none = np.full(n, -1, dtype=np.int64)
    empty = np.full((n, memory.window), -1, dtype=np.int64)
    ring = Ring(empty, np.zeros((n, memory.window)), np.zeros(n, dtype=np.int64))
    return ArmState(np.repeat(pseudo[:, None], n, axis=1), never, 0, none, ring)


def decided(state: ArmState, arm: Ints) -> ArmState:
    """Return the state after each row has chosen its ``arm`` (n,)."""
    tried = state.tried.copy()
    tried[np.arange(len(arm)), arm] = state.decisions
    return replace(state, tried=tried, decisions=state.decisions + 1, last=arm)


def credited(arms: Arms, outcomes: Outcomes, last: Ints) -> Ints:
    """Return the (N,) arm that each outcome is due to, -1 where it is none of ours.

    A dropped frame is due to the decision that kept the device busy: the row's last one. Without this rule the slowest
    branch would look best, for only its answered frames would count.
    """
    arm = arms.of(outcomes)
    return np.where(outcomes["branch"] < 0, last[outcomes["env"]], arm)


def ordinals(rows: NDArray[np.integer]) -> Ints:
    """Return (N,) how many earlier entries name the same row."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.searchsorted(ordered, ordered, side="left")
    out = np.empty(len(rows), dtype=np.int64)
    out[order] = np.arange(len(rows)) - first
    return out


def remember(state: ArmState, memory: Memory, rows: Ints, arm: Ints, reward: Floats) -> ArmState:
    """Return the state after N rewards of arms of rows, in their order, and without a last arm.

    A NaN reward is passed over.
    """
    use = ~np.isnan(reward)
    rows, arm, reward = rows[use], arm[use], reward[use]
    statistics, ring = state.statistics.copy(), state.ring.copy()
    forgets = memory.window > 0 or memory.discount < 1.0
    turn = ordinals(rows) if forgets else np.zeros(len(rows), dtype=np.int64)
    for k in range(int(turn.max(initial=-1)) + 1):
        now = turn == k
        if memory.discount < 1.0:
            statistics[:, rows[now]] *= memory.discount
        if memory.window:
            _slide(statistics, ring, rows[now], arm[now], reward[now])
        _add(statistics, rows[now], arm[now], reward[now], 1.0)
    return replace(state, statistics=statistics, last=np.full(len(state.last), -1, dtype=np.int64), ring=ring)


def _add(statistics: Floats, rows: Ints, arm: Ints, reward: Floats, sign: float) -> None:
    for part, value in zip(statistics, (np.ones_like(reward), reward, reward * reward), strict=True):
        np.add.at(part, (rows, arm), sign * value)


def _slide(statistics: Floats, ring: Ring, rows: Ints, arm: Ints, reward: Floats) -> None:
    """Put one outcome of each row into the window and take out of the statistics what leaves it; all in place."""
    place = ring.at[rows] % ring.arm.shape[1]
    old, paid = ring.arm[rows, place], ring.reward[rows, place]
    leaves = old >= 0
    _add(statistics, rows[leaves], old[leaves], paid[leaves], -1.0)
    ring.arm[rows, place], ring.reward[rows, place] = arm, reward
    ring.at[rows] += 1
