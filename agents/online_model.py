"""The linear model of the online learner: what a decision is worth beyond the one that the frozen policy prefers.

    reward(x, a) = theta' [context(x) | psi(x, a) - psi(x, p)] + tau (preference(x, a) - preference(x, p)) + noise

p is the policy's own decision at x, so what it does by itself teaches the context only, and what differs from it is
told apart from easy and hard frames (the action-centred form of Greenewald et al., NeurIPS 2017). ``preference`` is the
policy's output (log-probability or value). psi: what the profile predicts for the decision now, what it costs, its
branch, its (branch, rate), its exit rule, and what it costs times what the device reports.

Letters: n rows, M decisions of the table, K static features of a decision, d features in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.online_view import View
from adaptsplit.agents.policy import PolicyNet
from adaptsplit.agents.prediction import DecisionModel
from adaptsplit.decision import ALWAYS_EXIT, DecisionSpace
from adaptsplit.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HIDDEN = 8  # directions of the last hidden layer that the context keeps
CONTEXT_FIELDS = ("exit_confidence", "exit_confidence_mean", "sharpness", "difference", "goodput")
CONTEXTS = 2 + HIDDEN + len(CONTEXT_FIELDS)  # 1, and the profile's prediction for the policy's decision
DESCRIBED = ("energy", "bytes", "device_time", "sent")
CROSSED = (
    ("device_time", "load"),
    ("device_time", "temperature"),
    ("device_time", "frame_wait"),
    ("sent", "goodput"),
    ("sent", "backlog"),
)
# Prior standard deviations of each feature's effect on a frame's reward: how wrong the policy may be. Assumed, and
# looked at on validation episodes only (docs/online.md). The prediction's is a factor: 0 trusts the policy, 1 the rule.
SD_ONE, SD_CONTEXT, SD_PREDICTION = 1.0, 0.1, 2.0
SD_DESCRIBED, SD_CROSSED, SD_BRANCH, SD_OFFSET = 0.04, 0.1, 0.04, 0.02


@dataclass(frozen=True, slots=True)
class Seen:
    """What the model makes of n observations: ``margin`` (n, M) is tau times the preference, 0 for the policy's own
    decision ``own`` (n,); ``predicted`` (n, M) the profile's prediction; ``context`` (n, 15) scaled features.
    """

    margin: NDArray[Any]
    own: Ints
    predicted: Floats
    context: Floats


@dataclass(frozen=True)
class OnlineModel:
    """The fixed part of the learner: the frozen network and the features.

    ``psi`` (M, K) describes the decisions; ``hidden`` (H, 8) projects the last hidden layer; ``scale`` (d,) holds the
    prior standard deviations: features come multiplied by it, so that the prior of theta is N(0, 1).
    """

    space: DecisionSpace
    net: PolicyNet
    view: View
    psi: Floats
    hidden: Floats
    scale: Floats
    tau: float

    def __post_init__(self) -> None:
        m, k = self.psi.shape if self.psi.ndim == 2 else (0, 0)
        wanted = (
            (len(self.space.table), k),
            (self.net.layers[-1][0].shape[0], HIDDEN),
            (CONTEXTS + 1 + k + len(CROSSED),),
        )
        found = ((m, k), self.hidden.shape, self.scale.shape)
        if found != wanted or k < len(DESCRIBED) or self.view.table.shape[2] != m or not (self.scale > 0).all():
            raise DataError(f"online model: arrays of shapes {found}, expected {wanted}; make the run again")

    @property
    def size(self) -> int:
        """D, the number of features."""
        return len(self.scale)

    def see(self, observation: NDArray[Any]) -> Seen:
        """Return what the policy prefers, what the profile predicts, and the context, for (n, D) observations."""
        preference, hidden = self._forward(observation)
        own = preference.argmax(axis=1)
        rows = np.arange(len(own))
        predicted = self.view(observation)
        margin = preference - preference.max(axis=1, keepdims=True)
        context = np.empty((len(own), CONTEXTS))
        context[:, 0], context[:, 1] = 1.0, predicted[rows, own]
        context[:, 2 : 2 + HIDDEN] = hidden @ self._directions
        context[:, 2 + HIDDEN :] = observation.take(self._fields, axis=1)
        context *= self.scale[:CONTEXTS]
        return Seen(margin, own, predicted, context)

    def values(self, observation: NDArray[Any], seen: Seen, theta: Floats) -> Floats:
        """Return (n, M) of what each decision is worth, up to a constant of the row; theta (n, d)."""
        weights = theta[:, CONTEXTS + 1 :].copy()
        weights[:, -len(CROSSED) :] *= observation.take(self._crossed[1], axis=1)
        value = weights @ self._columns
        value += seen.margin
        value += theta[:, CONTEXTS, None] * self.scale[CONTEXTS] * seen.predicted
        return np.asarray(value)

    def features(self, observation: NDArray[Any], seen: Seen, decision: Ints) -> Floats:
        """Return (n, d) of the rows' ``decision`` (n,), places in the table."""
        out = np.zeros((len(decision), self.size))
        out[:, :CONTEXTS] = seen.context
        rows = np.flatnonzero(decision != seen.own)
        if not len(rows):
            return out
        other, own = decision[rows], seen.own[rows]
        out[rows, CONTEXTS] = self.scale[CONTEXTS] * (seen.predicted[rows, other] - seen.predicted[rows, own])
        columns = (self._columns[:, other] - self._columns[:, own]).T
        columns[:, -len(CROSSED) :] *= observation[rows][:, self._crossed[1]]
        out[rows, CONTEXTS + 1 :] = columns
        return out

    def differences(self, row: NDArray[Any], predicted: Floats, own: int) -> Floats:
        """Return (M, d - contexts): what tells each decision from ``own`` at one observation (D,)."""
        out = np.empty((len(predicted), self.size - CONTEXTS))
        out[:, 0] = self.scale[CONTEXTS] * (predicted - predicted[own])
        out[:, 1:] = (self._columns - self._columns[:, own : own + 1]).T
        out[:, -len(CROSSED) :] *= row[self._crossed[1]]
        return out

    # ---- the frozen network ----

    def _forward(self, observation: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (preferences (n, M) times tau, last hidden layer (n, H)).

        The largest preference is the policy's decision, of a head with one output per knob as well.
        """
        value = observation
        for weight, bias in self.net.layers[:-1]:
            value = self._apply(value @ weight + bias)
        weight, bias = self.net.layers[-1]
        output = self.tau * (value @ weight + bias)
        if self.net.head == "flat":
            return output, value
        rates, rules, exits = self._knobs
        last = np.maximum.accumulate(output[:, rates][:, ::-1], axis=1)[:, ::-1]
        any_rule = output[:, rules].max(axis=1, keepdims=True)
        exit_rule = output[:, exits].max(axis=1, keepdims=True) if len(exits) else any_rule
        parts = np.concatenate([output, last, any_rule, exit_rule], axis=1)
        b, r, t = self._terms
        return parts.take(b, axis=1) + parts.take(r, axis=1) + parts.take(t, axis=1), value

    @cached_property
    def _knobs(self) -> tuple[slice, slice, Ints]:
        """Which outputs of a head with one output per knob are those of rates, of rules, of rules that always exit."""
        b, r, t = self.space.shape
        exits = np.flatnonzero(np.array(self.space.thresholds) <= ALWAYS_EXIT)
        return slice(b, b + r), slice(b + r, b + r + t), b + r + exits

    @cached_property
    def _terms(self) -> Ints:
        """(3, M) the outputs that a decision's preference is the sum of: branch, rate, rule.

        Where several rates or rules do the same, the best of them counts: ``last`` of rates from one on, ``any_rule``,
        ``exit_rule``, which follow the B + R + T outputs.
        """
        (b, r, t), (branch, rate, rule) = self.space.shape, self.space.table.T
        alone = self.space.answers_alone[branch]
        exits = np.array(self.space.thresholds)[rule] <= ALWAYS_EXIT
        total = b + r + t
        final = rate == self.space.rates_per_branch[branch] - 1
        rates = np.where(alone | exits, total, np.where(final, total + rate, b + rate))
        rules = np.where(alone, total + r, np.where(exits, total + r + 1, b + r + rule))
        return np.stack([branch, rates, rules])

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        return np.asarray(self.hidden, dtype=np.float32)

    @cached_property
    def _fields(self) -> Ints:
        return np.array([obs.index(name) for name in CONTEXT_FIELDS])

    @cached_property
    def _crossed(self) -> tuple[Ints, Ints]:
        """Columns of psi and of the observation that are multiplied."""
        left = [DESCRIBED.index(a) for a, _ in CROSSED]
        return np.array(left), np.array([obs.index(b) for _, b in CROSSED])

    @cached_property
    def _columns(self) -> Floats:
        """(K + crossed, M) psi and its columns that meet a field, each scaled."""
        both = np.concatenate([self.psi, self.psi[:, self._crossed[0]]], axis=1)
        return np.ascontiguousarray((both * self.scale[CONTEXTS + 1 :]).T)

    @cached_property
    def _apply(self) -> Callable[[Any], Any]:
        return np.tanh if self.net.activation == "tanh" else _relu


def _relu(value: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.maximum(value, np.float32(0.0)))


def build_model(net: PolicyNet, model: DecisionModel, *, tau: float, trust: float) -> OnlineModel:
    """Lay out features for a policy; a larger ``trust`` (1) in it makes corrections slower."""
    psi, groups = describe(model)
    sizes = (1, CONTEXTS - 1, 1, len(groups), len(CROSSED))
    sd = np.repeat((SD_ONE, SD_CONTEXT, SD_PREDICTION, 0.0, SD_CROSSED), sizes)
    sd[CONTEXTS + 1 : CONTEXTS + 1 + len(groups)] = groups
    sd[CONTEXTS:] /= trust
    return OnlineModel(model.space, net, View.of(model), psi, principal(net), sd, tau)


def describe(model: DecisionModel) -> tuple[Floats, Floats]:
    """Return psi (M, K) and the prior standard deviation of each column (K,).

    The described columns are those of the scenario's priors, scaled to 0..1 over the table.
    """
    space, context = model.space, model.context
    pair, sent = _pairs(model), 1.0 - model.exit_ratio
    device = (model.signal + model.head)[pair] + sent * model.encode[pair]
    sent_bytes = sent * model.wire_bytes[pair]
    radio = 8.0 * sent_bytes * (context.radio_w / context.goodput_bps + context.radio_j_per_bit)
    columns = [_unit(c) for c in (context.compute_w * device + radio, sent_bytes, device, sent)]
    b, _, t = space.table.T
    pairs = np.unique(space.table[:, :2], axis=0)
    which = (space.table[:, None, :2] == pairs[None]).all(axis=2)
    branches, rules = b[:, None] == np.arange(space.shape[0]), t[:, None] == np.arange(space.shape[2])
    psi = np.concatenate([np.stack(columns, axis=1), branches, which, rules], axis=1).astype(np.float64)
    sizes = (len(columns), space.shape[0], len(pairs) + space.shape[2])
    return psi, np.repeat((SD_DESCRIBED, SD_BRANCH, SD_OFFSET), sizes)


def _pairs(model: DecisionModel) -> Ints:
    """(M,) the row of ``model.pairs`` of each decision."""
    known = np.column_stack([model.pairs, model.pair_patience])
    wanted = np.column_stack([model.space.table[:, :2], model.patience])
    return np.asarray((wanted[:, None] == known[None]).all(axis=2).argmax(axis=1), dtype=np.int64)


def _unit(column: Floats) -> Floats:
    span = float(column.max() - column.min())
    return np.asarray((column - column.min()) / (span if span > 0 else 1.0))


def principal(net: PolicyNet) -> Floats:
    """Return (H, 8) the directions of the last hidden layer that move the outputs most: left singular vectors."""
    weight = net.layers[-1][0].astype(np.float64)
    left, _, _ = np.linalg.svd(weight - weight.mean(axis=1, keepdims=True), full_matrices=False)
    kept = left[:, :HIDDEN]
    return np.pad(kept, ((0, 0), (0, HIDDEN - kept.shape[1])))
