"""The decisions' anatomy: what each controller chooses, given the state of the link.

Two views. The device's: the estimated goodput at the decision, in thirds. The world's: the two seconds after the true
capacity fell below a quarter of its median, and after it came back; neither is known to any controller. Estimates of
oracles are those that a device would have had: their decisions are played again and the observations read.
Letters: E episodes, F frames per episode, H capacity bins of one recording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import NEVER_EXIT, DecisionSpace
from adaptsplit.envs import Simulator, World
from adaptsplit.evaluation import league_document as doc
from adaptsplit.evaluation.metrics import decision_shares
from adaptsplit.links import LinkTrace
from adaptsplit.observation import physical
from adaptsplit.outcome import Outcomes
from adaptsplit.scenario import Scenario

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

CONDITIONS: Mapping[str, str] = {
    "low": "estimated goodput in its lowest third",
    "middle": "in the middle third",
    "high": "in the highest third",
    "drop": "the 2 s after the capacity fell below a quarter of its median",
    "return": "the 2 s after it came back",
}
AFTER_S = 2.0
DROP_SHARE = 0.25
BIN_S = 0.5
"""Capacity is averaged over bins of this length: a sample of 20 ms without a packet is scheduling and no drop."""


@dataclass(frozen=True, slots=True)
class Played:
    """What one controller did: ``outcomes`` (E, F), and who it is among the five of a scenario."""

    controller: str
    role: str
    outcomes: Outcomes


def anatomy(scenario: Scenario, world: World, seeds: NDArray[Any], info: NDArray[Any], played: Sequence[Played],
            split: str = "test") -> doc.Anatomy:  # fmt: skip
    """Return the shares of every controller in every condition; ``info`` (E,) as ``envs.episode_info`` gives it."""
    goodput = {each.controller: goodput_seen(world, scenario.space, seeds, each.outcomes) for each in played}
    pooled = np.concatenate([values[np.isfinite(values)] for values in goodput.values()])
    low, high = (float(value) for value in np.quantile(pooled, [1 / 3, 2 / 3]))
    after = link_events(scenario.links(split), info, played[0].outcomes["arrived_s"])
    rows = [_row(scenario, each, _conditions(goodput[each.controller], (low, high), after)) for each in played]
    return doc.Anatomy(scenario=scenario.name, episodes=len(seeds), edges_bps=(low, high), rows=tuple(rows))


def goodput_seen(world: World, space: DecisionSpace, seeds: NDArray[Any], outcomes: Outcomes) -> Floats:
    """Return (E, F) estimated goodput (bit/s) at each decision, NaN for dropped frames, by playing them again."""
    simulator = Simulator(world, len(seeds))
    observations = simulator.reset(seeds)
    decisions = decisions_of(outcomes, space)
    seen = np.full(outcomes.shape, np.nan)
    rows = np.arange(len(seeds))
    while not simulator.done.all():
        running = ~simulator.done
        frame = np.minimum(simulator.frame, outcomes.shape[1] - 1)
        seen[rows[running], frame[running]] = physical(observations[running], "goodput")
        observations = simulator.step(decisions[rows, frame])[0]
    seen[outcomes["branch"] < 0] = np.nan
    return seen


def decisions_of(outcomes: Outcomes, space: DecisionSpace) -> NDArray[np.int64]:
    """Return the (E, F, 3) indices of decisions that were taken; the space's first one for a dropped frame."""
    rule = np.zeros(outcomes.shape, dtype=np.int64)
    for i, (threshold, patience) in enumerate(zip(space.thresholds, space.patience, strict=True)):
        same = np.isclose(outcomes["threshold"], min(threshold, NEVER_EXIT)) | np.isclose(
            outcomes["threshold"], threshold
        )
        rule[same & np.isclose(outcomes["patience"], patience)] = i
    taken = [np.maximum(outcomes[name].astype(np.int64), 0) for name in ("branch", "rate")]
    return np.stack([*taken, rule], axis=-1)


def link_events(traces: Sequence[LinkTrace], info: NDArray[Any], arrived_s: Floats) -> dict[str, Mask]:
    """Return (E, F) masks of the frames that arrived within ``AFTER_S`` of a drop, and of a return."""
    by_name = {trace.name: trace for trace in traces}
    masks = {name: np.zeros(arrived_s.shape, dtype=np.bool_) for name in ("drop", "return")}
    for i, row in enumerate(info):
        trace = by_name[str(row["recording"])]
        below, bin_s = below_quarter(trace)
        state, since = since_change(below, bin_s, (float(row["offset_s"]) + arrived_s[i]) % trace.duration_s)
        masks["drop"][i] = (since < AFTER_S) & state
        masks["return"][i] = (since < AFTER_S) & ~state
    return masks


def below_quarter(trace: LinkTrace) -> tuple[Mask, float]:
    """Return ((H,) whether each bin's mean capacity is below a quarter of the bins' median, length of a bin in s)."""
    group = max(1, min(len(trace), round(BIN_S / trace.dt_s)))
    whole = len(trace) // group * group
    mean = trace.capacity_bps[:whole].reshape(-1, group).mean(axis=1)
    return mean < DROP_SHARE * np.median(mean), group * trace.dt_s


def since_change(below: Mask, bin_s: float, time_s: Floats) -> tuple[Mask, Floats]:
    """Return (F,) whether the looped link is low at each time, and for how long it has been what it is (inf: ever).

    ``time_s`` counts within the recording; what is left over after its last whole bin counts as that bin.
    """
    changes = np.flatnonzero(below != np.roll(below, 1))
    place = np.minimum(np.floor(time_s / bin_s).astype(np.int64), len(below) - 1)
    if not changes.size:
        return below[place], np.full(time_s.shape, np.inf)
    found = np.searchsorted(changes, place, side="right") - 1
    age = (place - changes[found]) % len(below)
    return below[place], age * bin_s + (time_s - place * bin_s)


def _conditions(goodput: Floats, edges: tuple[float, float], after: Mapping[str, Mask]) -> dict[str, Mask]:
    known = np.isfinite(goodput)
    filled = np.where(known, goodput, 0.0)
    thirds = {
        "low": known & (filled < edges[0]),
        "middle": known & (filled >= edges[0]) & (filled < edges[1]),
        "high": known & (filled >= edges[1]),
    }
    return {**thirds, **after}


def _row(scenario: Scenario, each: Played, masks: Mapping[str, Mask]) -> doc.AnatomyRow:
    reward = scenario.objective.reward(each.outcomes)
    conditions = {name: _condition(each.outcomes, reward, masks[name], scenario.space) for name in CONDITIONS}
    return doc.AnatomyRow(controller=each.controller, role=each.role, conditions=conditions)


def _condition(outcomes: Outcomes, reward: Floats, mask: Mask, space: DecisionSpace) -> doc.Condition:
    chosen = outcomes[mask]
    if not chosen.size:
        return doc.Condition(frames=0, reward=None, shares={})
    shares = decision_shares(chosen, space)
    rounded = {group: {key: round(value, 5) for key, value in own.items()} for group, own in shares.items()}
    return doc.Condition(frames=int(chosen.size), reward=float(reward[mask].mean()), shares=rounded)
