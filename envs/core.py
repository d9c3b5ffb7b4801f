"""The physics: one compiled transition per environment, from the decision on a frame to the next decision.

Everything that the environments, the evaluation and the oracles simulate is ``step_row``; they differ only in who calls
it. Read ``docs/simulator.md`` beside it. ``s`` is a state row (``adaptsplit.envs.layout``), ``x`` the tracker in it,
``log`` the outcome records of the row (a ring over frames), ``freeze`` the time up to which the world is known
(planning only; infinity in the real world), ``key`` the key of a frame's random draws.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.envs import compiled as rand
from adaptsplit.envs.answers import (
    P_EXIT,
    P_LOCAL,
    P_MISS,
    drop,
    hold_exit,
    open_record,
    row_of,
    settle_exit,
    settle_stale,
)
from adaptsplit.envs.board import after_step, compute_power, load_at, slowdown, start_board, telemetry
from adaptsplit.envs.compiled import compiled, inlined, key_of, uniform, uniform_of
from adaptsplit.envs.layout import (
    BATTERY_J,
    BEAT_REPLY,
    DONE,
    FRAME,
    HELD_ROW,
    LAST_BRANCH,
    LINK,
    LINK_OFFSET,
    NEXT_ACK,
    NEXT_EXPIRY,
    NEXT_RESULT,
    NEXT_SETTLE,
    NOW,
    REWARD,
    ROW_COUNT,
    ROW_FIRST,
    ROW_OFFSET,
    SERVER_AT,
    SERVER_OFFSET,
    SERVER_WORK,
    SLOT_USED,
    TERMINATED,
    TRACKER,
)
from adaptsplit.envs.packed import (
    BASE_W,
    BATTERY,
    BRANCHES,
    DEADLINE,
    DECISION_S,
    DIFFERENCE,
    EXIT_BRANCH,
    EXIT_CONFIDENCE,
    FLIGHT_COUNT,
    FLIGHT_FIRST,
    FLIGHTS,
    FPS,
    FRAMES,
    KIND,
    LINK_COUNT,
    LINK_DT,
    LINK_SHARE,
    LINKS,
    LOAD_COUNT,
    LOAD_DT,
    PRIOR_BPS,
    PRIOR_RTT,
    PRIOR_SERVER,
    RATES,
    SERVER_COUNT,
    SERVER_DT,
    SHARPNESS,
    THERMAL,
    Packed,
    of_branch,
    of_exit,
    of_frame,
    of_link,
    stage,
    stage_index,
)
from adaptsplit.envs.packed import ENCODE as ENCODE_S
from adaptsplit.envs.packed import HEAD as HEAD_S
from adaptsplit.envs.packed import SIGNAL as SIGNAL_S
from adaptsplit.envs.remote import NEVER, background, beat_reply
from adaptsplit.envs.sender import advance, hand_over
from adaptsplit.envs.world import KIND_LOCAL, KIND_SKIP
from adaptsplit.observation import observe

Array = NDArray[Any]


@compiled
def reset_row(w: Packed, s: Array, seed: np.uint64) -> None:
    """Start an episode: link, offsets, flight, first frame, battery and warmth are drawn from ``seed``."""
    s[:] = 0.0
    link, chance = 0, uniform(seed, 0, rand.EPISODE_LINK)
    while link < w.i8[LINKS] - 1 and chance >= of_link(w, LINK_SHARE, link):
        link += 1
    flight = int(uniform(seed, 0, rand.EPISODE_SEGMENT) * w.i8[FLIGHTS])
    s[LINK] = link
    s[LINK_OFFSET] = uniform(seed, 0, rand.EPISODE_OFFSET) * of_branch(w, LINK_COUNT, link) * of_link(w, LINK_DT, link)
    s[ROW_FIRST] = of_branch(w, FLIGHT_FIRST, flight)
    s[ROW_COUNT] = of_branch(w, FLIGHT_COUNT, flight)
    s[ROW_OFFSET] = int(uniform(seed, 0, rand.EPISODE_FRAME) * of_branch(w, FLIGHT_COUNT, flight))
    s[LAST_BRANCH] = s[HELD_ROW] = -1.0
    s[NEXT_ACK] = s[NEXT_RESULT] = s[NEXT_SETTLE] = s[NEXT_EXPIRY] = NEVER
    s[BATTERY_J] = w.f8[BATTERY] * (0.3 + 0.7 * uniform(seed, 0, rand.EPISODE_BATTERY))
    s[SERVER_OFFSET] = uniform(seed, 0, rand.EPISODE_SERVER) * w.i8[SERVER_COUNT] * w.f8[SERVER_DT]
    s[SERVER_AT] = s[SERVER_OFFSET]
    load_offset = uniform(seed, 0, rand.EPISODE_LOAD) * w.i8[LOAD_COUNT] * w.f8[LOAD_DT]
    start_board(w, s, load_offset, uniform(seed, 0, rand.EPISODE_WARMTH))
    est.start(s[TRACKER:], w.f8[PRIOR_BPS], w.f8[PRIOR_RTT], w.f8[PRIOR_SERVER])
    refresh(w, s)


@compiled
def refresh(w: Packed, s: Array) -> None:
    """Bring what follows from a fresh state's offsets in line with them: server, first heartbeat, telemetry."""
    if w.i8[SERVER_COUNT] > 0:
        s[SERVER_WORK] = background(w, s[SERVER_AT])
    s[BEAT_REPLY] = 0.0
    s[BEAT_REPLY] = beat_reply(w, s, 0.0, math.inf)
    telemetry(w, s)


@inlined
def act(
    w: Packed,
    s: Array,
    seed: np.uint64,
    log: Array,
    branch: int,
    rate: int,
    threshold: float,
    patience: float,
    freeze: float,
) -> float:
    """Run the device on the frame at hand; return when it is free again."""
    frame, now = int(s[FRAME]), s[NOW]
    row, key, slow = row_of(w, s, frame, freeze), key_of(seed, frame), slowdown(w, s, freeze)
    kind = of_branch(w, KIND, branch)
    x, power = s[TRACKER:], compute_power(w, s) * (1.0 - load_at(w, s, min(now, freeze)))
    record = open_record(w, log, frame)
    record["decided_s"], record["threshold"], record["patience"] = now, threshold, patience
    record["branch"], record["rate"] = branch, rate
    free = now + slow * (w.f8[DECISION_S] + stage(w, SIGNAL_S, 0, uniform_of(key, rand.SIGNAL)))
    if kind == KIND_SKIP:
        record["compute_j"] = power * (free - now)
        s[BATTERY_J] -= record["compute_j"]
        advance(w, s, seed, log, free, freeze)
        settle_stale(w, s, record, free, row)
        record["known_s"] = free
        est.on_settled(x, 1.0 if record["path"] == P_MISS else 0.0, 0.0)
        return float(free)
    record["switched"] = 1 if s[LAST_BRANCH] >= 0.0 and s[LAST_BRANCH] != branch else 0
    s[LAST_BRANCH] = branch
    head_of = of_branch(w, EXIT_BRANCH, branch)
    free += slow * stage(w, HEAD_S, head_of, uniform_of(key, rand.HEAD))
    exit_at, confidence = free, of_exit(w, EXIT_CONFIDENCE, row, head_of)
    record["exit_confidence"] = confidence
    est.on_exit(x, confidence)
    exits = kind == KIND_LOCAL or (threshold <= 1.0 and confidence >= threshold)
    if not exits:
        free += slow * stage(w, ENCODE_S, stage_index(w, branch, rate), uniform_of(key, rand.ENCODE))
    record["compute_j"] = power * (free - now)
    s[BATTERY_J] -= record["compute_j"]
    if exits:
        settle_exit(w, s, record, P_LOCAL if kind == KIND_LOCAL else P_EXIT, exit_at, exit_at, row)
        record["known_s"] = exit_at
        advance(w, s, seed, log, free, freeze)
        hold_exit(w, s, record, row)
        est.on_settled(x, 1.0 if record["path"] == P_MISS else 0.0, 0.0)
    else:
        advance(w, s, seed, log, free, freeze)
        hand_over(w, s, seed, log, frame, exit_at, free, freeze)
    return float(free)


@inlined
def next_frame(w: Packed, s: Array, log: Array, free: float) -> None:
    """Go to the freshest frame when the device is free; what was overtaken or waited past its deadline is a miss."""
    frame = int(s[FRAME])
    freshest = max(frame + 1, min(math.floor(free * w.f8[FPS] + 1e-9), int(w.f8[FRAMES])))
    if freshest < int(w.f8[FRAMES]) and free - freshest / w.f8[FPS] > w.f8[DEADLINE]:
        freshest += 1
    for skipped in range(frame + 1, freshest):
        drop(w, s, log, skipped)
    s[FRAME] = freshest
    s[NOW] = max(free, freshest / w.f8[FPS])


@compiled
def step_row(
    w: Packed,
    s: Array,
    seed: np.uint64,
    log: Array,
    branch: int,
    rate: int,
    threshold: float,
    patience: float,
    freeze: float,
) -> float:
    """Decide on the frame at hand and go to the next decision; return the reward of all frames settled on the way.

    A frame that waits in the slot when the step ends is settled, and paid, in a later step; every other frame in its
    own. ``s[DONE]`` is set at the episode's end (every frame is settled then), ``s[TERMINATED]`` on an empty battery.
    """
    began, frame = s[NOW], int(s[FRAME])
    s[REWARD] = 0.0
    sizes = w.i8[BRANCHES] - 1, w.i8[RATES] - 1
    est.on_decision(s[TRACKER:], branch / max(sizes[0], 1), rate / max(sizes[1], 1), min(threshold, 1.0))
    free = act(w, s, seed, log, branch, rate, threshold, patience, freeze)
    spent = float(log[frame % log.shape[0]]["compute_j"])
    next_frame(w, s, log, free)
    s[BATTERY_J] -= w.f8[BASE_W] * (s[NOW] - began)
    if w.i8[THERMAL] == 1:
        after_step(w, s, began, free - began, spent, freeze)
    if s[FRAME] >= int(w.f8[FRAMES]) or s[BATTERY_J] <= 0.0:
        finish_episode(w, s, seed, log, freeze)
    else:
        advance(w, s, seed, log, s[NOW], freeze)
        telemetry(w, s)
    return float(s[REWARD])


@compiled
def finish_episode(w: Packed, s: Array, seed: np.uint64, log: Array, freeze: float) -> None:
    """Settle the slot; on an empty battery the frames to come are misses."""
    if s[SLOT_USED] == 1.0:
        advance(w, s, seed, log, s[NEXT_EXPIRY], freeze)
    if s[BATTERY_J] <= 0.0:
        s[TERMINATED] = 1.0
        for frame in range(int(s[FRAME]), int(w.f8[FRAMES])):
            drop(w, s, log, frame)
    s[DONE] = 1.0


@inlined
def look(w: Packed, s: Array, raw: Array) -> None:
    """Write what the device sees of the frame at hand, in physical units (D,)."""
    row = row_of(w, s, int(s[FRAME]), math.inf)
    wait = s[NOW] - s[FRAME] / w.f8[FPS]
    sharpness, difference = of_frame(w, SHARPNESS, row), of_frame(w, DIFFERENCE, row)
    observe(s[TRACKER:], s[NOW], wait, s[SLOT_USED], sharpness, difference, raw)
