"""EdgeRL: advantage actor-critic over version and cut, paid for accuracy, latency and the device's energy.

After EdgeRL (arXiv 2410.12221) and Infer-EDGE (arXiv 2501.18842). From their abstracts: A2C chooses run-time parameters
of a network for a reward that weighs accuracy, latency and device energy. Neither the state, nor the weights, nor the
agent's hyperparameters were obtained (no code was found), and that the parameters are version and cut point is from
memory. Here a version with its cut is a branch and a rate, the exit rule is fixed (their networks have no exits), the
state is what such a device would report, and the three weights are parameters. Hence the name, ``edgerl-style``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import Field
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from adaptsplit import observation as obs
from adaptsplit.agents.policy import PolicyNet
from adaptsplit.agents.run_folder import RUN_FILE
from adaptsplit.agents.training import Hooks, TrainResult, train
from adaptsplit.config import Config
from adaptsplit.decision import DecisionSpace
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.objective import Objective
from adaptsplit.scenario import Scenario

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

    from adaptsplit.agents.hyperparameters import Parameters

NAME = "edgerl-style"
NEVER = -1e9  # output of an exit rule that is not the fixed one
# Assumed: battery, bandwidth and load with what the device last did; their own state was not obtained.
STATE = (
    "battery",
    "battery_known",
    "goodput",
    "goodput_known",
    "load",
    "load_known",
    "server_time",
    "last_branch",
    "last_rate",
)


class EdgeRLWeights(Config):
    """Weights of the reward: ``accuracy`` (share of right answers), ``latency`` (share of the deadline), ``energy``
    (share of the dearest branch's energy). The authors' were not obtained: a right answer counts as much as all else.
    """

    accuracy: float = Field(default=1.0, ge=0)
    latency: float = Field(default=0.5, ge=0)
    energy: float = Field(default=0.5, ge=0)


def edgerl_objective(scenario: Scenario, weights: EdgeRLWeights) -> Objective:
    """Return the reward as an objective; a miss costs the latency of a whole deadline.

    The dearest branch's energy is that of its head and encoding on the scenario's board, at the radio's prior rate.
    """
    return Objective(
        quality=weights.accuracy,
        bytes_per_kib=0.0,
        switch=0.0,
        latency_per_s=weights.latency / scenario.deadline_s,
        miss=weights.latency,
        energy_per_j=weights.energy / dearest_j(scenario),
    )


def dearest_j(scenario: Scenario) -> float:
    """Return the largest energy of a frame over branches and rates, J."""
    s, space = scenario.summary(), scenario.space
    busy = scenario.stage_scale * np.asarray(s.head_s)[space.exit_branches][:, None]
    busy = busy + scenario.codec_scale * np.asarray(s.encode_s)
    bits = 8.0 * np.asarray(s.payload_bytes)
    radio = bits * (scenario.radio_w / scenario.priors.goodput_bps + scenario.radio_j_per_bit)
    energy = scenario.compute_w * busy + np.where(space.answers_alone[:, None], 0.0, radio)
    return max(float(energy.max()), 1e-9)


def with_objective(scenario: Scenario, objective: Objective) -> Scenario:
    """Return the scenario with another objective."""
    return Scenario(scenario.file.model_copy(update={"objective": objective}), scenario.base, scenario.data)


def fixed_rule(space: DecisionSpace) -> int:
    """Return the exit rule that exits least and waits longest."""
    rules = list(zip(space.thresholds, space.patience, strict=True))
    return rules.index(max(rules))


class EdgeRLVecEnv(VecEnvWrapper):
    """The environment with their action (branch, rate) and state: other fields of the observation are 0."""

    def __init__(self, venv: VecEnv, space: DecisionSpace) -> None:
        super().__init__(venv, action_space=spaces.MultiDiscrete(list(space.shape[:2])))
        self._rule = fixed_rule(space)
        self.mask = state_mask()

    def reset(self) -> VecEnvObs:
        """Return the first observations (n, D)."""
        return np.asarray(self.venv.reset()) * self.mask

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take (n, 2) branches and rates."""
        rule = np.full((len(actions), 1), self._rule, dtype=np.int64)
        self.venv.step_async(np.concatenate([np.asarray(actions, dtype=np.int64), rule], axis=1))

    def step_wait(self) -> VecEnvStepReturn:
        """Return masked observations."""
        observations, rewards, done, infos = self.venv.step_wait()
        for row in np.flatnonzero(done):
            infos[row]["terminal_observation"] = infos[row]["terminal_observation"] * self.mask
        return np.asarray(observations) * self.mask, rewards, done, infos


def state_mask() -> NDArray[np.float32]:
    """Return (D,): 1 where the observation's field is in the state."""
    mask = np.zeros(obs.SIZE, dtype=np.float32)
    mask[[obs.index(name) for name in STATE]] = 1.0
    return mask


def export_edgerl(net: PolicyNet, space: DecisionSpace) -> PolicyNet:
    """Return a plain policy: no weight on fields outside the state, and the fixed exit rule as a third output."""
    (first, shift), *middle, (last, bias) = net.layers
    rules = np.full(space.shape[2], NEVER, dtype=np.float32)
    rules[fixed_rule(space)] = 0.0
    wide = np.concatenate([last, np.zeros((len(last), len(rules)), dtype=np.float32)], axis=1)
    masked = first * state_mask()[:, None]
    return PolicyNet(((masked, shift), *middle, (wide, np.concatenate([bias, rules]))), net.activation, "multi")


def train_edgerl(
    scenario: Scenario,
    out: Path | str,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    *,
    weights: EdgeRLWeights | None = None,
    parameters: Parameters | None = None,
    validations: int = 25,
    validation_episodes: int = 128,
) -> TrainResult:
    """Train with A2C on their reward; the policy of the best validation reward (theirs, too) is kept in ``out``.

    The folder holds a plain ``policy.npz``; its ``run.json`` names the method and the weights beside the agent.
    """
    from adaptsplit.agents.hyperparameters import load_parameters
    from adaptsplit.agents.sb3_export import export_actor

    chosen = weights or EdgeRLWeights()
    paid = with_objective(scenario, edgerl_objective(scenario, chosen))
    p = (parameters or load_parameters("a2c")).model_copy(update={"actions": "multi"})

    def env(made_for: Scenario, given: Parameters, number: int) -> VecEnv:
        inner = SplitVecEnv(made_for, given.envs, seed=number, actions="multi", centred=True, expected=True)
        return EdgeRLVecEnv(inner, made_for.space)

    def export(model: BaseAlgorithm, given: Any) -> PolicyNet:
        return export_edgerl(export_actor(model, given), scenario.space)

    hooks = Hooks(env=env, export=export)
    result = train(
        paid,
        "a2c",
        out,
        steps,
        seed=seed,
        progress=progress,
        parameters=p,
        validations=validations,
        validation_episodes=validation_episodes,
        hooks=hooks,
    )
    where = result.folder / RUN_FILE
    document = json.loads(where.read_bytes()) | {"method": NAME, "weights": chosen.model_dump()}
    where.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return result
