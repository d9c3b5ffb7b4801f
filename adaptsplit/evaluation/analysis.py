"""From what each controller did to the document of results: references, intervals, gaps, families.

Nothing here runs anything: it takes reduced episodes (``Scored``), so a test or another simulator can feed it too.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import DataError
from adaptsplit.evaluation import results as doc
from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.metrics import LATENCIES, NAMES, EpisodeTable
from adaptsplit.evaluation.timeline import Timeline

Floats = NDArray[np.float64]

PAIRED_METRICS = ("reward", "quality", "miss_ratio", "fallback_ratio", "energy_mj", "bytes")


@dataclass(frozen=True, slots=True)
class Scored:
    """One controller's episodes: one table per training run (one for everything that is not learned)."""

    name: str
    kind: doc.Kind
    tables: tuple[EpisodeTable, ...]

    def values(self, metric: str) -> Floats:
        """Return (E,) values per episode, or (S, E) of S training runs."""
        stacked = np.stack([table.means[metric] for table in self.tables])
        return stacked[0] if len(stacked) == 1 else stacked

    @property
    def reward(self) -> float:
        """Mean reward per frame."""
        return float(self.values("reward").mean())


@dataclass(frozen=True, slots=True)
class Setting:
    """What was evaluated, as the document states it. ``recording``, ``segment``, ``family``: (E,) labels."""

    scenario: str
    seed: int
    split: str
    frames_per_episode: int
    fps: float
    deadline_s: float
    objective: Mapping[str, Any]
    space: Mapping[str, Any]
    recording: NDArray[Any]
    segment: NDArray[Any]
    family: NDArray[Any]
    description: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)


def best_of(scored: Sequence[Scored]) -> Scored:
    """Return the controller with the highest mean reward; DataError when there is none."""
    if not scored:
        raise DataError("no static decision was evaluated; the reference needs the static grid")
    return max(scored, key=lambda item: item.reward)


def analyse(
    scored: Sequence[Scored], setting: Setting, chosen_on_train: str, *, knobs: doc.Knobs | None = None
) -> doc.ResultsDocument:
    """Compute every reported number; the best static decision in hindsight is found among ``scored``."""
    _check(scored, setting)
    resamples = stats.resample([setting.recording, setting.segment], seed=setting.seed)
    by_name = {item.name: item for item in scored}
    if chosen_on_train not in by_name:
        raise DataError(f"best static decision of the train split {chosen_on_train!r} was not evaluated")
    hindsight = best_of([item for item in scored if item.kind == "static"])
    references = {"hindsight": hindsight, "chosen_on_train": by_name[chosen_on_train]}
    bulk = _bulk_intervals(scored, resamples)
    return doc.ResultsDocument(
        schema=doc.SCHEMA,
        version=importlib.metadata.version("adaptsplit"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        scenario=setting.scenario,
        description=setting.description,
        seed=setting.seed,
        split=setting.split,
        episodes=len(setting.recording),
        frames_per_episode=setting.frames_per_episode,
        fps=setting.fps,
        deadline_ms=1e3 * setting.deadline_s,
        hashes=dict(setting.hashes),
        objective=dict(setting.objective),
        space=dict(setting.space),
        best_static=doc.BestStatic(hindsight=hindsight.name, chosen_on_train=chosen_on_train),
        controllers=tuple(
            _controller(item, references, by_name, resamples, bulk.get(item.name, {})) for item in scored
        ),
        gap=_gaps(by_name, hindsight, resamples),
        families=_families(scored, setting, references),
        knobs=knobs,
    )


def _check(scored: Sequence[Scored], setting: Setting) -> None:
    episodes = len(setting.recording)
    for item in scored:
        for table in item.tables:
            if table.means["reward"].shape != (episodes,):
                found = table.means["reward"].shape
                raise DataError(f"{item.name}: values of shape {found}; expected one per episode ({episodes})")


def _bulk_intervals(scored: Sequence[Scored], resamples: stats.Resamples) -> dict[str, dict[str, stats.Interval]]:
    """All intervals of controllers with one run in one matrix product: the static grid has hundreds."""
    single = [item for item in scored if len(item.tables) == 1]
    if not single:
        return {}
    rows = stats.intervals(np.concatenate([[item.values(name) for name in NAMES] for item in single]), resamples)
    width = len(NAMES)
    return {
        item.name: dict(zip(NAMES, rows[i * width : (i + 1) * width], strict=True)) for i, item in enumerate(single)
    }


def _controller(
    item: Scored,
    references: Mapping[str, Scored],
    by_name: Mapping[str, Scored],
    resamples: stats.Resamples,
    known: Mapping[str, stats.Interval],
) -> doc.ControllerResult:
    found = {name: known.get(name) or stats.interval(item.values(name), resamples) for name in NAMES}
    reward = item.values("reward")
    found["reward_iqm"] = stats.interquartile_mean(reward, resamples)
    oracle = by_name.get("oracle-informed")
    found["regret"] = stats.paired(-reward, -oracle.values("reward"), resamples) if oracle else UNKNOWN
    for metric, name in doc.GAPS.items():
        found[metric] = _gap_closed(reward, references["hindsight"], by_name.get(name), resamples)
    latencies = {
        metric.name: stats.latency_intervals(
            stats.merge_latencies([getattr(t, metric.name.split("_")[0]) for t in item.tables]), resamples
        )
        for metric in LATENCIES
    }
    return doc.ControllerResult(
        name=item.name,
        kind=item.kind,
        runs=len(item.tables),
        metrics={
            **{name: number(value.value) for name, value in found.items()},
            **{k: {p: number(1e3 * i.value) for p, i in ps.items()} for k, ps in latencies.items()},
        },
        ci95={
            **{name: _pair(value) for name, value in found.items()},
            **{
                k: {p: (number(1e3 * i.low), number(1e3 * i.high)) for p, i in ps.items()}
                for k, ps in latencies.items()
            },
        },
        paired=_paired(item, references, resamples) if item.kind != "static" or item in references.values() else {},
        shares=_mean_shares(item.tables),
    )


UNKNOWN = stats.Interval(math.nan, math.nan, math.nan)


def number(value: float) -> float | None:
    """Return ``value``, or None when it is not a finite number."""
    return float(value) if math.isfinite(value) else None


def estimate(value: stats.Interval) -> doc.Estimate:
    """Return an interval as the document states it."""
    return doc.Estimate(value=number(value.value), low=number(value.low), high=number(value.high))


def _pair(value: stats.Interval) -> tuple[float | None, float | None] | None:
    return None if math.isnan(value.low) else (number(value.low), number(value.high))


def _gap_closed(reward: Floats, static: Scored, oracle: Scored | None, resamples: stats.Resamples) -> stats.Interval:
    if oracle is None:
        return UNKNOWN
    return stats.gap_closed(reward, static.values("reward"), oracle.values("reward"), resamples) or UNKNOWN


def _paired(item: Scored, references: Mapping[str, Scored], resamples: stats.Resamples) -> dict[str, doc.Paired]:
    return {
        label: doc.Paired(
            reference=reference.name,
            difference={
                metric: estimate(stats.paired(item.values(metric), reference.values(metric), resamples))
                for metric in PAIRED_METRICS
            },
            probability_of_improvement=estimate(
                stats.probability_of_improvement(item.values("reward"), reference.values("reward"), resamples)
            ),
        )
        for label, reference in references.items()
    }


def _mean_shares(tables: Sequence[EpisodeTable]) -> dict[str, dict[str, float]]:
    first = tables[0].shares
    return {
        group: {key: float(np.mean([t.shares[group][key] for t in tables])) for key in shares}
        for group, shares in first.items()
    }


def _gaps(by_name: Mapping[str, Scored], static: Scored, resamples: stats.Resamples) -> dict[str, doc.Gap]:
    gaps = {}
    for name, oracle in by_name.items():
        if oracle.kind == "oracle":
            gap = stats.paired(oracle.values("reward"), static.values("reward"), resamples)
            gaps[name] = doc.Gap(oracle=name, difference=estimate(gap), defined=gap.low > 0)
    return gaps


def _families(scored: Sequence[Scored], setting: Setting, references: Mapping[str, Scored]) -> dict[str, doc.Family]:
    featured = [item for item in scored if item.kind != "static" or item in references.values()]
    families = {}
    for family in np.unique(setting.family):
        rows = np.flatnonzero(setting.family == family)
        resamples = stats.resample([setting.recording[rows], setting.segment[rows]], seed=setting.seed)
        results = tuple(_in_family(item, references["hindsight"], rows, resamples) for item in featured)
        recordings = len(np.unique(setting.recording[rows]))
        families[str(family)] = doc.Family(episodes=len(rows), recordings=recordings, controllers=results)
    return families


def _in_family(item: Scored, static: Scored, rows: NDArray[np.int64], resamples: stats.Resamples) -> doc.FamilyResult:
    reward = item.values("reward")[..., rows]
    return doc.FamilyResult(
        controller=item.name,
        reward=estimate(stats.interval(reward, resamples)),
        quality=estimate(stats.interval(item.values("quality")[..., rows], resamples)),
        difference=estimate(stats.paired(reward, static.values("reward")[rows], resamples)),
    )


@dataclass(frozen=True, slots=True)
class Results:
    """An evaluation: the document, the reduced episodes behind it, and one episode to look at."""

    document: doc.ResultsDocument
    scored: tuple[Scored, ...]
    timeline: Timeline | None = None

    def find(self, name: str) -> Scored:
        """Return one controller's episodes; DataError names what is known."""
        for item in self.scored:
            if item.name == name:
                return item
        raise DataError(f"no episodes of {name!r}; known: {', '.join(item.name for item in self.scored)}")
