"""What each decision is expected to bring now: quality, energy and bytes from the profile's means and the observation.

The model behind the predicting rules. Letters: n rows, M decisions of the table, P distinct (branch, rate, patience).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit import observation as obs
from adaptsplit.agents.base import ControllerContext
from adaptsplit.controller import Observations
from adaptsplit.decision import ALWAYS_EXIT, DecisionSpace

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

Floats = NDArray[np.float64]

LINK_FIELDS = (
    "goodput",
    "goodput_known",
    "goodput_age",
    "goodput_spread",
    "rtt",
    "backlog",
    "server_time",
    "frame_wait",
    "last_branch",
    "heard_age",
    "overdue",
    "held_age",
    "held_confidence",
)
LOGISTIC_SLOPE = 1.702  # a logistic curve of this slope is within 0.01 of the normal distribution
MEMORY_S = 2.0  # the estimate of ln(goodput) loses its worth at this rate, s
RTT_TRUST = 0.25  # exponent of the estimate of the round trip against its prior: a spike is often over already
PRIOR_SIGMA = 1.2  # spread of ln(goodput) of mobile links in the long run


class FieldReader:
    """Reads some fields of a batch of observations in their units, in one pass."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._columns = np.array([obs.index(name) for name in names])
        fields = [obs.FIELDS[i] for i in self._columns]
        self._log = np.array([field.scale == "log" for field in fields])
        low = np.array([(field.low, field.high) for field in fields], dtype=np.float64)
        low[self._log] = np.log(low[self._log])
        self._low, self._span = low[:, 0], low[:, 1] - low[:, 0]

    def __call__(self, observation: Observations) -> Floats:
        """Return (fields, n) physical values."""
        value = observation[:, self._columns] * self._span + self._low
        value[:, self._log] = np.exp(value[:, self._log])
        return np.asarray(value.T, dtype=np.float64)


class DecisionModel:
    """Expected reward of every decision of the table, for each row of a batch.

    The chance that a result comes in time is that of the goodput to be large enough for the time that is left, with
    ln(goodput) spread by ``sigma`` (at least) around its estimate. An old estimate counts less: ln(goodput) returns to
    its prior as an Ornstein-Uhlenbeck process does, so that a link once found bad is tried again. A decision that keeps
    the device or the link busy for longer than a frame period serves only its share of the frames.
    """

    def __init__(
        self, space: DecisionSpace, summary: ProfileSummary, context: ControllerContext, sigma: float = 0.3
    ) -> None:
        self.space, self.context, self.sigma = space, context, sigma
        table = space.table
        self.patience: Floats = np.array(space.patience)[table[:, 2]]
        pairs, self._pair = np.unique(np.column_stack([table[:, :2], self.patience]), axis=0, return_inverse=True)
        self.pairs, self._pair = pairs[:, :2].astype(np.int64), self._pair.ravel()
        self.pair_patience: Floats = pairs[:, 2]
        self._waits: Floats = self.pair_patience * context.deadline_s
        self._branch = table[:, 0]
        self._read = FieldReader(LINK_FIELDS)
        self._set_times(summary)
        self._set_qualities(summary, table)

    def _set_times(self, summary: ProfileSummary) -> None:
        """Times on the named device and message sizes, per pair (P,)."""
        b, r = self.pairs.T
        head_of = self.space.exit_branches[b]
        scale, codecs = self.context.stage_scale, self.context.codec_scale
        ends_here = self.space.answers_alone[b]
        self._retention = summary.retention
        self.signal = self.context.decision_s + codecs * summary.signal_s
        self.head = scale * np.asarray(summary.head_s)[head_of]
        self.encode = np.where(ends_here, 0.0, codecs * np.asarray(summary.encode_s)[b, r])
        self.wire_bytes = np.where(ends_here, 0.0, np.asarray(summary.payload_bytes)[b, r] + est.OVERHEAD_BYTES)

    def _set_qualities(self, summary: ProfileSummary, table: NDArray[np.int64]) -> None:
        """Share of frames that exit, quality of those, and exit and tail quality of the others, per decision (M,)."""
        b, r, t = table.T
        e = self.space.exit_branches[b]
        value = np.array(self.space.thresholds)[t]
        level = np.minimum(np.searchsorted(summary.levels, value - 1e-9), len(summary.levels) - 1)
        always = (value <= ALWAYS_EXIT) | self.space.answers_alone[b]
        never = value > 1.0
        ratio = np.asarray(summary.exit_ratio)[e, level]
        self.exit_ratio: Floats = np.where(always, 1.0, np.where(never, 0.0, ratio))
        exit_all, tail_all = np.asarray(summary.exit_quality)[e], np.asarray(summary.tail_quality)[b, r]
        self.exit_above: Floats = np.where(always, exit_all, np.asarray(summary.exit_quality_above)[e, level])
        self.exit_below: Floats = np.where(never, exit_all, np.asarray(summary.exit_quality_below)[e, level])
        self.tail_below: Floats = np.where(never, tail_all, np.asarray(summary.tail_quality_below)[b, r, level])

    def chance_in_time(self, fields: Floats) -> Floats:
        """Return (n, P): chance that the result of a message sent now arrives by the deadline."""
        goodput, known, age, spread, rtt, backlog, server, wait = (row[:, None] for row in fields[:8])
        busy = self.signal + self.head + self.encode
        rtt = rtt**RTT_TRUST * self.context.rtt_s ** (1.0 - RTT_TRUST)
        left = self._waits - (wait + np.maximum(busy, backlog) + rtt + server)
        trust = np.where(known > 0.5, np.exp(-age / MEMORY_S), 0.0)
        expected = trust * np.log(goodput) + (1.0 - trust) * np.log(self.context.goodput_bps)
        sigma = np.sqrt(np.maximum(self.sigma, 1.25 * spread) ** 2 + (1.0 - trust**2) * PRIOR_SIGMA**2)
        needed = np.log(np.maximum(8.0 * self.wire_bytes, 1e-9) / np.maximum(left, 1e-9))
        z = (expected - needed) / sigma
        return np.asarray(1.0 / (1.0 + np.exp(-LOGISTIC_SLOPE * np.clip(z, -30.0, 30.0))))

    def expected(self, observation: Observations) -> Floats:
        """Return (n, M) expected reward of each decision."""
        fields = self._read(observation)
        pair, period = self._pair, 1.0 / self.context.fps
        sent = 1.0 - self.exit_ratio
        sending = (8.0 * self.wire_bytes / fields[0][:, None])[:, pair]
        share = np.minimum(1.0, period / np.maximum(sending * sent, 1e-9))
        arrives = self.chance_in_time(fields)[:, pair] * share
        remote = arrives * self.tail_below + (1.0 - arrives) * self.exit_below
        device = (self.signal + self.head)[pair] + sent * self.encode[pair]
        served = np.minimum(1.0, period / device)
        wait = fields[7][:, None]
        served = served * (wait + (self.signal + self.head)[pair] <= self.context.deadline_s)
        quality = served * (self.exit_ratio * self._at_once(fields) + sent * remote)
        cost = self._cost(device, sent * share, sending, fields[8])
        cost = cost + served * self._lateness(fields, arrives)
        return np.asarray(self.context.weights.quality * quality - self.context.weights.miss * (1.0 - served) - cost)

    def _at_once(self, fields: Floats) -> Floats:
        """Quality of an answer without the link: the exit's, or of an answer that is held, decayed with its age."""
        skips = np.array([branch.kind == "skip" for branch in self.space.branches])[self._branch]
        if not skips.any():
            return self.exit_above
        age, confidence = fields[11:13, :, None]
        return np.where(skips, confidence * self._retention ** (age * self.context.fps), self.exit_above)

    def _lateness(self, fields: Floats, arrives: Floats) -> Floats | float:
        """Weigh the expected answer latency: of the exit at once, of a result, or of the exit after the patience."""
        if not self.context.weights.latency_per_s:
            return 0.0
        goodput, rtt, backlog, server, wait = (row[:, None] for row in fields[[0, 4, 5, 6, 7]])
        at_exit = wait + self.signal + self.head
        result = at_exit + np.maximum(self.encode, backlog) + 8.0 * self.wire_bytes / goodput + rtt + server
        sent = arrives * np.minimum(result, self._waits)[:, self._pair] + (1.0 - arrives) * self._waits[self._pair]
        latency = self.exit_ratio * at_exit[:, self._pair] + (1.0 - self.exit_ratio) * sent
        return np.asarray(self.context.weights.latency_per_s * latency)

    def _cost(self, device: Floats, sent: Floats, sending: Floats, last: Floats) -> Floats:
        """Weigh energy, bytes and switching as the objective does; all (n, M) but ``last`` (n,)."""
        context, weights = self.context, self.context.weights
        wire_bytes = sent * self.wire_bytes[self._pair]
        energy = context.compute_w * device + 8.0 * context.radio_j_per_bit * wire_bytes
        energy = energy + sent * context.radio_w * sending
        cost = weights.energy_per_j * energy + weights.bytes_per_kib * wire_bytes / 1024.0
        if weights.switch:
            before = np.rint(last * (len(self.space.branches) - 1))
            cost = cost + weights.switch * (before[:, None] != self._branch)
        return np.asarray(cost)


def nominal_observation(context: ControllerContext) -> NDArray[Any]:
    """Return (1, D): what the device sees at the start, before anything was heard, with an idle link and no wait."""
    tracker = np.zeros(est.TRACKER_SIZE)
    est.start(tracker, context.goodput_bps, context.rtt_s, context.server_s)
    raw = np.zeros(obs.SIZE)
    out = np.zeros((1, obs.SIZE), dtype=np.float32)
    obs.observe(tracker, 0.0, 0.0, 0.0, 0.5, 0.1, raw)
    obs.normalise(raw, out[0])
    return out
