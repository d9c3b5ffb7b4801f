"""The controller on a device, guarded: whatever it does, a legal decision comes out."""

from __future__ import annotations

import logging
import time
from collections import Counter

import numpy as np

from adaptsplit.agents.static import InterleavedController
from adaptsplit.controller import Controller
from adaptsplit.decision import Decision, DecisionSpace
from adaptsplit.device_bridge.actions import Observation
from adaptsplit.outcome import Outcomes

log = logging.getLogger("adaptsplit.device")


def recovery_decision(space: DecisionSpace) -> Decision:
    """Return the decision that needs no link: the first split branch, always exit (else the first of the table)."""
    for b, branch in enumerate(space.branches):
        if branch.kind == "split":
            return Decision(b, 0, 0)
    return Decision(*(int(i) for i in space.table[0]))


class Decider:
    """Asks the controller once per frame and tells it outcomes; counts faults instead of passing them on."""

    def __init__(self, controller: Controller, space: DecisionSpace, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._controller = controller
        self._space = space
        self._recovery = recovery_decision(space)
        self._state = controller.init(1, np.random.default_rng(seed))
        self._known: list[Outcomes] = []
        self.names = [controller.name]
        if isinstance(controller, InterleavedController):
            self.names = [part.name for part in controller.parts]

    def decide(self, observation: Observation) -> tuple[Decision, str]:
        """Return a canonical decision and the name of the controller that it came from."""
        begun = time.perf_counter()
        name = self.names[0]
        try:
            if isinstance(self._controller, InterleavedController):
                name = self.names[self._controller.active(self._state)]
            self._learn()
            chosen, self._state = self._controller.act(observation[None], self._state)
            row = self._space.canonical(np.asarray(chosen).reshape(1, 3))[0]
            decision = Decision(*(int(i) for i in row))
        except Exception:
            log.exception("controller %s failed; recovery decision taken", name)
            self.counts["recoveries"] += 1
            decision = self._recovery
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begun)
        return decision, name

    def outcome(self, outcome: Outcomes) -> None:
        """Take an outcome that has become known; the controller learns it before its next decision."""
        if self._controller.learns:
            self._known.append(outcome)

    def _learn(self) -> None:
        if self._known:
            known, self._known = np.concatenate(self._known), []
            self._state = self._controller.learn(known, self._state)
