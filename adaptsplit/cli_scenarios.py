"""Commands about scenarios and links: list, show, diagnose, describe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from adaptsplit.cli_base import Data, Json, ScenarioName, Seed, Split, emit
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import Scenario, load_scenario, scenario_names

if TYPE_CHECKING:
    from adaptsplit.evaluation.diagnose import Diagnosed

scenarios_app = typer.Typer(
    help="Shipped scenarios: list them, show one, diagnose whether adapting pays.", no_args_is_help=True
)
links_app = typer.Typer(help="Link traces: describe recordings, or the links of a scenario.", no_args_is_help=True)

Name = Annotated[str | None, typer.Argument(metavar="SCENARIO", help="Shipped name or YAML file.")]


@scenarios_app.command("list")
def scenarios_list(data: Data = None, as_json: Json = False) -> None:
    """List the shipped scenarios: links, whether their data is here, and whether adapting was found to pay."""
    from adaptsplit.evaluation.diagnose_catalog import listed, read_catalog

    catalog = read_catalog()
    found = [listed(load_scenario(name, data), catalog) for name in scenario_names()]
    if as_json:
        emit([item.to_dict() for item in found])
        return
    console = Console()
    for item in found:
        source = f"{item.links} links ({', '.join(item.families)})" + (", published profile" if item.published else "")
        here = "ready" if item.missing is None else "data missing"
        pays = "not diagnosed" if item.pays is None else f"adapting pays: {item.pays}"
        console.print(Text.assemble((item.name, "bold"), f"  {source}; {here}"))
        console.print(Text(f"    {item.description}", "dim"))
        console.print(Text(f"    {pays}{' (outdated)' if item.outdated else ''}"))


@scenarios_app.command("show")
def scenarios_show(name: ScenarioName, data: Data = None, as_json: Json = False) -> None:
    """Show one scenario: every value that an experiment on it depends on."""
    import yaml

    document = load_scenario(name, data).file.model_dump(mode="json", exclude_none=True)
    if as_json:
        emit(document)
    else:
        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), nl=False)


@scenarios_app.command("diagnose")
def scenarios_diagnose(
    name: Name = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=2, help="Episodes (default 60, with --quick 12).")
    ] = None,
    split: Annotated[Split, typer.Option("--split", help="Which split; scenarios are tuned on validation.")] = (
        Split.validation
    ),
    out: Annotated[Path | None, typer.Option("--out", help="Write diagnosis.json, .md and a picture there.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer episodes: a first look.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Every shipped scenario, each into a folder of --out.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Update the catalogue that `scenarios list` shows; skips what is unchanged.")
    ] = False,
    catalog: Annotated[
        Path | None, typer.Option("--catalog", help="Catalogue file (default: the shipped one).")
    ] = None,
    seed: Seed = 0,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Tell before training whether adapting pays, by which knob, what binds, and what is worth observing."""
    if every == (name is not None):
        raise ConfigError("diagnose: name one scenario, or give --all")
    names = scenario_names() if every else [str(name)]
    scenarios = [load_scenario(each, data) for each in names]
    job = _Diagnosing(episodes, seed, split.value, quick, out, every, as_json)
    if every or write:
        _update(job, scenarios, catalog, write)
    else:
        job.run(scenarios[0])


class _Diagnosing:
    """One call's options, applied to each scenario."""

    def __init__(
        self, episodes: int | None, seed: int, split: str, quick: bool, out: Path | None, every: bool, as_json: bool
    ) -> None:
        self.episodes, self.seed, self.split, self.quick = episodes, seed, split, quick
        self.out, self.every, self.as_json = out, every, as_json

    def run(self, scenario: Scenario) -> Diagnosed:
        """Diagnose one scenario, write and print."""
        from adaptsplit.evaluation.diagnose import diagnose, write_diagnosis
        from adaptsplit.evaluation.diagnose_text import terminal
        from adaptsplit.evaluation.progress import stage_progress

        with stage_progress(quiet=self.as_json) as report:
            found = diagnose(
                scenario,
                episodes=self.episodes,
                seed=self.seed,
                split=self.split,
                quick=self.quick,
                progress=report,
            )
        out = self.out / scenario.name if self.out is not None and self.every else self.out
        written = [] if out is None else write_diagnosis(found, scenario, out)
        if self.as_json and not self.every:
            typer.echo(found.document.to_json(), nl=False)
        elif not self.as_json:
            console = Console()
            console.print(terminal(found.document))
            for path in written:
                console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
        return found


def _update(job: _Diagnosing, scenarios: Sequence[Scenario], catalog: Path | None, write: bool) -> None:
    """Diagnose several, into the catalogue where asked for; exit code 1 when one failed."""
    from adaptsplit.evaluation.diagnose import settings_of
    from adaptsplit.evaluation.diagnose_catalog import shipped_path, update

    told: dict[str, str] = {}

    def tell(name: str, what: str) -> None:
        told[name] = what
        typer.echo(f"{name}: {what}", err=True)

    path = (catalog or shipped_path()) if write else None
    update(scenarios, path, job.split, settings_of(job.episodes, job.quick, job.seed), job.run, tell)
    if job.as_json and job.every:
        emit(told)
    if any(what.startswith("failed") for what in told.values()):
        raise typer.Exit(1)


@links_app.command("describe")
def links_describe(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE...]", help="Recordings; the format is recognised.")
    ] = None,
    scenario: Annotated[str | None, typer.Option("--scenario", help="Describe a scenario's links instead.")] = None,
    split: Annotated[Split, typer.Option("--split", help="Which of the scenario's links.")] = Split.train,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a picture (SVG or PNG) as well.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Print statistics of recordings (capacity, round trip, loss, signal: whatever they hold), or of a scenario's links
    with all that is done to them."""
    from adaptsplit import links

    if (scenario is None) == (not files):
        raise ConfigError("links describe: name recordings, or --scenario NAME, and not both")
    items: list[Any] = []
    if scenario is not None:
        loaded = load_scenario(scenario, data)
        document = links.describe_specs(getattr(loaded.file.links, split.value), loaded.data)
        items += loaded.links(split.value)[:8]  # a picture of more rows says less
    else:
        document = links.describe(files or [])
        items += [item for file in files or [] for item in links.read_recordings(file)]
    if plot is not None:
        links.plot(items, plot)
    if as_json:
        emit(document)
    else:
        typer.echo(links.format_description(document))
        if scenario is not None and (steps := links.made_by(document)):
            typer.echo(f"\nThe first link of each family, step by step:\n{steps}")
