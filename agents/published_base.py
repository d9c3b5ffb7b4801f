"""What the published controllers share: parameters, a table of what each decision takes, and the link as observed.

Letters: n rows of the batch, C candidate decisions. Times s, sizes bytes, rates bit/s, energies J. A controller here is
written from its paper's formulas; where the letter of the paper is known to fail on a stream of frames, it is mended,
and ``original=1`` brings the letter back (docs/controllers.md lists both). A name that ends in ``-style`` belongs to a
system whose internals could not be checked against a source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.agents.base import ControllerContext, Kind, full_name, need_summary
from adaptsplit.agents.prediction import DecisionModel, FieldReader
from adaptsplit.agents.published_parameters import Known, Parameters
from adaptsplit.controller import Controller, Observations, State, controllers
from adaptsplit.decision import ALWAYS_EXIT, DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]

MOST_LOAD = 0.95  # the board's slowest relative speed is 0.05 (adaptsplit.devices.processes)


@dataclass(frozen=True, slots=True)
class Link:
    """What the observation says about link, server and board; each (n, 1), to be set against C candidates."""

    goodput: Floats  # bit/s
    rtt: Floats
    backlog: Floats  # s until the link has served what was sent
    queue: Floats  # s of queueing on the server, as last reported
    wait: Floats  # s, age of the frame at hand
    load: Floats  # share of the board that other work takes, 0 where unknown
    heard_age: Floats
    age: Floats  # s since the newest goodput sample, at most 50

    def at(self, goodput: Floats) -> Link:
        """Return the same link with another goodput (n, 1)."""
        return replace(self, goodput=goodput)


_READ = FieldReader(
    ("goodput", "rtt", "backlog", "server_queue", "frame_wait", "load", "load_known", "heard_age", "goodput_age")
)


def read_link(observation: Observations) -> Link:
    """Return the link as (n, D) observations tell it."""
    goodput, rtt, backlog, queue, wait, load, known, heard, age = (row[:, None] for row in _READ(observation))
    return Link(goodput, rtt, backlog, queue, wait, np.where(known > 0.5, load, 0.0), heard, age)


def nominal_link(context: ControllerContext, goodput: Floats) -> Link:
    """Return an idle link at the prior round trip, (n, 1) at the goodputs (n,) given in bit/s."""
    column = np.asarray(goodput, dtype=np.float64).reshape(-1, 1)
    zero = np.zeros_like(column)
    return Link(column, zero + context.rtt_s, zero, zero, zero, zero, zero, zero)


@dataclass(frozen=True, slots=True)
class Plans:
    """C candidate decisions and what the profile says of them on the named device; (C,) but for ``decisions`` (C, 3).

    ``device_s`` is decision, content signal, head and exit; ``sent`` the share of frames that do not exit;
    ``quality`` the expected quality when every result comes, ``quality_late`` when none does.
    """

    context: ControllerContext
    decisions: Ints
    device_s: Floats
    encode_s: Floats
    wire_bytes: Floats
    tail_s: Floats
    sent: Floats
    quality: Floats
    quality_late: Floats

    def take(self, which: Bools | Ints) -> Plans:
        """Return the candidates that a mask or indices (C,) choose."""
        names = ("device_s", "encode_s", "wire_bytes", "tail_s", "sent", "quality", "quality_late")
        return Plans(self.context, self.decisions[which], *(getattr(self, name)[which] for name in names))

    def stages(self, link: Link) -> tuple[Floats, Floats, Floats]:
        """Return (n, C) times of a frame that is sent: on the device, on the link, on the server."""
        device = (self.device_s + self.encode_s) / (1.0 - np.minimum(link.load, MOST_LOAD))
        sends = self.wire_bytes > 0.0
        server = np.broadcast_to(np.where(sends, self.tail_s, 0.0), device.shape)
        return device, 8.0 * self.wire_bytes / link.goodput, server

    def latency(self, link: Link, original: bool = False) -> Floats:
        """Return (n, C) predicted latency of a frame that is sent, or answered by a decision that sends nothing.

        The papers' sum T = T_device + bits / B + T_server takes each frame for the only one. Mended: the frame's wait
        so far, the backlog of the link (served while the device computes), the round trip and the server's queue.
        """
        device, sending, server = self.stages(link)
        if original:
            return device + sending + server
        sends = self.wire_bytes > 0.0
        remote = np.maximum(device, link.backlog) + sending + link.rtt + server + link.queue
        return link.wait + np.where(sends, remote, device)

    def mean_latency(self, link: Link, original: bool = False) -> Floats:
        """Return (n, C) latency in the mean: the exit's share at the exit, the others as sent."""
        at_exit = self.device_s / (1.0 - np.minimum(link.load, MOST_LOAD)) + (0.0 if original else link.wait)
        return np.asarray((1.0 - self.sent) * at_exit + self.sent * self.latency(link, original))

    def probing(self, link: Link, chosen: Ints, every_s: float) -> Ints:
        """Return (n,) the chosen candidates, or the fastest that sends where the goodput is not known any more.

        The papers take the bandwidth for known. It is known only from what was sent, so a rule that has settled on the
        device would never notice a better link: when the newest sample is older than ``every_s`` (0: never) and
        nothing is on its way, one frame is sent.
        """
        sends = self.wire_bytes > 0.0
        if every_s <= 0.0 or not sends.any():
            return chosen
        due = ((link.age >= every_s) & (link.backlog <= 0.0))[:, 0] & ~sends[chosen]
        return np.where(due, np.where(sends, self.latency(link), np.inf).argmin(axis=1), chosen)

    def energy(self, link: Link) -> Floats:
        """Return (n, C) expected device energy of a frame: computation and transmission."""
        context, slow = self.context, 1.0 - np.minimum(link.load, MOST_LOAD)
        compute = context.compute_w * (self.device_s + self.sent * self.encode_s) / slow
        bits = 8.0 * self.sent * self.wire_bytes
        return np.asarray(compute + context.radio_j_per_bit * bits + context.radio_w * bits / link.goodput)


def plans_of(model: DecisionModel, summary: ProfileSummary) -> Plans:
    """Return the whole decision table as plans, in its order."""
    space, context = model.space, model.context
    b, r, _ = space.table.T
    alone = space.answers_alone[b]
    device = np.asarray(summary.head_s, dtype=np.float64)[space.exit_branches[b]]
    always = model.exit_ratio >= 1.0
    idle = alone | (np.array(space.thresholds)[space.table[:, 2]] <= ALWAYS_EXIT)
    encode = np.where(idle, 0.0, context.codec_scale * np.asarray(summary.encode_s)[b, r])
    wire = np.where(idle, 0.0, np.asarray(summary.payload_bytes)[b, r] + est.OVERHEAD_BYTES)
    sent = np.where(always, 0.0, 1.0 - model.exit_ratio)
    early = model.exit_ratio * model.exit_above
    return Plans(
        context,
        space.table,
        context.stage_scale * device + model.signal,
        encode,
        wire,
        np.asarray(summary.tail_s, dtype=np.float64)[b, r],
        sent,
        np.asarray(early + sent * model.tail_below),
        np.asarray(early + sent * model.exit_below),
    )


@dataclass(frozen=True)
class Setting:
    """Everything that a published controller is built from."""

    family: str
    name: str
    space: DecisionSpace
    summary: ProfileSummary
    context: ControllerContext
    parameters: Parameters
    model: DecisionModel
    plans: Plans

    def kinds(self, *kinds: str) -> Bools:
        """Return (M,) whether the branch of each decision of the table is of one of these kinds."""
        named = np.array([branch.kind in kinds for branch in self.space.branches])
        return np.asarray(named[self.space.table[:, 0]])

    def whole(self, rate: str = "last") -> Bools:
        """Return (M,) decisions that end in the whole network: the strictest exit rule, or ``local``.

        ``rate`` is ``last`` (the least compression of each branch: the papers send what the layer gives) or ``all``.
        """
        b, r, t = self.space.table.T
        strictest = t == len(self.space.thresholds) - 1
        sends = strictest & self.kinds("split", "offload") & (self.plans.sent > 0.0)
        if rate == "last":
            sends &= r == self.space.rates_per_branch[b] - 1
        return self.need(sends | self.kinds("local"))

    def exits(self) -> Bools:
        """Return (M,) decisions that end at a split branch's exit, none where the space cannot always exit."""
        always = np.array(self.space.thresholds)[self.space.table[:, 2]] <= ALWAYS_EXIT
        return np.asarray(always & self.kinds("split"))

    def patient(self) -> Bools:
        """Return (M,) decisions other than ``skip`` that wait for a result until the deadline."""
        return np.asarray((self.model.patience >= 1.0) & ~self.kinds("skip"))

    @property
    def probe_s(self) -> float:
        """Age of the goodput at which the link is probed, s; 0 is never."""
        return 0.0 if self.parameters.flag("original") else self.parameters.number("probe_s")

    def paced(self, which: Bools) -> Bools:
        """Return those of ``which`` whose work on the device fits a frame period, if any do (and ``pace=1``).

        The papers serve one request at a time. In a stream, a decision that takes longer than a period drops frames
        however good its latency is.
        """
        device = self.plans.device_s + self.plans.encode_s
        keeps_up = self.need(which) & (device <= 1.0 / self.context.fps)
        off = self.parameters.text("pace") == "0" or self.parameters.flag("original")
        return which if off or not keeps_up.any() else keeps_up

    def need(self, which: Bools) -> Bools:
        """Return ``which``; ConfigError when it chooses nothing."""
        if not which.any():
            raise ConfigError(
                f"controller {self.family!r} finds no decision that it may take in this space "
                f"({', '.join(branch.name for branch in self.space.branches)}); give a space whose branches can send"
            )
        return which


class Remembering:
    """Base of rules with a state of their own that learn nothing from outcomes."""

    learns = False
    kind: Kind = "rule"

    def learn(self, outcomes: Outcomes, state: State) -> State:
        """Learn nothing."""
        return state


Build: TypeAlias = Callable[[Setting], Controller]


def published(family: str, known: Known) -> Callable[[Build], Build]:
    """Return a decorator that registers ``build`` as the controller ``family`` with these parameters."""

    def register(build: Build) -> Build:
        def factory(
            space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
        ) -> Controller:
            parameters = Parameters(family, argument, known)
            found = need_summary(family, summary)
            model = DecisionModel(space, found, context)
            name = full_name(family, argument)
            return build(Setting(family, name, space, found, context, parameters, model, plans_of(model, found)))

        controllers.register(family)(factory)
        return build

    return register
