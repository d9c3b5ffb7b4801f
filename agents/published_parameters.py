"""Parameters of the published controllers: ``key=value`` in a controller's name, each a choice, a number or a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from adaptsplit.agents.base import parse_parameters
from adaptsplit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric parameter: its default and the range that is allowed, both ends included."""

    default: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Text:
    """A parameter of free text, such as the name of a branch; empty when not given."""


Kinds: TypeAlias = "tuple[str, ...] | Number | Text"
Known: TypeAlias = Mapping[str, Kinds]

ORIGINAL = ("0", "1")
PACE = ("1", "0")
PROBE = Number(5.0, 0.0, 50.0)
STREAM: Known = {"pace": PACE, "probe_s": PROBE, "original": ORIGINAL}


class Parameters:
    """The ``key=value`` parameters of a controller's name, checked: a choice (the first is the default) or a number."""

    def __init__(self, family: str, argument: str, known: Known) -> None:
        types = {key: float if isinstance(kind, Number) else str for key, kind in known.items()}
        given = parse_parameters(family, argument, types)
        self._values = {key: _checked(family, key, given.get(key), kind) for key, kind in known.items()}

    def number(self, key: str) -> float:
        """Return a numeric parameter."""
        return float(self._values[key])

    def text(self, key: str) -> str:
        """Return a choice."""
        return str(self._values[key])

    def flag(self, key: str) -> bool:
        """Return whether a switch is ``1``."""
        return self._values[key] == "1"


def _checked(family: str, key: str, value: float | str | None, kind: Kinds) -> float | str:
    if isinstance(kind, Text):
        return "" if value is None else str(value)
    if isinstance(kind, Number):
        number = kind.default if value is None else float(value)
        if not kind.low <= number <= kind.high:
            raise ConfigError(f"controller {family!r}: {key}={number:g}; expected {kind.low:g} to {kind.high:g}")
        return number
    text = kind[0] if value is None else str(value)
    if text not in kind:
        raise ConfigError(f"controller {family!r}: {key}={text!r}; expected one of {', '.join(kind)}")
    return text
