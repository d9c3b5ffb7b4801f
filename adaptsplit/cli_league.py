"""The command ``adaptsplit league``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from adaptsplit.cli_base import Data, Json, Seed, Split
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import load_scenario, scenario_names

if TYPE_CHECKING:
    from adaptsplit.evaluation.evaluate import Progress
    from adaptsplit.evaluation.league import Options
    from adaptsplit.evaluation.league_document import League

DOCS = Path("docs")
QUICK_EPISODES, QUICK_ANATOMY, QUICK_STEPS, QUICK_SEEDS = 12, 6, 200_000, 1


def league(
    out: Annotated[Path, typer.Option("--out", help="Where to write league.json, league.html and each scenario.")],
    scenarios: Annotated[str, typer.Option("--scenarios", help="Comma-separated names or YAML files, or all.")] = "all",
    agents: Annotated[
        str, typer.Option("--agents", help="Comma-separated controllers that need no training, or all.")
    ] = "all",
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Trained runs, DIR/SCENARIO/AGENT/SEED (as `sweep` makes them).")
    ] = None,
    learned: Annotated[
        str | None, typer.Option("--learned", help="Trained agents to take (default: all that are in --runs).")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Train the runs that are missing (default: ppo,dqn).")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Training seeds of each agent, with --train.")] = 5,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Frames per run, with --train.")] = None,
    ablate: Annotated[
        str, typer.Option("--ablate", help="Scenarios on which an agent is taken apart (comma-separated).")
    ] = "",
    ablated: Annotated[
        str | None, typer.Option("--ablated", help="Which agent (default: the one that is best on validation).")
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", min=2, help="Episodes per scenario, common to all.")] = 200,
    split: Annotated[Split, typer.Option("--split", help="Which split.")] = Split.test,
    seed: Seed = 0,
    write: Annotated[
        bool, typer.Option("--write", help="Write docs/league.md and docs/img/league-*.png, too.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="12 episodes, one short run per agent: a first look.")] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Hold all controllers against each other on all scenarios; goes on where an interrupted league stopped.

    Writes OUT/league.json, OUT/league.html, and for each scenario OUT/SCENARIO with its own report. A scenario is
    evaluated anew only when it, its controllers, policies, episodes or seed have changed.
    """
    from adaptsplit.evaluation.league import Options, run_league
    from adaptsplit.evaluation.league_contest import Plan
    from adaptsplit.evaluation.league_train import DEFAULT_LEARNED, Training

    if write and not DOCS.is_dir():
        raise ConfigError("league: --write needs a folder docs/ here; run it at the top of the project")
    plan = Plan(episodes, seed, split.value)
    if quick:
        plan = Plan(min(episodes, QUICK_EPISODES), seed, split.value, QUICK_ANATOMY)
        seeds, steps = QUICK_SEEDS, steps or QUICK_STEPS
    chosen = _names(learned) if learned is not None else None
    training = Training(chosen or DEFAULT_LEARNED, seeds, steps, progress=not as_json) if train else None
    names = scenario_names() if scenarios == "all" else _names(scenarios)
    options = Options(
        out=out,
        runs=runs,
        agents=None if agents == "all" else _names(agents),
        learned=chosen,
        training=training,
        plan=plan,
        ablate=_names(ablate),
        ablated=ablated,
        command=shlex.join(["adaptsplit", *sys.argv[1:]]),
    )
    with _progress(as_json) as bars:
        loaded = [load_scenario(name, data) for name in names]
        found = run_league(loaded, options, tell=bars.tell, report=bars.of)
    _finish(found, options, write, as_json)


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


class _Bars:
    """One set of progress bars per scenario; the one before is closed."""

    def __init__(self, quiet: bool, stack: ExitStack) -> None:
        self._quiet, self._stack = quiet, stack

    def of(self, name: str) -> Progress | None:
        """Return the progress of a scenario's evaluation."""
        from adaptsplit.evaluation.progress import stage_progress

        self._stack.close()
        return self._stack.enter_context(stage_progress(self._quiet))

    def tell(self, line: str) -> None:
        """Say one line on standard error, after the bars."""
        self._stack.close()
        typer.echo(line, err=True)


@contextmanager
def _progress(quiet: bool) -> Iterator[_Bars]:
    with ExitStack() as stack:
        yield _Bars(quiet, stack)


def _finish(found: League, options: Options, write: bool, as_json: bool) -> None:
    """Write the files, and print the table or the document; exit code 1 when a training run failed."""
    from adaptsplit.evaluation import league_markdown, league_report
    from adaptsplit.evaluation.documents import write_document
    from adaptsplit.evaluation.league import LEAGUE_FILE
    from adaptsplit.evaluation.league_text import console_table, headline

    write_document(found, options.out / LEAGUE_FILE)
    page = league_report.write_page(found, options.out / "league.html")
    written = league_markdown.write_page(found, DOCS) if write else []
    if as_json:
        typer.echo(found.to_json(), nl=False)
    else:
        console = Console()
        console.print(console_table(found, console.width))
        for line in (headline(found), *(f"{item.name}: skipped" for item in found.skipped), f"page: {page}"):
            console.print(line, markup=False, highlight=False)
        for path in written:
            console.print(f"written: {path}", markup=False, highlight=False)
    if found.failed_runs:
        raise typer.Exit(1)
