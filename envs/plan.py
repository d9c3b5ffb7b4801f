"""Compiled planning on the simulator itself: beam search, receding horizon, replay of a plan.

A plan is a sequence of candidates (branch, rate, threshold value, patience). Beams are kept per frame, since a slow
decision skips frames; two states that differ in nothing that matters later (device and link free at the same times, the
same frame in the slot) keep the better one only. Letters: K beam width, C candidates, F frames, G frames that one
decision can span.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.envs.answers import row_of, stale_quality
from adaptsplit.envs.compiled import compiled, inlined
from adaptsplit.envs.core import reset_row, step_row
from adaptsplit.envs.layout import (
    DONE,
    ENTRY,
    FRAME,
    HEAD_ACK,
    HEAD_RESULT,
    HEAD_SETTLE,
    HELD_ROW,
    LAST_BRANCH,
    LINK_FREE,
    NOW,
    RING,
    RING_START,
    SLOT_BRANCH,
    SLOT_FRAME,
    SLOT_USED,
    STATE_SIZE,
    TAIL,
    TRACKER,
)
from adaptsplit.envs.packed import ENCODE as ENCODE_S
from adaptsplit.envs.packed import (
    EXIT_BRANCH,
    EXIT_CONFIDENCE,
    EXIT_QUALITY,
    FRAMES,
    KIND,
    PAYLOAD,
    TAIL_QUALITY,
    W_SWITCH,
    Packed,
    of_branch,
    of_exit,
    of_tail,
    stage,
    stage_index,
)
from adaptsplit.envs.packed import HEAD as HEAD_S
from adaptsplit.envs.world import KIND_LOCAL, KIND_SKIP

Array = NDArray[Any]
SAME_S = 1e-3
SPAN = 16


@inlined
def copy(target: Array, source: Array) -> None:
    """Copy element by element (a slice assignment would need reference counting)."""
    for i in range(source.shape[0]):
        target[i] = source[i]


@inlined
def copy_state(target: Array, source: Array) -> None:
    """Copy a state row; of the ring only the entries in use."""
    for i in range(RING_START):
        target[i] = source[i]
    first = int(min(min(source[HEAD_ACK], source[HEAD_RESULT]), source[HEAD_SETTLE]))
    for entry in range(first, int(source[TAIL])):
        begin = RING_START + entry % RING * ENTRY
        for i in range(begin, begin + ENTRY):
            target[i] = source[i]
    for i in range(TRACKER, STATE_SIZE):
        target[i] = source[i]


@compiled
def worth_trying(w: Packed, s: Array, candidates: Array, keep: Array, values: Array, freeze: float) -> None:
    """Mark the candidates that no other one beats in answer, bytes and device time on the frame at hand."""
    row = row_of(w, s, int(s[FRAME]), freeze)
    count = candidates.shape[0]
    for i in range(count):
        b, r = int(candidates[i, 0]), int(candidates[i, 1])
        head_of = of_branch(w, EXIT_BRANCH, b)
        if of_branch(w, KIND, b) == KIND_SKIP:
            values[i, 0] = stale_quality(w, s, row, 1.0) if s[HELD_ROW] >= 0.0 else 0.0
            values[i, 1] = values[i, 2] = 0.0
            continue
        exits = of_branch(w, KIND, b) == KIND_LOCAL or of_exit(w, EXIT_CONFIDENCE, row, head_of) >= candidates[i, 2]
        values[i, 0] = of_exit(w, EXIT_QUALITY, row, head_of) if exits else of_tail(w, TAIL_QUALITY, row, b, r)
        values[i, 1] = 0.0 if exits else of_tail(w, PAYLOAD, row, b, r)
        values[i, 2] = stage(w, HEAD_S, head_of, 0.5) + (
            0.0 if exits else stage(w, ENCODE_S, stage_index(w, b, r), 0.5)
        )
    for i in range(count):
        keep[i] = True
        for j in range(count):
            as_good = values[j, 0] >= values[i, 0] and values[j, 1] <= values[i, 1] and values[j, 2] <= values[i, 2]
            as_good = as_good and (values[i, 1] == 0.0 or candidates[j, 3] == candidates[i, 3])
            better = values[j, 0] > values[i, 0] or values[j, 1] < values[i, 1] or values[j, 2] < values[i, 2]
            if i != j and as_good and (better or j < i):
                keep[i] = False
                break
    if w.f8[W_SWITCH] > 0.0:
        for i in range(count):
            keep[i] = keep[i] or candidates[i, 0] == s[LAST_BRANCH]


@compiled
def _place(states: Array, scores: Array, used: Array, slot: int, s: Array, score: float, skips: bool) -> int:
    """Return where a state belongs in a frame's beam, -1 when it is not good enough."""
    width, worst = scores.shape[1], -1
    for k in range(used[slot]):
        other = states[slot, k]
        times = abs(other[LINK_FREE] - s[LINK_FREE]) < SAME_S and abs(other[NOW] - s[NOW]) < SAME_S
        waiting = other[SLOT_USED] == s[SLOT_USED] and other[SLOT_FRAME] == s[SLOT_FRAME]
        branches = other[SLOT_BRANCH] == s[SLOT_BRANCH] and other[LAST_BRANCH] == s[LAST_BRANCH]
        if times and waiting and branches and (not skips or other[HELD_ROW] == s[HELD_ROW]):
            return k if score > scores[slot, k] else -1
        if worst < 0 or scores[slot, k] < scores[slot, worst]:
            worst = k
    if used[slot] < width:
        used[slot] += 1
        return int(used[slot] - 1)
    return worst if score > scores[slot, worst] else -1


@compiled
def beam(
    w: Packed,
    root: Array,
    root_log: Array,
    seed: np.uint64,
    candidates: Array,
    last: int,
    freeze: float,
    width: int,
    buffers: Any,
) -> float:
    """Plan from ``root`` up to frame ``last``; the choice per frame (index of a candidate, -1 skipped) goes into the
    first row of ``buffers``' best plan. Returns the best value."""
    states, logs, scores, plans, used, scratch, scratch_log, keep, best, values = buffers
    first, skips = int(root[FRAME]), False
    for c in range(candidates.shape[0]):
        skips = skips or of_branch(w, KIND, int(candidates[c, 0])) == KIND_SKIP
    used[:] = 0
    copy_state(states[0, 0], root)
    copy(logs[0, 0], root_log)
    scores[0, 0], used[0] = 0.0, 1
    plans[0, 0, :] = -1
    value = -math.inf
    for frame in range(first, last):
        here = (frame - first) % SPAN
        for k in range(used[here]):
            worth_trying(w, states[here, k], candidates, keep, values, freeze)
            for c in range(candidates.shape[0]):
                if not keep[c]:
                    continue
                copy_state(scratch, states[here, k])
                copy(scratch_log, logs[here, k])
                b, r = int(candidates[c, 0]), int(candidates[c, 1])
                rule = candidates[c, 2], candidates[c, 3]
                score = scores[here, k] + step_row(w, scratch, seed, scratch_log, b, r, rule[0], rule[1], freeze)
                if scratch[DONE] == 1.0 or scratch[FRAME] >= last:
                    if score > value:
                        value = score
                        copy(best, plans[here, k])
                        best[frame - first] = c
                    continue
                there = (int(scratch[FRAME]) - first) % SPAN
                place = _place(states, scores, used, there, scratch, score, skips)
                if place >= 0:
                    copy_state(states[there, place], scratch)
                    copy(logs[there, place], scratch_log)
                    scores[there, place] = score
                    copy(plans[there, place], plans[here, k])
                    plans[there, place, frame - first] = c
        used[here] = 0
    return value


@compiled
def replay(w: Packed, s: Array, log: Array, seed: np.uint64, plan: Array) -> float:
    """Play decisions per frame (F, 4) floats (branch -1: none was taken, then the last is repeated); return the
    value."""
    reset_row(w, s, seed)
    total, b, r, threshold, patience = 0.0, 0, 0, 0.0, 1.0
    while s[DONE] == 0.0:
        chosen = plan[int(s[FRAME])]
        if chosen[0] >= 0.0:
            b, r, threshold, patience = int(chosen[0]), int(chosen[1]), chosen[2], chosen[3]
        total += step_row(w, s, seed, log, b, r, threshold, patience, math.inf)
    return total


@inlined
def recent_log(planning_log: Array, log: Array, frame: int, depth: int) -> None:
    """Copy the records of the last ``depth`` frames into the ring that plans are made in."""
    for i in range(depth):
        back = frame - 1 - i
        if back >= 0:
            planning_log[back % depth] = log[back % log.shape[0]]


@compiled
def recede(
    w: Packed,
    imagined: Packed,
    s: Array,
    log: Array,
    seed: np.uint64,
    candidates: Array,
    lookahead: float,
    horizon: int,
    width: int,
    planning_log: Array,
    buffers: Any,
) -> float:
    """Plan ``horizon`` frames at every decision with the world known for ``lookahead`` seconds; act on the first."""
    reset_row(w, s, seed)
    best = buffers[8]
    total = 0.0
    while s[DONE] == 0.0:
        frame = int(s[FRAME])
        last = min(frame + horizon, int(w.f8[FRAMES]))
        recent_log(planning_log, log, frame, planning_log.shape[0])
        beam(imagined, s, planning_log, seed, candidates, last, s[NOW] + lookahead, width, buffers)
        c = candidates[best[0]]
        total += step_row(w, s, seed, log, int(c[0]), int(c[1]), c[2], c[3], math.inf)
    return total
