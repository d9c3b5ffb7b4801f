"""The Starlink-on-the-Autobahn recordings: 1 s uplink capacity of a satellite terminal on a moving car."""

from __future__ import annotations

import csv
import io
import math
import zipfile
import zlib
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.readers import DEFAULT_RTT_S, LinkReader, fail, link_readers, read_bytes
from adaptsplit.links.trace import Array, LinkTrace

MAX_UNPACKED_BYTES = 64 << 20
MAX_ROWS = 500_000
SPLIT_GAP_S = 2.5
SHORTEST_SEGMENT_S = 20
START, UPLOAD = "timestamp_start_ul", "upload"


def read_starlink(
    path: Path, *, dt_s: float | None = None, rtt_s: float = DEFAULT_RTT_S, family: str | None = None
) -> list[LinkTrace]:
    """Read the uplink of ``throughput.zip`` (or the CSV within) of Starlink-on-the-Autobahn.

    Laniewski, Lanfer and Aschenbruck, "Measuring Mobile Starlink Performance: A Comprehensive Look", IEEE OJ-COMS
    2025; data CC BY-SA 4.0. Rows are 1 s means of iperf3 in Mbit/s. The recording is cut where more than 2.5 s are
    missing, and a single missing second repeats the one before. Segments keep their number in the file (``#07``);
    those shorter than 20 s or without any capacity are left out, and the provenance says so. The round trip is not
    in this file: ``rtt_s`` is taken as a constant, loss as 0.

    Raises:
        LinkError: not such a zip or CSV, too big when unpacked, bad fields, ``dt_s`` other than 1 s.
    """
    if dt_s not in (None, 1.0):
        raise LinkError(f"{path}: sample length {dt_s} s; these recordings have 1 s, leave the option out")
    start, upload = _columns(path)
    edges = [0, *(np.flatnonzero((np.diff(start) > SPLIT_GAP_S) | (np.diff(start) < 0)) + 1), start.size]
    segments = [(start[a:b], upload[a:b]) for a, b in pairwise(edges)]
    sampled = [_seconds(path, times, values) for times, values in segments]
    kept = [i for i, capacity in enumerate(sampled) if capacity.size >= SHORTEST_SEGMENT_S and capacity.any()]
    if not kept:
        raise LinkError(f"{path}: none of {len(sampled)} segments has {SHORTEST_SEGMENT_S} s and any capacity")
    left_out = len(sampled) - len(kept)
    digits = len(str(len(sampled) - 1))
    traces = []
    for i in kept:
        note = (
            f"starlink {path.name}: uplink segment {i} of {len(sampled)}, from {start[edges[i]] - start[0]:.0f} s; "
            f"{left_out} segments below {SHORTEST_SEGMENT_S} s or without capacity left out; "
            f"round trip taken as {rtt_s:g} s"
        )
        flat = np.full(sampled[i].size, rtt_s)
        name = f"starlink#{i:0{digits}d}"
        traces.append(LinkTrace(name, family or "starlink", 1.0, sampled[i], flat, 0.0 * flat, None, (note,)))
    return traces


def _seconds(path: Path, times: Array, values: Array) -> Array:
    """Rows on a grid of 1 s: the last row of a second counts, a missing second repeats the one before."""
    at = np.rint(times - times[0]).astype(np.int64)
    if at[-1] >= MAX_ROWS:
        raise LinkError(f"{path}: a segment of {at[-1]} s, at most {MAX_ROWS} s; look for a wrong timestamp")
    latest = np.searchsorted(at, np.arange(at[-1] + 1), side="right") - 1
    return values[latest]


def _columns(path: Path) -> tuple[Array, Array]:
    """(M,) seconds and (M,) bit/s."""
    try:
        rows = list(csv.DictReader(io.StringIO(_text(path), newline="")))
    except csv.Error as error:
        raise LinkError(f"{path}: the table cannot be read as CSV ({error}); fetch the file again") from error
    if not 1 <= len(rows) <= MAX_ROWS or START not in rows[0] or UPLOAD not in rows[0]:
        raise LinkError(
            f"{path}: found {len(rows)} rows, expected 1 to {MAX_ROWS} with columns {START} and {UPLOAD}; "
            "give throughput.zip of Starlink-on-the-Autobahn"
        )
    values = [(_time(path, i, row.get(START)), _rate(path, i, row.get(UPLOAD))) for i, row in enumerate(rows, start=2)]
    array = np.array(values)
    return array[:, 0], array[:, 1]


def _text(path: Path) -> str:
    data = read_bytes(path)
    try:
        return (_unzip(path, data) if data.startswith(b"PK") else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise LinkError(f"{path}: the table is not UTF-8 ({error}); fetch the file again") from error


def _unzip(path: Path, data: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [info.filename for info in archive.infolist() if info.filename.lower().endswith(".csv")]
            if len(names) != 1:
                raise LinkError(f"{path}: {len(names)} CSV files in the zip, expected one; give throughput.zip")
            with archive.open(names[0]) as member:  # read here, never unpacked to disk: names in a zip are not trusted
                table = member.read(MAX_UNPACKED_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, NotImplementedError) as error:
        raise LinkError(f"{path}: the zip is damaged or not supported ({error}); fetch it again") from error
    if len(table) > MAX_UNPACKED_BYTES:
        raise LinkError(f"{path}: more than {MAX_UNPACKED_BYTES} bytes when unpacked; this is not throughput.zip")
    return table


def _time(path: Path, line: int, text: str | None) -> float:
    try:
        stamp = datetime.fromisoformat((text or "").strip())
    except ValueError:
        fail(path, line, text, "a date and time such as 2024-04-19 16:23:00.000116224")
    return (stamp.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()


def _rate(path: Path, line: int, text: str | None) -> float:
    try:
        mbps = float(text or "")
    except ValueError:
        mbps = math.nan
    if not 0 <= mbps <= 1e5:
        fail(path, line, text, "an upload rate in Mbit/s, 0 to 100000")
    return mbps * 1e6


def _score(head: bytes) -> float:
    if head.startswith(b"PK\x03\x04"):
        return 0.85
    first = head.split(b"\n", 1)[0].split(b",")
    return 1.0 if START.encode() in first and UPLOAD.encode() in first else 0.0


STARLINK = LinkReader("starlink", "throughput.zip of Starlink-on-the-Autobahn", read_starlink, _score)
link_readers.register(STARLINK.name)(STARLINK)
