"""Targets of fuzzing: YAML, and the schema of scenarios behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml
from fuzzing import FILE_S, Target

from adaptsplit import fuzzing as fz
from adaptsplit.config import Config, parse, parse_json, parse_yaml
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import ScenarioFile

SCENARIOS = Path(__file__).parents[1] / "adaptsplit" / "scenarios"
SMALL = (
    b"name: x\ncount: 3\n",
    b"name: &n 'x y'\ntags: [*n, b, 1.5e3, ~]\n",
    b"rows:\n- {a: 1, b: .inf}\n- <<: {a: 2}\n  c: yes\n",
    b"text: |\n  two\n  lines\n? name\n: >-\n  folded\n",
    b"when: 2001-12-14\nbits: 0b11\nhex: 0x1F\nclock: 1:30\n",
    b"tags: !!set {a, b}\ncount: !!int '7'\n",
)


class SmallFile(Config):
    """A configuration with one key of each form."""

    name: str = ""
    count: int = 0
    tags: tuple[str | int | float | None, ...] = ()
    rows: tuple[dict[str, float], ...] = ()
    text: str | None = None


def small_yaml() -> Target:
    """The YAML reader, and a schema behind it, on documents with every form of node."""

    def read(data: bytes) -> None:
        parse(SmallFile, parse_yaml(data, "a.yaml"), "a.yaml")

    values = [value for value in fz.VALUES + fz.YAML_VALUES if len(value) < 900]  # the long ones: scenario-yaml
    return Target(SMALL[:1], [fz.yaml_of(text, values) for text in SMALL], read)


def scenario_text() -> bytes:
    """Return a shipped scenario in block style, without comments."""
    return yaml.safe_dump(yaml.safe_load((SCENARIOS / "flight-lte.yaml").read_text())).encode()


def read_scenario(data: bytes) -> None:
    """Read a scenario's file."""
    parse(ScenarioFile, parse_yaml(data, "a.yaml"), "a.yaml")


def scenario_yaml() -> Target:
    """Whole scenarios through both layers."""
    text = scenario_text()
    return Target([text], [fz.yaml_of(text)], read_scenario, 2_000, FILE_S)


def scenario_schema() -> Target:
    """The schema of scenarios alone, on values that come from JSON: the YAML reader takes nine tenths of the time."""
    text = json.dumps(yaml.safe_load(scenario_text())).encode()

    def read(data: bytes) -> None:
        parse_json(ScenarioFile, data, "a.json", "mend it", ConfigError)

    return Target([text], [fz.json_of(text)], read)


YAML: dict[str, Callable[[], Target]] = {
    "yaml": small_yaml,
    "scenario-yaml": scenario_yaml,
    "scenario-schema": scenario_schema,
}
