"""What moves by itself: the server's other work, the board's load, heat and clock, and the radio's price of a bit.

Each is drawn in advance from the split's own seed, never by the controller's actions; the compiled core looks it up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit.devices.load import load_trace
from adaptsplit.devices.server import server_trace
from adaptsplit.scenario import Scenario

Array = NDArray[Any]

SEEDS = {"train": 1, "validation": 2, "test": 3}
SERVER_TRACE_S, SERVER_DT_S = 240.0, 0.002
LOAD_TRACE_S, LOAD_DT_S = 1200.0, 0.1
NOTHING = np.zeros(0)


class Server(NamedTuple):
    """Background of the edge server (``adaptsplit.devices.server.ServerTrace``); empty arrays when it has none."""

    work_s: Array  # (H + 1,)
    backlog_s: Array  # (H + 1,)
    jobs: Array  # (H + 1,)
    dt_s: float
    batch_window_s: float
    batch_marginal: float


class Thermal(NamedTuple):
    """Constants of temperature, throttling and clock, in the order of the packed world."""

    idle_w: float
    ambient_c: float
    k_per_w: float
    tau_s: float
    soft_c: float
    soft_speed: float
    hard_c: float
    hard_speed: float
    hysteresis_k: float
    minimum_clock: float  # 1: the clock does not move


class Board(NamedTuple):
    """Processes of the device."""

    load: Array  # (H,) fraction taken by other work; empty when there is none
    load_dt_s: float
    thermal: Thermal
    has_thermal: bool
    radio_signal: Array  # (K,) dBm ascending; empty when the energy per bit does not depend on it
    radio_j_per_bit: Array  # (K,)


def build_server(scenario: Scenario, split: str) -> Server:
    """Draw the server's background for a split."""
    spec = scenario.file.server
    if spec is None:
        return Server(NOTHING, NOTHING, NOTHING, SERVER_DT_S, 0.0, 1.0)
    trace = server_trace(spec, SEEDS[split], SERVER_TRACE_S, SERVER_DT_S)
    return Server(
        trace.work_s,
        trace.backlog_s,
        trace.jobs.astype(np.float64),
        trace.dt_s,
        spec.batch_window_s,
        spec.batch_marginal,
    )


def build_board(scenario: Scenario, split: str) -> Board:
    """Draw the board's other load for a split, and take the preset's thermal and radio constants."""
    device = scenario.file.device
    load = NOTHING if device.load is None else load_trace(device.load, SEEDS[split], LOAD_TRACE_S, LOAD_DT_S)
    points = np.array(scenario.radio.j_per_bit_at or np.zeros((0, 2)), dtype=np.float64).reshape(-1, 2)
    return Board(load, LOAD_DT_S, _thermal(scenario), device.thermal or device.dvfs, points[:, 0], points[:, 1])


def _thermal(scenario: Scenario) -> Thermal:
    """Constants that never throttle where the scenario does not follow the temperature."""
    preset, device = scenario.compute, scenario.file.device
    clock = preset.minimum_clock if device.dvfs else 1.0
    block = scenario.thermal
    if block is None:
        return Thermal(preset.idle_w, 25.0, 0.0, 1.0, 1e3, 1.0, 1e3, 1.0, 0.0, clock)
    ambient = block.ambient_c if device.ambient_c is None else device.ambient_c
    limits = (block.soft_c, block.soft_speed, block.hard_c, block.hard_speed, block.hysteresis_k)
    return Thermal(preset.idle_w, ambient, block.k_per_w, block.tau_s, *limits, clock)
