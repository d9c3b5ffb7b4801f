"""The simulator and its environments. Importing this package registers ``adaptsplit/Split-v0`` with Gymnasium."""

from __future__ import annotations

try:
    import gymnasium
    import numba  # noqa: F401
except ImportError as error:
    from adaptsplit.errors import MissingExtraError

    raise MissingExtraError(error.name or "gymnasium", "train") from error

from adaptsplit.envs.runner import episode_info, run_episodes
from adaptsplit.envs.simulator import Simulator, episode_seeds
from adaptsplit.envs.split_env import SplitEnv
from adaptsplit.envs.vector_env import SplitVectorEnv
from adaptsplit.envs.world import World, build_world

ENVIRONMENT_ID = "adaptsplit/Split-v0"

if ENVIRONMENT_ID not in gymnasium.registry:
    gymnasium.register(
        ENVIRONMENT_ID,
        entry_point="adaptsplit.envs.split_env:SplitEnv",
        vector_entry_point="adaptsplit.envs.vector_env:SplitVectorEnv",
        disable_env_checker=True,
    )

__all__ = [
    "ENVIRONMENT_ID",
    "Simulator",
    "SplitEnv",
    "SplitVectorEnv",
    "World",
    "build_world",
    "episode_info",
    "episode_seeds",
    "run_episodes",
]
