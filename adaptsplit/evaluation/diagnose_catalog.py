"""What ships with the package about each scenario: ``scenarios/diagnoses.json``, and ``scenarios list``.

Light: nothing here imports the simulator, so the list can be printed by the base install. Only ``update`` (which makes
the file anew) diagnoses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, Field

from adaptsplit.config import Config, parse_json
from adaptsplit.errors import AdaptsplitError, ConfigError, DataError
from adaptsplit.evaluation.diagnose_hash import content_hash, scenario_hash
from adaptsplit.files import write_whole
from adaptsplit.links.shaping import Recorded
from adaptsplit.scenario import Scenario, load_scenario, scenario_names

if TYPE_CHECKING:
    from adaptsplit.evaluation.diagnose import Diagnosed

SCHEMA: Final = "adaptsplit.diagnoses/1"
FILE = "diagnoses.json"
Source = Literal["generated", "recorded", "mixed"]
Bounds = tuple[float, float, float]


class Entry(Config):
    """One scenario's diagnosis in a few numbers; intervals are (value, low, high) in reward per frame."""

    hash: str
    scenario_hash: str
    split: str
    episodes: int
    pays: Literal["yes", "no", "unclear"]
    verdict: str
    best_static: str
    informed_0: Bounds
    informed: Bounds
    binding: str | None
    decisions: int = Field(description="distinct decisions of informed(inf)")
    cautions: tuple[str, ...]


class Catalog(Config):
    """What ``diagnoses.json`` holds, by the scenario's name."""

    schema_: Literal["adaptsplit.diagnoses/1"] = Field(SCHEMA, alias="schema")
    entries: dict[str, Entry] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of ``scenarios list``. ``missing`` says what is not there, None when everything is."""

    name: str
    description: str
    families: tuple[str, ...]
    links: Source
    published: bool
    missing: str | None
    pays: str | None
    outdated: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return {
            "name": self.name,
            "description": self.description,
            "families": list(self.families),
            "links": self.links,
            "profile": "published" if self.published else "measured",
            "available": self.missing is None,
            "missing": self.missing,
            "adapting_pays": self.pays,
            "diagnosis_outdated": self.outdated,
        }


def shipped_path() -> Path:
    """Return where the shipped catalogue lies."""
    return Path(str(resources.files("adaptsplit.scenarios"))) / FILE


def read_catalog(path: Path | None = None) -> Catalog:
    """Read a catalogue; an empty one where there is no file. DataError for one that is broken."""
    path = shipped_path() if path is None else path
    if not path.is_file():
        return Catalog.model_validate({"schema": SCHEMA})
    cure = "make it anew: scenarios diagnose --all --write"
    return parse_json(Catalog, path.read_bytes(), str(path), cure, DataError)


def write_catalog(catalog: Catalog, path: Path) -> None:
    """Write a catalogue (atomically: a killed process leaves the old one)."""
    ordered = Catalog.model_validate({"schema": SCHEMA, "entries": dict(sorted(catalog.entries.items()))})
    text = json.dumps(ordered.model_dump(mode="json", by_alias=True), indent=1) + "\n"
    write_whole(path, text.encode())


def listed(scenario: Scenario, catalog: Catalog) -> Listed:
    """Return what is known of a scenario without running anything."""
    file = scenario.file
    specs = [*file.links.train, *file.links.validation, *file.links.test]
    entry = catalog.entries.get(scenario.name)
    return Listed(
        name=scenario.name,
        description=scenario.description,
        families=tuple(dict.fromkeys(spec.family for spec in specs)),
        links=link_source(specs),
        published=scenario.published,
        missing=missing(scenario),
        pays=None if entry is None else entry.verdict,
        outdated=entry is not None and entry.scenario_hash != scenario_hash(scenario),
    )


def link_source(specs: Sequence[Any]) -> Source:
    """Return where link entries come from: generated, recorded, or both (a recording's round trips count as well)."""
    made = [not any(True for _ in recordings(spec)) for spec in specs]
    return "generated" if all(made) else "mixed" if any(made) else "recorded"


def recordings(value: Any) -> Iterator[Recorded]:
    """Yield every recording that a link entry names, at any depth."""
    if isinstance(value, Recorded):
        yield value
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from recordings(getattr(value, name))
    elif isinstance(value, dict):
        if isinstance(value.get("fitted_from"), dict):
            yield Recorded.model_validate(value["fitted_from"])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from recordings(item)


def missing(scenario: Scenario) -> str | None:
    """Return what a scenario needs and does not find here, None when it can be run."""
    try:
        if not scenario.published:
            scenario.profile_path  # noqa: B018  (raises where it is not found)
        for recording in recordings(scenario.file.links):
            recording.locate(scenario.data)
    except ConfigError as error:
        return str(error)
    return None


def markdown_table() -> str:
    """Return the documentation table of the shipped scenarios and what their diagnoses found."""
    catalog = read_catalog()
    lines = [
        "| scenario | what it is | links | objective | adapting pays | informed(0) less best static | binds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in scenario_names():
        scenario, entry = load_scenario(name), catalog.entries.get(name)
        found = "not diagnosed | | "
        if entry is not None:
            value, low, high = entry.informed_0
            page = f"[{entry.pays}](diagnoses/{name}/diagnosis.md)"
            found = f"{page} | {value:+.4f} [{low:+.4f}, {high:+.4f}] | {entry.binding or '-'}"
        source = listed(scenario, catalog).links
        family = scenario.objective.family or "weights of its own"
        lines.append(f"| `{name}` | {scenario.description} | {source} | {family} | {found} |")
    return "\n".join(lines)


def entry_of(found: Diagnosed) -> Entry:
    """Return the compact form of a diagnosis."""
    document = found.document
    informed_0, informed = (document.standing(name).difference for name in ("oracle-informed-0", "oracle-informed"))
    return Entry(
        hash=document.hash,
        scenario_hash=document.scenario_hash,
        split=document.split,
        episodes=document.episodes,
        pays=document.pays,
        verdict=document.verdict,
        best_static=document.best_static,
        informed_0=_bounds(informed_0),
        informed=_bounds(informed),
        binding=document.binding,
        decisions=next(use.distinct for use in document.uses if use.oracle == "oracle-informed"),
        cautions=tuple(item.text for item in document.cautions),
    )


def _bounds(value: Any) -> Bounds:
    numbers = [value.value, value.low, value.high]
    return tuple(0.0 if number is None else round(number, 6) for number in numbers)  # type: ignore[return-value]


Diagnose = Callable[[Scenario], "Diagnosed"]
Tell = Callable[[str, str], None]


def update(
    scenarios: Sequence[Scenario], path: Path | None, split: str, settings: str, diagnose: Diagnose, tell: Tell
) -> Catalog:
    """Diagnose every scenario whose content has changed, writing ``path`` after each (so it can be resumed).

    ``tell(name, what)`` hears of each scenario: ``unchanged``, ``missing: ...``, ``failed: ...`` or the verdict. One
    that cannot be diagnosed here keeps the entry that it has; entries of scenarios that are not named stay. Without
    ``path`` nothing is written and everything is diagnosed.
    """
    catalog = Catalog.model_validate({"schema": SCHEMA}) if path is None else read_catalog(path)
    for scenario in scenarios:
        absent = missing(scenario)
        if absent is not None:
            tell(scenario.name, f"missing: {absent}")
            continue
        try:
            known = catalog.entries.get(scenario.name)
            if known is not None and known.hash == content_hash(scenario, split, settings):
                tell(scenario.name, "unchanged")
                continue
            entry = entry_of(diagnose(scenario))
        except AdaptsplitError as error:
            tell(scenario.name, f"failed: {error}")
            continue
        catalog = catalog.model_copy(update={"entries": {**catalog.entries, scenario.name: entry}})
        if path is not None:
            write_catalog(catalog, path)
        tell(scenario.name, entry.verdict)
    return catalog
