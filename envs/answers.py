"""How a frame ends: its record, its reward, and the answer that is held for later frames.

The names are those of ``adaptsplit.envs.core``.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.envs.compiled import compiled, inlined
from adaptsplit.envs.layout import (
    HELD_BRANCH,
    HELD_RATE,
    HELD_ROW,
    REWARD,
    ROW_COUNT,
    ROW_FIRST,
    ROW_OFFSET,
    TRACKER,
)
from adaptsplit.envs.packed import (
    CELLS,
    DEADLINE,
    EXIT_BRANCH,
    EXIT_CONFIDENCE,
    EXIT_QUALITY,
    FPS,
    LABELLED,
    RATES,
    RETENTION,
    ROWS,
    TAIL_QUALITY,
    W_BYTE,
    W_ENERGY,
    W_LATENCY,
    W_MISS,
    W_QUALITY,
    W_SWITCH,
    Packed,
    answer_of,
    of_branch,
    of_exit,
    of_tail,
    truth_of,
)
from adaptsplit.envs.world import UNLABELLED
from adaptsplit.outcome import Path

Array = NDArray[Any]

P_MISS, P_EXIT, P_LOCAL = int(Path.MISS), int(Path.EXIT), int(Path.LOCAL)
P_REMOTE, P_LATE, P_PASSED = int(Path.REMOTE), int(Path.FALLBACK_LATE), int(Path.FALLBACK_PASSED)
P_STALE = int(Path.STALE)


@inlined
def row_of(w: Packed, s: Array, frame: int, freeze: float) -> int:
    """Return the profile row of a frame; the average row when the frame comes after ``freeze``."""
    if freeze < math.inf and frame / w.f8[FPS] > freeze:
        return int(w.i8[ROWS] - 1)
    place, count = int(s[ROW_OFFSET]) + frame, int(s[ROW_COUNT])
    if place >= count:
        place %= count
    return int(s[ROW_FIRST]) + place


@inlined
def open_record(w: Packed, log: Array, frame: int) -> Any:
    """Return the frame's record, cleared: a dropped frame until something better happens."""
    record = log[frame % log.shape[0]]
    record["frame"] = frame
    record["arrived_s"] = frame / w.f8[FPS]
    record["decided_s"] = record["threshold"] = record["patience"] = record["agreement"] = math.nan
    record["answer_latency_s"] = record["remote_latency_s"] = math.nan
    record["branch"] = record["rate"] = -1
    record["path"], record["switched"], record["sent_bytes"] = P_MISS, 0, 0
    record["quality"] = record["confidence"] = record["exit_confidence"] = 0.0
    record["compute_j"] = record["radio_j"] = 0.0
    record["known_s"] = record["arrived_s"] + w.f8[DEADLINE]
    return record


@inlined
def settle(w: Packed, s: Array, record: Any, path: int, answered: float, quality: float, confidence: float) -> None:
    """Write how a frame ended and add its reward."""
    record["path"] = path
    record["quality"] = quality
    record["confidence"] = confidence
    costs = w.f8[W_MISS]
    if path != P_MISS:
        latency = answered - record["arrived_s"]
        record["answer_latency_s"] = latency
        costs = w.f8[W_LATENCY] * latency
    costs += w.f8[W_ENERGY] * (record["compute_j"] + record["radio_j"])
    costs += w.f8[W_BYTE] * record["sent_bytes"] + w.f8[W_SWITCH] * record["switched"]
    s[REWARD] += w.f8[W_QUALITY] * quality - costs


@inlined
def settle_exit(w: Packed, s: Array, record: Any, path: int, answered: float, exit_at: float, row: int) -> None:
    """Settle a frame by its exit's answer, given when both times have come: a miss after the deadline."""
    branch = of_branch(w, EXIT_BRANCH, int(record["branch"]))
    at = max(answered, exit_at)
    if at > record["arrived_s"] + w.f8[DEADLINE]:
        settle(w, s, record, P_MISS, at, 0.0, 0.0)
        return
    confidence = of_exit(w, EXIT_CONFIDENCE, row, branch)
    settle(w, s, record, path, at, of_exit(w, EXIT_QUALITY, row, branch), confidence)


@inlined
def hold(s: Array, row: int, branch: int, rate: int, taken_at: float, confidence: float) -> None:
    """Hold an answer for later frames, unless that of a newer frame is held; rate R is the exit's answer."""
    if est.on_answer(s[TRACKER:], taken_at, confidence):
        s[HELD_ROW], s[HELD_BRANCH], s[HELD_RATE] = row, branch, rate


@inlined
def hold_exit(w: Packed, s: Array, record: Any, row: int) -> None:
    """Hold the exit's answer when it is the frame's answer."""
    if record["path"] != P_MISS:
        branch = of_branch(w, EXIT_BRANCH, int(record["branch"]))
        hold(s, row, branch, int(w.i8[RATES]), record["arrived_s"], record["confidence"])


@compiled
def stale_quality(w: Packed, s: Array, row: int, age_frames: float) -> float:
    """Return the quality that the held answer has on a frame ``age_frames`` later.

    By label where there are labels; else the held answer's own quality, decayed by the profile's retention per frame.
    """
    held, branch, rate = int(s[HELD_ROW]), int(s[HELD_BRANCH]), int(s[HELD_RATE])
    average = w.i8[ROWS] - 1
    if w.i8[LABELLED] == 1 and row != average and held != average:
        right, labelled = 0.0, 0.0
        for cell in range(w.i8[CELLS]):
            truth = truth_of(w, row, cell)
            if truth != UNLABELLED:
                labelled += 1.0
                right += 1.0 if answer_of(w, held, branch, rate, cell) == truth else 0.0
        return right / max(labelled, 1.0)
    if rate >= w.i8[RATES]:
        fresh = of_exit(w, EXIT_QUALITY, held, branch)
    else:
        fresh = of_tail(w, TAIL_QUALITY, held, branch, rate)
    return float(fresh * w.f8[RETENTION] ** age_frames)


@inlined
def settle_stale(w: Packed, s: Array, record: Any, answered: float, row: int) -> None:
    """Answer a frame with the held answer: a miss when none is held, or after the deadline."""
    x = s[TRACKER:]
    if s[HELD_ROW] < 0.0 or answered > record["arrived_s"] + w.f8[DEADLINE]:
        settle(w, s, record, P_MISS, answered, 0.0, 0.0)
        return
    age = (record["arrived_s"] - x[est.HELD_AT]) * w.f8[FPS]
    confidence = x[est.HELD_CONFIDENCE] * w.f8[RETENTION] ** age
    settle(w, s, record, P_STALE, answered, stale_quality(w, s, row, age), confidence)


@compiled
def drop(w: Packed, s: Array, log: Array, frame: int) -> None:
    """A frame that the device never looked at."""
    record = open_record(w, log, frame)
    settle(w, s, record, P_MISS, 0.0, 0.0, 0.0)
    est.on_settled(s[TRACKER:], 1.0, 0.0)
