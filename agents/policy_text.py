"""Small policies in words and in C: conditions in physical units, decisions by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.decision import DecisionSpace

FLAGS = ("slot_occupied", "last_sent")
STEPS = {"bit/s": ((1e6, "Mbit/s"), (1e3, "kbit/s")), "bytes": ((1e6, "MB"), (1e3, "kB")), "s": ((1.0, "s"),)}
SMALL = {"s": (1e-3, "ms")}
PER_LINE = 12


def quantity(value: float, unit: str) -> str:
    """Return a value with its unit, three digits: ``1.3 Mbit/s``, ``45 ms``."""
    for size, name in STEPS.get(unit, ()):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    if unit in SMALL and value != 0.0:
        size, name = SMALL[unit]
        return f"{value / size:.3g} {name}"
    return f"{value:.3g} {unit}".rstrip()


def condition(field: int, threshold: float, space: DecisionSpace) -> str:
    """Return "field <= threshold" in words: physical units, names of branches, flags as 0 or 1."""
    known = obs.FIELDS[field]
    if (known.name.endswith("_known") or known.name in FLAGS) and 0.0 <= threshold < 1.0:
        return f"{known.name} = 0"
    if known.name == "last_branch":
        names = _branches(threshold, space)
        return f"last_branch = {names[0]}" if len(names) == 1 else f"last_branch in ({', '.join(names)})"
    if known.name == "last_rate":
        return f"last_rate <= {math.floor(threshold * max(space.shape[1] - 1, 1) + 1e-6)}"
    return f"{known.name} <= {physical(field, threshold)}"


def physical(field: int, value: float) -> str:
    """Return a scaled value of a field in its unit, clipped to what the field can hold."""
    known, row = obs.FIELDS[field], np.zeros(obs.SIZE)
    row[field] = min(max(value, 0.0), 1.0)
    return quantity(float(obs.physical(row, known.name)), known.unit)


def _branches(threshold: float, space: DecisionSpace) -> list[str]:
    """Names of the branches whose scaled index is at most ``threshold``; before the first decision it is branch 0."""
    last = max(len(space.branches) - 1, 1)
    return [branch.name for i, branch in enumerate(space.branches) if np.float32(i / last) <= threshold]


def c_array(kind: str, name: str, values: Sequence[Any] | NDArray[Any]) -> str:
    """Return a constant array in C; floats are written exactly, in hexadecimal (C99)."""
    texts = [f"{float(v).hex()}f" if kind == "float" else str(int(v)) for v in values]
    lines = [", ".join(texts[i : i + PER_LINE]) for i in range(0, len(texts), PER_LINE)]
    return f"static const {kind} {name}[{len(texts)}] = {{\n  " + ",\n  ".join(lines) + "\n};"


def c_decisions(space: DecisionSpace) -> str:
    """Return the table of decisions (branch, rate, exit rule) in C."""
    return c_array("short", "decisions", space.table.ravel())


def c_header(what: str, fields: Iterable[int]) -> str:
    """Return the comment that says what the function takes and gives."""
    lines = [
        f"/* {what}, made by adaptsplit. C99, no library.",
        f"   observation: {obs.SIZE} numbers, each scaled to 0..1 and clipped (schema {obs.schema_hash()}).",
        "   Returns the row of the table of decisions, and (branch, rate, exit rule) in decision. Fields it reads:",
    ]
    for i in sorted(set(fields)):
        f = obs.FIELDS[i]
        how = "log(x / low) / log(high / low)" if f.scale == "log" else "(x - low) / (high - low)"
        unit = f" {f.unit}" if f.unit else ""
        lines.append(f"   [{i}] {f.name}: low {f.low:g}, high {f.high:g}{unit}, scaled {how}")
    return "\n".join(lines) + " */"


C_SIGNATURE = f"int adaptsplit_decide(const float observation[{obs.SIZE}], int decision[3])"
C_ANSWER = """  for (int i = 0; i < 3; i++) decision[i] = decisions[3 * row + i];
  return row;
}
"""
