"""The native Gymnasium VectorEnv: n rows of one simulator, no Python loop over environments."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from adaptsplit.envs.compiled import episode_seeds_of
from adaptsplit.envs.simulator import Simulator
from adaptsplit.envs.split_env import Actions, action_space, observation_space, step_with
from adaptsplit.envs.world import build_world
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]


class Episodes:
    """Seeds of successive episodes of each row: a function of (seed, row, number of the episode) only."""

    def __init__(self, n: int, seed: int) -> None:
        self.seed = np.uint64(seed)
        self.count = np.zeros(n, dtype=np.int64)

    def next(self, rows: Array) -> Array:
        """Return the seeds (len(rows),) of the rows' next episodes."""
        seeds = np.empty(len(rows), dtype=np.uint64)
        episode_seeds_of(self.seed, rows, self.count, seeds)
        return seeds


class ArrayPool:
    """Arrays that are used again once nobody else holds them: a fresh half megabyte costs a hundred page faults.

    An array is free when nothing but the pool refers to it; views and tensors made of it keep it alive.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, most: int = 4) -> None:
        self._shape, self._dtype, self._most = shape, dtype, most
        self._arrays: list[Array] = [np.empty(shape, dtype=dtype)]
        self._unused = next(sys.getrefcount(self._arrays[i]) for i in range(1))

    def take(self) -> Array:
        """Return an array with undefined content that nobody else holds."""
        for i in range(len(self._arrays)):
            if sys.getrefcount(self._arrays[i]) == self._unused:
                return self._arrays[i]
        array = np.empty(self._shape, dtype=self._dtype)
        if len(self._arrays) < self._most:
            self._arrays.append(array)
        return array


class SplitVectorEnv(VectorEnv[Array, Array, Array]):
    """``adaptsplit/Split-v0`` for n devices at once; see ``SplitEnv`` for spaces, reward and arguments.

    ``threads`` shares large batches among threads (default: the machine's cores); results do not depend on it.

    Autoreset mode SAME_STEP: the observation returned with a finished episode is the next episode's first;
    ``infos["final_obs"]`` holds the last one.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (declared so by Gymnasium)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        scenario: Any,
        num_envs: int = 1,
        split: str = "train",
        actions: Actions = "multi",
        data: str | None = None,
        render_mode: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.scenario: Scenario = scenario if isinstance(scenario, Scenario) else load_scenario(scenario, data)
        self.num_envs = num_envs
        self.decisions = self.scenario.space
        self.actions: Actions = actions
        self.single_action_space = action_space(self.decisions, actions)
        self.single_observation_space = observation_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.simulator = Simulator(build_world(self.scenario, split), num_envs, threads=threads)
        self._episodes = Episodes(num_envs, 0)
        self._pool = ArrayPool(self.simulator.observations.shape, np.float32)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start an episode in every row; ``seed`` is one integer, or one per row for row 0's generator of each."""
        first = seed[0] if isinstance(seed, list) else seed
        super().reset(seed=first)
        self._episodes = Episodes(self.num_envs, int(self.np_random.integers(0, 1 << 63)))
        seeds = self._episodes.next(np.arange(self.num_envs))
        self.simulator.observations = self._pool.take()
        return self.simulator.reset(seeds), {"episode_seed": seeds}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Decide in every row; finished rows start their next episode."""
        step_with(self.simulator, self.decisions, self.actions, actions, self._pool.take())
        rewards, done = self.simulator.rewards.copy(), self.simulator.done.copy()
        terminated, infos = np.zeros_like(done), {}
        if done.any():
            finished = np.flatnonzero(done)
            terminated[finished] = self.simulator.terminated[finished]
            infos = self._restart(finished, done)
        return self.simulator.observations, rewards, terminated, done & ~terminated, infos

    def _restart(self, finished: Array, done: Array) -> dict[str, Any]:
        final = np.full(self.num_envs, None, dtype=object)
        final[finished] = list(self.simulator.observations[finished])
        self.simulator.reset_rows(finished, self._episodes.next(finished))
        return {"final_obs": final, "_final_obs": done}
