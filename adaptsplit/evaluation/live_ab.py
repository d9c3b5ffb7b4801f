"""Live A/B: several controllers in interleaved blocks over the same frames of the same recorded links.

On each link one flight is made per controller, each with the order of the blocks rotated by one: over these flights
every controller decides once in every block of frames and link (a Latin square). Differences are paired by block, so
that neither the scene nor the moment of the link is in them; what remains is the controller, and the link's state that
the block before left behind. Letters: A controllers, C cells (link, stretch, block).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.bundle import Bundle
from adaptsplit.envs import World, build_world
from adaptsplit.envs.simulator import Stretch
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.evaluation.fidelity import block_of, check_flyable, fly, simulate
from adaptsplit.evaluation.live import LiveComparison, compare_live
from adaptsplit.evaluation.statistics import Interval, Resamples, paired, resample
from adaptsplit.outcome import Outcomes
from adaptsplit.outcome import Path as Route
from adaptsplit.recorded_run import RecordedRun, read_run
from adaptsplit.scenario import Scenario

Floats = NDArray[np.float64]

METRICS = ("reward", "quality", "answer_ms", "miss", "fallback", "energy_mj", "bytes")
SIM_REPEATS = 8


@dataclass(frozen=True, slots=True)
class Flown:
    """One flight: on which link and stretch, and its log."""

    link: str
    stretch: int
    run: RecordedRun


@dataclass(frozen=True, slots=True)
class LiveAb:
    """Means of each metric in each cell, (M, A, C) with NaN where a controller decided nothing; labels of the cells.

    The first controller is the one that the others are held against.
    """

    controllers: tuple[str, ...]
    cells: Floats
    link: NDArray[np.str_]
    stretch: NDArray[np.int64]
    frames: int
    block: int

    def means(self, metric: str, link: str | None = None) -> Floats:
        """Return (A,) means over the cells (of one link)."""
        values = self.cells[METRICS.index(metric)][:, self._of(link)]
        return np.asarray(np.nanmean(values, axis=1), dtype=np.float64)

    def difference(self, metric: str, other: int, link: str | None = None) -> Interval:
        """Return the first controller less controller ``other``, paired by cell, with its 95 % interval.

        Over all links the bootstrap draws links, then stretches, then blocks; over one link stretches and blocks.
        """
        chosen = self._of(link)
        values = self.cells[METRICS.index(metric)][:, chosen]
        return paired(values[0], values[other], self._resamples(chosen, link))

    def _of(self, link: str | None) -> NDArray[np.bool_]:
        return np.ones(len(self.link), dtype=np.bool_) if link is None else np.asarray(self.link == link)

    def _resamples(self, chosen: NDArray[np.bool_], link: str | None) -> Resamples:
        levels: list[NDArray[Any]] = [self.stretch[chosen]]
        return resample([self.link[chosen], *levels] if link is None else levels)

    @property
    def links(self) -> tuple[str, ...]:
        """Names of the links, in the order flown."""
        return tuple(dict.fromkeys(self.link.tolist()))

    def document(self) -> dict[str, Any]:
        """Return means and paired differences, over all and by link, as plain numbers."""
        places = (None, *self.links)
        return {
            "controllers": list(self.controllers),
            "links": list(self.links),
            "cells": len(self.link),
            "block_frames": self.block,
            "frames": self.frames,
            "means": {place or "all": self._means(place) for place in places},
            "differences": {place or "all": self._differences(place) for place in places},
        }

    def _means(self, link: str | None) -> dict[str, dict[str, float]]:
        table = {metric: self.means(metric, link).tolist() for metric in METRICS}
        return {name: {m: table[m][i] for m in METRICS} for i, name in enumerate(self.controllers)}

    def _differences(self, link: str | None) -> dict[str, dict[str, list[float]]]:
        found: dict[str, dict[str, list[float]]] = {}
        for i, name in enumerate(self.controllers[1:], start=1):
            each = {metric: self.difference(metric, i, link) for metric in METRICS}
            found[name] = {metric: [one.value, one.low, one.high] for metric, one in each.items()}
        return found


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Return ``names`` with the order of turns moved on.

    >>> rotated(["a", "b", "c"], 1)
    ['b', 'c', 'a']
    """
    return [*names[by % len(names) :], *names[: by % len(names)]]


def compare_cells(
    flights: Sequence[Flown], controllers: Sequence[str], block: int, reward: Callable[[Outcomes], NDArray[Any]]
) -> LiveAb:
    """Lay the flights out in cells; ``controllers`` as their logs name them. DataError when a log has others."""
    found: dict[tuple[str, int, int], Floats] = {}
    for flown in flights:
        strange = set(flown.run.controllers) - set(controllers)
        if strange:
            raise DataError(f"flight on {flown.link}: frames of {', '.join(sorted(strange))}, not of this comparison")
        own, place = np.array(flown.run.controllers), block_of(flown.run.records, block)
        for i, name in enumerate(controllers):
            for number in np.unique(place[own == name]).tolist():
                key = flown.link, flown.stretch, int(number)
                cell = found.setdefault(key, np.full((len(METRICS), len(controllers)), np.nan))
                cell[:, i] = _numbers(flown.run.records[(own == name) & (place == number)], reward)
    keys = list(found)
    return LiveAb(
        tuple(controllers),
        np.stack([found[key] for key in keys], axis=2),
        np.array([link for link, _, _ in keys]),
        np.array([stretch for _, stretch, _ in keys], dtype=np.int64),
        sum(len(flown.run.records) for flown in flights),
        block,
    )


def _numbers(records: Outcomes, reward: Callable[[Outcomes], NDArray[Any]]) -> list[float]:
    """One cell's mean of each of ``METRICS``; the latency is over answers."""
    path, latency = records["path"], records["answer_latency_s"].astype(np.float64)
    answered = latency[~np.isnan(latency)]
    energy = records["compute_j"].astype(np.float64) + records["radio_j"]
    late = (path == Route.FALLBACK_LATE) | (path == Route.FALLBACK_PASSED)
    return [
        float(np.mean(reward(records))),
        float(np.mean(records["quality"].astype(np.float64))),
        1e3 * float(answered.mean()) if answered.size else np.nan,
        float((path == Route.MISS).mean()),
        float(late.mean()),
        1e3 * float(energy.mean()),
        float(records["sent_bytes"].mean()),
    ]


def live_ab(
    bundle: Bundle,
    scenario: Scenario,
    split: str,
    links: Sequence[int],
    controllers: Sequence[str],
    out: Path,
    *,
    block: int = 25,
    stretches: int = 1,
    offset_s: float = 0.0,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[LiveAb, LiveComparison]:
    """Fly the Latin square on every link, and simulate the same flights.

    Args:
        links: indices of the split's traces.
        controllers: the first is held against the others; ``bundle`` is the bundle's own.
        out: one folder per flight is made in it.
        stretches: squares per link, each an episode further along link and frames.

    Raises:
        ConfigError: fewer than two controllers, one that is named twice, or a link that there is not.
    """
    check_flyable(bundle, scenario)
    _check(scenario, split, links, controllers)
    world = build_world(scenario, split, label_free=False)
    flights: list[Flown] = []
    simulated: list[dict[str, Outcomes]] = []
    for link in links:
        trace = scenario.links(split)[link].name
        for number in range(stretches):
            stretch = _stretch(scenario, split, link, offset_s, number)
            for turn in range(len(controllers)):
                report(f"{trace}, stretch {number + 1} of {stretches}, flight {turn + 1} of {len(controllers)}")
                order, place = rotated(controllers, turn), out / f"link-{link}" / f"{number}-{turn}"
                flown = fly(bundle, scenario, split, stretch, order, block=block, out=place)
                flights.append(Flown(trace, number, read_run(flown.log)))
                simulated.append(_simulated(world, bundle, stretch, order, block))
    shown = [bundle.controller.name if name == "bundle" else name for name in controllers]
    table = compare_cells(flights, shown, block, scenario.objective.reward)
    return table, _compare(flights, simulated, shown)


def _check(scenario: Scenario, split: str, links: Sequence[int], controllers: Sequence[str]) -> None:
    if len(set(controllers)) != len(controllers) or len(controllers) < 2:
        raise ConfigError(f"controllers {', '.join(controllers)}; expected two or more, each once")
    count = len(scenario.links(split))
    wrong = [link for link in links if not 0 <= link < count]
    if wrong or not links:
        raise ConfigError(f"links {list(links)}: split {split!r} has traces 0 to {count - 1}")


def _stretch(scenario: Scenario, split: str, link: int, offset_s: float, number: int) -> Stretch:
    _, length = scenario.profile(split).segments[0]
    first = number * scenario.frames_per_episode % length
    return replace(Stretch(link, offset_s, 0, first), offset_s=offset_s + number * scenario.episode_s)


def _simulated(world: World, bundle: Bundle, stretch: Stretch, order: Sequence[str], block: int) -> dict[str, Outcomes]:
    return simulate(world, bundle, stretch, order, block=block, repeats=SIM_REPEATS)


def _compare(
    flights: Sequence[Flown], simulated: Sequence[dict[str, Outcomes]], names: Sequence[str]
) -> LiveComparison:
    live = {name: np.concatenate([flown.run.by_controller()[name] for flown in flights]) for name in names}
    ours = {name: np.concatenate([one[name] for one in simulated]) for name in names}
    links = ", ".join(dict.fromkeys(flown.link for flown in flights))
    return compare_live(ours, live, note=f"{len(flights)} flights over {links}, blocks rotated")
