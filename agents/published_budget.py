"""Long-run budgets: Lyapunov drift-plus-penalty for the average energy or latency of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptsplit.agents.base import Kind
from adaptsplit.agents.prediction import DecisionModel, nominal_observation
from adaptsplit.agents.published_base import Floats, Plans, Setting, nominal_link, published, read_link
from adaptsplit.agents.published_parameters import Number
from adaptsplit.controller import Controller, Decisions, Observations
from adaptsplit.outcome import Outcomes, Path


@dataclass(frozen=True, slots=True)
class BudgetState:
    """The virtual queue of each row (n,), in budgets: what was spent beyond the budget so far."""

    debt: Floats


class DriftPlusPenalty:
    """Best expected reward whose average energy (or latency) per frame stays within a budget.

    Neely, "Stochastic Network Optimization with Application to Communication and Queueing Systems", 2010, chapter 4:
    a virtual queue Z <- max(Z + x - budget, 0) per frame, and at each frame the decision of the greatest
    V reward - Z x. Whatever happens, the average spent over T frames is at most budget + Z(T) / T; the reward is within
    O(1 / V) of the best under the budget, and Z grows with O(V). Z counts what was really spent, as each frame's
    outcome becomes known; x in the choice is predicted. Z and x are in units of the budget, V per frame.

    A frame that was missed counts with the deadline as its latency. The reward is the scenario's objective.
    """

    learns = True
    kind: Kind = "rule"

    def __init__(
        self, model: DecisionModel, plans: Plans, budget: float, *, limit: str, v: float, name: str = "lyapunov"
    ) -> None:
        """``plans`` is the whole table; ``budget`` J or s per frame, by ``limit`` (``energy`` or ``latency``)."""
        self.name, self.model, self.plans, self.budget, self.limit, self.v = name, model, plans, budget, limit, v

    def init(self, n: int, rng: np.random.Generator) -> BudgetState:
        """Start without debt."""
        return BudgetState(np.zeros(n))

    def act(self, observation: Observations, state: BudgetState) -> tuple[Decisions, BudgetState]:
        """Map (n, D) observations to the (n, 3) decisions of the greatest V reward - Z x."""
        link = read_link(observation)
        spends = self.plans.energy(link) if self.limit == "energy" else self._latency(self.plans.mean_latency(link))
        score = self.v * self.model.expected(observation) - state.debt[:, None] * spends / self.budget
        return self.plans.decisions[score.argmax(axis=1)], state

    def _latency(self, latency: Floats) -> Floats:
        """Bound a predicted latency by the deadline: the exit answers then."""
        return np.minimum(latency, self.plans.context.deadline_s)

    def learn(self, outcomes: Outcomes, state: BudgetState) -> BudgetState:
        """Add what the frames of these outcomes have spent to the virtual queues."""
        debt = state.debt.copy()
        if self.limit == "energy":
            spent = outcomes["compute_j"].astype(np.float64) + outcomes["radio_j"]
        else:
            missed = outcomes["path"] == Path.MISS
            spent = np.where(missed, self.plans.context.deadline_s, outcomes["answer_latency_s"].astype(np.float64))
        for row, value in zip(outcomes["env"].tolist(), spent.tolist(), strict=True):
            debt[row] = max(debt[row] + value / self.budget - 1.0, 0.0)
        return BudgetState(debt)


@published(
    "lyapunov",
    {
        "limit": ("energy", "latency"),
        "budget": Number(0.0, 0.0, 1e3),
        "share": Number(0.5, 0.01, 1.0),
        "v": Number(10.0, 1e-3, 1e6),
    },
)
def _lyapunov(setting: Setting) -> Controller:
    parameters = setting.parameters
    limit = parameters.text("limit")
    budget = parameters.number("budget") or default_budget(setting, limit, parameters.number("share"))
    v = parameters.number("v")
    return DriftPlusPenalty(setting.model, setting.plans, budget, limit=limit, v=v, name=setting.name)


def default_budget(setting: Setting, limit: str, share: float) -> float:
    """Return a budget that can be kept, J or s per frame.

    It lies at ``share`` of the way from what the thriftiest decision spends to what that of the best expected reward
    does, both at the priors.
    """
    best = int(setting.model.expected(nominal_observation(setting.context))[0].argmax())
    link = nominal_link(setting.context, np.array([setting.context.goodput_bps]))
    spends = setting.plans.energy(link) if limit == "energy" else setting.plans.mean_latency(link)
    least = float(spends[0].min())
    return max(least + share * (float(spends[0, best]) - least), 1e-6)
