"""The one interface of everything that chooses decisions: rules, bandits, learned policies, oracles' plans.

State is explicit, so that one controller object can serve many devices, be replayed, and be saved. ``n`` is the number
of environments or devices, ``D`` the length of the observation vector (``adaptsplit.observation.SIZE``).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from adaptsplit.outcome import Outcomes
from adaptsplit.registry import Registry

State = Any
Observations = NDArray[np.float32]
Decisions = NDArray[np.int64]


@runtime_checkable
class Controller(Protocol):
    """Chooses (branch, rate, threshold) for each row of a batch of observations.

    ``name`` is how it is listed in results; ``learns`` tells whether ``learn`` does anything (then it must be called).
    """

    name: str
    learns: bool

    def init(self, n: int, rng: np.random.Generator) -> State:
        """Return the state for ``n`` rows at the start of an episode."""
        ...

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decision indices and the next state."""
        ...

    def learn(self, outcomes: Outcomes, state: State) -> State:
        """Take outcomes that have become known since the last call (``outcomes["env"]`` is the row)."""
        ...


class Stateless:
    """Base of controllers without state: ``init`` gives None and ``learn`` does nothing."""

    learns = False

    def init(self, n: int, rng: np.random.Generator) -> State:
        """Return no state."""
        return None

    def learn(self, outcomes: Outcomes, state: State) -> State:
        """Learn nothing."""
        return state


controllers: Registry[Any] = Registry("controller")
"""Factories ``(space, summary, context, argument) -> Controller`` by name (``adaptsplit.agents.build``)."""
