"""Training of a policy that is conditioned on its objective; see ``adaptsplit.agents.conditioned``.

The rows of the vector environment are shared among K worlds, each of which pays by weights of its own, drawn anew every
few seconds of flight. Validation lays a fixed grid of weights over the range: the score is the mean, over the grid, of
what the policy at those weights earns more than the best static decision at the same weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptsplit.agents.conditioned import CONDITIONED_FILE, ConditionedNet, ConditionedPolicy, save_conditioned
from adaptsplit.agents.conditions import DEFAULT_CONDITIONS, Condition, check_conditions, inputs_of, spread
from adaptsplit.agents.frontier import Panel, prices
from adaptsplit.agents.hyperparameters import Parameters, actions_of
from adaptsplit.agents.policy import PolicyController, PolicyNet
from adaptsplit.agents.sb3 import export_net
from adaptsplit.agents.validation import ValidationPoint, Validator
from adaptsplit.controller import Controller
from adaptsplit.envs.mixture import MixtureVecEnv, Part
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import Scenario

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

    from adaptsplit.agents.training import TrainResult

WORLDS = 16
POINTS = 8
EPISODES = 48


class ConditionedTraining:
    """What ``train`` needs instead of its own environment, export and validation; ``hooks`` collects it.

    ``conditions``: which weights become inputs; ``worlds``: how many of them, or the variants of a randomisation;
    ``points`` and ``episodes``: size of the validation grid and episodes at each of its points. ``folder`` gets
    ``conditioned.npz`` whenever the score is the best so far. ConfigError when the scenario's own weights lie outside
    the conditions' ranges.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        agent: str = "ppo",
        conditions: Sequence[Condition] = DEFAULT_CONDITIONS,
        worlds: int | Sequence[Scenario] = WORLDS,
        points: int = POINTS,
        episodes: int = EPISODES,
    ) -> None:
        self.scenario, self.folder, self.agent = scenario, folder, agent
        self.conditions = check_conditions(conditions)
        inputs_of(self.conditions, scenario.objective)
        self._worlds = [scenario] * worlds if isinstance(worlds, int) else list(worlds)
        self.grid = [scenario.objective, *spread(self.conditions, scenario.objective, points)]
        self._panel = Panel([scenario], episodes)
        self._validator = Validator(scenario, episodes)
        self._best = math.nan
        self.net: ConditionedNet | None = None

    def env(self, scenario: Scenario, parameters: Parameters, seed: int) -> VecEnv:
        """Return the training environment: one part per world, observations with the weights appended."""
        parts = [Part(world) for world in self._worlds]
        actions = actions_of(parameters)
        return MixtureVecEnv(
            parts, parameters.envs, seed, actions, centred=True, expected=True, conditions=self.conditions
        )

    def export(self, model: BaseAlgorithm, parameters: Parameters) -> PolicyNet:
        """Keep the conditioned network; return the plain one at the scenario's own weights."""
        net: Any = export_net(model, parameters)
        if not isinstance(net, PolicyNet):
            raise ConfigError(
                f"agent {self.agent!r}: its policy is no plain network; take one that has no memory, such as ppo"
            )
        self.net = ConditionedNet(net, self.conditions, self.scenario.objective)
        return self.net.at(self.scenario.objective)

    def gains(self, net: ConditionedNet) -> list[float]:
        """Return for each point of the grid how much more than the best static decision the policy earns per frame."""
        found = []
        for objective in self.grid:
            controller = PolicyController(self.agent, self.scenario.space, net.at(objective))
            earned = float((self._panel.terms(controller) @ prices(objective)).mean())
            found.append(earned - self._panel.best_static(objective)[1])
        return found

    def validate(self, controller: Controller, steps: int = 0) -> ValidationPoint:
        """Return the point of the policy at the scenario's own weights; its reward is the mean gain over the grid."""
        if self.net is None:
            raise ConfigError("conditioned training: validate comes after export")
        point = replace(self._validator(controller, steps), reward=float(np.mean(self.gains(self.net))))
        if point.reward > self._best_so_far():
            self._best = point.reward
            self.folder.mkdir(parents=True, exist_ok=True)
            policy = ConditionedPolicy(self.agent, self.scenario.space, self.net)
            save_conditioned(self.folder / CONDITIONED_FILE, policy)
        return point

    def _best_so_far(self) -> float:
        """The best score of this training; at its first validation that of the run that is resumed, if any."""
        if math.isnan(self._best):
            run = self.folder / "run.json"
            best = json.loads(run.read_bytes())["best"] if run.is_file() else None
            self._best = -math.inf if best is None else float(best["reward"])
        return self._best

    def hooks(self) -> Any:
        """Return the ``Hooks`` of ``adaptsplit.agents.training.train``."""
        from adaptsplit.agents.training import Hooks

        return Hooks(env=self.env, export=self.export, validate=self.validate)


def train_conditioned(
    scenario: Scenario,
    agent: str = "ppo",
    out: Path | str = "run",
    conditions: Sequence[Condition] = DEFAULT_CONDITIONS,
    worlds: int | Sequence[Scenario] = WORLDS,
    **options: Any,
) -> TrainResult:
    """Train as ``train`` does (``options`` are its own); OUT gets ``conditioned.npz`` beside ``policy.npz``.

    ``policy.npz`` is the policy at the scenario's own weights. ConfigError for weights out of range, or an agent whose
    policy is no plain network.
    """
    from adaptsplit.agents.training import train

    training = ConditionedTraining(scenario, Path(out), agent, conditions, worlds)
    return train(scenario, agent, out, hooks=training.hooks(), **options)
