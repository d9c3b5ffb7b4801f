"""Strict configuration: frozen pydantic models read from YAML; an unknown key is an error that names the nearest."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from adaptsplit.errors import AdaptsplitError, ConfigError
from adaptsplit.registry import did_you_mean

MAX_YAML_BYTES = 1 << 20
MAX_FAULTS = 20  # that one message lists
_LONG = 200  # characters of a key that are looked at
M = TypeVar("M", bound="Config")


class Config(BaseModel):
    """Base of every configuration record: frozen, no unknown keys, no coercion surprises."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping (safe loader, at most 1 MiB); ConfigError names file, place and cure."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    return parse_yaml(data, str(path))


def parse_yaml(data: bytes, where: str) -> dict[str, Any]:
    """Return the mapping that the bytes of a YAML file hold; ConfigError names ``where``, place and cure.

    At most ``MAX_YAML_BYTES`` bytes and ``MAX_NODES`` values, aliases counted as often as they stand, nested at most
    ``MAX_DEPTH`` deep (``yaml_text``). With libyaml a lone surrogate (``"\\ud800"``) is refused, without it (PyYAML's
    own parser, much slower) a tab within a line is.
    """
    if len(data) > MAX_YAML_BYTES:
        raise ConfigError(f"{where}: {len(data)} bytes; a configuration has at most {MAX_YAML_BYTES}")
    from adaptsplit.yaml_text import FAULTS, read  # here: what a device reads is JSON

    try:
        value = read(data)
    except FAULTS as error:
        raise ConfigError(printable(f"{where}: not valid YAML: {' '.join(str(error).split())}")) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping of keys to values, found {type(value).__name__}")
    return value


def parse(model: type[M], value: Mapping[str, Any], where: str) -> M:
    """Validate ``value`` as ``model``; ConfigError lists every fault with its path, and the nearest key."""
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        listed = error.errors(include_url=False)[:MAX_FAULTS]
        faults = "\n".join(printable(f"  {_fault(model, fault)}") for fault in listed)
        more = f"\n  and {error.error_count() - len(listed)} more" if error.error_count() > len(listed) else ""
        raise ConfigError(f"{where}: {error.error_count()} fault(s):\n{faults}{more}") from error


def parse_json(model: type[M], data: bytes, where: str, cure: str, error_type: type[AdaptsplitError]) -> M:
    """Validate a JSON object as ``model``; an ``error_type`` names ``where``, every fault and the cure."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise error_type(printable(f"{where}: not valid JSON ({error}); {cure}")) from error
    if not isinstance(value, dict):
        raise error_type(f"{where}: expected a JSON object, found {type(value).__name__}; {cure}")
    try:
        return parse(model, value, where)
    except ConfigError as error:
        raise error_type(f"{error}\n{cure}") from error


def refuse_constant(name: str) -> float:
    """Refuse what Python's JSON reader takes beyond JSON (``parse_constant``): NaN and the infinities."""
    raise ValueError(f"{name} is not a number of JSON")


def _fault(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    place = ".".join(str(part)[:_LONG] for part in fault["loc"]) or "(top)"
    if fault["type"] == "extra_forbidden":
        known = _fields_at(model, fault["loc"][:-1])
        hint = did_you_mean(str(fault["loc"][-1])[:_LONG], known)
        return f"{place}: unknown key{hint}" + (f" Known here: {', '.join(sorted(known))}." if known else "")
    if fault["type"] == "missing":
        return f"{place}: missing; add it"
    return f"{place}: {fault['msg']} (found {_short(fault.get('input'))})"


def printable(text: str) -> str:
    """Return ``text`` with characters that move a terminal's cursor, or that no encoding can write, escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Short(reprlib.Repr):
    """Shows a value in bounded time, whatever its size or depth."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 80, 80
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _LONG else "a number of more than 60 digits"


def _short(value: object) -> str:
    text = _Short().repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the (nested) model that ``path`` leads to, [] where it cannot be told."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = _model_in(field.annotation)
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if isinstance(found, type) and issubclass(found, BaseModel):
            return found
    return None
