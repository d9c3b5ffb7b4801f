"""The Perama recordings: Wi-Fi 5, 6 and 6E uplink in a shipyard, from the counters of the device, 0.5 s."""

from __future__ import annotations

import io
import math
import re
from array import array
from itertools import pairwise

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.columns import MAX_ROWS
from adaptsplit.links.container import Table
from adaptsplit.links.jsontext import entry, load_json, quantity
from adaptsplit.links.readers import LinkReader, link_readers
from adaptsplit.links.recording import Recording
from adaptsplit.links.sampling import MAX_GAP_S, spread
from adaptsplit.links.trace import Array

DEFAULT_DT_S = 0.5
MIN_GAP_S = 1e-3
MAX_LINE_CHARS = 64 << 10
COUNTER = 1 << 32
# A counter that falls has wrapped at 2^32 or was reset; a wrap that would need more than this was a reset. The fastest
# of these links (Wi-Fi 6E, 160 MHz, two streams) has 2.4 Gbit/s on air.
MAX_RATE_BPS = 2.5e9
_SENT = re.compile(r"^\s*TX: (\d{1,15}) bytes", re.MULTILINE)
_SIGNAL = re.compile(r"^\s*signal: (-?\d{1,3}) dBm", re.MULTILINE)
_ABSENT = "Not connected."


def read_perama(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read a ``*_phy.json`` log: JSON lines with the output of ``iw link`` (M. Rady, Perama, 2022; MPL-2.0).

    A line comes every 0.5 s. Uplink capacity is the difference of the bytes sent by an iperf TCP uplink between two
    lines. The counter has 32 bits and wraps; at a new association it starts at 0, so what it shows first was sent
    since. While the device is not connected capacity is 0 and the signal unknown. Bits are kept over uniform samples
    of ``dt_s`` (0.5 s). No round trip, no loss.

    Raises:
        LinkError: a line that is no such JSON, times that fall, gaps beyond 10 s, fewer than two lines.
    """
    time, sent, signal = _lines(table)
    if time.size < 2:
        raise LinkError(f"{table.place}: {time.size} line, expected at least 2: a rate is a difference")
    rate = np.array([_rate(*step) for step in zip(pairwise(sent), np.diff(time), strict=True)])
    dt = dt_s or DEFAULT_DT_S
    columns = {"capacity_bps": rate, "signal_dbm": signal[1:]}
    sampled = spread(table.place, time[:-1], float(time[-1]), columns, dt)
    lost = int(np.isnan(sent).sum())
    note = f"perama {table.name}: uplink from the TX counter in samples of {dt:g} s; not connected in {lost} lines"
    return [Recording(table.name, family or "wifi", dt, sampled, (note,))]


def _rate(counters: tuple[float, float], seconds: float) -> float:
    """Bit/s between two readings of the counter (NaN: not connected)."""
    before, after = counters
    if math.isnan(after):
        return 0.0
    if math.isnan(before):
        return after * 8 / seconds
    if after >= before:
        return (after - before) * 8 / seconds
    wrapped = (after - before + COUNTER) * 8 / seconds
    return wrapped if 0 <= wrapped <= MAX_RATE_BPS else after * 8 / seconds


def _lines(table: Table) -> tuple[Array, Array, Array]:
    """(M,) s, bytes sent (NaN: not connected), dBm (NaN: not connected)."""
    rows = array("d")
    last = math.nan
    for line, text in enumerate(io.StringIO(table.text()), start=1):
        if line > MAX_ROWS:
            raise LinkError(f"{table.place}: more than {MAX_ROWS} lines; cut the recording into parts")
        if not text.strip():
            continue
        time, sent, signal = _line(f"{table.place}, line {line}", text)
        if not (math.isnan(last) or MIN_GAP_S <= time - last <= MAX_GAP_S):
            expected = f"{MIN_GAP_S:g} to {MAX_GAP_S:g} s; cut the log there"
            table.fail(line, f"{time - last:g} s after the line before", expected)
        last = time
        rows.extend((time, sent, signal))
    values = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return values[:, 0], values[:, 1], values[:, 2]


def _line(place: str, text: str) -> tuple[float, float, float]:
    document = load_json(place, text, MAX_LINE_CHARS)
    payload = entry(place, document, "payload", dict)
    source, key = (payload, "src_timestamp_ns") if "src_timestamp_ns" in payload else (document, "timestamp")
    time = quantity(place, source, key, 0, 1e19) / 1e9
    link = entry(place, payload, "phy", str)
    if link.strip() == _ABSENT:
        return time, math.nan, math.nan
    sent, signal = _SENT.search(link), _SIGNAL.search(link)
    if sent is None:
        raise LinkError(f"{place}: found no 'TX: ... bytes' in the output of iw, nor {_ABSENT!r}; remove the line")
    return time, float(sent[1]), float(signal[1]) if signal else math.nan


def _score(head: bytes) -> float:
    first = head.split(b"\n", 1)[0]
    return 1.0 if first.lstrip().startswith(b"{") and b'"payload"' in first and b'"phy"' in first else 0.0


PERAMA = LinkReader("perama", "JSON lines with the output of iw link (Perama Wi-Fi)", read_perama, _score)
link_readers.register(PERAMA.name)(PERAMA)
