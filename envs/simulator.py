"""The batched simulator: n independent devices of one world, one state row each; environments are shells over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation
from adaptsplit.envs.compiled import compiled, episode_seed
from adaptsplit.envs.core import observe_row, reset_row, step_row, telemetry
from adaptsplit.envs.layout import (
    BATTERY_J,
    BEAT_REPLY,
    DONE,
    FRAME,
    LINK,
    LINK_OFFSET,
    NOW,
    ROW_COUNT,
    ROW_FIRST,
    ROW_OFFSET,
    STATE_SIZE,
    TERMINATED,
)
from adaptsplit.envs.packed import RATE_COUNT, THRESHOLDS, Packed, of_branch, of_link, pack
from adaptsplit.envs.sender import beat_reply
from adaptsplit.envs.world import World
from adaptsplit.outcome import OUTCOME, Outcomes

Array = NDArray[Any]
LOG_FRAMES = 32  # how many frames back a frame can still be unsettled while training; evaluation keeps all


@compiled
def reset_rows(w: Packed, states: Array, seeds: Array, rows: Array, raw: Array, observations: Array) -> None:
    """Start an episode in each of ``rows`` and write its first observation."""
    for i in rows:
        reset_row(w, states[i], seeds[i])
        observe_row(w, states[i], raw, observations[i])


@compiled
def step_rows(
    w: Packed,
    states: Array,
    seeds: Array,
    logs: Array,
    decisions: Array,
    rows: Array,
    raw: Array,
    observations: Array,
    rewards: Array,
) -> None:
    """One decision in each of ``rows``: state, log, observation and reward are written in place."""
    for i in rows:
        s = states[i]
        branch = decisions[i, 0]
        rate = min(decisions[i, 1], of_branch(w, RATE_COUNT, branch) - 1)
        threshold = of_link(w, THRESHOLDS, decisions[i, 2])
        rewards[i] = step_row(w, s, seeds[i], logs[i], branch, rate, threshold, np.inf)
        if s[DONE] == 0.0:
            observe_row(w, s, raw, observations[i])


@compiled
def settle_rows(w: Packed, states: Array, raw: Array, observations: Array) -> None:
    """Bring heartbeat, telemetry and observation in line with states that were changed by hand."""
    for i in range(states.shape[0]):
        states[i, BEAT_REPLY] = 0.0
        states[i, BEAT_REPLY] = beat_reply(w, states[i], 0.0, np.inf)
        telemetry(w, states[i])
        observe_row(w, states[i], raw, observations[i])


@dataclass(frozen=True, slots=True)
class Stretch:
    """A named piece of the world: link (index) from ``offset_s`` on, flight (index) from its ``first_frame`` on."""

    link: int
    offset_s: float
    flight: int
    first_frame: int
    battery: float = 0.8


class Simulator:
    """n devices of one world.

    ``reset(seeds)`` starts an episode in every row, ``step(decisions)`` takes one decision (n, 3) in each. Rows whose
    episode has ended are left alone until ``reset_rows`` names them; their last observation stays.
    """

    def __init__(self, world: World, n: int, *, keep_all: bool = False) -> None:
        """``keep_all`` keeps the record of every frame of the episode (evaluation), else of the last few."""
        self.world = world
        self.packed = pack(world)
        self.n = n
        frames = world.constants.frames
        self.states = np.zeros((n, STATE_SIZE), dtype=np.float64)
        self.seeds = np.zeros(n, dtype=np.uint64)
        self.logs = np.zeros((n, frames if keep_all else min(frames, LOG_FRAMES)), dtype=OUTCOME)
        self.logs["env"] = np.arange(n)[:, None]
        self.observations = np.zeros((n, observation.SIZE), dtype=np.float32)
        self.rewards = np.zeros(n, dtype=np.float64)
        self._raw = np.zeros(observation.SIZE, dtype=np.float64)
        self._shape = np.array([len(world.rates), int(world.rates.max()), len(world.thresholds)])

    def reset(self, seeds: Array) -> Array:
        """Start every row with its own seed (n,) uint64; return observations (n, D), a view."""
        return self.reset_rows(np.arange(self.n), seeds)

    def reset_rows(self, rows: Array, seeds: Array) -> Array:
        """Start the named rows with ``seeds`` (len(rows),)."""
        self.seeds[rows] = np.asarray(seeds, dtype=np.uint64)
        reset_rows(self.packed, self.states, self.seeds, rows, self._raw, self.observations)
        return self.observations

    def place(self, stretch: Stretch) -> Array:
        """Put every row, just reset, on a named stretch of link and frames; return observations (n, D)."""
        w = self.world
        self.states[:, LINK], self.states[:, LINK_OFFSET] = stretch.link, stretch.offset_s
        self.states[:, ROW_FIRST], self.states[:, ROW_COUNT] = (
            w.flight_first[stretch.flight],
            w.flight_count[stretch.flight],
        )
        self.states[:, ROW_OFFSET] = stretch.first_frame
        self.states[:, BATTERY_J] = w.constants.battery_j * stretch.battery
        settle_rows(self.packed, self.states, self._raw, self.observations)
        return self.observations

    def step(self, decisions: Array) -> tuple[Array, Array, Array]:
        """Take decisions (n, 3); return views (observations (n, D), rewards (n,), done (n,)).

        IndexError for a decision outside the space.
        """
        taken = np.asarray(decisions)
        if taken.shape != (self.n, 3) or taken.min() < 0 or np.any(taken >= self._shape):
            raise IndexError(f"decisions {taken.shape}: expected ({self.n}, 3) indices below {tuple(self._shape)}")
        running = np.flatnonzero(self.states[:, DONE] == 0.0)
        self.rewards[:] = 0.0
        step_rows(
            self.packed,
            self.states,
            self.seeds,
            self.logs,
            taken,
            running,
            self._raw,
            self.observations,
            self.rewards,
        )
        return self.observations, self.rewards, self.done

    @property
    def done(self) -> Array:
        """(n,) bool: the episode has ended (its last frame is settled, or the battery is empty)."""
        return np.asarray(self.states[:, DONE] == 1.0)

    @property
    def terminated(self) -> Array:
        """(n,) bool: it ended because the battery is empty."""
        return np.asarray(self.states[:, TERMINATED] == 1.0)

    @property
    def now(self) -> Array:
        """(n,) seconds since the episode's start at the decision to come."""
        return self.states[:, NOW]

    @property
    def frame(self) -> Array:
        """(n,) index of the frame at hand."""
        return self.states[:, FRAME].astype(np.int64)

    def outcomes(self) -> Outcomes:
        """Return a copy of the log (n, frames kept)."""
        return self.logs.copy()


def episode_seeds(seed: int, count: int, split: str) -> Array:
    """Return the seeds (count,) of evaluation episodes: the same for every controller; they differ between splits."""
    key = np.uint64(seed) + np.uint64({"train": 1, "validation": 2, "test": 3}[split] << 48)
    return np.array([episode_seed(key, i, 0) for i in range(count)], dtype=np.uint64)
