"""The board's processes with state: other load, temperature and throttling, the governor's clock.

The names are those of ``adaptsplit.envs.core``; the formulas are ``adaptsplit.devices.processes``, compiled.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.devices import processes
from adaptsplit.envs.compiled import inlined
from adaptsplit.envs.layout import (
    BATTERY_J,
    CLOCK,
    LINK,
    LINK_OFFSET,
    LOAD_OFFSET,
    NOW,
    TEMPERATURE_C,
    THROTTLE,
    TRACKER,
)
from adaptsplit.envs.link import sample
from adaptsplit.envs.packed import (
    AMBIENT_C,
    BATTERY,
    COMPUTE_W,
    HARD_C,
    HARD_SPEED,
    HAS_SIGNAL,
    HYSTERESIS_K,
    IDLE_W,
    K_PER_W,
    LOAD,
    LOAD_COUNT,
    LOAD_DT,
    MINIMUM_CLOCK,
    RECEIVED,
    SOFT_C,
    SOFT_SPEED,
    TAU_S,
    THERMAL,
    Packed,
    of_link,
    of_sample,
)

Array = NDArray[Any]


@inlined
def load_at(w: Packed, s: Array, time: float) -> float:
    """Return the share of the board that other work takes at ``time``."""
    if w.i8[LOAD_COUNT] == 0:
        return 0.0
    step = int((time + s[LOAD_OFFSET]) / w.f8[LOAD_DT])
    return of_link(w, LOAD, step % w.i8[LOAD_COUNT])


@inlined
def capped_clock(w: Packed, s: Array) -> float:
    """Return the clock that runs: the governor's, under the throttle's cap."""
    if s[THROTTLE] == 0.0:
        return float(s[CLOCK])
    return float(min(s[CLOCK], w.f8[HARD_SPEED] if s[THROTTLE] >= 2.0 else w.f8[SOFT_SPEED]))


@inlined
def slowdown(w: Packed, s: Array, freeze: float) -> float:
    """Return the factor on every stage time of the device, from the state at the decision."""
    if w.i8[THERMAL] == 0 and w.i8[LOAD_COUNT] == 0:
        return 1.0
    load = load_at(w, s, min(s[NOW], freeze))
    return 1.0 / processes.speed(s[CLOCK], s[THROTTLE], w.f8[SOFT_SPEED], w.f8[HARD_SPEED], load)


@inlined
def compute_power(w: Packed, s: Array) -> float:
    """Return the power of computing above idle at the clock that runs."""
    if w.i8[THERMAL] == 0:
        return float(w.f8[COMPUTE_W])
    return float(w.f8[COMPUTE_W] * processes.active_power_factor(capped_clock(w, s)))


@inlined
def after_step(w: Packed, s: Array, began: float, busy_s: float, compute_j: float, freeze: float) -> None:
    """Move temperature, throttle and clock over a step in which our work kept the board ``busy_s`` for ``compute_j``.

    While a stage runs it has the board's share that other work leaves; ``compute_j`` is the energy of that share.
    """
    passed = max(s[NOW] - began, 1e-6)
    load = load_at(w, s, min(began, freeze))
    power = w.f8[IDLE_W] + compute_j / passed + load * compute_power(w, s)
    busy = min(busy_s / passed, 1.0) * (1.0 - load) + load
    utilisation = busy * capped_clock(w, s)
    s[TEMPERATURE_C] = processes.temperature_after(
        s[TEMPERATURE_C], w.f8[AMBIENT_C], w.f8[K_PER_W], w.f8[TAU_S], power, passed
    )
    s[THROTTLE] = processes.throttle_after(
        s[THROTTLE], s[TEMPERATURE_C], w.f8[SOFT_C], w.f8[HARD_C], w.f8[HYSTERESIS_K]
    )
    s[CLOCK] = processes.clock_after(utilisation, w.f8[MINIMUM_CLOCK])


@inlined
def telemetry(w: Packed, s: Array) -> None:
    """Write what the device measures of itself into the tracker; what it has no process for stays unknown."""
    x = s[TRACKER:]
    x[est.BATTERY] = s[BATTERY_J] / w.f8[BATTERY]
    if w.i8[HAS_SIGNAL] == 1:
        x[est.SIGNAL] = of_sample(w, RECEIVED, sample(w, int(s[LINK]), s[NOW] + s[LINK_OFFSET]))
    if w.i8[LOAD_COUNT] > 0:
        x[est.LOAD] = load_at(w, s, s[NOW])
    if w.f8[K_PER_W] > 0.0:
        x[est.TEMPERATURE] = s[TEMPERATURE_C]


@inlined
def start_board(w: Packed, s: Array, load_offset: float, warmth: float) -> None:
    """The board at an episode's start: between settled at idle power (``warmth`` 0) and at full power (1)."""
    s[LOAD_OFFSET] = load_offset
    s[TEMPERATURE_C] = w.f8[AMBIENT_C] + w.f8[K_PER_W] * (w.f8[IDLE_W] + warmth * w.f8[COMPUTE_W])
    s[THROTTLE] = processes.throttle_after(0.0, s[TEMPERATURE_C], w.f8[SOFT_C], w.f8[HARD_C], w.f8[HYSTERESIS_K])
    s[CLOCK] = w.f8[MINIMUM_CLOCK]
