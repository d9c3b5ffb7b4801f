"""One scenario of the league: everybody is evaluated once, what the league needs is kept, and read back when unchanged.

``OUT/SCENARIO`` holds ``results.json`` and ``report.html`` (as ``adaptsplit evaluate`` writes them), ``episodes.npz``
(values per episode) and ``contest.json`` (who played, validation, anatomy, and the hash of all that they depend on).
The last one is written last, so a league that was killed evaluates that scenario anew and no other.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit.agents import oracle as oracles
from adaptsplit.config import parse_json
from adaptsplit.controller import Controller
from adaptsplit.envs import World, build_world, episode_info, episode_seeds, run_episodes
from adaptsplit.errors import DataError
from adaptsplit.evaluation import league_document as doc
from adaptsplit.evaluation.diagnose_hash import content_hash
from adaptsplit.evaluation.documents import Document, write_document
from adaptsplit.evaluation.entrants import Entrant
from adaptsplit.evaluation.evaluate import Progress, evaluate
from adaptsplit.evaluation.grid import run_static
from adaptsplit.evaluation.league_anatomy import Played, anatomy
from adaptsplit.evaluation.league_entrants import LineUp
from adaptsplit.evaluation.league_episodes import from_scored, read_episodes, write_episodes
from adaptsplit.evaluation.league_rank import BEST_STATIC, INFORMED, TRAIN_STATIC, Contest
from adaptsplit.evaluation.league_verdicts import best_in_group
from adaptsplit.evaluation.results import ResultsDocument, read_results
from adaptsplit.outcome import Outcomes
from adaptsplit.scenario import Scenario

SCHEMA: Final = "adaptsplit.contest/1"
CONTEST_FILE, EPISODES_FILE, RESULTS_FILE = "contest.json", "episodes.npz", "results.json"
VALIDATION_EPISODES = 128
VALIDATION_SEED = 7
"""Other episodes than those that training validates on, so that a lucky checkpoint gains nothing."""


class ContestFile(Document):
    """What ``contest.json`` holds."""

    schema_: Literal["adaptsplit.contest/1"] = Field(SCHEMA, alias="schema")
    key: str
    scenario: str
    seconds: float
    groups: dict[str, doc.Group]
    left_out: dict[str, str]
    validation: dict[str, tuple[float, ...]] = Field(description="reward of each run of each learned agent")
    learned: str | None
    anatomy: doc.Anatomy | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How a scenario is evaluated: episodes, seed, split, and on how many of the episodes the anatomy is taken."""

    episodes: int = 200
    seed: int = 0
    split: str = "test"
    anatomy_episodes: int = 40


@dataclass(frozen=True, slots=True)
class Kept:
    """A scenario's evaluation as it lies on disk. ``reused``: it had been made before."""

    scenario: Scenario
    file: ContestFile
    document: ResultsDocument
    contest: Contest
    reused: bool


def key_of(scenario: Scenario, line_up: LineUp, plan: Plan) -> str:
    """Return the SHA-256 of everything that the evaluation of a scenario depends on."""
    what = {
        "plan": [plan.episodes, plan.seed, plan.split, plan.anatomy_episodes],
        "players": [entrant.name for entrant in line_up.entrants],
        "oracles": list(line_up.oracles),
        "sources": line_up.sources,
        "content": content_hash(scenario, plan.split),
        "validation": content_hash(scenario, "validation"),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def hold(scenario: Scenario, line_up: LineUp, plan: Plan, folder: Path, progress: Progress | None = None) -> Kept:
    """Evaluate everybody on a scenario, or read what an equal evaluation left in ``folder``."""
    key = key_of(scenario, line_up, plan)
    known = read_contest(folder)
    if known is None or known.key != key:
        known = _evaluate(scenario, line_up, plan, folder, key, progress)
        return _kept(scenario, known, plan, folder, reused=False)
    return _kept(scenario, known, plan, folder, reused=True)


def read_contest(folder: Path) -> ContestFile | None:
    """Return what a folder holds, None where it is not complete or not readable (it will be made anew)."""
    if not all((folder / name).is_file() for name in (CONTEST_FILE, EPISODES_FILE, RESULTS_FILE)):
        return None
    try:
        data = (folder / CONTEST_FILE).read_bytes()
        return parse_json(ContestFile, data, str(folder / CONTEST_FILE), "it is made anew", DataError)
    except DataError:
        return None


def _kept(scenario: Scenario, file: ContestFile, plan: Plan, folder: Path, *, reused: bool) -> Kept:
    document = read_results(folder / RESULTS_FILE)
    best = document.best_static
    contest = Contest(
        name=scenario.name,
        episodes=read_episodes(folder / EPISODES_FILE),
        statics={BEST_STATIC: best.hindsight, TRAIN_STATIC: best.chosen_on_train},
        groups=file.groups,
        learned=file.learned,
        seed=plan.seed,
    )
    return Kept(scenario, file, document, contest, reused)


def _evaluate(
    scenario: Scenario, line_up: LineUp, plan: Plan, folder: Path, key: str, progress: Progress | None
) -> ContestFile:
    started = time.monotonic()
    (folder / CONTEST_FILE).unlink(missing_ok=True)
    agents: list[str | Controller | Entrant] = [*line_up.entrants, *line_up.oracles]
    options: dict[str, Any] = {"episodes": plan.episodes, "seed": plan.seed, "split": plan.split}
    results = evaluate(scenario, agents, out=folder, progress=progress, knob_episodes=0, **options)
    world, seeds = build_world(scenario, plan.split), episode_seeds(plan.seed, plan.episodes, plan.split)
    info = episode_info(world, seeds, scenario.links(plan.split))
    write_episodes(from_scored(results.scored, info), folder / EPISODES_FILE)
    validation = validate(scenario, line_up.of_group("learned"))
    learned = max(validation, key=lambda name: float(np.mean(validation[name])), default=None)
    groups: dict[str, doc.Group] = {**line_up.groups, **dict.fromkeys(line_up.oracles, "oracle")}
    found = ContestFile(
        schema=SCHEMA,
        key=key,
        scenario=scenario.name,
        seconds=0.0,
        groups=groups,
        left_out=line_up.left_out,
        validation=validation,
        learned=learned,
        anatomy=None,
    )
    contest = _kept(scenario, found, plan, folder, reused=False).contest
    shown = _played(scenario, world, contest, line_up, found, plan)
    few = slice(0, min(plan.anatomy_episodes, plan.episodes))
    parts = anatomy(scenario, world, seeds[few], info[few], shown, plan.split) if shown else None
    found = found.model_copy(update={"anatomy": parts, "seconds": round(time.monotonic() - started, 1)})
    write_document(found, folder / CONTEST_FILE)
    return found


def validate(scenario: Scenario, entrants: Sequence[Entrant]) -> dict[str, tuple[float, ...]]:
    """Return the mean reward of every run of each agent on the validation split: what the choice is made on."""
    if not entrants:
        return {}
    world = build_world(scenario, "validation")
    seeds = episode_seeds(VALIDATION_SEED, VALIDATION_EPISODES, "validation")
    return {
        entrant.name: tuple(
            float(scenario.objective.reward(run_episodes(world, member, seeds)).mean()) for member in entrant.members
        )
        for entrant in entrants
    }


def _played(
    scenario: Scenario, world: World, contest: Contest, line_up: LineUp, found: ContestFile, plan: Plan
) -> list[Played]:
    """Run those whose decisions are laid open: the best of each group, and the informed oracle.

    Of several training runs it is the one that is best on validation.
    """
    count = min(plan.anatomy_episodes, plan.episodes)
    if count < 1:
        return []
    seeds = episode_seeds(plan.seed, plan.episodes, plan.split)[:count]
    decision = scenario.space.parse(contest.statics[BEST_STATIC].removeprefix("static:"))
    row: NDArray[np.int64] = np.array([[decision.branch, decision.rate, decision.threshold]])
    shown = [Played(BEST_STATIC, "best static", run_static(world, row, seeds)[0])]
    by_name = {entrant.name: entrant for entrant in line_up.entrants}
    chosen = {role: best_in_group(contest, role) for role in ("published", "bandit")} | {"learned": found.learned}
    for role, name in chosen.items():
        if name is not None:
            member = by_name[name].members[int(np.argmax(found.validation.get(name, (0.0,))))]
            shown.append(Played(name, role, run_episodes(world, member, seeds, seed=plan.seed)))
    shown.append(Played(INFORMED, "oracle", _informed(scenario, world, seeds, [each.outcomes for each in shown])))
    return shown


def _informed(scenario: Scenario, world: World, seeds: NDArray[Any], rivals: Sequence[Outcomes]) -> Outcomes:
    train = build_world(scenario, "train")
    return oracles.plan(world, train, scenario.space, seeds, INFORMED, rivals=rivals)
