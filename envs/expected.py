"""A world in which every answer is worth what is to be expected of it, before its labels are known.

Whether an answer turns out right is noise to everybody who decides. With the expectation in its place a planner knows
no labels, and a learner meets less noise: the order of decisions in the mean is the same, as far as the fit is good.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.envs.world import World

Array = NDArray[Any]

KNOTS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)  # where the expected quality may bend: near the thresholds in use
RIDGE = 0.1  # both chosen by the squared error on the validation frames of flight-lte and eurosat-uplinks


def expected_world(world: World, train: World) -> World:
    """Return ``world`` with each quality replaced by what is expected given confidences and content signals.

    The expectation is fitted on the frames of ``train`` (policy-train).
    """
    exits = _regress(train, world, train.outcomes.exit_quality)
    tails = _regress(train, world, train.outcomes.tail_quality)
    return world._replace(
        outcomes=world.outcomes._replace(exit_quality=exits, tail_quality=tails),
        answers=world.answers._replace(labelled=False),
    )


def _features(world: World) -> Array:
    o = world.outcomes
    confidence = o.exit_confidence.astype(np.float64)
    signals = np.column_stack([o.sharpness, o.difference]).astype(np.float64)
    bends = [np.maximum(confidence - knot, 0.0) for knot in KNOTS]
    return np.column_stack([np.ones(len(confidence)), confidence, confidence**2, signals, *bends])


def _regress(train: World, world: World, target: Array) -> Array:
    """Ridge regression of every column of ``target`` (N + 1, ...) on the features; the average row is left out."""
    known = _features(train)[:-1]
    values = target[:-1].reshape(len(target) - 1, -1).astype(np.float64)
    gram = known.T @ known + RIDGE * np.eye(known.shape[1])
    weights = np.linalg.solve(gram, known.T @ values)
    expected = np.clip(_features(world) @ weights, 0.0, 1.0)
    expected[-1] = expected[:-1].mean(axis=0)
    return np.ascontiguousarray(expected.reshape((-1, *target.shape[1:])), dtype=np.float32)
