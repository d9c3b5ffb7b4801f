"""How a device's state moves: temperature, throttling, clock, speed and power, as pure functions of floats.

No numpy, no records: the simulator compiles these very functions (``FUNCTIONS``), a live device calls them as they are.
Temperatures are degrees Celsius, powers W, times s. *Clock*, *speed*, *load* and *utilisation* are fractions of the
board at its full clock with nothing else to do. None of the functions checks its arguments: the presets and the
scenario do, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

HEADROOM = 1.25  # schedutil asks for 1.25 * utilisation: Linux, kernel/sched/cpufreq_schedutil.c
SLOWEST = 0.05  # floor of the relative speed, an assumption: a loaded board still gets a twentieth of the time


def temperature_after(
    temperature_c: float, ambient_c: float, k_per_w: float, tau_s: float, power_w: float, dt_s: float
) -> float:
    """Temperature after ``dt_s`` seconds at constant power, degC: the exact solution of one thermal RC.

    ``tau_s * dT/dt = ambient_c + k_per_w * power_w - T``: one resistance to the air (K/W) and one time constant (s),
    the lumped model of Skadron et al., Temperature-aware microarchitecture, ISCA 2003. Any ``dt_s`` >= 0 is exact.
    """
    settled = ambient_c + k_per_w * power_w
    return settled + (temperature_c - settled) * math.exp(-dt_s / tau_s)


def throttle_after(level: float, temperature_c: float, soft_c: float, hard_c: float, hysteresis_k: float) -> float:
    """Return the throttle level: 0 (full clock), 1 (soft limit reached) or 2 (hard limit reached).

    A level is entered at its limit and left ``hysteresis_k`` below it, as the trip points of Linux's thermal zones are
    (Documentation/driver-api/thermal). ``soft_c`` <= ``hard_c``. Applying it twice changes nothing more.
    """
    if temperature_c >= hard_c or (level >= 2.0 and temperature_c > hard_c - hysteresis_k):
        return 2.0
    if temperature_c >= soft_c or (level >= 1.0 and temperature_c > soft_c - hysteresis_k):
        return 1.0
    return 0.0


def clock_after(utilisation: float, minimum: float) -> float:
    """Return the relative clock that the governor asks for: 1.25 * utilisation within ``minimum`` .. 1.

    Linux's schedutil: next_freq = 1.25 * max_freq * util / max, which keeps the core at most 80 per cent busy.
    ``utilisation`` is relative to the full clock: work per second over what the full clock could do.
    """
    return min(1.0, max(minimum, HEADROOM * utilisation))


def speed(clock: float, throttle_level: float, soft_speed: float, hard_speed: float, load: float) -> float:
    """Return the relative speed of our work: min(clock, throttle cap) * (1 - load), at least 0.05.

    The cap is 1, ``soft_speed`` or ``hard_speed`` at level 0, 1 or 2; ``load`` is the share of the board that other
    work takes. A stage takes its profiled time divided by this.
    """
    cap = 1.0
    if throttle_level >= 2.0:
        cap = hard_speed
    elif throttle_level >= 1.0:
        cap = soft_speed
    return max(SLOWEST, min(clock, cap) * (1.0 - load))


def active_power_factor(clock: float) -> float:
    """Return the dynamic power at a relative clock, as a fraction of that at full clock: clock * voltage ** 2.

    Dynamic power of CMOS is proportional to f * V^2 (Chandrakasan et al., Low-power CMOS digital design, JSSC 1992).
    The relative voltage is 2/3 up to a third of the clock, then rises as a power of 1.5; that holds the operating
    points of the Cortex-A72 cores of the RK3399 (Linux, rk3399-opp.dtsi: 0.800 V at 408 and 600 MHz ... 1.200 V at
    1.8 GHz) within 1 per cent. The same core is in the Raspberry Pi 4; for other boards it is an assumption.
    """
    rise = max(0.0, 1.5 * clock - 0.5)
    voltage = (2.0 + rise * math.sqrt(rise)) / 3.0
    return clock * voltage * voltage


FUNCTIONS: tuple[Callable[..., float], ...] = (
    temperature_after,
    throttle_after,
    clock_after,
    speed,
    active_power_factor,
)
