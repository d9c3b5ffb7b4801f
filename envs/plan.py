"""Compiled planning on the simulator itself: beam search, receding horizon, replay of a plan, and a relaxed bound.

A plan is a sequence of candidates (branch, rate, threshold value, patience). Beams are kept per frame, since a slow
decision skips frames; two states that differ in nothing that matters later (device and link free at the same times, the
same frame in the slot) keep the better one only. Letters: K beam width, C candidates, F frames, G frames that one
decision can span.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.envs import compiled as rand
from adaptsplit.envs.answers import row_of, stale_quality
from adaptsplit.envs.board import load_at
from adaptsplit.envs.compiled import compiled, inlined, key_of, uniform_of
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
    LINK,
    LINK_FREE,
    LINK_OFFSET,
    LOAD_OFFSET,
    NOW,
    RING,
    RING_START,
    ROW_COUNT,
    ROW_FIRST,
    SERVER_AT,
    SERVER_OFFSET,
    SLOT_BRANCH,
    SLOT_FRAME,
    SLOT_USED,
    STATE_SIZE,
    TAIL,
    TRACKER,
)
from adaptsplit.envs.link import bits_until, finish
from adaptsplit.envs.packed import (
    BATCH_WINDOW,
    DEADLINE,
    DECISION_S,
    EXIT_BRANCH,
    EXIT_CONFIDENCE,
    EXIT_QUALITY,
    FPS,
    FRAMES,
    KIND,
    LOAD_COUNT,
    LOAD_DT,
    PAYLOAD,
    SERVER_COUNT,
    SERVER_DT,
    TAIL_QUALITY,
    W_BYTE,
    W_ENERGY,
    W_MISS,
    W_QUALITY,
    W_SWITCH,
    Packed,
    of_branch,
    of_exit,
    of_tail,
    stage,
    stage_index,
)
from adaptsplit.envs.packed import ENCODE as ENCODE_S
from adaptsplit.envs.packed import HEAD as HEAD_S
from adaptsplit.envs.packed import SIGNAL as SIGNAL_S
from adaptsplit.envs.packed import TAIL as TAIL_S
from adaptsplit.envs.remote import background
from adaptsplit.envs.world import KIND_LOCAL, KIND_SKIP

Array = NDArray[Any]
SAME_S = 1e-3
SPAN = 16
PAST_S = 0.5
FUTURES = 24
SAMPLES_PAST = 10


@inlined
def _copy(target: Array, source: Array) -> None:
    """Copy element by element (a slice assignment would need reference counting)."""
    for i in range(source.shape[0]):
        target[i] = source[i]


@inlined
def _copy_state(target: Array, source: Array) -> None:
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
def _worth_trying(w: Packed, s: Array, candidates: Array, keep: Array, values: Array, freeze: float) -> None:
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
    _copy_state(states[0, 0], root)
    _copy(logs[0, 0], root_log)
    scores[0, 0], used[0] = 0.0, 1
    plans[0, 0, :] = -1
    value = -math.inf
    for frame in range(first, last):
        here = (frame - first) % SPAN
        for k in range(used[here]):
            _worth_trying(w, states[here, k], candidates, keep, values, freeze)
            for c in range(candidates.shape[0]):
                if not keep[c]:
                    continue
                _copy_state(scratch, states[here, k])
                _copy(scratch_log, logs[here, k])
                b, r = int(candidates[c, 0]), int(candidates[c, 1])
                rule = candidates[c, 2], candidates[c, 3]
                score = scores[here, k] + step_row(w, scratch, seed, scratch_log, b, r, rule[0], rule[1], freeze)
                if scratch[DONE] == 1.0 or scratch[FRAME] >= last:
                    if score > value:
                        value = score
                        _copy(best, plans[here, k])
                        best[frame - first] = c
                    continue
                there = (int(scratch[FRAME]) - first) % SPAN
                place = _place(states, scores, used, there, scratch, score, skips)
                if place >= 0:
                    _copy_state(states[there, place], scratch)
                    _copy(logs[there, place], scratch_log)
                    scores[there, place] = score
                    _copy(plans[there, place], plans[here, k])
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
def _recent_log(planning_log: Array, log: Array, frame: int, depth: int) -> None:
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
        _recent_log(planning_log, log, frame, planning_log.shape[0])
        beam(imagined, s, planning_log, seed, candidates, last, s[NOW] + lookahead, width, buffers)
        c = candidates[best[0]]
        total += step_row(w, s, seed, log, int(c[0]), int(c[1]), c[2], c[3], math.inf)
    return total


@inlined
def _recent(w: Packed, s: Array) -> float:
    """Return the mean capacity of the last ``PAST_S`` seconds, bit/s."""
    now, link = s[NOW] + s[LINK_OFFSET], int(s[LINK])
    return (bits_until(w, link, now) - bits_until(w, link, now - PAST_S)) / PAST_S


class Moments(NamedTuple):
    """Moments of the policy-train links, server and board, each ascending in its first column."""

    link: Array  # (M, 3) recent capacity bit/s, link, time
    server: Array  # (M, 2) recent background work s, time; empty when the server has none
    load: Array  # (M, 2) load, time; empty when the board has none


@compiled
def recent_background(w: Packed, at: float) -> float:
    """Return the mean background work of the server in the last ``PAST_S`` seconds, s (0 when it has none)."""
    if w.i8[SERVER_COUNT] == 0:
        return 0.0
    total = 0.0
    for i in range(SAMPLES_PAST):
        total += background(w, max(at - i * PAST_S / SAMPLES_PAST, 0.0))
    return total / SAMPLES_PAST


@compiled
def _alike(moments: Array, value: float) -> tuple[int, int]:
    """Return first and number of the moments most like ``value``: all equal ones, else the nearest fiftieth."""
    count = moments.shape[0]
    low, high = np.searchsorted(moments[:, 0], value), np.searchsorted(moments[:, 0], value, side="right")
    if high - low >= FUTURES or count == 0:
        return int(low), int(high - low)
    near = min(max(count // 50, FUTURES), count)
    return int(max(0, min((low + high) // 2 - near // 2, count - near))), int(near)


@compiled
def foresee(
    w: Packed,
    imagined: Packed,
    s: Array,
    log: Array,
    seed: np.uint64,
    candidates: Array,
    moments: Moments,
    horizon: int,
    planning_log: Array,
    buffers: Any,
) -> float:
    """Decide on the current capacity and frame alone: the mean over what followed at similar moments of other links.

    ``moments`` are those of ``imagined``'s links, server and board. Each candidate is held for ``horizon`` frames that
    look like the one at hand, in ``FUTURES`` futures common to all candidates.
    """
    _, _, _, _, _, scratch, scratch_log, keep, _, values = buffers
    reset_row(w, s, seed)
    count, near = moments.link.shape[0], max(moments.link.shape[0] // 50, FUTURES)
    depth, total = planning_log.shape[0], 0.0
    while s[DONE] == 0.0:
        frame = int(s[FRAME])
        _recent_log(planning_log, log, frame, depth)
        at = np.searchsorted(moments.link[:, 0], _recent(w, s))
        low = max(0, min(at - near // 2, count - near))
        server_low, server_near = _alike(moments.server, recent_background(w, s[NOW] + s[SERVER_OFFSET]))
        load_low, load_near = _alike(moments.load, load_at(w, s, s[NOW]))
        _worth_trying(imagined, s, candidates, keep, values, s[NOW])
        best, best_value = 0, -math.inf
        for c in range(candidates.shape[0]):
            if not keep[c]:
                continue
            value = 0.0
            for j in range(FUTURES):
                key = key_of(seed, frame * FUTURES + j)
                m = moments.link[low + int(uniform_of(key, rand.FUTURE) * near)]
                _copy_state(scratch, s)
                _copy(scratch_log, planning_log)
                scratch[ROW_FIRST], scratch[ROW_COUNT] = row_of(w, s, frame, math.inf), 1.0
                scratch[LINK], scratch[LINK_OFFSET] = m[1], m[2] - s[NOW]
                if server_near > 0:
                    chosen_at = server_low + int(uniform_of(key, rand.FUTURE_SERVER) * server_near)
                    period = imagined.i8[SERVER_COUNT] * imagined.f8[SERVER_DT]
                    whole = math.ceil((s[NOW] + s[SERVER_OFFSET]) / period) * period  # times stay positive
                    moved = moments.server[chosen_at, 1] - s[NOW] - s[SERVER_OFFSET] + whole
                    scratch[SERVER_OFFSET] += moved
                    scratch[SERVER_AT] += moved
                if load_near > 0:
                    chosen_at = load_low + int(uniform_of(key, rand.FUTURE_LOAD) * load_near)
                    period = imagined.i8[LOAD_COUNT] * imagined.f8[LOAD_DT]
                    scratch[LOAD_OFFSET] = moments.load[chosen_at, 1] - s[NOW] + math.ceil(s[NOW] / period) * period
                while scratch[FRAME] < frame + horizon and scratch[DONE] == 0.0:
                    b, r = int(candidates[c, 0]), int(candidates[c, 1])
                    rule = candidates[c, 2], candidates[c, 3]
                    value += step_row(imagined, scratch, seed, scratch_log, b, r, rule[0], rule[1], math.inf)
            if value > best_value:
                best, best_value = c, value
        chosen = candidates[best]
        total += step_row(w, s, seed, log, int(chosen[0]), int(chosen[1]), chosen[2], chosen[3], math.inf)
    return total


@compiled
def relaxed_bound(w: Packed, s: Array, seed: np.uint64, candidates: Array, rtt: float, least_w: float) -> float:
    """Return a value that no controller can exceed: every frame alone on an idle device, link and server.

    Each frame takes its best candidate from its arrival on, with the board at full clock and the compute power that is
    smallest per work done (``least_w``), at the trace's smallest round trip, without retransmission, radio, latency or
    switching cost; an answer that is used again counts as right. Nothing that one frame takes is missing to another.
    """
    reset_row(w, s, seed)
    total = 0.0
    link, offset = int(s[LINK]), s[LINK_OFFSET]
    for frame in range(int(w.f8[FRAMES])):
        row, key = row_of(w, s, frame, math.inf), key_of(seed, frame)
        at, best = frame / w.f8[FPS], -w.f8[W_MISS]
        before = w.f8[DECISION_S] + stage(w, SIGNAL_S, 0, uniform_of(key, rand.SIGNAL))
        for i in range(candidates.shape[0]):
            b, r = int(candidates[i, 0]), int(candidates[i, 1])
            if of_branch(w, KIND, b) == KIND_SKIP:
                best = max(best, w.f8[W_QUALITY] - w.f8[W_ENERGY] * least_w * before)
                continue
            head_of = of_branch(w, EXIT_BRANCH, b)
            free = before + stage(w, HEAD_S, head_of, uniform_of(key, rand.HEAD))
            quality = of_exit(w, EXIT_QUALITY, row, head_of) if free <= w.f8[DEADLINE] else 0.0
            spent = 0.0
            if of_branch(w, KIND, b) != KIND_LOCAL and of_exit(w, EXIT_CONFIDENCE, row, head_of) < candidates[i, 2]:
                free += stage(w, ENCODE_S, stage_index(w, b, r), uniform_of(key, rand.ENCODE))
                wire = of_tail(w, PAYLOAD, row, b, r) + est.OVERHEAD_BYTES
                end = finish(w, link, at + free + offset, 8.0 * wire, math.inf) - offset
                tail = stage(w, TAIL_S, stage_index(w, b, r), uniform_of(key, rand.TAIL)) * (w.f8[BATCH_WINDOW] == 0.0)
                remote = of_tail(w, TAIL_QUALITY, row, b, r) if end + rtt + tail <= at + w.f8[DEADLINE] else 0.0
                unsent = w.f8[W_QUALITY] * quality - w.f8[W_ENERGY] * least_w * free
                best = max(best, unsent)  # passed over by the sender
                quality = max(quality, remote)
                spent = w.f8[W_BYTE] * of_tail(w, PAYLOAD, row, b, r)
            best = max(best, w.f8[W_QUALITY] * quality - w.f8[W_ENERGY] * least_w * free - spent)
        total += best
    return total
