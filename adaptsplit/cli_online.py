"""``adaptsplit learn``: what a flight's live logs teach a trained policy, without labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from adaptsplit.cli_base import Data, Json, Out, Seed, emit
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import load_scenario


def learn(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or online:KEY=VALUE/...:RUN.")],
    scenario: Annotated[str, typer.Option("--scenario", help="The scenario that it flew in.")],
    logs: Annotated[list[Path], typer.Option("--logs", help="Live log with observations; may be repeated.")],
    out: Out,
    data: Data = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Learn from live logs: the policy with an online learner that starts with what the logs teach (a run folder)."""
    from adaptsplit.agents.online_run import learn_from_logs

    if not logs:
        raise ConfigError("no live log named; give at least one with --logs FILE")
    learned = learn_from_logs(run, load_scenario(scenario, data), logs, out, seed=seed)
    gain = learned.gain
    if as_json:
        emit({"run": str(out), "taught": learned.controller.lessons.taught, **asdict(gain)})
        return
    typer.echo(
        f"learned from {gain.frames} frames; reward {gain.gain:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}) against the "
        f"policy as it was (doubly robust estimate without labels; {gain.matched:.0%} of the decisions are the log's); "
        f"run folder {out}"
    )
