"""Ablations: the same agent, trained without one group of observation fields, or with one knob frozen.

Runs lie in ``RUNS/ablations/SCENARIO/AGENT/{full,without-GROUP,frozen-KNOB}/SEED``. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents import make_controller
from adaptsplit.agents.build import POLICY_FILE
from adaptsplit.agents.run_folder import read_run
from adaptsplit.envs import World, build_world, run_episodes
from adaptsplit.evaluation import league_document as doc
from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.analysis import estimate
from adaptsplit.evaluation.knobs import KNOBS, value_name
from adaptsplit.evaluation.league_rank import BEST_STATIC, INFORMED_0, Contest
from adaptsplit.evaluation.results import Estimate
from adaptsplit.observation import FIELDS
from adaptsplit.scenario import Scenario

Floats = NDArray[np.float64]

FOLDER = "ablations"
FULL = "full"


@dataclass(frozen=True, slots=True)
class Removal:
    """What is taken away: a group of fields, or a knob, which then stands where it stands in the decision ``at``."""

    kind: Literal["group", "knob", "full"]
    what: str
    at: str | None = None

    @property
    def folder(self) -> str:
        """How the runs' folder is called."""
        return {"group": f"without-{self.what}", "knob": f"frozen-{self.what}", "full": FULL}[self.kind]


def removals(at: str) -> list[Removal]:
    """Return every ablation: each observation group, and each knob at its value in the decision ``at``."""
    groups = dict.fromkeys(field.group for field in FIELDS)
    return [*(Removal("group", name) for name in groups), *(Removal("knob", name, at) for name in KNOBS)]


def run_folder(runs: Path, scenario: str, agent: str, removal: Removal, seed: int) -> Path:
    """Return where one ablated run lies."""
    return runs / FOLDER / scenario / agent / removal.folder / str(seed)


def found_runs(runs: Path, scenario: str, agent: str, removal: Removal) -> list[Path]:
    """Return the folders of the trained runs of one ablation, by seed."""
    place = runs / FOLDER / scenario / agent / removal.folder
    return sorted(path.parent for path in place.glob(f"*/{POLICY_FILE}"))


def evaluate_ablations(
    scenario: Scenario, contest: Contest, agent: str, runs: Path, seeds: NDArray[Any], split: str, seed: int
) -> doc.Ablation | None:
    """Evaluate the ablated runs on the league's own episodes ``seeds``; None where there are none.

    The whole agent is that of ``full`` runs, where there are any (they were trained as long), else the league's own.
    """
    at = contest.statics[BEST_STATIC]
    found = {item: found_runs(runs, scenario.name, agent, item) for item in removals(at)}
    whole = found_runs(runs, scenario.name, agent, Removal("full", ""))
    if not any(found.values()) or not (whole or agent in contest.groups):
        return None
    world = build_world(scenario, split)
    full = _rewards(scenario, world, whole, seeds, seed) if whole else contest.values(agent)
    rows = []
    for item, folders in found.items():
        if folders:
            rows.append(_row(scenario, contest, item, _rewards(scenario, world, folders, seeds, seed), full))
    steps = read_run(next(folders[0] for folders in found.values() if folders))["steps"]
    return doc.Ablation(
        scenario=scenario.name,
        agent=agent,
        runs=len(np.atleast_2d(full)),
        steps=int(steps),
        reward=float(full.mean()),
        score=_score(contest, full),
        rows=tuple(rows),
    )


def _rewards(scenario: Scenario, world: World, folders: Sequence[Path], seeds: NDArray[Any], seed: int) -> Floats:
    """Return (S, E) rewards of S runs, (E,) of one."""
    rewards = []
    for folder in folders:
        outcomes = run_episodes(world, make_controller(str(folder), scenario), seeds, seed=seed)
        rewards.append(scenario.objective.reward(outcomes).mean(axis=1))
    return np.asarray(rewards[0] if len(rewards) == 1 else np.stack(rewards), dtype=np.float64)


def _row(scenario: Scenario, contest: Contest, item: Removal, rewards: Floats, full: Floats) -> doc.AblationRow:
    value = None
    if item.kind == "knob":
        decision = scenario.space.parse(str(item.at).removeprefix("static:"))
        knob = next(name for name in KNOBS if name == item.what)
        value = value_name(scenario.space, knob, int(getattr(decision, knob)))
    return doc.AblationRow(
        kind="group" if item.kind == "group" else "knob",
        removed=item.what,
        value=value,
        runs=len(np.atleast_2d(rewards)),
        reward=float(rewards.mean()),
        loss=estimate(loss(full, rewards, contest.resamples)),
        score=_score(contest, rewards),
    )


def loss(full: Floats, rest: Floats, resamples: stats.Resamples) -> stats.Interval:
    """Return the whole agent's mean reward less the ablated one's; run i is set against run i where both have as many.

    Else the mean over the whole agent's runs is what each ablated run is set against.
    """
    reference = full if full.shape == rest.shape else np.atleast_2d(full).mean(axis=0)
    return stats.interval(reference - rest, resamples)


def _score(contest: Contest, rewards: Floats) -> Estimate | None:
    if not contest.has_gap(INFORMED_0):
        return None
    marks = (contest.values(BEST_STATIC), contest.values(INFORMED_0))
    found = stats.gap_closed(rewards, *marks, contest.resamples)
    return None if found is None else estimate(found)
