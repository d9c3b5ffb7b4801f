"""Bandits over decisions: UCB1, UCB1-Tuned, UCB-V, KL-UCB and Bayes-UCB; each row learns for itself.

Common parameters (``kl-ucb:arms=all/window=100``): ``arms`` (a number, 12 by default: a covering sub-grid of the
decision table; or ``all``), ``reward`` (``confidence``, the default, or ``label``), ``discount`` or ``window`` to
forget, ``warm`` (pseudo-plays of the profile summary's prediction, 0 by default), ``explore`` (factor on ln t).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptsplit.agents.bandits_arms import DEFAULT_ARMS, Arms, Floats, Ints, Paid, arms_named, reward_for
from adaptsplit.agents.bandits_index import Counts, Index, bayes_ucb, kl_ucb, ucb1, ucb_tuned, ucb_v
from adaptsplit.agents.bandits_memory import ArmState, Memory, credited, decided, remember, start
from adaptsplit.agents.base import ControllerContext, Factory, Kind, full_name, need_summary, parse_parameters
from adaptsplit.agents.prediction import DecisionModel, nominal_observation
from adaptsplit.controller import Controller, Decisions, Observations, controllers
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

WAIT_DECISIONS = 20  # then an outcome counts as lost (the frame was never decided, or another controller took it)
PARAMETERS: Mapping[str, type] = {
    "arms": str,
    "reward": str,
    "discount": float,
    "window": int,
    "warm": float,
    "explore": float,
}


class IndexBandit:
    """Plays the arm of the largest index; learns from outcomes, which come late and in any order.

    An arm that was never tried goes first; one that was tried and has no outcome yet waits for it (for 20 decisions at
    most), so that a delay does not repeat it. The index uses the outcomes that have come (Joulani, Gyorgy, Szepesvari
    2013: a delay then adds a constant to the regret). A dropped frame is one more outcome of the row's last decision.
    """

    kind: Kind = "rule"
    learns = True

    def __init__(
        self,
        name: str,
        arms: Arms,
        index: Index,
        reward: Paid,
        *,
        memory: Memory | None = None,
        explore: float = 1.0,
        warm: float = 0.0,
        prior: Floats | None = None,
    ) -> None:
        if not explore > 0.0 or not warm >= 0.0:
            found = f"explore={explore:g}, warm={warm:g}"
            raise ConfigError(f"controller {name!r}: {found}; expected explore above 0 and warm at least 0")
        self.name, self.arms, self.index, self.reward = name, arms, index, reward
        self.memory = memory or Memory()
        self.explore, self.warm, self.prior = explore, warm, prior

    def init(self, n: int, rng: np.random.Generator) -> ArmState:
        """Return empty statistics (or the warm start's); ``rng`` is not used."""
        return start(n, len(self.arms), self.memory, self.warm, self.prior)

    def indices(self, state: ArmState) -> Floats:
        """Return (n, K) by which the next arm is chosen: +inf for an untried arm, very low for one that waits."""
        seen = state.counts > 1e-9
        time = self.time(state)
        counts = Counts(np.maximum(state.counts, 1e-9), state.sums, state.statistics[2], self.explore, time)
        age = state.decisions - state.tried
        untried = np.where(age < WAIT_DECISIONS, -1e9 + age, np.inf)
        return np.where(seen, self.index(counts), untried)

    def time(self, state: ArmState) -> float | None:
        """Return t; None for the sum of the row's counts, which forgets as they do."""
        return None

    def act(self, observation: Observations, state: ArmState) -> tuple[Decisions, ArmState]:
        """Return the (n, 3) decisions of the largest index; the first arm among equals."""
        arm = self.indices(state).argmax(axis=1)
        return self.arms.decisions[arm], decided(state, arm)

    def learn(self, outcomes: Outcomes, state: ArmState) -> ArmState:
        """Take N outcomes; those of decisions that are no arm are passed over."""
        arm = credited(self.arms, outcomes, state.last)
        ours = arm >= 0
        records, arm = outcomes[ours], arm[ours]
        rows = records["env"].astype(np.int64)
        return remember(state, self.memory, *self.lessons(records, rows, arm))

    def lessons(self, records: Outcomes, rows: Ints, arm: Ints) -> tuple[Ints, Ints, Floats]:
        """Return (rows, arms, rewards) that the records teach: each its own arm's reward."""
        return rows, arm, self.reward(records)


def learn_from_log(bandit: IndexBandit, outcomes: Outcomes) -> ArmState:
    """Return the state (n = 1) after the N records of one device's log, in the order of frames, whoever decided them.

    Each dropped frame is due to the decided frame before it. No label is needed. The log of a controller that looks at
    the link is biased: it sent when the link was good, and so the mean of what it sent is that of good links.
    """
    records = np.sort(outcomes, order="frame")
    records["env"] = 0
    state = bandit.init(1, np.random.default_rng(0))
    firsts = np.flatnonzero(records["branch"] >= 0)
    for piece in np.split(records, firsts)[1:]:
        arm = bandit.arms.of(piece[:1])
        if arm[0] >= 0:
            state = bandit.learn(piece, decided(state, arm))
    return state


def index_bandit(
    name: str,
    index: Index,
    space: DecisionSpace,
    summary: ProfileSummary | None,
    context: ControllerContext,
    argument: str,
) -> IndexBandit:
    """Build an index bandit from its parameters (see the module); ConfigError says which one cannot be used."""
    given: dict[str, Any] = parse_parameters(name, argument, PARAMETERS)
    arms = arms_named(name, given.get("arms", _default_arms(space, summary)), space, summary, context)
    reward = reward_for(context, given.get("reward", "confidence"))
    warm, prior = given.get("warm", 0.0), None
    if warm:
        model = DecisionModel(space, need_summary(name, summary), context)
        prior = reward.scaled(model.expected(nominal_observation(context))[0, arms.rows])
    memory = Memory(given.get("discount", 1.0), given.get("window", 0))
    explore = given.get("explore", 1.0)
    full = full_name(name, argument)
    return IndexBandit(full, arms, index, reward, memory=memory, explore=explore, warm=warm, prior=prior)


def _default_arms(space: DecisionSpace, summary: ProfileSummary | None) -> str:
    """A sub-grid where there is a summary to choose it by and the table is larger; else the whole table."""
    return "all" if summary is None or len(space.table) <= DEFAULT_ARMS else str(DEFAULT_ARMS)


def _factory(name: str, index: Index) -> Factory:
    def build(
        space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
    ) -> Controller:
        return index_bandit(name, index, space, summary, context, argument)

    return build


INDICES: Mapping[str, Index] = {
    "ucb1": ucb1,
    "ucb-tuned": ucb_tuned,
    "ucb-v": ucb_v,
    "kl-ucb": kl_ucb,
    "bayes-ucb": bayes_ucb,
}
for _name, _index in INDICES.items():
    controllers.register(_name)(_factory(_name, _index))
