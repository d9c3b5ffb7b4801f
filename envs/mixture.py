"""Several worlds in one stable-baselines3 ``VecEnv``: domain randomisation, and policies that see their objective.

Each world has a simulator of its own; the rows of the vector environment are shared among them. The parts are stepped
one after the other: 512 rows in 16 parts take 0.5 ms a step instead of 0.15 ms in one, beside about 5 ms that the
learner takes for the same step (measured on two cores of an x86 server, embedded world).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from adaptsplit import observation as obs
from adaptsplit.agents.conditions import Condition, inputs_of, objective_at
from adaptsplit.envs.packed import W_LATENCY, W_QUALITY, Packed
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.envs.simulator import Simulator
from adaptsplit.envs.split_env import Actions, action_masks, action_space
from adaptsplit.errors import ConfigError
from adaptsplit.objective import Objective
from adaptsplit.outcome import Outcomes
from adaptsplit.scenario import Scenario

Array = NDArray[Any]
HOLD_STEPS = 64  # how long a part keeps its weights: many times what a decision's consequences last (5 frames)
PART_SEED = 1 << 40  # between the episode sequences of two parts


@dataclass(frozen=True, slots=True)
class Part:
    """One world of a mixture; ``weight`` is its share of the rows, relative to the other parts'."""

    scenario: Scenario
    weight: float = 1.0
    split: str = "train"


@dataclass(slots=True)
class Earned:
    """What training reads of a simulator: the rewards (n,) of the last step as earned, not centred."""

    rewards: Array


def row_counts(weights: Sequence[float], rows: int) -> list[int]:
    """Return how many of ``rows`` each part gets: in proportion (largest remainder), at least one each.

    ConfigError for fewer rows than parts, or a weight that is not above 0.
    """
    if not weights or rows < len(weights) or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ConfigError(
            f"{rows} rows for {len(weights)} worlds of weights {list(weights)}: expected weights above 0 and at least "
            "one row for each world; raise --envs or name fewer worlds"
        )
    wanted = np.array(weights) / sum(weights) * rows
    counts = np.maximum(np.floor(wanted).astype(np.int64), 1)
    while counts.sum() != rows:
        step = 1 if counts.sum() < rows else -1
        open_to = counts > 1 if step < 0 else np.ones(len(counts), dtype=np.bool_)
        counts[int(np.argmax(np.where(open_to, step * (wanted - counts), -math.inf)))] += step
    return [int(count) for count in counts]


class MixtureVecEnv(VecEnv):
    """n devices shared among K worlds of one decision space; rewards, infos, centring and
    expectation as in ``SplitVecEnv``.

    ``conditions`` (C of them) are appended to the observation, which becomes (n, D + C): each part draws its weights
    anew every ``HOLD_STEPS`` steps, from its own random numbers, and its rewards are those of these weights. A frame
    that waits for the sender's window at that moment is paid by the new ones.

    ``keep_outcomes`` keeps the records that ``take_outcomes`` returns. ConfigError when the worlds differ in their
    decision space, or when there are more of them than rows. One part alone is ``SplitVecEnv``, bit for bit.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        num_envs: int,
        seed: int = 0,
        actions: Actions = "flat",
        centred: bool = False,
        conditions: Sequence[Condition] = (),
        keep_outcomes: bool = False,
        expected: bool = False,
    ) -> None:
        counts = row_counts([part.weight for part in parts], num_envs)
        self.decisions, self.actions, self.render_mode = _common_space(parts), actions, None
        self.scenario = parts[0].scenario
        self.parts = tuple(
            SplitVecEnv(part.scenario, count, part.split, seed + i * PART_SEED, actions, centred, expected)
            for i, (part, count) in enumerate(zip(parts, counts, strict=True))
        )
        if keep_outcomes:
            for env in self.parts:
                env.simulator = Simulator(env.simulator.world, env.num_envs, keep_all=True)
        _share_tables([env.simulator for env in self.parts])
        edges = np.concatenate([[0], np.cumsum(counts)])
        self._rows_of = [slice(int(a), int(b)) for a, b in pairwise(edges)]
        self._measured: list[Array] = [np.zeros(count, dtype=np.int64) for count in counts]
        self.conditions, self._steps = tuple(conditions), 0
        self.simulator = Earned(np.zeros(num_envs))
        self._taken: Array = np.zeros(0, dtype=np.int64)
        self._wide = np.zeros((num_envs, obs.SIZE + len(self.conditions)), dtype=np.float32)
        self._draws = np.random.default_rng([seed, 1])
        space = gym.spaces.Box(0.0, 1.0, (self._wide.shape[1],), dtype=np.float32)
        super().__init__(num_envs, space, action_space(self.decisions, actions))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Name the sequence of episodes (and of weights) that the next ``reset`` starts."""
        first = 0 if seed is None else seed
        self._draws = np.random.default_rng([first, 1])
        for i, env in enumerate(self.parts):
            env.seed(first + i * PART_SEED)
        return [seed] * self.num_envs

    def reset(self) -> VecEnvObs:
        """Start the next episode in every row, at weights drawn anew."""
        self._steps = 0
        for i, (env, rows) in enumerate(zip(self.parts, self._rows_of, strict=True)):
            env.reset()
            self._wide[rows, : obs.SIZE] = env.simulator.observations
            self._measured[i][:] = 0
            self._redraw(i)
        return self._wide.copy()

    def step_async(self, actions: Array) -> None:
        """Keep the actions for ``step_wait``."""
        self._taken = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Take the kept actions, world by world."""
        rewards, done = np.zeros(self.num_envs, dtype=np.float32), np.zeros(self.num_envs, dtype=np.bool_)
        infos: list[dict[str, Any]] = []
        for env, rows in zip(self.parts, self._rows_of, strict=True):
            env.step_async(self._taken[rows])
            _, rewards[rows], done[rows], found = env.step_wait()
            self._wide[rows, : obs.SIZE] = env.simulator.observations
            self.simulator.rewards[rows] = env.simulator.rewards
            infos += found
        if self.conditions:
            self._widen(np.flatnonzero(done), infos)
        self._steps += 1
        for i in range(len(self.parts)):
            # staggered, so that the learner never meets all weights changed at once
            if self.conditions and (self._steps + i * HOLD_STEPS // len(self.parts)) % HOLD_STEPS == 0:
                self._redraw(i)
        return self._wide.copy(), rewards, done, infos

    def _widen(self, finished: Array, infos: list[dict[str, Any]]) -> None:
        """Append the weights, as they still are, to the last observations of finished episodes."""
        for row in finished:
            last = infos[row]["terminal_observation"]
            infos[row]["terminal_observation"] = np.concatenate([last, self._wide[row, obs.SIZE :]])

    def _redraw(self, part: int) -> None:
        if self.conditions:
            drawn = self._draws.random(len(self.conditions))
            self.reweight(objective_at(self.conditions, self.parts[part].scenario.objective, drawn), part)

    def reweight(self, objective: Objective, part: int | None = None) -> None:
        """Pay by ``objective`` from now on, in one part or in all; ConfigError when its quality weight is another.

        (The frames' means that ``centred`` takes out were weighted by it.)
        """
        for i in range(len(self.parts)) if part is None else (part,):
            env = self.parts[i]
            if objective.quality != env.simulator.world.weights.quality:
                raise ConfigError(
                    f"quality weight {objective.quality:g}: the world has {env.simulator.world.weights.quality:g}, "
                    "which cannot change while it runs; scale the other weights instead"
                )
            env.simulator.packed.f8[W_QUALITY : W_LATENCY + 1] = objective.weights()
            self._wide[self._rows_of[i], obs.SIZE :] = inputs_of(self.conditions, objective)

    def take_outcomes(self) -> Outcomes:
        """Return the records (flat) of the frames that were settled since the last call.

        Needs ``keep_outcomes``. Of an episode that ended between two calls the rest is left out.
        """
        found = []
        for env, measured in zip(self.parts, self._measured, strict=True):
            simulator, constants = env.simulator, env.simulator.world.constants
            open_frames = math.ceil(constants.deadline_s * constants.fps) + 3
            low = np.where(simulator.frame >= measured, measured, 0)
            high = np.maximum(simulator.frame - open_frames, low)
            places = np.arange(simulator.logs.shape[1])[None, :]
            found.append(simulator.logs[(places >= low[:, None]) & (places < high[:, None])])
            measured[:] = high
        return np.concatenate(found)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return the mask of distinct decisions (flattened action space), the same for every row."""
        return action_masks(self.decisions, self.actions)

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the shell's attribute once per row."""
        return [getattr(self, attr_name)] * len(self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the shell's attribute (rows share it)."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the shell; the answer is repeated per row."""
        answer = getattr(self, method_name)(*args, **kwargs)
        return [answer] * len(self._chosen(indices))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Rows are never wrapped."""
        return [False] * len(self._chosen(indices))

    def _chosen(self, indices: VecEnvIndices) -> list[int]:
        return list(range(self.num_envs)) if indices is None else [int(i) for i in np.atleast_1d(np.asarray(indices))]


def _common_space(parts: Sequence[Part]) -> Any:
    """Return the decision space of all parts; ConfigError names the first that has another."""
    space = parts[0].scenario.space
    for part in parts[1:]:
        if part.scenario.space != space:
            raise ConfigError(
                f"scenario {part.scenario.name!r}: its decision space (branches, codecs, thresholds) is not that of "
                f"{parts[0].scenario.name!r}; mix scenarios of one profile and the same thresholds"
            )
    return space


def _share_tables(simulators: Sequence[Simulator]) -> None:
    """Let parts with equal tables read the same memory; the floats that hold the weights stay each one's own."""
    kept: list[Packed] = []
    for simulator in simulators:
        own = simulator.packed
        f4, i8, u1 = (
            next((old for old in (getattr(k, name) for k in kept) if np.array_equal(old, array)), array)
            for name, array in (("f4", own.f4), ("i8", own.i8), ("u1", own.u1))
        )
        simulator.packed = Packed(f4, own.f8, i8, u1)
        kept.append(simulator.packed)
