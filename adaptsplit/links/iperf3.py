"""The JSON that ``iperf3 --json`` prints: rate per interval, one recording for each direction that was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.container import Table
from adaptsplit.links.jsontext import entry, load_json, quantity
from adaptsplit.links.readers import LinkReader, link_readers
from adaptsplit.links.recording import Recording
from adaptsplit.links.sampling import MAX_MEASURED_LOSS, spread
from adaptsplit.links.trace import MAX_CAPACITY_BPS, Array

SUMS = ("sum", "sum_bidir_reverse")
UP, DOWN = "up", "down"
MIN_DT_S = 0.001


@dataclass(frozen=True, slots=True)
class _Direction:
    """The sums of one direction as one end counted them: (M, 4) start s, end s, bit/s, fraction lost."""

    receiver: bool
    rows: Array
    udp: bool


def read_iperf3(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read the output of ``iperf3 --json`` of a client or a server, TCP or UDP.

    The client counts as the device: what it sends is ``NAME up``, what it receives (``--reverse``, ``--bidir``) is
    ``NAME down``. The receiver's sums are taken where the file has them (``--get-server-output``), else the
    sender's, which may run ahead of the link by what its buffers hold; the provenance says which. Omitted intervals
    are left out, and so is a last one shorter than half the others. Rates are averaged over samples of ``dt_s`` (by
    default the median interval).

    Round trip: the least that TCP saw (``min_rtt``), as a constant. TCP's other round trips are under its own full
    load, and the simulator has a queue of its own. Loss: what a UDP receiver counted, at most 0.99. UDP sends at a
    target rate, so its rate is a capacity only where the target was above it; the provenance says so.

    Raises:
        LinkError: no such JSON, no interval (with iperf3's own error), numbers out of range, times that fall.
    """
    document = load_json(table.place, table.text())
    directions = _directions(table, document)
    if not directions:
        error = document.get("error") if isinstance(document, dict) else None
        said = f"; iperf3 says {str(error)[:100]!r}" if error else ""
        raise LinkError(f"{table.place}: no interval was measured{said}; run iperf3 --json again")
    rtt_s = _least_rtt(table, document)
    return [_recording(table, name, directions[name], rtt_s, dt_s, family) for name in (UP, DOWN) if name in directions]


def _recording(
    table: Table, name: str, direction: _Direction, rtt_s: float | None, dt_s: float | None, family: str | None
) -> Recording:
    start, end, rate, loss = direction.rows.T
    dt = dt_s or max(round(float(np.median(end - start)), 3), MIN_DT_S)
    columns = {"capacity_bps": rate}
    if direction.udp and direction.receiver:
        columns["loss"] = loss
    sampled = spread(table.place, start, float(end[-1]), columns, dt)
    if rtt_s is not None:
        sampled["rtt_s"] = np.full(sampled["capacity_bps"].size, rtt_s)
    way = "client to server (up)" if name == UP else "server to client (down)"
    note = (
        f"iperf3 {table.name}: {way}, {'receiver' if direction.receiver else 'sender'}'s sums in {start.size} intervals"
    )
    if direction.udp:
        note += "; UDP at a target rate: a capacity only where the target was above it"
    return Recording(f"{table.name} {name}", family or "recorded", dt, sampled, (note,))


def _directions(table: Table, document: object) -> dict[str, _Direction]:
    """The directions measured, each as its receiver counted it where that is known."""
    found: dict[str, _Direction] = {}
    ends = [(table.place, document)]
    if isinstance(document, dict) and isinstance(document.get("server_output_json"), dict):
        ends.append((f"{table.place}, server_output_json", document["server_output_json"]))
    for place, end in ends:
        for name, direction in _counted_by(place, end):
            if name not in found or direction.receiver > found[name].receiver:
                found[name] = direction
    return found


def _counted_by(place: str, document: object) -> list[tuple[str, _Direction]]:
    """What one end of the connection counted."""
    start = entry(place, document, "start", dict)
    test = start.get("test_start")
    test = test if isinstance(test, dict) else {}
    client = "accepted_connection" not in start
    result = []
    for key in SUMS:
        rows, sends = _rows(place, entry(place, document, "intervals", list), key)
        if rows.size:
            if sends is None:  # before version 3.7 the sums do not say who sent
                sends = (bool(test.get("reverse")) != client) != (key != SUMS[0])
            udp = test.get("protocol") == "UDP"
            result.append((UP if sends == client else DOWN, _Direction(not sends, rows, udp)))
    return result


def _rows(place: str, intervals: list[Any], key: str) -> tuple[Array, bool | None]:
    """(M, 4) start, end, bit/s and loss of the intervals that hold ``key``; whether this end sent them."""
    rows: list[tuple[float, float, float, float]] = []
    sends: bool | None = None
    for index, interval in enumerate(intervals):
        total = interval.get(key) if isinstance(interval, dict) else None
        if not isinstance(total, dict) or total.get("omitted") is True:
            continue
        row = _row(f"{place}, interval {index}, {key}", total)
        if rows and row[0] < rows[-1][1] - 0.5 * (rows[-1][1] - rows[-1][0]):
            raise LinkError(f"{place}, interval {index}: begins at {row[0]:g} s, before the end of the one before")
        rows.append(row)
        if isinstance(total.get("sender"), bool):
            sends = total["sender"]
    table = np.array(rows).reshape(-1, 4)
    length = table[:, 1] - table[:, 0]
    if length.size > 1 and length[-1] < 0.5 * np.median(length):
        table = table[:-1]
    return table, sends


def _row(place: str, total: dict[str, Any]) -> tuple[float, float, float, float]:
    start, end = (quantity(place, total, key, 0.0, 1e8) for key in ("start", "end"))
    if not end > start:
        raise LinkError(f"{place}: from {start:g} s to {end:g} s, expected an end after the start; remove it")
    rate = quantity(place, total, "bits_per_second", 0.0, MAX_CAPACITY_BPS)
    loss = quantity(place, total, "lost_percent", -100.0, 100.0) / 100 if "lost_percent" in total else 0.0
    return start, end, rate, min(max(loss, 0.0), MAX_MEASURED_LOSS)  # below 0: counted late, after reordering


def _least_rtt(table: Table, document: object) -> float | None:
    """The least round trip that a sending end saw, s, where it says so."""
    end = document.get("end") if isinstance(document, dict) else None
    streams = end.get("streams") if isinstance(end, dict) else None
    found = []
    for index, stream in enumerate(streams if isinstance(streams, list) else []):
        sender = stream.get("sender") if isinstance(stream, dict) else None
        if isinstance(sender, dict) and "min_rtt" in sender:
            found.append(quantity(f"{table.place}, end, stream {index}", sender, "min_rtt", 0.0, 6e8) * 1e-6)
    return min((rtt for rtt in found if rtt > 0), default=None)


def _score(head: bytes) -> float:
    if not head.lstrip().startswith(b"{"):
        return 0.0
    return 1.0 if b'"iperf 3' in head or b'"test_start"' in head else 0.0


IPERF3 = LinkReader("iperf3", "output of iperf3 --json", read_iperf3, _score)
link_readers.register(IPERF3.name)(IPERF3)
