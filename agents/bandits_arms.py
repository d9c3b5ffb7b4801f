"""What a bandit chooses among and what it is paid: arms out of the decision table, and a reward without labels.

Letters: n rows (devices), K arms, N outcome records, M decisions of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.base import ControllerContext, RewardWeights, need_summary
from adaptsplit.agents.prediction import DecisionModel, nominal_observation
from adaptsplit.controller import Decisions, Observations
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.objective import Objective
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RewardSource = Literal["confidence", "label"]

DEFAULT_ARMS = 12
# The goodputs (bit/s) for which the arms of a sub-grid must hold a good decision: the range of the observation's middle
# two decades and a half, 100 kbit/s to 30 Mbit/s. Assumed to cover the links of a drone, not measured.
COVERED_BPS = np.geomspace(1e5, 3e7, 11)


@dataclass(frozen=True)
class Arms:
    """The K decisions that a bandit chooses among: ``rows`` (K,) are their places in ``space.table``."""

    space: DecisionSpace
    rows: Ints

    @cached_property
    def decisions(self) -> Decisions:
        """(K, 3) decision indices."""
        return self.space.table[self.rows]

    @cached_property
    def _of_code(self) -> Ints:
        """(B * R * T,) arm of each point of the grid, -1 where it is none of them."""
        lookup = np.full(int(np.prod(self.space.shape)), -1, dtype=np.int64)
        lookup[self.space.codes[self.rows]] = np.arange(len(self.rows))
        return lookup

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, outcomes: Outcomes) -> Ints:
        """Return the (N,) arm whose outcome each record is; -1 for a dropped frame and for other decisions."""
        branch = outcomes["branch"].astype(np.int64)
        decided = branch >= 0
        rule = rule_of(self.space, outcomes)
        decided &= rule >= 0
        rate = outcomes["rate"].astype(np.int64)
        indices = np.where(decided[:, None], np.column_stack([branch, rate, rule]), 0)
        codes = np.ravel_multi_index(tuple(self.space.canonical(indices).T), self.space.shape)
        return np.where(decided, self._of_code[codes], -1)


def rule_of(space: DecisionSpace, outcomes: Outcomes) -> Ints:
    """(N,) index of each record's exit rule, -1 where the space has no such rule; records hold 32-bit numbers."""
    known = np.column_stack([space.thresholds, space.patience])
    given = np.column_stack([outcomes["threshold"], outcomes["patience"]]).astype(np.float64)
    far = np.abs(known[None] - given[:, None]).max(axis=2)
    return np.where(np.nan_to_num(far.min(axis=1), nan=1.0) < 1e-5, far.argmin(axis=1), -1)


def observe_goodput(context: ControllerContext, goodput_bps: Floats) -> Observations:
    """Return (n, D) observations of an idle link that has just shown each of the n goodputs (bit/s)."""
    out = np.repeat(nominal_observation(context), len(goodput_bps), axis=0)
    out[:, obs.index("goodput")] = obs.scaled("goodput", goodput_bps)
    out[:, obs.index("goodput_known")] = 1.0
    out[:, obs.index("goodput_age")] = 0.0
    return np.asarray(out, dtype=np.float32)


def covering_arms(model: DecisionModel, count: int) -> Arms:
    """Return ``count`` decisions that hold a good one for every goodput of ``COVERED_BPS``, best addition first.

    Greedy choice for the sum over goodputs of the best expected reward, a submodular function: at least 1 - 1/e of the
    best set's gain (Nemhauser, Wolsey, Fisher 1978). ConfigError unless 2 <= count <= M.
    """
    total = len(model.space.table)
    if not 2 <= count <= total:
        raise ConfigError(f"arms={count}: expected 2 to {total} (the size of this decision table), or arms=all")
    expected = model.expected(observe_goodput(model.context, COVERED_BPS))
    best, chosen = np.full(len(expected), expected.min()), list[int]()
    for _ in range(count):
        gain = np.maximum(expected, best[:, None]).sum(axis=0) + 1e-9 * expected.sum(axis=0)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        best = np.maximum(best, expected[:, chosen[-1]])
    return Arms(model.space, np.array(chosen, dtype=np.int64))


def arms_named(
    name: str, text: str, space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext
) -> Arms:
    """Return the arms for ``arms=all`` or ``arms=COUNT`` (at most the table); ConfigError for anything else."""
    if text == "all":
        return Arms(space, np.arange(len(space.table)))
    if not text.isdecimal():
        raise ConfigError(f"controller {name!r}: arms={text!r}; expected 'all' or a number such as arms={DEFAULT_ARMS}")
    return covering_arms(DecisionModel(space, need_summary(name, summary), context), int(text))


class Paid(Protocol):
    """What turns outcome records into rewards."""

    def __call__(self, outcomes: Outcomes) -> Floats:
        """Return the (N,) rewards; NaN for a record that teaches nothing."""
        ...


@dataclass(frozen=True)
class Reward:
    """Pays an outcome in 0..1: the objective of the scenario, linearly from [``low``, ``high``], clipped.

    ``source`` says what stands for the answer's quality: ``confidence``, the calibrated confidence of the answer that
    counted (no label needed, the only choice on a device; 0 for a miss), or ``label``, the share of cells answered
    rightly (simulation only). A record without the number that is asked for gives NaN and teaches nothing.
    """

    weights: RewardWeights
    low: float
    high: float
    source: RewardSource = "confidence"

    @cached_property
    def _objective(self) -> Objective:
        return Objective(**self.weights.model_dump())

    def __call__(self, outcomes: Outcomes) -> Floats:
        """Return the (N,) rewards in 0..1 (NaN where the quality is unknown)."""
        records = outcomes
        if self.source == "confidence":
            records = outcomes.copy()
            records["quality"] = outcomes["confidence"]
        return self.scaled(self._objective.reward(records))

    def scaled(self, raw: Floats) -> Floats:
        """Map rewards in the objective's unit to 0..1."""
        return np.asarray(np.clip((raw - self.low) / (self.high - self.low), 0.0, 1.0), dtype=np.float64)


def reward_for(context: ControllerContext, source: str) -> Reward:
    """Return the reward of a scenario's objective: ``high`` is a free right answer, ``low`` a miss or a late switch.

    Energy and bytes have no bound and are clipped at ``low``: a cost above all of an answer's worth is as bad as a
    miss. ConfigError for a source other than ``confidence`` and ``label``, or a quality without weight.
    """
    if source not in ("confidence", "label"):
        raise ConfigError(f"reward={source!r}: expected 'confidence' (label-free) or 'label' (simulation only)")
    weights = context.weights
    low = -max(weights.miss, weights.switch + weights.latency_per_s * context.deadline_s)
    if weights.quality <= 0.0:
        raise ConfigError("the objective gives quality no weight: a bandit has nothing to earn; set quality above 0")
    return Reward(weights, low, weights.quality, "label" if source == "label" else "confidence")
