"""What a scenario is good for, before anybody trains on it: does adapting pay, by which knob, and what binds.

``diagnose`` measures with oracles, rules, every static decision and a controller fitted in seconds, on the validation
split unless asked otherwise: nothing in it may look at the test split by default, since scenarios are tuned with it.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adaptsplit.agents import make_controller
from adaptsplit.agents.oracle import bound
from adaptsplit.envs import run_episodes
from adaptsplit.errors import ConfigError
from adaptsplit.evaluation import diagnose_checks as checks
from adaptsplit.evaluation.diagnose_bench import Bench, Floats, Statics, run_statics, silent
from adaptsplit.evaluation.diagnose_document import SCHEMA, Caution, Diagnosis, Role, Standing, Sufficiency
from adaptsplit.evaluation.diagnose_groups import FittedResult, best_rows, observation_worths
from adaptsplit.evaluation.diagnose_hash import content_hash, scenario_hash
from adaptsplit.evaluation.diagnose_relax import binding, relaxations
from adaptsplit.evaluation.diagnose_use import decisions_of, knob_worths, use_of
from adaptsplit.evaluation.documents import write_document
from adaptsplit.evaluation.grid import run_static
from adaptsplit.evaluation.sensitivity import weight_sensitivity
from adaptsplit.evaluation.timeline import Timeline, capacity_during, choose_episode
from adaptsplit.outcome import Outcomes
from adaptsplit.scenario import Scenario

Progress = Callable[[str, int, int], None]
ORACLES = ("oracle-informed-0", "oracle-informed-0.5", "oracle-informed", "oracle-clairvoyant")
RIVAL_STATICS = 8
HALF = "oracle-informed-0.5"
MAX_EPISODES = 10_000


RULES = ("deadline", "threshold")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: episodes of each part, states and train episodes of the fitted controller.

    ``half`` is for informed(0.5), whose plan is made anew at every frame and takes the longest by far.
    """

    episodes: int
    half: int
    knobs: int
    constraints: int
    weights: int
    states: int
    train_episodes: int


FULL = Effort(episodes=60, half=16, knobs=16, constraints=24, weights=16, states=4000, train_episodes=200)
QUICK = Effort(episodes=12, half=3, knobs=3, constraints=4, weights=4, states=1500, train_episodes=80)


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """The document, and one episode of the informed oracle to look at."""

    document: Diagnosis
    timeline: Timeline


def settings_of(episodes: int | None, quick: bool, seed: int) -> str:
    """Return what a diagnosis was asked for, as it enters the content hash."""
    return f"{_effort(episodes, quick)} seed={seed}"


def diagnose(
    scenario: Scenario,
    *,
    episodes: int | None = None,
    seed: int = 0,
    split: str = "validation",
    quick: bool = False,
    progress: Progress = silent,
) -> Diagnosed:
    """Diagnose a scenario on ``episodes`` episodes (default 60, quick 12) of ``split``.

    ConfigError for arguments that cannot be used, and for data that is missing.
    """
    effort, begun = _effort(episodes, quick), time.monotonic()
    if not 2 <= effort.episodes <= MAX_EPISODES or seed < 0:
        raise ConfigError(f"{effort.episodes} episodes with seed {seed}; expected 2 to {MAX_EPISODES}, and a seed >= 0")
    bench = Bench(scenario, split, seed, effort.episodes, progress)
    work = _Work(bench, effort)
    standings = work.standings()
    pays, text = checks.verdict({row.name: row for row in standings})
    space, statics = scenario.space, work.static_rewards
    relaxed = relaxations(bench, effort.constraints, work.planned["oracle-informed"], ())
    knobs = knob_worths(bench, effort.knobs, work.rivals)
    weights = weight_sensitivity(bench, effort.weights, work.statics, work.rules)
    sufficiency = checks.sufficiency(bench.world, space)
    document = Diagnosis(
        schema=SCHEMA,
        version=importlib.metadata.version("adaptsplit"),
        scenario=scenario.name,
        description=scenario.description,
        hash=content_hash(scenario, split, settings_of(episodes, quick, seed)),
        scenario_hash=scenario_hash(scenario),
        split=split,
        seed=seed,
        quick=quick,
        episodes=bench.episodes,
        frames_per_episode=scenario.frames_per_episode,
        seconds=round(time.monotonic() - begun, 1),
        objective=scenario.objective.model_dump(exclude_none=True),
        static_decisions=len(statics),
        best_static=space.name(space.table[work.best]),
        chosen_on_train=space.name(space.table[work.chosen]),
        pays=pays,
        verdict=text,
        binding=binding(relaxed),
        standings=standings,
        uses=tuple(use_of(name, work.planned[name], space) for name in reversed(ORACLES)),
        knobs=knobs,
        relaxations=relaxed,
        fitted=work.fitted.document,
        sensitivity=weights,
        sufficiency=sufficiency,
        cautions=tuple(work.cautions(standings, sufficiency)),
    )
    return Diagnosed(document, work.timeline())


def _effort(episodes: int | None, quick: bool) -> Effort:
    chosen = QUICK if quick else FULL
    if episodes is None:
        return chosen
    return replace(
        chosen,
        episodes=episodes,
        half=min(chosen.half, episodes),
        knobs=min(chosen.knobs, episodes),
        constraints=min(chosen.constraints, episodes),
        weights=min(chosen.weights, episodes),
    )


class _Work:
    """The parts that others build on: static grid, rules, oracles, fitted controller."""

    def __init__(self, bench: Bench, effort: Effort) -> None:
        scenario, self.bench = bench.scenario, bench
        self.statics: Statics = run_statics(bench, bench.world, bench.seeds, "static decisions")
        self.static_rewards = self.statics.rewards(scenario.objective)
        self.best = int(self.static_rewards.mean(axis=1).argmax())
        train_seeds = bench.train_seeds(bench.episodes)
        on_train = run_statics(bench, bench.train, train_seeds, "static decisions (train)").rewards(scenario.objective)
        self.chosen = int(on_train.mean(axis=1).argmax())
        self.rules = rule_names(scenario)
        played = {name: self._play(name) for name in self.rules}
        order = np.argsort(-self.static_rewards.mean(axis=1), kind="stable")[:RIVAL_STATICS]
        self.rivals: list[Outcomes] = [
            *played.values(),
            *run_static(bench.world, scenario.space.table[order], bench.seeds),
        ]
        self.rule_rewards = {name: bench.reward(outcomes) for name, outcomes in played.items()}
        counts = {HALF: effort.half}
        self.planned = {
            name: bench.plan(name, counts.get(name, bench.episodes), rivals=self.rivals, stage=name) for name in ORACLES
        }
        rows = best_rows(scenario.space.table, on_train)
        self.fitted: FittedResult = observation_worths(
            bench,
            rows,
            self.static_rewards[self.best],
            states=effort.states,
            train_episodes=effort.train_episodes,
        )

    def _play(self, name: str) -> Outcomes:
        bench = self.bench
        return run_episodes(bench.world, make_controller(name, bench.scenario), bench.seeds, seed=bench.seed)

    def standings(self) -> tuple[Standing, ...]:
        """Everybody's reward, and the difference to the best static decision in hindsight."""
        bench, space = self.bench, self.bench.scenario.space
        rows: list[tuple[str, Role, Floats]] = [("best static", "static", self.static_rewards[self.best])]
        rows.append(("chosen on train", "static", self.static_rewards[self.chosen]))
        rows += [(name, "rule", reward) for name, reward in self.rule_rewards.items()]
        rows.append(("fitted", "fitted", self.fitted.rewards))
        rows += [(name, "oracle", bench.reward(self.planned[name])) for name in ORACLES]
        rows.append(("bound", "bound", bound(bench.world, space, bench.seeds)))
        reference = self.static_rewards[self.best]
        return tuple(
            Standing(
                episodes=len(values),
                name=name,
                role=role,
                reward=bench.mean(values),
                difference=bench.paired(values, reference[: len(values)]),
            )
            for name, role, values in rows
        )

    def cautions(self, standings: Sequence[Standing], found: Sufficiency | None) -> list[Caution]:
        """Every warning, the gravest kinds first."""
        bench, scenario = self.bench, self.bench.scenario
        space, profile = scenario.space, scenario.profile(bench.split)
        taken = np.concatenate([decisions_of(outcomes, space).reshape(-1, 3) for outcomes in self.planned.values()])
        specs = [spec for part in ("train", "validation", "test") for spec in getattr(scenario.file.links, part)]
        return [
            *checks.margin_cautions({row.name: row for row in standings}),
            *checks.battery_cautions(bench.world, bench.seeds, space.table[self.best]),
            *checks.link_cautions(found),
            *checks.threshold_cautions(profile, space),
            *checks.dominated_cautions(bench.world, space, np.unique(taken[taken[:, 0] >= 0], axis=0)),
            *checks.source_cautions(scenario.published, profile, specs),
        ]

    def timeline(self) -> Timeline:
        """One lively, typical episode of the informed oracle."""
        bench, scenario = self.bench, self.bench.scenario
        gain = bench.reward(self.planned["oracle-informed"]) - self.static_rewards[self.best]
        traces = {trace.name: trace for trace in scenario.links(bench.split)}
        episode = choose_episode(gain, bench.info, traces, scenario.episode_s)
        row = bench.info[episode]
        trace = traces[str(row["recording"])]
        times, capacity = capacity_during(trace, float(row["offset_s"]), scenario.episode_s)
        outcomes = {"oracle-informed": self.planned["oracle-informed"][episode]}
        return Timeline(trace.name, trace.family, episode, times, capacity, outcomes)


def rule_names(scenario: Scenario) -> tuple[str, ...]:
    """Return the rules that a diagnosis tries: few, since the best of many is found by chance too.

    One that cannot decide in this scenario's space (no branch that can send, say) is left out.
    """
    found = []
    for name in RULES:
        try:
            make_controller(name, scenario)
        except ConfigError:
            continue
        found.append(name)
    return tuple(found)


def write_diagnosis(found: Diagnosed, scenario: Scenario, out: Path) -> list[Path]:
    """Write ``diagnosis.json``, ``diagnosis.md`` and, with matplotlib, ``timeline.png``; return what was written."""
    from adaptsplit.evaluation.diagnose_picture import write_timeline
    from adaptsplit.evaluation.diagnose_text import markdown

    write_document(found.document, out / "diagnosis.json")
    picture = write_timeline(found.timeline, scenario.space, scenario.fps, out / "timeline.png")
    (out / "diagnosis.md").write_text(markdown(found.document, picture), encoding="utf-8")
    return [out / "diagnosis.json", out / "diagnosis.md", *([picture] if picture else [])]
