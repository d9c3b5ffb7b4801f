"""What the guard watches: the input before the learned policy sees it, and its decision before the device takes it.

Every monitor is a pure function of arrays and gives each row a code: 0 is well, else the place of a ``Reason``.
Letters: n rows, D fields of the observation, B branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adaptsplit import observation as obs
from adaptsplit.config import Config
from adaptsplit.decision import ALWAYS_EXIT, Decision, DecisionSpace
from adaptsplit.guard_range import EVERYWHERE, TrainedRange

Codes: TypeAlias = NDArray[np.int8]
Floats: TypeAlias = NDArray[np.float64]

_HEARD, _WAIT = obs.index("heard_age"), obs.index("frame_wait")
_BATTERY, _BATTERY_KNOWN = obs.index("battery"), obs.index("battery_known")


class Reason(StrEnum):
    """Why the guard does not let the learned policy decide."""

    NONE = "none"
    INPUT = "bad-input"  # not finite, or not of the observation's form
    STALE = "stale-input"  # repeated bit for bit, or nothing was heard for as long as the observation can tell
    RANGE = "out-of-range"  # outside of what it was trained on
    BATTERY = "battery-floor"
    FAILED = "policy-failed"  # it raised
    LATE = "late"  # it gave no decision within its budget
    ILLEGAL = "illegal-decision"  # not (n, 3) integers inside the decision space
    SLOW = "answer-too-slow"  # the decision's answer cannot come by the deadline, the recovery's can


REASONS = tuple(Reason)
CODE = {reason: code for code, reason in enumerate(REASONS)}


class GuardLimits(Config):
    """When the guard takes over, and for how long. All values are assumptions of ours but where a source stands.

    budget_s: time for the learned policy to learn and decide, s (None: a quarter of deadline or frame period).
    inline: call it without a time limit in the caller's thread (simulation, where time is not real).
    dwell_s: the recovery decides at least this long after a fault (1 s: PX4's default time before it takes a lost
    offboard link for a fault, COM_OF_LOSS_T). It doubles with each fault that follows within as long a time after a
    return, up to ``max_dwell_s``. frozen_after: equal observations in a row that count as frozen. margin: how far a
    field (scaled to 0..1) may lie outside of the trained range. battery_floor: charge below which the recovery decides
    (0.07: PX4's default critical level, BAT_CRIT_THR), until it is ``battery_rise`` above it.
    """

    budget_s: float | None = Field(default=None, gt=0, le=60)
    inline: bool = False
    dwell_s: float = Field(default=1.0, ge=0, le=3600)
    max_dwell_s: float = Field(default=60.0, ge=0, le=86400)
    frozen_after: int = Field(default=5, ge=2)
    margin: float = Field(default=0.1, ge=0, le=1)
    battery_floor: float = Field(default=0.07, ge=0, le=1)
    battery_rise: float = Field(default=0.02, ge=0, le=1)

    @model_validator(mode="after")
    def _dwell(self) -> GuardLimits:
        if self.max_dwell_s < self.dwell_s:
            raise ValueError(f"max_dwell_s {self.max_dwell_s:g} is below dwell_s {self.dwell_s:g}")
        return self


@dataclass(frozen=True, slots=True)
class InputMonitor:
    """Judges observations before the learned policy sees them."""

    limits: GuardLimits
    trained: TrainedRange = EVERYWHERE

    def well_formed(self, observation: object, n: int) -> bool:
        """Whether it is an (n, D) array of floats at all."""
        return (
            isinstance(observation, np.ndarray) and observation.dtype.kind == "f" and observation.shape == (n, obs.SIZE)
        )

    def judge(self, x: NDArray[Any], repeats: NDArray[np.int64], latched: Codes) -> Codes:
        """Return (n,) codes; ``repeats`` (n,) counts equal observations before, ``latched`` is the code so far."""
        codes = np.zeros(len(x), dtype=np.int8)
        floor = self.limits.battery_floor + self.limits.battery_rise * (latched == CODE[Reason.BATTERY])
        # the gravest last: it stands
        codes[(x[:, _BATTERY_KNOWN] > 0.5) & (x[:, _BATTERY] < floor)] = CODE[Reason.BATTERY]
        codes[(self.trained.exceedance(x) > self.limits.margin).any(axis=1)] = CODE[Reason.RANGE]
        codes[(repeats + 1 >= self.limits.frozen_after) | (x[:, _HEARD] >= 1.0)] = CODE[Reason.STALE]
        codes[~np.isfinite(x).all(axis=1)] = CODE[Reason.INPUT]
        return codes

    def detail(self, x: NDArray[Any], code: int) -> str:
        """Return the finding on one observation (D,) in words."""
        reason = REASONS[code]
        if reason is Reason.INPUT:
            return f"{_names(~np.isfinite(x))} not finite"
        if reason is Reason.BATTERY:
            return f"battery {float(x[_BATTERY]):.3f}, floor {self.limits.battery_floor:g}"
        if reason is Reason.STALE:
            heard = "nothing heard" if x[_HEARD] >= 1.0 else f"{self.limits.frozen_after} equal observations"
            return f"{heard}; heard_age {float(x[_HEARD]):.3f}"
        beyond = self.trained.exceedance(x[None])[0]
        worst = int(beyond.argmax())
        return (
            f"{obs.NAMES[worst]} {float(x[worst]):.3f}, "
            f"trained {self.trained.low[worst]:.3f}..{self.trained.high[worst]:.3f}"
        )


@dataclass(frozen=True, slots=True)
class DecisionMonitor:
    """Judges what the learned policy decided.

    ``answer_s`` (B,) is the predicted time from taking up a frame to the device's own answer on each branch, s; an
    answer later than ``deadline_s`` is none, whatever the link does. An empty ``answer_s`` predicts nothing.
    """

    space: DecisionSpace
    deadline_s: float
    answer_s: Floats

    def legal(self, chosen: NDArray[Any], n: int) -> tuple[NDArray[np.int64], Codes]:
        """Return canonical decisions (n, 3), zeros where there is none, and (n,) codes."""
        codes = np.full(n, CODE[Reason.ILLEGAL], dtype=np.int8)
        decisions = np.zeros((n, 3), dtype=np.int64)
        if chosen.shape != (n, 3) or chosen.dtype.kind not in "iu":
            return decisions, codes
        codes[((chosen >= 0) & (chosen < np.array(self.space.shape))).all(axis=1)] = 0
        well = codes == 0
        decisions[well] = self.space.canonical(chosen[well])
        return decisions, codes

    def slow(self, x: NDArray[Any], decisions: NDArray[np.int64], recovery: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (n,) whether the answer is predicted to miss the deadline where the recovery's is not."""
        if not self.answer_s.size:
            return np.zeros(len(x), dtype=np.bool_)
        low, high = obs.FIELDS[_WAIT].low, obs.FIELDS[_WAIT].high
        left = self.deadline_s - (low + x[:, _WAIT].astype(np.float64) * (high - low))
        return np.asarray((self.answer_s[decisions[:, 0]] > left) & (self.answer_s[recovery[:, 0]] <= left))


def safe_decision(space: DecisionSpace, answer_s: Floats | None = None) -> Decision:
    """Return the decision of the guard's last resort: it needs neither the link nor an earlier answer.

    Of the split branches that always exit and the local branches, the one of the least predicted time ``answer_s``
    (B,); without a prediction, the first split branch. Where the space has no such decision, the first of the table.
    """
    kinds = np.array([branch.kind for branch in space.branches])[space.table[:, 0]]
    exits = (kinds == "split") & (np.array(space.thresholds)[space.table[:, 2]] <= ALWAYS_EXIT)
    rows = np.concatenate([space.table[exits], space.table[kinds == "local"], space.table[:1]])
    alone = int(exits.sum() + (kinds == "local").sum())
    best = 0 if answer_s is None or not answer_s.size or not alone else int(answer_s[rows[:alone, 0]].argmin())
    return Decision(*(int(i) for i in rows[best]))


def _names(which: NDArray[np.bool_]) -> str:
    return ", ".join(np.array(obs.NAMES)[which][:3])
