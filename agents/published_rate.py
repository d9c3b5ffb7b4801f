"""How strongly to compress: QuantPipe's controller, an integral controller over a Kalman filter."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from adaptsplit.agents.prediction import nominal_observation
from adaptsplit.agents.published_base import Floats, Ints, Plans, Remembering, Setting, published, read_link
from adaptsplit.agents.published_parameters import ORIGINAL, Number, Text
from adaptsplit.controller import Controller, Decisions, Observations
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.registry import did_you_mean

PROCESS_VARIANCE = 1e-5  # Q and R of usc-isi/PipeEdge utils/controller.py (BSD-3)
MEASUREMENT_VARIANCE = 1e-2
START_VARIANCE = 1.0  # P_0 there
LEAST_BASE = 1e-6  # what the estimate of the base workload is taken for where it is not positive


@dataclass(frozen=True, slots=True)
class RateState:
    """Per row (n,): speed-up asked for, the filter's base workload and variance, and what dithering owes."""

    speedup: Floats
    base: Floats
    variance: Floats
    owed: Floats


def kalman(state: RateState, measured: Floats, process: float, noise: float) -> tuple[Floats, Floats]:
    """Return (base, variance) after ``measured`` = speedup x base + noise: the scalar Kalman filter, (n,) each."""
    before = state.variance + process
    gain = before * state.speedup / (state.speedup**2 * before + noise)
    base = state.base + gain * (measured - state.speedup * state.base)
    return base, (1.0 - gain * state.speedup) * before


def slow_share(slow: Floats, fast: Floats, wanted: Floats) -> Floats:
    """Return the share of messages at the speed-up ``slow`` that makes the mean time that of ``wanted``.

    1 / wanted = x / slow + (1 - x) / fast, so x = slow (fast - wanted) / (wanted (fast - slow)); 1 where both agree.
    """
    gap = fast - slow
    same = gap <= 1e-9
    return np.where(same, 1.0, slow * (fast - wanted) / np.where(same, 1.0, wanted * gap))


class QuantPipe(Remembering):
    """Holds the message rate of the link at a reference by mixing two neighbouring compression rates.

    Wang et al., "QuantPipe", 2022, and the controller of usc-isi/PipeEdge: the base workload b (messages/s that the
    link carries without compression) comes from a Kalman filter over y = u b, the speed-up follows
    u <- clip(u + (1 - pole) (reference - y) / b, 1, u_max), and two neighbouring speed-ups are mixed so that the mean
    message takes 1 / u of the time. y is the goodput over the mean message now sent. Branch and threshold are fixed:
    those of the best sending decision at the priors, unless named.

    Mended: a rate's speed-up is the ratio of the profile's mean bytes, not of bit widths (entropy coding); y is in
    units of the reference, so that Q and R do not depend on the frame rate; the mix is dithered frame by frame, not
    run as two blocks of a window; a base that is not positive is not divided by. ``original`` undoes the first two.
    """

    def __init__(
        self, plans: Plans, speedups: Floats, reference: float, *, pole: float, unit: float, name: str = "quantpipe"
    ) -> None:
        """``plans`` are rates of one branch and threshold, (C,) ``speedups`` ascending from 1; reference messages/s."""
        self.name, self.plans, self.pole = name, plans, pole
        self.speedups, self.unit, self.reference = speedups, unit, reference
        self.most = float(speedups[-1])

    def init(self, n: int, rng: np.random.Generator) -> RateState:
        """Start uncompressed, with the filter's prior (base 0, variance 1), as the original does."""
        return RateState(np.ones(n), np.zeros(n), np.full(n, START_VARIANCE), np.zeros(n))

    def act(self, observation: Observations, state: RateState) -> tuple[Decisions, RateState]:
        """Map (n, D) observations to (n, 3) decisions and the controller's next state."""
        goodput = read_link(observation).goodput[:, 0]
        state = self.controlled(goodput / (8.0 * self.plans.wire_bytes[0]) * state.speedup, state)
        slow = np.searchsorted(self.speedups, state.speedup * (1.0 + 1e-12), side="right") - 1
        fast = np.minimum(slow + 1, len(self.speedups) - 1)
        owed = state.owed + slow_share(self.speedups[slow], self.speedups[fast], state.speedup)
        takes_slow = owed >= 1.0 - 1e-9
        state = RateState(state.speedup, state.base, state.variance, owed - takes_slow)
        return self.plans.decisions[np.where(takes_slow, slow, fast)], state

    def controlled(self, measured: Floats, state: RateState) -> RateState:
        """Return the state after (n,) measured message rates, 1/s: filter, then the integral law."""
        measured = measured / self.unit
        base, variance = kalman(state, measured, PROCESS_VARIANCE, MEASUREMENT_VARIANCE)
        error = self.reference / self.unit - measured
        speedup = state.speedup + (1.0 - self.pole) * error / np.maximum(base, LEAST_BASE)
        return RateState(np.clip(speedup, 1.0, self.most), base, variance, state.owed)


class OneShotRate(QuantPipe):
    """The least compression whose message still fits: the largest w with bytes w / w_max <= goodput t_max.

    ``constrain_max_bitwidth`` of the same repository, each frame for itself; the strongest compression when none fits.
    """

    def act(self, observation: Observations, state: RateState) -> tuple[Decisions, RateState]:
        """Map (n, D) observations to (n, 3) decisions; the state stays."""
        goodput = read_link(observation).goodput
        fits = 8.0 * self.plans.wire_bytes <= goodput / self.reference
        return self.plans.decisions[np.where(fits.any(axis=1), fits.argmax(axis=1), len(self.speedups) - 1)], state


def rate_ladder(setting: Setting, branch: str) -> Ints:
    """Return the table rows of one branch and threshold, one per rate, the largest message first."""
    space, table = setting.space, setting.space.table
    sends = setting.kinds("split", "offload") & setting.patient() & (setting.plans.sent > 0.0)
    if branch:
        known = [part.name for part in space.branches]
        if branch not in known:
            hint = did_you_mean(branch, known)
            raise UnknownNameError(
                f"controller 'quantpipe': unknown branch {branch!r}{hint} Known: {', '.join(known)}."
            )
        sends &= np.array([part.name == branch for part in space.branches])[table[:, 0]]
    else:
        sends &= setting.kinds("split")
    setting.need(sends)
    expected = np.where(sends, setting.model.expected(nominal_observation(setting.context))[0], -np.inf)
    b, _, t = table[int(expected.argmax())]
    rows = np.flatnonzero((table[:, 0] == b) & (table[:, 2] == t))
    return np.asarray(rows[np.argsort(-setting.plans.wire_bytes[rows], kind="stable")], dtype=np.int64)


def speedups_of(setting: Setting, plans: Plans, by_width: bool) -> Floats:
    """Return (C,) ascending speed-ups over the largest message, by bytes or by the bit widths of the codecs' names."""
    if not by_width:
        return np.asarray(plans.wire_bytes[0] / plans.wire_bytes)
    codecs = setting.space.branches[int(plans.decisions[0, 0])].codecs
    found = [re.match(r"q(\d+)", codecs[int(rate)]) for rate in plans.decisions[:, 1]]
    widths = [float(match.group(1)) for match in found if match]
    if len(widths) < len(found):
        raise ConfigError(
            f"controller {setting.family!r}: original=1 needs codecs with a bit width, such as q4c-zstd; "
            f"found {', '.join(codecs)}"
        )
    return np.asarray(widths[0] / np.array(widths))


@published(
    "quantpipe",
    {
        "branch": Text(),
        "goal": ("throughput", "deadline"),
        "rule": ("kalman", "oneshot"),
        "pole": Number(0.0, 0.0, 0.999),
        "original": ORIGINAL,
    },
)
def _quantpipe(setting: Setting) -> Controller:
    parameters, original = setting.parameters, setting.parameters.flag("original")
    plans = setting.plans.take(rate_ladder(setting, parameters.text("branch")))
    reference = reference_of(plans, parameters.text("goal"))
    rule = QuantPipe if parameters.text("rule") == "kalman" else OneShotRate
    unit = 1.0 if original else reference
    speedups = speedups_of(setting, plans, original)
    return rule(plans, speedups, reference, pole=parameters.number("pole"), unit=unit, name=setting.name)


def reference_of(plans: Plans, goal: str) -> float:
    """Return messages/s: what the camera gives (``throughput``), or what brings each answer by the ``deadline``."""
    context = plans.context
    fps = context.fps * float(plans.sent[0])
    if goal == "throughput":
        return fps
    busy = float((plans.device_s + plans.encode_s + plans.tail_s)[0])
    return max(fps, 1.0 / max(context.deadline_s - busy - context.rtt_s, 1e-3))
