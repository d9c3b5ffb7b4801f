"""What becomes of a message: link, server, the way back. Names as in ``adaptsplit.envs.core``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.devices import server
from adaptsplit.envs import compiled as rand
from adaptsplit.envs.compiled import compiled, inlined, uniform_of
from adaptsplit.envs.layout import (
    BEAT_REPLY,
    LAST_ARRIVAL,
    LINK,
    LINK_FREE,
    LINK_OFFSET,
    SERVER_AT,
    SERVER_OFFSET,
    SERVER_WORK,
)
from adaptsplit.envs.link import active_between, finish, sample
from adaptsplit.envs.packed import (
    BATCH_MARGINAL,
    BATCH_WINDOW,
    LOSS,
    RADIO_J_PER_BIT,
    RADIO_POINTS,
    RADIO_SIGNAL,
    RADIO_W,
    RADIO_W_PER_BPS,
    RECEIVED,
    RTT,
    SERVER_BACKLOG,
    SERVER_COUNT,
    SERVER_DT,
    SERVER_JOBS,
    Packed,
    of_link,
    of_sample,
)
from adaptsplit.envs.packed import SERVER_WORK as WORK_TABLE

Array = NDArray[Any]
NEVER = 1e12
PACKET_BYTES = 1400.0


@inlined
def round_trip(w: Packed, s: Array, time: float, freeze: float) -> float:
    """Return the round trip that holds at ``time``."""
    return of_sample(w, RTT, sample(w, int(s[LINK]), min(time, freeze) + s[LINK_OFFSET]))


@compiled
def beat_reply(w: Packed, s: Array, sent: float, freeze: float) -> float:
    """Return when the reply to a heartbeat comes: it takes the link's capacity but does not queue behind frames."""
    offset = s[LINK_OFFSET]
    end = finish(w, int(s[LINK]), sent + offset, 8.0 * est.HEARTBEAT_BYTES, freeze + offset) - offset
    return float(max(end + round_trip(w, s, sent, freeze), s[BEAT_REPLY])) if end < NEVER else NEVER


@inlined
def energy_per_bit(w: Packed, signal: float) -> float:
    """Return the radio's energy per bit at a received signal power: linear between the preset's points."""
    count = w.i8[RADIO_POINTS]
    if count == 0 or math.isnan(signal):
        return float(w.f8[RADIO_W_PER_BPS])
    if signal <= of_link(w, RADIO_SIGNAL, 0):
        return of_link(w, RADIO_J_PER_BIT, 0)
    for i in range(1, count):
        high = of_link(w, RADIO_SIGNAL, i)
        if signal <= high:
            low = of_link(w, RADIO_SIGNAL, i - 1)
            before, after = of_link(w, RADIO_J_PER_BIT, i - 1), of_link(w, RADIO_J_PER_BIT, i)
            return before + (after - before) * (signal - low) / (high - low)
    return of_link(w, RADIO_J_PER_BIT, count - 1)


@inlined
def transmit(w: Packed, s: Array, key: np.uint64, wire: float, now: float, freeze: float) -> float:
    """Hand ``wire`` bytes to the link; return the radio energy. Sets the link's and the last arrival's time."""
    link, offset = int(s[LINK]), s[LINK_OFFSET]
    begin = max(now, s[LINK_FREE])
    end = NEVER if begin >= NEVER else finish(w, link, begin + offset, 8.0 * wire, freeze + offset) - offset
    if end >= NEVER:
        s[LINK_FREE] = s[LAST_ARRIVAL] = NEVER
        return 0.0
    s[LINK_FREE] = end
    at = sample(w, link, min(end, freeze) + offset)
    rtt, lost, delay = of_sample(w, RTT, at), of_sample(w, LOSS, at), 0.0
    if lost > 0.0:
        delivered = (1.0 - lost) ** math.ceil(wire / PACKET_BYTES)
        delay = rtt if uniform_of(key, rand.LOSS) >= delivered else 0.0
    s[LAST_ARRIVAL] = max(end + delay + 0.5 * rtt, s[LAST_ARRIVAL])
    on_air = active_between(w, link, begin + offset, end + offset)
    return float(w.f8[RADIO_W] * on_air + energy_per_bit(w, of_sample(w, RECEIVED, at)) * 8.0 * wire)


@inlined
def background(w: Packed, at: float) -> float:
    """Return the unfinished work of the server's other jobs at a time of its trace."""
    backlog = w.f8[w.i8[SERVER_BACKLOG] : w.i8[SERVER_BACKLOG] + w.i8[SERVER_COUNT] + 1]
    return server.backlog_at(backlog, w.f8[SERVER_DT], at)


@inlined
def serve(w: Packed, s: Array, arrival: float, tail_s: float) -> float:
    """Lay our job over the server's other work; return when it is done (first come, first served).

    A batch that already has others' jobs takes ours at its marginal cost (``adaptsplit.devices.server``).
    """
    at = arrival + s[SERVER_OFFSET]
    if w.i8[SERVER_COUNT] == 0:
        waiting = max(s[SERVER_WORK] - (at - s[SERVER_AT]), 0.0)
        s[SERVER_AT], s[SERVER_WORK] = at, waiting + tail_s
        return float(arrival + waiting + tail_s)
    size, dt, window = w.i8[SERVER_COUNT] + 1, w.f8[SERVER_DT], w.f8[BATCH_WINDOW]
    work = w.f8[w.i8[WORK_TABLE] : w.i8[WORK_TABLE] + size]
    backlog = w.f8[w.i8[SERVER_BACKLOG] : w.i8[SERVER_BACKLOG] + size]
    released, added = server.release_at(at, window), tail_s
    if window > 0.0:
        jobs = w.f8[w.i8[SERVER_JOBS] : w.i8[SERVER_JOBS] + size]
        ours = 1.0 if released == s[SERVER_AT] else 0.0
        others = server.jobs_released(jobs, dt, released) + ours
        added = server.work_added(tail_s, w.f8[BATCH_MARGINAL], others)
    waiting = server.wait_at(work, backlog, dt, s[SERVER_AT], s[SERVER_WORK], released)
    s[SERVER_AT], s[SERVER_WORK] = released, waiting + added
    return float(arrival + (released - at) + waiting + added)
