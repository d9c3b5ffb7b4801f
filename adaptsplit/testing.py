"""Contract tests that a user's own parts can be given, by one call each.

>>> from adaptsplit.agents import RandomController
>>> from adaptsplit.decision import BranchSpec, DecisionSpace
>>> space = DecisionSpace((BranchSpec("stem", "split", ("q8c-zstd",)),))
>>> check_controller(RandomController(space), space)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit import outcome
from adaptsplit.controller import Controller
from adaptsplit.decision import DecisionSpace


def extreme_observations() -> NDArray[np.float32]:
    """Return (4 + 2 D, D) observations at the corners: all low, all high, half, alternating, and one field each."""
    size = obs.SIZE
    rows = [np.zeros(size), np.ones(size), np.full(size, 0.5), np.arange(size) % 2]
    rows += [np.eye(size)[i] for i in range(size)] + [1.0 - np.eye(size)[i] for i in range(size)]
    return np.array(rows, dtype=np.float32)


def check_controller(controller: Controller, space: DecisionSpace, seed: int = 0) -> None:
    """Assert that a controller keeps its contract: AssertionError names the rule that it breaks.

    Any observation inside 0..1 gives (n, 3) integer indices inside the space, for n = 1 and n = 64; the observation is
    left as it was; the same generator gives the same decisions; ``learn`` returns a state that ``act`` takes.
    """
    assert isinstance(controller, Controller), f"{controller!r} lacks name, learns, init, act or learn"
    assert controller.name, "name must not be empty"
    rng = np.random.default_rng(seed)
    batch = rng.random((64, obs.SIZE), dtype=np.float32)
    for observations in (batch, batch[:1], extreme_observations()):
        first, second = (_decisions(controller, space, observations, seed) for _ in range(2))
        for one, other in zip(first, second, strict=True):
            assert np.array_equal(one, other), f"{controller.name}: the same generator gives other decisions"


def _decisions(
    controller: Controller, space: DecisionSpace, observations: NDArray[np.float32], seed: int
) -> list[NDArray[Any]]:
    """Act four times on the same observations, with an outcome learned between; check every answer."""
    state = controller.init(len(observations), np.random.default_rng(seed))
    answers = []
    for frame in range(4):
        before = observations.copy()
        decision, state = controller.act(observations, state)
        _check_decision(controller.name, decision, space, len(observations))
        assert np.array_equal(before, observations), f"{controller.name}: act changed the observations"
        answers.append(np.array(decision, copy=True))
        if controller.learns:
            state = controller.learn(_outcomes(decision, space, frame), state)
    return answers


def _check_decision(name: str, decision: NDArray[Any], space: DecisionSpace, n: int) -> None:
    assert isinstance(decision, np.ndarray), f"{name}: act returned {type(decision).__name__}, expected an array"
    assert decision.shape == (n, 3), f"{name}: decisions of shape {decision.shape}, expected {(n, 3)}"
    assert np.issubdtype(decision.dtype, np.integer), f"{name}: decisions of type {decision.dtype}, expected integers"
    assert decision.min() >= 0, f"{name}: a negative index"
    assert np.all(decision < np.array(space.shape)), f"{name}: an index outside {space.shape}"
    assert np.all(decision[:, 1] < space.rates_per_branch[decision[:, 0]]), f"{name}: a rate that the branch lacks"


def _outcomes(decision: NDArray[Any], space: DecisionSpace, frame: int) -> outcome.Outcomes:
    """Return remote answers to the decisions, as ``learn`` would be told of them."""
    records = outcome.empty(len(decision))
    records["env"], records["frame"] = np.arange(len(decision)), frame
    records["branch"], records["rate"] = decision[:, 0], decision[:, 1]
    records["threshold"] = np.array(space.thresholds)[decision[:, 2]]
    records["patience"] = np.array(space.patience)[decision[:, 2]]
    records["path"], records["quality"], records["confidence"] = outcome.Path.REMOTE, 0.9, 0.9
    records["answer_latency_s"] = records["remote_latency_s"] = 0.1
    records["known_s"] = 0.1 + 0.2 * frame
    return records
