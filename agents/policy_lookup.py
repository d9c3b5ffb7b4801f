"""A decision table as a policy: a few observation fields in bins, and one decision per combination of bins.

The form of Edgent's configuration map (Li et al. 2018, from memory: bandwidth states to exit and partition point), over
more than the bandwidth. ``policy.npz`` of schema ``adaptsplit.lookup/1`` holds ``fields`` (i2, indices of observation
fields), ``counts`` (i2, how many edges each has), ``edges`` (f4, ascending per field, of the scaled observation, one
field after the other) and ``decision`` (i2 rows of the space's table, in C order of the bins). A value lies in the bin
of the number of edges that it is not at or below, so that ``<=`` cuts as in a tree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.policy_cells import AGAIN, CellPolicy, read_meta, take
from adaptsplit.agents.policy_file import Arrays
from adaptsplit.agents.policy_text import C_ANSWER, C_SIGNATURE, c_array, c_decisions, c_header, physical
from adaptsplit.controller import Observations
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import DataError

SCHEMA = "adaptsplit.lookup/1"
MAX_FIELDS = 4
MAX_EDGES = 255
MAX_CELLS = 65_536
TYPES = {"fields": "i2", "counts": "i2", "edges": "f4", "decision": "i2"}
Edges = Sequence[NDArray[np.float32]]


class LookupController(CellPolicy):
    """Takes the decision of the cell that the binned fields name. ``rows`` (cells,) in C order of the bins."""

    schema = SCHEMA
    agent = "lookup"

    def __init__(
        self, name: str, space: DecisionSpace, fields: Sequence[int], edges: Edges, rows: NDArray[Any]
    ) -> None:
        """DataError unless fields, edges and decisions make one table."""
        check_lookup(fields, edges, rows, space, name)
        super().__init__(name, space, rows)
        self.fields = tuple(int(field) for field in fields)
        self.edges = tuple(np.ascontiguousarray(own, dtype=np.float32) for own in edges)
        self.shape = tuple(len(own) + 1 for own in self.edges)
        strides = np.cumprod((1, *self.shape[:0:-1]))[::-1].tolist()
        self._axes = list(zip(self.fields, (own.tolist() for own in self.edges), strides, strict=True))

    def cells(self, observation: Observations) -> NDArray[np.int64]:
        """Return the (n,) cells of (n, D) observations."""
        values = np.asarray(observation, dtype=np.float32)
        return cells_of(values, self.fields, self.edges)

    def _cell(self, row: NDArray[np.float32]) -> int:
        cell = 0
        for field, edges, stride in self._axes:
            value = row.item(field)
            cell += stride * (bisect_left(edges, value) if value == value else len(edges))
        return cell

    def replaced(self, rows: NDArray[Any]) -> Self:
        """Return the same bins with other decisions (cells,)."""
        return type(self)(self.name, self.space, self.fields, self.edges, rows)

    def pruned(self) -> Self:
        """Return a table that decides the same without edges on whose two sides all decisions are alike."""
        table, edges = self.rows.reshape(self.shape), list(self.edges)
        for axis, own in enumerate(self.edges):
            lower, upper = (np.take(table, np.arange(len(own)) + i, axis=axis) for i in (0, 1))
            others = tuple(i for i in range(table.ndim) if i != axis)
            differs = np.any(lower != upper, axis=others)
            if not differs.any() and axis == len(self.edges) - 1 and not any(len(e) for e in edges[:axis]):
                differs[0] = True  # one decision everywhere: one edge is left, since a table has one
            edges[axis] = own[differs]
            table = np.compress(np.concatenate([[True], differs]), table, axis=axis)
        kept = [i for i, own in enumerate(edges) if len(own)]
        fields = [self.fields[i] for i in kept]
        return type(self)(self.name, self.space, fields, [edges[i] for i in kept], table.ravel())

    def arrays(self) -> Arrays:
        """Return the four arrays of the file."""
        return {
            "fields": np.array(self.fields, dtype=np.int16),
            "counts": np.array([len(own) for own in self.edges], dtype=np.int16),
            "edges": np.concatenate(self.edges),
            "decision": self.rows,
        }

    def describe(self) -> str:
        """Return the table as text: one line per cell, bins in physical units."""
        lines = [f"{' x '.join(str(n) for n in self.shape)} bins of {', '.join(obs.NAMES[f] for f in self.fields)}"]
        for cell, place in enumerate(np.ndindex(*self.shape)):
            bins = ", ".join(self._bin(axis, i) for axis, i in enumerate(place))
            lines.append(f"{bins}: {self.space.name(self._table[self.rows[cell]])}")
        return "\n".join(lines) + "\n"

    def _bin(self, axis: int, place: int) -> str:
        field, edges = self.fields[axis], self.edges[axis]
        name = obs.NAMES[field]
        low = physical(field, float(edges[place - 1])) if place else ""
        high = physical(field, float(edges[place])) if place < len(edges) else ""
        if not low:
            return f"{name} <= {high}"
        return f"{low} < {name} <= {high}" if high else f"{name} > {low}"

    def to_c(self) -> str:
        """Return ``adaptsplit_decide`` in C99: constant arrays, no library, no memory of its own."""
        saved = self.arrays()
        parts = [
            c_header(f"Decision table of {self.size} cells", self.fields),
            c_array("short", "fields", saved["fields"]),
            c_array("short", "counts", saved["counts"]),
            c_array("float", "edges", saved["edges"]),
            c_array("short", "cells", self.rows),
            c_decisions(self.space),
            f"\n{C_SIGNATURE} {{\n  int row = 0, first = 0;",
            f"  for (int axis = 0; axis < {len(self.fields)}; axis++) {{",
            "    int bin = 0;",
            "    while (bin < counts[axis] && !(observation[fields[axis]] <= edges[first + bin])) bin++;",
            "    row = row * (counts[axis] + 1) + bin;",
            "    first += counts[axis];",
            "  }",
            "  row = cells[row];",
        ]
        return "\n".join(parts) + "\n" + C_ANSWER


def cells_of(values: Observations, fields: Sequence[int], edges: Edges) -> NDArray[np.int64]:
    """Return the (n,) cells, in C order of the bins, of (n, D) observations; NaN lies in the last bin."""
    cell = np.zeros(len(values), dtype=np.int64)
    for field, own in zip(fields, edges, strict=True):
        cell = cell * (len(own) + 1) + np.searchsorted(own, values[:, field], side="left")
    return cell


def check_lookup(fields: Sequence[int], edges: Edges, rows: NDArray[Any], space: DecisionSpace, where: str) -> None:
    """DataError unless these are 1 to 4 different fields with ascending edges and a decision for each cell."""
    given = list(fields)
    if not 1 <= len(given) <= MAX_FIELDS or len(set(given)) != len(given) or len(edges) != len(given):
        raise DataError(f"{where}: fields {given}; expected 1 to {MAX_FIELDS} different ones with their edges; {AGAIN}")
    if any(not 0 <= field < obs.SIZE for field in given):
        raise DataError(f"{where}: fields {given}; the observation has 0 to {obs.SIZE - 1}; {AGAIN}")
    for field, own in zip(given, edges, strict=True):
        if not 1 <= len(own) <= MAX_EDGES or not np.isfinite(own).all() or np.any(np.diff(own) <= 0):
            raise DataError(
                f"{where}: edges of {obs.NAMES[field]}: expected 1 to {MAX_EDGES} finite ascending numbers; {AGAIN}"
            )
    cells = int(np.prod([len(own) + 1 for own in edges], dtype=np.int64))
    if not cells <= MAX_CELLS or len(rows) != cells:
        raise DataError(f"{where}: {len(rows)} decisions for {cells} cells (at most {MAX_CELLS}); {AGAIN}")
    if np.any(rows < 0) or np.any(rows >= len(space.table)):
        raise DataError(f"{where}: a cell without one of the {len(space.table)} decisions of its space; {AGAIN}")


def parse(meta: dict[str, Any], arrays: Arrays, where: str, name: str | None) -> LookupController:
    """Build the controller from what ``policy.npz`` holds; DataError says what is wrong with it."""
    agent, space = read_meta(meta, SCHEMA, where)
    fields, counts, edges, rows = take(arrays, TYPES, where)
    if not 1 <= len(fields) <= MAX_FIELDS:
        raise DataError(f"{where}: {len(fields)} fields; expected 1 to {MAX_FIELDS} different ones; {AGAIN}")
    if len(fields) != len(counts) or np.any(counts < 1) or int(counts.sum(dtype=np.int64)) != len(edges):
        raise DataError(f"{where}: {len(edges)} edges, but counts say {counts.tolist()[:8]}; {AGAIN}")
    parts = np.split(edges, np.cumsum(counts[:-1], dtype=np.int64))
    check_lookup(fields.tolist(), parts, rows, space, where)
    return LookupController(name or agent, space, fields.tolist(), parts, rows)
