"""The live log of a device as a link: what acknowledgements and heartbeats tell of the link that they crossed.

A message of b bytes handed over at t is acknowledged at ``finish(t, 8 b) + rtt`` (``LinkClock``; half a round trip each
way). One delay cannot tell the two apart; messages of different sizes near each other can, and so can messages that
waited for one another. What grows with the size is capacity, the rest is round trip.
"""

from __future__ import annotations

import io
import math
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import LinkError
from adaptsplit.links.columns import MAX_ROWS
from adaptsplit.links.container import Table
from adaptsplit.links.jsontext import load_json, quantity
from adaptsplit.links.readers import LinkReader, link_readers
from adaptsplit.links.recording import Recording
from adaptsplit.links.trace import MAX_SAMPLES, Array

DEFAULT_DT_S = 0.05
BEAT_BYTES = 96  # of a heartbeat on the wire (estimators.HEARTBEAT_BYTES)
NEAR_BEATS = 5  # on each side; the least round trip of these is that of the link without a queue
BLOCKED = 3.0, 0.25  # slower than 3 times the least round trip near it, plus 250 ms: it stood before a blocked link
SILENCE_S = 2.5  # without an answered heartbeat (one is sent each second): nothing passed
PAIR_S, PAIR_BITS = 0.35, 800.0  # two messages tell of the capacity when this near in time and this far in size
WINDOW_S = 2.5  # on each side: the pairs whose median is the capacity
FASTEST, SLOWEST = 1e-9, 1e-3  # s per bit: 1 Gbit/s and 1 kbit/s, beyond which delays at 10 Hz tell nothing
MAX_TIME_S = 1e7
MAX_LINE = 1 << 16


@dataclass(slots=True)
class _Log:
    """Columns of a log: messages (sent, acknowledged or NaN, bytes), beats (sent, heard), reports of the signal."""

    sent: array[float] = field(default_factory=lambda: array("d"))
    acked: array[float] = field(default_factory=lambda: array("d"))
    size: array[float] = field(default_factory=lambda: array("d"))
    beats: array[float] = field(default_factory=lambda: array("d"))
    heard: array[float] = field(default_factory=lambda: array("d"))
    signal_at: array[float] = field(default_factory=lambda: array("d"))
    signal: array[float] = field(default_factory=lambda: array("d"))
    end: float = 0.0


@dataclass(frozen=True, slots=True)
class _Crossings:
    """(M,) messages and heartbeats that crossed the link, in the order of sending; times s.

    ``delay`` is from the moment at which the link was free for it until its acknowledgement; ``queued`` says that it
    had to wait for the one before, so that its delay is service alone; ``blocked`` that the link did not move.
    """

    sent: Array
    done: Array
    bits: Array
    delay: Array
    queued: NDArray[np.bool_]
    blocked: NDArray[np.bool_]


def read_live(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read a live log (``adaptsplit device --log``) as one recording of its uplink.

    Capacity: the weighted median, over 2.5 s on either side, of what pairs of messages of different size and messages
    that queued behind one another tell. Round trip: what is left of each delay. A message or
    heartbeat that took more than three times the least round trip near it and 250 ms stood before a blocked link, and
    nothing passed meanwhile. Capacity is 0 from a message that was never acknowledged, or a second after a heartbeat
    followed by 2.5 s without another, until the next sending that was answered: a dead broker or edge reads as an
    outage. Samples of ``dt_s`` (by default 0.05 s) in which nothing was under way are interpolated, and counted in
    ``filled``. Signal: as the device reported it.

    TCP hides loss: a retransmission reads as a slower moment, and no loss is recorded.

    Raises:
        LinkError: a line that is no JSON object, numbers out of range, no acknowledged message, no answered heartbeat.
    """
    log = _parse(table)
    dt = dt_s or DEFAULT_DT_S
    count = _samples(table, log.end, dt)
    crossed = _crossings(log)
    at, per_bit = _per_bit(crossed)
    middle = (np.arange(count) + 0.5) * dt
    capacity, idle = _capacity(log, crossed, np.exp(-np.interp(middle, at, np.log(per_bit))), dt)
    rtt = _round_trips(crossed, np.interp(crossed.sent, at, per_bit), count, dt)
    columns = {"capacity_bps": capacity, "rtt_s": rtt}
    if log.signal:
        report = np.searchsorted(_ordered(log.signal_at, log.signal_at), middle, side="right") - 1
        columns["signal_dbm"] = _ordered(log.signal_at, log.signal)[np.maximum(report, 0)]
    heard = f"{len(log.sent)} messages, {len(log.beats)} heartbeats"
    note = f"live log {table.name}: {heard}; {idle} idle samples interpolated"
    return [Recording(table.name, family or "live", dt, columns, (note,), filled=idle)]


def _samples(table: Table, end_s: float, dt: float) -> int:
    if end_s / dt > MAX_SAMPLES:
        raise LinkError(
            f"{table.place}: {end_s:g} s in samples of {dt:g} s; look for a wrong time, or take longer ones"
        )
    return max(1, math.ceil(round(end_s / dt, 6)))


def _crossings(log: _Log) -> _Crossings:
    """Messages and heartbeats together; who waited is judged by the least round trips of the heartbeats."""
    acked = np.array(log.acked)
    through = ~np.isnan(acked)
    sent = np.concatenate([np.array(log.sent)[through], np.array(log.beats)])
    done = np.concatenate([acked[through], np.array(log.heard)])
    bits = 8.0 * np.concatenate([np.array(log.size)[through], np.full(len(log.beats), float(BEAT_BYTES))])
    order = np.argsort(sent, kind="stable")
    sent, done, bits = sent[order], done[order], bits[order]
    beats, heard = _ordered(log.beats, log.beats), _ordered(log.beats, log.heard)
    least = np.interp(sent, beats, _least_near(heard - beats))
    before = np.concatenate(([-np.inf], np.maximum.accumulate(done)[:-1]))
    queued = (sent < before - least) & (bits > 8.0 * BEAT_BYTES) & (done > before)  # heartbeats do not wait their turn
    delay = done - np.where(queued, before, sent)
    blocked = ~queued & (delay > BLOCKED[0] * least + BLOCKED[1])
    return _Crossings(sent, done, bits, delay, queued, blocked)


def _least_near(values: Array) -> Array:
    padded = np.pad(values, NEAR_BEATS, constant_values=np.inf)
    near: Array = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEAR_BEATS + 1).min(axis=1)
    return near


def _per_bit(crossed: _Crossings) -> tuple[Array, Array]:
    """Times and the seconds that a bit takes, from pairs (Theil and Sen's slopes) and from what had queued."""
    free = np.flatnonzero(~crossed.queued & ~crossed.blocked)
    sent, delay, bits = crossed.sent[free], crossed.delay[free], crossed.bits[free]
    slopes, weights, at = (
        [crossed.delay[crossed.queued]],
        [crossed.bits[crossed.queued]],
        [crossed.sent[crossed.queued]],
    )
    slopes = [slopes[0] / weights[0]]
    for step in (1, 2):
        far = np.abs(bits[step:] - bits[:-step])
        near = (sent[step:] - sent[:-step] <= PAIR_S) & (far >= PAIR_BITS)
        slopes.append(((delay[step:] - delay[:-step])[near]) / (bits[step:] - bits[:-step])[near])
        weights.append(far[near])
        at.append(sent[:-step][near])
    when, slope, weight = (np.concatenate(parts) for parts in (at, slopes, weights))
    if not when.size:  # all of one size and none queued: the delay is all there is, and it sets a floor
        floor = float(np.median(crossed.delay / crossed.bits))
        return np.zeros(1), np.clip(np.array([0.1 * floor]), FASTEST, SLOWEST)
    order = np.argsort(when, kind="stable")
    when, slope, weight = when[order], slope[order], weight[order]
    centres = np.arange(0.0, float(crossed.sent[-1]) + WINDOW_S, 0.5 * WINDOW_S)
    value = np.array([_window(when, slope, weight, float(centre)) for centre in centres])
    return centres, np.clip(value, FASTEST, SLOWEST)


def _window(when: Array, slope: Array, weight: Array, centre: float) -> float:
    """The weighted median of the slopes around ``centre``; the nearest few where there are none."""
    first, last = np.searchsorted(when, (centre - WINDOW_S, centre + WINDOW_S))
    if last - first < 3:
        middle = int(np.searchsorted(when, centre))
        first, last = max(middle - 3, 0), min(middle + 3, when.size)
    chosen = np.argsort(slope[first:last])
    total = np.cumsum(weight[first:last][chosen])
    return float(slope[first:last][chosen][np.searchsorted(total, 0.5 * total[-1])])


def _round_trips(crossed: _Crossings, per_bit: Array, count: int, dt: float) -> Array:
    """(H,) what of each delay did not grow with the size, at the time of its service; interpolated where nothing was.

    It is not smoothed: a replay then shows the device each delay as it was, whatever the share of the two in it.
    """
    free = ~crossed.queued & ~crossed.blocked
    service = (crossed.bits * per_bit)[free]
    left = np.maximum(crossed.delay[free] - service, 0.1 * crossed.delay[free])
    place = np.minimum(((crossed.sent[free] + service) / dt).astype(np.int64), count - 1)
    number = np.bincount(place, minlength=count)
    total = np.bincount(place, left, minlength=count)
    known = np.flatnonzero(number)
    return np.interp(np.arange(count), known, total[known] / number[known])


def _capacity(log: _Log, crossed: _Crossings, usual: Array, dt: float) -> tuple[Array, int]:
    """(H,) bit/s: ``usual``, but what passed while the link was blocked, and 0 while it was dead; idle samples."""
    edges: Array = np.linspace(0.0, usual.size * dt, usual.size + 1)
    under_way = _cover(crossed.sent, crossed.done, edges)
    capacity = usual.copy()
    least = float(crossed.delay[~crossed.queued].min())
    for i in np.flatnonzero(crossed.blocked).tolist():
        served = crossed.done[i] - least
        first, last = (int(np.searchsorted(edges, t, side="right")) - 1 for t in (crossed.sent[i], served))
        if first < last < usual.size:
            capacity[first:last] = 0.0
            capacity[last] = min(capacity[last], crossed.bits[i] / max(served - edges[last], 0.1 * dt))
    dead = _dead(log)
    capacity[_cover(dead[:, 0], dead[:, 1], edges) > 0.5 * dt] = 0.0
    if not capacity.any():
        raise LinkError("nothing passed in the time of the log; fly longer, or on a link that passes something")
    return capacity, int((under_way == 0.0).sum())


def _dead(log: _Log) -> Array:
    """(K, 2) from the sending of what never arrived to the sending of the next that did."""
    sent, acked = _ordered(log.sent, log.sent), _ordered(log.sent, log.acked)
    beats, lost = _ordered(log.beats, log.beats), np.isnan(acked)
    through = np.sort(np.concatenate([sent[~lost], beats]))
    silent = np.flatnonzero(np.diff(beats) > SILENCE_S)
    begins = np.concatenate([sent[lost], beats[silent] + 1.0])
    after = np.append(through, max(log.end, float(through[-1])))[np.searchsorted(through, begins, side="right")]
    return np.column_stack([begins, np.maximum(after, begins)]).reshape(-1, 2)


def _cover(begin: Array, end: Array, edges: Array) -> Array:
    """(H,) the time of each sample that lies in any of the intervals (K,), s."""
    covered = np.zeros(edges.size - 1)
    for b, e in zip(begin.tolist(), end.tolist(), strict=True):
        first, last = np.searchsorted(edges, b, side="right") - 1, int(np.searchsorted(edges, e))
        place = slice(max(int(first), 0), last)
        covered[place] += np.clip(np.minimum(edges[1:][place], e) - np.maximum(edges[:-1][place], b), 0.0, None)
    return covered


def _ordered(keys: array[float], values: array[float]) -> Array:
    column: Array = np.array(values)[np.argsort(np.array(keys), kind="stable")]
    return column


def _parse(table: Table) -> _Log:
    log = _Log()
    for line, text in enumerate(io.StringIO(table.text()), start=1):
        if line > MAX_ROWS:
            raise LinkError(f"{table.place}: more than {MAX_ROWS} lines; cut the log into parts")
        place = f"{table.place}, line {line}"
        row = load_json(place, text, MAX_LINE)
        if not isinstance(row, dict):
            table.fail(line, text[:60], "a JSON object, as adaptsplit device --log writes; remove the line")
        if row.get("event") == "beat":
            sent = quantity(place, row, "sent_s", 0.0, MAX_TIME_S)
            log.beats.append(sent)
            log.heard.append(quantity(place, row, "heard_s", sent, MAX_TIME_S))
        elif "event" not in row:
            _frame(log, place, row)
    if not log.beats or not any(not math.isnan(acked) for acked in log.acked):
        raise LinkError(
            f"{table.place}: {len(log.sent)} messages, {len(log.beats)} answered heartbeats; at least one acknowledged "
            "message and one heartbeat are needed: fly longer, or on a link that passes something"
        )
    return log


def _frame(log: _Log, place: str, row: dict[str, object]) -> None:
    arrived = quantity(place, row, "arrived_s", 0.0, MAX_TIME_S)
    log.end = max(log.end, arrived + 1e-3)
    times = row.get("times")
    if not isinstance(times, dict):
        return
    if "signal_dbm" in times:
        log.signal.append(quantity(place, times, "signal_dbm", -300.0, 100.0))
        log.signal_at.append(arrived)
    if "sent_s" in times:
        sent = quantity(place, times, "sent_s", 0.0, MAX_TIME_S)
        log.sent.append(sent)
        log.size.append(quantity(place, times, "wire_bytes", 1.0, 1e9))
        acked = quantity(place, times, "acked_s", sent, MAX_TIME_S) if "acked_s" in times else math.nan
        log.acked.append(acked)
        log.end = max(log.end, sent if math.isnan(acked) else acked)


def _score(head: bytes) -> float:
    first = head.split(b"\n", 1)[0]
    if not first.lstrip().startswith(b"{"):
        return 0.0
    return 1.0 if b'"event": "run"' in first or (b'"controller"' in head and b'"remote_latency_s"' in head) else 0.0


LIVE_LOG = LinkReader("live-log", "log of adaptsplit device --log", read_live, _score)
link_readers.register(LIVE_LOG.name)(LIVE_LOG)
