"""Training of NaviSplit's gate (``gate``): TD3 over a frozen task policy, as the authors' code has it.

Agent: SB3's TD3, MLP [32, 32], replay 1e5 (read in the authors' code). The resource penalty's weight is 0.1 there; what
is penalised here is the chosen branch's payload as a share of the largest one. Discount, learning rate and noise were
not obtained: the discount is that of our other agents, the rest SB3's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit.agents.best_static import best_static
from adaptsplit.agents.build import make_controller
from adaptsplit.agents.gate import INPUTS, Branching, GateController, cheapest_first
from adaptsplit.agents.policy import Layers
from adaptsplit.agents.progress import TrainingProgress
from adaptsplit.agents.run_folder import Run
from adaptsplit.agents.static import StaticController
from adaptsplit.agents.validation import ValidationPoint, Validator
from adaptsplit.config import Config
from adaptsplit.controller import Controller
from adaptsplit.decision import Decision
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import MissingExtraError

try:
    import torch
    from stable_baselines3 import TD3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
except ImportError as error:
    raise MissingExtraError("stable-baselines3", "train") from error

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

NAME = "navisplit-style"
STATIC_EPISODES = 16  # on which the default task policy, the best static decision, is chosen

Array = NDArray[Any]


class GateParameters(Config):
    """How a gate is trained; ``resource`` is the penalty of the dearest branch, in reward per frame."""

    steps: int = Field(default=200_000, ge=1)
    envs: int = Field(default=64, ge=1)
    net_arch: tuple[int, ...] = (32, 32)
    buffer_size: int = Field(default=100_000, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=256, ge=1)
    gradient_steps: int = Field(default=2, ge=1)
    learning_starts: int = Field(default=5_000, ge=0)
    gamma: float = Field(default=0.8, ge=0, le=1)
    noise: float = Field(default=0.2, ge=0)
    resource: float = Field(default=0.1, ge=0)


@dataclass(frozen=True, slots=True)
class GateResult:
    """What a training came to: its folder, the best validation point, the curve, the task policy's own reward there."""

    folder: Path
    steps: int
    seconds: float
    best: ValidationPoint
    curve: tuple[ValidationPoint, ...]
    task: ValidationPoint

    @property
    def warnings(self) -> tuple[str, ...]:
        """A gate that earns no more than the policy it stands over is named."""
        if self.best.reward > self.task.reward:
            return ()
        return (f"the gate earns {self.best.reward:.4f}, its task policy alone {self.task.reward:.4f}",)


class GateVecEnv(VecEnvWrapper):
    """The auxiliary environment: observation, task decision and last gate value in, one number in 0..1 out.

    ``cost`` (B, R) is taken off the reward of a decision. A task policy with a state keeps it over an episode's end.
    """

    def __init__(self, venv: VecEnv, task: Controller, branching: Branching, cost: Array, seed: int = 0) -> None:
        low, high = np.zeros(INPUTS, dtype=np.float32), np.ones(INPUTS, dtype=np.float32)
        super().__init__(venv, spaces.Box(low, high, dtype=np.float32), spaces.Box(0.0, 1.0, (1,), dtype=np.float32))
        self.task, self.branching, self.cost = task, branching, cost
        self._state = task.init(venv.num_envs, np.random.default_rng(seed))
        self._last = np.zeros(venv.num_envs, dtype=np.float32)
        self._planned: Array = np.zeros((venv.num_envs, 3), dtype=np.int64)
        self._paid = np.zeros(venv.num_envs)

    def reset(self) -> VecEnvObs:
        """Start the next episodes with gates that have not moved."""
        self._last[:] = 0.0
        return self._see(np.asarray(self.venv.reset()))

    def step_async(self, actions: Array) -> None:
        """Turn values (n, 1) into decisions on the chosen branches."""
        self._last = np.asarray(actions, dtype=np.float32)[:, 0].copy()
        decision = self.branching.decide(self._last, self._planned)
        self._paid = self.cost[decision[:, 0], decision[:, 1]]
        self.venv.step_async(decision)

    def step_wait(self) -> VecEnvStepReturn:
        """Return the next inputs and the rewards less what the branches cost."""
        observations, rewards, done, infos = self.venv.step_wait()
        for row in np.flatnonzero(done):
            ended = np.asarray(infos[row]["terminal_observation"])[None]
            now = self.branching.inputs(ended, self._planned[row : row + 1], self._last[row : row + 1])
            infos[row]["terminal_observation"] = now[0]
        self._last[done] = 0.0
        return self._see(np.asarray(observations)), (rewards - self._paid).astype(np.float32), done, infos

    def _see(self, observations: Array) -> Array:
        self._planned, self._state = self.task.act(observations, self._state)
        return self.branching.inputs(observations, self._planned, self._last)


def resource_cost(scenario: Scenario, weight: float) -> Array:
    """Return (B, R) the penalty of each branch and rate: ``weight`` times its payload over the largest; 0 alone."""
    payload = np.asarray(scenario.summary().payload_bytes, dtype=np.float64)
    payload = np.where(scenario.space.answers_alone[:, None], 0.0, payload)
    return np.asarray(weight * payload / max(float(payload.max()), 1.0))


def static_task(scenario: Scenario) -> StaticController:
    """Return the static decision that earns most on a few episodes of the train split."""
    decision = scenario.space.table[best_static(scenario, STATIC_EPISODES)]
    return StaticController(scenario.space, Decision(*(int(i) for i in decision)))


def export_gate(model: TD3) -> Layers:
    """Return the actor's layers; its last activation is tanh."""
    linear = [module for module in model.actor.mu if isinstance(module, torch.nn.Linear)]
    return tuple(
        (
            np.ascontiguousarray(m.weight.detach().numpy().T, dtype=np.float32),
            np.ascontiguousarray(m.bias.detach().numpy(), dtype=np.float32),
        )
        for m in linear
    )


class _Watch(BaseCallback):
    """Validates at regular intervals and keeps the best gate."""

    def __init__(
        self, run: Run, blank: GateController, validator: Validator, interval: int, bar: TrainingProgress
    ) -> None:
        super().__init__()
        self._run, self._blank, self._validator = run, blank, validator
        self._interval, self._next, self._bar, self._started = interval, interval, bar, time.monotonic()

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self._next += self._interval
            self.validate()
        return True

    def validate(self) -> None:
        """Run the gate as it is now on the validation episodes."""
        assert isinstance(self.model, TD3)
        gate = GateController(NAME, self._blank.task, self._blank.branching, export_gate(self.model))
        point = self._validator(gate, self.num_timesteps)
        seconds = time.monotonic() - self._started
        self._run.add(point, gate.save, seconds, point.reward)
        self._run.write(self.num_timesteps, seconds, {"task": self._blank.task.name})
        self._bar.advance(self.num_timesteps, point.reward)
        self._bar.validated(point, self._run.best.reward)


def make_td3(p: GateParameters, env: VecEnv, seed: int) -> TD3:
    """Return an untrained gate's agent on the CPU."""
    quiet = NormalActionNoise(np.zeros(1), np.full(1, p.noise))
    return TD3(
        "MlpPolicy",
        env,
        learning_rate=p.learning_rate,
        buffer_size=p.buffer_size,
        learning_starts=p.learning_starts,
        batch_size=p.batch_size,
        gamma=p.gamma,
        train_freq=1,
        gradient_steps=p.gradient_steps,
        action_noise=VectorizedActionNoise(quiet, env.num_envs),
        policy_kwargs={"net_arch": list(p.net_arch)},
        seed=seed,
        device="cpu",
    )


def train_gate(
    scenario: Scenario,
    out: Path | str,
    steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
    *,
    task: str | Controller | None = None,
    parameters: GateParameters | None = None,
    validations: int = 10,
    validation_episodes: int = 64,
) -> GateResult:
    """Train a gate over ``task`` (a controller or its name; by default the best static decision of the train split).

    The gate of the best validation reward (the scenario's objective, without the penalty) is kept in the run folder
    ``out``. ConfigError for a folder in use or a task policy that cannot be saved.
    """
    p = (parameters or GateParameters()).model_copy(update={} if steps is None else {"steps": steps})
    frozen = make_controller(task, scenario) if isinstance(task, str) else task or static_task(scenario)
    branching = Branching(scenario.space, cheapest_first(scenario.space, scenario.summary()))
    run = Run(scenario, NAME, p, Path(out), seed)
    run.prepare()
    inner = SplitVecEnv(scenario, p.envs, seed=seed, actions="multi", centred=True, expected=True)
    env = GateVecEnv(inner, frozen, branching, resource_cost(scenario, p.resource), seed)
    validator = Validator(scenario, validation_episodes)
    before, begun = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(1)
    try:
        with TrainingProgress(NAME, p.steps, shown=progress) as bar:
            model = make_td3(p, env, seed)
            blank = GateController(NAME, frozen, branching, export_gate(model))
            watch = _Watch(run, blank, validator, max(p.steps // validations, p.envs), bar)
            model.learn(p.steps, callback=watch)
            watch.validate()
    finally:
        torch.set_num_threads(before)
    seconds = time.monotonic() - begun
    return GateResult(run.folder, model.num_timesteps, seconds, run.best, tuple(run.curve), validator(frozen))
