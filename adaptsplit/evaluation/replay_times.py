"""The stage times of every frame of a live log, laid out for the simulator: common random numbers for a replay.

The live run drew one time for each stage of each frame. Where the replay takes the live decision it gets that very
time; where it decides otherwise, the time at the same quantile of the other branch's modelled times (what a stall of
the host added beyond the largest quantile is added there, too). Letters: F frames, B branches, R rates, Q levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.envs.world import World
from adaptsplit.recorded_run import RecordedRun

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """What the log tells of each frame, s; NaN where it tells nothing.

    late: (F,) from the moment at which the device could take the frame up until it did. looked: (F,) from the same
    moment until the content signals were known. head (F, B), encode and tail (F, B, R).
    """

    late: Array
    looked: Array
    head: Array
    encode: Array
    tail: Array


def frame_times(run: RecordedRun, world: World) -> FrameTimes:
    """Lay a log's times out by frame; frames are counted from 0 on, and ``run`` holds all of them."""
    count, stages = int(run.records["frame"].max()) + 1, world.stages
    shapes = ((), (), *(np.shape(table)[:-1] for table in (stages.head, stages.encode, stages.tail)))
    found = FrameTimes(*(np.full((count, *shape), np.nan) for shape in shapes))
    free = 0.0
    for record, times in zip(run.records, run.times, strict=True):
        if "looked_s" in times:
            _fill(found, record, times, free, world)
            free = times.get("free_s", times["looked_s"])
    return found


def _fill(found: FrameTimes, record: Any, times: Any, free: float, world: World) -> None:
    """Enter one frame that was taken up; ``free`` is when the one before it had been done."""
    frame, branch, rate = int(record["frame"]), int(record["branch"]), int(record["rate"])
    late = max(float(record["decided_s"]) - max(float(record["arrived_s"]), free), 0.0)
    found.late[frame], found.looked[frame] = late, late + times["looked_s"] - float(record["decided_s"])
    if "exit_s" not in times:
        return
    head = int(world.exit_branch[branch])
    found.head[frame] = as_drawn(world.stages.head, (head,), times["exit_s"] - times["looked_s"])
    if times.get("free_s", 0.0) > times["exit_s"]:
        found.encode[frame] = as_drawn(world.stages.encode, (branch, rate), times["free_s"] - times["exit_s"])
    if "server_s" in times:
        alone = times["server_s"] - times.get("queue_s", 0.0)
        found.tail[frame] = as_drawn(world.stages.tail, (branch, rate), alone)


def as_drawn(table: Array, own: tuple[int, ...], value: float) -> Array:
    """Return (...) the time of every entry of ``table`` (..., Q) at the quantile that ``value`` has in entry ``own``.

    >>> as_drawn(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]), (0,), 2.0).tolist()
    [2.0, 20.0]
    """
    levels = (np.arange(table.shape[-1]) + 0.5) / table.shape[-1]
    mine = table[own]
    u = 0.5 if mine[0] == mine[-1] else float(np.interp(value, mine, levels))
    place = np.clip(u * len(levels) - 0.5, 0.0, len(levels) - 1.0)
    low = int(place)
    high = min(low + 1, len(levels) - 1)
    drawn = table[..., low] + (table[..., high] - table[..., low]) * (place - low) + max(value - mine[-1], 0.0)
    drawn[own] = max(value, 0.0)
    return np.asarray(drawn)
