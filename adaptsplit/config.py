"""Strict configuration: frozen pydantic models read from YAML; an unknown key is an error that names the nearest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from adaptsplit.errors import AdaptsplitError, ConfigError
from adaptsplit.registry import did_you_mean

MAX_YAML_BYTES = 1 << 20

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
    if len(data) > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: {len(data)} bytes; a configuration has at most {MAX_YAML_BYTES}")
    try:
        value = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(value).__name__}")
    return value


def parse(model: type[M], value: Mapping[str, Any], where: str) -> M:
    """Validate ``value`` as ``model``; ConfigError lists every fault with its path, and the nearest key."""
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(model, fault)}" for fault in error.errors(include_url=False))
        raise ConfigError(f"{where}: {error.error_count()} fault(s):\n{faults}") from error


def parse_json(model: type[M], data: bytes, where: str, cure: str, error_type: type[AdaptsplitError]) -> M:
    """Validate a JSON object as ``model``; an ``error_type`` names ``where``, every fault and the cure."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise error_type(f"{where}: not valid JSON ({error}); {cure}") from error
    if not isinstance(value, dict):
        raise error_type(f"{where}: expected a JSON object, found {type(value).__name__}; {cure}")
    try:
        return parse(model, value, where)
    except ConfigError as error:
        raise error_type(f"{error}\n{cure}") from error


def _fault(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "(top)"
    if fault["type"] == "extra_forbidden":
        known = _fields_at(model, fault["loc"][:-1])
        hint = did_you_mean(str(fault["loc"][-1]), known)
        return f"{place}: unknown key{hint}" + (f" Known here: {', '.join(sorted(known))}." if known else "")
    if fault["type"] == "missing":
        return f"{place}: missing; add it"
    return f"{place}: {fault['msg']} (found {_short(fault.get('input'))})"


def _short(value: object) -> str:
    text = repr(value)
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
