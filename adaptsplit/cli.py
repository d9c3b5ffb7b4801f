"""The command line: ``adaptsplit COMMAND --help`` teaches each step.

Exit codes: 0 done, 1 failed while running, 2 bad usage or bad input. With ``--json`` a command prints one JSON document
on standard output; progress and messages go to standard error. The commands stand in the modules ``cli_*``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from adaptsplit import (
    __version__,
    cli_distil,
    cli_ensemble,
    cli_fidelity,
    cli_fleet,
    cli_league,
    cli_live,
    cli_online,
    cli_policy,
    cli_retarget,
    cli_scale,
    cli_split,
    cli_train,
)
from adaptsplit.cli_base import Json, Out, Seed, emit
from adaptsplit.cli_deploy import keys_app
from adaptsplit.cli_scenarios import links_app, scenarios_app
from adaptsplit.errors import AdaptsplitError, MissingExtraError

app = typer.Typer(
    name="adaptsplit",
    help="Adaptive control of split neural networks at the edge: train, evaluate and run the policy that chooses head "
    "branch, compression rate and exit threshold per frame. Start with: adaptsplit demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(scenarios_app, name="scenarios")
app.add_typer(links_app, name="links")
app.add_typer(keys_app, name="keys")
app.add_typer(cli_fleet.fleet_app, name="fleet")

_err = Console(stderr=True)


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


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"adaptsplit {__version__}, Python {sys.version.split()[0]}")
        raise typer.Exit


@app.callback()
def _common(
    tell: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and end.")
    ] = False,
) -> None:
    pass


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
        emit(result)


for command in (
    cli_train.fit,
    cli_split.split,
    cli_train.profile,
    cli_train.train,
    cli_retarget.train_general,
    cli_retarget.retarget,
    cli_ensemble.ensemble,
    cli_distil.distil,
    cli_scale.tune,
    cli_scale.sweep,
    cli_train.evaluate,
    cli_league.league,
    cli_online.learn,
    cli_live.export,
    cli_live.fly,
    cli_fidelity.fidelity,
    cli_live.broker,
    cli_live.edge,
    cli_live.decide,
    cli_live.device,
    cli_fleet.conformance,
    cli_policy.deploy,
):
    app.command()(command)


if __name__ == "__main__":
    main()
