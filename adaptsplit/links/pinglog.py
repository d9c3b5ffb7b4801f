"""The output of ping on Linux (iputils), with or without timestamps: round-trip times and lost replies."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, field

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.columns import MAX_ROWS
from adaptsplit.links.container import Table
from adaptsplit.links.readers import LinkReader, link_readers
from adaptsplit.links.recording import Recording, last_known
from adaptsplit.links.sampling import MAX_MEASURED_LOSS, hold
from adaptsplit.links.trace import MAX_RTT_S, MAX_SAMPLES, Array

DEFAULT_INTERVAL_S = 1.0  # of ping without -i
LOSS_WINDOW = 20  # probes
SEQUENCE = 1 << 16
MIN_DT_S = 0.01
_STAMP = re.compile(r"\[(\d{1,12}(?:\.\d{1,9})?)\] ")
_REPLY = re.compile(r"\d{1,5} bytes from .{1,300}icmp_seq=(\d{1,9}) .{0,40}time[=<](\d{1,9}(?:\.\d{1,6})?) ms")
_UNANSWERED = re.compile(r"(?:no answer yet for|Request timeout for|From .{1,300}?) icmp_seq[= ](\d{1,9})\b")
_SUMMARY = re.compile(r"(\d{1,9}) packets transmitted, .{0,100}?(?:time (\d{1,12})ms)?$")
_OTHER = re.compile(r"$|--- |rtt |round-trip |ping: |ping6: |From |WARNING: |Warning: |\d+/\d+ packets, ")


@dataclass(slots=True)
class _Log:
    """What the lines of a log say; ``replies`` is sequence number -> (line, round trip s, time of arrival s)."""

    replies: dict[int, tuple[int, float, float]] = field(default_factory=dict)
    first: int | None = None
    last: int = 0
    header: bool = False
    interval_s: float | None = None
    sent: int = 0


def read_ping(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read one run of ``ping`` or, better, ``ping -D`` (a timestamp before each line) or ``ping -D -O``.

    A probe without a reply is lost ("no answer yet" alone is not: the reply may come later); a second reply is left
    out. Round trip: that of each probe from its sending until the next one's, and the one before where it was lost.
    Loss: the share of lost probes among the 20 around each, at most 0.99, for one probe says nothing of a share.
    Times of sending are those of the replies less their round trip; without timestamps the interval is that of the
    closing summary, or the 1 s that ping takes by default, and the provenance says which. Averaged over samples of
    ``dt_s`` (by default the interval). There is no rate: the recording serves as ``rtt_from`` of another link.

    Raises:
        LinkError: a line that ping does not print, no reply, more than one run, sequence numbers out of range.
    """
    log = _parse(table)
    if not log.replies or log.first is None:
        raise LinkError(f"{table.place}: no reply in the log, so no round trip is known; check the host and ping again")
    first = min(log.first, 1) if log.header else log.first
    count = max(log.last - first + 1, log.sent)
    if count > MAX_SAMPLES:
        raise LinkError(f"{table.place}: {count} probes, at most {MAX_SAMPLES}; look for a wrong sequence number")
    order = np.array(sorted(log.replies))
    rows = np.array([log.replies[number] for number in order.tolist()])
    rtt = np.full(count, math.nan)
    rtt[order - first] = rows[:, 1]
    sent_at, interval, clock = _times(table, log, order - first, rows, count)
    dt = dt_s or max(round(interval, 3), MIN_DT_S)
    loss, held = _loss(np.isnan(rtt)), last_known(rtt)
    assert held is not None  # there is a reply
    columns = {
        name: hold(table.place, sent_at, float(sent_at[-1]) + interval, values, dt)
        for name, values in (("rtt_s", held), ("loss", loss))
    }
    lost = count - len(order)
    note = f"ping {table.name}: {count} probes, {lost} lost; {clock}; no rate recorded"
    return [Recording(table.name, family or "recorded", dt, columns, (note,), filled=lost)]


def _times(table: Table, log: _Log, at: Array, rows: Array, count: int) -> tuple[Array, float, str]:
    """(count,) times of sending, the interval, and where they are from."""
    stamped = ~np.isnan(rows[:, 2])
    if not stamped.all() or len(at) < 2:
        interval = log.interval_s or DEFAULT_INTERVAL_S
        source = "of the summary" if log.interval_s else "assumed, ping's default"
        return interval * np.arange(count, dtype=np.float64), interval, f"interval {interval:g} s {source}"
    sent = rows[:, 2] - rows[:, 1]
    steps = np.diff(sent) / np.diff(at)
    if not (steps > 0).all():
        line = int(rows[int(np.argmin(steps > 0)) + 1, 0])
        table.fail(line, "a timestamp that falls", "times that increase with icmp_seq; cut the log there")
    interval = float(np.median(steps))
    index = np.arange(count, dtype=np.float64)
    inside = np.interp(index, at, sent)
    before = sent[0] + (index - at[0]) * interval
    after = sent[-1] + (index - at[-1]) * interval
    times = np.where(index < at[0], before, np.where(index > at[-1], after, inside))
    return times, interval, f"interval {interval:.4g} s of the timestamps"


def _loss(lost: Array) -> Array:
    """(count,) share of lost probes among the ``LOSS_WINDOW`` around each (fewer at the ends)."""
    total = np.concatenate(([0.0], np.cumsum(lost)))
    index = np.arange(lost.size)
    low = np.maximum(index - LOSS_WINDOW // 2, 0)
    high = np.minimum(index + LOSS_WINDOW // 2, lost.size)
    share: Array = np.minimum((total[high] - total[low]) / (high - low), MAX_MEASURED_LOSS)
    return share


def _parse(table: Table) -> _Log:
    log = _Log()
    for line, raw in enumerate(io.StringIO(table.text()), start=1):
        if line > MAX_ROWS:
            raise LinkError(f"{table.place}: more than {MAX_ROWS} lines; cut the log into parts")
        text = raw.strip()
        stamp = _STAMP.match(text)
        if stamp:
            text = text[stamp.end() :]
        arrived = float(stamp[1]) if stamp else math.nan
        if reply := _REPLY.match(text):
            _reply(table, log, line, reply, arrived)
        elif unanswered := _UNANSWERED.match(text):
            _number(table, log, line, unanswered[1])
        elif summary := _SUMMARY.match(text):
            log.sent = int(summary[1])
            log.interval_s = float(summary[2]) / 1e3 / (log.sent - 1) if summary[2] and log.sent > 1 else None
        elif text.startswith("PING "):
            if log.header:
                table.fail(line, text, "one run of ping per file; cut the log there")
            log.header = True
        elif not _OTHER.match(text):
            table.fail(line, text, "a line as ping on Linux prints it; remove the line")
    return log


def _reply(table: Table, log: _Log, line: int, reply: re.Match[str], arrived: float) -> None:
    rtt = float(reply[2]) / 1e3
    if rtt > MAX_RTT_S:
        table.fail(line, f"{reply[2]} ms", f"a round trip of at most {MAX_RTT_S:g} s; remove the line")
    number = _number(table, log, line, reply[1])
    log.replies.setdefault(number, (line, rtt, arrived))


def _number(table: Table, log: _Log, line: int, text: str) -> int:
    """The sequence number, counted on where its 16 bits wrap."""
    value = int(text)
    if value >= SEQUENCE:
        table.fail(line, f"icmp_seq {value}", f"0 to {SEQUENCE - 1}; mend or remove the line")
    if log.first is None:
        log.first = log.last = value
        return value
    step = (value - log.last + SEQUENCE // 2) % SEQUENCE - SEQUENCE // 2
    number = log.last + step
    if number < min(log.first, 0):
        table.fail(line, f"icmp_seq {value}", f"a number near {log.last % SEQUENCE}; mend or remove the line")
    log.first, log.last = min(log.first, number), max(log.last, number)
    return number


def _score(head: bytes) -> float:
    lines = [line for line in head.split(b"\n") if line.strip()]
    share = sum(b"icmp_seq" in line for line in lines) / max(1, len(lines))
    return 0.95 if head.startswith(b"PING ") or share > 0.3 else 0.0


PING = LinkReader("ping", "output of ping or ping -D on Linux", read_ping, _score)
link_readers.register(PING.name)(PING)
