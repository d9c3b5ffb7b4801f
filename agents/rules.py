"""Rules that need no training: the classic threshold rule and the deadline rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.base import ControllerContext, Kind, full_name, need_summary, parse_parameters
from adaptsplit.agents.prediction import DecisionModel, FieldReader, nominal_observation
from adaptsplit.controller import Controller, Decisions, Observations, State, Stateless, controllers
from adaptsplit.decision import ALWAYS_EXIT, DecisionSpace
from adaptsplit.errors import ConfigError

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary


class DeadlineRule(Stateless):
    """The decision of the best expected reward, given the chance that its answer meets the deadline.

    After Edgent (Li, Zhou, Chen: "Edge Intelligence: On-Demand Deep Learning Model Co-Inference with Device-Edge
    Synergy", 2018: the most accurate exit and partition point whose predicted latency fits) and DynaSplit (May et al.,
    2024: the configuration of least energy that meets the latency goal). Here the prediction uses the observed goodput,
    backlog, round trip, server time and waiting time, and the profile's mean quality, bytes and stage times.

    ``sigma`` is the least spread of ln(goodput) around its estimate: small trusts the estimate, large is careful.
    """

    kind: Kind = "rule"

    def __init__(self, model: DecisionModel, name: str = "deadline") -> None:
        self.name = name
        self.model = model
        self._table = model.space.table

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to the (n, 3) best decisions."""
        return self._table[self.model.expected(observation).argmax(axis=1)], state


class ThresholdRule(Stateless):
    """One branch and one threshold; the rate from the goodput by a ladder; the exit alone while the link is stale.

    What an engineer would write first (and adaptive streaming does). Rung r is taken while the goodput is at least
    ``margin`` times what its mean message needs to be answered in time; when not even the strongest compression fits,
    or nothing was heard for ``stale_s``, or what is in flight is overdue by a deadline, the exit answers. A low
    estimate that is older than ``stale_s`` is tried again with the strongest compression.
    """

    kind: Kind = "rule"

    def __init__(
        self,
        model: DecisionModel,
        branch: int,
        threshold: int,
        *,
        margin: float = 1.0,
        stale_s: float = 1.0,
        name: str = "threshold",
    ) -> None:
        self.name = name
        self.margin, self.stale_s, self.branch = margin, stale_s, branch
        self._deadline_s = model.context.deadline_s
        patience = model.space.patience[threshold]
        rungs = (model.pairs[:, 0] == branch) & (model.pair_patience == patience)
        busy = (model.signal + model.head + model.encode)[rungs]
        left = patience * self._deadline_s - (busy + model.context.rtt_s + model.context.server_s)
        bits = 8.0 * model.wire_bytes[rungs]
        need = np.where(left > 0.0, margin * bits / np.maximum(left, 1e-9), np.inf)
        self._ladder: NDArray[np.float64] = np.maximum.accumulate(np.maximum(need, margin * bits * model.context.fps))
        self._send = model.space.canonical(np.array([[branch, r, threshold] for r in range(len(need))]))
        self._exit = model.space.canonical(np.array([[branch, 0, _exit_threshold(model.space, threshold)]]))[0]
        self._read = FieldReader(("goodput", "goodput_known", "heard_age", "goodput_age", "overdue"))

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions."""
        goodput, known, heard, age, overdue = self._read(observation)
        rung = np.searchsorted(self._ladder, goodput * (1.0 + 1e-9), side="right") - 1
        stale = (heard > self.stale_s) | (overdue > self._deadline_s)
        blocked = (rung < 0) & (known > 0.5) & (age < self.stale_s)
        decision = self._send[np.maximum(rung, 0)]
        decision[stale | blocked] = self._exit
        return decision, state


def _exit_threshold(space: DecisionSpace, threshold: int) -> int:
    """Index of the always-exit threshold; the given one where the space has none."""
    return 0 if space.thresholds[0] <= ALWAYS_EXIT else threshold


def _default_choice(model: DecisionModel) -> tuple[int, int]:
    """Branch and threshold of the best sending decision of a split branch under the scenario's priors."""
    space = model.space
    table = space.table
    split = np.array([branch.kind == "split" for branch in space.branches])[table[:, 0]]
    sends = split & (np.array(space.thresholds)[table[:, 2]] > ALWAYS_EXIT)
    if not sends.any():
        raise ConfigError("controller 'threshold' needs a split branch that can send; this decision space has none")
    expected = np.where(sends, model.expected(nominal_observation(model.context))[0], -np.inf)
    best = table[int(expected.argmax())]
    return int(best[0]), int(best[2])


def _chosen(model: DecisionModel, branch: str | None, threshold: str | None) -> tuple[int, int]:
    """Branch and threshold indices as named by the user, each by default that of ``_default_choice``."""
    space = model.space
    default_branch, default_threshold = _default_choice(model)
    branch = branch or space.branches[default_branch].name
    chosen = space.parse(f"{branch}/0/{threshold or f'{space.rule_names[default_threshold]}'}")
    if space.answers_alone[chosen.branch]:
        raise ConfigError(f"controller 'threshold': branch {branch!r} sends nothing; name another branch")
    return chosen.branch, chosen.threshold


@controllers.register("deadline")
def _deadline(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    given = parse_parameters("deadline", argument, {"sigma": float})
    sigma = given.get("sigma", 0.3)
    if not 0.0 < sigma < 10.0:
        raise ConfigError(f"controller 'deadline': sigma={sigma:g}; expected a number in 0..10, such as sigma=0.3")
    model = DecisionModel(space, need_summary("deadline", summary), context, sigma)
    return DeadlineRule(model, full_name("deadline", argument))


@controllers.register("threshold")
def _threshold(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    known = {"branch": str, "threshold": str, "margin": float, "stale_s": float}
    given = parse_parameters("threshold", argument, known)
    model = DecisionModel(space, need_summary("threshold", summary), context)
    branch, threshold = _chosen(model, given.get("branch"), given.get("threshold"))
    margin, stale_s = given.get("margin", 1.0), given.get("stale_s", 1.0)
    if margin <= 0.0 or stale_s <= 0.0:
        raise ConfigError(f"controller 'threshold': margin={margin:g}, stale_s={stale_s:g}; expected numbers above 0")
    name = full_name("threshold", argument)
    return ThresholdRule(model, branch, threshold, margin=margin, stale_s=stale_s, name=name)
