"""Commands that make things: model, profile, policy, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from adaptsplit.cli_base import Data, Frames, Json, Out, ScenarioName, Seed, Split, emit, today
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import SPLITS, data_directory, load_scenario

if TYPE_CHECKING:
    from adaptsplit.agents.hyperparameters import Parameters
    from adaptsplit.agents.policy import PolicyNet
    from adaptsplit.agents.published_learned import Trained
    from adaptsplit.scenario import Scenario


def fit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Shipped recipe or YAML file; docs/recipes.md.")],
    frames: Frames,
    out: Out,
    data: Data = None,
    seed: Seed = 0,
    threads: Annotated[int | None, typer.Option("--threads", help="Torch threads (default: all cores).")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events to OUT/tensorboard.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Export 8-bit graphs beside the float ones.")] = False,
    as_json: Json = False,
) -> None:
    """Train a split model with early exits from scratch, calibrate it and export it to ONNX (resumes if cut off).

    \b
    Recipes:
      reference: what the shipped model was trained with; smoke: a tiny model and a few steps.
      ce, kd, reconstruction, hnd, ghnd, staged: how the bottlenecks learn.
      exits-joint, exits-separate, exits-distilled: how the exits learn.
      qat: noise of quantisation; entropic: a learned entropy model on every bottleneck.
    """
    from adaptsplit.models.fit import fit as fit_model

    result = fit_model(
        recipe,
        frames,
        out,
        seed=seed,
        data=data_directory(data),
        progress=not as_json,
        threads=threads,
        tensorboard=tensorboard,
        int8=int8,
    )
    document = {
        "model": str(result.folder),
        "accuracy": result.accuracy,
        "ece_before": result.ece_before,
        "ece_after": result.ece_after,
    }
    if as_json:
        emit(document)
        return
    typer.echo(f"model: {result.folder}\n{'answer':<16}{'accuracy':>9}{'ECE before':>12}{'after':>8}")
    for name, value in result.accuracy.items():
        before, after = result.ece_before.get(name, 0.0), result.ece_after.get(name, 0.0)
        typer.echo(f"{name:<16}{value:>9.3f}{before:>12.3f}{after:>8.3f}")


def profile(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, from `adaptsplit fit` or `split`.")],
    frames: Frames,
    out: Out,
    data: Data = None,
    splits: Annotated[str, typer.Option("--splits", help="Which splits to measure.")] = ",".join(SPLITS),
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many frames of each split.")] = None,
    codecs: Annotated[
        str | None,
        typer.Option("--codecs", help="Rates of split branches, strongest first; 'prior': the branch's learned ones."),
    ] = None,
    image_codecs: Annotated[
        str | None, typer.Option("--image-codecs", help="Rates of offload, strongest first.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes.")] = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure the exported model and the real codecs on a frame source: the table that the simulator replays.

    Branches are those of the model, offload and local. Without --codecs a branch is measured with the codecs of its
    learned entropy model if it has one, else with q2c-zstd, q3c-zstd, q4c-zstd and q6c-zstd.
    """
    from adaptsplit.frames import open_frames
    from adaptsplit.profiles import FrameSpec, folder_branches, measure, progress_bar
    from adaptsplit.runtime import ModelFolder

    rates, images = _listed(codecs, "--codecs"), _listed(image_codecs, "--image-codecs")
    branches = folder_branches(ModelFolder.open(model), rates, images)
    described = {}
    for split in splits.split(","):
        source = open_frames(frames, split=split, seed=seed, data=data_directory(data))
        chosen = None if limit is None else list(range(min(limit, len(source))))
        with progress_bar(f"profiling {split}", quiet=as_json) as progress:
            spec = FrameSpec(frames, split, seed=seed, data=data_directory(data))
            measured = measure(model, spec, branches, frames=chosen, workers=workers, date=today(), progress=progress)
        measured.save(out)
        described[split] = measured.describe()
    if as_json:
        emit({"profile": str(out), "splits": list(described)})
    else:
        for split, text in described.items():
            typer.echo(f"\n{split}\n{text}")


def _listed(text: str | None, option: str) -> tuple[str, ...]:
    """Return comma-separated names; none where the option was not given."""
    names = () if text is None else tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ConfigError(f"{option} {text!r}: expected names with commas between them; see docs/codecs.md")
    return names


def train(
    scenario: ScenarioName,
    out: Out,
    agent: Annotated[str, typer.Option("--agent", help="Which agent learns (listed above).")] = "ppo",
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Frames over all devices.")] = None,
    envs: Annotated[int | None, typer.Option("--envs", min=1, help="Parallel devices.")] = None,
    seed: Seed = 0,
    data: Data = None,
    params: Annotated[
        Path | None, typer.Option("--params", help="YAML of hyperparameters, in the form of the shipped file.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One hyperparameter (value in YAML); may be repeated."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", help="First weights: a RUN, or 'informed' (imitates that oracle)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write events to OUT/tensorboard.")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Torch threads.")] = 1,
    as_json: Json = False,
) -> None:
    """Train a policy; the one that is best on the validation split is kept.

    Ctrl-C keeps what was trained; the same command with --resume goes on. A run that was killed loses at most the time
    since its last validation. A resumed run keeps its seed and, but for --params and --set, its hyperparameters.

    \b
    Agents:
      ppo: Proximal policy optimisation (Schulman et al., 2017).
      dqn: Deep Q-learning (Mnih et al., 2015).
      a2c: Advantage actor-critic, synchronous (Mnih et al., 2016).
      qr-dqn: Deep Q-learning of quantiles of the return (Dabney et al., 2018).
      maskable-ppo: PPO over the full grid of decisions, duplicates masked (Huang and Ontanon, 2022).
      recurrent-ppo: PPO with an LSTM before the actor: it remembers what estimates forget.
      navisplit-style: The gate of NaviSplit: TD3 chooses the branch over a frozen policy (no --params, --resume).
      edgerl-style: EdgeRL's A2C on its own reward (no --params, --resume).
    """
    from adaptsplit.agents.hyperparameters import load_parameters, override
    from adaptsplit.agents.published_learned import METHODS, method
    from adaptsplit.agents.training import Hooks, own_parameters
    from adaptsplit.agents.training import train as train_agent

    loaded = load_scenario(scenario, data)
    if agent in METHODS:
        if params or settings or start or resume or tensorboard or envs:
            raise ConfigError(f"agent {agent!r} takes --steps and --seed only; leave the other options out")
        _told(method(agent)(loaded, out, steps, seed, not as_json), agent, out, as_json)
        return
    base = own_parameters(agent, out) if resume and params is None else load_parameters(agent, params)
    chosen = override(base, settings or ())
    first = None if start is None or resume else _first_weights(start, loaded, chosen, seed)
    try:
        result = train_agent(
            loaded,
            agent,
            out,
            steps,
            envs,
            seed,
            progress=not as_json,
            resume=resume,
            parameters=chosen,
            tensorboard=out / "tensorboard" if tensorboard else None,
            threads=threads,
            hooks=Hooks(start=first),
        )
    except KeyboardInterrupt as stopped:
        typer.echo(str(stopped) or "interrupted", err=True)
        raise typer.Exit(130) from None
    _told(result, agent, out, as_json)


def _told(result: Trained, agent: str, out: Path, as_json: bool) -> None:
    document = {
        "run": str(out),
        "agent": agent,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "validation_reward": result.best.reward,
        "warnings": list(result.warnings),
    }
    if as_json:
        emit(document)
    else:
        typer.echo(
            f"{agent}: {result.steps} steps in {result.seconds:.0f} s, best validation reward "
            f"{result.best.reward:.4f}; run folder {out}"
        )


def _first_weights(start: str, scenario: Scenario, parameters: Parameters, seed: int) -> PolicyNet:
    """Return the weights that training starts from: an imitation of the informed oracle, or a run's."""
    from adaptsplit.agents.imitation import imitate
    from adaptsplit.agents.policy import PolicyController, load_policy

    if start == "informed":
        return imitate(scenario, parameters, seed)
    policy = load_policy(Path(start) / "policy.npz")
    if not isinstance(policy, PolicyController):
        raise ConfigError(f"{start}: no plain network; start from a run of the same agent, or from 'informed'")
    return policy.net


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
