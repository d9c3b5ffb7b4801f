"""The CICV5G recordings: round-trip time of 5G from a moving vehicle at about 20 Hz, with RSRP and SINR."""

from __future__ import annotations

from adaptsplit.links.columns import Parse, collect, increasing, number, space_rows
from adaptsplit.links.container import Table
from adaptsplit.links.readers import LinkReader, first_line, link_readers
from adaptsplit.links.recording import Recording
from adaptsplit.links.sampling import spread

DEFAULT_DT_S = 0.05  # the nominal 20 Hz; the measured median interval is 55 ms
COLUMNS: dict[str, tuple[str, Parse]] = {
    "time": ("pub_time(ms)", number("a time in ms, 0 to 1e15", 0.0, 1e15, factor=1e-3)),
    "rtt_s": ("delay(ms)", number("a delay in ms, 0 to 600000", 0.0, 6e5, factor=1e-3)),
    "signal_dbm": ("rsrp(db)", number("RSRP in dBm, -200 to 0", -200.0, 0.0)),
    "sinr_db": ("sinr(db)", number("SINR in dB, -100 to 100", -100.0, 100.0)),
}


def read_cicv5g(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read a run: text with a header, one row per message that the cloud echoed (Zhang et al., Zenodo 17475688, 2025).

    ``delay(ms)`` is the time from vehicle to cloud and back on one clock; it holds from the sending of one message
    until that of the next, averaged over ``dt_s`` (50 ms by default). Delays of many seconds are real: messages wait
    one behind the other while the link is down. The runs hold no rate, so they serve as ``rtt_from`` of another link.
    Some runs have more fields than names; the surplus is left out. Data CC BY 4.0.

    Raises:
        LinkError: not such a table, bad fields, times that do not increase.
    """
    rows = space_rows(table)
    line, header = next(rows, (1, []))
    names = [name.lower() for name in header]
    absent = [name for name, _ in COLUMNS.values() if name not in names]
    if absent:
        table.fail(line, " ".join(header), f"the columns {', '.join(absent)} of CICV5G")
    columns, lines = collect(table, rows, {key: (names.index(name), parse) for key, (name, parse) in COLUMNS.items()})
    time = columns.pop("time")
    increasing(table, lines, time)
    dt = dt_s or DEFAULT_DT_S
    sampled = spread(table.place, time, float(time[-1]) + dt, columns, dt)
    note = f"cicv5g {table.name}: {lines.size} echoed messages as samples of {dt:g} s; no rate recorded"
    return [Recording(table.name, family or "5g", dt, sampled, (note,))]


def _score(head: bytes) -> float:
    names = first_line(head).split()
    return 1.0 if {b"pub_time(ms)", b"delay(ms)"} <= set(names) else 0.0


CICV5G = LinkReader("cicv5g", "text with pub_time(ms) and delay(ms): round trips of CICV5G", read_cicv5g, _score)
link_readers.register(CICV5G.name)(CICV5G)
