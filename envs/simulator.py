"""The batched simulator: n independent devices of one world, one state row each; environments are shells over it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation
from adaptsplit.envs.answers import row_of
from adaptsplit.envs.compiled import compiled, episode_seed, inlined
from adaptsplit.envs.core import look, refresh, reset_row, step_row
from adaptsplit.envs.exogenous import SEEDS
from adaptsplit.envs.layout import (
    BATTERY_J,
    DONE,
    FRAME,
    LINK,
    LINK_OFFSET,
    NOW,
    RING_START,
    ROW_COUNT,
    ROW_FIRST,
    ROW_OFFSET,
    STATE_SIZE,
    TERMINATED,
    TRACKER,
)
from adaptsplit.envs.link import sample
from adaptsplit.envs.observing import BLOCK, Buffers, buffers, scale_block
from adaptsplit.envs.packed import (
    CAPACITY,
    EXIT_BRANCH,
    EXIT_CONFIDENCE,
    FPS,
    KIND,
    PATIENCE,
    PAYLOAD,
    THRESHOLDS,
    Packed,
    of_branch,
    of_exit,
    of_link,
    of_sample,
    of_tail,
    pack,
)
from adaptsplit.envs.world import KIND_LOCAL, World
from adaptsplit.outcome import OUTCOME, Outcomes

Array = NDArray[Any]
LINE = 8  # float64 numbers in a cache line
ROWS_PER_THREAD = 1024  # a thread's hand-over costs as much as some hundred rows


@compiled
def reset_rows(w: Packed, states: Array, seeds: Array, rows: Array, scratch: Buffers, observations: Array) -> None:
    """Start an episode in each of ``rows`` and write its first observation."""
    for i in rows:
        reset_row(w, states[i], seeds[i])
        look(w, states[i], scratch.raw[0])
        scratch.who[0] = i
        scale_block(scratch, 1, observations)


@compiled
def refresh_rows(w: Packed, states: Array, scratch: Buffers, observations: Array) -> None:
    """Bring heartbeat, telemetry and observation in line with states that were changed by hand."""
    for i in range(states.shape[0]):
        refresh(w, states[i])
        look(w, states[i], scratch.raw[0])
        scratch.who[0] = i
        scale_block(scratch, 1, observations)


@compiled
def encode(actions: Array, shape: Array, codes: Array) -> int:
    """Write the place of each decision (n, 3) in the full grid; return the first row outside ``shape``, -1 for none."""
    for i in range(actions.shape[0]):
        b, r, t = actions[i, 0], actions[i, 1], actions[i, 2]
        if b < 0 or r < 0 or t < 0 or b >= shape[0] or r >= shape[1] or t >= shape[2]:
            return i
        codes[i] = (b * shape[1] + r) * shape[2] + t
    return -1


@compiled
def warm(w: Packed, states: Array, grid: Array, codes: Array, begin: int, end: int) -> float:
    """Touch what the steps of a block will read of the world, so that the cache misses of its rows overlap.

    Links and profiles are larger than the caches; one row's misses come one after the other. The sum keeps the compiler
    from leaving the reads out.
    """
    total = 0.0
    for i in range(begin, end):
        for line in range(0, RING_START, LINE):
            total += states[i, line]
        for line in range(TRACKER, STATE_SIZE, LINE):
            total += states[i, line]
    for i in range(begin, end):
        s, decision = states[i], grid[codes[i]]
        row = row_of(w, s, int(s[FRAME]), math.inf)
        confidence = of_exit(w, EXIT_CONFIDENCE, row, of_branch(w, EXIT_BRANCH, decision[0]))
        if confidence >= of_link(w, THRESHOLDS, decision[2]) or of_branch(w, KIND, decision[0]) >= KIND_LOCAL:
            continue  # nothing will be sent
        total += of_tail(w, PAYLOAD, row, decision[0], decision[1])
        now, link = s[NOW] + s[LINK_OFFSET], int(s[LINK])
        here, ahead = sample(w, link, now), sample(w, link, now + 1.0 / w.f8[FPS])
        for place in range(here, min(max(ahead, here), here + 8) + 1):
            total += of_sample(w, CAPACITY, place)
    return total


@inlined
def keep(observation: Array, before: Array) -> None:
    """Copy an observation."""
    for d in range(observation.shape[0]):
        observation[d] = before[d]


@compiled
def step_rows(
    w: Packed,
    states: Array,
    seeds: Array,
    logs: Array,
    grid: Array,
    codes: Array,
    first: int,
    last: int,
    scratch: Buffers,
    before: Array,
    observations: Array,
    rewards: Array,
    done: Array,
) -> None:
    """One decision in each running row of [first, last): state, log, observation, reward and end are written.

    The observation of a row that ends is that of the moment after its last frame; a row that had ended keeps its own.
    """
    for begin in range(first, last, BLOCK):
        count, end = 0, min(begin + BLOCK, last)
        if end - begin > 1:
            scratch.exponent[0] = warm(w, states, grid, codes, begin, end)
        for i in range(begin, end):
            s = states[i]
            rewards[i] = 0.0
            if s[DONE] == 1.0:
                keep(observations[i], before[i])
                continue
            decision = grid[codes[i]]
            threshold, patience = of_link(w, THRESHOLDS, decision[2]), of_link(w, PATIENCE, decision[2])
            rewards[i] = step_row(w, s, seeds[i], logs[i], decision[0], decision[1], threshold, patience, np.inf)
            done[i] = s[DONE] == 1.0
            look(w, s, scratch.raw[count])
            scratch.who[count] = i
            count += 1
        scale_block(scratch, count, observations)


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
    episode has ended are left alone until ``reset_rows`` names them. Large batches are
    shared among ``threads`` threads (None: the cores of the machine); the results do not depend on it.
    """

    def __init__(self, world: World, n: int, *, keep_all: bool = False, threads: int | None = None) -> None:
        """``keep_all`` keeps the record of every frame of the episode (evaluation), else of what can be unsettled."""
        self.world = world
        self.packed = pack(world)
        self.n = n
        frames = world.constants.frames
        unsettled = math.ceil(world.constants.deadline_s * world.constants.fps) + 3
        self.states = np.zeros((n, STATE_SIZE), dtype=np.float64)
        self.seeds = np.zeros(n, dtype=np.uint64)
        self.logs = np.zeros((n, frames if keep_all else min(frames, unsettled)), dtype=OUTCOME)
        self.logs["env"] = np.arange(n)[:, None]
        self.observations = np.zeros((n, observation.SIZE), dtype=np.float32)
        self.rewards = np.zeros(n, dtype=np.float64)
        self.done = np.zeros(n, dtype=np.bool_)
        self._shape = np.array([len(world.rates), int(world.rates.max()), len(world.thresholds)])
        self._codes = np.zeros(n, dtype=np.int64)
        self._team = _Team(n, threads)

    def reset(self, seeds: Array) -> Array:
        """Start every row with its own seed (n,) uint64; return observations (n, D), a view."""
        return self.reset_rows(np.arange(self.n), seeds)

    def reset_rows(self, rows: Array, seeds: Array) -> Array:
        """Start the named rows with ``seeds`` (len(rows),)."""
        self.seeds[rows] = np.asarray(seeds, dtype=np.uint64)
        self.done[rows] = False
        reset_rows(self.packed, self.states, self.seeds, rows, self._team.buffers[0], self.observations)
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
        refresh_rows(self.packed, self.states, self._team.buffers[0], self.observations)
        return self.observations

    def step(self, decisions: Array, out: Array | None = None) -> tuple[Array, Array, Array]:
        """Take decisions (n, 3) integers; return views (observations (n, D), rewards (n,), done (n,)).

        Decisions that make no difference act as their representative (``DecisionSpace.canonical``). ``out`` (n, D) f4
        takes the place of ``observations`` from this step on. IndexError for a decision outside the space.
        """
        taken = np.asarray(decisions)
        wrong = encode(taken, self._shape, self._codes) if taken.shape == (self.n, 3) else 0
        if wrong >= 0:
            raise IndexError(f"decisions {taken.shape}: expected ({self.n}, 3) indices below {tuple(self._shape)}")
        return self.step_codes(self._codes, out)

    def step_codes(self, codes: Array, out: Array | None = None) -> tuple[Array, Array, Array]:
        """As ``step`` for decisions named by their place (n,) int64 in the grid B x R x T, which is not checked."""
        before, self.observations = self.observations, self.observations if out is None else out
        self._team.run(self._step_part, codes, before)
        return self.observations, self.rewards, self.done

    def _step_part(self, codes: Array, before: Array, first: int, last: int, scratch: Buffers) -> float:
        step_rows(
            self.packed,
            self.states,
            self.seeds,
            self.logs,
            self.world.grid,
            codes,
            first,
            last,
            scratch,
            before,
            self.observations,
            self.rewards,
            self.done,
        )
        return perf_counter()

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


class _Team:
    """Splits rows among threads; the compiled core lets go of the interpreter's lock.

    The caller's thread takes the first part. The others start some tens of microseconds later, so its part grows until
    all end together.
    """

    def __init__(self, n: int, threads: int | None) -> None:
        wanted = (os.cpu_count() or 1) if threads is None else threads
        self.count = max(1, min(wanted, n // ROWS_PER_THREAD))
        self.buffers = [buffers() for _ in range(self.count)]
        self._n, self._own = n, n / self.count
        self._parts = self._split()
        self._pool = ThreadPoolExecutor(self.count - 1, "adaptsplit-step") if self.count > 1 else None

    def run(self, part: Callable[[Array, Array, int, int, Buffers], float], codes: Array, before: Array) -> None:
        """Call ``part(codes, before, first, last, buffers)`` for every part; it returns the time at its end."""
        if self._pool is None:
            part(codes, before, 0, self._n, self.buffers[0])
            return
        began = perf_counter()
        pairs = zip(self._parts[1:], self.buffers[1:], strict=True)
        others = [self._pool.submit(part, codes, before, a, b, scratch) for (a, b), scratch in pairs]
        ended = part(codes, before, *self._parts[0], self.buffers[0])
        late = max(other.result() for other in others) - ended
        per_row = (ended - began) / self._parts[0][1]
        self._own = min(max(self._own + 0.1 * late / per_row, self._n / self.count), 0.8 * self._n)
        self._parts = self._split()

    def _split(self) -> list[tuple[int, int]]:
        """The caller's rows in whole blocks, the rest in equal parts."""
        own = self._n if self.count == 1 else round(self._own / BLOCK) * BLOCK
        edges = [0, *np.linspace(own, self._n, self.count).astype(int)]
        return [(int(a), int(b)) for a, b in pairwise(edges)]


def episode_seeds(seed: int, count: int, split: str) -> Array:
    """Return the seeds (count,) of evaluation episodes: the same for every controller; they differ between splits."""
    key = np.uint64(seed) + np.uint64(SEEDS[split] << 48)
    return np.array([episode_seed(key, i, 0) for i in range(count)], dtype=np.uint64)
