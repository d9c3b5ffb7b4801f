"""The search space of ``adaptsplit tune``: one dimension per key, read from a strict YAML; nothing is evaluated.

A dimension is one of::

    learning_rate: {log: [0.0001, 0.01]}             # a float, uniform in its logarithm
    gae_lambda: {float: [0.8, 1.0]}                  # a float, uniform
    n_epochs: {int: [1, 10]}                         # a whole number, both ends included
    batch_size: {choice: [1024, 4096]}               # one of a list (of anything that the key takes)
    clip_range: {linear: [{float: [0.1, 0.4]}, {float: [0.05, 0.2]}]}   # a schedule: its start and its end
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from adaptsplit.agents.hyperparameters import AGENTS, Common
from adaptsplit.config import parse, read_yaml
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.registry import did_you_mean

FORMS = ("log", "float", "int", "choice", "linear")
FIXED = ("steps", "envs")
"""Keys that a search may not change: a trial could win by training longer."""


class Chooser(Protocol):
    """What draws values: an Optuna trial, or anything with its three methods."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Draw a float."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Draw a whole number."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Draw one of a list."""


class Dimension(Protocol):
    """One key's range."""

    def draw(self, chooser: Chooser, name: str) -> Any:
        """Return a value that the parameters record takes."""

    def encode(self, name: str, value: Any) -> dict[str, Any] | None:
        """Return what draws ``value`` again, None when it lies outside."""

    def ends(self) -> list[Any]:
        """Return the extreme values (all choices)."""


@dataclass(frozen=True, slots=True)
class Floats:
    """A float between two ends, uniform or uniform in its logarithm."""

    low: float
    high: float
    log: bool

    def draw(self, chooser: Chooser, name: str) -> float:
        """Draw a value."""
        return chooser.suggest_float(name, self.low, self.high, log=self.log)

    def encode(self, name: str, value: Any) -> dict[str, Any] | None:
        """Return the value by name, None when it lies outside."""
        inside = isinstance(value, int | float) and self.low <= value <= self.high
        return {name: float(value)} if inside else None

    def ends(self) -> list[Any]:
        """Return both ends."""
        return [self.low, self.high]


@dataclass(frozen=True, slots=True)
class Ints:
    """A whole number between two ends, both included."""

    low: int
    high: int

    def draw(self, chooser: Chooser, name: str) -> int:
        """Draw a value."""
        return chooser.suggest_int(name, self.low, self.high)

    def encode(self, name: str, value: Any) -> dict[str, Any] | None:
        """Return the value by name, None when it lies outside."""
        return {name: value} if isinstance(value, int) and self.low <= value <= self.high else None

    def ends(self) -> list[Any]:
        """Return both ends."""
        return [self.low, self.high]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a list; a value is drawn by its JSON text, since a study stores texts and numbers only."""

    values: tuple[Any, ...]

    def _texts(self) -> list[str]:
        return [json.dumps(value) for value in self.values]

    def draw(self, chooser: Chooser, name: str) -> Any:
        """Draw a value."""
        return json.loads(chooser.suggest_categorical(name, self._texts()))

    def encode(self, name: str, value: Any) -> dict[str, Any] | None:
        """Return the value's text by name, None when it is not in the list."""
        return next(({name: json.dumps(own)} for own in self.values if own == value), None)

    def ends(self) -> list[Any]:
        """Return all values."""
        return list(self.values)


@dataclass(frozen=True, slots=True)
class Line:
    """A schedule from a start to an end, each with its own range."""

    start: Floats
    end: Floats

    def draw(self, chooser: Chooser, name: str) -> Any:
        """Draw both ends."""
        return {"linear": [self.start.draw(chooser, f"{name}.start"), self.end.draw(chooser, f"{name}.end")]}

    def encode(self, name: str, value: Any) -> dict[str, Any] | None:
        """Return both ends by name, None when one lies outside. A constant is a line with equal ends."""
        start, end = value["linear"] if isinstance(value, dict) else (value, value)
        first, last = self.start.encode(f"{name}.start", start), self.end.encode(f"{name}.end", end)
        return None if first is None or last is None else first | last

    def ends(self) -> list[Any]:
        """Return the lines through the corners."""
        return [{"linear": [a, b]} for a in self.start.ends() for b in self.end.ends()]


@dataclass(frozen=True, slots=True)
class Space:
    """The dimensions of one agent, by key."""

    agent: str
    dimensions: dict[str, Dimension]

    def draw(self, chooser: Chooser) -> dict[str, Any]:
        """Return a value for each key."""
        return {key: dimension.draw(chooser, key) for key, dimension in self.dimensions.items()}

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what draws ``values`` again, None when one of them lies outside."""
        found: dict[str, Any] = {}
        for key, dimension in self.dimensions.items():
            part = dimension.encode(key, values[key])
            if part is None:
                return None
            found |= part
        return found


def load_space(agent: str, base: Common, path: Path | None = None) -> Space:
    """Return the search space of an agent from the shipped ``search.yaml``, or from a file of the same form.

    Every end is tried on ``base``, the record of the remaining values. ConfigError names key, fault and cure.
    """
    where = path or Path(str(resources.files("adaptsplit.agents"))) / "search.yaml"
    table = read_yaml(where)
    if not isinstance(table.get(agent), dict) or not table[agent]:
        hint = did_you_mean(agent, table)
        raise UnknownNameError(
            f"{where}: no search space of agent {agent!r}{hint} Add it, or name another with --space"
        )
    space = Space(agent, {str(key): _dimension(where, agent, str(key), form) for key, form in table[agent].items()})
    for key, dimension in space.dimensions.items():
        for end in dimension.ends():
            parse(AGENTS[agent], {**base.model_dump(mode="json"), key: end}, f"{where}: {agent}: {key}")
    return space


def _dimension(where: Path, agent: str, key: str, form: Any) -> Dimension:
    """Parse one line of the file."""
    place = f"{where}: {agent}: {key}"
    known = [name for name in AGENTS[agent].model_fields if name not in FIXED]
    if key not in known:
        fault = "a search may not change it." if key in FIXED else f"unknown key{did_you_mean(key, known)}"
        raise ConfigError(f"{place}: {fault} Known: {', '.join(known)}.")
    if not isinstance(form, dict) or len(form) != 1 or next(iter(form)) not in FORMS:
        raise ConfigError(f"{place}: expected one of {', '.join(FORMS)}, such as {{log: [0.001, 0.1]}}; found {form!r}")
    kind, values = next(iter(form.items()))
    if not isinstance(values, list):
        raise ConfigError(f"{place}: {kind}: expected a list, found {values!r}")
    if kind == "choice":
        return _choice(place, values)
    if kind == "linear":
        return _line(place, values)
    return _range(place, kind, values)


def _choice(place: str, values: list[Any]) -> Choice:
    texts = [json.dumps(value, default=str) for value in values]
    if not values or len(set(texts)) != len(texts):
        raise ConfigError(f"{place}: choice: expected at least one value, each once; found {values!r}")
    return Choice(tuple(values))


def _line(place: str, values: list[Any]) -> Line:
    parts = []
    for value in values:
        kind, ends = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else ("", [])
        if kind not in ("log", "float"):
            raise ConfigError(f"{place}: linear: expected {{log: [..]}} or {{float: [..]}} twice, found {value!r}")
        parts.append(_range(f"{place}: linear", kind, ends))
    if len(parts) != 2 or not all(isinstance(part, Floats) for part in parts):
        raise ConfigError(f"{place}: linear: expected two ranges, of the start and of the end; found {len(parts)}")
    start, end = parts
    assert isinstance(start, Floats)
    assert isinstance(end, Floats)
    return Line(start, end)


def _range(place: str, kind: str, values: Any) -> Floats | Ints:
    numbers = isinstance(values, list) and all(type(v) in ((int,) if kind == "int" else (int, float)) for v in values)
    if not numbers or len(values) != 2 or not values[0] < values[1]:
        raise ConfigError(
            f"{place}: {kind}: expected two {'whole ' * (kind == 'int')}numbers, low < high; found {values!r}"
        )
    if kind == "log" and values[0] <= 0:
        raise ConfigError(f"{place}: log: expected numbers above 0, found {values!r}")
    return Ints(*values) if kind == "int" else Floats(float(values[0]), float(values[1]), kind == "log")
