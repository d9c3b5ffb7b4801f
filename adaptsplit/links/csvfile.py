"""Timestamped CSV: one row per measurement, columns named with their unit."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.readers import DEFAULT_RTT_S, LinkReader, fail, hold, link_readers, read_bytes
from adaptsplit.links.trace import Array, LinkTrace
from adaptsplit.registry import did_you_mean

MAX_ROWS = 2_000_000

# column -> (quantity, factor to SI)
COLUMNS = {
    "time_s": ("time", 1.0),
    "time_ms": ("time", 1e-3),
    "timestamp_s": ("time", 1.0),
    "timestamp_ms": ("time", 1e-3),
    "capacity_bps": ("capacity", 1.0),
    "capacity_kbps": ("capacity", 1e3),
    "capacity_mbps": ("capacity", 1e6),
    "rtt_s": ("rtt", 1.0),
    "rtt_ms": ("rtt", 1e-3),
    "loss": ("loss", 1.0),
    "loss_percent": ("loss", 1e-2),
    "signal_dbm": ("signal", 1.0),
}


def read_csv(
    path: Path, *, dt_s: float | None = None, rtt_s: float = DEFAULT_RTT_S, family: str | None = None
) -> list[LinkTrace]:
    """Read one trace from a CSV file with a header.

    Columns: a time (``time_s``, ``time_ms``, ``timestamp_s`` or ``timestamp_ms``, strictly increasing), a capacity
    (``capacity_bps``, ``capacity_kbps`` or ``capacity_mbps``), and if recorded ``rtt_s`` or ``rtt_ms``, ``loss``
    (0 to 1) or ``loss_percent``, ``signal_dbm``. A column whose name begins with ``#`` is left out; any other name is
    an error. A row holds until the next one, the last row for the median interval. Rows at a constant interval
    become samples as they are; others are averaged over uniform samples of ``dt_s`` (by default a fifth of the median
    interval, from 20 ms to 1 s, so that a jittery clock does not blur outages).

    Raises:
        LinkError: unknown or missing columns, text, gaps in the table, times that do not increase.
    """
    table = _table(path)
    time = table["time"]
    steps = np.diff(time)
    interval = float(np.median(steps)) if steps.size else 1.0
    uniform = bool(np.all(np.abs(steps - interval) <= 1e-6 * max(interval, 1e-3)))
    if uniform and (dt_s is None or abs(dt_s - interval) <= 1e-9):
        sampled, dt = table, dt_s or round(interval, 9)
    else:
        dt = dt_s or min(max(interval / 5, 0.02), 1.0)
        end = float(time[-1]) + interval
        sampled = {key: hold(path, time, end, values, dt) for key, values in table.items()}
    capacity = sampled["capacity"]
    rtt = sampled.get("rtt", np.full(capacity.size, rtt_s))
    loss = sampled.get("loss", np.zeros(capacity.size))
    assumed = "" if "rtt" in table else f"; round trip taken as {rtt_s:g} s"
    note = f"csv {path.name}: {time.size} rows as {capacity.size} samples of {dt:g} s{assumed}"
    return [LinkTrace(path.stem, family or "recorded", dt, capacity, rtt, loss, sampled.get("signal"), (note,))]


def _table(path: Path) -> dict[str, Array]:
    """quantity -> (M,) values in SI units."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise LinkError(f"{path}: not a CSV file in UTF-8 ({error}); save it as plain CSV") from error
    places = _places(path, [name.strip() for name in rows[0]])
    body = [(number, row) for number, row in enumerate(rows[1:], start=2) if row]
    if not 1 <= len(body) <= MAX_ROWS:
        raise LinkError(f"{path}: {len(body)} rows below the header, expected 1 to {MAX_ROWS}")
    values = np.array([_numbers(path, number, row, len(rows[0]), places) for number, row in body])
    table = {quantity: values[:, k] for k, quantity in enumerate(places)}
    still = np.flatnonzero(np.diff(table["time"]) <= 0)
    if still.size:
        at = int(still[0]) + 1
        fail(path, body[at][0], f"{table['time'][at]:g} s", "a time after that of the row before; sort the rows")
    return table


def _places(path: Path, header: list[str]) -> dict[str, tuple[int, float]]:
    """quantity -> (column, factor to SI)."""
    places: dict[str, tuple[int, float]] = {}
    for column, name in enumerate(header):
        if name.startswith("#"):
            continue
        if name not in COLUMNS:
            known = ", ".join(COLUMNS)
            fail(
                path, 1, name, f"a known column{did_you_mean(name, COLUMNS)} Known: {known}; '#' before a name skips it"
            )
        quantity, factor = COLUMNS[name]
        if quantity in places:
            fail(path, 1, name, f"one column of {quantity} only; put '#' before the name of the other")
        places[quantity] = (column, factor)
    for quantity in ("time", "capacity"):
        if quantity not in places:
            names = " or ".join(name for name, (kind, _) in COLUMNS.items() if kind == quantity)
            fail(path, 1, ",".join(header), f"a column of {quantity}: {names}")
    return places


def _numbers(path: Path, line: int, row: list[str], width: int, places: dict[str, tuple[int, float]]) -> list[float]:
    if len(row) != width:
        fail(path, line, ",".join(row), f"{width} fields, as in the header, and not {len(row)}")
    return [_number(path, line, row[column]) * factor for column, factor in places.values()]


def _number(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) < 1e15:
        fail(path, line, text, "a finite number; mend the field or remove the row")
    return value


def _score(head: bytes) -> float:
    first = head.lstrip(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace").lower()
    names = [name.strip() for name in first.split(",")]
    if len(names) < 2 or not any(any(letter.isalpha() for letter in name) for name in names):
        return 0.0
    return 0.8 if any(name in COLUMNS for name in names) else 0.3


CSV = LinkReader("csv", "header with time_s and capacity_mbps, or the like", read_csv, _score)
link_readers.register(CSV.name)(CSV)
