"""The world in three flat arrays, for the compiled core.

A compiled call passes arrays by value, a few dozen words each: with the world's thirty arrays that would cost more than
the physics. So everything lies in one float32, one float64 and one int64 array; the constants below are the places, the
accessors the only way in. Letters: N rows, B branches, R rates, Q quantile levels, T thresholds, S flights, L traces.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit.envs.compiled import inlined
from adaptsplit.envs.world import World

Array = NDArray[Any]

# f8: scalars at fixed places (the order of Constants and Weights), then the tables.
FPS, DEADLINE, WINDOW, FIFO, FRAMES, DECISION_S, COMPUTE_W, BASE_W, RADIO_W, RADIO_W_PER_BPS, BATTERY = range(11)
PRIOR_BPS, PRIOR_RTT, PRIOR_SERVER = range(11, 14)
W_QUALITY, W_ENERGY, W_BYTE, W_SWITCH, W_MISS = range(14, 19)

# i8: sizes, then where each table begins in its array.
ROWS, BRANCHES, RATES, LEVELS, FLIGHTS, LINKS = range(6)
EXIT_QUALITY, EXIT_CONFIDENCE, TAIL_QUALITY, TAIL_CONFIDENCE, AGREEMENT, PAYLOAD, SHARPNESS, DIFFERENCE = range(6, 14)
HEAD, ENCODE, TAIL, SIGNAL, THRESHOLDS = range(14, 19)
LINK_SHARE, LINK_DT, CAPACITY, CUMULATIVE, ACTIVE, RTT, LOSS, RECEIVED = range(19, 27)
KIND, RATE_COUNT, EXIT_BRANCH, FLIGHT_FIRST, FLIGHT_COUNT, LINK_FIRST, LINK_SUM, LINK_COUNT = range(27, 35)
HEADER = 35


class Packed(NamedTuple):
    """A world packed by ``pack``."""

    f4: Array
    f8: Array
    i8: Array


def pack(world: World) -> Packed:
    """Lay a world out flat (copies)."""
    scalars = np.array([*world.constants, *world.weights], dtype=np.float64)
    links = world.links
    rows, branches, rates = world.outcomes.tail_quality.shape
    sizes = [rows, branches, rates, world.stages.head.shape[1], len(world.flight_first), len(links.samples)]
    f4, at_f4 = _lay(np.zeros(0, dtype=np.float32), world.outcomes)
    floats = (*world.stages, world.thresholds, links.share, links.dt_s, links.capacity, links.cumulative, links.active)
    f8, at_f8 = _lay(scalars, (*floats, links.rtt, links.loss, links.signal))
    whole = (world.kind, world.rates, world.exit_branch, world.flight_first, world.flight_count)
    i8, at_i8 = _lay(np.zeros(HEADER, dtype=np.int64), (*whole, links.first, links.first_sum, links.samples))
    i8[:HEADER] = [*sizes, *at_f4, *at_f8, *at_i8]
    return Packed(f4, f8, i8)


def _lay(head: Array, tables: Any) -> tuple[Array, list[int]]:
    """Append the tables to ``head``; return the array and where each begins."""
    flat = [np.asarray(table, dtype=head.dtype).ravel() for table in tables]
    begins = len(head) + np.concatenate([[0], np.cumsum([len(table) for table in flat])[:-1]])
    return np.concatenate([head, *flat]), [int(begin) for begin in begins]


@inlined
def of_frame(w: Packed, table: int, row: int) -> float:
    """Return an entry of a table (N + 1,)."""
    return float(w.f4[w.i8[table] + row])


@inlined
def of_exit(w: Packed, table: int, row: int, branch: int) -> float:
    """Return an entry of a table (N + 1, B)."""
    return float(w.f4[w.i8[table] + row * w.i8[BRANCHES] + branch])


@inlined
def of_tail(w: Packed, table: int, row: int, branch: int, rate: int) -> float:
    """Return an entry of a table (N + 1, B, R)."""
    return float(w.f4[w.i8[table] + (row * w.i8[BRANCHES] + branch) * w.i8[RATES] + rate])


@inlined
def of_branch(w: Packed, table: int, index: int) -> int:
    """Return an entry of a table of integers (kind, rates, exit branch, flights, links)."""
    return int(w.i8[w.i8[table] + index])


@inlined
def stage(w: Packed, table: int, index: int, u: float) -> float:
    """Return the quantile ``u`` of a stage time, interpolated between its levels; ``index`` counts rows of Q levels."""
    levels = w.i8[LEVELS]
    begin = w.i8[table] + index * levels
    position = u * (levels - 1)
    low = int(position)
    high = min(low + 1, levels - 1)
    return float(w.f8[begin + low] + (w.f8[begin + high] - w.f8[begin + low]) * (position - low))


@inlined
def stage_index(w: Packed, branch: int, rate: int) -> int:
    """Return the row of a stage table (B, R, Q)."""
    return int(branch * w.i8[RATES] + rate)


@inlined
def of_link(w: Packed, table: int, index: int) -> float:
    """Return an entry of a flat link array."""
    return float(w.f8[w.i8[table] + index])
