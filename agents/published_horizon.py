"""Looking ahead: model-predictive control of the sender's backlog, with RobustMPC's forecast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptsplit.agents.published_base import (
    Bools,
    Floats,
    Ints,
    Link,
    Plans,
    Remembering,
    Setting,
    published,
    read_link,
)
from adaptsplit.agents.published_exit import pareto
from adaptsplit.agents.published_parameters import Number
from adaptsplit.controller import Controller, Decisions, Observations

SAMPLES = 5  # of the harmonic mean and of the largest forecast error (Pensieve test/mpc.py, MIT)
LEVELS = 24  # grid of the backlog
IDLE_S = 1e-9


@dataclass(frozen=True, slots=True)
class ForecastState:
    """Recent goodputs and relative forecast errors, (n, 5) each, NaN before there are any; the last forecast (n,)."""

    goodputs: Floats
    errors: Floats
    forecast: Floats


def start_forecast(n: int) -> ForecastState:
    """Return the state before the first sample."""
    return ForecastState(np.full((n, SAMPLES), np.nan), np.zeros((n, SAMPLES)), np.full(n, np.nan))


def forecast(state: ForecastState, sample: Floats, robust: bool = True) -> tuple[Floats, ForecastState]:
    """Return the forecast (n,) after a goodput sample (n,), bit/s.

    Harmonic mean of the last five samples; RobustMPC divides it by 1 + the largest relative error of its last five
    forecasts, |forecast - sample| / sample (0 for the first).
    """
    error = np.nan_to_num(np.abs(state.forecast - sample) / sample)
    goodputs = np.column_stack([state.goodputs[:, 1:], sample])
    errors = np.column_stack([state.errors[:, 1:], error])
    mean = 1.0 / np.nanmean(1.0 / goodputs, axis=1)
    lowered = mean / (1.0 + errors.max(axis=1)) if robust else mean
    return lowered, ForecastState(goodputs, errors, mean)


class RobustMpc(Remembering):
    """The first decision of the best sequence over the next frames, for a link of the forecast goodput.

    Yin et al., "A Control-Theoretic Approach for Dynamic Adaptive Video Streaming over HTTP", SIGCOMM 2015, section 5:
    forecast, enumerate the sequences over 5 steps, apply the first, repeat; RobustMPC lowers the forecast by its recent
    error. Here a step is a frame and the state is the sender's backlog in seconds: a message adds bits / goodput, a
    frame period takes that much away; a result is in time when backlog, transmission, round trip and server fit in what
    is left of the deadline; the sender hands over what is predicted in time, or finds the link idle. The sequences are
    enumerated by dynamic programming over a grid of the backlog, interpolated between its points.

    Pensieve's code compares the *discounted* forecast of the last step with the sample in some ports, which makes
    errors feed themselves; the error here is of the plain harmonic mean, as in the paper. ``robust=0`` is plain MPC.
    """

    def __init__(self, plans: Plans, horizon: int = 5, robust: bool = True, name: str = "robust-mpc") -> None:
        self.name, self.plans, self.horizon, self.robust = name, plans, horizon, robust
        self.period_s = 1.0 / plans.context.fps

    def init(self, n: int, rng: np.random.Generator) -> ForecastState:
        """Start without samples."""
        return start_forecast(n)

    def act(self, observation: Observations, state: ForecastState) -> tuple[Decisions, ForecastState]:
        """Map (n, D) observations to (n, 3) decisions; take one sample of the goodput."""
        link = read_link(observation)
        expected, state = forecast(state, link.goodput[:, 0], self.robust)
        return self.plans.decisions[self.choose(link.at(expected[:, None]))], state

    def choose(self, link: Link) -> Ints:
        """Return (n,) the first candidate of the best sequence from the link's backlog, at its goodput."""
        value = self._future(link)
        reward, after = self.step(link, link.backlog[:, :, None], link.wait[:, :, None])
        total = reward[:, 0] + self._between(value, after[:, 0])
        return np.asarray(total.argmax(axis=1))

    @property
    def most_s(self) -> float:
        """Backlog beyond which nothing that is sent within the horizon can be in time."""
        return self.plans.context.deadline_s + self.horizon * self.period_s

    def _future(self, link: Link) -> Floats:
        """Return (n, G) the value of each backlog of the grid after the first step."""
        grid = np.linspace(0.0, self.most_s, LEVELS)[None, :, None]
        n = len(link.goodput)
        value = np.zeros((n, LEVELS))
        if self.horizon > 1:
            reward, after = self.step(link, grid, np.zeros((1, 1, 1)))
            for _ in range(self.horizon - 1):
                value = (reward + self._between(value, after)).max(axis=2)
        return value

    def _between(self, value: Floats, backlog: Floats) -> Floats:
        """Interpolate values (n, G) at backlogs (n, ...)."""
        place = np.clip(backlog / self.most_s, 0.0, 1.0) * (LEVELS - 1)
        low = np.minimum(place.astype(np.int64), LEVELS - 2)
        rows = np.arange(len(value)).reshape(-1, *([1] * (backlog.ndim - 1)))
        left = value[rows, low]
        return np.asarray(left + (place - low) * (value[rows, low + 1] - left))

    def step(self, link: Link, backlog: Floats, wait: Floats) -> tuple[Floats, Floats]:
        """Return (n, G, C) expected reward of each candidate at backlogs (n or 1, G, 1), and the backlog after it."""
        plans, context = self.plans, self.plans.context
        device, sending, server = (part[:, None, :] for part in plans.stages(link))
        finish = np.maximum(device, backlog) + sending
        arrives = finish + server + (link.rtt + link.queue)[:, :, None] + wait
        in_time = arrives <= context.deadline_s
        sent = plans.sent * (in_time | (backlog <= IDLE_S))
        quality = np.where(in_time, plans.quality, plans.quality_late)
        period = np.maximum(self.period_s, device)
        served = np.minimum(1.0, self.period_s / np.maximum(device, IDLE_S))
        left = np.maximum(backlog - period, 0.0)
        after = sent * np.maximum(finish - period, 0.0) + (1.0 - sent) * left
        weights = context.weights
        reward = weights.quality * served * quality - weights.miss * (1.0 - served)
        return reward - self._cost(link, sent, served * (plans.sent * in_time)), np.asarray(after)

    def _cost(self, link: Link, sent: Floats, remote: Floats) -> Floats:
        """Weigh energy, bytes and latency; (n, G, C)."""
        plans, context, weights = self.plans, self.plans.context, self.plans.context.weights
        bits = 8.0 * sent * plans.wire_bytes
        energy = context.compute_w * (plans.device_s + plans.sent * plans.encode_s)
        energy = energy + context.radio_j_per_bit * bits + context.radio_w * bits / link.goodput[:, :, None]
        cost = weights.energy_per_j * energy + weights.bytes_per_kib * bits / 8192.0
        if weights.latency_per_s:
            latency = np.minimum(plans.latency(link), context.deadline_s)[:, None, :]
            late = (plans.sent - remote) * context.deadline_s
            cost = cost + weights.latency_per_s * (remote * latency + late + (1.0 - plans.sent) * plans.device_s)
        return np.asarray(cost)


def undominated(plans: Plans) -> Bools:
    """Return (C,) candidates that no other beats in quality, device time, message, share sent and expected bytes."""
    context = plans.context
    compute = context.weights.energy_per_j * context.compute_w * (plans.device_s + plans.sent * plans.encode_s)
    worth = context.weights.quality
    costs = (
        compute - worth * plans.quality,
        compute - worth * plans.quality_late,
        plans.device_s + plans.encode_s,
        plans.wire_bytes,
        plans.sent,
        plans.sent * plans.wire_bytes,
    )
    return pareto(np.column_stack(costs))


@published("robust-mpc", {"horizon": Number(5, 1, 20), "robust": ("1", "0")})
def _robust_mpc(setting: Setting) -> Controller:
    parameters = setting.parameters
    plans = setting.plans.take(setting.need(setting.patient()))
    plans = plans.take(undominated(plans))
    return RobustMpc(plans, int(parameters.number("horizon")), parameters.flag("robust"), setting.name)
