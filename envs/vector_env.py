"""The native Gymnasium VectorEnv: n rows of one simulator, no Python loop over environments."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from adaptsplit.envs.compiled import episode_seed
from adaptsplit.envs.simulator import Simulator
from adaptsplit.envs.split_env import Actions, action_space, observation_space, to_decisions
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
        seeds = [episode_seed(self.seed, int(row), int(self.count[row])) for row in rows]
        self.count[rows] += 1
        return np.array(seeds, dtype=np.uint64)


class SplitVectorEnv(VectorEnv[Array, Array, Array]):
    """``adaptsplit/Split-v0`` for n devices at once; see ``SplitEnv`` for spaces, reward and arguments.

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
    ) -> None:
        self.scenario: Scenario = scenario if isinstance(scenario, Scenario) else load_scenario(scenario, data)
        self.num_envs = num_envs
        self.decisions = self.scenario.space
        self.actions: Actions = actions
        self.single_action_space = action_space(self.decisions, actions)
        self.single_observation_space = observation_space()
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.simulator = Simulator(build_world(self.scenario, split), num_envs)
        self._episodes = Episodes(num_envs, 0)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start an episode in every row; ``seed`` is one integer, or one per row for row 0's generator of each."""
        first = seed[0] if isinstance(seed, list) else seed
        super().reset(seed=first)
        self._episodes = Episodes(self.num_envs, int(self.np_random.integers(0, 1 << 63)))
        seeds = self._episodes.next(np.arange(self.num_envs))
        return self.simulator.reset(seeds).copy(), {"episode_seed": seeds}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Decide in every row; finished rows start their next episode."""
        observations, rewards, done = self.simulator.step(to_decisions(self.decisions, self.actions, actions))
        terminated = self.simulator.terminated.copy()
        truncated = done & ~terminated
        infos: dict[str, Any] = {}
        finished = np.flatnonzero(done)
        rewards = rewards.copy()
        if len(finished):
            infos = self._restart(finished, done, observations)
        return self.simulator.observations.copy(), rewards, terminated, truncated, infos

    def _restart(self, finished: Array, done: Array, observations: Array) -> dict[str, Any]:
        final = np.full(self.num_envs, None, dtype=object)
        for row in finished:
            final[row] = observations[row].copy()
        self.simulator.reset_rows(finished, self._episodes.next(finished))
        return {"final_obs": final, "_final_obs": done.copy()}
