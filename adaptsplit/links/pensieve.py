"""The two-column format of Pensieve and of the video streaming studies after it: seconds and Mbit/s."""

from __future__ import annotations

import re

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.columns import collect, increasing, number, space_rows
from adaptsplit.links.container import Table
from adaptsplit.links.readers import LinkReader, link_readers
from adaptsplit.links.recording import Recording
from adaptsplit.links.sampling import hold

MIN_DT_S, MAX_DT_S = 0.02, 1.0
_NUMBER = rb"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3})?"
_LINE = re.compile(rb"\s*" + _NUMBER + rb"[ \t]+" + _NUMBER + rb"\s*")


def read_pensieve(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read a trace of two columns: time in s and rate in Mbit/s (Mao, Netravali and Alizadeh, SIGCOMM 2017).

    Pensieve's simulator gives the rate of a row to the time *since the row before*, begins at the first row and
    never uses the first rate when that row is at 0; so is it here. Rows are averaged over uniform samples of ``dt_s``
    (by default the median interval, from 20 ms to 1 s). The format names no direction; the sets that come with it
    are downlinks, and the provenance says so. It has no round trip (the simulator takes 80 ms) and no loss.

    Raises:
        LinkError: text, a third column, times that do not increase, fewer than two rows.
    """
    time_parser = number("a time in s, 0 to 1e10", 0.0, 1e10)
    rate = number("a rate in Mbit/s, 0 to 1e6", 0.0, 1e6, factor=1e6)
    columns, lines = collect(table, space_rows(table), {"time": (0, time_parser), "rate": (1, rate)}, 2)
    time = columns["time"]
    increasing(table, lines, time)
    if time.size < 2:
        raise LinkError(f"{table.place}: 1 row, expected at least 2: a rate holds since the row before")
    median = float(np.median(np.diff(time)))
    dt = dt_s or round(min(max(median, MIN_DT_S), MAX_DT_S), 3)
    capacity = hold(table.place, time[:-1], float(time[-1]), columns["rate"][1:], dt)
    note = (
        f"pensieve {table.name}: {time.size} rows as samples of {dt:g} s, each rate since the row before; "
        "direction not recorded, usually a downlink"
    )
    return [Recording(table.name, family or "recorded", dt, {"capacity_bps": capacity}, (note,))]


def _score(head: bytes) -> float:
    lines = [line for line in head.split(b"\n")[:-1] or [head] if line.strip()]
    share = sum(_LINE.fullmatch(line) is not None for line in lines) / max(1, len(lines))
    return 0.9 * share if share >= 0.5 else 0.0


PENSIEVE = LinkReader("pensieve", "two columns: seconds and Mbit/s", read_pensieve, _score)
link_readers.register(PENSIEVE.name)(PENSIEVE)
