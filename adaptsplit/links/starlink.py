"""The Starlink-on-the-Autobahn recordings: 1 s uplink capacity of a satellite terminal on a moving car."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.columns import collect, csv_rows, number
from adaptsplit.links.container import Table
from adaptsplit.links.readers import LinkReader, first_line, link_readers
from adaptsplit.links.recording import Recording
from adaptsplit.links.trace import Array

MAX_SEGMENT_S = 500_000
SPLIT_GAP_S = 2.5
SHORTEST_SEGMENT_S = 20
START, UPLOAD = "timestamp_start_ul", "upload"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_starlink(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read the uplink of ``throughput.zip`` (or the CSV within) of Starlink-on-the-Autobahn.

    Laniewski, Lanfer and Aschenbruck, "Measuring Mobile Starlink Performance: A Comprehensive Look", IEEE OJ-COMS
    2025; data CC BY-SA 4.0. Rows are 1 s means of iperf3 in Mbit/s. The recording is cut where more than 2.5 s are
    missing, and a single missing second repeats the one before. Segments keep their number in the file (``#07``);
    those shorter than 20 s or without any capacity are left out, and the provenance says so. The file has no round
    trip and no loss.

    Raises:
        LinkError: not such a table, bad fields, ``dt_s`` other than 1 s.
    """
    if dt_s not in (None, 1.0):
        raise LinkError(f"{table.place}: sample length {dt_s} s; these recordings have 1 s, leave the option out")
    start, upload = _columns(table)
    edges = [0, *(np.flatnonzero((np.diff(start) > SPLIT_GAP_S) | (np.diff(start) < 0)) + 1), start.size]
    sampled = [_seconds(table, start[a:b], upload[a:b]) for a, b in pairwise(edges)]
    kept = [i for i, (capacity, _) in enumerate(sampled) if capacity.size >= SHORTEST_SEGMENT_S and capacity.any()]
    if not kept:
        raise LinkError(f"{table.place}: none of {len(sampled)} segments has {SHORTEST_SEGMENT_S} s and any capacity")
    digits = len(str(len(sampled) - 1))
    left_out = f"{len(sampled) - len(kept)} segments below {SHORTEST_SEGMENT_S} s or without capacity left out"
    recordings = []
    for i in kept:
        capacity, filled = sampled[i]
        since = start[edges[i]] - start[0]
        note = f"starlink {table.name}: uplink segment {i} of {len(sampled)}, from {since:.0f} s; {left_out}"
        name = f"starlink#{i:0{digits}d}"
        recordings.append(Recording(name, family or "starlink", 1.0, {"capacity_bps": capacity}, (note,), filled))
    return recordings


def _seconds(table: Table, times: Array, values: Array) -> tuple[Array, int]:
    """Rows on a grid of 1 s (the last row of a second counts, a missing one repeats the one before); the missing."""
    at = np.rint(times - times[0]).astype(np.int64)
    if at[-1] >= MAX_SEGMENT_S:
        raise LinkError(
            f"{table.place}: a segment of {at[-1]} s, at most {MAX_SEGMENT_S} s; look for a wrong timestamp"
        )
    latest = np.searchsorted(at, np.arange(at[-1] + 1), side="right") - 1
    return values[latest], int(latest.size - np.unique(at).size)


def _columns(table: Table) -> tuple[Array, Array]:
    """(M,) seconds and (M,) bit/s."""
    rows = csv_rows(table)
    line, header = next(rows, (1, []))
    if START not in header or UPLOAD not in header:
        expected = f"columns {START} and {UPLOAD}; give throughput.zip of Starlink-on-the-Autobahn"
        table.fail(line, ",".join(header), expected)
    rate = number("an upload rate in Mbit/s, 0 to 100000", 0.0, 1e5, factor=1e6)
    columns, _ = collect(table, rows, {"time": (header.index(START), _time), "up": (header.index(UPLOAD), rate)})
    return columns["time"], columns["up"]


def _time(text: str) -> float:
    try:
        stamp = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("a date and time such as 2024-04-19 16:23:00.000116224") from None
    return (stamp.replace(tzinfo=UTC) - _EPOCH).total_seconds()


def _score(head: bytes) -> float:
    names = first_line(head).split(b",")
    return 1.0 if START.encode() in names and UPLOAD.encode() in names else 0.0


STARLINK = LinkReader("starlink", "throughput.zip of Starlink-on-the-Autobahn", read_starlink, _score)
link_readers.register(STARLINK.name)(STARLINK)
