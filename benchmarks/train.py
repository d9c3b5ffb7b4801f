"""Time to score: our default agents against stable-baselines3's PPO as it comes, on the same environment, in one run.

    python benchmarks/train.py [--quick] [--json] [--scenario NAME] [--peer-seconds S]

The peer is ``PPO("MlpPolicy", DummyVecEnv of gym.make("adaptsplit/Split-v0"))`` with every default of
stable-baselines3. Both are judged by the same validation episodes. The score is the validation reward above that of
random decisions; "95 %" is the first time at which it is within 5 per cent of the agent's own final score, "level" the
first time at which it reaches 95 per cent of the best final score of all. Time is training time (validations left out).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass

import gymnasium as gym
import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

import adaptsplit.envs  # noqa: F401  (registers the environment)
from adaptsplit.agents import make_controller
from adaptsplit.agents.hyperparameters import load_parameters
from adaptsplit.agents.sb3 import controller_of, export_policy
from adaptsplit.agents.training import Hooks, train
from adaptsplit.agents.validation import ValidationPoint, Validator
from adaptsplit.controller import Controller
from adaptsplit.scenario import Scenario, load_scenario

PEER_ENVS = 8
EPISODES = 64


@dataclass(frozen=True, slots=True)
class Curve:
    """Validation rewards over training time: ``seconds`` and ``frames`` so far at each of them."""

    name: str
    seconds: tuple[float, ...]
    frames: tuple[int, ...]
    rewards: tuple[float, ...]

    @property
    def final(self) -> float:
        """Best validation reward: that of the policy that is kept."""
        return max(self.rewards)

    @property
    def frames_per_s(self) -> float:
        """Frames of training per second."""
        return self.frames[-1] / self.seconds[-1]

    def reached(self, reward: float) -> float | None:
        """Seconds until ``reward`` was reached first; None when it never was."""
        return next((s for s, r in zip(self.seconds, self.rewards, strict=True) if r >= reward), None)


class Clock:
    """Training time: it stands still while a policy is validated."""

    def __init__(self, validator: Validator) -> None:
        self._validator, self._begun, self._paused = validator, time.perf_counter(), 0.0
        self.seconds: list[float] = []
        self.frames: list[int] = []
        self.rewards: list[float] = []

    @property
    def now(self) -> float:
        """Seconds of training so far."""
        return time.perf_counter() - self._begun - self._paused

    def __call__(self, controller: Controller, frames: int) -> ValidationPoint:
        """Validate, and note when."""
        at, before = self.now, time.perf_counter()
        point = self._validator(controller, frames)
        self._paused += time.perf_counter() - before
        self.seconds.append(at)
        self.frames.append(max(frames, 1))
        self.rewards.append(point.reward)
        return point

    def curve(self, name: str) -> Curve:
        """Return what was noted."""
        return Curve(name, tuple(self.seconds), tuple(self.frames), tuple(self.rewards))


def ours(scenario: Scenario, agent: str, validator: Validator, steps: int | None, seed: int) -> Curve:
    """Train a default agent of ours."""
    clock = Clock(validator)
    with tempfile.TemporaryDirectory() as folder:
        train(scenario, agent, folder, steps, seed=seed, progress=False, hooks=Hooks(validate=clock))
    return clock.curve(f"adaptsplit {agent}")


class _Peer(BaseCallback):
    """Validates the peer every few seconds and ends its training when its time is over."""

    def __init__(self, scenario: Scenario, clock: Clock, limit_s: float) -> None:
        super().__init__()
        self._scenario, self._clock, self._limit, self._next = scenario, clock, limit_s, 0.0
        self._parameters = load_parameters("ppo").model_copy(update={"actions": "multi", "activation": "tanh"})

    def _on_step(self) -> bool:
        if self._clock.now >= self._next:
            net = export_policy(self.model, self._parameters)
            self._clock(controller_of("ppo", self._scenario.space, net), self.num_timesteps)
            self._next = self._clock.now + self._limit / 25
        return self._clock.now < self._limit


def peer(scenario: Scenario, validator: Validator, limit_s: float, seed: int) -> Curve:
    """Train stable-baselines3's PPO with its defaults for ``limit_s`` seconds."""
    envs = DummyVecEnv([lambda: gym.make("adaptsplit/Split-v0", scenario=scenario) for _ in range(PEER_ENVS)])
    model = PPO("MlpPolicy", envs, seed=seed, device="cpu")
    clock = Clock(validator)
    model.learn(1 << 40, callback=_Peer(scenario, clock, limit_s))
    return clock.curve("stable-baselines3 PPO, defaults")


def table_of(curves: list[Curve], floor: float) -> tuple[Table, list[dict[str, float | str | None]]]:
    """Return the table and its rows."""
    best = max(curve.final for curve in curves)
    table = Table("agent", "frames/s", "final reward", "s to 95 % of own", "s to 95 % of best", box=None)
    rows: list[dict[str, float | str | None]] = []
    for curve in curves:
        own, level = (curve.reached(floor + 0.95 * (mark - floor)) for mark in (curve.final, best))
        rows.append(
            {"agent": curve.name, "frames_per_s": curve.frames_per_s, "final": curve.final, "own": own, "best": level}
        )
        times = ["never" if value is None else f"{value:.1f}" for value in (own, level)]
        table.add_row(curve.name, f"{curve.frames_per_s:,.0f}", f"{curve.final:.4f}", *times)
    return table, rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="flight-lte")
    parser.add_argument("--agents", default="ppo,dqn")
    parser.add_argument("--quick", action="store_true", help="100 000 frames of ours, 10 s of the peer")
    parser.add_argument("--peer-seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    scenario = load_scenario(given.scenario)
    validator = Validator(scenario, EPISODES)
    floor = validator(make_controller("random", scenario)).reward
    steps, limit = (100_000, 10.0) if given.quick else (None, given.peer_seconds)
    curves = [ours(scenario, agent, validator, steps, given.seed) for agent in given.agents.split(",")]
    curves.append(peer(scenario, validator, limit, given.seed))
    table, rows = table_of(curves, floor)
    if given.json:
        print(
            json.dumps(
                {"scenario": scenario.name, "random": floor, "rows": rows, "curves": [asdict(c) for c in curves]}
            )
        )
        return
    console = Console()
    console.print(f"{scenario.name}, validation; random decisions {floor:.4f}; one torch thread")
    console.print(table)
    ratio = curves[0].frames_per_s / curves[-1].frames_per_s
    console.print(f"{curves[0].name} trains {ratio:.1f} times as many frames per second as {curves[-1].name}")


if __name__ == "__main__":
    main()
