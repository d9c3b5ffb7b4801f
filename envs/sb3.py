"""The stable-baselines3 shell over the batched simulator (SB3 does not take a Gymnasium VectorEnv)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from adaptsplit.envs.expected import expected_world
from adaptsplit.envs.layout import ROW_COUNT, ROW_FIRST, ROW_OFFSET
from adaptsplit.envs.simulator import Simulator
from adaptsplit.envs.split_env import Actions, action_masks, action_space, observation_space, step_with
from adaptsplit.envs.vector_env import Episodes
from adaptsplit.envs.world import World, build_world
from adaptsplit.scenario import Scenario

Array = NDArray[Any]


def frame_means(world: World) -> Array:
    """Return (N + 1,) the mean quality over all branches and rates of each frame, weighted as the objective does."""
    o = world.outcomes
    answers = np.concatenate([o.exit_quality, o.tail_quality.reshape(len(o.tail_quality), -1)], axis=1)
    return np.asarray(world.weights.quality * answers.mean(axis=1, dtype=np.float64))


class SplitVecEnv(VecEnv):
    """n devices of one scenario as an SB3 ``VecEnv``; infos carry ``terminal_observation`` and ``episode`` (r, l).

    ``centred`` subtracts from each frame's reward the mean quality of all answers to that frame. It depends on the
    frame alone, never on a decision, so it changes no policy gradient and no order of decisions; it only takes out the
    noise of easy and hard frames (an input-dependent baseline: Mao et al., Variance Reduction for Reinforcement
    Learning in Input-Driven Environments, ICLR 2019). ``expected`` pays what an answer is worth in expectation instead
    of what its labels say (``expected_world``, fitted on the train split): a learner that sees a few thousand frames
    many times learns less by heart. ``episode`` keeps the return before centring.
    """

    def __init__(
        self,
        scenario: Scenario,
        num_envs: int,
        split: str = "train",
        seed: int = 0,
        actions: Actions = "flat",
        centred: bool = False,
        expected: bool = False,
    ) -> None:
        self.scenario, self.decisions, self.actions = scenario, scenario.space, actions
        world = build_world(scenario, split)
        if expected and world.answers.labelled:
            world = expected_world(world, world if split == "train" else build_world(scenario, "train"))
        self.simulator = Simulator(world, num_envs)
        self._centre = frame_means(world) if centred else np.zeros(len(world.outcomes.sharpness))
        self.render_mode = None
        self._episodes = Episodes(num_envs, seed)
        self._taken: Array = np.zeros(0, dtype=np.int64)
        self._return = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._no_info: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        super().__init__(num_envs, observation_space(), action_space(scenario.space, actions))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Name the sequence of episodes that the next ``reset`` starts."""
        self._episodes = Episodes(self.num_envs, 0 if seed is None else seed)
        return [seed] * self.num_envs

    def reset(self) -> VecEnvObs:
        """Start the next episode in every row."""
        self._return[:], self._steps[:] = 0.0, 0
        return self.simulator.reset(self._episodes.next(np.arange(self.num_envs))).copy()

    def step_async(self, actions: Array) -> None:
        """Keep the actions for ``step_wait``."""
        self._taken = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the kept actions; finished rows start their next episode."""
        before = self.simulator.frame
        observations, rewards, done = step_with(self.simulator, self.decisions, self.actions, self._taken)
        done = done.copy()
        self._return += rewards
        rewards = (rewards - self._expected(before)).astype(np.float32)
        self._steps += 1
        infos = self._no_info
        finished = np.flatnonzero(done)
        if len(finished):
            infos = self._restart(finished, observations)
        return self.simulator.observations.copy(), rewards, done, infos

    def _expected(self, before: Array) -> Array:
        """Sum of the frames' means from the frame decided on up to the frame at hand (n,)."""
        states, frames = self.simulator.states, self.simulator.world.constants.frames
        first, count, offset = (states[:, i].astype(np.int64) for i in (ROW_FIRST, ROW_COUNT, ROW_OFFSET))
        after = np.minimum(self.simulator.frame, frames)
        total = np.zeros(self.num_envs)
        for skipped in range(int((after - before).max(initial=0))):
            rows = first + (offset + before + skipped) % count
            total += np.where(before + skipped < after, self._centre[rows], 0.0)
        return total

    def _restart(self, finished: Array, observations: Array) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        terminated = self.simulator.terminated
        for row in finished:
            infos[row] = {
                "terminal_observation": observations[row].copy(),
                "TimeLimit.truncated": not terminated[row],
                "episode": {"r": float(self._return[row]), "l": int(self._steps[row]), "t": 0.0},
            }
        self._return[finished], self._steps[finished] = 0.0, 0
        self.simulator.reset_rows(finished, self._episodes.next(finished))
        return infos

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the shell's attribute once per row."""
        return [getattr(self, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the shell's attribute (rows share it)."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the shell; the answer is repeated per row."""
        answer = getattr(self, method_name)(*args, **kwargs)
        return [answer] * len(self._rows(indices))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Rows are never wrapped."""
        return [False] * len(self._rows(indices))

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the mask of distinct decisions (flattened action space), the same for every row."""
        return action_masks(self.decisions, self.actions)

    def _rows(self, indices: VecEnvIndices) -> list[int]:
        return list(range(self.num_envs)) if indices is None else [int(i) for i in np.atleast_1d(np.asarray(indices))]
