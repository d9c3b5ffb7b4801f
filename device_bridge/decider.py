"""The controller on a device: whatever it does, a legal decision comes out, and every switch of the guard is told.

A learned controller comes here inside its guard (``Bundle.build`` with ``guard=True``); what is caught here is the last
resort for everything else. With a folder for it, what the controller has learned outlives the process
(``learner_state``).
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from adaptsplit.agents.build import kind_of
from adaptsplit.agents.static import InterleavedController, InterleavedState
from adaptsplit.controller import Controller, State
from adaptsplit.decision import Decision, DecisionSpace
from adaptsplit.device_bridge.actions import Observation
from adaptsplit.device_bridge.learner_state import load_learned, save_learned
from adaptsplit.errors import DataError
from adaptsplit.guard import GuardedController, GuardEvent, GuardState, Reason, events_of
from adaptsplit.guard_monitors import REASONS, safe_decision
from adaptsplit.outcome import Outcomes

log = logging.getLogger("adaptsplit.device")

MAX_DURATIONS = 256
MAX_SWITCHES = 1024  # kept until they are taken
MAX_RECENT = 256  # observations kept for the self-test of the next policy
KEEP_S = 30.0  # how often what was learned is written: a crash loses at most that, and a flash card lives long
STATE_FILE = "learner.npz"
Mode = Literal["learned", "rule", "recovery"]
BLAMED = frozenset({Reason.RANGE, Reason.FAILED, Reason.LATE, Reason.ILLEGAL, Reason.SLOW})  # on the policy


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What decided before an exchange: the controller as it was asked (in its guard), its state, its folder."""

    policy: Controller
    state: State
    keep: Path | None


def runs(part: Controller, policy: Controller) -> bool:
    """Whether ``part`` is ``policy``, in a guard or not."""
    return part is policy or (isinstance(part, GuardedController) and part.learned is policy)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the guard said of one decision: ``trip`` begins a time of the recovery, ``recovered`` was decided by it.

    controller: who was to decide. Only what a policy can be blamed for counts (``BLAMED``): no silent link, no frozen
    sensor, no empty battery.
    """

    controller: Controller
    trip: bool
    recovered: bool


class Decider:
    """Asks the controller once per frame and tells it outcomes; counts faults instead of passing them on.

    ``keep`` is the folder in which a controller that learns finds what it learned before (``learner.npz``), and in
    which it is written every 30 s and by ``close``. A file that does not fit is left alone and counted
    (``state_refused``): the controller starts afresh, and nothing is written.
    """

    def __init__(self, controller: Controller, space: DecisionSpace, seed: int, keep: Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.durations: deque[float] = deque(maxlen=MAX_DURATIONS)  # of the last decisions, s
        self.mode: Mode = "rule"  # who decided last
        self.learning = True  # False: outcomes are no longer told to the controller
        self._recovering: set[str] = set()
        self._seed = seed
        self._keep = keep
        self._space = space
        self._recovery = safe_decision(space)
        self._switches: deque[GuardEvent] = deque(maxlen=MAX_SWITCHES)
        self._verdicts: deque[Verdict] = deque(maxlen=MAX_SWITCHES)
        self.recent: deque[Observation] = deque(maxlen=MAX_RECENT)
        self._known: list[Outcomes] = []
        self._kept_at = time.monotonic()
        self._take_over(controller)

    def _take_over(self, controller: Controller) -> None:
        state = controller.init(1, np.random.default_rng(self._seed))
        self._controller, self._state = controller, state
        self._file = self._keep / STATE_FILE if self._keep is not None and controller.learns else None
        self._restore()
        self._describe()

    def _describe(self) -> None:
        self.names = [part.name for part in self.parts]
        self._kinds = [kind_of(part) for part in self.parts]
        self._recovering = set()

    @property
    def parts(self) -> tuple[Controller, ...]:
        """The controllers that take turns, each in its guard if it has one; one that has no turns alone."""
        own = self._controller
        return own.parts if isinstance(own, InterleavedController) else (own,)

    def swap(self, controller: Controller) -> None:
        """Let another controller decide from the next frame on; what the old one learned is written first.

        Call it between two decisions, on the thread that decides.
        """
        self.keep()
        self._take_over(controller)
        self._known = []
        self.counts["swaps"] += 1

    def exchange(self, old: Controller, policy: Controller, state: State, keep: Path | None = None) -> Exchanged | None:
        """Let ``policy`` decide from the next frame on wherever ``old`` did, guarded or not; the others go on.

        Returns what decided before, with its state, for an exchange back; None where ``old`` does not decide here.
        ``state`` is the policy's, for one row; ``keep`` the folder of its own for what it learns: what the one before
        learned is written first and is left alone. Outcomes that are still to come are learned by the new one only.
        """
        turns = [i for i, part in enumerate(self.parts) if runs(part, old)]
        if not turns:
            return None
        self.keep()
        before = Exchanged(self.parts[turns[0]], self._state_of(turns[0]), self._keep)
        self._put(turns, policy, state)
        self._known, self._keep = [], keep
        self._file = keep / STATE_FILE if keep is not None and self._controller.learns else None
        self._restore()
        self._describe()
        self.counts["exchanges"] += 1
        return before

    def _put(self, turns: list[int], policy: Controller, state: State) -> None:
        own = self._controller
        if not isinstance(own, InterleavedController):
            self._controller, self._state = policy, state
            return
        states = [state if i in turns else kept for i, kept in enumerate(self._state.states)]
        self._controller = InterleavedController(
            [policy if i in turns else part for i, part in enumerate(own.parts)], own.block
        )
        self._state = InterleavedState(self._state.decided, tuple(states))

    def _state_of(self, turn: int) -> State:
        return self._state.states[turn] if isinstance(self._state, InterleavedState) else self._state

    def take_verdicts(self) -> list[Verdict]:
        """Return what the guard said of the decisions since the last call; beyond 1024 the oldest are lost."""
        verdicts = list(self._verdicts)
        self._verdicts.clear()
        return verdicts

    def _verdict(self, turn: int, failed: bool) -> Verdict:
        state = self._state_of(turn)
        blamed = isinstance(state, GuardState) and REASONS[int(state.reason[0])] in BLAMED
        trip = isinstance(state, GuardState) and blamed and any(event.to == "recovery" for event in state.events)
        return Verdict(self.parts[turn], failed or trip, failed or blamed)

    def decide(self, observation: Observation) -> tuple[Decision, str]:
        """Return a canonical decision and the name of the controller that it came from."""
        begun = time.perf_counter()
        turn, failed = 0, False
        self.recent.append(observation)
        try:
            if isinstance(self._controller, InterleavedController):
                turn = self._controller.active(self._state)
            self._learn()
            chosen, self._state = self._controller.act(observation[None], self._state)
            row = self._space.canonical(np.asarray(chosen).reshape(1, 3))[0]
            decision = Decision(*(int(i) for i in row))
            self._note(events_of(self._state, turn), self.names[turn])
            self.mode = self._mode(turn)
        except Exception:
            self.mode = "recovery"
            log.exception("controller %s failed; recovery decision taken", self.names[turn])
            self.counts["recoveries"] += 1
            decision, failed = self._recovery, True
        self._verdicts.append(self._verdict(turn, failed))
        self.durations.append(time.perf_counter() - begun)
        self.slowest_s = max(self.slowest_s, self.durations[-1])
        return decision, self.names[turn]

    def _mode(self, turn: int) -> Mode:
        if self.names[turn] in self._recovering:
            return "recovery"
        return "learned" if self._kinds[turn] == "learned" else "rule"

    def outcome(self, outcome: Outcomes) -> None:
        """Take an outcome that has become known; the controller learns it before its next decision."""
        if self._controller.learns and self.learning:
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
            (self._recovering.add if event.to == "recovery" else self._recovering.discard)(name)
            self.counts[f"guard_{event.reason}" if event.to == "recovery" else "guard_returns"] += 1
            log.warning("guard of %s: %s decides (%s) %s", name, event.to, event.reason, event.detail)
        self._switches += events
