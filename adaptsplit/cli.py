"""The command line: ``adaptsplit COMMAND --help`` teaches each step.

Exit codes: 0 done, 1 failed while running, 2 bad usage or bad input. With ``--json`` a command prints one JSON document
on standard output; progress and messages go to standard error.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from adaptsplit.errors import AdaptsplitError, ConfigError, MissingExtraError
from adaptsplit.scenario import SPLITS, data_directory, load_scenario, scenario_names

app = typer.Typer(
    name="adaptsplit",
    help="Adaptive control of split neural networks at the edge: train, evaluate and run the policy that chooses head "
    "branch, compression rate and exit threshold per frame. Start with: adaptsplit demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
scenarios_app = typer.Typer(help="Shipped scenarios: list them, show one.", no_args_is_help=True)
links_app = typer.Typer(help="Link traces: describe recordings.", no_args_is_help=True)
app.add_typer(scenarios_app, name="scenarios")
app.add_typer(links_app, name="links")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Data = Annotated[Path | None, typer.Option("--data", help="Directory of recorded data (also: ADAPTSPLIT_DATA).")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed; the same seed gives the same result.")]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
ScenarioName = Annotated[str, typer.Argument(metavar="SCENARIO", help="Shipped name or YAML file.")]
Broker = Annotated[str, typer.Option("--broker", help="Broker, mqtt://HOST:PORT.")]
Frames = Annotated[str, typer.Option("--frames", help="Frame source: flight, tiles:PATH or folder:PATH.")]

_err = Console(stderr=True)


class Pace(StrEnum):
    """How a device paces its stages."""

    profile = "profile"
    native = "native"


class Split(StrEnum):
    """The splits that a policy can be evaluated on."""

    train = "train"
    validation = "validation"
    test = "test"


def main() -> None:
    """Entry point: errors of ours become one line and an exit code, never a traceback."""
    try:
        app(standalone_mode=True)
    except AdaptsplitError as error:
        _err.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        missing = MissingExtraError(str(error.name), "train" if error.name != "matplotlib" else "report")
        _err.print(f"error: {missing}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(missing.exit_code)
    except KeyboardInterrupt:
        _err.print("interrupted")
        sys.exit(130)


def _emit(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, allow_nan=False, default=str))


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


@app.command()
def demo(
    out: Out = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="A shorter run: less training, fewer episodes.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Profile, train, evaluate and fly the embedded world, end to end, with nothing to configure."""
    from adaptsplit.demo import run_demo

    result = run_demo(out, quick=quick, seed=seed, quiet=as_json)
    if as_json:
        _emit(result)


@scenarios_app.command("list")
def scenarios_list(as_json: Json = False) -> None:
    """List the shipped scenarios."""
    found = [{"name": name, "description": load_scenario(name).description} for name in scenario_names()]
    if as_json:
        _emit(found)
        return
    for item in found:
        typer.echo(f"{item['name']:<20} {item['description']}")


@scenarios_app.command("show")
def scenarios_show(name: ScenarioName, data: Data = None, as_json: Json = False) -> None:
    """Show one scenario: every value that an experiment on it depends on."""
    import yaml

    document = load_scenario(name, data).file.model_dump(mode="json", exclude_none=True)
    if as_json:
        _emit(document)
    else:
        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


@links_app.command("describe")
def links_describe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings; the format is recognised.")],
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a picture (SVG or PNG) as well.")] = None,
    as_json: Json = False,
) -> None:
    """Print statistics of link recordings (Mahimahi, timestamped CSV, Starlink-on-the-Autobahn)."""
    from adaptsplit import links

    document = links.describe(files)
    if plot is not None:
        links.plot([trace for file in files for trace in links.read_links(file)], plot)
    if as_json:
        _emit(document)
    else:
        typer.echo(links.format_description(document))


@app.command()
def fit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Shipped recipe (reference, smoke) or YAML file.")],
    frames: Frames,
    out: Out,
    data: Data = None,
    seed: Seed = 0,
    threads: Annotated[int | None, typer.Option("--threads", help="Torch threads (default: all cores).")] = None,
    as_json: Json = False,
) -> None:
    """Train a split model with early exits from scratch, calibrate it and export it to ONNX (resumes if cut off)."""
    from adaptsplit.models.fit import fit as fit_model

    result = fit_model(recipe, frames, out, seed=seed, data=data_directory(data), progress=not as_json, threads=threads)
    document = {
        "model": str(result.folder),
        "accuracy": result.accuracy,
        "ece_before": result.ece_before,
        "ece_after": result.ece_after,
    }
    if as_json:
        _emit(document)
        return
    typer.echo(f"model: {result.folder}\n{'answer':<16}{'accuracy':>9}{'ECE before':>12}{'after':>8}")
    for name, value in result.accuracy.items():
        before, after = result.ece_before.get(name, 0.0), result.ece_after.get(name, 0.0)
        typer.echo(f"{name:<16}{value:>9.3f}{before:>12.3f}{after:>8.3f}")


@app.command()
def profile(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, from `adaptsplit fit`.")],
    frames: Frames,
    out: Out,
    data: Data = None,
    splits: Annotated[str, typer.Option("--splits", help="Which splits to measure.")] = ",".join(SPLITS),
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many frames of each split.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the exported model and the real codecs on a frame source: the table that the simulator replays."""
    from adaptsplit.frames import open_frames
    from adaptsplit.profiles import FrameSpec, measure, progress_bar, reference_branches

    described = {}
    for split in splits.split(","):
        source = open_frames(frames, split=split, seed=seed, data=data_directory(data))
        chosen = None if limit is None else list(range(min(limit, len(source))))
        with progress_bar(f"profiling {split}", quiet=as_json) as progress:
            spec = FrameSpec(frames, split, seed=seed, data=data_directory(data))
            measured = measure(
                model, spec, reference_branches(), frames=chosen, workers=workers, date=_today(), progress=progress
            )
        measured.save(out)
        described[split] = measured.describe()
    if as_json:
        _emit({"profile": str(out), "splits": list(described)})
    else:
        for split, text in described.items():
            typer.echo(f"\n{split}\n{text}")


@app.command()
def train(
    scenario: ScenarioName,
    out: Out,
    agent: Annotated[str, typer.Option("--agent", help="ppo or dqn.")] = "ppo",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Frames over all devices.")] = None,
    envs: Annotated[int | None, typer.Option("--envs", min=1, help="Parallel devices.")] = None,
    seed: Seed = 0,
    data: Data = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Torch threads.")] = 1,
    as_json: Json = False,
) -> None:
    """Train a policy; the one that is best on the validation split is kept."""
    from adaptsplit.agents.training import train as train_agent

    loaded = load_scenario(scenario, data)
    result = train_agent(loaded, agent, out, steps, envs, seed, progress=not as_json, resume=resume, threads=threads)
    document = {
        "run": str(out),
        "agent": agent,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "validation_reward": result.best.reward,
        "warnings": list(result.warnings),
    }
    if as_json:
        _emit(document)
    else:
        typer.echo(
            f"{agent}: {result.steps} steps in {result.seconds:.0f} s, best validation reward "
            f"{result.best.reward:.4f}; run folder {out}"
        )


@app.command()
def evaluate(
    scenario: ScenarioName,
    out: Out,
    agents: Annotated[
        str | None, typer.Option("--agents", help="Comma-separated: static, random, threshold, ..., oracle-*, RUN.")
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Episodes; common to all controllers.")] = 100,
    split: Annotated[Split, typer.Option("--split", help="Which split.")] = Split.test,
    seed: Seed = 0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Compare controllers with every static decision and the oracles; writes results.json and report.html."""
    from adaptsplit.evaluation.console import console_table
    from adaptsplit.evaluation.entrants import DEFAULT_AGENTS
    from adaptsplit.evaluation.evaluate import evaluate as run_evaluation
    from adaptsplit.evaluation.headline import headline
    from adaptsplit.evaluation.progress import stage_progress

    chosen = DEFAULT_AGENTS if agents is None else tuple(name.strip() for name in agents.split(",") if name.strip())
    loaded = load_scenario(scenario, data)
    with stage_progress(quiet=as_json) as report:
        results = run_evaluation(
            loaded, chosen, episodes=episodes, seed=seed, split=split.value, out=out, progress=report
        )
    if as_json:
        typer.echo(results.document.to_json())
        return
    console = Console()
    console.print(console_table(results.document, width=console.width))
    console.print(headline(results.document), markup=False, highlight=False)
    console.print(f"report: {out / 'report.html'}", markup=False, highlight=False)


@app.command()
def export(
    controller: Annotated[str, typer.Argument(metavar="RUN|AGENT", help="Run folder, or an agent's name.")],
    scenario: Annotated[str, typer.Option("--scenario", help="The scenario that it is for.")],
    out: Out,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a bundle: policy or rule, profile summary, networks and manifest with hashes; what a device runs."""
    from adaptsplit.bundle import export_bundle

    bundle = export_bundle(controller, load_scenario(scenario, data), out)
    if as_json:
        _emit({"bundle": str(out), "controller": bundle.controller.name})
    else:
        typer.echo(f"bundle {out}: controller {bundle.controller.name}, {len(bundle.space.table)} decisions")


@app.command()
def fly(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, from `adaptsplit export`.")],
    scenario: Annotated[str, typer.Option("--scenario", help="The scenario that it was made for.")],
    out: Out,
    against: Annotated[str, typer.Option("--against", help="AGENT[,AGENT...] that takes turns with it.")] = "deadline",
    split: Annotated[Split, typer.Option("--split", help="Whose frames and links.")] = Split.test,
    link: Annotated[int | None, typer.Option("--link", min=0, help="Which trace (default: a typical one).")] = None,
    offset_s: Annotated[float, typer.Option("--offset", min=0, help="Where in the trace to begin, s.")] = 0.0,
    block: Annotated[int, typer.Option("--block", min=1, help="Frames of one controller's block.")] = 25,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Fly one episode with broker, edge and device behind a shaped link, and hold it against the simulator."""
    from dataclasses import replace

    from adaptsplit.bundle import load_bundle
    from adaptsplit.evaluation.console import live_table
    from adaptsplit.evaluation.fidelity import compare_flight, typical_stretch

    loaded = load_scenario(scenario, data)
    stretch = replace(typical_stretch(loaded, split.value), offset_s=offset_s)
    traces = loaded.links(split.value)
    if link is not None and link >= len(traces):
        raise ConfigError(f"--link {link}: split {split.value!r} has traces 0 to {len(traces) - 1}")
    if link is not None:
        stretch = replace(stretch, link=link)
    names = ("bundle", *(name.strip() for name in against.split(",")))
    comparison = compare_flight(load_bundle(bundle), loaded, split.value, stretch, names, block=block, out=out)
    if as_json:
        rows = [(row.controller, row.column.name, row.simulated, row.live) for row in comparison.rows]
        keys = ("controller", "metric", "simulated", "live")
        _emit([dict(zip(keys, (None if value != value else value for value in row), strict=True)) for row in rows])
    else:
        Console().print(live_table(comparison))


@app.command()
def broker(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="TCP port on the loopback interface.")] = 1883,
    backend: Annotated[str, typer.Option("--backend", help="auto, mosquitto or amqtt.")] = "auto",
) -> None:
    """Run an MQTT broker on the loopback interface (Mosquitto if installed, else the embedded one): desks and CI."""
    from adaptsplit.device_bridge.broker import serve

    serve(port, backend)


@app.command()
def edge(
    bundle: Annotated[Path, typer.Option("--bundle", help="Bundle folder.")],
    broker: Broker = "mqtt://127.0.0.1:1883",
    fleet: Annotated[str, typer.Option("--fleet", help="Fleet name.")] = "default",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the networks.")] = 1,
) -> None:
    """Run the edge server: receives features, runs the tail, answers, until it is interrupted."""
    from adaptsplit.device_bridge.edge import serve

    typer.echo(json.dumps(serve(bundle, broker, fleet, threads=threads)))


@app.command()
def device(
    bundle: Annotated[Path, typer.Option("--bundle", help="Bundle folder.")],
    frames: Frames = "flight",
    broker: Broker = "mqtt://127.0.0.1:1883",
    identity: Annotated[str, typer.Option("--id", help="Name of this device.")] = "device-1",
    fleet: Annotated[str, typer.Option("--fleet", help="Fleet name.")] = "default",
    controller: Annotated[
        str, typer.Option("--controller", help="AGENT[,AGENT...]; several run in blocks.")
    ] = "bundle",
    pace: Annotated[
        Pace, typer.Option("--pace", help="Sleep each stage up to its modelled time, or not.")
    ] = Pace.profile,
    split: Annotated[str, typer.Option("--split", help="Split of the frame source.")] = "test",
    count: Annotated[int, typer.Option("--count", min=1, help="Frames.")] = 300,
    first: Annotated[int, typer.Option("--first", min=0, help="Index of the first frame.")] = 0,
    block: Annotated[int, typer.Option("--block", min=1, help="Frames of one controller's block.")] = 50,
    log: Annotated[Path | None, typer.Option("--log", help="Live log (JSON lines), one line per frame.")] = None,
    data: Data = None,
    seed: Seed = 0,
) -> None:
    """Run a device: camera, decision, head, exit, codec and sender, with its own answer when the link fails."""
    from adaptsplit.bundle import load_bundle
    from adaptsplit.device_bridge.device import DeviceOptions, run_device

    options = DeviceOptions(broker=broker, fleet=fleet, device=identity, pace=pace.value, seed=seed, log=log)
    summary, _ = run_device(
        load_bundle(bundle),
        frames,
        [name.strip() for name in controller.split(",")],
        options,
        split=split,
        data=data_directory(data),
        first=first,
        count=count,
        block=block,
    )
    typer.echo(json.dumps(summary))


if __name__ == "__main__":
    main()
