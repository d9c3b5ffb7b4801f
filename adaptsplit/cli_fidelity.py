"""Commands that hold live runs against the simulator and against one another: fidelity, and the A/B of ``fly``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adaptsplit.cli_base import Data, Json, Split, emit
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import Scenario


def fidelity(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Live log, folder of `fly --out`, or the demo's folder.")],
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Bundle flown (default: the one beside it).")] = None,
    scenario: Annotated[str | None, typer.Option("--scenario", help="Scenario (default: the bundle's).")] = None,
    split: Annotated[Split | None, typer.Option("--split", help="Whose frames (default: as flown).")] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Simulated runs.")] = 20,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Play a live run again in the simulator, on the link that its log shows; exit code 1 when they differ too much."""
    from adaptsplit.evaluation.console_live import print_sim_to_live
    from adaptsplit.evaluation.sim_to_live import run_fidelity

    chosen = None if split is None else split.value
    result = run_fidelity(run, bundle, scenario, chosen, data=data, repeats=repeats)
    if as_json:
        emit(result.document())
    else:
        print_sim_to_live(result, Console())
    if not result.inside:
        raise typer.Exit(1)


def numbers(option: str, text: str) -> list[int]:
    """Return the numbers of an option, such as ``0,1,2``; ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"{option} {text!r}: expected numbers with commas between, such as 0,1,2")
    return [int(part) for part in parts]


def fly_ab(
    bundle: Path,
    scenario: Scenario,
    split: str,
    links: list[int],
    controllers: tuple[str, ...],
    out: Path,
    block: int,
    stretches: int,
    offset_s: float,
    as_json: bool,
) -> None:
    """Fly the A/B, write ``ab.json`` and ``live.html`` into ``out``, and print it."""
    from adaptsplit.bundle import load_bundle
    from adaptsplit.evaluation.console_live import print_live_ab
    from adaptsplit.evaluation.live_ab import live_ab
    from adaptsplit.evaluation.report_live import write_ab_page

    told = Console(stderr=True)
    found, live = live_ab(
        load_bundle(bundle),
        scenario,
        split,
        links,
        controllers,
        out,
        block=block,
        stretches=stretches,
        offset_s=offset_s,
        report=lambda text: told.print(text, markup=False, highlight=False),
    )
    (out / "ab.json").write_text(json.dumps(found.document(), indent=1), encoding="utf-8")
    write_ab_page(found, live, f"{scenario.name}: {found.controllers[0]} live", out / "live.html")
    if as_json:
        emit(found.document())
    else:
        print_live_ab(found, live, Console())
