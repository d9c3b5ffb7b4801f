"""The controller on a device: whatever it does, a legal decision comes out, and every switch of the guard is told.

A learned controller comes here inside its guard (``Bundle.build`` with ``guard=True``); what is caught here is the last
resort for everything else. With a folder for it, what the controller has learned outlives the process
(``learner_state``).
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from pathlib import Path

import numpy as np

from adaptsplit.agents.static import InterleavedController
from adaptsplit.controller import Controller
from adaptsplit.decision import Decision, DecisionSpace
from adaptsplit.device_bridge.actions import Observation
from adaptsplit.device_bridge.learner_state import load_learned, save_learned
from adaptsplit.errors import DataError
from adaptsplit.guard import GuardEvent, events_of
from adaptsplit.guard_monitors import safe_decision
from adaptsplit.outcome import Outcomes

log = logging.getLogger("adaptsplit.device")

MAX_SWITCHES = 1024  # kept until they are taken
KEEP_S = 30.0  # how often what was learned is written: a crash loses at most that, and a flash card lives long
STATE_FILE = "learner.npz"


class Decider:
    """Asks the controller once per frame and tells it outcomes; counts faults instead of passing them on.

    ``keep`` is the folder in which a controller that learns finds what it learned before (``learner.npz``), and in
    which it is written every 30 s and by ``close``. A file that does not fit is left alone and counted
    (``state_refused``): the controller starts afresh, and nothing is written.
    """

    def __init__(self, controller: Controller, space: DecisionSpace, seed: int, keep: Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._controller = controller
        self._space = space
        self._recovery = safe_decision(space)
        self._switches: deque[GuardEvent] = deque(maxlen=MAX_SWITCHES)
        self._state = controller.init(1, np.random.default_rng(seed))
        self._known: list[Outcomes] = []
        self._file = keep / STATE_FILE if keep is not None and controller.learns else None
        self._kept_at = time.monotonic()
        self._restore()
        self.names = [controller.name]
        if isinstance(controller, InterleavedController):
            self.names = [part.name for part in controller.parts]

    def decide(self, observation: Observation) -> tuple[Decision, str]:
        """Return a canonical decision and the name of the controller that it came from."""
        begun = time.perf_counter()
        turn = 0
        try:
            if isinstance(self._controller, InterleavedController):
                turn = self._controller.active(self._state)
            self._learn()
            chosen, self._state = self._controller.act(observation[None], self._state)
            row = self._space.canonical(np.asarray(chosen).reshape(1, 3))[0]
            decision = Decision(*(int(i) for i in row))
            self._note(events_of(self._state, turn), self.names[turn])
        except Exception:
            log.exception("controller %s failed; recovery decision taken", self.names[turn])
            self.counts["recoveries"] += 1
            decision = self._recovery
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begun)
        return decision, self.names[turn]

    def outcome(self, outcome: Outcomes) -> None:
        """Take an outcome that has become known; the controller learns it before its next decision."""
        if self._controller.learns:
            self._known.append(outcome)
        if self._file is not None and time.monotonic() - self._kept_at >= KEEP_S:
            self.keep()

    def keep(self) -> None:
        """Write what has been learned, if a folder was named; a fault is counted and told, and ends the keeping."""
        if self._file is None:
            return
        self._kept_at = time.monotonic()
        try:
            self._learn()
            save_learned(self._file, self._controller.name, self._state)
            self.counts["state_kept"] += 1
        except Exception:
            log.exception("what %s learned could not be kept", self._controller.name)
            self.counts["state_failed"] += 1
            self._file = None

    def close(self) -> None:
        """Keep what has been learned, for the last time."""
        self.keep()
        self._file = None

    def _restore(self) -> None:
        if self._file is None:
            return
        try:
            self._state = load_learned(self._file, self._controller.name, self._state)
            self.counts["state_restored"] += 1
        except FileNotFoundError:
            return
        except (DataError, OSError) as error:
            log.error("%s; %s starts afresh and keeps nothing", error, self._controller.name)
            self.counts["state_refused"] += 1
            self._file = None

    def _learn(self) -> None:
        if self._known:
            known, self._known = np.concatenate(self._known), []
            self._state = self._controller.learn(known, self._state)

    def take_switches(self) -> list[GuardEvent]:
        """Return the guard's switches since the last call; call it after each decision."""
        switches = list(self._switches)
        self._switches.clear()
        return switches

    def _note(self, events: tuple[GuardEvent, ...], name: str) -> None:
        for event in events:
            self.counts[f"guard_{event.reason}" if event.to == "recovery" else "guard_returns"] += 1
            log.warning("guard of %s: %s decides (%s) %s", name, event.to, event.reason, event.detail)
        self._switches += events
