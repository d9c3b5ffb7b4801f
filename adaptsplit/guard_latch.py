"""The guard's latch: who decides from here on, for how long, and the events that tell of every switch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit.controller import Observations, State
from adaptsplit.guard_monitors import CODE, REASONS, Codes, InputMonitor, Reason
from adaptsplit.outcome import Outcomes


@dataclass(frozen=True, slots=True)
class GuardEvent:
    """A switch: from decision ``decided`` (0: the first) of a row on, ``to`` decides; ``detail`` is for people."""

    decided: int
    row: int
    to: Literal["recovery", "learned"]
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class GuardState:
    """State of n rows; arrays are (n,) but ``last`` (n, D). ``events`` are the switches of the newest ``act``.

    reason: code of the fault that it is latched on (0: the learned policy decides). hold: decisions that the recovery
    still takes at least. dwell: what the next fault costs. calm: decisions since the last return. repeats: equal
    observations before the newest one, ``last``. pending: outcomes to learn. broken: why the policy could not start.
    """

    learned: State
    recovery: State
    reason: Codes
    hold: NDArray[np.int64]
    dwell: NDArray[np.int64]
    calm: NDArray[np.int64]
    repeats: NDArray[np.int64]
    last: NDArray[np.float32]
    decided: int = 0
    pending: tuple[Outcomes, ...] = ()
    events: tuple[GuardEvent, ...] = ()
    broken: str = ""


@dataclass(slots=True)
class Findings:
    """What one decision of all rows came to, while it is being made."""

    decisions: NDArray[np.int64]
    codes: Codes
    details: dict[int, str] = field(default_factory=dict)  # by code, where it is the same for all rows

    def all_rows(self, rows: NDArray[np.bool_], reason: Reason, detail: str) -> None:
        """Note a fault of the policy as a whole on the rows that it was asked for."""
        self.codes[rows] = CODE[reason]
        self.details[CODE[reason]] = detail


class Latch:
    """Turns findings into the next state. A fault costs the dwell time in decisions, the next one soon after twice."""

    def __init__(self, inputs: InputMonitor, fps: float) -> None:
        limits = inputs.limits
        self._inputs = inputs
        self.dwell = max(1, math.ceil(limits.dwell_s * fps - 1e-9))
        self.max_dwell = max(1, math.ceil(limits.max_dwell_s * fps - 1e-9))

    def after(self, x: Observations, found: Findings, state: GuardState) -> GuardState:
        """Latch rows with a fault, count the others down, and let those return whose time is over."""
        fault, before = found.codes != 0, state.reason
        latched = before != 0
        trips = fault & (~latched | (found.codes >= CODE[Reason.FAILED]))
        soon = state.calm < state.dwell
        dwell = np.where(soon | latched, state.dwell, self.dwell)
        waits = np.minimum(dwell, self.max_dwell)
        hold = np.where(trips, waits - 1, np.maximum(state.hold - 1, 0))
        returns = latched & ~fault & (state.hold == 0)
        reason = np.where(fault, found.codes, np.where(returns, 0, before)).astype(np.int8)
        return replace(
            state,
            reason=reason,
            hold=hold,
            dwell=np.where(trips, np.minimum(2 * waits, self.max_dwell), dwell),
            calm=np.where(reason == 0, np.where(returns, 0, state.calm + 1), 0),
            decided=state.decided + 1,
            events=self._events(x, found, before, reason, state.decided),
        )

    def _events(
        self, x: Observations, found: Findings, before: Codes, after: Codes, decided: int
    ) -> tuple[GuardEvent, ...]:
        switched = np.flatnonzero((before == 0) != (after == 0))
        return tuple(self._event(x, found, int(row), int(before[row]), int(after[row]), decided) for row in switched)

    def _event(self, x: Observations, found: Findings, row: int, before: int, after: int, decided: int) -> GuardEvent:
        if not after:
            return GuardEvent(decided, row, "learned", REASONS[before])
        detail = found.details.get(after) or self._inputs.detail(x[row], after)
        return GuardEvent(decided, row, "recovery", REASONS[after], detail)
