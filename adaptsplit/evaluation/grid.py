"""The static grid: every distinct decision on the same episodes, many at a time in one batch of the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.controller import Decisions, Observations, State, Stateless
from adaptsplit.decision import DecisionSpace
from adaptsplit.envs import World, run_episodes
from adaptsplit.evaluation.analysis import Scored
from adaptsplit.evaluation.metrics import episode_table
from adaptsplit.objective import Objective
from adaptsplit.outcome import Outcomes

BATCH = 1024
Progress = Callable[[int, int], None]


def static_name(space: DecisionSpace, row: NDArray[Any]) -> str:
    """Return how a static decision is listed, and asked for: ``static:BRANCH/RATE/THRESHOLD``."""
    return f"static:{space.name(row)}"


class RowController(Stateless):
    """One fixed decision per row of the batch: a block of the static grid."""

    name = "grid"

    def __init__(self, rows: Decisions) -> None:
        self._rows = rows

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Return the rows as they are."""
        return self._rows, state


def run_static(world: World, rows: Decisions, seeds: NDArray[np.uint64]) -> Outcomes:
    """Return the outcomes (M, E, F) of M decisions (M, 3) on E episodes."""
    every = np.repeat(np.asarray(rows, dtype=np.int64), len(seeds), axis=0)
    outcomes = run_episodes(world, RowController(every), np.tile(seeds, len(rows)), batch=len(every))
    return outcomes.reshape(len(rows), len(seeds), -1)


def run_blocks(world: World, table: Decisions, seeds: NDArray[np.uint64]) -> Iterator[Outcomes]:
    """Yield the outcomes (M, E, F) of all decisions (K, 3) on E episodes, ``BATCH`` episodes at a time.

    The caller reduces each block at once, so that memory stays small.
    """
    block = max(1, BATCH // len(seeds))
    for start in range(0, len(table), block):
        yield run_static(world, table[start : start + block], seeds)


def static_rewards(
    world: World, space: DecisionSpace, objective: Objective, seeds: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """Return (K, E) the mean reward per frame of every row of ``space.table`` on each of E episodes."""
    blocks = run_blocks(world, space.table, seeds)
    return np.concatenate([objective.reward(outcomes).mean(axis=2, dtype=np.float64) for outcomes in blocks])


def run_grid(
    world: World,
    space: DecisionSpace,
    objective: Objective,
    seeds: NDArray[np.uint64],
    progress: Progress | None = None,
) -> list[Scored]:
    """Score every row of ``space.table``, reduced at once so that memory stays small."""
    scored: list[Scored] = []
    for block in run_blocks(world, space.table, seeds):
        for outcomes in block:
            found = episode_table(outcomes, objective.reward(outcomes), space)
            scored.append(Scored(static_name(space, space.table[len(scored)]), "static", (found,)))
        if progress is not None:
            progress(len(scored), len(space.table))
    return scored
