"""Exits and cut points chosen together under a latency goal: Edgent, SPINN and DynaSplit."""

from __future__ import annotations

import numpy as np

from adaptsplit.agents.base import Kind
from adaptsplit.agents.published_base import (
    Bools,
    Floats,
    Ints,
    Link,
    Plans,
    Setting,
    nominal_link,
    published,
    read_link,
)
from adaptsplit.agents.published_parameters import STREAM, Known, Number
from adaptsplit.controller import Controller, Decisions, Observations, State, Stateless
from adaptsplit.errors import ConfigError

SAME = 1e-9
TARGETS = ("accuracy", "latency", "server", "energy")
MARGIN = Number(0.0, 0.0, 10.0)


class Edgent(Stateless):
    """The most accurate exit point whose best partition point is fast enough.

    Li, Zhou, Chen, "Edge Intelligence: On-Demand Deep Learning Model Co-Inference with Device-Edge Synergy", 2018,
    algorithm 1 (static environment): for each exit point from the deepest on, T = device + server + bits / B for each
    partition point; the exit whose best partition meets the goal is taken. The deepest exit is the tail's answer (at
    any cut, or with ``local``), the others are those of the split branches, computed on the device. When no exit is
    fast enough, the fastest decision is taken; ``original`` takes the shallowest exit on the device, as public
    re-implementations do. (Some of those compare the last partition's time with the goal instead of the least: a
    fault, not kept.) There is no model-loading time: all models are loaded.
    """

    kind: Kind = "rule"

    def __init__(
        self,
        plans: Plans,
        rank: Ints,
        goal_s: float,
        *,
        original: bool = False,
        probe_s: float = 0.0,
        name: str = "edgent",
    ) -> None:
        """``rank`` (C,) is 0 for the exit point that is preferred, then 1, ..."""
        self.name, self.plans, self.goal_s, self.original = name, plans, goal_s, original
        self.probe_s = probe_s
        self._order = np.asarray(rank, dtype=np.float64)
        self._last = int(np.lexsort((plans.device_s, -self._order))[0])

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions."""
        link = read_link(observation)
        return self.plans.decisions[self.plans.probing(link, self.choose(link), self.probe_s)], state

    def choose(self, link: Link) -> Ints:
        """Return (n,) the candidate for each row of a link."""
        latency = self.plans.latency(link, self.original)
        meets = latency <= self.goal_s
        # Within one exit point the fastest partition wins: squashed latency is below 1, ranks differ by 1.
        score = np.where(meets, self._order + latency / (1.0 + latency), np.inf)
        none = np.full(len(latency), self._last) if self.original else latency.argmin(axis=1)
        return np.where(meets.any(axis=1), score.argmin(axis=1), none)


def ranks(plans: Plans, ends_deep: Bools, by: str) -> Ints:
    """Return (C,) the place of each candidate's exit point: 0 is the deepest (or, by ``quality``, the most accurate).

    ``ends_deep`` (C,) says which end in the whole network. By depth these share rank 0 and the exits follow, the
    longest head first.
    """
    key = -np.round(plans.quality, 6) if by == "quality" else np.where(ends_deep, -np.inf, -plans.device_s)
    return np.asarray(np.unique(key, return_inverse=True)[1], dtype=np.int64).ravel()


def edgent_candidates(setting: Setting) -> tuple[Plans, Bools]:
    """Return every (exit, partition) pair of the space, and which of them end in the whole network."""
    whole = setting.whole(setting.parameters.text("rate"))
    which = setting.paced((whole | setting.exits()) & setting.patient())
    return setting.plans.take(which), whole[which]


class Spinn(Stateless):
    """The cut point and exit threshold that meet the latency limit and are best by an order of targets.

    After Laskaridis et al., "SPINN: Synergistic Progressive Inference of Neural Networks over Device and Cloud",
    MobiCom 2020: accuracy and exit rates of every (split, threshold) are profiled offline; online the latencies are
    rescaled by bandwidth and load, hard limits filter, soft targets order what is left, and the local exit answers when
    the link is dead. The paper's optimiser and settings could not be checked, hence the name. Soft targets are ordered
    lexicographically: what is within ``slack`` (a share of the best) stays for the next target. The limit holds for a
    frame that is sent; ``original`` applies it to the mean over frames, which lets each sent frame be late.
    """

    kind: Kind = "rule"

    def __init__(
        self,
        plans: Plans,
        targets: tuple[str, ...],
        *,
        goal_s: float,
        slack: float = 0.005,
        stale_s: float = 1.0,
        original: bool = False,
        probe_s: float = 0.0,
        name: str = "spinn-style",
    ) -> None:
        self.name, self.plans, self.targets, self.goal_s = name, plans, targets, goal_s
        self.slack, self.stale_s, self.original, self.probe_s = slack, stale_s, original, probe_s
        self._alone = plans.wire_bytes <= 0.0

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions."""
        link = read_link(observation)
        latency = self.plans.latency(link)
        limited = self.plans.mean_latency(link, True) if self.original else latency
        usable = limited <= self.goal_s
        if self._alone.any():
            dead = link.heard_age > self.stale_s
            usable &= ~dead | self._alone
            latency = np.where(dead & ~self._alone, np.inf, latency)
        best = self._ordered(usable, link)
        chosen = np.where(usable.any(axis=1), best, latency.argmin(axis=1))
        probed = self.plans.probing(link, chosen, self.probe_s)
        dead = link.heard_age[:, 0] > self.stale_s
        return self.plans.decisions[np.where(dead, chosen, probed)], state

    def _ordered(self, usable: Bools, link: Link) -> Ints:
        """Return (n,) the best usable candidate; without a usable one any."""
        keep = usable
        for target in self.targets:
            cost = np.where(keep, self._cost(target, link), np.inf)
            least = cost.min(axis=1, keepdims=True)
            keep = keep & (cost <= least + self.slack * np.abs(least) + SAME)
        last = np.where(keep, self._cost(self.targets[-1], link), np.inf)
        return np.asarray(last.argmin(axis=1))

    def _cost(self, target: str, link: Link) -> Floats:
        """Return (n, C) or (1, C): what a target wants to be small."""
        if target == "latency":
            return self.plans.mean_latency(link)
        if target == "energy":
            return self.plans.energy(link)
        if target == "server":
            return (self.plans.sent * self.plans.tail_s)[None, :]
        return 1.0 - self.plans.quality[None, :]


class DynaSplit(Stateless):
    """Of a Pareto set found offline, the configuration of least energy that is predicted to be fast enough.

    After May et al., "DynaSplit: A Hardware-Software Co-Design Framework for Energy-Aware Inference on Edge",
    2410.23881: an offline multi-objective search gives the non-dominated (latency, energy, accuracy); online each
    request takes the least energy that meets its latency goal, else the fastest. The paper's search is a
    meta-heuristic; here every decision is enumerated. ``floor`` is how far below the best quality a member may be: the
    paper's configurations are of about equal accuracy, a space with exits is not, and without it the cheapest exit
    would always win. ``original`` keeps the offline latencies online, so that only the goal could change the pick.
    """

    kind: Kind = "rule"

    def __init__(
        self,
        plans: Plans,
        goal_s: float,
        *,
        original: bool = False,
        probe_s: float = 0.0,
        name: str = "dynasplit-style",
    ) -> None:
        self.name, self.plans, self.goal_s, self.original = name, plans, goal_s, original
        self.probe_s = probe_s

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions."""
        link = read_link(observation)
        if self.original:
            link = nominal_link(self.plans.context, np.full(len(observation), self.plans.context.goodput_bps))
        latency = self.plans.latency(link)
        meets = latency <= self.goal_s
        cheapest = np.where(meets, self.plans.energy(link), np.inf).argmin(axis=1)
        chosen = np.where(meets.any(axis=1), cheapest, latency.argmin(axis=1))
        return self.plans.decisions[self.plans.probing(link, chosen, self.probe_s)], state


def pareto(costs: Floats) -> Bools:
    """Return (C,) which rows of (C, K) costs no other row dominates (as good in each and better in one)."""
    as_good = (costs[:, None, :] <= costs[None, :, :] + SAME).all(axis=2)
    better = (costs[:, None, :] < costs[None, :, :] - SAME).any(axis=2)
    return np.asarray(~(as_good & better).any(axis=0))


_GOAL: Known = {"margin_s": MARGIN, **STREAM}


def goal_of(setting: Setting) -> float:
    """Return the latency goal: the deadline less the margin; ConfigError when nothing is left of it."""
    goal = setting.context.deadline_s - setting.parameters.number("margin_s")
    if goal <= 0.0:
        raise ConfigError(
            f"controller {setting.family!r}: margin_s leaves nothing of the deadline of "
            f"{setting.context.deadline_s:g} s; give less"
        )
    return goal


@published("edgent", {"order": ("depth", "quality"), "rate": ("last", "all"), **_GOAL})
def _edgent(setting: Setting) -> Controller:
    plans, whole = edgent_candidates(setting)
    rank = ranks(plans, whole, setting.parameters.text("order"))
    return Edgent(
        plans,
        rank,
        goal_of(setting),
        original=setting.parameters.flag("original"),
        probe_s=setting.probe_s,
        name=setting.name,
    )


_ORDERS = ("accuracy+server", *TARGETS, *(f"{a}+{b}" for a in TARGETS for b in TARGETS if a != b))


@published(
    "spinn-style",
    {"targets": _ORDERS, "slack": Number(0.005, 0.0, 1.0), "stale_s": Number(1.0, 0.01, 60.0), **_GOAL},
)
def _spinn(setting: Setting) -> Controller:
    parameters = setting.parameters
    return Spinn(
        setting.plans.take(setting.paced(setting.patient())),
        tuple(parameters.text("targets").split("+")),
        goal_s=goal_of(setting),
        slack=parameters.number("slack"),
        stale_s=parameters.number("stale_s"),
        original=parameters.flag("original"),
        probe_s=setting.probe_s,
        name=setting.name,
    )


@published("dynasplit-style", {"floor": Number(0.02, 0.0, 1.0), **_GOAL})
def _dynasplit(setting: Setting) -> Controller:
    every = setting.plans.take(setting.paced(setting.patient()))
    good = every.take(every.quality >= every.quality.max() - setting.parameters.number("floor"))
    link = nominal_link(setting.context, np.array([setting.context.goodput_bps]))
    costs = np.column_stack([good.latency(link)[0], good.energy(link)[0], -good.quality])
    original = setting.parameters.flag("original")
    return DynaSplit(
        good.take(pareto(costs)), goal_of(setting), original=original, probe_s=setting.probe_s, name=setting.name
    )
