"""``adaptsplit demo``: the whole of what the library is for, on embedded defaults.

Profile 200 frames anew and check them against the shipped profile; train PPO and DQN; compare them with every static
decision, the rules and the oracles; export the better one and fly it over MQTT beside the best static decision.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from adaptsplit.agents.training import TrainResult, train
from adaptsplit.bundle import export_bundle
from adaptsplit.errors import RunError
from adaptsplit.evaluation.analysis import Results
from adaptsplit.evaluation.console import console_table, live_table
from adaptsplit.evaluation.entrants import DEFAULT_AGENTS
from adaptsplit.evaluation.evaluate import evaluate
from adaptsplit.evaluation.fidelity import compare_flight, typical_stretch, where
from adaptsplit.evaluation.headline import headline
from adaptsplit.evaluation.live import LiveComparison
from adaptsplit.evaluation.progress import stage_progress
from adaptsplit.evaluation.report import write_report
from adaptsplit.guard_range import range_for_export
from adaptsplit.profiles import FrameSpec, compare, measure, progress_bar
from adaptsplit.scenario import Scenario, load_scenario

SCENARIO = "flight-lte"
AGENTS = ("ppo", "dqn")


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything a run does. ``steps`` None: what ``hyperparameters.yaml`` says."""

    frames: int
    steps: int | None
    episodes: int
    block: int


FULL = Size(frames=200, steps=None, episodes=60, block=25)
QUICK = Size(frames=40, steps=200_000, episodes=12, block=25)


def run_demo(out: Path, *, quick: bool = False, seed: int = 0, quiet: bool = False) -> dict[str, Any]:
    """Run every step, write ``out/report.html`` and ``out/results.json``; return the figures.

    RunError when the shipped profile does not hold on this machine.
    """
    size = QUICK if quick else FULL
    console = Console(stderr=quiet)
    started = time.monotonic()
    scenario = load_scenario(SCENARIO)
    console.print(f"[bold]adaptsplit demo[/bold]: {scenario.description}")
    _check_profile(scenario, size, console, quiet)
    runs = [_train(scenario, agent, out, size, seed, console, quiet) for agent in AGENTS]
    results = _evaluate(scenario, runs, out, size, seed, console, quiet)
    best = max(runs, key=lambda run: run.best.reward)
    comparison = _fly(scenario, best, results, out, size, console)
    write_report(results, out / "report.html", live=comparison)
    console.print(console_table(results.document, width=console.width))
    console.print(live_table(comparison))
    console.print(headline(results.document), markup=False, highlight=False)
    seconds = time.monotonic() - started
    console.print(f"done in {seconds:.0f} s; open {out / 'report.html'}", markup=False, highlight=False)
    return {"seconds": round(seconds, 1), "report": str(out / "report.html"), "results": str(out / "results.json")}


def _check_profile(scenario: Scenario, size: Size, console: Console, quiet: bool) -> None:
    """Measure some test frames anew, here and now, and hold them to the shipped profile."""
    console.rule("1  profile: the real model and codecs on this machine", align="left")
    shipped = scenario.profile("test")
    with progress_bar(f"profiling {size.frames} frames", quiet=quiet) as progress:
        spec = FrameSpec(scenario.frames, "test", seed=0, data=scenario.data)
        chosen = shipped.index[: size.frames].tolist()
        fresh = measure(scenario.model_path, spec, shipped.branches, frames=chosen, progress=progress)
    differences = compare(shipped, fresh)
    for difference in differences:
        console.print(f"  {difference}", markup=False, highlight=False)
    if not all(difference.ok for difference in differences):
        raise RunError(
            "the shipped profile does not hold on this machine (see above); measure your own: adaptsplit profile --help"
        )


def _train(
    scenario: Scenario, agent: str, out: Path, size: Size, seed: int, console: Console, quiet: bool
) -> TrainResult:
    console.rule(f"2  train {agent} in the simulator", align="left")
    folder = out / "runs" / agent
    _clear(folder)
    result = train(scenario, agent, folder, size.steps, seed=seed, progress=not quiet)
    rate = result.steps / result.seconds
    console.print(f"  {result.steps:,} frames in {result.seconds:.0f} s ({rate:,.0f}/s), ", end="")
    console.print(f"best validation reward {result.best.reward:.4f}")
    return result


def _evaluate(
    scenario: Scenario, runs: list[TrainResult], out: Path, size: Size, seed: int, console: Console, quiet: bool
) -> Results:
    console.rule("3  evaluate on traces and frames never seen in training", align="left")
    agents = [*DEFAULT_AGENTS, *(str(run.folder) for run in runs)]
    with stage_progress(quiet) as report:
        return evaluate(scenario, agents, episodes=size.episodes, seed=seed, out=out, progress=report)


def _fly(
    scenario: Scenario, best: TrainResult, results: Results, out: Path, size: Size, console: Console
) -> LiveComparison:
    """Export the better policy and run it and the best static decision live, in blocks, on the same link."""
    static = results.document.best_static.chosen_on_train
    console.rule(f"4  live over MQTT: {best.agent} and {static} in blocks", align="left")
    _clear(out / "bundle")
    trained = range_for_export(str(best.folder), scenario)
    bundle = export_bundle(str(best.folder), scenario, out / "bundle", trained=trained)
    stretch = typical_stretch(scenario, "test")
    console.print(f"  broker, edge and device as three processes; {where(scenario, 'test', stretch)}")
    return compare_flight(bundle, scenario, "test", stretch, ("bundle", static), block=size.block, out=out / "live")


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left; only ever a folder of the demo's own making."""
    if folder.is_dir() and any((folder / name).is_file() for name in ("run.json", "manifest.json")):
        shutil.rmtree(folder)
