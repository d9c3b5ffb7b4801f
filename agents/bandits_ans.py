"""Autodidactic Neurosurgeon: muLinUCB over partition points, with forced sampling and key frames.

After Zhang, Chen, Xu: "Autodidactic Neurosurgeon: Collaborative Deep Inference for Mobile Edge Intelligence via Online
Learning", WWW 2021 (arXiv 2102.02638), and the constants of the authors' code. The device's own time f_p is known from
the profile; the remote time x_p' theta of partition point p is learned.

    play argmin_p  f_p + x_p' A^-1 b - alpha sqrt((1 - L) x_p' A^-1 x_p)
    alpha = (C_theta + C_noise sqrt(d ln((1 + T C_x^2) / delta))) / (1 - L_key)

L is 0.8 on a key frame (explore little), 0.2 else. Every ceil(T^0.25)-th frame may not stay on the device, for the
local arm teaches nothing. T is 200, doubled whenever it is reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.bandits_arms import Arms, Floats, Ints
from adaptsplit.agents.base import ControllerContext, Kind, full_name, need_summary, parse_parameters
from adaptsplit.agents.prediction import DecisionModel, FieldReader
from adaptsplit.controller import Controller, Decisions, Observations, controllers
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes, Path

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

C_THETA, C_NOISE, DELTA = 1.0, 0.05, 0.1  # the authors' code
FIRST_HORIZON = 200
FORCING_POWER = 0.25
KEY_WEIGHT, PLAIN_WEIGHT = 0.8, 0.2
# The paper calls a frame a key frame when its structural similarity to the one before is below 0.8. The observation has
# a difference in 0..1 instead; 0.2 is assumed to be the same change.
KEY_DIFFERENCE = 0.2
NEVER_CAME = 4.0  # deadlines that a result counts which never came, or was never sent for want of a link (assumed)


@dataclass(frozen=True, slots=True)
class AnsState:
    """``gram`` (n, d, d) is A, ``moment`` (n, d) is b; ``frame`` decided frames, the same for all rows."""

    gram: Floats
    moment: Floats
    frame: int


@dataclass(frozen=True)
class Points:
    """Partition points: K ``arms``, their features (K, d), known seconds on the device (K,), which of them send."""

    arms: Arms
    features: Floats
    device_s: Floats
    sends: NDArray[np.bool_]


def horizon(frame: int) -> int:
    """Return T while frame ``frame`` (0 the first) is decided: 200, 400, 800, ..."""
    total = FIRST_HORIZON
    while frame >= total:
        total *= 2
    return total


def forced(frame: int) -> bool:
    """Tell whether frame ``frame`` (0 the first) may not stay on the device: every ceil(T^0.25)-th."""
    return (frame + 1) % int(np.ceil(horizon(frame) ** FORCING_POWER)) == 0


class AutodidacticNeurosurgeon:
    """muLinUCB; it lowers the delay of the full network's answer and nothing else, as the paper does.

    ``original`` keeps two faults of the authors' code: C_x, already a square, is squared again, and the features are
    not scaled (bits beside seconds), with A = diag(1..8 drawn). Mended, no feature is above 1 and A is the unit matrix.
    """

    kind: Kind = "rule"
    learns = True

    def __init__(
        self, name: str, points: Points, deadline_s: float, *, discount: float = 1.0, original: bool = False
    ) -> None:
        if not 0.0 < discount <= 1.0:
            raise ConfigError(f"controller {name!r}: discount={discount:g}; expected a number in (0, 1]")
        self.name, self.points, self.discount, self.original = name, points, discount, original
        scale = np.abs(points.features).max(axis=0)
        self.x: Floats = points.features if original else points.features / np.where(scale > 0.0, scale, 1.0)
        self._cap_s = NEVER_CAME * deadline_s
        self._read = FieldReader(("difference",))

    def init(self, n: int, rng: np.random.Generator) -> AnsState:
        """Return A and b of n rows; ``rng`` draws the diagonal of A in the original only."""
        d = self.x.shape[1]
        diagonal = rng.integers(1, 9, size=(n, d)).astype(np.float64) if self.original else np.ones((n, d))
        return AnsState(diagonal[:, :, None] * np.eye(d), np.zeros((n, d)), 0)

    def alpha(self, frame: int) -> float:
        """Return the width of the confidence bound at a frame."""
        d, square = self.x.shape[1], float((self.x**2).sum(axis=1).max())
        bound = square**2 if self.original else square
        return float(
            (C_THETA + C_NOISE * np.sqrt(d * np.log((1.0 + horizon(frame) * bound) / DELTA))) / (1 - KEY_WEIGHT)
        )

    def scores(self, observation: Observations, state: AnsState) -> Floats:
        """Return (n, K) optimistic delays, s; infinite for the local arms of a forced frame."""
        inverse = np.linalg.inv(state.gram)
        theta = np.einsum("nij,nj->ni", inverse, state.moment)
        spread = np.einsum("ki,nij,kj->nk", self.x, inverse, self.x)
        weight = np.where(self._read(observation)[0] > KEY_DIFFERENCE, KEY_WEIGHT, PLAIN_WEIGHT)[:, None]
        width = self.alpha(state.frame) * np.sqrt(np.maximum((1.0 - weight) * spread, 0.0))
        score = self.points.device_s + theta @ self.x.T - width
        if forced(state.frame) and self.points.sends.any():
            score = np.where(self.points.sends, score, np.inf)
        return np.asarray(score)

    def act(self, observation: Observations, state: AnsState) -> tuple[Decisions, AnsState]:
        """Return the (n, 3) partition points of the least optimistic delay."""
        arm = self.scores(observation, state).argmin(axis=1)
        return self.points.arms.decisions[arm], AnsState(state.gram, state.moment, state.frame + 1)

    def learn(self, outcomes: Outcomes, state: AnsState) -> AnsState:
        """Take the remote delays of the frames that were sent; local answers teach nothing."""
        arm = self.points.arms.of(outcomes)
        useful = (
            (arm >= 0) & self.points.sends[arm] & (~np.isnan(outcomes["remote_latency_s"]) | self._passed(outcomes))
        )
        rows, arm = outcomes["env"][useful].astype(np.int64), arm[useful]
        delay, x = self._remote_s(outcomes[useful], arm), self.x[arm]
        gram, moment = state.gram.copy(), state.moment.copy()
        if self.discount < 1.0:
            factor = self.discount ** np.bincount(rows, minlength=len(gram))
            gram = factor[:, None, None] * gram + (1.0 - factor)[:, None, None] * np.eye(self.x.shape[1])
            moment = factor[:, None] * moment
        np.add.at(gram, rows, x[:, :, None] * x[:, None, :])
        np.add.at(moment, rows, x * delay[:, None])
        return AnsState(gram, moment, state.frame)

    def _passed(self, outcomes: Outcomes) -> NDArray[np.bool_]:
        """(N,) frames that the sender passed over: a bad link, which the original does not learn from."""
        return np.asarray((outcomes["path"] == Path.FALLBACK_PASSED) & (not self.original))

    def _remote_s(self, outcomes: Outcomes, arm: Ints) -> Floats:
        """(N,) seconds from the end of the device's work to the result, capped."""
        waited = outcomes["decided_s"] - outcomes["arrived_s"]
        delay = outcomes["remote_latency_s"] - waited - self.points.device_s[arm]
        return np.clip(np.where(np.isnan(delay), self._cap_s, delay), 0.0, self._cap_s).astype(np.float64)


def partition_points(model: DecisionModel, summary: ProfileSummary, quality_s: float = 0.0) -> Points:
    """Return the decisions that give the full network's answer: every rate of every branch that never exits, and local.

    Features of a remote point: 1 (round trip and queue), the tail's seconds on the profiling host (the work that is
    left, for which the paper has counts of multiplications and layers), payload bits. ``quality_s`` adds that many
    seconds per unit of quality that a codec loses; 0 is the paper's. ConfigError when no decision always sends.
    """
    table, value = model.space.table, np.array(model.space.thresholds)[model.space.table[:, 2]]
    alone = model.space.answers_alone[table[:, 0]]
    local = np.array([branch.kind == "local" for branch in model.space.branches])[table[:, 0]]
    rows = np.flatnonzero(((value > 1.0) & (model.patience == 1.0) & ~alone) | local)
    b, r, _ = table[rows].T
    sends = ~alone[rows]
    if not sends.any():
        raise ConfigError(
            "controller 'ans' needs a threshold above 1 (never exit); add 1.01 to the scenario's thresholds"
        )
    pair = np.array([np.flatnonzero((model.pairs == (i, j)).all(axis=1))[0] for i, j in zip(b, r, strict=True)])
    work = np.column_stack([np.ones(len(b)), np.asarray(summary.tail_s)[b, r], 8.0 * model.wire_bytes[pair]])
    lost = 1.0 - np.asarray(summary.tail_quality)[b, r]
    device_s = (model.signal + model.head + model.encode)[pair] + quality_s * lost
    return Points(Arms(model.space, rows), np.where(sends[:, None], work, 0.0), device_s, sends)


@controllers.register("ans")
def _ans(space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str) -> Controller:
    given = parse_parameters("ans", argument, {"quality_s": float, "discount": float, "original": int})
    known = need_summary("ans", summary)
    if given.get("original", 0) not in (0, 1) or not given.get("quality_s", 0.0) >= 0.0:
        raise ConfigError(f"controller 'ans': {argument!r}; expected original=0 or 1, and quality_s at least 0")
    points = partition_points(DecisionModel(space, known, context), known, given.get("quality_s", 0.0))
    original, discount = bool(given.get("original", 0)), given.get("discount", 1.0)
    name = full_name("ans", argument)
    return AutodidacticNeurosurgeon(name, points, context.deadline_s, discount=discount, original=original)
