"""What a controller costs in each of the objective's terms, so that any prices can be laid on afterwards.

The reward is linear in the weights: from the mean of each term follows the mean reward at every objective. Letters: S
scenarios, K decisions of the table, 6 terms in the order of ``adaptsplit.objective.WEIGHTS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.validation import ValidationPoint, Validator
from adaptsplit.controller import Controller
from adaptsplit.envs import build_world, episode_seeds, run_episodes
from adaptsplit.evaluation.grid import run_blocks
from adaptsplit.objective import WEIGHTS, Objective
from adaptsplit.outcome import Outcomes, Path
from adaptsplit.scenario import Scenario

Array = NDArray[Any]
TERMS = ("quality", "energy_j", "kib", "switched", "miss", "latency_s")


def term_means(outcomes: Outcomes, axis: int | tuple[int, ...] | None = None) -> Array:
    """Return (..., 6), the mean of each term over ``axis`` (all when None), unweighted and positive.

    Quality 0..1, energy above idle in J, payload in KiB, share of switches, share of misses, latency in s (0: miss).
    """
    columns = (
        outcomes["quality"],
        outcomes["compute_j"].astype(np.float64) + outcomes["radio_j"],
        outcomes["sent_bytes"] / 1024.0,
        outcomes["switched"],
        outcomes["path"] == Path.MISS,
        np.nan_to_num(outcomes["answer_latency_s"].astype(np.float64)),
    )
    return np.stack([np.mean(column, axis=axis, dtype=np.float64) for column in columns], axis=-1)


def prices(objective: Objective) -> Array:
    """Return (6,) so that ``term_means @ prices`` is the mean reward."""
    return np.array([getattr(objective, WEIGHTS[0]), *(-getattr(objective, name) for name in WEIGHTS[1:])])


class Panel:
    """Fixed episodes of one split of S scenarios (of one decision space), on which controllers are measured."""

    def __init__(self, scenarios: Sequence[Scenario], episodes: int, seed: int = 0, split: str = "validation") -> None:
        self.scenarios, self.space = tuple(scenarios), scenarios[0].space
        self._worlds = [build_world(scenario, split) for scenario in scenarios]
        self._seeds = episode_seeds(seed, episodes, split)
        self._grid: Array | None = None

    def terms(self, controller: Controller) -> Array:
        """Return (S, 6) the means of one controller."""
        size = len(self._seeds)
        return np.stack([term_means(run_episodes(w, controller, self._seeds, batch=size)) for w in self._worlds])

    def grid(self) -> Array:
        """Return (S, K, 6) the means of every static decision; made once."""
        if self._grid is None:
            self._grid = np.stack([self._statics(world) for world in self._worlds])
        return self._grid

    def _statics(self, world: Any) -> Array:
        blocks = run_blocks(world, self.space.table, self._seeds)
        return np.concatenate([term_means(outcomes, (1, 2)) for outcomes in blocks])

    def best_static(self, objective: Objective) -> tuple[int, float]:
        """Return the row of the table that earns most over all S scenarios (each counts alike), and its mean reward."""
        rewards = (self.grid() @ prices(objective)).mean(axis=0)
        return int(rewards.argmax()), float(rewards.max())


class PanelValidator:
    """Validation over several scenarios: the mean of their ``ValidationPoint`` rewards, each world counting alike.

    The other figures of the point are those of the first scenario.
    """

    def __init__(self, scenarios: Sequence[Scenario], episodes: int, seed: int = 0) -> None:
        self._validators = [Validator(scenario, episodes, seed) for scenario in scenarios]

    def __call__(self, controller: Controller, steps: int = 0) -> ValidationPoint:
        """Return the point of one controller."""
        points = [validator(controller, steps) for validator in self._validators]
        return replace(points[0], reward=float(np.mean([point.reward for point in points])))
