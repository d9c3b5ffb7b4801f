"""What a student learns from: states on its own path, the teacher's decisions there, and what every other one costs.

The student decides where it goes and the teacher is asked everywhere (DAgger: Ross, Gordon, Bagnell, AISTATS 2011).
How much a wrong decision loses is either read from the teacher (its Q values, or the logarithms of its probabilities:
VIPER, Bastani, Pu, Solar-Lezama, NeurIPS 2018, equation 3) or measured: each candidate is taken once from a copy of the
simulator's state, all with the same link, frames and stage times, and then a policy goes on (AggreVaTe: Ross and
Bagnell 2014). The papers' ideas are used as remembered; they were not read again for this file.
Letters: n states, K candidate decisions, D observation fields, M decisions of the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.policy import PolicyController
from adaptsplit.controller import Controller, Decisions, Observations
from adaptsplit.decision import DecisionSpace
from adaptsplit.envs import Simulator, World
from adaptsplit.envs.runner import Delivery

Floats = NDArray[np.float64]

SETTLE_FRAMES = 3  # frames after the first answer counts during which a decision's queue is still felt
BLOCK_BYTES = 64 << 20  # memory of one block of simulated copies
Q_AGENTS = ("dqn", "qr-dqn")  # agents whose outputs are values in units of reward


@dataclass(frozen=True, slots=True)
class Labels:
    """States with what is known of them.

    ``observations`` (n, D); ``taught`` (n,) the teacher's decision as a row of the table; ``weights`` (n,), above
    0, what a wrong decision loses there (only their ratios count); ``chances`` (n, M) the probability that the teacher
    gives to each decision, None where it gives none.
    """

    observations: Observations
    taught: NDArray[np.int64]
    weights: Floats
    chances: NDArray[np.float32] | None = None

    def joined(self, other: Labels) -> Labels:
        """Return both sets."""
        chances = None
        if self.chances is not None and other.chances is not None:
            chances = np.concatenate([self.chances, other.chances])
        return Labels(
            np.concatenate([self.observations, other.observations]),
            np.concatenate([self.taught, other.taught]),
            np.concatenate([self.weights, other.weights]),
            chances,
        )

    def part(self, rows: NDArray[np.bool_]) -> Labels:
        """Return some of the states."""
        chances = None if self.chances is None else self.chances[rows]
        return Labels(self.observations[rows], self.taught[rows], self.weights[rows], chances)

    def __len__(self) -> int:
        return len(self.taught)


@dataclass(slots=True)
class Visited:
    """Copies of simulator rows and the teacher's decision (n,) in each."""

    states: NDArray[Any]
    logs: NDArray[Any]
    seeds: NDArray[np.uint64]
    observations: Observations
    taught: NDArray[np.int64]

    def part(self, rows: slice) -> Visited:
        """Return some of the states."""
        return Visited(self.states[rows], self.logs[rows], self.seeds[rows], self.observations[rows], self.taught[rows])

    def __len__(self) -> int:
        return len(self.seeds)


def horizon_frames(world: World) -> int:
    """Return for how many frames the effect of one decision is counted."""
    return math.ceil(world.constants.deadline_s * world.constants.fps) + SETTLE_FRAMES


def table_rows(space: DecisionSpace, decisions: Decisions) -> NDArray[np.int64]:
    """Return the (n,) rows of the space's table that (n, 3) decisions stand for."""
    place = np.ravel_multi_index(tuple(space.canonical(decisions).T), space.shape)
    return np.asarray(np.searchsorted(space.codes, place), dtype=np.int64)


def visit(
    world: World,
    space: DecisionSpace,
    teacher: Controller,
    student: Controller | None,
    seeds: NDArray[np.uint64],
    count: int,
    *,
    mixture: float = 0.0,
    seed: int = 0,
) -> Visited:
    """Play the episodes and keep about ``count`` states on the way.

    Each decision is the student's, or in a share ``mixture`` of them (without a student: always) the teacher's. The
    teacher sees every observation and, when it learns, every outcome; what it would have done is kept.
    """
    rng, n = np.random.default_rng([seed, 3]), len(seeds)
    simulator = Simulator(world, n, keep_all=teacher.learns)
    simulator.reset(seeds)
    state, delivery = teacher.init(n, rng.spawn(1)[0]), Delivery(simulator)
    usable_frames = world.constants.frames - horizon_frames(world)
    chance = count / (n * max(usable_frames, 1))
    found = []
    while not simulator.done.all():
        taught, state = teacher.act(simulator.observations, state)
        usable = ~simulator.done & (simulator.frame < usable_frames)
        kept = np.flatnonzero(usable & (rng.random(n) < chance))
        if len(kept):
            arrays = (simulator.states, simulator.logs, simulator.seeds, simulator.observations)
            found.append([*(array[kept].copy() for array in arrays), table_rows(space, taught[kept])])
        simulator.step(_mixed(taught, student, simulator.observations, mixture, rng))
        if teacher.learns:
            state = delivery.hand_out(teacher, state)
    return Visited(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def _mixed(
    taught: Decisions, student: Controller | None, observations: Observations, mixture: float, rng: np.random.Generator
) -> Decisions:
    if student is None:
        return np.asarray(taught, dtype=np.int64)
    own, _ = student.act(observations, None)
    return np.where((rng.random(len(own)) < mixture)[:, None], taught, own).astype(np.int64)


def measured_weights(
    world: World, space: DecisionSpace, visited: Visited, candidates: NDArray[np.int64], follower: Controller
) -> Floats:
    """Return (n,): reward that the worst candidate loses against the teacher's decision, never below 0.

    Each candidate (a row of the table) and the teacher's decision are taken once; then the stateless ``follower``
    decides. Summed over the frames of the horizon.
    """
    bytes_per_row = visited.states[0].nbytes + visited.logs[0].nbytes
    step = max(1, BLOCK_BYTES // (bytes_per_row * (len(candidates) + 1)))
    parts = []
    for start in range(0, len(visited), step):
        part = visited.part(slice(start, start + step))
        tried = np.column_stack([part.taught, np.tile(candidates, (len(part), 1))])
        values = _values(world, space.table[tried], part, follower)
        parts.append(values[:, 0] - values.min(axis=1))
    return np.concatenate(parts) * horizon_frames(world)


def _values(world: World, decisions: NDArray[np.int64], visited: Visited, follower: Controller) -> Floats:
    """Return (n, K) mean reward per frame over the horizon after taking each of (n, K, 3) ``decisions`` once."""
    n, k, horizon = len(visited), decisions.shape[1], horizon_frames(world)
    simulator = Simulator(world, n * k, keep_all=visited.logs.shape[1] == world.constants.frames)
    for name in ("states", "logs", "seeds"):
        getattr(simulator, name)[:] = np.repeat(getattr(visited, name), k, axis=0)
    begun, total = simulator.frame, np.zeros(n * k)
    taken, ended = decisions.reshape(-1, 3), begun + 1
    while (running := ~simulator.done & (simulator.frame < begun + horizon)).any():
        observations, rewards, _ = simulator.step(taken)
        total += np.where(running, rewards, 0.0)
        ended = np.where(running, simulator.frame, ended)
        taken, _ = follower.act(observations, None)
    return np.asarray(total / np.maximum(ended - begun, 1)).reshape(n, k)


def teacher_values(teacher: Controller, observations: Observations, agent: str) -> tuple[Floats, Literal["q", "log"]]:
    """Return (n, M) values of every decision as a learned teacher sees them, and what they are.

    "q": its Q values. "log": logarithms of its probabilities, which stand in for values up to a factor (VIPER, section
    3.3: the policy of largest entropy). TypeError for a teacher without outputs.
    """
    if not isinstance(teacher, PolicyController):
        raise TypeError(f"{teacher.name}: no network whose outputs could be read")
    output, table = teacher.outputs(observations).astype(np.float64), teacher.space.table
    if teacher.net.head == "flat":
        return (output, "q") if agent in Q_AGENTS else (_log_softmax(output), "log")
    bounds = np.cumsum((0, *teacher.space.shape))
    heads = [_log_softmax(output[:, a:b]) for a, b in pairwise(bounds)]
    return heads[0][:, table[:, 0]] + heads[1][:, table[:, 1]] + heads[2][:, table[:, 2]], "log"


def _log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def candidates_of(taught: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return (K,) rows of the table: the ``limit`` decisions that the teacher takes most often, ascending."""
    rows, counts = np.unique(taught, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:limit]
    return np.asarray(np.sort(rows[order]), dtype=np.int64)
