"""The link of a live log, for a replay in which every message and heartbeat has the delay that it had.

``adaptsplit.links.livelog`` reads a link in samples; a message's delay falls on those in which its service ends, in
which it arrives (its acknowledgement leaves then) and in which its result leaves, a heartbeat's on that of its sending.
In samples of 50 ms their neighbours have a share in them. Here samples are short, and those that one of them reads hold
its own round trip. ``adaptsplit.evaluation.replay`` reads the link as any recording, without this.

A trace has at most 5 million samples, so those of a long run are longer: 1 ms up to 20 minutes, 5 ms up to 6.9 hours,
then 10 ms (13.9 hours), 20 ms (27.8 hours), 50 ms (69 hours) and so on. What is sent within one sample of another has
its round trip; from 50 ms on this link is hardly better than the one that is read as any recording.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaptsplit import estimators as est
from adaptsplit.links import LinkClock, LinkTrace
from adaptsplit.links.container import read_bytes
from adaptsplit.links.readers import parse_recordings
from adaptsplit.links.trace import MAX_SAMPLES
from adaptsplit.recorded_run import MAX_LOG_BYTES, RecordedRun

SAMPLE_S = 0.001
LONG_SAMPLES_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # 5 million of the last are 290 days
LONG_RUN_S = 1200.0  # beyond which samples are longer than need be for their number: 1.2 million of them are 100 MB
ROOM_S = 1.0  # the link may end this much later than the run
NEAR_S = 0.001  # what is sent in the replay this much earlier or later than live still finds its own samples
ROUNDING = 1e-6  # s
LEAST_RTT_S = 0.001  # where the capacity that was read leaves less than that


def read_own_link(log: Path, run: RecordedRun) -> LinkTrace:
    """Return the link of a live log with every delay as it was; LinkError as ``read_links``."""
    return with_own_delays(read_log_link(log, sample_s(end_s(run))), run, _beats(log))


def read_log_link(log: Path, dt_s: float) -> LinkTrace:
    """Return the link of a live log of any length that ``read_run`` takes; LinkError as ``read_links``."""
    (recording,) = parse_recordings(log, read_bytes(log, MAX_LOG_BYTES), "live-log", dt_s=dt_s)
    return recording.trace()


def end_s(run: RecordedRun) -> float:
    """Return when a run's link ends: with the last frame or acknowledgement, s since frame 0."""
    last = (max(times.get("acked_s", 0.0), times.get("sent_s", 0.0)) for times in run.times)
    return max(float(run.records["arrived_s"].max()), *last)


def sample_s(run_s: float, least_s: float = SAMPLE_S) -> float:
    """Return the length of the samples of a run's link, s: the shortest, from ``least_s`` on, that are not too many."""
    known = LONG_SAMPLES_S if run_s > LONG_RUN_S else (SAMPLE_S, *LONG_SAMPLES_S)
    fitting = [dt for dt in known if dt >= least_s and (run_s + ROOM_S) / dt <= MAX_SAMPLES]
    return fitting[0] if fitting else known[-1]  # which read_links then refuses


def with_own_delays(link: LinkTrace, run: RecordedRun, beats: list[tuple[float, float]]) -> LinkTrace:
    """Return ``link`` with round trips such that what was sent is acknowledged, answered and echoed when it was.

    By the simulator's arithmetic: service ends at ``finish(max(sent, free), 8 b)``, half the round trip of that moment
    later the message arrives; half that of its arrival later it is acknowledged, and half that of the end of the
    server's work later its result is there. A heartbeat of ``beats`` (sent, heard) is answered a round trip of its
    sending after its service; in the simulator it is sent at the whole second. Where several need the same sample, a
    heartbeat has it first (the estimate of the round trip stays with the device), then an acknowledgement.
    """
    clock, free, found, later = LinkClock(link), 0.0, np.array(link.rtt_s), np.array(link.rtt_s)
    claimed = np.zeros(found.size, dtype=np.bool_)
    for message in _messages(run):
        free = clock.finish(max(message.sent, free), 8.0 * message.wire)
        rtt = max(message.acked - free, LEAST_RTT_S)
        arrival = free + 0.5 * rtt
        done = arrival + message.served
        for at in (free, arrival):
            span = _span(at - NEAR_S, at + NEAR_S, link.dt_s)
            found[span], claimed[span] = rtt, True
        back = 2.0 * (message.result - done) if math.isfinite(message.result) else rtt
        later[_span(done - NEAR_S, done + NEAR_S, link.dt_s)] = max(back, LEAST_RTT_S)
    found = np.where(claimed, found, later)
    for sent, heard in beats:
        begin = est.HEARTBEAT_PERIOD_S * math.floor(sent / est.HEARTBEAT_PERIOD_S + ROUNDING)
        service = clock.finish(begin, 8.0 * est.HEARTBEAT_BYTES) - begin
        found[_span(begin - ROUNDING, begin + ROUNDING, link.dt_s)] = max(heard - sent - service, LEAST_RTT_S)
    return replace(link, rtt_s=found)


def _span(begin: float, end: float, dt: float) -> slice:
    """The samples that hold at any time between the two."""
    return slice(int(max(begin, 0.0) / dt), int(max(end, 0.0) / dt) + 1)


class _Message(NamedTuple):
    """An acknowledged message: when it was sent, acknowledged and answered (NaN: not), its bytes, the server's work."""

    sent: float
    wire: float
    acked: float
    result: float
    served: float


def _messages(run: RecordedRun) -> list[_Message]:
    """In the order of sending."""
    found = []
    for record, times in zip(run.records, run.times, strict=True):
        if "acked_s" in times:
            result = float(record["arrived_s"]) + float(record["remote_latency_s"])
            served = times.get("server_s", 0.0) - times.get("queue_s", 0.0)
            found.append(_Message(times["sent_s"], times["wire_bytes"], times["acked_s"], result, served))
    return sorted(found)


def _beats(log: Path) -> list[tuple[float, float]]:
    """When each answered heartbeat was sent and heard; the log has been read as a link before, so it is whole."""
    rows = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [(float(row["sent_s"]), float(row["heard_s"])) for row in rows if row.get("event") == "beat"]
