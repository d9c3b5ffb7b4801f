"""The 5G production logs of University College Cork: downlink rate, RSRP, SNR and ping of a phone, 1 s."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.columns import Parse, collect, csv_rows, number
from adaptsplit.links.container import Table
from adaptsplit.links.readers import LinkReader, UnsuitableError, first_line, link_readers
from adaptsplit.links.recording import Recording, last_known
from adaptsplit.links.sampling import per_second
from adaptsplit.links.trace import Array

MAX_IDLE_SHARE = 0.05  # measured: at most 0.018 in the 21 logs of Download/, at least 0.10 in the 62 others
NO_RSRP_DBM = -200.0  # what the logs hold where there is none
MISSING = ("-", "")
COLUMNS: dict[str, tuple[str, Parse]] = {
    "rate": ("DL_bitrate", number("a rate in kbit/s, 0 to 1e7", 0.0, 1e7, factor=1e3)),
    "signal_dbm": ("RSRP", number("RSRP in dBm, -200 to 0, or -", NO_RSRP_DBM, 0.0, missing=MISSING)),
    "sinr_db": ("SNR", number("SNR in dB, -100 to 100, or -", -100.0, 100.0, missing=MISSING)),
    "rtt_s": ("PINGAVG", number("a ping in ms, 0 to 600000, or -", 0.0, 6e5, factor=1e-3, missing=MISSING)),
}


def read_ucc5g(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read a log of ``5G-production-dataset.zip``, or the whole zip.

    Raca, Leahy, Sreenan and Quinlan, "Beyond Throughput, the Next Generation", MMSys 2020; data GPL-3.0; logged by
    G-NetTrack Pro. Capacity is ``DL_bitrate`` (kbit/s): the *downlink*, which the provenance says. ``UL_bitrate`` is
    the acknowledgements' traffic and no capacity. Only a log of a file download fills the link: one whose ``State``
    is idle (``I``) in more than 5 % of its rows is a video's, and is refused (or left out of the zip). Rows of one
    second are averaged, a missing second repeats the one before. ``RSRP`` -200 and ``-`` are unknown; in rows of 3G
    the column holds that network's own level (from memory: RSCP). The round trip is ``PINGAVG``, measured about every
    15 s *while the download fills the link*, held until the next; ``PINGLOSS`` (five pings) is left out.

    Raises:
        LinkError: not such a table, bad fields, times that fall, gaps beyond 10 s, ``dt_s`` other than 1 s.
    """
    if dt_s not in (None, 1.0):
        raise LinkError(f"{table.place}: sample length {dt_s} s; these recordings have 1 s, leave the option out")
    columns, lines = _columns(table)
    idle = float(columns.pop("idle").mean())
    if idle > MAX_IDLE_SHARE:
        raise UnsuitableError(
            f"{table.place}: idle in {100 * idle:.0f} % of its rows, so the application and not the link set the rate; "
            "give a log of Download/"
        )
    columns["signal_dbm"][columns["signal_dbm"] <= NO_RSRP_DBM] = np.nan
    sampled, filled = per_second(table, lines, columns.pop("time"), columns)
    sampled = {"capacity_bps": sampled.pop("rate"), **sampled}
    rtt = last_known(sampled.pop("rtt_s"))
    if rtt is not None:
        sampled["rtt_s"] = rtt
    note = (
        f"ucc5g {table.name}: downlink (DL_bitrate) of {lines.size} rows taken as capacity; round trip pinged under "
        f"that load about every 15 s and held; {filled} missing seconds repeat the one before"
    )
    return [Recording(table.name, family or "5g", 1.0, sampled, (note,), filled)]


def _columns(table: Table) -> tuple[dict[str, Array], Array]:
    rows = csv_rows(table)
    line, header = next(rows, (1, []))
    names = {"time": "Timestamp", "idle": "State", **{key: name for key, (name, _) in COLUMNS.items()}}
    absent = [name for name in names.values() if name not in header]
    if absent:
        table.fail(line, ",".join(header), f"the columns {', '.join(absent)} of the UCC 5G data set")
    parsers = {"time": _time, "idle": _idle, **{key: parse for key, (_, parse) in COLUMNS.items()}}
    return collect(table, rows, {key: (header.index(names[key]), parse) for key, parse in parsers.items()})


def _idle(text: str) -> float:
    return float(text.strip() == "I")


def _time(text: str) -> float:
    try:
        stamp = datetime.fromisoformat(text[:10].replace(".", "-") + "T" + text[11:].replace(".", ":"))
    except ValueError:
        raise ValueError("a date and time such as 2019.12.16_13.40.04") from None
    return stamp.replace(tzinfo=UTC).timestamp() // 1


def _score(head: bytes) -> float:
    names = first_line(head).split(b",")
    return 1.0 if {b"timestamp", b"dl_bitrate", b"networkmode"} <= set(names) else 0.0


UCC5G = LinkReader("ucc5g", "log or zip of the UCC 5G production data set", read_ucc5g, _score)
link_readers.register(UCC5G.name)(UCC5G)
