"""What every part of a diagnosis works on: the worlds, the episodes, and the oracles on them.

Letters: E episodes, F frames per episode, M static decisions, K terms of the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents import oracle as oracles
from adaptsplit.controller import Decisions
from adaptsplit.envs import World, build_world, episode_info, episode_seeds
from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.analysis import estimate
from adaptsplit.evaluation.grid import run_blocks
from adaptsplit.evaluation.results import Estimate
from adaptsplit.objective import WEIGHTS, Objective
from adaptsplit.outcome import Outcomes
from adaptsplit.scenario import Scenario

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``."""

UNIT = Objective(quality=1, energy_per_j=1, bytes_per_kib=1, switch=1, miss=1, latency_per_s=1)


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(slots=True)
class Bench:
    """A scenario's worlds and the episodes of one split; the train split has as many episodes of its own."""

    scenario: Scenario
    split: str
    seed: int
    episodes: int
    progress: Progress = silent
    world: World = field(init=False)
    train: World = field(init=False)
    seeds: NDArray[np.uint64] = field(init=False)
    info: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.world, self.train = build_world(self.scenario, self.split), build_world(self.scenario, "train")
        self.seeds = episode_seeds(self.seed, self.episodes, self.split)
        self.info = episode_info(self.world, self.seeds, self.scenario.links(self.split))

    def train_seeds(self, count: int) -> NDArray[np.uint64]:
        """Return (count,) seeds of train episodes, others than the evaluated ones where that split is diagnosed."""
        return np.asarray(episode_seeds(self.seed + (self.split == "train"), count, "train"))

    def report(self, stage: str) -> Callable[[int, int], None]:
        """Return ``report(done, total)`` of one stage."""
        return lambda done, total: self.progress(stage, done, total)

    def reward(self, outcomes: Outcomes, objective: Objective | None = None) -> Floats:
        """Return the (E,) mean reward of (E, F) outcomes."""
        used = objective or self.scenario.objective
        return np.asarray(used.reward(outcomes).mean(axis=1), dtype=np.float64)

    def plan(
        self,
        name: str,
        count: int,
        *,
        world: World | None = None,
        train: World | None = None,
        table: Decisions | None = None,
        rivals: Sequence[Outcomes] = (),
        stage: str | None = None,
    ) -> Outcomes:
        """Return (count, F) outcomes of an oracle on the first ``count`` episodes, in other worlds where given.

        ``rivals`` (at least ``count`` episodes each) compete with the plan of an oracle that knows the whole episode.
        """
        return oracles.plan(
            world or self.world,
            train or self.train,
            self.scenario.space,
            self.seeds[:count],
            name,
            table=table,
            rivals=[rival[:count] for rival in rivals],
            progress=self.report(stage) if stage else None,
        )

    def paired(self, values: Floats, reference: Floats) -> Estimate:
        """Return the mean difference of (n,) values of the first n episodes, with its interval."""
        levels = [self.info["recording"][: len(values)], self.info["segment"][: len(values)]]
        return estimate(stats.paired(values, reference, stats.resample(levels, seed=self.seed)))

    def mean(self, values: Floats) -> Estimate:
        """Return the mean of (n,) values of the first n episodes, with its interval."""
        return self.paired(values, np.zeros(len(values)))


@dataclass(frozen=True, slots=True)
class Statics:
    """Every static decision: ``terms`` (M, E, K) episode means of the unweighted terms, in the order of ``WEIGHTS``."""

    terms: Floats

    def rewards(self, objective: Objective) -> Floats:
        """Return (M, E) mean rewards under any weights."""
        return np.asarray(self.terms @ np.array([getattr(objective, name) for name in WEIGHTS]))


def run_statics(bench: Bench, world: World, seeds: NDArray[np.uint64], stage: str) -> Statics:
    """Run the whole static grid, reduced at once so that memory stays small."""
    table, parts, done = bench.scenario.space.table, list[Floats](), 0
    for outcomes in run_blocks(world, table, seeds):
        parts.append(np.stack([term.mean(axis=-1) for term in UNIT.terms(outcomes).values()], axis=-1))
        done += len(outcomes)
        bench.progress(stage, done, len(table))
    return Statics(np.concatenate(parts))
