"""The static decision that earns most on the train split: what everything learned is anchored to."""

from __future__ import annotations

import numpy as np

from adaptsplit.envs import build_world, episode_seeds
from adaptsplit.scenario import Scenario

EPISODES = 100
BATCH = 1024


def best_static(scenario: Scenario, episodes: int = EPISODES) -> int:
    """Return the row of the space's table that earns most on ``episodes`` episodes of the train split."""
    from adaptsplit.evaluation.grid import run_static

    world, seeds, table = build_world(scenario, "train"), episode_seeds(0, episodes, "train"), scenario.space.table
    blocks = np.array_split(table, max(1, len(table) * episodes // BATCH))
    earned = [scenario.objective.reward(run_static(world, block, seeds)).mean(axis=(1, 2)) for block in blocks]
    return int(np.argmax(np.concatenate(earned)))
