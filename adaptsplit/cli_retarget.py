"""Commands on policies for more than one world: ``train-general`` and ``retarget``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptsplit.cli_base import Data, Json, Out, ScenarioName, Seed, emit
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import load_scenario

if TYPE_CHECKING:
    from adaptsplit.agents.training import TrainResult

Texts = list[str] | None


def retarget(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that was trained with --condition.")],
    out: Out,
    scenario: Annotated[
        str | None, typer.Option("--scenario", help="Take this scenario's objective (default: that of training).")
    ] = None,
    settings: Annotated[
        Texts, typer.Option("--set", metavar="WEIGHT=VALUE", help="Replace one weight; may be repeated.")
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Fix the weights of a policy that was conditioned on its objective: OUT gets a plain policy for them.

    Nothing is trained: the weights are constants of the first layer. Example: adaptsplit retarget RUN --set
    energy_per_j=0.5 --out RUN2
    """
    from adaptsplit.agents.conditioned import CONDITIONED_FILE, load_conditioned
    from adaptsplit.agents.conditioned import retarget as write

    loaded = None if scenario is None else load_scenario(scenario, data)
    if loaded is not None and load_conditioned(run / CONDITIONED_FILE).space != loaded.space:
        raise ConfigError(
            f"{run}: trained for another decision space than scenario {loaded.name!r}; train it on that one"
        )
    objective = write(run, out, None if loaded is None else loaded.objective, numbers(settings or ()))
    weights = objective.model_dump(exclude={"family"})
    if as_json:
        emit({"run": str(out), "objective": weights})
        return
    typer.echo(f"policy for {', '.join(f'{key} {value:g}' for key, value in weights.items())}: {out}")


def train_general(
    scenario: ScenarioName,
    out: Out,
    agent: Annotated[str, typer.Option("--agent", help="As for train.")] = "ppo",
    randomise: Annotated[
        str | None, typer.Option("--randomise", help="YAML of ranges, or 'default': train in variants of the scenario.")
    ] = None,
    conditions: Annotated[
        Texts,
        typer.Option("--condition", metavar="WEIGHT=LOW:HIGH", help="Make a weight an input ('default': two of them)."),
    ] = None,
    budgets: Annotated[
        Texts,
        typer.Option("--budget", metavar="COST=BOUND", help="Most quality under a mean cost; may be repeated."),
    ] = None,
    worlds: Annotated[int, typer.Option("--worlds", min=1, help="Variants, or weight vectors at a time.")] = 16,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Frames over all devices.")] = None,
    envs: Annotated[int | None, typer.Option("--envs", min=1, help="Parallel devices.")] = None,
    seed: Seed = 0,
    data: Data = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Torch threads.")] = 1,
    as_json: Json = False,
) -> None:
    """Train one policy for many worlds (--randomise), for many objectives (--condition), or under budgets (--budget).

    --randomise and --condition go together. Costs: energy_j_per_frame, bytes_per_frame, miss_ratio, latency_s.
    """
    from adaptsplit.agents.conditioned_train import train_conditioned
    from adaptsplit.agents.general import train_randomised
    from adaptsplit.agents.randomise import variants

    loaded = load_scenario(scenario, data)
    common: dict[str, Any] = {"steps": steps, "envs": envs, "seed": seed, "threads": threads, "progress": not as_json}
    if budgets and (conditions or randomise):
        raise ConfigError("--budget stands alone; leave out --condition and --randomise")
    if budgets:
        _constrained(loaded, agent, out, budgets, common, as_json)
    elif conditions:
        made = worlds if randomise is None else variants(loaded, _ranges(randomise), worlds, seed)
        _report(train_conditioned(loaded, agent, out, _conditions(conditions), made, **common), as_json, {})
    elif randomise:
        _report(train_randomised(loaded, _ranges(randomise), agent, out, worlds, **common), as_json, {})
    else:
        raise ConfigError("nothing to generalise over: give --randomise, --condition or --budget (else: train)")


def numbers(settings: Texts | tuple[str, ...]) -> dict[str, float]:
    """Read ``NAME=NUMBER`` texts; ConfigError for anything else."""
    found = {}
    for text in settings or ():
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError as error:
            raise ConfigError(f"{text!r}: expected NAME=NUMBER, such as energy_per_j=0.5") from error
    return found


def _constrained(loaded: Any, agent: str, out: Path, texts: list[str], common: dict[str, Any], as_json: bool) -> None:
    from adaptsplit.agents.budgets import Budgets
    from adaptsplit.agents.lagrange import train_constrained
    from adaptsplit.config import parse

    budgets = parse(Budgets, numbers(texts), "--budget")
    result, verdict = train_constrained(loaded, budgets, agent, out, **common)
    _report(result, as_json, {"kept": verdict.kept, "budgets": verdict.message})


def _conditions(texts: list[str]) -> Any:
    from adaptsplit.agents.conditions import DEFAULT_CONDITIONS, parse_condition

    return DEFAULT_CONDITIONS if texts == ["default"] else [parse_condition(text) for text in texts]


def _ranges(name: str) -> Any:
    from adaptsplit.agents.randomise import Randomisation, load_randomisation

    return Randomisation() if name == "default" else load_randomisation(Path(name))


def _report(result: TrainResult, as_json: bool, more: dict[str, Any]) -> None:
    document = {
        "run": str(result.folder),
        "agent": result.agent,
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "validation": result.best.reward,
        "warnings": list(result.warnings),
        **more,
    }
    if as_json:
        emit(document)
        return
    typer.echo("\n".join(f"{key}: {value}" for key, value in document.items()))
