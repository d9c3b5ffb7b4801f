"""The world in four flat arrays, for the compiled core.

A compiled call passes arrays by value, a few dozen words each: with the world's thirty arrays that would cost more than
the physics. So everything lies in one float32, one float64, one int64 and one byte array; the constants below are the
places, the accessors the only way in. Letters: N rows, B branches, R rates, Q quantile levels, T exit rules, S flights,
L traces, C cells.
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
PRIOR_BPS, PRIOR_RTT, PRIOR_SERVER, RETENTION = range(11, 15)
W_QUALITY, W_ENERGY, W_BYTE, W_SWITCH, W_MISS, W_LATENCY = range(15, 21)
BATCH_WINDOW, BATCH_MARGINAL, SERVER_DT, LOAD_DT = range(21, 25)
IDLE_W, AMBIENT_C, K_PER_W, TAU_S, SOFT_C, SOFT_SPEED, HARD_C, HARD_SPEED, HYSTERESIS_K = range(25, 34)
MINIMUM_CLOCK = 34

# i8: sizes and switches, then where each table begins in its array.
ROWS, BRANCHES, RATES, LEVELS, FLIGHTS, LINKS, CELLS, LABELLED = range(8)
SERVER_COUNT, LOAD_COUNT, THERMAL, RADIO_POINTS, HAS_SIGNAL = range(8, 13)
OF_EXIT, OF_TAIL, OF_FRAME = range(13, 16)
HEAD, ENCODE, TAIL, SIGNAL, THRESHOLDS, PATIENCE = range(16, 22)
LINK_SHARE, LINK_DT, SAMPLES = range(22, 25)
SERVER_WORK, SERVER_BACKLOG, SERVER_JOBS, LOAD, RADIO_SIGNAL, RADIO_J_PER_BIT = range(25, 31)
KIND, RATE_COUNT, EXIT_BRANCH, FLIGHT_FIRST, FLIGHT_COUNT, LINK_FIRST, LINK_COUNT = range(31, 38)
ANSWERS, TRUTH = range(38, 40)
HEADER = 40

# What lies side by side in a table's entry, so that one look-up touches one cache line.
EXIT_QUALITY, EXIT_CONFIDENCE = range(2)
TAIL_QUALITY, TAIL_CONFIDENCE, AGREEMENT, PAYLOAD = range(4)
SHARPNESS, DIFFERENCE = range(2)
CUMULATIVE, CAPACITY, RTT, LOSS, RECEIVED, ACTIVE = range(6)


class Packed(NamedTuple):
    """A world packed by ``pack``."""

    f4: Array
    f8: Array
    i8: Array
    u1: Array


def pack(world: World) -> Packed:
    """Lay a world out flat (copies)."""
    links, server, device = world.links, world.server, world.device
    scalars = [*world.constants, *world.weights, server.batch_window_s, server.batch_marginal, server.dt_s]
    head = np.array([*scalars, device.load_dt_s, *device.thermal], dtype=np.float64)
    rows, branches, rates = world.outcomes.tail_quality.shape
    sizes = [rows, branches, rates, world.stages.head.shape[1], len(world.flight_first), len(links.samples)]
    sizes += [world.answers.truth.shape[1], int(world.answers.labelled), max(len(server.work_s) - 1, 0)]
    signal = int(np.isfinite(links.table[:, RECEIVED]).any())
    sizes += [len(device.load), int(device.has_thermal), len(device.radio_signal), signal]
    o = world.outcomes
    exits, frames = (
        np.stack([o.exit_quality, o.exit_confidence], axis=-1),
        np.stack([o.sharpness, o.difference], axis=-1),
    )
    tails = np.stack([o.tail_quality, o.tail_confidence, o.agreement, o.payload], axis=-1)
    f4, at_f4 = _lay(np.zeros(0, dtype=np.float32), (exits, tails, frames))
    floats = (*world.stages, world.thresholds, world.patience, links.share, links.dt_s, links.table)
    exogenous = (server.work_s, server.backlog_s, server.jobs, device.load, device.radio_signal, device.radio_j_per_bit)
    f8, at_f8 = _lay(head, (*floats, *exogenous))
    whole = (world.kind, world.rates, world.exit_branch, world.flight_first, world.flight_count)
    i8, at_i8 = _lay(np.zeros(HEADER, dtype=np.int64), (*whole, links.first, links.samples))
    u1, at_u1 = _lay(np.zeros(0, dtype=np.uint8), (world.answers.given, world.answers.truth))
    i8[:HEADER] = [*sizes, *at_f4, *at_f8, *at_i8, *at_u1]
    return Packed(f4, f8, i8, u1)


def _lay(head: Array, tables: Any) -> tuple[Array, list[int]]:
    """Append the tables to ``head``; return the array and where each begins."""
    flat = [np.asarray(table, dtype=head.dtype).ravel() for table in tables]
    begins = len(head) + np.concatenate([[0], np.cumsum([len(table) for table in flat])[:-1]])
    return np.concatenate([head, *flat]), [int(begin) for begin in begins]


@inlined
def of_frame(w: Packed, table: int, row: int) -> float:
    """Return a content signal of a frame."""
    return float(w.f4[w.i8[OF_FRAME] + 2 * row + table])


@inlined
def of_exit(w: Packed, table: int, row: int, branch: int) -> float:
    """Return quality or confidence of a branch's exit on a frame."""
    return float(w.f4[w.i8[OF_EXIT] + 2 * (row * w.i8[BRANCHES] + branch) + table])


@inlined
def of_tail(w: Packed, table: int, row: int, branch: int, rate: int) -> float:
    """Return quality, confidence, agreement or payload of a branch and rate on a frame."""
    return float(w.f4[w.i8[OF_TAIL] + 4 * ((row * w.i8[BRANCHES] + branch) * w.i8[RATES] + rate) + table])


@inlined
def of_branch(w: Packed, table: int, index: int) -> int:
    """Return an entry of a table of integers (kind, rates, exit branch, flights, links)."""
    return int(w.i8[w.i8[table] + index])


@inlined
def answer_of(w: Packed, row: int, branch: int, rate: int, cell: int) -> int:
    """Return the class that a branch answered for a cell of a frame; rate R is the exit's answer."""
    return int(w.u1[w.i8[ANSWERS] + ((row * w.i8[BRANCHES] + branch) * (w.i8[RATES] + 1) + rate) * w.i8[CELLS] + cell])


@inlined
def truth_of(w: Packed, row: int, cell: int) -> int:
    """Return the label of a cell, 255 where it has none."""
    return int(w.u1[w.i8[TRUTH] + row * w.i8[CELLS] + cell])


@inlined
def stage(w: Packed, table: int, index: int, u: float) -> float:
    """Return the quantile ``u`` of a stage time; ``index`` counts rows of Q levels.

    Quantile i is that of level (i + 1/2) / Q: interpolated between the levels, constant beyond the outer ones.
    """
    levels = w.i8[LEVELS]
    begin = w.i8[table] + index * levels
    position = min(max(u * levels - 0.5, 0.0), levels - 1.0)
    low = int(position)
    high = min(low + 1, levels - 1)
    return float(w.f8[begin + low] + (w.f8[begin + high] - w.f8[begin + low]) * (position - low))


@inlined
def stage_index(w: Packed, branch: int, rate: int) -> int:
    """Return the row of a stage table (B, R, Q)."""
    return int(branch * w.i8[RATES] + rate)


@inlined
def of_link(w: Packed, table: int, index: int) -> float:
    """Return an entry of a table of floats."""
    return float(w.f8[w.i8[table] + index])


@inlined
def of_sample(w: Packed, field: int, index: int) -> float:
    """Return one number of a link sample; sums are those at its start."""
    return float(w.f8[w.i8[SAMPLES] + 6 * index + field])
