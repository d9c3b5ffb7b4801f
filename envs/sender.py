"""The sender and every event that reaches the device. Names as in ``adaptsplit.envs.core``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.envs import compiled as rand
from adaptsplit.envs.answers import (
    P_LATE,
    P_MISS,
    P_PASSED,
    P_REMOTE,
    hold,
    hold_exit,
    row_of,
    settle,
    settle_exit,
)
from adaptsplit.envs.compiled import compiled, inlined, key_of, uniform_of
from adaptsplit.envs.layout import (
    ACK_AT,
    AGREE,
    BATTERY_J,
    BEAT_REPLY,
    BEAT_SENT,
    CONFIDENCE,
    ENTRY,
    HEAD_ACK,
    HEAD_RESULT,
    HEAD_SETTLE,
    LAST_ACK,
    LAST_ARRIVAL,
    LAST_RESULT,
    NEXT_ACK,
    NEXT_EVENT,
    NEXT_EXPIRY,
    NEXT_RESULT,
    NEXT_SETTLE,
    OF_BRANCH,
    OF_FRAME,
    OF_RATE,
    QUEUE,
    RESULT_AT,
    RING,
    RING_START,
    SENT_AT,
    SERVER,
    SETTLE_AT,
    SETTLE_FALLBACK,
    SETTLE_MISS,
    SLOT_BRANCH,
    SLOT_EXIT_AT,
    SLOT_FRAME,
    SLOT_RATE,
    SLOT_USED,
    TAIL,
    TRACKER,
    WIRE,
)
from adaptsplit.envs.packed import (
    AGREEMENT,
    DEADLINE,
    FIFO,
    FPS,
    PAYLOAD,
    TAIL_CONFIDENCE,
    TAIL_QUALITY,
    WINDOW,
    Packed,
    of_tail,
    stage,
    stage_index,
)
from adaptsplit.envs.packed import TAIL as TAIL_S
from adaptsplit.envs.remote import NEVER, beat_reply, round_trip, serve, transmit

Array = NDArray[Any]


@inlined
def wait_until(w: Packed, record: Any, exit_at: float) -> float:
    """Return when the exit answers for a result that has not come: after the patience, once the exit has run."""
    arrived = record["arrived_s"]
    return float(min(max(arrived + record["patience"] * w.f8[DEADLINE], exit_at), arrived + w.f8[DEADLINE]))


@inlined
def entry_of(number: float) -> int:
    """Return where the entry of the ``number``-th message begins in the state."""
    return RING_START + int(number) % RING * ENTRY


@inlined
def next_of(s: Array, head: int, field: int) -> float:
    """Return when the next event of one stream happens."""
    return float(s[entry_of(s[head]) + field]) if s[head] < s[TAIL] else NEVER


@compiled
def pass_over(w: Packed, s: Array, log: Array, now: float, freeze: float) -> None:
    """The frame in the slot will not be sent: its exit answers, at its patience's end when encoding ended after it."""
    frame = int(s[SLOT_FRAME])
    s[SLOT_USED], s[NEXT_EVENT], s[NEXT_EXPIRY] = 0.0, 0.0, NEVER
    record, row = log[frame % log.shape[0]], row_of(w, s, frame, freeze)
    settle_exit(w, s, record, P_PASSED, min(now, wait_until(w, record, s[SLOT_EXIT_AT])), s[SLOT_EXIT_AT], row)
    record["known_s"] = now
    hold_exit(w, s, record, row)
    missed = record["path"] == P_MISS
    est.on_settled(s[TRACKER:], 1.0 if missed else 0.0, 0.0 if missed else 1.0)


@inlined
def send(
    w: Packed, s: Array, seed: np.uint64, log: Array, frame: int, exit_at: float, now: float, freeze: float
) -> None:
    """Send a frame: everything that will become of it follows, since the link and our jobs are our own."""
    record = log[frame % log.shape[0]]
    branch, rate, row = int(record["branch"]), int(record["rate"]), row_of(w, s, frame, freeze)
    payload = of_tail(w, PAYLOAD, row, branch, rate)
    wire, key = payload + est.OVERHEAD_BYTES, key_of(seed, frame)
    radio_j = transmit(w, s, key, wire, now, freeze)
    s[BATTERY_J] -= radio_j
    arrival, tail_s = s[LAST_ARRIVAL], stage(w, TAIL_S, stage_index(w, branch, rate), uniform_of(key, rand.TAIL))
    ack, result, queue_s = NEVER, NEVER, 0.0
    if arrival < NEVER:
        done = serve(w, s, arrival, tail_s)
        queue_s = done - arrival - tail_s
        ack = max(arrival + 0.5 * round_trip(w, s, arrival, freeze), s[LAST_ACK])
        result = max(done + 0.5 * round_trip(w, s, done, freeze), s[LAST_RESULT])
    s[LAST_ACK], s[LAST_RESULT], s[NEXT_EVENT] = ack, result, 0.0

    record["sent_bytes"] = int(payload)
    record["radio_j"] = radio_j
    record["agreement"] = of_tail(w, AGREEMENT, row, branch, rate)
    record["remote_latency_s"] = result - record["arrived_s"] if result < NEVER else math.inf
    latest, confidence = wait_until(w, record, exit_at), of_tail(w, TAIL_CONFIDENCE, row, branch, rate)
    if result <= latest:
        settle(w, s, record, P_REMOTE, result, of_tail(w, TAIL_QUALITY, row, branch, rate), confidence)
    else:
        settle_exit(w, s, record, P_LATE, latest, exit_at, row)
    record["known_s"] = result if result < NEVER else latest

    if min(min(s[HEAD_ACK], s[HEAD_RESULT]), s[HEAD_SETTLE]) == s[TAIL]:
        s[HEAD_ACK] = s[HEAD_RESULT] = s[HEAD_SETTLE] = s[TAIL] = 0.0
    settled = min(result, latest)
    s[NEXT_ACK] = ack if s[HEAD_ACK] == s[TAIL] else s[NEXT_ACK]
    s[NEXT_RESULT] = result if s[HEAD_RESULT] == s[TAIL] else s[NEXT_RESULT]
    s[NEXT_SETTLE] = min(settled, s[NEXT_SETTLE])
    e = entry_of(s[TAIL])
    s[e + SENT_AT], s[e + WIRE], s[e + ACK_AT], s[e + RESULT_AT] = now, wire, ack, result
    s[e + AGREE], s[e + SERVER], s[e + QUEUE] = record["agreement"], queue_s + tail_s, queue_s
    s[e + SETTLE_AT] = settled
    s[e + SETTLE_MISS] = 1.0 if record["path"] == P_MISS else 0.0
    s[e + SETTLE_FALLBACK] = 1.0 if record["path"] == P_LATE else 0.0
    s[e + OF_FRAME], s[e + OF_BRANCH], s[e + OF_RATE], s[e + CONFIDENCE] = frame, branch, rate, confidence
    s[TAIL] += 1.0
    x = s[TRACKER:]
    est.on_sent(x, now, wire)
    x[est.LAST_SENT] = 1.0


@inlined
def window_open(w: Packed, s: Array) -> bool:
    """Tell whether another message may be unacknowledged (and the ring has room)."""
    oldest = min(min(s[HEAD_ACK], s[HEAD_RESULT]), s[HEAD_SETTLE])
    return bool(s[TAIL] - s[HEAD_ACK] < w.f8[WINDOW] and s[TAIL] - oldest < RING)


@compiled
def serve_slot(w: Packed, s: Array, seed: np.uint64, log: Array, now: float, freeze: float) -> None:
    """Send the frame in the slot (there is one), or pass it over, if the window is open."""
    if not window_open(w, s):
        return
    frame = int(s[SLOT_FRAME])
    row = row_of(w, s, frame, freeze)
    wire = of_tail(w, PAYLOAD, row, int(s[SLOT_BRANCH]), int(s[SLOT_RATE])) + est.OVERHEAD_BYTES
    if w.f8[FIFO] == 1.0 or est.may_send(s[TRACKER:], now, wire, s[NEXT_EXPIRY]):
        s[SLOT_USED], s[NEXT_EXPIRY] = 0.0, NEVER
        send(w, s, seed, log, frame, s[SLOT_EXIT_AT], now, freeze)
    else:
        pass_over(w, s, log, now, freeze)


@inlined
def next_settled(s: Array) -> int:
    """Return where the entry begins whose frame is settled next: a short patience may end before an older long one.

    An entry that has been settled has SETTLE_AT at NEVER.
    """
    entry, at = entry_of(s[HEAD_SETTLE]), NEVER
    for message in range(int(s[HEAD_SETTLE]), int(s[TAIL])):
        e = entry_of(message)
        if s[e + SETTLE_AT] < at:
            entry, at = e, s[e + SETTLE_AT]
    return entry


@inlined
def on_ack_event(s: Array, now: float) -> None:
    """Deliver the oldest acknowledgement to the tracker."""
    e, following = entry_of(s[HEAD_ACK]), now
    s[HEAD_ACK] += 1.0
    s[NEXT_ACK] = NEVER
    if s[HEAD_ACK] < s[TAIL]:
        after = entry_of(s[HEAD_ACK])
        s[NEXT_ACK], following = s[after + ACK_AT], s[after + SENT_AT]
    est.on_ack(s[TRACKER:], now, s[e + SENT_AT], s[e + WIRE], following)


@inlined
def on_result_event(w: Packed, s: Array, now: float, freeze: float) -> None:
    """Deliver the oldest result: to the tracker, and as the answer that is held."""
    e = entry_of(s[HEAD_RESULT])
    s[HEAD_RESULT] += 1.0
    s[NEXT_RESULT] = next_of(s, HEAD_RESULT, RESULT_AT)
    est.on_result(s[TRACKER:], now, s[e + AGREE], s[e + SERVER], s[e + QUEUE])
    frame, branch, rate = int(s[e + OF_FRAME]), int(s[e + OF_BRANCH]), int(s[e + OF_RATE])
    hold(s, row_of(w, s, frame, freeze), branch, rate, frame / w.f8[FPS], s[e + CONFIDENCE])


@inlined
def on_settle_event(w: Packed, s: Array, log: Array, freeze: float) -> None:
    """The device learns how the next frame that it sent has ended."""
    e = next_settled(s)
    s[e + SETTLE_AT] = NEVER
    while s[HEAD_SETTLE] < s[TAIL] and s[entry_of(s[HEAD_SETTLE]) + SETTLE_AT] >= NEVER:
        s[HEAD_SETTLE] += 1.0
    s[NEXT_SETTLE] = NEVER
    if s[HEAD_SETTLE] < s[TAIL]:
        s[NEXT_SETTLE] = s[next_settled(s) + SETTLE_AT]
    est.on_settled(s[TRACKER:], s[e + SETTLE_MISS], s[e + SETTLE_FALLBACK])
    if s[e + SETTLE_FALLBACK] == 1.0:
        frame = int(s[e + OF_FRAME])
        hold_exit(w, s, log[frame % log.shape[0]], row_of(w, s, frame, freeze))


@inlined
def advance(w: Packed, s: Array, seed: np.uint64, log: Array, until: float, freeze: float) -> None:
    """Deliver every event up to ``until``; mostly there is none, and a call would cost more than to look."""
    if s[NEXT_EVENT] <= until:
        deliver(w, s, seed, log, until, freeze)


@compiled
def deliver(w: Packed, s: Array, seed: np.uint64, log: Array, until: float, freeze: float) -> None:
    """Deliver every event up to ``until`` in the order of time, and serve the slot when the window opens."""
    while s[NEXT_EVENT] <= until:
        ack, result, settled, beat = s[NEXT_ACK], s[NEXT_RESULT], s[NEXT_SETTLE], s[BEAT_REPLY]
        expiry = s[NEXT_EXPIRY]
        now = min(min(min(ack, result), min(settled, beat)), expiry)
        s[NEXT_EVENT] = now
        if now > until or now >= NEVER:
            return
        if now == ack:
            on_ack_event(s, now)
            if s[SLOT_USED] == 1.0:
                serve_slot(w, s, seed, log, now, freeze)
        elif now == result:
            on_result_event(w, s, now, freeze)
            if now == settled:
                on_settle_event(w, s, log, freeze)
            if s[SLOT_USED] == 1.0:
                serve_slot(w, s, seed, log, now, freeze)
        elif now == settled:
            on_settle_event(w, s, log, freeze)
            if s[SLOT_USED] == 1.0:
                serve_slot(w, s, seed, log, now, freeze)
        elif now == expiry:
            pass_over(w, s, log, now, freeze)
        else:
            est.on_heartbeat(s[TRACKER:], now, s[BEAT_SENT])
            s[BEAT_SENT] += est.HEARTBEAT_PERIOD_S
            s[BEAT_REPLY] = beat_reply(w, s, s[BEAT_SENT], freeze)


@inlined
def hand_over(
    w: Packed, s: Array, seed: np.uint64, log: Array, frame: int, exit_at: float, now: float, freeze: float
) -> None:
    """The encoded frame reaches the sender: sent, passed over, or put into the slot (which it takes from an older
    one)."""
    record = log[frame % log.shape[0]]
    if s[SLOT_USED] == 1.0:
        pass_over(w, s, log, now, freeze)
    s[SLOT_USED], s[SLOT_FRAME], s[SLOT_EXIT_AT], s[NEXT_EVENT] = 1.0, frame, exit_at, 0.0
    s[SLOT_BRANCH], s[SLOT_RATE] = record["branch"], record["rate"]
    s[NEXT_EXPIRY] = wait_until(w, record, exit_at)
    if now > s[NEXT_EXPIRY]:
        pass_over(w, s, log, now, freeze)
    else:
        serve_slot(w, s, seed, log, now, freeze)
