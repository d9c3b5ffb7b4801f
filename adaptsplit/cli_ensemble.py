"""``adaptsplit ensemble``: several training runs as one policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptsplit.cli_base import Data, Json, Out, emit


def ensemble(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.")],
    out: Out,
    cautious: Annotated[
        str | None,
        typer.Option("--cautious", metavar="SCENARIO", help="Leave the best static decision only where members agree."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Merge runs of one agent (its seeds) into one policy, which errs less on frames that none of them ever saw.

    Plainly: the mean of their outputs, one policy.npz as wide as all members together. With --cautious SCENARIO (for
    dqn and qr-dqn): the best static decision, except where the members agree that another one is better; how much they
    must agree is chosen on the scenario's validation split.
    """
    from adaptsplit.agents.ensemble import ensemble as merge
    from adaptsplit.agents.ensemble import members_of

    if cautious is not None:
        _cautious(runs, cautious, out, data, as_json)
        return
    merged = merge(runs, out, name=out.resolve().name)
    members = [str(folder) for folder in members_of(runs)]
    sizes = [int(weight.shape[1]) for weight, _ in merged.net.layers]
    if as_json:
        emit({"run": str(out), "members": members, "layers": sizes})
        return
    typer.echo(f"{len(members)} members, layers {sizes}: {out}")


def _cautious(runs: list[Path], name: str, out: Path, data: Path | None, as_json: bool) -> None:
    from adaptsplit.agents.cautious import cautious
    from adaptsplit.scenario import load_scenario

    choice = cautious(runs, load_scenario(name, data), out, out.resolve().name)
    if as_json:
        emit({"run": str(out), **choice.to_dict()})
        return
    typer.echo(f"anchor {choice.anchor}; reward per frame on the validation split by caution:")
    for caution, reward in zip(choice.cautions, choice.rewards, strict=True):
        typer.echo(f"{'*' if caution == choice.caution else ' '} {caution:7g}  {reward:.4f}")
    typer.echo(f"caution {choice.caution:g}, the most that is within one standard error of the best: {out}")
