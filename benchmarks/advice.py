"""What it costs to be advised: decisions on observations that are d frames old, against decisions on the frame at hand.

    ADAPTSPLIT_DATA=DATA python benchmarks/advice.py --policy runs/flight/ppo/0 --policy runs/flight/ppo/1
    ADAPTSPLIT_DATA=DATA python benchmarks/advice.py --policy runs/flight/ppo/0 --episodes 20 --json

In the simulator, on the test split of a scenario, everybody on the same episodes. "age" d: the device takes what the
controller decided on the observation of d decisions ago (live, advice on the last frame's observation is d = 1 while
the round trip stays below a frame period). "silence" s: each advice is lost with that chance, and the device goes on
with its own rule for that frame (``--rule``); 1 is the rule alone. Means over the policies given; the interval of the
difference to age 0 is a 95 per cent bootstrap over episodes, paired by episode.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.build import load_run, make_controller
from adaptsplit.controller import Controller, Decisions, Observations, State, Stateless
from adaptsplit.envs import build_world, episode_seeds, run_episodes
from adaptsplit.scenario import Scenario, data_directory, load_scenario

AGES = (0, 1, 2, 3, 5, 10)
SILENCE = (0.1, 0.5, 1.0)
RESAMPLES = 2000


@dataclass(frozen=True)
class AdvisedState:
    """States of controller and rule, the last d + 1 observations, the generator that loses advice."""

    inner: State
    rule: State
    seen: tuple[Observations, ...]
    rng: np.random.Generator


class Advised:
    """Decides by a controller on the observation of ``age`` decisions ago, or by the rule where advice is lost."""

    learns = False

    def __init__(self, inner: Controller, rule: Controller, age: int, silence: float) -> None:
        self.name = f"{inner.name} age {age} silence {silence:g}"
        self._inner, self._rule, self._age, self._silence = inner, rule, age, silence

    def init(self, n: int, rng: np.random.Generator) -> AdvisedState:
        """Return the state of n rows at the start."""
        return AdvisedState(self._inner.init(n, rng), self._rule.init(n, rng), (), rng)

    def act(self, observation: Observations, state: AdvisedState) -> tuple[Decisions, AdvisedState]:
        """Decide for each row; the rule before the first advice can have come."""
        own, rule = self._rule.act(observation, state.rule)
        seen = (*state.seen, np.array(observation))[-self._age - 1 :]
        if len(seen) <= self._age:
            return own, replace(state, rule=rule, seen=seen)
        advised, inner = self._inner.act(seen[0], state.inner)
        lost = state.rng.random(len(own)) < self._silence
        return np.where(lost[:, None], own, advised), AdvisedState(inner, rule, seen, state.rng)

    def learn(self, outcomes: Any, state: AdvisedState) -> AdvisedState:
        """Learn nothing."""
        return state


@dataclass(frozen=True)
class Row:
    """Means over episodes and policies; ``low`` and ``high`` bound the difference of reward to age 0."""

    age: int
    silence: float
    reward: float
    quality: float
    low: float
    high: float


def measure(scenario: Scenario, policies: list[Path], rule: str, episodes: int, seed: int) -> list[Row]:
    """Return one row per age and per share of silence (at age 1)."""
    world, seeds = build_world(scenario, "test"), episode_seeds(seed, episodes, "test")
    own = make_controller(rule, scenario)
    inner = [load_run(path, scenario.space) for path in policies]
    assert all(isinstance(each, Stateless) for each in inner)
    found: list[Row] = []
    reference: NDArray[Any] | None = None
    for age, silence in [(age, 0.0) for age in AGES] + [(1, share) for share in SILENCE]:
        runs = [run_episodes(world, Advised(each, own, age, silence), seeds) for each in inner]
        reward = np.mean([scenario.objective.reward(run).mean(axis=1) for run in runs], axis=0)
        reference = reward if reference is None else reference
        low, high = interval(reward - reference, seed)
        quality = float(np.mean([np.nanmean(run["quality"]) for run in runs]))
        found.append(Row(age, silence, float(reward.mean()), quality, low, high))
    return found


def interval(differences: NDArray[Any], seed: int) -> tuple[float, float]:
    """Return the 95 per cent bootstrap interval of a mean over episodes (E,)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(differences), size=(RESAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    """Print a table, or JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, action="append", required=True, help="run folder; may be repeated")
    parser.add_argument("--scenario", default="flight-lte")
    parser.add_argument("--rule", default="deadline")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    scenario = load_scenario(o.scenario, data_directory(o.data))
    rows = measure(scenario, o.policy, o.rule, o.episodes, o.seed)
    if o.json:
        print(json.dumps([vars(row) for row in rows], indent=2))
        return
    print(f"{o.scenario}, {o.episodes} episodes, {len(o.policy)} policies, rule {o.rule}, {scenario.fps:g} frames/s")
    print("| age, frames | silence | reward | quality | reward against age 0 |\n| --: | --: | --: | --: | --: |")
    for row in rows:
        change = f"{row.reward - rows[0].reward:+.4f} ({row.low:+.4f} .. {row.high:+.4f})"
        print(f"| {row.age} | {row.silence:g} | {row.reward:.4f} | {row.quality:.4f} | {change} |")


if __name__ == "__main__":
    main()
