"""Rows of text to columns of numbers, one row in memory at a time."""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.container import Table
from adaptsplit.links.trace import Array

MAX_ROWS = 2_000_000
Parse = Callable[[str], float]
Row = tuple[int, Sequence[str]]  # line, counted from 1, and its fields


def number(expected: str, low: float, high: float, *, factor: float = 1.0, missing: Sequence[str] = ()) -> Parse:
    """Return a parser of one field.

    Args:
        expected: what its error says was expected.
        low: the least value allowed, in the unit of the field.
        high: the greatest.
        factor: from the unit of the field to SI.
        missing: texts that mean "unknown" and give NaN.
    """
    words = frozenset(missing)

    def parse(text: str) -> float:
        if text.strip() in words:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(expected)
        return value * factor

    return parse


def csv_rows(table: Table) -> Iterator[Row]:
    """Yield the rows of a comma-separated table that are not blank; LinkError where the text is no CSV."""
    reader = csv.reader(io.StringIO(table.text(), newline=""))
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise LinkError(
            f"{table.place}, line {reader.line_num}: cannot be read as CSV ({error}); save it as plain CSV"
        ) from error


def space_rows(table: Table) -> Iterator[Row]:
    """Yield the rows of a table whose columns are separated by spaces or tabs, without blank lines."""
    for line, text in enumerate(io.StringIO(table.text()), start=1):
        fields = text.split()
        if fields:
            yield line, fields


def collect(
    table: Table, rows: Iterable[Row], parsers: Mapping[str, tuple[int, Parse]], width: int | None = None
) -> tuple[dict[str, Array], Array]:
    """Parse columns.

    Args:
        table: named in errors.
        rows: the rows below the header.
        parsers: name -> (index of the field, its parser).
        width: the number of fields that each row must have; None allows more than the parsers need.

    Returns:
        name -> (M,) values, and the line of each row. LinkError says line, field and what was expected.
    """
    least = 1 + max(index for index, _ in parsers.values())
    store = {name: array("d") for name in parsers}
    fill = [(store[name].append, index, parse) for name, (index, parse) in parsers.items()]
    lines = array("d")
    for line, fields in rows:
        if len(lines) == MAX_ROWS:
            raise LinkError(f"{table.place}: more than {MAX_ROWS} rows; cut the recording into parts")
        if len(fields) < least or (width is not None and len(fields) != width):
            wanted = f"{width} fields, as in the header," if width is not None else f"at least {least} fields"
            table.fail(line, ",".join(fields), f"{wanted} and not {len(fields)}")
        for append, index, parse in fill:
            try:
                append(parse(fields[index]))
            except ValueError as error:
                table.fail(line, fields[index], str(error))
        lines.append(line)
    if not lines:
        raise LinkError(f"{table.place}: 0 rows of values, expected 1 to {MAX_ROWS}")
    return {name: np.array(values) for name, values in store.items()}, np.array(lines)


def increasing(table: Table, lines: Array, seconds: Array) -> None:
    """Raise LinkError at the first time that is not after the one before."""
    still = np.flatnonzero(~(np.diff(seconds) > 0))
    if still.size:
        at = int(still[0]) + 1
        table.fail(int(lines[at]), f"{seconds[at]:g} s", "a time after that of the row before; sort the rows")
