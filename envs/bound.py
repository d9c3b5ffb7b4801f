"""The relaxed upper bound: what no controller can exceed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.envs import compiled as rand
from adaptsplit.envs.answers import row_of
from adaptsplit.envs.compiled import compiled, key_of, uniform_of
from adaptsplit.envs.core import reset_row
from adaptsplit.envs.layout import (
    LINK,
    LINK_OFFSET,
)
from adaptsplit.envs.link import finish
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
    PAYLOAD,
    TAIL_QUALITY,
    W_BYTE,
    W_ENERGY,
    W_MISS,
    W_QUALITY,
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
from adaptsplit.envs.world import KIND_LOCAL, KIND_SKIP

Array = NDArray[Any]


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
