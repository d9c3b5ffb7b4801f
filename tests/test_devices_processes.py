"""Temperature, throttling, clock, speed and power of a device, and its load by other work."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numba import njit

from adaptsplit.devices.load import LoadSpec, load_trace
from adaptsplit.devices.modulation import sojourns
from adaptsplit.devices.processes import (
    FUNCTIONS,
    active_power_factor,
    clock_after,
    speed,
    temperature_after,
    throttle_after,
)
from adaptsplit.errors import ConfigError
from adaptsplit.links.draws import Draws

# Linux, arch/arm64/boot/dts/rockchip/rk3399-opp.dtsi, cluster1 (Cortex-A72): MHz -> mV.
RK3399_A72 = {408: 800, 600: 800, 816: 825, 1008: 875, 1200: 950, 1416: 1025, 1608: 1100, 1800: 1200}


def test_temperature_agrees_with_small_euler_steps() -> None:
    euler, step = 30.0, 1e-3
    for _ in range(60_000):
        euler += step * (25.0 + 9.0 * 5.0 - euler) / 80.0
    assert temperature_after(30.0, 25.0, 9.0, 80.0, 5.0, 60.0) == pytest.approx(euler, abs=1e-3)


def test_temperature_settles_and_may_be_split_into_any_steps() -> None:
    whole = temperature_after(30.0, 25.0, 9.0, 80.0, 5.0, 50.0)
    half = temperature_after(temperature_after(30.0, 25.0, 9.0, 80.0, 5.0, 20.0), 25.0, 9.0, 80.0, 5.0, 30.0)
    assert half == pytest.approx(whole, abs=1e-12)
    assert temperature_after(30.0, 25.0, 9.0, 80.0, 5.0, 0.0) == pytest.approx(30.0)
    assert temperature_after(90.0, 25.0, 9.0, 80.0, 5.0, 1e6) == pytest.approx(70.0)
    assert temperature_after(25.0, 25.0, 9.0, 80.0, 5.0, 80.0) == pytest.approx(25.0 + 45.0 * (1 - math.exp(-1)))


@pytest.mark.parametrize(
    ("level", "temperature", "expected"),
    [
        (0, 59.9, 0),
        (0, 60.0, 1),
        (0, 85.0, 2),
        (1, 57.1, 1),
        (1, 57.0, 0),
        (1, 84.9, 1),
        (1, 85.0, 2),
        (2, 82.1, 2),
        (2, 82.0, 1),
        (2, 57.0, 0),
    ],
)
def test_throttling_is_entered_at_the_limit_and_left_below_it(level: int, temperature: float, expected: int) -> None:
    found = throttle_after(float(level), temperature, 60.0, 85.0, 3.0)
    assert found == expected
    assert throttle_after(found, temperature, 60.0, 85.0, 3.0) == found


def test_equal_limits_leave_no_soft_level() -> None:
    assert [throttle_after(0.0, t, 80.0, 80.0, 0.0) for t in (79.9, 80.0)] == [0.0, 2.0]


def test_the_governor_keeps_the_core_at_most_eighty_per_cent_busy() -> None:
    assert clock_after(0.4, 0.1) == pytest.approx(0.5)
    assert clock_after(0.8, 0.1) == 1.0
    assert clock_after(5.0, 0.1) == 1.0
    assert clock_after(0.0, 0.4) == 0.4
    for utilisation in np.linspace(0.1, 0.8, 8):
        assert utilisation / clock_after(float(utilisation), 0.0) == pytest.approx(0.8)


def test_speed_is_the_smaller_of_clock_and_cap_less_the_load() -> None:
    caps = (6 / 7, 3 / 7)
    assert speed(1.0, 0.0, *caps, 0.0) == 1.0
    assert speed(1.0, 1.0, *caps, 0.0) == pytest.approx(6 / 7)
    assert speed(1.0, 2.0, *caps, 0.0) == pytest.approx(3 / 7)
    assert speed(0.3, 2.0, *caps, 0.5) == pytest.approx(0.15)
    assert speed(1.0, 0.0, *caps, 1.0) == 0.05


def test_power_follows_the_published_operating_points() -> None:
    for mhz, millivolt in RK3399_A72.items():
        expected = mhz / 1800 * (millivolt / 1200) ** 2
        assert active_power_factor(mhz / 1800) == pytest.approx(expected, rel=0.025), mhz
    assert active_power_factor(1.0) == 1.0
    assert active_power_factor(0.0) == 0.0


def test_a_slower_clock_costs_less_energy_for_the_same_work() -> None:
    clocks = np.linspace(0.05, 1.0, 20)
    per_work = np.array([active_power_factor(float(clock)) / clock for clock in clocks])
    assert (np.diff(per_work) >= -1e-12).all()
    assert per_work[0] == pytest.approx(4 / 9)


def test_the_functions_compile_and_then_give_the_same_numbers() -> None:
    arguments = {
        "temperature_after": (61.3, 25.0, 9.1, 80.0, 4.7, 0.033),
        "throttle_after": (1.0, 58.1, 60.0, 85.0, 3.0),
        "clock_after": (0.37, 0.2),
        "speed": (0.9, 1.0, 0.857, 0.43, 0.31),
        "active_power_factor": (0.61,),
    }
    assert {function.__name__ for function in FUNCTIONS} == set(arguments)
    for function in FUNCTIONS:
        given = arguments[function.__name__]
        assert njit(function)(*given) == pytest.approx(function(*given), rel=1e-15), function.__name__


SPEC = LoadSpec(idle_load=0.05, busy_load=0.6, mean_idle_s=6.0, mean_busy_s=2.0)


def test_load_alternates_between_two_levels_with_the_stationary_share() -> None:
    trace = load_trace(SPEC, seed=1, duration_s=40_000.0)
    assert trace.shape == (400_000,)
    assert set(np.unique(trace)) == {0.05, 0.6}
    assert SPEC.busy_share == 0.25
    # 5000 cycles of variation about 1: the share's standard error is 0.25 * 0.75 * sqrt(2 / 5000) = 0.004.
    assert (trace == 0.6).mean() == pytest.approx(0.25, abs=0.012)
    changes = np.count_nonzero(np.diff(trace))
    assert changes == pytest.approx(2 * 40_000 / 8.0, rel=0.06)


def test_load_needs_no_warm_up() -> None:
    first = [load_trace(SPEC, seed, 0.1)[0] == 0.6 for seed in range(2000)]
    assert np.mean(first) == pytest.approx(0.25, abs=0.03)


def test_load_depends_on_the_seed_only() -> None:
    assert (load_trace(SPEC, 3, 60.0) == load_trace(SPEC, 3, 60.0)).all()
    assert (load_trace(SPEC, 3, 60.0) != load_trace(SPEC, 4, 60.0)).any()


def test_three_states_have_shares_by_their_mean_times() -> None:
    starts, states = sojourns(Draws(5, 0), (1.0, 2.0, 5.0), 40_000.0)
    spent = np.bincount(states, weights=np.diff(np.append(starts, 40_000.0)))
    assert spent / spent.sum() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)
    assert (np.diff(states) != 0).all()


@pytest.mark.parametrize(("duration", "step"), [(1.0, 0.3), (0.0, 0.1), (1.0, 0.0), (math.nan, 0.1), (1e9, 0.1)])
def test_durations_that_the_step_does_not_divide_are_refused(duration: float, step: float) -> None:
    with pytest.raises(ConfigError, match=r"steps of"):
        load_trace(SPEC, 0, duration, step)
