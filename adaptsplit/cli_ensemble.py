"""``adaptsplit ensemble``: several training runs as one policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptsplit.cli_base import Json, Out, emit


def ensemble(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of run folders.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Merge runs of one agent (its seeds) into one policy: the mean of their outputs, a plain policy.npz.

    Runs that differ by their seed err differently on frames that they never saw; their mean errs less. The network is
    as wide as all members together.
    """
    from adaptsplit.agents.ensemble import ensemble as merge
    from adaptsplit.agents.ensemble import members_of

    merged = merge(runs, out, name=out.resolve().name)
    members = [str(folder) for folder in members_of(runs)]
    sizes = [int(weight.shape[1]) for weight, _ in merged.net.layers]
    if as_json:
        emit({"run": str(out), "members": members, "layers": sizes})
        return
    typer.echo(f"{len(members)} members, layers {sizes}: {out}")
