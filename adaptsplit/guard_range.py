"""The range of observations that a learned policy was trained in.

A policy says nothing sensible about inputs that it never saw. The range is one box over the observation's fields, each
already scaled to 0..1 (``adaptsplit.observation``); how far an observation lies outside of it is the largest
exceedance of any field, a number that a person can check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adaptsplit import observation as obs
from adaptsplit.config import Config
from adaptsplit.controller import Controller, Decisions, Observations, State
from adaptsplit.errors import ConfigError, MissingExtraError
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

DIGITS = 6
EXPORT_EPISODES = 32  # of the policy and of random decisions each: 19 200 frames of flight-lte, a second or two
BETTER_LOW = (
    *("goodput_age", "rtt", "heard_age", "unacked_bytes", "unacked_count", "backlog", "overdue", "slot_occupied"),
    *("frame_wait", "server_time", "server_queue", "miss_rate", "fallback_rate"),
)
BETTER_HIGH = ("goodput",)
SERVER = ("server_time", "server_queue")
RATES, FEW = ("miss_rate", "fallback_rate"), 0.3  # three misses in a row give a forgetting mean of 0.27


class TrainedRange(Config):
    """Smallest and largest value of each of the D fields (scaled to 0..1) over ``count`` observations."""

    low: tuple[float, ...] = Field(min_length=obs.SIZE, max_length=obs.SIZE)
    high: tuple[float, ...] = Field(min_length=obs.SIZE, max_length=obs.SIZE)
    count: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> TrainedRange:
        for name, low, high in zip(obs.NAMES, self.low, self.high, strict=True):
            if not 0.0 <= low <= high <= 1.0:
                raise ValueError(f"{name}: low {low:g}, high {high:g}; expected 0 <= low <= high <= 1")
        return self

    def exceedance(self, observation: NDArray[Any]) -> NDArray[np.float64]:
        """Return (n, D): how far each field of (n, D) observations lies outside of the box; 0 inside."""
        value = np.asarray(observation, dtype=np.float64)
        beyond = np.maximum(np.asarray(self.low) - value, value - np.asarray(self.high))
        return np.asarray(np.maximum(0.0, beyond))


EVERYWHERE = TrainedRange(low=(0.0,) * obs.SIZE, high=(1.0,) * obs.SIZE, count=1)
"""The range of a policy that tells nothing of its training: all that an observation may be."""


def range_of(observations: NDArray[Any]) -> TrainedRange:
    """Return the box around (..., D) observations; ConfigError when there are none, or a value is not in 0..1."""
    rows = np.asarray(observations, dtype=np.float64).reshape(-1, obs.SIZE)
    if not len(rows) or not np.all((rows >= 0.0) & (rows <= 1.0)):
        raise ConfigError(f"{len(rows)} observations: expected at least one, every value in 0..1; record them again")
    low, high = (np.round(edge, DIGITS).tolist() for edge in (rows.min(axis=0), rows.max(axis=0)))
    return TrainedRange(low=tuple(low), high=tuple(high), count=len(rows))


def union(one: TrainedRange, other: TrainedRange) -> TrainedRange:
    """Return the smallest box around two."""
    return TrainedRange(
        low=tuple(map(min, one.low, other.low)),
        high=tuple(map(max, one.high, other.high)),
        count=one.count + other.count,
    )


def open_where_better(trained: TrainedRange, deadline_s: float = 0.0) -> TrainedRange:
    """Return the box without its bounds on the good side of link, queue and server (``BETTER_LOW``, ``BETTER_HIGH``).

    A faster link, a shorter queue or an idler server than any in training does not make a legal decision dangerous:
    its answer comes sooner. So a device at a desk, on a cable, is not out of range. Nor are a few misses or fallbacks,
    which a training may well never have had: rates up to ``FEW`` are inside. Nor is a server that takes or queues for
    less than half of ``deadline_s``: no answer is late by that, and the last report of a busy moment would keep a
    recovery that sends little for ever.
    """
    low, high = list(trained.low), list(trained.high)
    for name in BETTER_LOW:
        low[obs.index(name)] = 0.0
    for name in BETTER_HIGH:
        high[obs.index(name)] = 1.0
    for i in map(obs.index, RATES):
        high[i] = max(high[i], FEW)
    for name in SERVER if deadline_s > 0.0 else ():
        high[obs.index(name)] = max(high[obs.index(name)], float(obs.scaled(name, deadline_s / 2.0)))
    return TrainedRange(low=tuple(low), high=tuple(high), count=trained.count)


def range_for_export(
    controller: str, scenario: Scenario, *, episodes: int = EXPORT_EPISODES, seed: int = 0
) -> TrainedRange | None:
    """Return the range that a bundle of ``controller`` (a name or a run's folder) carries; None unless it was learned.

    MissingExtraError without the ``train`` extra.
    """
    from adaptsplit.agents.build import kind_of, make_controller

    built = make_controller(controller, scenario)
    if kind_of(built) != "learned":
        return None
    try:
        trained = measure_range(built, scenario, episodes=episodes, seed=seed)
        return open_where_better(trained, scenario.deadline_s)
    except ImportError as missing:
        raise MissingExtraError(missing.name or "numba", "train") from missing


class RangeRecorder:
    """A controller that passes everything on and keeps the extremes of what its controller is shown."""

    def __init__(self, controller: Controller) -> None:
        self.name, self.learns = controller.name, controller.learns
        self._controller = controller
        self._low, self._high = np.ones(obs.SIZE), np.zeros(obs.SIZE)
        self._count = 0

    def init(self, n: int, rng: np.random.Generator) -> State:
        """Return the controller's own state."""
        return self._controller.init(n, rng)

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Note the observations and let the controller decide."""
        self._low = np.minimum(self._low, observation.min(axis=0))
        self._high = np.maximum(self._high, observation.max(axis=0))
        self._count += len(observation)
        return self._controller.act(observation, state)

    def learn(self, outcomes: Outcomes, state: State) -> State:
        """Pass the outcomes on."""
        return self._controller.learn(outcomes, state)

    def range(self) -> TrainedRange:
        """Return the box of all observations so far; ConfigError when there were none."""
        if not self._count:
            raise ConfigError("no observation was recorded; run the controller first")
        box = range_of(np.stack([self._low, self._high]))
        return box.model_copy(update={"count": self._count})


def measure_range(controller: Controller, scenario: Scenario, *, episodes: int = 64, seed: int = 0) -> TrainedRange:
    """Return what ``controller`` is shown in the scenario's training split; needs the ``train`` extra.

    Training explores, so the box also holds what random decisions lead to (``RandomController``). It stands in for the
    observations of the training itself, which the training libraries do not keep.
    """
    from adaptsplit.agents.static import RandomController
    from adaptsplit.envs import build_world, run_episodes
    from adaptsplit.envs.simulator import episode_seeds

    world = build_world(scenario, "train")
    seeds = episode_seeds(seed, episodes, "train")
    recorders = [RangeRecorder(part) for part in (controller, RandomController(scenario.space))]
    for recorder in recorders:
        run_episodes(world, recorder, seeds)
    return union(*(recorder.range() for recorder in recorders))
