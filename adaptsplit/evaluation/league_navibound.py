"""How far bytes can fall at no loss of quality: oracles whose only price is that of a byte.

The league's oracles maximise the scenario's objective, in which a byte may be cheap; they bound NaviSplit's headline
only when bytes are all that is paid for. The largest price at which an oracle's quality is still the reference's is
found by bisection of its logarithm; the figure is what the oracle sends there. Labels are unknown to it, as to anybody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit.agents import oracle as oracles
from adaptsplit.config import Config, parse_json
from adaptsplit.envs import World, build_world, episode_info, episode_seeds
from adaptsplit.errors import DataError
from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.analysis import estimate
from adaptsplit.evaluation.grid import run_static
from adaptsplit.evaluation.league_contest import Plan
from adaptsplit.evaluation.league_document import NaviBound
from adaptsplit.evaluation.league_navisplit import bytes_saved
from adaptsplit.evaluation.league_rank import INFORMED, INFORMED_0
from adaptsplit.objective import Objective
from adaptsplit.outcome import Outcomes
from adaptsplit.scenario import Scenario

SCHEMA: Final = "adaptsplit.navisplit/1"
FILE = "navisplit.json"
ORACLES = (INFORMED_0, INFORMED)
PRICES = (0.005, 2.0)
"""Least and greatest price per KiB that is tried, in units of one frame's quality."""
STEPS = 6


class BoundsFile(Config):
    """What ``navisplit.json`` holds; ``key`` is that of the scenario's evaluation."""

    schema_: Literal["adaptsplit.navisplit/1"] = Field(SCHEMA, alias="schema")
    key: str
    reference: str
    bounds: tuple[NaviBound, ...]


@dataclass(frozen=True, slots=True)
class _Reference:
    """The static decision to beat, on the first episodes: (E,) quality and bytes."""

    quality: NDArray[np.float64]
    bytes: NDArray[np.float64]
    resamples: stats.Resamples


def bounds(scenario: Scenario, decision: str, plan: Plan, key: str, folder: Path) -> tuple[NaviBound, ...]:
    """Return the oracles' bounds against a static decision, from ``folder`` where they were made before.

    They are taken on the first ``plan.anatomy_episodes`` episodes; none when that is below 2.
    """
    known = _read(folder / FILE)
    if known is not None and (known.key, known.reference) == (key, decision):
        return known.bounds
    count = min(plan.anatomy_episodes, plan.episodes)
    if count < 2:
        return ()
    seeds = episode_seeds(plan.seed, plan.episodes, plan.split)[:count]
    found = tuple(_bound(scenario, name, decision, plan, seeds) for name in ORACLES)
    file = BoundsFile.model_validate({"key": key, "reference": decision, "bounds": found, "schema": SCHEMA})
    (folder / FILE).write_text(file.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    return found


def _read(path: Path) -> BoundsFile | None:
    if not path.is_file():
        return None
    try:
        return parse_json(BoundsFile, path.read_bytes(), str(path), "it is made anew", DataError)
    except DataError:
        return None


def priced(scenario: Scenario, bytes_per_kib: float) -> Scenario:
    """Return the scenario with an objective of quality less a price for bytes, and nothing else."""
    objective = Objective.model_validate({"quality": 1.0, "bytes_per_kib": bytes_per_kib})
    return Scenario(scenario.file.model_copy(update={"objective": objective}), scenario.base, scenario.data)


def _bound(scenario: Scenario, name: str, decision: str, plan: Plan, seeds: NDArray[Any]) -> NaviBound:
    reference = _reference(scenario, decision, plan, seeds)
    low, high = (math.log(price) for price in PRICES)
    best, price = _plan(scenario, name, PRICES[0], plan.split, seeds), PRICES[0]
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        found = _plan(scenario, name, math.exp(middle), plan.split, seeds)
        if found["quality"].mean() >= reference.quality.mean():
            best, price, low = found, math.exp(middle), middle
        else:
            high = middle
    return _summary(name, price, best, reference)


def _plan(scenario: Scenario, name: str, price: float, split: str, seeds: NDArray[Any]) -> Outcomes:
    changed = priced(scenario, price)
    worlds: Sequence[World] = [build_world(changed, part) for part in (split, "train")]
    return oracles.plan(worlds[0], worlds[1], changed.space, seeds, name)


def _reference(scenario: Scenario, decision: str, plan: Plan, seeds: NDArray[Any]) -> _Reference:
    world = build_world(scenario, plan.split)
    chosen = scenario.space.parse(decision.removeprefix("static:"))
    row: NDArray[np.int64] = np.array([[chosen.branch, chosen.rate, chosen.threshold]])
    outcomes = run_static(world, row, seeds)[0]
    info = episode_info(world, seeds, scenario.links(plan.split))
    resamples = stats.resample([info["recording"], info["segment"]], seed=plan.seed)
    return _Reference(*_means(outcomes), resamples)


def _means(outcomes: Outcomes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    quality = outcomes["quality"].mean(axis=1, dtype=np.float64)
    return quality, outcomes["sent_bytes"].mean(axis=1, dtype=np.float64)


def _summary(name: str, price: float, outcomes: Outcomes, reference: _Reference) -> NaviBound:
    quality, sent = _means(outcomes)
    saved = bytes_saved(sent, reference.bytes, reference.resamples)
    return NaviBound(
        oracle=name,
        episodes=len(quality),
        bytes_per_kib=price,
        bytes=float(sent.mean()),
        quality=float(quality.mean()),
        reference_bytes=float(reference.bytes.mean()),
        bytes_saved=None if saved is None else estimate(saved),
        quality_difference=estimate(stats.paired(quality, reference.quality, reference.resamples)),
    )
