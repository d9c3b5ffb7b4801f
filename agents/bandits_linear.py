"""Contextual linear Thompson sampling: one linear model of the reward over features of observation and decision.

After Agrawal, Goyal: "Thompson Sampling for Contextual Bandits with Linear Payoffs", ICML 2013: with B = I + sum x x'
and mu = B^-1 sum x r, draw theta from N(mu, v^2 B^-1) and play argmax x' theta. Regret O(d^1.5 sqrt(T)) up to
logarithms for v = R sqrt(9 d ln(T / delta)) (their theorem 1); a practical v is far smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.bandits_arms import DEFAULT_ARMS, Arms, Floats, Ints, Paid, Reward, arms_named, reward_for
from adaptsplit.agents.bandits_memory import ordinals
from adaptsplit.agents.base import ControllerContext, Kind, full_name, need_summary, parse_parameters
from adaptsplit.agents.prediction import DecisionModel
from adaptsplit.controller import Controller, Decisions, Observations, controllers
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

RING = 32  # decisions remembered until their outcome comes: 3 s at 10 frames/s
DEFAULT_V = 0.1  # spread of the draw: about the spread of a frame's confidence (assumed)
DEFAULT_TRUST = 1.0  # the I of B = I + sum x x': how many plays the prior is worth

Features = Callable[[Observations], Floats]


class DecisionFeatures:
    """Features (n, K, 8) of an observation and an arm, each about 0..1.

    1, the profile's prediction of the reward (``DecisionModel``), the share s of frames that is sent, s times the
    goodput, s times the backlog, (1 - s) times the mean exit confidence, s times the payload, 1 for ``local``.
    """

    SIZE = 8
    PREDICTION = 1

    def __init__(self, model: DecisionModel, arms: Arms, reward: Reward) -> None:
        self._model, self._rows, self._reward = model, arms.rows, reward
        pair_of = np.array([_pair_of(model, row) for row in arms.decisions])
        sends = 1.0 - model.exit_ratio[arms.rows]
        payload = model.wire_bytes[pair_of] / max(float(model.wire_bytes.max()), 1.0)
        local = [arms.space.branches[b].kind == "local" for b in arms.decisions[:, 0]]
        self._sends, self._payload, self._local = sends, sends * payload, np.array(local, dtype=np.float64)
        self._columns = [obs.index(name) for name in ("goodput", "backlog", "exit_confidence_mean")]

    def __call__(self, observation: Observations) -> Floats:
        """Return (n, K, 8)."""
        expected = self._model.expected(observation)[:, self._rows]
        span = self._reward.high - self._reward.low
        goodput, backlog, confidence = (observation[:, i, None].astype(np.float64) for i in self._columns)
        ones = np.ones_like(expected)
        parts = [ones, (expected - self._reward.low) / span, ones * self._sends, goodput * self._sends]
        parts += [backlog * self._sends, confidence * (1.0 - self._sends), ones * self._payload, ones * self._local]
        return np.stack(parts, axis=2)


def _pair_of(model: DecisionModel, decision: Ints) -> int:
    return int(np.flatnonzero((model.pairs == decision[:2]).all(axis=1))[0])


@dataclass(frozen=True, slots=True)
class LinearState:
    """``gram`` (n, d, d) is B and ``moment`` (n, d) the sum of x times (reward - prediction of the prior).

    ``waiting_arm`` (n, 32), ``waiting_x`` (n, 32, d) and ``waiting_at`` (n, 32) are decisions without outcome: arm (-1:
    free place), features, number of the decision. ``fresh`` says whether one was made since the last ``learn``.
    """

    gram: Floats
    moment: Floats
    waiting_arm: Ints
    waiting_x: Floats
    waiting_at: Ints
    decisions: int
    fresh: bool
    rng: np.random.Generator


class LinearThompson:
    """Thompson sampling over linear rewards; each row learns for itself, from outcomes that come late.

    An outcome belongs to the oldest waiting decision for the same arm. With two of one arm in flight that finish out of
    order, their contexts change places: they are frames apart. A dropped frame is one more outcome of the last
    decision.
    """

    kind: Kind = "rule"
    learns = True

    def __init__(
        self,
        name: str,
        arms: Arms,
        features: Features,
        reward: Paid,
        prior: Floats,
        *,
        v: float = DEFAULT_V,
        trust: float = DEFAULT_TRUST,
        discount: float = 1.0,
    ) -> None:
        if not v >= 0.0 or not trust > 0.0 or not 0.0 < discount <= 1.0:
            raise ConfigError(
                f"controller {name!r}: v={v:g}, trust={trust:g}, discount={discount:g}; expected v at least 0, trust "
                "above 0, discount in (0, 1]"
            )
        self.name, self.arms, self.features, self.reward = name, arms, features, reward
        self.prior, self.v, self.trust, self.discount = prior, v, trust, discount

    def init(self, n: int, rng: np.random.Generator) -> LinearState:
        """Return the prior of n rows; the draws come from ``rng``."""
        d = len(self.prior)
        gram = np.tile(self.trust * np.eye(d), (n, 1, 1))
        free = np.full((n, RING), -1, dtype=np.int64)
        x = np.zeros((n, RING, d))
        return LinearState(gram, np.zeros((n, d)), free, x, free.copy(), 0, False, rng)

    def mean(self, state: LinearState) -> Floats:
        """Return (n, d), the mean of theta."""
        return np.asarray(self.prior + np.linalg.solve(state.gram, state.moment[:, :, None])[:, :, 0])

    def act(self, observation: Observations, state: LinearState) -> tuple[Decisions, LinearState]:
        """Draw theta and return the (n, 3) decisions of the largest predicted reward; the generator moves on."""
        x = self.features(observation)
        root = np.linalg.cholesky(state.gram)
        draw = state.rng.standard_normal(state.moment.shape)
        spread = np.linalg.solve(np.swapaxes(root, 1, 2), draw[:, :, None])[:, :, 0]
        theta = self.mean(state) + self.v * spread
        arm = np.einsum("nkd,nd->nk", x, theta).argmax(axis=1)
        return self.arms.decisions[arm], self._wait(state, arm, x[np.arange(len(arm)), arm])

    def _wait(self, state: LinearState, arm: Ints, x: Floats) -> LinearState:
        """Remember the decision of each row in the place of the oldest."""
        place = state.decisions % RING
        arms, xs, at = state.waiting_arm.copy(), state.waiting_x.copy(), state.waiting_at.copy()
        arms[:, place], xs[:, place], at[:, place] = arm, x, state.decisions
        waiting = replace(state, waiting_arm=arms, waiting_x=xs, waiting_at=at)
        return replace(waiting, decisions=state.decisions + 1, fresh=True)

    def learn(self, outcomes: Outcomes, state: LinearState) -> LinearState:
        """Take N outcomes; those of no waiting decision are passed over."""
        reward, arm = self.reward(outcomes), self.arms.of(outcomes)
        rows, dropped = outcomes["env"].astype(np.int64), outcomes["branch"] < 0
        use = ~np.isnan(reward) & ((arm >= 0) | (dropped & state.fresh))
        rows, arm, reward, dropped = rows[use], arm[use], reward[use], dropped[use]
        gram, moment, waiting = state.gram.copy(), state.moment.copy(), state.waiting_arm.copy()
        turn = ordinals(rows)
        for k in range(int(turn.max(initial=-1)) + 1):
            now = np.flatnonzero(turn == k)
            x, found = self._context(state, waiting, rows[now], arm[now], dropped[now])
            self._update(gram, moment, rows[now][found], x[found], reward[now][found])
        return replace(state, gram=gram, moment=moment, waiting_arm=waiting, fresh=False)

    def _context(
        self, state: LinearState, waiting: Ints, rows: Ints, arm: Ints, dropped: NDArray[np.bool_]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """(N, d) features of the decision behind each outcome, and whether there is one; it waits no more."""
        match = waiting[rows] == arm[:, None]
        oldest = np.where(match, state.waiting_at[rows], np.iinfo(np.int64).max).argmin(axis=1)
        place = np.where(dropped, (state.decisions - 1) % RING, oldest)
        found = match.any(axis=1) & ~dropped
        waiting[rows[found], place[found]] = -1
        return state.waiting_x[rows, place], found | dropped

    def _update(self, gram: Floats, moment: Floats, rows: Ints, x: Floats, reward: Floats) -> None:
        """Add one outcome to each row, in place; with a discount B returns to the prior's as the old is forgotten."""
        if self.discount < 1.0:
            gram[rows] = self.discount * gram[rows] + (1.0 - self.discount) * self.trust * np.eye(x.shape[1])
            moment[rows] *= self.discount
        gram[rows] += x[:, :, None] * x[:, None, :]
        moment[rows] += x * (reward - x @ self.prior)[:, None]


@controllers.register("linear-ts")
def _linear_ts(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    known = {"arms": str, "reward": str, "v": float, "trust": float, "discount": float, "prior": str}
    given = parse_parameters("linear-ts", argument, known)
    model = DecisionModel(space, need_summary("linear-ts", summary), context)
    default = str(min(DEFAULT_ARMS, len(space.table))) if len(space.table) > 1 else "all"
    arms = arms_named("linear-ts", given.pop("arms", default), space, summary, context)
    reward = reward_for(context, given.pop("reward", "confidence"))
    prior = np.zeros(DecisionFeatures.SIZE)
    named = given.pop("prior", "none")
    if named not in ("none", "profile"):
        raise ConfigError(f"controller 'linear-ts': prior={named!r}; expected 'none' or 'profile'")
    prior[DecisionFeatures.PREDICTION] = float(named == "profile")
    features = DecisionFeatures(model, arms, reward)
    return LinearThompson(full_name("linear-ts", argument), arms, features, reward, prior, **given)
