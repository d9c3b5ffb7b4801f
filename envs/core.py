"""The physics: one compiled transition per environment, from the decision on a frame to the next decision.

Everything that the environments, the evaluation and the oracles simulate is ``step_row``; they differ only in who calls
it. Read ``docs/simulator.md`` beside it. ``s`` is a state row (``adaptsplit.envs.layout``), ``x`` the tracker in it,
``log`` the outcome records of the row (a ring over frames), ``freeze`` the time up to which the world is known
(planning only; infinity in the real world).
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
    DONE,
    ENTRY,
    FRAME,
    HEAD_ACK,
    HEAD_RESULT,
    HEAD_SETTLE,
    LAST_ACK,
    LAST_ARRIVAL,
    LAST_BRANCH,
    LAST_RESULT,
    LINK,
    LINK_FREE,
    LINK_OFFSET,
    NOW,
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
    STATE_SIZE,
    TAIL,
    TERMINATED,
    TRACKER,
    WIRE,
)
from adaptsplit.envs.link import active_until, finish, sample
from adaptsplit.envs.world import KIND_LOCAL, World
from adaptsplit.observation import normalise, observe
from adaptsplit.outcome import Path

Array = NDArray[Any]
NEVER = 1e12

P_MISS, P_EXIT, P_LOCAL = int(Path.MISS), int(Path.EXIT), int(Path.LOCAL)
P_REMOTE, P_LATE, P_PASSED = int(Path.REMOTE), int(Path.FALLBACK_LATE), int(Path.FALLBACK_PASSED)
PACKET_BYTES = 1400.0


@inlined
def row_of(w: World, s: Array, frame: int, freeze: float) -> int:
    """Return the profile row of a frame; the average row when the frame comes after ``freeze``."""
    if frame / w.constants.fps > freeze:
        return int(w.outcomes.sharpness.shape[0] - 1)
    return int(s[ROW_FIRST] + (s[ROW_OFFSET] + frame) % s[ROW_COUNT])


@inlined
def draw(levels: Array, u: float) -> float:
    """Return the quantile ``u`` of a stage time, interpolated between its levels."""
    position = u * (levels.shape[0] - 1)
    low = int(position)
    high = min(low + 1, levels.shape[0] - 1)
    return float(levels[low] + (levels[high] - levels[low]) * (position - low))


@inlined
def round_trip(w: World, s: Array, time: float, freeze: float) -> float:
    """Return the round trip that holds at ``time``."""
    return float(w.links.rtt[sample(w.links, int(s[LINK]), min(time, freeze) + s[LINK_OFFSET])])


@compiled
def reset_row(w: World, s: Array, seed: np.uint64) -> None:
    """Start an episode: link, offset, flight, first frame and battery are drawn from ``seed``."""
    s[:] = 0.0
    links = w.links.count.shape[0]
    link = int(uniform(seed, 0, rand.EPISODE_LINK) * links)
    flight = int(uniform(seed, 0, rand.EPISODE_SEGMENT) * w.flight_count.shape[0])
    s[LINK] = link
    s[LINK_OFFSET] = uniform(seed, 0, rand.EPISODE_OFFSET) * w.links.count[link] * w.links.dt_s[link]
    s[ROW_FIRST] = w.flight_first[flight]
    s[ROW_COUNT] = w.flight_count[flight]
    s[ROW_OFFSET] = int(uniform(seed, 0, rand.EPISODE_FRAME) * w.flight_count[flight])
    s[LAST_BRANCH] = -1.0
    s[BATTERY_J] = w.constants.battery_j * (0.3 + 0.7 * uniform(seed, 0, rand.EPISODE_BATTERY))
    x = s[TRACKER:]
    est.start(x, w.constants.prior_bps, w.constants.prior_rtt_s, w.constants.prior_server_s)
    s[BEAT_REPLY] = beat_reply(w, s, 0.0, math.inf)
    telemetry(w, s)


@inlined
def telemetry(w: World, s: Array) -> None:
    """Write what the device measures of itself into the tracker."""
    x = s[TRACKER:]
    x[est.BATTERY] = s[BATTERY_J] / w.constants.battery_j
    x[est.SIGNAL] = w.links.signal[sample(w.links, int(s[LINK]), s[NOW] + s[LINK_OFFSET])]


@compiled
def beat_reply(w: World, s: Array, sent: float, freeze: float) -> float:
    """Return when the reply to a heartbeat comes: it takes the link's capacity but does not queue behind frames."""
    offset = s[LINK_OFFSET]
    end = finish(w.links, int(s[LINK]), sent + offset, 8.0 * est.HEARTBEAT_BYTES, freeze + offset) - offset
    return float(max(end + round_trip(w, s, sent, freeze), s[BEAT_REPLY])) if end < NEVER else NEVER


@inlined
def settle(w: World, s: Array, record: Any, path: int, answered: float, quality: float, confidence: float) -> None:
    """Write how a frame ended and add its reward."""
    record["path"] = path
    record["quality"] = quality
    record["confidence"] = confidence
    if path != P_MISS:
        record["answer_latency_s"] = answered - record["arrived_s"]
    g = w.weights
    missed = g.miss if path == P_MISS else 0.0
    energy = g.energy_per_j * (record["compute_j"] + record["radio_j"])
    s[REWARD] += (
        g.quality * quality - energy - g.per_byte * record["sent_bytes"] - g.switch * record["switched"] - missed
    )


@compiled
def settle_exit(w: World, s: Array, record: Any, path: int, answered: float, exit_at: float, row: int) -> None:
    """Settle a frame by its exit's answer: a miss when even the exit came after the deadline."""
    branch = w.exit_branch[int(record["branch"])]
    if max(answered, exit_at) > record["arrived_s"] + w.constants.deadline_s:
        settle(w, s, record, P_MISS, answered, 0.0, 0.0)
    else:
        quality, confidence = w.outcomes.exit_quality[row, branch], w.outcomes.exit_confidence[row, branch]
        settle(w, s, record, path, answered, quality, confidence)


@compiled
def pass_over(w: World, s: Array, log: Array, now: float, freeze: float) -> None:
    """The frame in the slot will not be sent: its exit answers."""
    frame = int(s[SLOT_FRAME])
    s[SLOT_USED] = 0.0
    record = log[frame % log.shape[0]]
    settle_exit(w, s, record, P_PASSED, now, s[SLOT_EXIT_AT], row_of(w, s, frame, freeze))
    record["known_s"] = now
    missed = record["path"] == P_MISS
    est.on_settled(s[TRACKER:], 1.0 if missed else 0.0, 0.0 if missed else 1.0)


@compiled
def transmit(w: World, s: Array, seed: np.uint64, frame: int, wire: float, now: float, freeze: float) -> float:
    """Hand ``wire`` bytes to the link; return the radio energy. Sets the link's and the last arrival's time."""
    link, offset = int(s[LINK]), s[LINK_OFFSET]
    begin = max(now, s[LINK_FREE])
    if begin >= NEVER:
        s[LAST_ARRIVAL] = NEVER
        return 0.0
    end = finish(w.links, link, begin + offset, 8.0 * wire, freeze + offset) - offset
    s[LINK_FREE] = min(end, NEVER)
    if end >= NEVER:
        s[LAST_ARRIVAL] = NEVER
        return 0.0
    rtt = round_trip(w, s, end, freeze)
    lost = w.links.loss[sample(w.links, link, min(end, freeze) + offset)]
    delivered = (1.0 - lost) ** math.ceil(wire / PACKET_BYTES)
    retry = rtt if uniform(seed, frame, rand.LOSS) >= delivered else 0.0
    s[LAST_ARRIVAL] = max(end + retry + 0.5 * rtt, s[LAST_ARRIVAL])
    c = w.constants
    on_air = active_until(w.links, link, end + offset) - active_until(w.links, link, begin + offset)
    return float(c.radio_w * on_air + c.radio_w_per_bps * 8.0 * wire)


@compiled
def send(
    w: World, s: Array, seed: np.uint64, log: Array, frame: int, exit_at: float, now: float, freeze: float
) -> None:
    """Send a frame: everything that will become of it follows, since the link and the server are its own."""
    record = log[frame % log.shape[0]]
    branch, rate, row = int(record["branch"]), int(record["rate"]), row_of(w, s, frame, freeze)
    payload = float(w.outcomes.payload[row, branch, rate])
    wire = payload + est.OVERHEAD_BYTES
    radio_j = transmit(w, s, seed, frame, wire, now, freeze)
    s[BATTERY_J] -= radio_j
    arrival = s[LAST_ARRIVAL]
    tail_s = draw(w.stages.tail[branch, rate], uniform(seed, frame, rand.TAIL))
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
    record["agreement"] = w.outcomes.agreement[row, branch, rate]
    record["remote_latency_s"] = result - record["arrived_s"] if result < NEVER else math.inf
    deadline = record["arrived_s"] + w.constants.deadline_s
    if result <= deadline:
        quality, confidence = w.outcomes.tail_quality[row, branch, rate], w.outcomes.tail_confidence[row, branch, rate]
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
def window_open(w: World, s: Array) -> bool:
    """Tell whether another message may be unacknowledged (and the ring has room)."""
    oldest = min(min(s[HEAD_ACK], s[HEAD_RESULT]), s[HEAD_SETTLE])
    return bool(s[TAIL] - s[HEAD_ACK] < w.constants.window and s[TAIL] - oldest < RING)


@compiled
def serve_slot(w: World, s: Array, seed: np.uint64, log: Array, now: float, freeze: float) -> None:
    """Send the frame in the slot, or pass it over, if the window is open."""
    if s[SLOT_USED] == 0.0 or not window_open(w, s):
        return
    frame = int(s[SLOT_FRAME])
    row = row_of(w, s, frame, freeze)
    wire = w.outcomes.payload[row, int(s[SLOT_BRANCH]), int(s[SLOT_RATE])] + est.OVERHEAD_BYTES
    deadline = frame / w.constants.fps + w.constants.deadline_s
    if w.constants.fifo == 1.0 or est.may_send(s[TRACKER:], now, wire, deadline):
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
def advance(w: World, s: Array, seed: np.uint64, log: Array, until: float, freeze: float) -> None:
    """Deliver every event up to ``until`` in the order of time, and serve the slot when the window opens."""
    x = s[TRACKER:]
    while True:
        ack, result = pending(s, HEAD_ACK, ACK_AT), pending(s, HEAD_RESULT, RESULT_AT)
        settled, beat = pending(s, HEAD_SETTLE, SETTLE_AT), s[BEAT_REPLY]
        expiry = s[SLOT_FRAME] / w.constants.fps + w.constants.deadline_s if s[SLOT_USED] == 1.0 else NEVER
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
    w: World, s: Array, seed: np.uint64, log: Array, frame: int, exit_at: float, now: float, freeze: float
) -> None:
    """The encoded frame reaches the sender: sent, passed over, or put into the slot (which it takes from an older
    one)."""
    record = log[frame % log.shape[0]]
    if s[SLOT_USED] == 1.0:
        pass_over(w, s, log, now, freeze)
    s[SLOT_USED], s[SLOT_FRAME], s[SLOT_EXIT_AT] = 1.0, frame, exit_at
    s[SLOT_BRANCH], s[SLOT_RATE] = record["branch"], record["rate"]
    if now > frame / w.constants.fps + w.constants.deadline_s:
        pass_over(w, s, log, now, freeze)
    else:
        serve_slot(w, s, seed, log, now, freeze)


@inlined
def open_record(w: World, log: Array, frame: int) -> Any:
    """Return the frame's record, cleared: a dropped frame until something better happens."""
    record = log[frame % log.shape[0]]
    record["frame"] = frame
    record["arrived_s"] = frame / w.constants.fps
    record["decided_s"] = record["threshold"] = record["agreement"] = math.nan
    record["answer_latency_s"] = record["remote_latency_s"] = math.nan
    record["branch"] = record["rate"] = -1
    record["path"], record["switched"], record["sent_bytes"] = P_MISS, 0, 0
    record["quality"] = record["confidence"] = record["exit_confidence"] = 0.0
    record["compute_j"] = record["radio_j"] = 0.0
    record["known_s"] = record["arrived_s"] + w.constants.deadline_s
    return record


@compiled
def drop(w: World, s: Array, log: Array, frame: int) -> None:
    """A frame that the device never looked at."""
    record = open_record(w, log, frame)
    settle(w, s, record, P_MISS, 0.0, 0.0, 0.0)
    est.on_settled(s[TRACKER:], 1.0, 0.0)


@compiled
def act(
    w: World, s: Array, seed: np.uint64, log: Array, branch: int, rate: int, threshold: float, freeze: float
) -> float:
    """Run the device on the frame at hand; return when it is free again."""
    frame, now = int(s[FRAME]), s[NOW]
    row = row_of(w, s, frame, freeze)
    x = s[TRACKER:]
    record = open_record(w, log, frame)
    record["decided_s"], record["threshold"] = now, threshold
    record["branch"], record["rate"] = branch, rate
    record["switched"] = 1 if s[LAST_BRANCH] >= 0.0 and s[LAST_BRANCH] != branch else 0
    s[LAST_BRANCH] = branch
    c, head_of = w.constants, w.exit_branch[branch]
    before = c.decision_s + draw(w.stages.signal, uniform(seed, frame, rand.SIGNAL))
    exit_at = now + before + draw(w.stages.head[head_of], uniform(seed, frame, rand.HEAD))
    confidence = w.outcomes.exit_confidence[row, head_of]
    record["exit_confidence"] = confidence
    est.on_exit(x, confidence)
    free = exit_at
    exits = w.kind[branch] == KIND_LOCAL or (threshold <= 1.0 and confidence >= threshold)
    if not exits:
        free += draw(w.stages.encode[branch, rate], uniform(seed, frame, rand.ENCODE))
    record["compute_j"] = c.compute_w * (free - now)
    s[BATTERY_J] -= record["compute_j"]
    if exits:
        path = P_LOCAL if w.kind[branch] == KIND_LOCAL else P_EXIT
        settle_exit(w, s, record, path, exit_at, exit_at, row)
        record["known_s"] = exit_at
        advance(w, s, seed, log, free, freeze)
        est.on_settled(x, 1.0 if record["path"] == P_MISS else 0.0, 0.0)
    else:
        advance(w, s, seed, log, free, freeze)
        hand_over(w, s, seed, log, frame, exit_at, free, freeze)
    return float(free)


@compiled
def next_frame(w: World, s: Array, log: Array, free: float) -> None:
    """Go to the freshest frame when the device is free; what was overtaken or waited past its deadline is a miss."""
    c = w.constants
    frame = int(s[FRAME])
    freshest = max(frame + 1, min(math.floor(free * c.fps + 1e-9), c.frames))
    if freshest < c.frames and free - freshest / c.fps > c.deadline_s:
        freshest += 1
    for skipped in range(frame + 1, freshest):
        drop(w, s, log, skipped)
    s[FRAME] = freshest
    s[NOW] = max(free, freshest / c.fps)


@compiled
def step_row(
    w: World, s: Array, seed: np.uint64, log: Array, branch: int, rate: int, threshold: float, freeze: float
) -> float:
    """Decide on the frame at hand and go to the next decision; return the reward of all frames settled on the way.

    A frame that waits in the slot when the step ends is settled, and paid, in a later step; every other frame in its
    own. ``s[DONE]`` is set at the episode's end (every frame is settled then), ``s[TERMINATED]`` on an empty battery.
    """
    began = s[NOW]
    s[REWARD] = 0.0
    x = s[TRACKER:]
    sizes = w.rates.shape[0] - 1, w.outcomes.payload.shape[2] - 1
    est.on_decision(x, branch / max(sizes[0], 1), rate / max(sizes[1], 1), min(threshold, 1.0))
    free = act(w, s, seed, log, branch, rate, threshold, freeze)
    next_frame(w, s, log, free)
    c = w.constants
    s[BATTERY_J] -= c.base_w * (s[NOW] - began)
    if s[FRAME] >= c.frames or s[BATTERY_J] <= 0.0:
        finish_episode(w, s, seed, log, freeze)
    else:
        advance(w, s, seed, log, s[NOW], freeze)
        telemetry(w, s)
    return float(s[REWARD])


@compiled
def finish_episode(w: World, s: Array, seed: np.uint64, log: Array, freeze: float) -> None:
    """Settle the slot; on an empty battery the frames to come are misses."""
    c = w.constants
    if s[SLOT_USED] == 1.0:
        advance(w, s, seed, log, s[SLOT_FRAME] / c.fps + c.deadline_s, freeze)
    if s[BATTERY_J] <= 0.0:
        s[TERMINATED] = 1.0
        for frame in range(int(s[FRAME]), c.frames):
            drop(w, s, log, frame)
    s[DONE] = 1.0


@compiled
def observe_row(w: World, s: Array, raw: Array, out: Array) -> None:
    """Write the normalised observation (D,) of the frame at hand."""
    from_row = row_of(w, s, int(s[FRAME]), math.inf)
    wait = s[NOW] - s[FRAME] / w.constants.fps
    observe(
        s[TRACKER:],
        s[NOW],
        wait,
        s[SLOT_USED],
        w.outcomes.sharpness[from_row],
        w.outcomes.difference[from_row],
        raw,
    )
    normalise(raw, out)


__all__ = ["STATE_SIZE", "observe_row", "reset_row", "step_row"]
