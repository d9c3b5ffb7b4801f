"""Controllers that do not look: every static decision, random ones, and several in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.base import ControllerContext, Kind
from adaptsplit.controller import Controller, Decisions, Observations, State, Stateless, controllers
from adaptsplit.decision import Decision, DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary


class StaticController(Stateless):
    """The same decision for every frame."""

    kind: Kind = "static"

    def __init__(self, space: DecisionSpace, decision: Decision) -> None:
        row = space.canonical(np.array([[decision.branch, decision.rate, decision.threshold]]))
        self.name = f"static:{space.name(row[0])}"
        self.decision = Decision(*(int(i) for i in row[0]))
        self._row = row

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Return the decision for each of the n rows."""
        return np.repeat(self._row, len(observation), axis=0), state


class RandomController:
    """A uniform draw from the table of distinct decisions for each frame; the floor of every comparison."""

    name = "random"
    learns = False
    kind: Kind = "random"

    def __init__(self, space: DecisionSpace) -> None:
        self._table = space.table

    def init(self, n: int, rng: np.random.Generator) -> State:
        """Return the generator that the draws come from."""
        return rng

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Draw one decision for each row; ``state`` (a generator) moves on."""
        return self._table[state.integers(len(self._table), size=len(observation))], state

    def learn(self, outcomes: Outcomes, state: State) -> State:
        """Learn nothing."""
        return state


@dataclass(frozen=True, slots=True)
class InterleavedState:
    """Frames decided so far, and the state of each controller."""

    decided: int
    states: tuple[State, ...]


class InterleavedController:
    """Several controllers in turn on the same link, in blocks of ``block`` decided frames: a live A/B comparison.

    The order is fixed (A, B, ..., A, B, ...). ``active`` tells which one decides next, so that a log can name it. Every
    learning controller is told of every outcome: an outcome carries its own decision.
    """

    kind: Kind = "interleaved"

    def __init__(self, parts: Sequence[Controller], block: int = 50) -> None:
        if not parts or block < 1:
            raise ConfigError(f"{len(parts)} controllers in blocks of {block} frames; expected at least 1 of each")
        self.parts = tuple(parts)
        self.block = block
        self.name = ",".join(part.name for part in parts)
        self.learns = any(part.learns for part in parts)

    def init(self, n: int, rng: np.random.Generator) -> InterleavedState:
        """Return the first block's state; each controller gets a generator of its own."""
        generators = rng.spawn(len(self.parts))
        states = (part.init(n, own) for part, own in zip(self.parts, generators, strict=True))
        return InterleavedState(0, tuple(states))

    def active(self, state: InterleavedState) -> int:
        """Return the index into ``parts`` of the controller that decides the next frame."""
        return state.decided // self.block % len(self.parts)

    def act(self, observation: Observations, state: InterleavedState) -> tuple[Decisions, InterleavedState]:
        """Let the controller of this block decide."""
        turn = self.active(state)
        decision, own = self.parts[turn].act(observation, state.states[turn])
        states = (*state.states[:turn], own, *state.states[turn + 1 :])
        return decision, InterleavedState(state.decided + 1, states)

    def learn(self, outcomes: Outcomes, state: InterleavedState) -> InterleavedState:
        """Pass the outcomes to every controller that learns."""
        pairs = zip(self.parts, state.states, strict=True)
        states = tuple(part.learn(outcomes, own) if part.learns else own for part, own in pairs)
        return InterleavedState(state.decided, states)


def static_grid(space: DecisionSpace) -> list[StaticController]:
    """Return one controller for each distinct decision: what ``--agents static`` stands for."""
    return [StaticController(space, Decision(*(int(i) for i in row))) for row in space.table]


@controllers.register("static")
def _static(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    if not argument:
        first: NDArray[np.int64] = space.table[0]
        raise ConfigError(
            f"controller 'static' is the whole grid and cannot decide; name one, such as 'static:{space.name(first)}'"
        )
    return StaticController(space, space.parse(argument))


@controllers.register("random")
def _random(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    if argument:
        raise ConfigError(f"controller 'random' takes no parameters, found {argument!r}; write 'random'")
    return RandomController(space)
