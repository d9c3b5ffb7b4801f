"""Probing: another controller's decisions, with a small message now and then when it has starved the link's estimate.

A controller that answers on the device because the link looked bad hears nothing more of the link. Here a frame is sent
by the smallest message of the space when the newest goodput sample is ``every_s`` old, nothing is in flight, and the
last probe is ``every_s`` past. Own rule, after the forced sampling of Zhang, Chen, Xu (WWW 2021), which counts frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adaptsplit.agents.bandits_arms import Floats
from adaptsplit.agents.base import ControllerContext, Kind, full_name, need_summary
from adaptsplit.agents.prediction import DecisionModel, FieldReader
from adaptsplit.controller import Controller, Decisions, Observations, State, controllers
from adaptsplit.decision import ALWAYS_EXIT, Decision, DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.agents.base import Factory
    from adaptsplit.profiles import ProfileSummary

DEFAULT_EVERY_S = 1.0  # half the time in which the estimate loses its worth (prediction.MEMORY_S)
DEFAULT_INNER = "deadline"
MIN_EVERY_S, MAX_EVERY_S = 0.05, 50.0  # what the observed age can show


@dataclass(frozen=True, slots=True)
class ProbeState:
    """State of the other controller; ``since`` (n,) frames since the row's last probe."""

    inner: State
    since: Floats


class ProbingController:
    """``inner``, but for probes: see the module. It is told of every outcome, also of the probes'."""

    kind: Kind = "rule"

    def __init__(self, name: str, inner: Controller, probe: Decision, every_s: float, fps: float) -> None:
        if not MIN_EVERY_S <= every_s <= MAX_EVERY_S:
            raise ConfigError(f"controller {name!r}: {every_s:g} s; expected {MIN_EVERY_S:g} to {MAX_EVERY_S:g} s")
        self.name, self.inner, self.learns = name, inner, inner.learns
        self.every_s, self.fps = every_s, fps
        self._probe = np.array([probe.branch, probe.rate, probe.threshold], dtype=np.int64)
        self._read = FieldReader(("goodput_age", "unacked_count"))

    def init(self, n: int, rng: np.random.Generator) -> ProbeState:
        """Return the state of n rows, none of which has probed."""
        return ProbeState(self.inner.init(n, rng), np.full(n, np.inf))

    def act(self, observation: Observations, state: ProbeState) -> tuple[Decisions, ProbeState]:
        """Return the (n, 3) decisions, those of rows that probe replaced."""
        decision, inner = self.inner.act(observation, state.inner)
        age, unacked = self._read(observation)
        # The observation is rounded to 32 bits: without the margin a whole number of periods could just miss.
        starving = (age >= 0.999 * self.every_s) & (unacked < 0.5)
        probes = starving & (state.since >= self.every_s * self.fps)
        chosen = np.where(probes[:, None], self._probe, decision)
        return chosen, ProbeState(inner, np.where(probes, 1.0, state.since + 1.0))

    def learn(self, outcomes: Outcomes, state: ProbeState) -> ProbeState:
        """Pass the outcomes on."""
        return ProbeState(self.inner.learn(outcomes, state.inner), state.since)


def smallest_message(model: DecisionModel) -> Decision:
    """Return the decision that sends most surely (highest threshold) with the fewest bytes; the shortest head among
    equals. ConfigError when no decision can send.
    """
    space, table = model.space, model.space.table
    value = np.array(space.thresholds)[table[:, 2]]
    can_send = ~space.answers_alone[table[:, 0]] & (value > ALWAYS_EXIT)
    if not can_send.any():
        raise ConfigError("controller 'probing' needs a decision that can send; this decision space has none")
    surest = np.flatnonzero(can_send & (value == value[can_send].max()))
    pair = [int(np.flatnonzero((model.pairs == row[:2]).all(axis=1))[0]) for row in table[surest]]
    order = np.lexsort((-model.patience[surest], model.head[pair], model.wire_bytes[pair]))
    return Decision(*(int(i) for i in table[surest[order[0]]]))


@controllers.register("probing")
def _probing(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    every, _, name = argument.partition(":")
    family, _, inner_argument = (name or DEFAULT_INNER).partition(":")
    try:
        every_s = float(every) if every else DEFAULT_EVERY_S
    except ValueError as error:
        raise ConfigError(
            f"controller 'probing:{argument}': {every!r} is not a number of seconds; write probing:SECONDS:CONTROLLER, "
            "such as probing:1:deadline"
        ) from error
    factory: Factory = controllers.get(family)
    inner = factory(space, summary, context, inner_argument)
    probe = smallest_message(DecisionModel(space, need_summary("probing", summary), context))
    return ProbingController(full_name("probing", argument), inner, probe, every_s, context.fps)
