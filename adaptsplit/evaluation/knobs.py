"""What each knob is worth: the informed oracle with one knob frozen at its best value against all three free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import DecisionSpace
from adaptsplit.evaluation import results as doc
from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.analysis import estimate
from adaptsplit.outcome import Outcomes

Floats = NDArray[np.float64]
KnobName = Literal["branch", "rate", "threshold"]
KNOBS: tuple[KnobName, ...] = get_args(KnobName)
Planner = Callable[[NDArray[np.int64] | None, Sequence[Outcomes]], tuple[Outcomes, Floats]]
Progress = Callable[[int, int], None]


def frozen_table(space: DecisionSpace, knob: KnobName, value: int) -> NDArray[np.int64]:
    """Return the distinct decisions (M, 3) that remain when one knob stands at index ``value``.

    A rate beyond a branch's own stands for its last; decisions on which the knob has no effect remain available.
    """
    axes = [np.arange(size) for size in space.shape]
    axes[KNOBS.index(knob)] = np.array([value])
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    return np.unique(space.canonical(grid), axis=0)


def value_name(space: DecisionSpace, knob: KnobName, value: int) -> str:
    """Return how one value of a knob is called."""
    if knob == "branch":
        return space.branches[value].name
    return str(value) if knob == "rate" else space.rule_names[value]


def knob_worth(
    space: DecisionSpace, planner: Planner, resamples: stats.Resamples, oracle: str, progress: Progress | None = None
) -> doc.Knobs:
    """Freeze each knob at each of its values, then free all three.

    ``planner(table, rivals)`` returns the oracle's outcomes (E, F) and their (E,) reward with the decisions of
    ``table`` only (None: all). The free oracle is shown the frozen plans. As it weighs them by *expected* quality, a
    worth may still come out a little below zero, within what its interval says.
    """
    settings = [(knob, value) for knob, size in zip(KNOBS, space.shape, strict=True) for value in range(size)]
    frozen: dict[KnobName, list[Floats]] = {knob: [] for knob in KNOBS}
    rivals: list[Outcomes] = []
    for done, (knob, value) in enumerate(settings, start=1):
        outcomes, reward = planner(frozen_table(space, knob, value), ())
        frozen[knob].append(reward)
        rivals.append(outcomes)
        if progress is not None:
            progress(done, len(settings) + 1)
    free = planner(None, rivals)[1]
    if progress is not None:
        progress(len(settings) + 1, len(settings) + 1)
    found = tuple(_knob(space, knob, free, frozen[knob], resamples) for knob in KNOBS)
    return doc.Knobs(oracle=oracle, episodes=len(free), all_knobs_reward=float(free.mean()), knobs=found)


def _knob(
    space: DecisionSpace, knob: KnobName, free: Floats, frozen: list[Floats], resamples: stats.Resamples
) -> doc.Knob:
    means = [float(values.mean()) for values in frozen]
    best = int(np.argmax(means))
    return doc.Knob(
        knob=knob,
        best_value=value_name(space, knob, best),
        frozen_reward=means[best],
        worth=estimate(stats.paired(free, frozen[best], resamples)),
        by_value={value_name(space, knob, i): mean for i, mean in enumerate(means)},
    )
