"""The evaluation: every static decision, the named controllers and the oracles on the same episodes.

Common random numbers: an episode is its seed, and every controller meets the same links, frames and stage times in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents import oracle as oracles
from adaptsplit.controller import Controller
from adaptsplit.envs import World, build_world, episode_info, episode_seeds, run_episodes
from adaptsplit.errors import ConfigError
from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.analysis import Results, Scored, Setting, analyse, best_of
from adaptsplit.evaluation.documents import write_document
from adaptsplit.evaluation.entrants import DEFAULT_AGENTS, Entrant, Entrants, resolve
from adaptsplit.evaluation.grid import run_grid, run_static
from adaptsplit.evaluation.headline import champion
from adaptsplit.evaluation.knobs import knob_worth
from adaptsplit.evaluation.metrics import episode_table
from adaptsplit.evaluation.results import Knobs, ResultsDocument
from adaptsplit.evaluation.timeline import Timeline, capacity_during, choose_episode
from adaptsplit.outcome import Outcomes
from adaptsplit.scenario import Scenario

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``."""

MAX_EPISODES = 100_000
KNOB_EPISODES = 12
RIVAL_STATICS = 8
"""How many of the best static decisions an oracle is shown, so that it is never below them."""


@dataclass(slots=True)
class _Stage:
    """One split with its compiled world and its episodes."""

    scenario: Scenario
    split: str
    seed: int
    episodes: int
    progress: Progress | None
    world: World = field(init=False)
    seeds: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        self.world = build_world(self.scenario, self.split)
        self.seeds = episode_seeds(self.seed, self.episodes, self.split)

    def report(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(what, done, total) if self.progress else None

    def grid(self) -> list[Scored]:
        what = f"static grid ({self.split})"
        return run_grid(self.world, self.scenario.space, self.scenario.objective, self.seeds, self.report(what))

    def score(self, name: str, kind: Any, outcomes: Sequence[Outcomes]) -> Scored:
        space, objective = self.scenario.space, self.scenario.objective
        return Scored(name, kind, tuple(episode_table(each, objective.reward(each), space) for each in outcomes))


def evaluate(
    scenario: Scenario,
    agents: Sequence[str | Controller | Entrant] = DEFAULT_AGENTS,
    *,
    episodes: int = 100,
    seed: int = 0,
    split: str = "test",
    out: str | Path | None = None,
    progress: Progress | None = None,
    knob_episodes: int = KNOB_EPISODES,
) -> Results:
    """Evaluate ``agents`` on ``episodes`` episodes of ``split``; the static grid is always run, as the reference.

    The best static decision is also chosen on the train split, on as many episodes of its own. With ``out``, writes
    ``results.json`` and ``report.html`` there. ``knob_episodes`` 0 leaves out what each knob is worth (it is measured
    when ``oracle-informed`` is among the agents). ConfigError and UnknownNameError for arguments that cannot be used.
    """
    if not 1 <= episodes <= MAX_EPISODES or seed < 0:
        raise ConfigError(f"{episodes} episodes with seed {seed}; expected 1 to {MAX_EPISODES}, and a seed >= 0")
    entrants = resolve(agents, scenario)
    stage = _Stage(scenario, split, seed, episodes, progress)
    train = _Stage(scenario, "train", seed + (split == "train"), episodes, progress)
    statics = stage.grid()
    chosen = best_of(train.grid())
    played, scored = _play(stage, entrants)
    planned = _plan(stage, train, entrants.oracles, played, statics)
    everything = [*statics, *scored, *(stage.score(name, "oracle", [found]) for name, found in planned.items())]
    info = episode_info(stage.world, stage.seeds, scenario.links(split))
    knobs = _knobs(stage, train, info, knob_episodes) if "oracle-informed" in planned else None
    document = analyse(everything, _setting(stage, info, entrants), chosen.name, knobs=knobs)
    timeline = _timeline(stage, document, everything, played | planned, info)
    results = Results(document, tuple(everything), timeline)
    if out is not None:
        write(results, Path(out))
    return results


def write(results: Results, out: Path) -> None:
    """Write ``results.json`` and ``report.html`` into a folder."""
    from adaptsplit.evaluation.report import write_report

    write_document(results.document, out / "results.json")
    write_report(results, out / "report.html")


def _play(stage: _Stage, entrants: Entrants) -> tuple[dict[str, Outcomes], list[Scored]]:
    """Run every controller; of several training runs the first one's outcomes are kept."""
    played, scored = {}, []
    total = len(entrants.controllers)
    for i, entrant in enumerate(entrants.controllers):
        runs = [run_episodes(stage.world, member, stage.seeds, seed=stage.seed) for member in entrant.members]
        played[entrant.name] = runs[0]
        scored.append(stage.score(entrant.name, entrant.kind, runs))
        stage.report("controllers")(i + 1, total)
    return played, scored


def _plan(
    stage: _Stage, train: _Stage, names: Sequence[str], played: dict[str, Outcomes], statics: Sequence[Scored]
) -> dict[str, Outcomes]:
    """Plan every oracle, shown what the controllers and the best static decisions did."""
    if not names:
        return {}
    space = stage.scenario.space
    order = np.argsort([-item.reward for item in statics], kind="stable")[:RIVAL_STATICS]
    rivals = [*played.values(), *run_static(stage.world, space.table[order], stage.seeds)]
    args = (stage.world, train.world, space, stage.seeds)
    return {name: oracles.plan(*args, name, rivals=rivals, progress=stage.report(name)) for name in names}


def _knobs(stage: _Stage, train: _Stage, info: NDArray[Any], episodes: int) -> Knobs | None:
    count = min(episodes, stage.episodes)
    if count < 1:
        return None
    space, objective = stage.scenario.space, stage.scenario.objective

    def planner(table: NDArray[np.int64] | None, rivals: Sequence[Outcomes]) -> tuple[Outcomes, NDArray[np.float64]]:
        args = (stage.world, train.world, space, stage.seeds[:count])
        found = oracles.plan(*args, "oracle-informed", table=table, rivals=rivals)
        return found, np.asarray(objective.reward(found).mean(axis=1), dtype=np.float64)

    levels = [info["recording"][:count], info["segment"][:count]]
    resamples = stats.resample(levels, seed=stage.seed)
    return knob_worth(space, planner, resamples, "oracle-informed", stage.report("worth of the knobs"))


def _setting(stage: _Stage, info: NDArray[Any], entrants: Entrants) -> Setting:
    scenario = stage.scenario
    return Setting(
        scenario=scenario.name,
        seed=stage.seed,
        split=stage.split,
        frames_per_episode=scenario.frames_per_episode,
        fps=scenario.fps,
        deadline_s=scenario.deadline_s,
        objective=scenario.objective.model_dump(),
        space=scenario.space.to_dict(),
        recording=info["recording"],
        segment=info["segment"],
        family=info["family"],
        description=scenario.description,
        hashes=_hashes(scenario, stage.split) | entrants.hashes,
    )


def _hashes(scenario: Scenario, split: str) -> dict[str, str]:
    """SHA-256 of everything that the numbers depend on."""
    found = {"scenario": hashlib.sha256(scenario.file.model_dump_json().encode()).hexdigest()}
    for part in dict.fromkeys(("train", split)):
        if scenario.published:
            found[f"profile {part}"] = scenario.profile(part).model.digest
        elif (profile := scenario.profile_path / f"profile-{part}.npz").is_file():
            found[f"profile {part}"] = hashlib.sha256(profile.read_bytes()).hexdigest()
        digests = "".join(trace.digest() for trace in scenario.links(part))
        found[f"links {part}"] = hashlib.sha256(digests.encode()).hexdigest()
    return found


def _timeline(
    stage: _Stage,
    document: ResultsDocument,
    scored: Sequence[Scored],
    played: dict[str, Outcomes],
    info: NDArray[Any],
) -> Timeline:
    """Choose an episode and lay the best adaptive controller beside the best static decision."""
    scenario, space = stage.scenario, stage.scenario.space
    best, static = champion(document), document.best_static.hindsight
    by_name = {item.name: item for item in scored}
    shown = best.name if best is not None else static
    gain = by_name[shown].values("reward") - by_name[static].values("reward")
    traces = {trace.name: trace for trace in scenario.links(stage.split)}
    episode = choose_episode(np.atleast_2d(gain).mean(axis=0), info, traces, scenario.episode_s)
    decision = space.parse(static.removeprefix("static:"))
    row = np.array([[decision.branch, decision.rate, decision.threshold]])
    outcomes = {shown: played[shown][episode]} if best is not None else {}
    outcomes[static] = run_static(stage.world, row, stage.seeds[episode : episode + 1])[0, 0]
    found = info[episode]
    times, capacity = capacity_during(traces[str(found["recording"])], float(found["offset_s"]), scenario.episode_s)
    return Timeline(str(found["recording"]), str(found["family"]), episode, times, capacity, outcomes)
