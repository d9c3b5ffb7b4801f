"""What the observation is worth, group by group, to a controller that uses it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptsplit.controller import Controller, Decisions
from adaptsplit.envs import run_episodes
from adaptsplit.evaluation.diagnose_bench import Bench, Floats
from adaptsplit.evaluation.diagnose_document import Fitted, Group
from adaptsplit.evaluation.diagnose_fitted import (
    FittedController,
    MaskedController,
    Rollouts,
    field_groups,
    horizon_frames,
    roll_out,
)
from adaptsplit.observation import FIELDS

CANDIDATES = 48
STILL = 1e-4
"""A field whose standard deviation is below this (of its range) carries nothing."""


@dataclass(frozen=True, slots=True)
class FittedResult:
    """The fitted controller's (E,) rewards and what the document says of it."""

    rewards: Floats
    document: Fitted


def best_rows(table: Decisions, rewards: Floats, limit: int = CANDIDATES) -> Decisions:
    """Return the ``limit`` best of the decisions ``table`` (M, 3) by their (M, E) rewards on train episodes."""
    order = np.argsort(-rewards.mean(axis=1), kind="stable")
    return np.asarray(table[order[:limit]], dtype=np.int64)


def observation_worths(
    bench: Bench, rows: Decisions, best_static: Floats, *, states: int, train_episodes: int
) -> FittedResult:
    """Fit the controller on policy-train, then again without each group; all are run on the bench's episodes.

    ``rows`` (K, 3) are the decisions that it chooses among, ``best_static`` (E,) the reference's rewards.
    """
    groups = field_groups()
    total = 2 * len(groups) + 2
    data = roll_out(bench.train, rows, bench.train_seeds(train_episodes), states, bench.seed)
    bench.progress("observation groups", 1, total)
    every = np.arange(len(FIELDS))
    full = FittedController(data, every)
    rewards = _run(bench, full)
    bench.progress("observation groups", 2, total)
    found = []
    for i, (name, columns) in enumerate(groups.items()):
        found.append(_group(bench, data, full, rewards, name, columns))
        bench.progress("observation groups", 4 + 2 * i, total)
    document = Fitted(
        states=len(data.observations),
        decisions=len(rows),
        horizon_frames=horizon_frames(bench.train),
        difference=bench.paired(rewards, best_static),
        groups=tuple(sorted(found, key=lambda group: -(group.worth.value or 0.0))),
    )
    return FittedResult(rewards, document)


def _group(
    bench: Bench, data: Rollouts, full: FittedController, rewards: Floats, name: str, columns: np.ndarray
) -> Group:
    fields = tuple(FIELDS[i].name for i in columns)
    moves = bool((data.observations[:, columns].std(axis=0) > STILL).any())
    without = masked = rewards
    if moves:
        rest = np.setdiff1d(np.arange(len(FIELDS)), columns)
        without = _run(bench, FittedController(data, rest))
        mean = data.observations[:, columns].mean(axis=0)
        masked = _run(bench, MaskedController(full, columns, mean))
    return Group(
        group=name,
        fields=fields,
        moves=moves,
        worth=bench.paired(rewards, without),
        reliance=bench.paired(rewards, masked),
    )


def _run(bench: Bench, controller: Controller) -> Floats:
    return bench.reward(run_episodes(bench.world, controller, bench.seeds, seed=bench.seed))
