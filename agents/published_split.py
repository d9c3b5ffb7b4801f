"""Where to cut the network: Neurosurgeon, DADS and Dynamic Split Computing, for networks that are chains.

Every cut point is one decision whose exit rule never exits, so that each frame ends in the whole network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from adaptsplit.agents.base import Kind
from adaptsplit.agents.published_base import Bools, Floats, Ints, Plans, Setting, published, read_link
from adaptsplit.agents.published_parameters import ORIGINAL, PROBE, STREAM, Known
from adaptsplit.controller import Controller, Decisions, Observations, State, Stateless

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

DSH_SPAN = 3.0  # the coarse grid of (alpha, gamma) spans 10^-3 to 10^3
DSH_POINTS = 9


class Neurosurgeon(Stateless):
    """The cut point of least predicted latency, or of least energy of the device.

    Kang et al., "Neurosurgeon: Collaborative Intelligence Between the Cloud and Mobile Edge", ASPLOS 2017, algorithm 1:
    argmin_j sum_{i<=j} T_device(i) + D_j / B + sum_{i>j} T_server(i), over all cut points with both ends; for energy
    argmin_j sum_{i<=j} T_device(i) P_device + D_j / B * P_radio. The form of the latency was checked against public
    re-implementations, that of the energy was not. The paper predicts layer times by regression; here they are
    measured. ``original``: the frame is taken for the only one (``Plans.latency``).
    """

    kind: Kind = "rule"

    def __init__(
        self,
        plans: Plans,
        minimise: Literal["latency", "energy"],
        original: bool = False,
        probe_s: float = 0.0,
        name: str = "neurosurgeon",
    ) -> None:
        self.name, self.plans, self.minimise, self.original = name, plans, minimise, original
        self.probe_s = probe_s

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to the (n, 3) best cut points."""
        link = read_link(observation)
        cost = self.plans.energy(link) if self.minimise == "energy" else self.plans.latency(link, self.original)
        return self.plans.decisions[self.plans.probing(link, cost.argmin(axis=1), self.probe_s)], state


class Dads(Stateless):
    """Least latency under light load, least bottleneck stage under heavy load.

    Hu et al., "Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge", INFOCOM 2019: the light plan
    minimises T_e + T_t + T_c (a minimum cut; for a chain the best of its cut points). While one of its stages takes
    longer than a frame period 1 / Q, frames pile up, and the heavy plan is taken: minimise max{T_e, T_t, T_c}. The
    paper's heuristic DSH for it (minimum cuts with costs alpha T_e, T_t, gamma T_c over a grid, a 3-approximation)
    stands under ``solver=dsh``; for a chain the exact optimum is as cheap and is the default. When even that is too
    slow the paper asks the user for a lower frame rate; a controller cannot, and keeps the heavy plan.
    """

    kind: Kind = "rule"

    def __init__(
        self, plans: Plans, *, exact: bool = True, original: bool = False, probe_s: float = 0.0, name: str = "dads"
    ) -> None:
        self.name, self.plans, self.exact, self.original = name, plans, exact, original
        self.probe_s = probe_s

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions: the light plan where it keeps up, else the heavy one."""
        link = read_link(observation)
        stages = self.plans.stages(link)
        slowest = np.maximum.reduce(stages)
        light = self.plans.latency(link, self.original).argmin(axis=1)
        heavy = slowest.argmin(axis=1) if self.exact else dsh(*stages)
        piles_up = np.take_along_axis(slowest, light[:, None], axis=1)[:, 0] > 1.0 / self.plans.context.fps
        chosen = self.plans.probing(link, np.where(piles_up, heavy, light), self.probe_s)
        return self.plans.decisions[chosen], state


def dsh(device: Floats, sending: Floats, server: Floats) -> Ints:
    """Return (n,) the candidate of (n, C) stage times that DADS' heuristic finds for min max of the three.

    A coarse grid of (alpha, gamma), then a fine one of one coarse step around the best (algorithm 2 of the paper).
    """
    span = np.linspace(-DSH_SPAN, DSH_SPAN, DSH_POINTS)
    centre = np.zeros((len(device), 2))
    best = np.zeros(len(device), dtype=np.int64)
    least = np.full(len(device), np.inf)
    for scale in (1.0, 2.0 / (DSH_POINTS - 1)):
        start = centre.copy()
        for step in np.stack(np.meshgrid(span * scale, span * scale), axis=-1).reshape(-1, 2):
            weights = 10.0 ** (start + step)
            chosen = (weights[:, :1] * device + sending + weights[:, 1:] * server).argmin(axis=1)
            rows = np.arange(len(chosen))
            found = np.maximum.reduce((device, sending, server))[rows, chosen]
            better = found < least
            best[better], least[better], centre[better] = chosen[better], found[better], (start + step)[better]
    return best


class DynamicSplit(Neurosurgeon):
    """The natural bottleneck of least predicted latency.

    Bakhtiarnia et al., "Dynamic Split Computing for Efficient Deep Edge Intelligence", ICASSP 2023: only *natural
    bottlenecks* are considered, layers whose output is smaller than the input and than every earlier layer's output;
    among them argmin_l t_head(l) + size(l) / rate + t_tail(l). The network is unmodified, so accuracy is the same
    everywhere. ``ends=1`` adds sending the input and computing everything on the device.
    """


def natural_bottlenecks(setting: Setting, summary: ProfileSummary, ends: bool) -> Bools:
    """Return (M,) the cut points at natural bottlenecks, with both ends where ``ends`` says so or there is none.

    The input's size is that of a cut before the first layer (no head time) or of the largest ``offload`` message;
    without either, the first cut counts as a bottleneck.
    """
    whole = setting.whole()
    split, offload = setting.kinds("split") & whole, setting.kinds("offload") & whole
    size, head = setting.plans.wire_bytes, np.asarray(summary.head_s)[setting.space.table[:, 0]]
    raw = offload | (split & (head <= 0.0))
    least = size[raw].max() if raw.any() else np.inf
    found = np.zeros(len(size), dtype=np.bool_)
    for i in np.flatnonzero(split & ~raw)[np.argsort(head[split & ~raw], kind="stable")]:
        found[i] = size[i] < least
        least = min(least, size[i])
    if ends or not found.any():
        found |= raw | (setting.kinds("local") & whole)
    return setting.need(found)


_RATE: Known = {"rate": ("last", "all")}


@published("neurosurgeon", {"minimise": ("latency", "energy"), **_RATE, **STREAM})
def _neurosurgeon(setting: Setting) -> Controller:
    parameters = setting.parameters
    plans = setting.plans.take(setting.paced(setting.whole(parameters.text("rate"))))
    minimise: Literal["latency", "energy"] = "energy" if parameters.text("minimise") == "energy" else "latency"
    return Neurosurgeon(plans, minimise, parameters.flag("original"), setting.probe_s, setting.name)


@published("dads", {"solver": ("exact", "dsh"), **_RATE, "probe_s": PROBE, "original": ORIGINAL})
def _dads(setting: Setting) -> Controller:
    parameters = setting.parameters
    plans = setting.plans.take(setting.whole(parameters.text("rate")))
    exact = parameters.text("solver") == "exact"
    return Dads(plans, exact=exact, original=parameters.flag("original"), probe_s=setting.probe_s, name=setting.name)


@published("dynamic-split", {"ends": ("0", "1"), **STREAM})
def _dynamic_split(setting: Setting) -> Controller:
    parameters = setting.parameters
    which = natural_bottlenecks(setting, setting.summary, parameters.flag("ends"))
    return DynamicSplit(
        setting.plans.take(setting.paced(which)), "latency", parameters.flag("original"), setting.probe_s, setting.name
    )
