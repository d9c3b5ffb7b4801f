"""Run-time assurance: a learned policy decides only while monitors find nothing wrong, else a verified rule does.

The structure is that of ASTM F3269 ("Standard Practice for Methods to Safely Bound Behavior of Aircraft Systems
Containing Complex Functions Using Run-Time Assurance") and of the Simplex architecture (Sha, "Using Simplicity to
Control Complexity", IEEE Software, 2001): a complex function that nobody can verify, monitors, and a recovery function
that one can. ``docs/safety.md`` lists what is and what is not assured.

    observation -> InputMonitor -> learned policy (in a TimeBox) -> DecisionMonitor -> decision
                        |  fault                 | fault                 | fault
                        +------------------------+-----------------------+--> recovery, latched for the dwell time
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.base import ControllerContext
from adaptsplit.agents.build import kind_of
from adaptsplit.agents.static import InterleavedController, InterleavedState, StaticController
from adaptsplit.controller import Controller, Decisions, Observations, State
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.guard_latch import Findings, GuardEvent, GuardState, Latch
from adaptsplit.guard_monitors import (
    CODE,
    Codes,
    DecisionMonitor,
    Floats,
    GuardLimits,
    InputMonitor,
    Reason,
    safe_decision,
)
from adaptsplit.guard_range import EVERYWHERE, TrainedRange
from adaptsplit.guard_time import CallError, Overrun, TimeBox
from adaptsplit.outcome import Outcomes
from adaptsplit.testing import check_controller

__all__ = ["GuardEvent", "GuardLimits", "GuardState", "GuardedController", "Reason", "events_of", "guard_learned"]

MAX_PENDING = 64  # batches of outcomes kept for a policy that does not decide at present; the oldest go first
BUDGET_SHARE = 0.25  # of deadline or frame period, whichever is shorter: what remains is for head, exit and link
INIT_S = 10.0  # for the policy to prepare itself, before the first frame
NO_PREDICTION: Floats = np.zeros(0)

_Answer = tuple[NDArray[Any], State]


class GuardedController:
    """A learned controller inside monitors; keeps the ``Controller`` contract whatever the learned one does.

    Args:
        learned: any controller; it may raise, answer nonsense, or not answer.
        recovery: decides on faults of the learned one; None for the fixed decision of ``safe_decision``. It is checked
            against the controller contract here (ConfigError), must not learn, and is itself replaced by the fixed
            decision should it raise, or when the observation cannot be trusted.
        context: deadline and frame rate of the scenario.
        answer_s: (B,) predicted time to the device's own answer on each branch, s; empty predicts nothing.
        trained: the range of observations of the training.

    It takes the name and the kind of the learned controller. Dwell times are counted in decisions at ``context.fps``,
    so that a run can be replayed. One object serves one caller at a time.
    """

    def __init__(
        self,
        learned: Controller,
        space: DecisionSpace,
        context: ControllerContext,
        *,
        recovery: Controller | None = None,
        answer_s: Floats = NO_PREDICTION,
        trained: TrainedRange = EVERYWHERE,
        limits: GuardLimits | None = None,
    ) -> None:
        limits = limits or GuardLimits()
        if answer_s.size and answer_s.shape != (len(space.branches),):
            raise ConfigError(f"answer_s of shape {answer_s.shape}; expected one time per branch, or none")
        self.name, self.learns, self.kind = learned.name, learned.learns, kind_of(learned)
        self.learned, self.limits, self.space = learned, limits, space
        self.safe = safe_decision(space, answer_s)
        self.recovery = _verified(recovery or StaticController(space, self.safe), space)
        self.budget_s = limits.budget_s or BUDGET_SHARE * min(context.deadline_s, 1.0 / context.fps)
        self._safe = np.array([[self.safe.branch, self.safe.rate, self.safe.threshold]], dtype=np.int64)
        self._inputs = InputMonitor(limits, trained)
        self._outputs = DecisionMonitor(space, context.deadline_s, np.asarray(answer_s, dtype=np.float64))
        self._box: TimeBox[_Answer] = TimeBox(self.budget_s)
        self._latch = Latch(self._inputs, context.fps)

    def init(self, n: int, rng: np.random.Generator) -> GuardState:
        """Return the state for ``n`` rows; a policy that cannot start leaves them to the recovery for good."""
        learned, broken = None, ""
        try:
            learned = self._prepare(n, rng)
        except (CallError, Overrun) as error:
            broken = str(error)
        zero = np.zeros(n, dtype=np.int64)
        return GuardState(
            learned=learned,
            recovery=self.recovery.init(n, np.random.default_rng(0)),
            reason=np.zeros(n, dtype=np.int8),
            hold=zero,
            dwell=np.full(n, self._latch.dwell),
            calm=zero,
            repeats=zero,
            last=np.full((n, obs.SIZE), np.nan, dtype=np.float32),
            broken=broken,
        )

    def learn(self, outcomes: Outcomes, state: GuardState) -> GuardState:
        """Keep the outcomes; the learned controller takes them inside its budget, just before it decides again."""
        if not self.learns:
            return state
        return replace(state, pending=(*state.pending, outcomes)[-MAX_PENDING:])

    def act(self, observation: Observations, state: GuardState) -> tuple[Decisions, GuardState]:
        """Return (n, 3) legal decisions, the learned controller's where nothing is wrong; ``state.events`` tells."""
        n = len(state.reason)
        well_formed = self._inputs.well_formed(observation, n)
        x = observation if well_formed else np.full((n, obs.SIZE), np.nan, dtype=np.float32)
        repeats = np.where((x == state.last).all(axis=1), state.repeats + 1, 0)
        codes = self._inputs.judge(x, repeats, state.reason)
        details = {} if well_formed else {CODE[Reason.INPUT]: f"not an ({n}, {obs.SIZE}) array of floats"}
        fallback, recovered = self._recover(x, codes, state.recovery)
        asked = (codes == 0) & (state.hold == 0)
        found = Findings(fallback.copy(), codes, details)
        learned, pending = state.learned, state.pending
        if asked.any():
            learned, pending = self._ask(x, asked, state, found), ()
        inputs = replace(state, learned=learned, recovery=recovered, pending=pending, repeats=repeats)
        after = self._latch.after(x, found, replace(inputs, last=np.array(x, dtype=np.float32)))
        return np.where((after.reason == 0)[:, None], found.decisions, fallback), after

    def close(self) -> None:
        """End the thread of the learned controller (it also ends with this object)."""
        self._box.close()

    # ---- the learned controller ----

    def _prepare(self, n: int, rng: np.random.Generator) -> State:
        if self.limits.inline:
            return _as_call_error(lambda: self.learned.init(n, rng))
        box: TimeBox[State] = TimeBox(INIT_S)
        try:
            return box.call(lambda: self.learned.init(n, rng))
        finally:
            box.close()

    def _ask(self, x: Observations, asked: NDArray[np.bool_], state: GuardState, found: Findings) -> State:
        """Let the learned controller learn and decide; note what it decided, or its fault. Return its next state."""
        if state.broken:
            found.all_rows(asked, Reason.FAILED, state.broken)
            return state.learned
        shown = np.where(asked[:, None], x, np.float32(0.5)).astype(np.float32)  # a copy of its own, without NaN

        def call() -> _Answer:
            own = state.learned
            for outcomes in state.pending:
                own = self.learned.learn(outcomes, own)
            chosen, own = self.learned.act(shown, own)
            return np.array(chosen), own

        try:
            chosen, own = _as_call_error(call) if self.limits.inline else self._box.call(call)
        except Overrun as error:
            found.all_rows(asked, Reason.LATE, str(error))
        except CallError as error:
            found.all_rows(asked, Reason.FAILED, str(error))
        else:
            self._judge(x, chosen, asked, found)
            return own
        return state.learned

    def _judge(self, x: Observations, chosen: NDArray[Any], asked: NDArray[np.bool_], found: Findings) -> None:
        decisions, codes = self._outputs.legal(chosen, len(x))
        slow = (codes == 0) & self._outputs.slow(x, decisions, found.decisions)
        codes[slow] = CODE[Reason.SLOW]
        found.codes[asked] = codes[asked]
        found.details[CODE[Reason.ILLEGAL]] = _shown(chosen)
        found.details[CODE[Reason.SLOW]] = f"predicted beyond the deadline of {self._outputs.deadline_s:g} s"
        found.decisions[asked] = decisions[asked]

    # ---- recovery and latch ----

    def _recover(self, x: Observations, codes: Codes, state: State) -> tuple[NDArray[np.int64], State]:
        """Return the recovery's decisions; the fixed one where the input cannot be trusted, or should it raise."""
        fixed = np.repeat(self._safe, len(x), axis=0)
        blind = (codes == CODE[Reason.INPUT]) | (codes == CODE[Reason.STALE])
        if blind.all():
            return fixed, state
        try:
            shown = np.where(blind[:, None], np.float32(0.5), x).astype(np.float32)
            chosen, state = self.recovery.act(shown, state)
            decisions, wrong = self._outputs.legal(np.array(chosen), len(x))
        except Exception:  # verified, but the fixed decision costs nothing to have
            return fixed, state
        return np.where((blind | (wrong != 0))[:, None], fixed, decisions), state


def guard_learned(
    controller: Controller,
    space: DecisionSpace,
    context: ControllerContext,
    *,
    answer_s: Floats = NO_PREDICTION,
    trained: TrainedRange = EVERYWHERE,
    limits: GuardLimits | None = None,
) -> Controller:
    """Return ``controller`` with everything learned in it guarded: itself, or each part of an interleaved one.

    Guarded is what is of kind ``learned`` or learns on the device; static decisions and rules are returned as they are.
    ``trained`` is the range of the controller of kind ``learned``.
    """
    if isinstance(controller, InterleavedController):
        parts = [
            guard_learned(part, space, context, answer_s=answer_s, trained=trained, limits=limits)
            for part in controller.parts
        ]
        return InterleavedController(parts, controller.block)
    if kind_of(controller) != "learned" and not controller.learns:
        return controller
    known = trained if kind_of(controller) == "learned" else EVERYWHERE
    return GuardedController(controller, space, context, answer_s=answer_s, trained=known, limits=limits)


def events_of(state: State, active: int | None = None) -> tuple[GuardEvent, ...]:
    """Return the switches of the newest ``act``: of part ``active`` of an interleaved state, else of the state."""
    if isinstance(state, InterleavedState):
        return () if active is None else events_of(state.states[active])
    return state.events if isinstance(state, GuardState) else ()


def _shown(chosen: NDArray[Any]) -> str:
    """Return form and first numbers of what was decided; objects are not asked to print themselves."""
    numbers = f": {chosen.ravel()[:3].tolist()}" if chosen.dtype.kind in "biuf" else ""
    return f"{chosen.dtype} {chosen.shape}{numbers}"[:200]


def _verified(recovery: Controller, space: DecisionSpace) -> Controller:
    """Return the recovery; ConfigError unless it keeps the controller contract and learns nothing."""
    if recovery.learns:
        raise ConfigError(f"recovery {recovery.name!r} learns; a recovery must be fixed: take a rule or a static one")
    try:
        check_controller(recovery, space)
    except Exception as error:  # the contract's AssertionError, or whatever it raised on extreme observations
        raise ConfigError(f"recovery {recovery.name!r} breaks the contract of controllers: {error}") from error
    return recovery


def _as_call_error(function: Callable[[], Any]) -> Any:
    """Call in this thread, without a time limit; any exception becomes a CallError."""
    try:
        return cast("Any", function())
    except Exception as error:
        raise CallError(type(error).__name__, str(error)[:200]) from error
