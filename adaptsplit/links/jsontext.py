"""JSON of unknown origin: parsed within limits, and numbers taken out of it with a place for every error."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from adaptsplit.errors import LinkError

MAX_JSON_CHARS = 16 << 20  # parsed values take up to some twenty times the memory of their text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def load_json(place: str, text: str, limit: int = MAX_JSON_CHARS) -> Any:
    """Return the parsed ``text``; LinkError for what is too long, nested too deep, or no JSON (NaN included)."""
    if len(text) > limit:
        raise LinkError(f"{place}: {len(text)} characters of JSON, at most {limit} are read; cut the recording")
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise LinkError(f"{place}: no valid JSON ({str(error)[:120]}); fetch or record it again") from error


def entry(place: str, value: object, key: str, kind: type[dict[str, Any]] | type[list[Any]] | type[str]) -> Any:
    """Return ``value[key]``; LinkError when ``value`` is no object or the entry no ``kind``."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise LinkError(f"{place}: found {_short(found)} as {key!r}, expected a {kind.__name__}; record it again")
    return found


def quantity(place: str, value: object, key: str, low: float, high: float) -> float:
    """Return the number ``value[key]``; LinkError when it is none, or not from ``low`` to ``high``."""
    found = value.get(key) if isinstance(value, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not low <= found <= high:
        expected = f"a number, {low:g} to {high:g}; mend or remove it"
        raise LinkError(f"{place}: found {_short(found)} as {key!r}, expected {expected}")
    return float(found)


def _short(found: object) -> str:
    if isinstance(found, dict | list):
        return f"a {type(found).__name__} of {len(found)}"
    if isinstance(found, int) and found.bit_length() > 200:
        return "a number of more than 60 digits"
    text = repr(found)
    return text[:57] + "..." if len(text) > 60 else text
