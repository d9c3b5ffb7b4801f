"""Command that turns a trained policy into a small tree or a decision table: ``adaptsplit distil``."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from adaptsplit.cli_base import Data, Json, Out, Seed, emit
from adaptsplit.scenario import load_scenario

if TYPE_CHECKING:
    from adaptsplit.agents.distil import Distilled
    from adaptsplit.evaluation.statistics import Interval

MAX_LINES = 80  # of the policy's text that are printed


class Form(StrEnum):
    """What a policy can be distilled into."""

    tree = "tree"
    lookup = "lookup"


def distil(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Run folder of `adaptsplit train`, or a controller's name.")
    ],
    scenario: Annotated[str, typer.Option("--scenario", help="Shipped name or YAML file.")],
    out: Out,
    form: Annotated[Form, typer.Option("--form", help="A decision tree or a decision table.")] = Form.tree,
    leaves: Annotated[int, typer.Option("--leaves", min=2, max=4096, help="At most this many leaves or cells.")] = 64,
    seed: Seed = 0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Distil a policy into a small tree or table that runs without onnxruntime; says what it loses."""
    from adaptsplit.agents.distil import distil as run_distil
    from adaptsplit.evaluation.progress import stage_progress

    loaded = load_scenario(scenario, data)
    with stage_progress(quiet=as_json) as report:
        found = run_distil(run, loaded, out, form.value, leaves, seed=seed, progress=report)
    if as_json:
        emit(document(found))
        return
    console = Console()
    console.print(loss_table(found))
    text = found.policy.describe().splitlines()
    console.print("\n".join(text[:MAX_LINES]), markup=False, highlight=False, soft_wrap=True)
    if len(text) > MAX_LINES:
        console.print(f"... {len(text) - MAX_LINES} more lines in {out / 'policy.txt'}", markup=False, highlight=False)
    console.print(f"run folder: {out}", markup=False, highlight=False, soft_wrap=True)


def document(found: Distilled) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    sizes = [{"limit": c.limit, "cells": c.policy.size, "reward": c.reward} for c in found.tried]
    return {
        "run": str(found.folder),
        "form": found.policy.agent,
        "seconds": round(found.seconds, 1),
        "loss": found.loss.to_dict(),
        "sizes": sizes,
    }


def loss_table(found: Distilled) -> Table:
    """Return the statement of the loss as a table."""
    loss = found.loss
    table = Table("", "", title=f"distilled from {loss.teacher}", show_header=False, title_justify="left")
    kept = "the teacher gains nothing over it" if loss.kept is None else f"{loss.kept:.1%} of the teacher's gain kept"
    parts = "leaves" if found.policy.agent == "tree" else "cells"
    table.add_row("reward", f"{loss.reward:.4f} on {loss.episodes} validation episodes that chose nothing")
    table.add_row("student - teacher", f"{_interval(loss.to_teacher)}  (teacher {loss.teacher_reward:.4f})")
    table.add_row(f"student - {loss.static}", f"{_interval(loss.to_static)}  (best static in hindsight; {kept})")
    table.add_row("agreement", f"{loss.agreement:.1%} of the frames on the student's path")
    table.add_row("size", f"{loss.cells} {parts}, at most {loss.comparisons} comparisons, {loss.array_bytes} bytes")
    table.add_row("file", f"{loss.file_bytes} bytes (policy.npz)")
    table.add_row("time per decision", f"{loss.decision_us:.1f} us (teacher {loss.teacher_us:.1f} us), this machine")
    return table


def _interval(value: Interval) -> str:
    return f"{value.value:+.5f} [{value.low:+.5f}, {value.high:+.5f}]"
