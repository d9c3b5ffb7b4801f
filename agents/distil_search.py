"""Better decisions for the cells of a small policy, found in the simulator.

Labels say what is right state by state; one decision for a whole cell has effects that no label shows (a cell that
always exits lets the estimate of the link starve). So each cell's decision is exchanged in turn for another one of the
teacher's in that cell, on the same train episodes, and what gains beyond twice its standard error is kept: coordinate
ascent with common random numbers.
Letters: V variants, E episodes, C cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.distil_costs import Floats, Labels
from adaptsplit.agents.distil_fit import summed
from adaptsplit.agents.policy_cells import CellPolicy
from adaptsplit.controller import Decisions, Observations, State, Stateless
from adaptsplit.envs import World, episode_seeds, run_episodes
from adaptsplit.objective import Objective

BATCH = 4096
ALTERNATIVES = 3  # other decisions that are tried in a cell
EPISODES = 96
PASSES = 4
MAX_VARIANTS = 256  # per pass; the cells with the most weight against their decision come first
SURE = 2.0  # standard errors
SEEDS = 7919  # train episodes of the search begin at this seed, apart from those of the labels

P = TypeVar("P", bound=CellPolicy)


class _Variants(Stateless):
    """The same cells with other decisions in each block of rows of the batch."""

    name = "variants"

    def __init__(self, policy: CellPolicy, rows: NDArray[np.int64], episodes: int) -> None:
        self._policy, self._rows, self._table = policy, rows, policy.space.table
        self._who = np.repeat(np.arange(len(rows)), episodes)

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (V E, D) observations to decisions."""
        return self._table[self._rows[self._who, self._policy.cells(observation)]], state


@dataclass(frozen=True, slots=True)
class Search:
    """Where to search: a world (the train split's), its objective, and how long."""

    world: World
    objective: Objective
    seed: int = 0
    episodes: int = EPISODES
    passes: int = PASSES

    def improve(self, policy: P, labels: Labels, report: Callable[[int, int], None] | None = None) -> P:
        """Return the policy with better decisions in some cells; never one that was worse on the search's episodes."""
        for turn in range(self.passes):
            found = self._one_pass(policy, labels, self.seeds(2 * turn), self.seeds(2 * turn + 1))
            if report is not None:
                report(turn + 1, self.passes)
            if found is None:
                break
            policy = policy.replaced(found)
        if report is not None:
            report(self.passes, self.passes)
        return policy

    def _one_pass(
        self, policy: CellPolicy, labels: Labels, seeds: NDArray[np.uint64], others: NDArray[np.uint64]
    ) -> NDArray[np.int64] | None:
        """Try all exchanges one by one, then the good ones together; None when nothing is gained."""
        rows = policy.rows.astype(np.int64)
        places, values = self._proposals(policy, labels)
        if not len(places):
            return None
        tried = np.repeat(rows[None], len(places) + 1, axis=0)
        tried[np.arange(1, len(tried)), places] = values
        rewards = self.rewards(policy, tried, seeds)
        chosen = _sure(places, rewards[1:] - rewards[0])
        growing = [rows]
        for i in chosen:
            growing.append(growing[-1].copy())
            growing[-1][places[i]] = values[i]
        best = int(self.rewards(policy, np.array(growing), others).mean(axis=1).argmax())
        return growing[best] if best else None

    def _proposals(self, policy: CellPolicy, labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return cells and decisions to try: those that the teacher takes there, the most frequent ones first."""
        cells = policy.cells(labels.observations)
        counts = summed(cells, labels, len(policy.rows), len(policy.space.table), "plain")
        own = np.maximum(policy.rows.astype(np.int64), 0)
        counts[np.arange(len(own)), own] = 0.0
        kept = np.sort(counts, axis=1)[:, -ALTERNATIVES] if counts.shape[1] > ALTERNATIVES else np.zeros(len(counts))
        counts[counts < np.maximum(kept, 1.0)[:, None]] = 0.0
        order = np.argsort(-counts, axis=None, kind="stable")[:MAX_VARIANTS]
        order = order[counts.ravel()[order] > 0.0]
        places, values = np.unravel_index(order, counts.shape)
        return places.astype(np.int64), values.astype(np.int64)

    def rewards(self, policy: CellPolicy, tried: NDArray[np.int64], seeds: NDArray[np.uint64]) -> Floats:
        """Return the (V, E) mean rewards of variants on the same episodes."""
        step, parts = max(1, BATCH // len(seeds)), []
        for start in range(0, len(tried), step):
            rows = tried[start : start + step]
            variants = _Variants(policy, rows, len(seeds))
            outcomes = run_episodes(self.world, variants, np.tile(seeds, len(rows)), batch=len(rows) * len(seeds))
            parts.append(self.objective.reward(outcomes).mean(axis=1).reshape(len(rows), -1))
        return np.concatenate(parts)

    def seeds(self, turn: int) -> NDArray[np.uint64]:
        """Return the seeds of the train episodes of one half of a pass."""
        return np.asarray(episode_seeds(SEEDS + 101 * self.seed + turn, self.episodes, "train"))


def _sure(places: NDArray[np.int64], differences: Floats) -> list[int]:
    """Return the proposals that gain surely, at most one per cell, the largest gain first."""
    gains = differences.mean(axis=1)
    errors = differences.std(axis=1) / np.sqrt(differences.shape[1])
    chosen: list[int] = []
    for i in np.argsort(-gains, kind="stable"):
        if gains[i] > SURE * errors[i] and places[i] not in places[chosen]:
            chosen.append(int(i))
    return chosen
