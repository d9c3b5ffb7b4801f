"""Training in several worlds at once: a mixture of scenarios, or variants of one; validation on data of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptsplit.agents.frontier import PanelValidator
from adaptsplit.agents.hyperparameters import Parameters, actions_of
from adaptsplit.agents.randomise import Randomisation, sources, variants
from adaptsplit.agents.validation import ValidationPoint
from adaptsplit.controller import Controller
from adaptsplit.envs.mixture import MixtureVecEnv, Part
from adaptsplit.scenario import Scenario

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from adaptsplit.agents.training import TrainResult

WORLDS = 12
EPISODES = 64


class MixtureTraining:
    """What ``train`` needs instead of its own environment and validation; ``hooks`` collects it.

    ``worlds``: trained in, with equal shares of the rows. ``validation``: scenarios whose validation splits choose the
    policy (mean reward, each counting alike); ``episodes`` of each.
    """

    def __init__(self, worlds: Sequence[Scenario], validation: Sequence[Scenario], episodes: int = EPISODES) -> None:
        self.worlds = tuple(worlds)
        self._validator = PanelValidator(validation, episodes)

    def env(self, scenario: Scenario, parameters: Parameters, seed: int) -> VecEnv:
        """Return the training environment: one part per world."""
        parts = [Part(world) for world in self.worlds]
        return MixtureVecEnv(parts, parameters.envs, seed, actions_of(parameters), centred=True, expected=True)

    def validate(self, controller: Controller, steps: int = 0) -> ValidationPoint:
        """Return the point of a policy: its reward is the mean over the validation scenarios."""
        return self._validator(controller, steps)

    def hooks(self) -> Any:
        """Return the ``Hooks`` of ``adaptsplit.agents.training.train``."""
        from adaptsplit.agents.training import Hooks

        return Hooks(env=self.env, validate=self.validate)


def train_randomised(
    scenario: Scenario,
    randomisation: Randomisation,
    agent: str = "ppo",
    out: Path | str = "run",
    worlds: int = WORLDS,
    seed: int = 0,
    **options: Any,
) -> TrainResult:
    """Train as ``train`` does (``options`` are its own) in ``worlds`` variants of a scenario.

    The policy is chosen on the validation splits of every source of links. ConfigError as ``variants``.
    """
    from adaptsplit.agents.training import train

    made = variants(scenario, randomisation, worlds, seed)
    training = MixtureTraining(made, sources(scenario, randomisation))
    return train(scenario, agent, out, seed=seed, hooks=training.hooks(), **options)
