"""The league: all controllers on all scenarios, with common random numbers, as one document.

``run_league`` trains what is missing (when asked), evaluates each scenario or reads what an equal evaluation left, and
puts ranks, scores, duels, anatomy, ablations and the NaviSplit headline together.
"""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adaptsplit.envs import episode_seeds
from adaptsplit.errors import ConfigError
from adaptsplit.evaluation import league_document as doc
from adaptsplit.evaluation import league_navibound as navibound
from adaptsplit.evaluation import league_navisplit as navisplit
from adaptsplit.evaluation import league_verdicts as verdicts
from adaptsplit.evaluation.analysis import estimate
from adaptsplit.evaluation.diagnose_catalog import missing, read_catalog
from adaptsplit.evaluation.diagnose_hash import scenario_hash
from adaptsplit.evaluation.evaluate import Progress
from adaptsplit.evaluation.league_ablation import evaluate_ablations
from adaptsplit.evaluation.league_contest import Kept, Plan, hold
from adaptsplit.evaluation.league_entrants import line_up
from adaptsplit.evaluation.league_rank import BEST_STATIC, INFORMED, INFORMED_0, TRAIN_STATIC, Contest
from adaptsplit.evaluation.league_train import Tell, Trainer, Training, train_ablations, train_missing
from adaptsplit.evaluation.results import Estimate
from adaptsplit.evaluation.statistics import Interval
from adaptsplit.scenario import Scenario

LEAGUE_FILE = "league.json"
MAX_EPISODES = 100_000


@dataclass(frozen=True, slots=True)
class Options:
    """What a league is made of.

    ``agents``: controllers that need no training (None: all). ``learned``: trained agents (None: all in ``runs``).
    ``training``: train what is missing. ``ablate``: scenarios on which ``ablated`` (None: each scenario's own learned
    agent) is taken apart, where such runs exist or may be trained. ``command`` is stated in the document.
    """

    out: Path
    runs: Path | None = None
    agents: tuple[str, ...] | None = None
    learned: tuple[str, ...] | None = None
    training: Training | None = None
    plan: Plan = field(default_factory=Plan)
    ablate: tuple[str, ...] = ()
    ablated: str | None = None
    command: str = "adaptsplit league"


Reporter = Callable[[str], Progress | None]


def run_league(
    scenarios: Sequence[Scenario],
    options: Options,
    *,
    tell: Tell = lambda _: None,
    report: Reporter = lambda _: None,
    trainer: Trainer | None = None,
) -> doc.League:
    """Hold the league and return its document.

    ``tell`` hears one line about each scenario, ``report(name)`` gives the progress of its evaluation, ``trainer``
    takes the place of ``agents.training.train``. Scenarios whose data or model is missing are skipped with the reason.
    ConfigError for options that cannot be used or when nothing can be played.
    """
    _check(scenarios, options)
    kept: list[Kept] = []
    skipped: list[doc.Skipped] = []
    failed: list[doc.Skipped] = []
    for scenario in scenarios:
        reason = missing(scenario)
        if reason is not None:
            skipped.append(doc.Skipped(name=scenario.name, reason=reason))
            tell(f"{scenario.name}: skipped: {reason}")
            continue
        if options.training is not None and options.runs is not None:
            failed += train_missing(scenario, options.runs, options.training, tell, trainer)
        players = line_up(scenario, options.agents, options.runs, options.learned)
        found = hold(scenario, players, options.plan, options.out / scenario.name, report(scenario.name))
        kept.append(replace(found, contest=replace(found.contest, pays=pays(found))))
        tell(f"{scenario.name}: {'unchanged' if found.reused else f'evaluated in {found.file.seconds:.0f} s'}")
    if not kept:
        raise ConfigError("league: no scenario can be played here; " + "; ".join(item.reason for item in skipped))
    bounds = _bounds(kept, options)
    ablations = [part for each in kept if (part := _ablation(each, options, tell, failed)) is not None]
    return assemble(kept, skipped, failed, ablations, bounds, options)


def _check(scenarios: Sequence[Scenario], options: Options) -> None:
    names = [scenario.name for scenario in scenarios]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"league: scenarios {names}; expected at least one, each once")
    if not 2 <= options.plan.episodes <= MAX_EPISODES or options.plan.seed < 0:
        raise ConfigError(f"league: {options.plan.episodes} episodes; expected 2 to {MAX_EPISODES}, and a seed >= 0")
    if options.training is not None and options.runs is None:
        raise ConfigError("league: --train needs a folder to put runs in; give --runs DIR")
    if unknown := sorted(set(options.ablate) - set(names)):
        raise ConfigError(f"league: ablations on {', '.join(unknown)}, which is not played; name it in --scenarios")


def diagnosis(scenario: Scenario) -> str | None:
    """Return what the shipped diagnosis says of adapting here; None for an unknown or changed scenario."""
    entry = read_catalog().entries.get(scenario.name)
    return None if entry is None or entry.scenario_hash != scenario_hash(scenario) else entry.pays


def pays(found: Kept) -> bool:
    """Whether adapting pays: informed(0) is above the best static decision here, and the diagnosis is not a no."""
    return found.contest.has_gap(INFORMED_0) and diagnosis(found.scenario) != "no"


def _ablation(each: Kept, options: Options, tell: Tell, failed: list[doc.Skipped]) -> doc.Ablation | None:
    agent = options.ablated or each.contest.learned
    if each.scenario.name not in options.ablate or agent is None or options.runs is None:
        return None
    if options.training is not None:
        at = each.contest.statics[BEST_STATIC]
        failed += train_ablations(each.scenario, at, agent, options.runs, options.training, tell)
    plan = options.plan
    seeds = episode_seeds(plan.seed, plan.episodes, plan.split)
    return evaluate_ablations(each.scenario, each.contest, agent, options.runs, seeds, plan.split, plan.seed)


def _bounds(kept: Sequence[Kept], options: Options) -> Sequence[doc.NaviBound]:
    """Ask how far bytes can fall at no loss of quality, where NaviSplit's headline is looked at."""
    for each in kept:
        if each.scenario.name == navisplit.SCENARIO:
            decision = navisplit.reference(each.contest.episodes)[1]
            return navibound.bounds(
                each.scenario, decision, options.plan, each.file.key, options.out / each.scenario.name
            )
    return ()


def assemble(
    kept: Sequence[Kept],
    skipped: Sequence[doc.Skipped],
    failed: Sequence[doc.Skipped],
    ablations: Sequence[doc.Ablation],
    bounds: Sequence[doc.NaviBound],
    options: Options,
) -> doc.League:
    """Compute every number of the document."""
    contests = [each.contest for each in kept]
    paying, others = ([c for c in contests if c.pays is wanted] for wanted in (True, False))
    found = tuple(duel for part in (paying, others) for kind in verdicts.RIVALS for duel in verdicts.duels(part, kind))
    standings = {doc.ALL: verdicts.standings(contests), **({doc.PAYS: verdicts.standings(paying)} if paying else {})}
    shown = featured(standings.get(doc.PAYS) or standings[doc.ALL])
    return doc.League(
        schema=doc.SCHEMA,
        version=importlib.metadata.version("adaptsplit"),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=options.command,
        split=options.plan.split,
        seed=options.plan.seed,
        episodes=options.plan.episodes,
        learned=tuple(dict.fromkeys(name for c in contests for name in c.groups if c.group(name) == "learned")),
        scenarios=tuple(entry_of(each) for each in kept),
        skipped=tuple(skipped),
        failed_runs=tuple(failed),
        headline=verdicts.headline(contests, found),
        standings=standings,
        duels=found,
        profiles=verdicts.profiles(paying or contests, shown),
        anatomy=tuple(each.file.anatomy for each in kept if each.file.anatomy is not None),
        ablations=tuple(ablations),
        navisplit=next((navisplit.compare(c, bounds) for c in contests if c.name == navisplit.SCENARIO), None),
    )


def featured(rows: Sequence[doc.Standing]) -> list[str]:
    """Return who is drawn where there is no room for all: static marks, best of each group, learned, informed(0)."""
    best = {group: next((row.controller for row in rows if row.group == group), None) for group in doc.GROUPS}
    learned = [row.controller for row in rows if row.group == "learned"]
    names = [BEST_STATIC, TRAIN_STATIC, best["rule"], best["published"], best["bandit"], *learned, INFORMED_0, INFORMED]
    known = {row.controller for row in rows}
    return list(dict.fromkeys(name for name in names if name is not None and name in known))


def entry_of(each: Kept) -> doc.ScenarioEntry:
    """Return one scenario's entry of the document."""
    contest = each.contest
    validation = {name: sum(values) / len(values) for name, values in each.file.validation.items()}
    return doc.ScenarioEntry(
        name=contest.name,
        description=each.scenario.description,
        diagnosis=diagnosis(each.scenario),  # type: ignore[arg-type]
        gap_0=_gap(contest, INFORMED_0),
        gap_inf=_gap(contest, INFORMED),
        pays=contest.pays,
        episodes=len(contest.episodes.recording),
        recordings=len(set(contest.episodes.recording.tolist())),
        roles=_roles(contest),
        validation=validation,
        cells={player: cell_of(contest, player) for player in contest.players},
        left_out=each.file.left_out,
    )


def _gap(contest: Contest, oracle: str) -> Estimate | None:
    return estimate(contest.difference(oracle)) if oracle in contest.groups else None


def _roles(contest: Contest) -> doc.Roles:
    return doc.Roles(
        best_static=contest.statics[BEST_STATIC],
        best_static_train=contest.statics[TRAIN_STATIC],
        published=verdicts.best_published(contest),
        bandit=verdicts.best_in_group(contest, "bandit"),
        rule=verdicts.best_in_group(contest, "rule"),
        learned=contest.learned,
    )


def cell_of(contest: Contest, player: str) -> doc.Cell:
    """Return one controller's numbers on one scenario."""
    scores = [contest.score(player, oracle) for oracle in (INFORMED_0, INFORMED)]
    score, score_inf = (_maybe(value) for value in scores)
    return doc.Cell(
        reward=contest.mean(player),
        difference=estimate(contest.difference(player)),
        score=score,
        score_inf=score_inf,
        quality=contest.mean(player, "quality"),
        bytes=contest.mean(player, "bytes"),
        energy_mj=contest.mean(player, "energy_mj"),
    )


def _maybe(value: Interval | None) -> Estimate | None:
    return None if value is None else estimate(value)
