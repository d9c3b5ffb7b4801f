"""Commands that train at scale: search hyperparameters, sweep a grid."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adaptsplit.agents.progress import Bars
from adaptsplit.cli_base import Data, Json, Out, ScenarioName, Seed, emit
from adaptsplit.errors import ConfigError, RunError
from adaptsplit.scenario import load_scenario

if TYPE_CHECKING:
    from adaptsplit.agents.sweep import Executor, SweepResult
    from adaptsplit.agents.sweep_plan import Sweep
    from adaptsplit.agents.tune import Tuner


class ObjectiveName(StrEnum):
    """What a trial is worth."""

    best = "best"
    last = "last"


class PrunerName(StrEnum):
    """Which rule ends trials that lag."""

    median = "median"
    hyperband = "hyperband"
    none = "none"


def tune(
    scenario: ScenarioName,
    out: Out,
    agent: Annotated[str, typer.Option("--agent", help="Which agent (see adaptsplit train --help).")] = "ppo",
    trials: Annotated[int, typer.Option("--trials", min=1, help="In all, failed and pruned ones included.")] = 30,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Frames per training (default: the agent's own).")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings per trial, from --seed on.")] = 2,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=1, help="Seconds after which no further trial starts.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Trials at once, one processor each.")] = 1,
    objective: Annotated[
        ObjectiveName, typer.Option("--objective", help="Best validation, or interquartile mean of the last 3.")
    ] = ObjectiveName.best,
    pruner: Annotated[
        PrunerName, typer.Option("--pruner", help="Ends trials that lag at the same validation.")
    ] = PrunerName.median,
    space: Annotated[
        Path | None, typer.Option("--space", help="Search space, in the form of the shipped search.yaml.")
    ] = None,
    seed: Seed = 0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Search an agent's hyperparameters, judged on the validation split only.

    Trial 0 is the shipped values. The same command goes on with a study that was interrupted. Writes OUT/best.yaml for
    `adaptsplit train --params`, OUT/tuning.json and OUT/tuning.png.
    """
    from adaptsplit.agents.tune import TuneOptions
    from adaptsplit.agents.tune import tune as search
    from adaptsplit.agents.tune_report import document

    options = TuneOptions(trials, steps, seeds, timeout, jobs, seed, objective.value, pruner.value, space)
    loaded = load_scenario(scenario, data)
    with _TuneProgress(trials, quiet=as_json) as watch:
        tuner = search(loaded, agent, out, options, watch)
    if as_json:
        emit(document(tuner))
    else:
        _print_tuning(tuner)


def _print_tuning(tuner: Tuner) -> None:
    from adaptsplit.agents.tune_report import best_trial, importance_table, importances, shipped_value, tuning_table

    console = Console()
    console.print(tuning_table(tuner))
    found = importances(tuner)
    if found:
        console.print(importance_table(found))
    best, shipped = best_trial(tuner), shipped_value(tuner)
    than = "" if shipped is None else f" (shipped values: {shipped:.4f})"
    text = f"best: trial {best.number}, validation reward {best.value:.4f}{than}; {tuner.out / 'best.yaml'}"
    console.print(text, markup=False, highlight=False)


class _TuneProgress(Bars):
    """One bar over the trials, with the best value so far, on standard error; silent when ``quiet``."""

    def __init__(self, trials: int, quiet: bool) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, *times, console=Console(stderr=True), disable=quiet)
        self._task = self._bars.add_task("tune", total=trials, note="")
        self._ends = {"known": 0, "done": 0, "pruned": 0, "failed": 0}
        self._best: float | None = None

    def __call__(self, what: str, trial: int, value: float | None) -> None:
        """Show what happened to a trial."""
        if what in self._ends:
            self._ends[what] += trial if what == "known" else 1
        if what == "done" and value is not None:
            self._best = value if self._best is None else max(self._best, value)
        best = "-" if self._best is None else f"{self._best:.4f}"
        now = "" if value is None else f"; trial {trial}: {value:.4f}"
        note = f"best {best}, {self._ends['pruned']} pruned, {self._ends['failed']} failed{now}"
        self._bars.update(self._task, completed=sum(self._ends.values()), note=note)


def sweep(
    out: Out,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Sweep file (YAML); or --scenarios and --agents.")
    ] = None,
    scenarios: Annotated[str | None, typer.Option("--scenarios", help="Comma-separated names or YAML files.")] = None,
    agents: Annotated[str | None, typer.Option("--agents", help="Comma-separated agents.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Such as 0-4 or 0,1,7 (default 0-4).")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Frames per training (default: each agent's own).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Trials at once (default: one per processor).")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=1, help="Seconds after which a trial is ended as failed.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local.")
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Train again what has other hyperparameters.")] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Then evaluate the agents of each scenario, seeds pooled.")
    ] = False,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Episodes of the evaluation.")] = 100,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Train a grid of scenarios x agents x seeds, on this machine or on a Ray cluster.

    Each trial leaves a run folder OUT/SCENARIO/AGENT/SEED and a log beside it. The same command again trains only what
    is missing; a trial that was cut off goes on from its checkpoint. Failed trials are listed at the end (exit code 1).
    """
    from adaptsplit.agents.sweep import run_sweep
    from adaptsplit.agents.sweep_table import SweepProgress

    planned = _plan(file, scenarios, agents, seeds, steps, out, data)
    executor = _executor(address, workers, timeout)
    with SweepProgress(planned.trials, shown=not as_json) as progress:
        result = run_sweep(planned, executor, anew=anew, watch=progress)
    if evaluate:
        _evaluate(planned, result, episodes, quiet=as_json)
    _report(result, as_json)


def _plan(
    file: Path | None,
    scenarios: str | None,
    agents: str | None,
    seeds: str | None,
    steps: int | None,
    out: Path,
    data: Path | None,
) -> Sweep:
    from adaptsplit.agents.sweep_plan import SweepFile, plan, read_sweep
    from adaptsplit.config import parse

    if (file is None) != (scenarios is not None and agents is not None) or (file is not None and (scenarios or agents)):
        raise ConfigError("name a sweep FILE, or both --scenarios and --agents")
    given: dict[str, Any] = {key: value for key, value in (("seeds", seeds), ("steps", steps)) if value is not None}
    if file is not None:
        read = read_sweep(file)
        return plan(read.model_copy(update=given), out, base=file.parent, data=data)
    assert scenarios is not None
    assert agents is not None
    lists = {"scenarios": _names(scenarios), "agents": {name: {} for name in _names(agents)}}
    return plan(parse(SweepFile, lists | given, "sweep"), out, data=data)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _executor(address: str | None, workers: int | None, timeout: float | None) -> Executor:
    """Return what runs the trials: processes of this machine, or a Ray cluster."""
    from adaptsplit.agents.sweep import local

    if address is None:
        return local(workers or os.cpu_count() or 1, timeout)
    from adaptsplit.agents.sweep_ray import connect, run_ray

    ray = connect(address)
    return lambda trials: run_ray(ray, trials, workers, timeout)


def _evaluate(planned: Sweep, result: SweepResult, episodes: int, quiet: bool) -> None:
    """Evaluate every scenario's agents together; into ``OUT/evaluation/SCENARIO``."""
    from adaptsplit.agents.sweep import agent_folders
    from adaptsplit.evaluation.entrants import DEFAULT_AGENTS
    from adaptsplit.evaluation.evaluate import evaluate
    from adaptsplit.evaluation.progress import stage_progress

    for name, scenario in planned.scenarios.items():
        folders, left_out = agent_folders(planned, result, name)
        if left_out:
            typer.echo(f"{name}: not evaluated, since a trial is unfinished: {', '.join(left_out)}", err=True)
        if folders:
            place = planned.out / "evaluation" / name
            with stage_progress(quiet=quiet) as report:
                evaluate(scenario, [*DEFAULT_AGENTS, *folders], episodes=episodes, out=place, progress=report)
            if not quiet:
                typer.echo(f"{name}: {place / 'report.html'}")


def _report(result: SweepResult, as_json: bool) -> None:
    """Print the table and the failures; RunError when there is one."""
    from dataclasses import asdict

    from adaptsplit.agents.sweep_table import rows, sweep_table

    if as_json:
        emit(result.to_dict() | {"table": [asdict(row) for row in rows(result)]})
    else:
        Console().print(sweep_table(result))
    if result.failed:
        lines = [f"  {t.scenario}/{t.agent}/{t.seed}: {t.error}; log: {t.log}" for t in result.failed]
        found = f"{len(result.failed)} of {len(result.trials)} trials failed; the same command tries them again:"
        raise RunError("\n".join([found, *lines]))
