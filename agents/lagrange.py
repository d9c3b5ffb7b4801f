"""Constrained training: most quality subject to budgets, by Lagrange multipliers; see ``adaptsplit.agents.budgets``.

After every rollout the costs of the frames that were settled in it move the multipliers, which become prices in the
simulator. The policy that is kept is the best one on validation among those that keep every budget there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from adaptsplit.agents.budgets import Budgets, DualParameters, Multipliers
from adaptsplit.agents.frontier import Panel, prices, term_means
from adaptsplit.agents.hyperparameters import Parameters, actions_of
from adaptsplit.agents.randomise import edited
from adaptsplit.agents.validation import ValidationPoint, Validator
from adaptsplit.config import parse
from adaptsplit.controller import Controller
from adaptsplit.decision import DecisionSpace
from adaptsplit.envs.mixture import MixtureVecEnv, Part
from adaptsplit.errors import ConfigError
from adaptsplit.objective import Objective
from adaptsplit.scenario import Scenario

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from adaptsplit.agents.training import TrainResult

Array = NDArray[Any]
BUDGETS_FILE = "budgets.json"
INFEASIBLE = 10.0  # below what any policy that keeps its budgets can score: rewards per frame are of order 1
UPDATE_FRAMES = 4096
TRAIN_EPISODES, EPISODES = 32, 128


class LagrangeCallback(BaseCallback):
    """Moves the multipliers by what the training environment's frames have cost, and writes them into its prices.

    The environment (every row of it) offers ``take_outcomes()`` and ``reweight(objective)``, as ``MixtureVecEnv`` does.
    ``gap`` (C,), relative excess, is added to what was measured: how much more the deterministic policy costs than
    the exploring one that earns the experience. Scalars ``lagrange/*`` go to the logger.
    """

    def __init__(self, budgets: Budgets, base: Objective, dual: DualParameters | None = None) -> None:
        super().__init__()
        self.budgets, self.base = budgets, base
        self.multipliers = Multipliers(len(budgets.names), dual or DualParameters())
        self.gap: Array = np.zeros(len(budgets.names))
        self.measured: Array = np.zeros(len(budgets.names))
        self._sum, self._count = np.zeros(6), 0

    def _on_training_start(self) -> None:
        self._reprice()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        outcomes = self.training_env.env_method("take_outcomes", indices=[0])[0]
        if len(outcomes):
            self._sum += term_means(outcomes) * len(outcomes)
            self._count += len(outcomes)
        if self._count >= UPDATE_FRAMES:
            self.measured = self.budgets.excess(self._sum / self._count)
            self.multipliers.update(self.measured + self.gap)
            self._sum, self._count = np.zeros(6), 0
            self._reprice()

    def _reprice(self) -> None:
        self.training_env.env_method("reweight", self.objective, indices=[0])
        for i, name in enumerate(self.budgets.names):
            self.logger.record(f"lagrange/{name}/multiplier", float(self.multipliers.value[i]))
            self.logger.record(f"lagrange/{name}/excess", float(self.measured[i]))

    @property
    def objective(self) -> Objective:
        """The objective that is paid now: the base and the multipliers as prices."""
        return self.budgets.objective(self.base, self.multipliers.value)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the kept policy stands to its budgets on validation: mean ``terms`` (6,) and the multipliers at that time."""

    kept: bool
    terms: tuple[float, ...]
    multipliers: tuple[float, ...]
    message: str


class ConstrainedTraining:
    """What ``train`` needs beside its own: environment, callback, validation; ``hooks`` collects it.

    ``base``: the objective to be maximised under the budgets (None: quality alone). ConfigError for a budget below what
    any static decision costs on the train split: no price can bring a policy there.
    """

    def __init__(
        self,
        scenario: Scenario,
        budgets: Budgets,
        base: Objective | None = None,
        dual: DualParameters | None = None,
        episodes: int = EPISODES,
    ) -> None:
        self.budgets, self.base = budgets, base or parse(Objective, {}, "objective")
        self.scenario = edited(scenario, {"objective": self.base})
        self._train = Panel([self.scenario], TRAIN_EPISODES, split="train")
        check_budgets(budgets, self._train.grid()[0], self.scenario.space)
        self._validation = Panel([self.scenario], episodes)
        self._validator = Validator(self.scenario, episodes)
        self.callback = LagrangeCallback(budgets, self.base, dual)
        self.verdict: Verdict | None = None
        self._score = -np.inf

    def env(self, scenario: Scenario, parameters: Parameters, seed: int) -> VecEnv:
        """Return the training environment, which keeps its outcomes and can be paid by other prices."""
        actions = actions_of(parameters)
        part = (Part(self.scenario),)
        return MixtureVecEnv(part, parameters.envs, seed, actions, centred=True, keep_outcomes=True)

    def validate(self, controller: Controller, steps: int = 0) -> ValidationPoint:
        """Score a policy: its base reward when it keeps the budgets, else ``-INFEASIBLE`` and less by the excess."""
        self._measure_gap(controller)
        terms = self._validation.terms(controller)[0]
        excess, kept = self.budgets.excess(terms), self.budgets.kept(terms)
        score = float(terms @ prices(self.base)) if kept else -INFEASIBLE - float(np.maximum(excess, 0.0).sum())
        if score > self._score:
            self._score = score
            self.verdict = Verdict(
                kept,
                tuple(float(x) for x in terms),
                tuple(float(x) for x in self.callback.multipliers.value),
                self._message(kept, terms),
            )
        return replace(self._validator(controller, steps), reward=score)

    def _measure_gap(self, controller: Controller) -> None:
        """How much more than the exploring policy the deterministic one costs, on the train split."""
        excess = self.budgets.excess(self._train.terms(controller)[0])
        if self.callback.measured.any():
            self.callback.gap = 0.5 * self.callback.gap + 0.5 * (excess - self.callback.measured)

    def _message(self, kept: bool, terms: Array) -> str:
        found = self.budgets.describe(terms)
        if kept:
            return f"budgets kept on validation: {found}"
        pairs = zip(self.budgets.names, self.budgets.excess(terms), strict=True)
        worst = [name for name, excess in pairs if excess > self.budgets.tolerance]
        return (
            f"infeasible: no policy that was met keeps {' and '.join(worst)} on validation; the nearest: {found}; "
            "raise these budgets, or train longer"
        )

    def hooks(self) -> Any:
        """Return the ``Hooks`` of ``adaptsplit.agents.training.train``."""
        from adaptsplit.agents.training import Hooks

        return Hooks(env=self.env, callbacks=(self.callback,), validate=self.validate)


def check_budgets(budgets: Budgets, grid: Array, space: DecisionSpace) -> None:
    """Refuse a budget that every static decision exceeds; ``grid`` (K, 6) are their mean terms.

    A policy chooses among these decisions frame by frame: where the cheapest of all exceeds a budget, mixing in
    dearer ones does not help. ConfigError names the budget, the least cost and the decision that has it.
    """
    costs = budgets.costs(grid)
    for i, name in enumerate(budgets.names):
        least, bound = int(costs[:, i].argmin()), float(budgets.bounds[i])
        if costs[least, i] > bound * (1 + budgets.tolerance):
            raise ConfigError(
                f"infeasible budget {name}={bound:g}: the least that any decision costs on the train split is "
                f"{costs[least, i]:.4g} (static:{space.name(space.table[least])}); name at least that"
            )


def train_constrained(
    scenario: Scenario,
    budgets: Budgets,
    agent: str = "ppo",
    out: Path | str = "run",
    base: Objective | None = None,
    dual: DualParameters | None = None,
    **options: Any,
) -> tuple[TrainResult, Verdict]:
    """Train as ``train`` does (``options`` are its own) under budgets; OUT also gets ``budgets.json``.

    The verdict says whether the kept policy keeps the budgets on validation, and names those that it does not keep.
    ConfigError for a budget that no decision can keep.
    """
    from adaptsplit.agents.training import train

    training = ConstrainedTraining(scenario, budgets, base, dual)
    result = train(training.scenario, agent, out, hooks=training.hooks(), **options)
    verdict = training.verdict
    if verdict is None:
        raise ConfigError(f"{out}: no validation was made; raise --steps")
    written = {
        "schema": "adaptsplit.budgets/1",
        "budgets": budgets.model_dump(),
        "base": training.base.model_dump(),
        "kept": verdict.kept,
        "costs": dict(zip(budgets.names, budgets.costs(np.array(verdict.terms)).tolist(), strict=True)),
        "multipliers": dict(zip(budgets.names, verdict.multipliers, strict=True)),
        "message": verdict.message,
    }
    (result.folder / BUDGETS_FILE).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return result, verdict
