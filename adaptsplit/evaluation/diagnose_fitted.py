"""A cheap controller fitted to rollouts, and what each group of observation fields is worth to it.

From some thousand states of policy-train episodes every candidate decision is tried for a short while, all with the
same link, frames and stage times; its advantage over the candidates' mean is regressed on the observation, and the
controller takes the decision of the best predicted advantage. That is one step of rollout policy iteration (Tesauro
and Galperin, NIPS 1996; Lagoudakis and Parr, ICML 2003, both from memory). It trains in seconds and is no rival of a
learned policy: it is there to be fitted again without a group of fields.
Letters: n states, K candidate decisions, D observation fields.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.controller import Decisions, Observations, State, Stateless
from adaptsplit.envs import Simulator, World
from adaptsplit.envs.layout import FRAME, ROW_COUNT, ROW_FIRST, ROW_OFFSET
from adaptsplit.observation import FIELDS

Floats = NDArray[np.float64]

KNOTS = (0.15, 0.35, 0.5, 0.65, 0.85)
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Penalties that are tried, per state; with the largest, little more than the best constant decision is left."""
FOLDS = 5
SETTLE_FRAMES = 3
MEAN_HOLD = 8.0
ROWS = 16_384


@dataclass(frozen=True, slots=True)
class Rollouts:
    """``observations`` (n, D), ``advantages`` (n, K) of the decisions ``rows`` (K, 3), in reward per frame.

    ``folds`` (n,): states of one fold are of one part of the profile, so that a fit which merely remembers frames
    shows as such on the others.
    """

    observations: Observations
    advantages: Floats
    rows: Decisions
    folds: NDArray[np.int64]


@dataclass(slots=True)
class _States:
    """Copies of simulator rows."""

    states: NDArray[Any]
    logs: NDArray[Any]
    seeds: NDArray[np.uint64]
    observations: Observations

    def part(self, rows: slice) -> _States:
        return _States(self.states[rows], self.logs[rows], self.seeds[rows], self.observations[rows])


def horizon_frames(world: World) -> int:
    """Return for how many frames a decision is tried: until its first answer counts, and a little longer."""
    return math.ceil(world.constants.deadline_s * world.constants.fps) + SETTLE_FRAMES


def roll_out(world: World, rows: Decisions, seeds: NDArray[np.uint64], states: int, seed: int = 0) -> Rollouts:
    """Visit about ``states`` states of the episodes ``seeds`` and try each of ``rows`` (K, 3) from every one."""
    horizon, rng = horizon_frames(world), np.random.default_rng([seed, 2])
    visited = _visit(world, rows, seeds, states, horizon, rng)
    step = max(1, ROWS // len(rows))
    starts = range(0, len(visited.seeds), step)
    values = np.concatenate([_try(world, rows, visited.part(slice(a, a + step)), horizon) for a in starts])
    advantages = values - values.mean(axis=1, keepdims=True)
    return Rollouts(visited.observations, advantages, rows, _folds(world, visited.states))


def _folds(world: World, states: NDArray[Any]) -> NDArray[np.int64]:
    """Number the parts of the profile that the states' frames lie in, 0 to ``FOLDS`` - 1."""
    place = (states[:, ROW_OFFSET] + states[:, FRAME]) % states[:, ROW_COUNT]
    row = states[:, ROW_FIRST] + place
    return np.asarray(row * FOLDS / len(world.outcomes.sharpness), dtype=np.int64)


def _visit(
    world: World, rows: Decisions, seeds: NDArray[np.uint64], states: int, horizon: int, rng: np.random.Generator
) -> _States:
    """Play random candidates, each held for ``MEAN_HOLD`` decisions on average, and keep some states on the way."""
    simulator, found = Simulator(world, len(seeds)), []
    simulator.reset(seeds)
    chance = states / (len(seeds) * world.constants.frames)
    taken = rows[rng.integers(len(rows), size=len(seeds))]
    while not simulator.done.all():
        fresh = rng.random(len(seeds)) < 1.0 / MEAN_HOLD
        taken = np.where(fresh[:, None], rows[rng.integers(len(rows), size=len(seeds))], taken)
        usable = ~simulator.done & (simulator.frame < world.constants.frames - horizon)
        kept = np.flatnonzero(usable & (rng.random(len(seeds)) < chance))
        if len(kept):
            arrays = (simulator.states, simulator.logs, simulator.seeds, simulator.observations)
            found.append([array[kept].copy() for array in arrays])
        simulator.step(taken)
    return _States(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def _try(world: World, rows: Decisions, visited: _States, horizon: int) -> Floats:
    """Return (n, K) mean reward per frame while each decision is held for ``horizon`` frames."""
    n, k = len(visited.seeds), len(rows)
    simulator = Simulator(world, n * k)
    simulator.states[:] = np.repeat(visited.states, k, axis=0)
    simulator.logs[:] = np.repeat(visited.logs, k, axis=0)
    simulator.seeds[:] = np.repeat(visited.seeds, k)
    begun, total, decisions = simulator.frame, np.zeros(n * k), np.tile(rows, (n, 1))
    ended = begun + 1
    while (running := ~simulator.done & (simulator.frame < begun + horizon)).any():
        rewards = simulator.step(decisions)[1]
        total += np.where(running, rewards, 0.0)
        ended = np.where(running, simulator.frame, ended)
    return np.asarray(total / np.maximum(ended - begun, 1)).reshape(n, k)


class FittedController(Stateless):
    """Takes the decision of the best predicted advantage: ridge regression on hinges of the fields ``columns``.

    The penalty is the one with the smallest squared error on the folds that were left out.
    """

    kind = "rule"

    def __init__(self, data: Rollouts, columns: NDArray[np.int64], name: str = "fitted") -> None:
        self.name, self._columns, self._rows = name, columns, data.rows
        self._knots = np.quantile(data.observations[:, columns], KNOTS, axis=0)
        features = self._features(data.observations)
        deviation = features.std(axis=0)
        self._mean, self._scale = features.mean(axis=0), np.where(deviation > 1e-6, deviation, np.inf)
        scaled = (features - self._mean) / self._scale
        self._bias = data.advantages.mean(axis=0)
        self._weights = _ridge(scaled, data.advantages - self._bias, data.folds)

    def _features(self, observation: Observations) -> Floats:
        fields = observation[:, self._columns].astype(np.float64)
        return np.concatenate([fields, *(np.maximum(fields - knot, 0.0) for knot in self._knots)], axis=1)

    def predict(self, observation: Observations) -> Floats:
        """Return (n, K) predicted advantages of (n, D) observations."""
        return np.asarray(self._bias + (self._features(observation) - self._mean) / self._scale @ self._weights)

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions."""
        return self._rows[self.predict(observation).argmax(axis=1)], state


def _ridge(features: Floats, targets: Floats, folds: NDArray[np.int64]) -> Floats:
    """Return the (features, K) weights under the penalty that does best across folds."""
    error = np.zeros(len(RIDGES))
    for fold in np.unique(folds):
        out = folds == fold
        if out.all():
            continue
        solved = _solve(features[~out], targets[~out], RIDGES)
        error += [float(np.square(features[out] @ weights - targets[out]).sum()) for weights in solved]
    return _solve(features, targets, (RIDGES[int(error.argmin())],))[0]


def _solve(features: Floats, targets: Floats, penalties: Sequence[float]) -> list[Floats]:
    values, vectors = np.linalg.eigh(features.T @ features)
    along = vectors.T @ (features.T @ targets)
    return [vectors @ (along / (values + penalty * len(features))[:, None]) for penalty in penalties]


class MaskedController(Stateless):
    """Another controller that sees some fields (indices) at fixed values."""

    kind = "rule"

    def __init__(self, inner: FittedController, columns: NDArray[np.int64], values: Observations) -> None:
        self.name, self._inner, self._columns, self._values = "masked", inner, columns, values

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions."""
        seen = observation.copy()
        seen[:, self._columns] = self._values
        return self._inner.act(seen, state)


def field_groups() -> dict[str, NDArray[np.int64]]:
    """Return the indices of the observation fields of each group."""
    groups = dict.fromkeys(field.group for field in FIELDS)
    return {name: np.flatnonzero([field.group == name for field in FIELDS]) for name in groups}
