"""Timestamped CSV: one row per measurement, columns named with their unit."""

from __future__ import annotations

import numpy as np

from adaptsplit.links.columns import Parse, collect, csv_rows, increasing, number
from adaptsplit.links.container import Table
from adaptsplit.links.readers import LinkReader, first_line, link_readers
from adaptsplit.links.recording import Recording
from adaptsplit.links.sampling import spread
from adaptsplit.links.trace import REPORTED, Array
from adaptsplit.registry import did_you_mean

# column -> (quantity, factor to SI)
COLUMNS = {
    "time_s": ("time", 1.0),
    "time_ms": ("time", 1e-3),
    "timestamp_s": ("time", 1.0),
    "timestamp_ms": ("time", 1e-3),
    "capacity_bps": ("capacity_bps", 1.0),
    "capacity_kbps": ("capacity_bps", 1e3),
    "capacity_mbps": ("capacity_bps", 1e6),
    "rtt_s": ("rtt_s", 1.0),
    "rtt_ms": ("rtt_s", 1e-3),
    "loss": ("loss", 1.0),
    "loss_percent": ("loss", 1e-2),
    "signal_dbm": ("signal_dbm", 1.0),
    "rsrp_dbm": ("signal_dbm", 1.0),
    "sinr_db": ("sinr_db", 1.0),
    "altitude_m": ("altitude_m", 1.0),
}
UNKNOWN = ("", "-", "nan", "NaN")


def read_csv(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read one recording from a CSV file with a header.

    Columns: a time (``time_s``, ``time_ms``, ``timestamp_s`` or ``timestamp_ms``, strictly increasing) and any mix of
    capacity (``capacity_bps``, ``capacity_kbps`` or ``capacity_mbps``), round trip (``rtt_s`` or ``rtt_ms``), loss
    (``loss``, 0 to 1, or ``loss_percent``), received power (``signal_dbm`` or ``rsrp_dbm``), ``sinr_db`` and
    ``altitude_m``. In the last three a field may be empty, ``-`` or ``nan``: unknown. A column whose name begins
    with ``#`` is left out; any other name is an error. A row holds until the next one, the last row for the median
    interval. Rows at a constant interval become samples as they are; others are averaged over uniform samples of
    ``dt_s`` (by default a fifth of the median interval, from 20 ms to 1 s, so that a jittery clock does not blur
    outages).

    Raises:
        LinkError: unknown or missing columns, text, gaps in the table, times that do not increase.
    """
    rows = csv_rows(table)
    line, header = next(rows, (1, []))
    parsers = _parsers(table, line, [name.strip() for name in header])
    columns, lines = collect(table, rows, parsers, len(header))
    time = columns.pop("time")
    increasing(table, lines, time)
    sampled, dt = _uniform(table, time, columns, dt_s)
    size = next(iter(sampled.values())).size
    note = f"csv {table.name}: {time.size} rows as {size} samples of {dt:g} s"
    return [Recording(table.name, family or "recorded", dt, sampled, (note,))]


def _uniform(
    table: Table, time: Array, columns: dict[str, Array], dt_s: float | None
) -> tuple[dict[str, Array], float]:
    """The columns on a uniform grid, and its sample length."""
    steps = np.diff(time)
    interval = float(np.median(steps)) if steps.size else 1.0
    uniform = bool(np.all(np.abs(steps - interval) <= 1e-6 * max(interval, 1e-3)))
    if uniform and (dt_s is None or abs(dt_s - interval) <= 1e-9):
        return columns, dt_s or round(interval, 9)
    dt = dt_s or min(max(interval / 5, 0.02), 1.0)
    return spread(table.place, time, float(time[-1]) + interval, columns, dt), dt


def _parsers(table: Table, line: int, header: list[str]) -> dict[str, tuple[int, Parse]]:
    """quantity -> (index of its field, its parser)."""
    parsers: dict[str, tuple[int, Parse]] = {}
    for index, name in enumerate(header):
        if name.startswith("#"):
            continue
        if name not in COLUMNS:
            hint = f"a known column{did_you_mean(name, COLUMNS)} Known: {', '.join(COLUMNS)}"
            table.fail(line, name, f"{hint}; '#' before a name skips it")
        quantity, factor = COLUMNS[name]
        if quantity in parsers:
            table.fail(line, name, f"one column of {quantity} only; put '#' before the name of the other")
        missing = UNKNOWN if quantity in REPORTED else ()
        expected = "a finite number; mend the field or remove the row"
        parsers[quantity] = (index, number(expected, -1e15, 1e15, factor=factor, missing=missing))
    _check_complete(table, line, header, parsers)
    return parsers


def _check_complete(table: Table, line: int, header: list[str], parsers: dict[str, tuple[int, Parse]]) -> None:
    times, others = (
        " or ".join(name for name, (quantity, _) in COLUMNS.items() if (quantity == "time") is time)
        for time in (True, False)
    )
    if "time" not in parsers:
        table.fail(line, ",".join(header), f"a column of time: {times}")
    if len(parsers) < 2:
        table.fail(line, ",".join(header), f"a column beside the time: {others}")


def _score(head: bytes) -> float:
    names = [name.strip() for name in first_line(head).decode("utf-8", "replace").split(",")]
    if len(names) < 2 or not any(any(letter.isalpha() for letter in name) for name in names):
        return 0.0
    return 0.8 if any(name in COLUMNS for name in names) else 0.3


CSV = LinkReader("csv", "header with time_s and capacity_mbps, rtt_ms, rsrp_dbm or the like", read_csv, _score)
link_readers.register(CSV.name)(CSV)
