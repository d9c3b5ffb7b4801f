"""The static grid: every distinct decision on the same episodes, many at a time in one batch of the simulator."""

from __future__ import annotations

from collections.abc import Callable
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


def run_grid(
    world: World,
    space: DecisionSpace,
    objective: Objective,
    seeds: NDArray[np.uint64],
    progress: Progress | None = None,
) -> list[Scored]:
    """Score every row of ``space.table``, reduced at once so that memory stays small."""
    table = space.table
    block = max(1, BATCH // len(seeds))
    scored = []
    for start in range(0, len(table), block):
        rows = table[start : start + block]
        for row, outcomes in zip(rows, run_static(world, rows, seeds), strict=True):
            found = episode_table(outcomes, objective.reward(outcomes), space)
            scored.append(Scored(static_name(space, row), "static", (found,)))
        if progress is not None:
            progress(min(start + block, len(table)), len(table))
    return scored
