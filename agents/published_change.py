"""When to plan anew: SCIoT's moving average with a variance trigger, and Edgent's change-point mode."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.prediction import FieldReader
from adaptsplit.agents.published_base import (
    Bools,
    Floats,
    Ints,
    Plans,
    Remembering,
    Setting,
    nominal_link,
    published,
    read_link,
)
from adaptsplit.agents.published_exit import MARGIN, edgent_candidates, goal_of
from adaptsplit.agents.published_parameters import STREAM, Number
from adaptsplit.controller import Controller, Decisions, Observations

WINDOW = 10  # samples of the coefficient of variation (SCIoT)
KEEP = 0.8  # weight of the past in the moving average (SCIoT)
RUNS = 64  # longest run length that is told apart, samples
KAPPA, ALPHA, BETA = (
    0.05,
    1.0,
    0.05,
)  # prior of ln(goodput), assumed: level within e^+-1, noise 20 %
MAP_BPS = np.geomspace(1e4, 1e8, 81)  # bandwidth states of the configuration map, 12 % apart


@dataclass(frozen=True, slots=True)
class TriggerState:
    """Per row: moving average (n,), 0 at first; recent samples (n, W); the plan, and the goodput it was made for."""

    mean: Floats
    recent: Floats
    plan: Ints
    planned_for: Floats


class EmaTrigger(Remembering):
    """A plan of least latency, made anew only when the goodput has varied.

    The scheme of SCIoT (UBICO/SCIoT, offloading_algo): t <- 0.8 t + 0.2 x, and a new argmin of the latency sum only
    while the coefficient of variation of the last 10 samples exceeds 15 %. Mended: SCIoT counts a rate of 0 as 1, which
    turns an outage into a link (the goodput here is never 0, and silence lowers it); and a link that has drifted, or
    has settled at another level, is planned for as well, as soon as the mean has left the plan's by the same 15 %.
    ``original`` undoes the second and uses the plain sum of the stages.
    """

    def __init__(
        self, plans: Plans, limit: float = 0.15, original: bool = False, probe_s: float = 0.0, name: str = "ema-trigger"
    ) -> None:
        self.name, self.plans, self.limit, self.original = name, plans, limit, original
        self.probe_s = probe_s

    def init(self, n: int, rng: np.random.Generator) -> TriggerState:
        """Start without samples."""
        return TriggerState(np.zeros(n), np.full((n, WINDOW), np.nan), np.zeros(n, np.int64), np.zeros(n))

    def act(self, observation: Observations, state: TriggerState) -> tuple[Decisions, TriggerState]:
        """Map (n, D) observations to (n, 3) decisions; take one sample of the goodput."""
        link = read_link(observation)
        sample = link.goodput[:, 0]
        first = state.mean <= 0.0
        mean = np.where(first, sample, KEEP * state.mean + (1.0 - KEEP) * sample)
        recent = np.column_stack([state.recent[:, 1:], sample])
        again = first | (variation(recent) > self.limit)
        if not self.original:
            again |= np.abs(mean - state.planned_for) > self.limit * state.planned_for
        best = self.plans.latency(link.at(mean[:, None]), self.original).argmin(axis=1)
        plan = np.where(again, best, state.plan)
        chosen = self.plans.probing(link, plan, self.probe_s)
        return self.plans.decisions[chosen], TriggerState(mean, recent, plan, np.where(again, mean, state.planned_for))


def variation(recent: Floats) -> Floats:
    """Return (n,) standard deviation over mean of the samples of (n, W) that are not NaN (one at least)."""
    return np.asarray(np.nanstd(recent, axis=1) / np.nanmean(recent, axis=1))


@dataclass(frozen=True, slots=True)
class RunLengths:
    """Posterior over the run length, (n, K) probabilities, and per length mean and beta of the normal-gamma (n, K)."""

    probability: Floats
    mean: Floats
    beta: Floats

    def longest(self) -> Ints:
        """Return (n,) the most probable run length."""
        return np.asarray(self.probability.argmax(axis=1))

    def level(self) -> Floats:
        """Return (n,) the mean of the samples of the most probable run."""
        return np.asarray(np.take_along_axis(self.mean, self.longest()[:, None], axis=1)[:, 0])


class ChangePoints:
    """Bayesian online change-point detection for Gaussian samples of unknown mean and variance.

    Adams and MacKay, "Bayesian Online Changepoint Detection", 2007: constant hazard 1 / ``run``; the predictive
    distribution of a run is Student's t of its normal-gamma posterior. Lengths beyond ``RUNS`` are kept as one.
    """

    def __init__(self, prior_mean: float, run: float) -> None:
        length = np.arange(RUNS, dtype=np.float64)
        self.prior_mean, self.hazard = prior_mean, 1.0 / run
        self._kappa, self._alpha = KAPPA + length, ALPHA + length / 2.0
        gammas = [math.lgamma(a + 0.5) - math.lgamma(a) for a in self._alpha.tolist()]
        self._scale = np.exp(np.array(gammas)) / np.sqrt(2.0 * math.pi * self._alpha)

    def start(self, n: int) -> RunLengths:
        """Return the state before the first sample: a run of length 0 for certain."""
        probability = np.zeros((n, RUNS))
        probability[:, 0] = 1.0
        return RunLengths(probability, np.full((n, RUNS), self.prior_mean), np.full((n, RUNS), BETA))

    def predictive(self, runs: RunLengths, sample: Floats) -> Floats:
        """Return (n, K) density of the samples (n,) under each run length."""
        variance = runs.beta * (self._kappa + 1.0) / (self._alpha * self._kappa)
        z = (sample[:, None] - runs.mean) ** 2 / variance
        tail = (1.0 + z / (2.0 * self._alpha)) ** -(self._alpha + 0.5)
        return np.asarray(self._scale / np.sqrt(variance) * tail)

    def update(self, runs: RunLengths, sample: Floats) -> RunLengths:
        """Return the posterior after one sample per row."""
        joint = runs.probability * self.predictive(runs, sample) + 1e-300
        grown = (1.0 - self.hazard) * joint
        probability = np.column_stack([self.hazard * joint.sum(axis=1), grown[:, :-1]])
        probability[:, -1] += grown[:, -1]
        probability /= probability.sum(axis=1, keepdims=True)
        gap = sample[:, None] - runs.mean
        mean = runs.mean + gap / (self._kappa + 1.0)
        beta = runs.beta + self._kappa * gap**2 / (2.0 * (self._kappa + 1.0))
        return RunLengths(probability, _shifted(mean, self.prior_mean), _shifted(beta, BETA))


def _shifted(values: Floats, first: float) -> Floats:
    return np.column_stack([np.full(len(values), first), values[:, :-1]])


@dataclass(frozen=True, slots=True)
class ChangeState:
    """Run lengths, the bandwidth state (n,) that the plan was looked up for, ln(bit/s), and the last run length."""

    runs: RunLengths
    state: Floats
    length: Ints


class EdgentDynamic(Remembering):
    """A configuration map over bandwidth states, looked up when a change of the bandwidth is detected.

    After Edgent's dynamic mode (Li et al., "Edge AI: On-Demand Accelerating Deep Neural Network Inference via Edge
    Computing", IEEE TWC 2020, algorithms 2 and 3): offline, the best (exit, partition) of each bandwidth state by the
    reward exp(accuracy) + throughput if the goal is met, else 0; online, change-point detection on the bandwidth and a
    table look-up. Reward and detector settings could not be checked, hence the name. Mended: the state follows the mean
    of the run since the change (the paper's first samples after a change fix it until the next), each frame gives a
    sample, so that silence counts, when no plan meets the goal the fastest is taken, and stages overlap: throughput is
    that of the slowest, at most the camera's. ``original`` counts 1 / latency, keeps the state between changes and
    takes samples only from fresh acknowledgements.
    """

    def __init__(
        self,
        plans: Plans,
        table: NDArray[np.int64],
        points: ChangePoints,
        *,
        original: bool = False,
        probe_s: float = 0.0,
        name: str = "edgent-dynamic-style",
    ) -> None:
        """``table`` gives the candidate of each state of ``MAP_BPS``."""
        self.name, self.plans, self.table, self.points, self.original = name, plans, table, points, original
        self.probe_s = probe_s
        self._age = FieldReader(("goodput_known", "goodput_age"))

    def init(self, n: int, rng: np.random.Generator) -> ChangeState:
        """Start at the prior."""
        return ChangeState(self.points.start(n), np.full(n, self.points.prior_mean), np.zeros(n, np.int64))

    def act(self, observation: Observations, state: ChangeState) -> tuple[Decisions, ChangeState]:
        """Map (n, D) observations to (n, 3) decisions; take a sample and look the plan up."""
        link = read_link(observation)
        state = self.sampled(np.log(link.goodput[:, 0]), self._fresh(observation), state)
        step = math.log(MAP_BPS[1] / MAP_BPS[0])
        place = np.rint((state.state - math.log(MAP_BPS[0])) / step).astype(np.int64)
        chosen = self.table[np.clip(place, 0, len(MAP_BPS) - 1)]
        return self.plans.decisions[self.plans.probing(link, chosen, self.probe_s)], state

    def sampled(self, sample: Floats, fresh: Bools, state: ChangeState) -> ChangeState:
        """Return the state after ln(goodput) samples (n,) of the rows that are ``fresh``."""
        runs = self.points.update(state.runs, sample)
        pairs = ((runs.probability, state.runs.probability), (runs.mean, state.runs.mean), (runs.beta, state.runs.beta))
        runs = RunLengths(*(np.where(fresh[:, None], new, old) for new, old in pairs))
        length = runs.longest()
        changed = fresh & ((length < state.length) | (state.length == 0))
        follow = changed if self.original else fresh & (length > 0)
        return ChangeState(runs, np.where(follow, runs.level(), state.state), length)

    def _fresh(self, observation: Observations) -> Bools:
        known, age = self._age(observation)
        if self.original:
            return np.asarray((known > 0.5) & (age <= 1.0 / self.plans.context.fps))
        return np.ones(len(observation), dtype=np.bool_)


def configuration_map(plans: Plans, goal_s: float, original: bool = False) -> Ints:
    """Return for each state of ``MAP_BPS`` the candidate of the most exp(accuracy) + throughput within the goal.

    Throughput is what the camera gives or the slowest stage lets through, frames/s; ``original``: 1 / latency.
    """
    link = nominal_link(plans.context, MAP_BPS)
    latency = plans.latency(link, original)
    through = np.minimum(plans.context.fps, 1.0 / np.maximum.reduce(plans.stages(link)))
    reward = np.where(latency <= goal_s, np.exp(plans.quality) + (1.0 / latency if original else through), 0.0)
    best, fastest = reward.argmax(axis=1), latency.argmin(axis=1)
    return np.asarray(np.where(reward.max(axis=1) > 0.0, best, fastest), dtype=np.int64)


@published("ema-trigger", {"limit": Number(0.15, 0.0, 10.0), "rate": ("last", "all"), **STREAM})
def _ema_trigger(setting: Setting) -> Controller:
    parameters = setting.parameters
    plans = setting.plans.take(setting.paced(setting.whole(parameters.text("rate"))))
    return EmaTrigger(plans, parameters.number("limit"), parameters.flag("original"), setting.probe_s, setting.name)


@published(
    "edgent-dynamic-style",
    {
        "run": Number(100.0, 2.0, 1e6),
        "rate": ("last", "all"),
        "margin_s": MARGIN,
        **STREAM,
    },
)
def _edgent_dynamic(setting: Setting) -> Controller:
    parameters, original = setting.parameters, setting.parameters.flag("original")
    plans, _ = edgent_candidates(setting)
    table = configuration_map(plans, goal_of(setting), original)
    points = ChangePoints(math.log(setting.context.goodput_bps), parameters.number("run"))
    return EdgentDynamic(plans, table, points, original=original, probe_s=setting.probe_s, name=setting.name)
