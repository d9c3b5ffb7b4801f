"""The NYU-METS recordings: LTE downlink rate in buses, subways and trains of New York, 1 s."""

from __future__ import annotations

import re

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.columns import collect, csv_rows, number
from adaptsplit.links.container import Table
from adaptsplit.links.readers import LinkReader, link_readers
from adaptsplit.links.recording import Recording
from adaptsplit.links.trace import Array

UNITS = {"bits/sec": 1.0, "Kbits/sec": 1e3, "Mbits/sec": 1e6, "Gbits/sec": 1e9}
SIGNAL_RANGE_DBM = (-150.0, -20.0)  # outside of it there was no report
_RATE_LINE = re.compile(rb"[0-9.]+,[KMG]?bits/sec\s*")
_LOG_LINE = re.compile(rb"[0-9.]+(?:,-?[0-9.]+){7}\s*")


def read_nyu_mets(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read a rate trace: one ``value,unit`` per second (Mei et al., PAM 2019 and Computer Networks 2020; ODbL 1.0).

    The unit is that of each line, as iperf prints it: ``Mbits/sec`` mostly, ``Kbits/sec`` or ``bits/sec`` in bad
    seconds. The rate is a *downlink* of iperf, which the provenance says. No round trip, no loss.

    Raises:
        LinkError: a line that is no value and unit, ``dt_s`` other than 1 s.
    """
    _only_seconds(table, dt_s)
    columns, _ = collect(table, csv_rows(table), {"value": (0, _VALUE), "unit": (1, _unit)}, 2)
    capacity = columns["value"] * columns["unit"]
    note = f"nyu-mets {table.name}: downlink (iperf) taken as capacity"
    return [Recording(table.name, family or "lte", 1.0, {"capacity_bps": capacity}, (note,))]


def read_nyu_mets_log(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read a multivariate log (``dataset.zip``, or a gzip or text of it): eight numbers per second, no header.

    The order is read off the values, for the origin's text lists the same quantities in another one: rate (Mbit/s,
    downlink), LTE neighbours, cell change, signal (dBm, called RSSI there), RSRQ (dB), timing advance, speed, band
    (MHz). The sign of the signal is missing in whole files and in parts of others; it is restored, and a value
    outside -150 to -20 dBm is unknown.

    Raises:
        LinkError: a line that is not eight numbers, ``dt_s`` other than 1 s.
    """
    _only_seconds(table, dt_s)
    parsers = {"rate": (0, _RATE), "signal": (3, _SIGNAL), "band": (7, _SIGNAL)}
    columns, _ = collect(table, csv_rows(table), parsers, 8)
    signal = -np.abs(columns["signal"])
    signal[(signal < SIGNAL_RANGE_DBM[0]) | (signal > SIGNAL_RANGE_DBM[1])] = np.nan
    restored = int((columns["signal"] > 0).sum())
    note = f"nyu-mets-log {table.name}: downlink taken as capacity; sign of the signal restored in {restored} samples"
    sampled: dict[str, Array] = {"capacity_bps": columns["rate"], "signal_dbm": signal}
    return [Recording(table.name, family or "lte", 1.0, sampled, (note,))]


_VALUE = number("a rate, 0 to 1e12", 0.0, 1e12)
_RATE = number("a rate in Mbit/s, 0 to 1e5", 0.0, 1e5, factor=1e6)
_SIGNAL = number("a number", -1e12, 1e12)


def _unit(text: str) -> float:
    if text.strip() not in UNITS:
        raise ValueError(f"a unit: {', '.join(UNITS)}")
    return UNITS[text.strip()]


def _only_seconds(table: Table, dt_s: float | None) -> None:
    if dt_s not in (None, 1.0):
        raise LinkError(f"{table.place}: sample length {dt_s} s; these recordings have 1 s, leave the option out")


def _score_rate(head: bytes) -> float:
    return _share(head, _RATE_LINE)


def _score_log(head: bytes) -> float:
    return _share(head, _LOG_LINE)


def _share(head: bytes, pattern: re.Pattern[bytes]) -> float:
    lines = [line for line in head.split(b"\n")[:-1] or [head] if line.strip()]
    share = sum(pattern.fullmatch(line) is not None for line in lines) / max(1, len(lines))
    return 0.95 * share if share >= 0.5 else 0.0


NYU_METS = LinkReader("nyu-mets", "value,Mbits/sec per second (NYU-METS sample traces)", read_nyu_mets, _score_rate)
NYU_METS_LOG = LinkReader("nyu-mets-log", "eight columns per second (NYU-METS dataset)", read_nyu_mets_log, _score_log)
link_readers.register(NYU_METS.name)(NYU_METS)
link_readers.register(NYU_METS_LOG.name)(NYU_METS_LOG)
