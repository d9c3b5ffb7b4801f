"""Sender, link, server and the way back: what becomes of an encoded frame, and every event that reaches the device.

The names are those of ``adaptsplit.envs.core``: ``w`` the packed world, ``s`` a state row, ``log`` its outcome
records, ``freeze`` the time up to which the world is known.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.envs import compiled as rand
from adaptsplit.envs.compiled import compiled, inlined, uniform
from adaptsplit.envs.layout import (
    ACK_AT,
    AGREE,
    BATTERY_J,
    BEAT_REPLY,
    BEAT_SENT,
    ENTRY,
    HEAD_ACK,
    HEAD_RESULT,
    HEAD_SETTLE,
    LAST_ACK,
    LAST_ARRIVAL,
    LAST_RESULT,
    LINK,
    LINK_FREE,
    LINK_OFFSET,
    QUEUE,
    RESULT_AT,
    REWARD,
    RING,
    RING_START,
    ROW_COUNT,
    ROW_FIRST,
    ROW_OFFSET,
    SENT_AT,
    SERVER,
    SERVER_FREE,
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
from adaptsplit.envs.link import active_until, finish, sample
from adaptsplit.envs.packed import (
    AGREEMENT,
    DEADLINE,
    EXIT_BRANCH,
    EXIT_CONFIDENCE,
    EXIT_QUALITY,
    FIFO,
    FPS,
    LOSS,
    PAYLOAD,
    RADIO_W,
    RADIO_W_PER_BPS,
    ROWS,
    RTT,
    TAIL_CONFIDENCE,
    TAIL_QUALITY,
    W_BYTE,
    W_ENERGY,
    W_MISS,
    W_QUALITY,
    W_SWITCH,
    WINDOW,
    Packed,
    of_branch,
    of_exit,
    of_link,
    of_tail,
    stage,
    stage_index,
)
from adaptsplit.envs.packed import TAIL as TAIL_S
from adaptsplit.outcome import Path

Array = NDArray[Any]
NEVER = 1e12

P_MISS, P_EXIT, P_LOCAL = int(Path.MISS), int(Path.EXIT), int(Path.LOCAL)
P_REMOTE, P_LATE, P_PASSED = int(Path.REMOTE), int(Path.FALLBACK_LATE), int(Path.FALLBACK_PASSED)
PACKET_BYTES = 1400.0


@inlined
def row_of(w: Packed, s: Array, frame: int, freeze: float) -> int:
    """Return the profile row of a frame; the average row when the frame comes after ``freeze``."""
    if frame / w.f8[FPS] > freeze:
        return int(w.i8[ROWS] - 1)
    return int(s[ROW_FIRST] + (s[ROW_OFFSET] + frame) % s[ROW_COUNT])


@inlined
def round_trip(w: Packed, s: Array, time: float, freeze: float) -> float:
    """Return the round trip that holds at ``time``."""
    return float(of_link(w, RTT, sample(w, int(s[LINK]), min(time, freeze) + s[LINK_OFFSET])))


@compiled
def beat_reply(w: Packed, s: Array, sent: float, freeze: float) -> float:
    """Return when the reply to a heartbeat comes: it takes the link's capacity but does not queue behind frames."""
    offset = s[LINK_OFFSET]
    end = finish(w, int(s[LINK]), sent + offset, 8.0 * est.HEARTBEAT_BYTES, freeze + offset) - offset
    return float(max(end + round_trip(w, s, sent, freeze), s[BEAT_REPLY])) if end < NEVER else NEVER


@inlined
def settle(w: Packed, s: Array, record: Any, path: int, answered: float, quality: float, confidence: float) -> None:
    """Write how a frame ended and add its reward."""
    record["path"] = path
    record["quality"] = quality
    record["confidence"] = confidence
    if path != P_MISS:
        record["answer_latency_s"] = answered - record["arrived_s"]
    missed = w.f8[W_MISS] if path == P_MISS else 0.0
    energy = w.f8[W_ENERGY] * (record["compute_j"] + record["radio_j"])
    costs = energy + w.f8[W_BYTE] * record["sent_bytes"] + w.f8[W_SWITCH] * record["switched"] + missed
    s[REWARD] += w.f8[W_QUALITY] * quality - costs


@compiled
def settle_exit(w: Packed, s: Array, record: Any, path: int, answered: float, exit_at: float, row: int) -> None:
    """Settle a frame by its exit's answer: a miss when even the exit came after the deadline."""
    branch = of_branch(w, EXIT_BRANCH, int(record["branch"]))
    if max(answered, exit_at) > record["arrived_s"] + w.f8[DEADLINE]:
        settle(w, s, record, P_MISS, answered, 0.0, 0.0)
    else:
        quality, confidence = of_exit(w, EXIT_QUALITY, row, branch), of_exit(w, EXIT_CONFIDENCE, row, branch)
        settle(w, s, record, path, answered, quality, confidence)


@compiled
def pass_over(w: Packed, s: Array, log: Array, now: float, freeze: float) -> None:
    """The frame in the slot will not be sent: its exit answers, at the deadline when encoding ended after it."""
    frame = int(s[SLOT_FRAME])
    s[SLOT_USED] = 0.0
    record = log[frame % log.shape[0]]
    answered = min(now, record["arrived_s"] + w.f8[DEADLINE])
    settle_exit(w, s, record, P_PASSED, answered, s[SLOT_EXIT_AT], row_of(w, s, frame, freeze))
    record["known_s"] = now
    missed = record["path"] == P_MISS
    est.on_settled(s[TRACKER:], 1.0 if missed else 0.0, 0.0 if missed else 1.0)


@compiled
def transmit(w: Packed, s: Array, seed: np.uint64, frame: int, wire: float, now: float, freeze: float) -> float:
    """Hand ``wire`` bytes to the link; return the radio energy. Sets the link's and the last arrival's time."""
    link, offset = int(s[LINK]), s[LINK_OFFSET]
    begin = max(now, s[LINK_FREE])
    if begin >= NEVER:
        s[LAST_ARRIVAL] = NEVER
        return 0.0
    end = finish(w, link, begin + offset, 8.0 * wire, freeze + offset) - offset
    s[LINK_FREE] = min(end, NEVER)
    if end >= NEVER:
        s[LAST_ARRIVAL] = NEVER
        return 0.0
    rtt = round_trip(w, s, end, freeze)
    lost = of_link(w, LOSS, sample(w, link, min(end, freeze) + offset))
    delivered = (1.0 - lost) ** math.ceil(wire / PACKET_BYTES)
    retry = rtt if uniform(seed, frame, rand.LOSS) >= delivered else 0.0
    s[LAST_ARRIVAL] = max(end + retry + 0.5 * rtt, s[LAST_ARRIVAL])
    on_air = active_until(w, link, end + offset) - active_until(w, link, begin + offset)
    return float(w.f8[RADIO_W] * on_air + w.f8[RADIO_W_PER_BPS] * 8.0 * wire)


@compiled
def send(
    w: Packed, s: Array, seed: np.uint64, log: Array, frame: int, exit_at: float, now: float, freeze: float
) -> None:
    """Send a frame: everything that will become of it follows, since the link and the server are its own."""
    record = log[frame % log.shape[0]]
    branch, rate, row = int(record["branch"]), int(record["rate"]), row_of(w, s, frame, freeze)
    payload = float(of_tail(w, PAYLOAD, row, branch, rate))
    wire = payload + est.OVERHEAD_BYTES
    radio_j = transmit(w, s, seed, frame, wire, now, freeze)
    s[BATTERY_J] -= radio_j
    arrival = s[LAST_ARRIVAL]
    tail_s = stage(w, TAIL_S, stage_index(w, branch, rate), uniform(seed, frame, rand.TAIL))
    queue_s = max(s[SERVER_FREE] - arrival, 0.0)
    done = arrival + queue_s + tail_s
    ack, result = NEVER, NEVER
    if arrival < NEVER:
        s[SERVER_FREE] = done
        ack = max(arrival + 0.5 * round_trip(w, s, arrival, freeze), s[LAST_ACK])
        result = max(done + 0.5 * round_trip(w, s, done, freeze), s[LAST_RESULT])
    s[LAST_ACK], s[LAST_RESULT] = ack, result

    record["sent_bytes"] = int(payload)
    record["radio_j"] = radio_j
    record["agreement"] = of_tail(w, AGREEMENT, row, branch, rate)
    record["remote_latency_s"] = result - record["arrived_s"] if result < NEVER else math.inf
    deadline = record["arrived_s"] + w.f8[DEADLINE]
    if result <= deadline:
        quality, confidence = (
            of_tail(w, TAIL_QUALITY, row, branch, rate),
            of_tail(w, TAIL_CONFIDENCE, row, branch, rate),
        )
        settle(w, s, record, P_REMOTE, result, quality, confidence)
    else:
        settle_exit(w, s, record, P_LATE, deadline, exit_at, row)
    record["known_s"] = result if result < NEVER else deadline

    e = RING_START + int(s[TAIL] % RING) * ENTRY
    s[e + SENT_AT], s[e + WIRE], s[e + ACK_AT], s[e + RESULT_AT] = now, wire, ack, result
    s[e + AGREE], s[e + SERVER], s[e + QUEUE] = record["agreement"], queue_s + tail_s, queue_s
    s[e + SETTLE_AT] = min(result, deadline)
    s[e + SETTLE_MISS] = 1.0 if record["path"] == P_MISS else 0.0
    s[e + SETTLE_FALLBACK] = 1.0 if record["path"] == P_LATE else 0.0
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
    """Send the frame in the slot, or pass it over, if the window is open."""
    if s[SLOT_USED] == 0.0 or not window_open(w, s):
        return
    frame = int(s[SLOT_FRAME])
    row = row_of(w, s, frame, freeze)
    wire = of_tail(w, PAYLOAD, row, int(s[SLOT_BRANCH]), int(s[SLOT_RATE])) + est.OVERHEAD_BYTES
    deadline = frame / w.f8[FPS] + w.f8[DEADLINE]
    if w.f8[FIFO] == 1.0 or est.may_send(s[TRACKER:], now, wire, deadline):
        s[SLOT_USED] = 0.0
        send(w, s, seed, log, frame, s[SLOT_EXIT_AT], now, freeze)
    else:
        pass_over(w, s, log, now, freeze)


@inlined
def pending(s: Array, head: int, field: int) -> float:
    """Return when the next event of one stream happens."""
    if s[head] >= s[TAIL]:
        return NEVER
    return float(s[RING_START + int(s[head] % RING) * ENTRY + field])


@compiled
def on_ack_event(s: Array, now: float) -> None:
    """Deliver the oldest acknowledgement to the tracker."""
    e = RING_START + int(s[HEAD_ACK] % RING) * ENTRY
    s[HEAD_ACK] += 1.0
    following = now
    if s[HEAD_ACK] < s[TAIL]:
        following = s[RING_START + int(s[HEAD_ACK] % RING) * ENTRY + SENT_AT]
    est.on_ack(s[TRACKER:], now, s[e + SENT_AT], s[e + WIRE], following)


@compiled
def advance(w: Packed, s: Array, seed: np.uint64, log: Array, until: float, freeze: float) -> None:
    """Deliver every event up to ``until`` in the order of time, and serve the slot when the window opens."""
    x = s[TRACKER:]
    while True:
        ack, result = pending(s, HEAD_ACK, ACK_AT), pending(s, HEAD_RESULT, RESULT_AT)
        settled, beat = pending(s, HEAD_SETTLE, SETTLE_AT), s[BEAT_REPLY]
        expiry = s[SLOT_FRAME] / w.f8[FPS] + w.f8[DEADLINE] if s[SLOT_USED] == 1.0 else NEVER
        now = min(min(min(ack, result), min(settled, beat)), expiry)
        if now > until or now >= NEVER:
            return
        if now == ack:
            on_ack_event(s, now)
            serve_slot(w, s, seed, log, now, freeze)
        elif now == result:
            e = RING_START + int(s[HEAD_RESULT] % RING) * ENTRY
            s[HEAD_RESULT] += 1.0
            est.on_result(x, now, s[e + AGREE], s[e + SERVER], s[e + QUEUE])
            serve_slot(w, s, seed, log, now, freeze)
        elif now == settled:
            e = RING_START + int(s[HEAD_SETTLE] % RING) * ENTRY
            s[HEAD_SETTLE] += 1.0
            est.on_settled(x, s[e + SETTLE_MISS], s[e + SETTLE_FALLBACK])
            serve_slot(w, s, seed, log, now, freeze)
        elif now == expiry:
            pass_over(w, s, log, now, freeze)
        else:
            est.on_heartbeat(x, now, s[BEAT_SENT])
            s[BEAT_SENT] += est.HEARTBEAT_PERIOD_S
            s[BEAT_REPLY] = beat_reply(w, s, s[BEAT_SENT], freeze)


@compiled
def hand_over(
    w: Packed, s: Array, seed: np.uint64, log: Array, frame: int, exit_at: float, now: float, freeze: float
) -> None:
    """The encoded frame reaches the sender: sent, passed over, or put into the slot (which it takes from an older
    one)."""
    record = log[frame % log.shape[0]]
    if s[SLOT_USED] == 1.0:
        pass_over(w, s, log, now, freeze)
    s[SLOT_USED], s[SLOT_FRAME], s[SLOT_EXIT_AT] = 1.0, frame, exit_at
    s[SLOT_BRANCH], s[SLOT_RATE] = record["branch"], record["rate"]
    if now > frame / w.f8[FPS] + w.f8[DEADLINE]:
        pass_over(w, s, log, now, freeze)
    else:
        serve_slot(w, s, seed, log, now, freeze)
