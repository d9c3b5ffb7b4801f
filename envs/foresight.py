"""Planning on the current capacity, server and frame alone: the informed oracle without foresight.

Letters: C candidates, M moments.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit.envs import compiled as rand
from adaptsplit.envs.answers import row_of
from adaptsplit.envs.board import load_at
from adaptsplit.envs.compiled import compiled, inlined, key_of, uniform_of
from adaptsplit.envs.core import reset_row, step_row
from adaptsplit.envs.layout import (
    DONE,
    FRAME,
    LINK,
    LINK_OFFSET,
    LOAD_OFFSET,
    NOW,
    ROW_COUNT,
    ROW_FIRST,
    SERVER_AT,
    SERVER_OFFSET,
)
from adaptsplit.envs.link import bits_until
from adaptsplit.envs.packed import (
    LOAD_COUNT,
    LOAD_DT,
    SERVER_COUNT,
    SERVER_DT,
    Packed,
)
from adaptsplit.envs.plan import copy, copy_state, recent_log, worth_trying
from adaptsplit.envs.remote import background

Array = NDArray[Any]
PAST_S = 0.5
FUTURES = 24
SAMPLES_PAST = 10


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


@inlined
def _elsewhere(
    imagined: Packed,
    s: Array,
    key: np.uint64,
    moments: Moments,
    links: tuple[int, int],
    servers: tuple[int, int],
    loads: tuple[int, int],
) -> None:
    """Move a state to moments drawn from ranges (first, number) of those that are like its own; times stay positive."""
    m = moments.link[links[0] + int(uniform_of(key, rand.FUTURE) * links[1])]
    s[LINK], s[LINK_OFFSET] = m[1], m[2] - s[NOW]
    if servers[1] > 0:
        at = servers[0] + int(uniform_of(key, rand.FUTURE_SERVER) * servers[1])
        period = imagined.i8[SERVER_COUNT] * imagined.f8[SERVER_DT]
        whole = math.ceil((s[NOW] + s[SERVER_OFFSET]) / period) * period
        moved = moments.server[at, 1] - s[NOW] - s[SERVER_OFFSET] + whole
        s[SERVER_OFFSET] += moved
        s[SERVER_AT] += moved
    if loads[1] > 0:
        at = loads[0] + int(uniform_of(key, rand.FUTURE_LOAD) * loads[1])
        period = imagined.i8[LOAD_COUNT] * imagined.f8[LOAD_DT]
        s[LOAD_OFFSET] = moments.load[at, 1] - s[NOW] + math.ceil(s[NOW] / period) * period


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
        recent_log(planning_log, log, frame, depth)
        at = np.searchsorted(moments.link[:, 0], _recent(w, s))
        low = max(0, min(at - near // 2, count - near))
        servers = _alike(moments.server, recent_background(w, s[NOW] + s[SERVER_OFFSET]))
        loads = _alike(moments.load, load_at(w, s, s[NOW]))
        worth_trying(imagined, s, candidates, keep, values, s[NOW])
        best, best_value = 0, -math.inf
        for c in range(candidates.shape[0]):
            if not keep[c]:
                continue
            value = 0.0
            for j in range(FUTURES):
                copy_state(scratch, s)
                copy(scratch_log, planning_log)
                scratch[ROW_FIRST], scratch[ROW_COUNT] = row_of(w, s, frame, math.inf), 1.0
                key = key_of(seed, frame * FUTURES + j)
                _elsewhere(imagined, scratch, key, moments, (low, near), servers, loads)
                while scratch[FRAME] < frame + horizon and scratch[DONE] == 0.0:
                    b, r = int(candidates[c, 0]), int(candidates[c, 1])
                    rule = candidates[c, 2], candidates[c, 3]
                    value += step_row(imagined, scratch, seed, scratch_log, b, r, rule[0], rule[1], math.inf)
            if value > best_value:
                best, best_value = c, value
        chosen = candidates[best]
        total += step_row(w, s, seed, log, int(chosen[0]), int(chosen[1]), chosen[2], chosen[3], math.inf)
    return total
