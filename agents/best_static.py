"""The static decision that earns most on the train split: what everything learned is anchored to."""

from __future__ import annotations

from adaptsplit.envs import build_world, episode_seeds
from adaptsplit.scenario import Scenario

EPISODES = 100


def best_static(scenario: Scenario, episodes: int = EPISODES) -> int:
    """Return the row of the space's table that earns most on ``episodes`` episodes of the train split."""
    from adaptsplit.evaluation.grid import static_rewards

    world, seeds = build_world(scenario, "train"), episode_seeds(0, episodes, "train")
    return int(static_rewards(world, scenario.space, scenario.objective, seeds).mean(axis=1).argmax())
