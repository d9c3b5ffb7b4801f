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
    BATTERY_J,
    BEAT_REPLY,
    DONE,
    FRAME,
    LAST_BRANCH,
    LINK,
    LINK_OFFSET,
    NOW,
    REWARD,
    ROW_COUNT,
    ROW_FIRST,
    ROW_OFFSET,
    SLOT_FRAME,
    SLOT_USED,
    TERMINATED,
    TRACKER,
)
from adaptsplit.envs.link import sample
from adaptsplit.envs.packed import (
    BASE_W,
    BATTERY,
    BRANCHES,
    COMPUTE_W,
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
    PRIOR_BPS,
    PRIOR_RTT,
    PRIOR_SERVER,
    RATES,
    RECEIVED,
    SHARPNESS,
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
from adaptsplit.envs.sender import (
    P_EXIT,
    P_LOCAL,
    P_MISS,
    advance,
    beat_reply,
    hand_over,
    row_of,
    settle,
    settle_exit,
)
from adaptsplit.envs.world import KIND_LOCAL
from adaptsplit.observation import normalise, observe

Array = NDArray[Any]


@compiled
def reset_row(w: Packed, s: Array, seed: np.uint64) -> None:
    """Start an episode: link, offset, flight, first frame and battery are drawn from ``seed``."""
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
    s[LAST_BRANCH] = -1.0
    s[BATTERY_J] = w.f8[BATTERY] * (0.3 + 0.7 * uniform(seed, 0, rand.EPISODE_BATTERY))
    x = s[TRACKER:]
    est.start(x, w.f8[PRIOR_BPS], w.f8[PRIOR_RTT], w.f8[PRIOR_SERVER])
    s[BEAT_REPLY] = beat_reply(w, s, 0.0, math.inf)
    telemetry(w, s)


@inlined
def telemetry(w: Packed, s: Array) -> None:
    """Write what the device measures of itself into the tracker."""
    x = s[TRACKER:]
    x[est.BATTERY] = s[BATTERY_J] / w.f8[BATTERY]
    x[est.SIGNAL] = of_link(w, RECEIVED, sample(w, int(s[LINK]), s[NOW] + s[LINK_OFFSET]))


@inlined
def open_record(w: Packed, log: Array, frame: int) -> Any:
    """Return the frame's record, cleared: a dropped frame until something better happens."""
    record = log[frame % log.shape[0]]
    record["frame"] = frame
    record["arrived_s"] = frame / w.f8[FPS]
    record["decided_s"] = record["threshold"] = record["agreement"] = math.nan
    record["answer_latency_s"] = record["remote_latency_s"] = math.nan
    record["branch"] = record["rate"] = -1
    record["path"], record["switched"], record["sent_bytes"] = P_MISS, 0, 0
    record["quality"] = record["confidence"] = record["exit_confidence"] = 0.0
    record["compute_j"] = record["radio_j"] = 0.0
    record["known_s"] = record["arrived_s"] + w.f8[DEADLINE]
    return record


@compiled
def drop(w: Packed, s: Array, log: Array, frame: int) -> None:
    """A frame that the device never looked at."""
    record = open_record(w, log, frame)
    settle(w, s, record, P_MISS, 0.0, 0.0, 0.0)
    est.on_settled(s[TRACKER:], 1.0, 0.0)


@compiled
def act(
    w: Packed, s: Array, seed: np.uint64, log: Array, branch: int, rate: int, threshold: float, freeze: float
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
    head_of = of_branch(w, EXIT_BRANCH, branch)
    before = w.f8[DECISION_S] + stage(w, SIGNAL_S, 0, uniform(seed, frame, rand.SIGNAL))
    exit_at = now + before + stage(w, HEAD_S, head_of, uniform(seed, frame, rand.HEAD))
    confidence = of_exit(w, EXIT_CONFIDENCE, row, head_of)
    record["exit_confidence"] = confidence
    est.on_exit(x, confidence)
    free = exit_at
    exits = of_branch(w, KIND, branch) == KIND_LOCAL or (threshold <= 1.0 and confidence >= threshold)
    if not exits:
        free += stage(w, ENCODE_S, stage_index(w, branch, rate), uniform(seed, frame, rand.ENCODE))
    record["compute_j"] = w.f8[COMPUTE_W] * (free - now)
    s[BATTERY_J] -= record["compute_j"]
    if exits:
        path = P_LOCAL if of_branch(w, KIND, branch) == KIND_LOCAL else P_EXIT
        settle_exit(w, s, record, path, exit_at, exit_at, row)
        record["known_s"] = exit_at
        advance(w, s, seed, log, free, freeze)
        est.on_settled(x, 1.0 if record["path"] == P_MISS else 0.0, 0.0)
    else:
        advance(w, s, seed, log, free, freeze)
        hand_over(w, s, seed, log, frame, exit_at, free, freeze)
    return float(free)


@compiled
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
    w: Packed, s: Array, seed: np.uint64, log: Array, branch: int, rate: int, threshold: float, freeze: float
) -> float:
    """Decide on the frame at hand and go to the next decision; return the reward of all frames settled on the way.

    A frame that waits in the slot when the step ends is settled, and paid, in a later step; every other frame in its
    own. ``s[DONE]`` is set at the episode's end (every frame is settled then), ``s[TERMINATED]`` on an empty battery.
    """
    began = s[NOW]
    s[REWARD] = 0.0
    x = s[TRACKER:]
    sizes = w.i8[BRANCHES] - 1, w.i8[RATES] - 1
    est.on_decision(x, branch / max(sizes[0], 1), rate / max(sizes[1], 1), min(threshold, 1.0))
    free = act(w, s, seed, log, branch, rate, threshold, freeze)
    next_frame(w, s, log, free)
    s[BATTERY_J] -= w.f8[BASE_W] * (s[NOW] - began)
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
        advance(w, s, seed, log, s[SLOT_FRAME] / w.f8[FPS] + w.f8[DEADLINE], freeze)
    if s[BATTERY_J] <= 0.0:
        s[TERMINATED] = 1.0
        for frame in range(int(s[FRAME]), int(w.f8[FRAMES])):
            drop(w, s, log, frame)
    s[DONE] = 1.0


@compiled
def observe_row(w: Packed, s: Array, raw: Array, out: Array) -> None:
    """Write the normalised observation (D,) of the frame at hand."""
    from_row = row_of(w, s, int(s[FRAME]), math.inf)
    wait = s[NOW] - s[FRAME] / w.f8[FPS]
    observe(
        s[TRACKER:],
        s[NOW],
        wait,
        s[SLOT_USED],
        of_frame(w, SHARPNESS, from_row),
        of_frame(w, DIFFERENCE, from_row),
        raw,
    )
    normalise(raw, out)
