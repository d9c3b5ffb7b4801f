"""``online:RUN``: a trained policy, frozen, and a light learner on top that corrects it from outcomes, without labels.

An outcome pays the scenario's objective with the calibrated confidence in place of the quality. The learner
(``online_model``) starts as the policy itself and goes back to it when nothing more is heard. It explores among
decisions that it predicts within ``epsilon`` of the best, on ``share`` of the frames at most, the most uncertain first;
every other time the policy's own decision, where it was replaced, so that it is known what that would bring now.
When answers of the device itself have starved the estimate of the link it sends a small message (``bandits_probe``).

Name: ``online:RUN`` or ``online:KEY=VALUE/KEY=VALUE:RUN`` with the keys of ``OnlineParameters``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.bandits_arms import Arms, Floats, Ints
from adaptsplit.agents.bandits_memory import ordinals
from adaptsplit.agents.bandits_probe import smallest_message
from adaptsplit.agents.base import ControllerContext, Kind
from adaptsplit.agents.online_model import CONTEXTS, OnlineModel, Seen, build_model
from adaptsplit.agents.online_state import Decided, Deployment, Lessons, OnlineParameters, OnlineState
from adaptsplit.agents.policy import PolicyController
from adaptsplit.agents.prediction import DecisionModel
from adaptsplit.controller import Controller, Decisions, Observations
from adaptsplit.decision import DecisionSpace
from adaptsplit.objective import Objective
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

RING = 32  # decisions remembered until their outcome comes: 3 s at 10 frames/s
PATIENT = 50.0  # outcomes after which exploration begins to slow down where nothing was found (assumed)
LEAST_PACE = 0.2  # of ``share`` that always remains, for a world that changes (assumed)
BOLD = 2.0  # deviations of the upper bound by which explorations are chosen
STARVED = 0.999  # the observation is rounded to 32 bits: without it a whole number of periods could just miss


class OnlineController:
    """A frozen policy and its learner; see the module. ``lessons`` is what every row starts with."""

    kind: Kind = "learned"
    learns = True

    def __init__(
        self,
        name: str,
        model: OnlineModel,
        deployment: Deployment,
        parameters: OnlineParameters,
        lessons: Lessons | None = None,
    ) -> None:
        self.name, self.space, self.model = name, model.space, model
        self.deployment, self.parameters = deployment, parameters
        self.lessons = lessons or Lessons.none(model.size)
        self._arms = Arms(model.space, np.arange(len(model.space.table)))
        self._objective = Objective(**deployment.weights.model_dump())
        self._keep = float(np.exp(-1.0 / parameters.memory))
        self._columns = obs.index("goodput_age"), obs.index("unacked_count")
        age, unacked = (obs.FIELDS[i] for i in self._columns)
        longest = max(STARVED * parameters.probe_s, age.low)
        self._starved = min(np.log(longest / age.low) / np.log(age.high / age.low), 1.0)
        self._few = (0.5 - unacked.low) / (unacked.high - unacked.low)

    def init(self, n: int, rng: np.random.Generator) -> OnlineState:
        """Return the lessons for n rows; ``rng`` is not used."""
        zeros = np.zeros(n, dtype=np.int64)
        return OnlineState(
            theta=np.tile(self.lessons.theta, (n, 1)),
            covariance=np.tile(self.lessons.covariance, (n, 1, 1)),
            waiting=(),
            fresh=False,
            budget=np.zeros(n),
            since=np.zeros(n),
            taught=zeros + self.lessons.taught,
            explored=zeros,
            probed=zeros,
        )

    def act(self, observation: Observations, state: OnlineState) -> tuple[Decisions, OnlineState]:
        """Return (n, 3) decisions: the best, now and then an uncertain one that is nearly as good, or a probe."""
        seen = self.model.see(observation)
        value = self.model.values(observation, seen, state.theta)
        chosen = self._sure(observation, seen, value, state.covariance)
        budget = state.budget + self._pace(chosen != seen.own, state.taught)
        since, explored, probed = state.since, state.explored, state.probed
        explores = budget >= 1.0 - 1e-9
        if explores.any():
            other = self._uncertain(observation, seen, value, state.covariance)
            returns = (state.explored % 2 == 1) & (chosen != seen.own)
            other = np.where(returns, seen.own, other)
            explores &= other != chosen
            chosen = np.where(explores, other, chosen)
            budget, explored = np.minimum(budget, 1.0) - explores, explored + explores
        if self.parameters.probe_s > 0.0:
            probes = self._probes(observation, since)
            chosen = np.where(probes, self.deployment.probe, chosen)
            since, probed = np.where(probes, 1.0, since + 1.0), probed + probes
        x = self.model.features(observation, seen, chosen)
        decided = Decided(chosen, x, seen.margin[np.arange(len(chosen)), chosen])
        waiting = (*state.waiting[1 - RING :], decided)
        after = OnlineState(state.theta, state.covariance, waiting, True, budget, since, state.taught, explored, probed)
        return self.space.table[chosen], after

    def _pace(self, moved: NDArray[np.bool_], taught: Ints) -> Floats | float:
        """(n,) share of frames to explore: all of it where the policy is being corrected, less and less (a fifth at
        last) where nothing better was found: exploration then costs and brings nothing.
        """
        if len(moved) == 1:
            rested = max((1.0 + taught.item() / PATIENT) ** -0.5, LEAST_PACE)
            return self.parameters.share * (1.0 if moved[0] else rested)
        slower = np.maximum((1.0 + taught / PATIENT) ** -0.5, LEAST_PACE)
        return np.asarray(self.parameters.share * np.where(moved, 1.0, slower))

    def _sure(self, observation: Observations, seen: Seen, value: Floats, covariance: Floats) -> Ints:
        """(n,) the decision of the largest value where it beats the policy's by ``caution`` deviations, else that."""
        best, own = value.argmax(axis=1), seen.own
        if (best == own).all():
            return own
        rows = np.arange(len(own))
        gain = value[rows, best] - value[rows, own]
        spread = self._spread(self.model.features(observation, seen, best), covariance)
        return np.where(gain >= self.parameters.least + self.parameters.caution * spread, best, own)

    def _spread(self, x: Floats, covariance: Floats) -> Floats:
        """(n,) standard deviation of what features (n, d) are worth more than the policy's own decision."""
        part, inner = x[:, CONTEXTS:], covariance[:, CONTEXTS:, CONTEXTS:]
        return np.asarray(np.sqrt(np.matmul(part[:, None, :], np.matmul(inner, part[:, :, None]))[:, 0, 0]))

    def _uncertain(self, observation: Observations, seen: Seen, value: Floats, covariance: Floats) -> Ints:
        """(n,) the decision of the largest upper bound among those within ``epsilon`` of the best, by the learner's own
        prediction or by the profile's.
        """
        picked = np.empty(len(value), dtype=np.int64)
        for i, own in enumerate(value):
            part = self.model.differences(observation[i], seen.predicted[i], int(seen.own[i]))
            inner = covariance[i, CONTEXTS:, CONTEXTS:]
            bound = own + BOLD * np.sqrt(np.einsum("md,md->m", part @ inner, part))
            allowed = own >= own.max() - self.parameters.epsilon
            allowed[seen.predicted[i].argmax()] = True
            allowed &= bound >= own.max() + self.parameters.least
            picked[i] = np.where(allowed, bound, -np.inf).argmax() if allowed.any() else own.argmax()
        return picked

    def _probes(self, observation: Observations, since: Floats) -> NDArray[np.bool_]:
        """(n,) whether the estimate of the link is starved, nothing is in flight, and the last probe is long past."""
        age, unacked = self._columns
        starved = (observation[:, age] >= self._starved) & (observation[:, unacked] < self._few)
        return np.asarray(starved & (since >= self.parameters.probe_s * self.deployment.fps))

    def save(self, path: Path) -> None:
        """Write the policy file: network, features and lessons (not what a state has learned since)."""
        from adaptsplit.agents.online_file import save_online  # the file's reader builds controllers of this module

        save_online(path, self)

    # ---- learning ----

    def reward(self, outcomes: Outcomes) -> Floats:
        """Return (N,) rewards in the objective's unit, the confidence in place of the quality."""
        records = outcomes.copy()
        records["quality"] = outcomes["confidence"]
        return np.asarray(self._objective.reward(records), dtype=np.float64)

    def learn(self, outcomes: Outcomes, state: OnlineState) -> OnlineState:
        """Take N outcomes, in their order; those of no waiting decision are passed over.

        A dropped frame is one more outcome of the row's last decision, which kept the device busy.
        """
        reward, arm = self.reward(outcomes), self._arms.of(outcomes)
        rows, dropped = outcomes["env"].astype(np.int64), outcomes["branch"] < 0
        use = np.isfinite(reward) & ((arm >= 0) | (dropped & state.fresh)) & bool(state.waiting)
        rows, arm, reward, dropped = rows[use], arm[use], reward[use], dropped[use]
        theta, covariance, taught = state.theta.copy(), state.covariance.copy(), state.taught.copy()
        waits, turn = np.array([decided.arm for decided in state.waiting]), ordinals(rows)
        for k in range(int(turn.max(initial=-1)) + 1):
            now = np.flatnonzero(turn == k)
            place = _places(waits, rows[now], arm[now], dropped[now])
            now, place = now[place >= 0], place[place >= 0]
            x = np.array([state.waiting[i].x[row] for i, row in zip(place, rows[now], strict=True)])
            margin = np.array([state.waiting[i].margin[row] for i, row in zip(place, rows[now], strict=True)])
            self.update(theta, covariance, rows[now], x, reward[now] - margin)
            taught[rows[now]] += 1
        waiting = _still_waiting(state.waiting, waits)
        return replace(state, theta=theta, covariance=covariance, waiting=waiting, taught=taught, fresh=False)

    def update(self, theta: Floats, covariance: Floats, rows: Ints, x: Floats, target: Floats) -> None:
        """One step of the Kalman filter for each of N different rows, in place.

        ``target`` is the reward less the policy's own margin: 0 for the decision that it prefers, negative for others.
        """
        if not len(rows):
            return
        keep, d = self._keep, x.shape[1]
        before, mean = covariance[rows], keep * theta[rows]
        before *= keep * keep
        before[:, np.arange(d), np.arange(d)] += 1.0 - keep * keep
        gain = np.matmul(before, x[:, :, None])[:, :, 0]
        total = np.einsum("nd,nd->n", x, gain) + self.parameters.noise**2
        error = (target - np.einsum("nd,nd->n", x, mean)) / total
        theta[rows] = mean + gain * error[:, None]
        covariance[rows] = before - gain[:, :, None] * (gain / total[:, None])[:, None, :]


def _places(waits: Ints, rows: Ints, arm: Ints, dropped: NDArray[np.bool_]) -> Ints:
    """(N,) which of the W decisions each outcome is of: the oldest of its arm that waits, or the last; -1 for none.

    ``waits`` (W, n) are the arms that wait; those found wait no more.
    """
    match = waits[:, rows] == arm
    found, place = match.any(axis=0) & ~dropped, match.argmax(axis=0)
    waits[place[found], rows[found]] = -1
    return np.where(dropped, len(waits) - 1, np.where(found, place, -1))


def _still_waiting(waiting: tuple[Decided, ...], waits: Ints) -> tuple[Decided, ...]:
    """Return the decisions without those at the front that nobody waits for; the last one stays, for drops."""
    open_ = (waits >= 0).any(axis=1) if len(waits) else np.zeros(0, dtype=np.bool_)
    first = min(int(open_.argmax()) if open_.any() else len(waiting), max(len(waiting) - 1, 0))
    return tuple(Decided(waits[i], waiting[i].x, waiting[i].margin) for i in range(first, len(waiting)))


def build_online(
    name: str,
    policy: PolicyController,
    summary: ProfileSummary,
    context: ControllerContext,
    given: OnlineParameters,
) -> OnlineController:
    """Return the learner over a frozen network policy, knowing nothing yet."""
    decisions = DecisionModel(policy.space, summary, context)
    model = build_model(policy.net, decisions, tau=given.tau, trust=given.trust)
    probe = smallest_message(decisions)
    row = (probe.branch, probe.rate, probe.threshold)
    place = int(np.flatnonzero((policy.space.table == row).all(axis=1))[0])
    return OnlineController(name, model, Deployment(context.weights, context.fps, place), given)


def online(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    from adaptsplit.agents.online_run import online_of  # it needs ``build``, which imports this module

    return online_of(argument, space, summary, context)
