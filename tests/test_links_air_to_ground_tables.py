"""The formulas of 3GPP's channel: published test vectors, breakpoints, monotonicity, the CQI table."""

from __future__ import annotations

import doctest
import math
from typing import Any, Literal

import numpy as np
import pytest

from adaptsplit.errors import ConfigError
from adaptsplit.links import cqi as cqi_module
from adaptsplit.links.cqi import SPECTRAL_EFFICIENCY, THRESHOLDS_DB, cqi_from_sinr, spectral_efficiency
from adaptsplit.links.propagation import (
    AERIAL_ABOVE_M,
    Environment,
    breakpoint_m,
    los_probability,
    path_loss_db,
    rician_k_db,
    shadowing_sigma_db,
)

ENVIRONMENTS: tuple[Environment, ...] = ("RMa", "UMa", "UMi")
HEIGHTS = (1.5, 5.0, 10.0, 15.0, 22.5, 23.0, 30.0, 40.0, 60.0, 100.0, 150.0, 300.0)


@pytest.mark.parametrize(
    ("environment", "height", "distance", "expected"),
    [
        ("UMa", 50, 500, 0.88875),
        ("RMa", 25, 800, 0.90410),
        ("UMi", 100, 300, 0.77117),
        ("UMa", 1.5, 200, 0.12805),
        ("UMa", 50, 1000, 0.77205),
        ("UMi", 50, 500, 0.37894),
        # Below the roofs, worked out by hand: exp(-0.99); 0.18 + exp(-100/36) 0.82; with C = 1 at 23 m, here at 22.5.
        ("RMa", 1.5, 1000, math.exp(-0.99)),
        ("UMi", 1.5, 100, 0.18 + math.exp(-100 / 36) * 0.82),
        (
            "UMa",
            22.5,
            100,
            (0.18 + math.exp(-100 / 63) * 0.82) * (1 + 0.95**1.5 * 1.25 * math.exp(-100 / 150)),
        ),
    ],
)
def test_los_probability_of_the_tables(
    environment: Environment, height: float, distance: float, expected: float
) -> None:
    assert los_probability(environment, height, distance) == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize(
    ("environment", "height", "distance", "ghz", "with_los", "without"),
    [
        ("UMa", 100, 520, 2.6, 96.0515, 110.1533),
        ("RMa", 50, 1000, 2.6, 103.2668, 106.7276),
        ("UMi", 100, 200, 2.6, 88.0964, 105.1283),
        # TR 38.901, worked out apart from the code under test, term by term.
        ("UMa", 1.5, 200, 2.6, 86.9221, 111.7637),
        ("UMi", 1.5, 100, 2.6, 82.6995, 101.8389),
        ("RMa", 1.5, 800, 0.8, 90.3702, 113.8514),
        # Beyond their breakpoints of 879.6, 320 and 120 m.
        ("RMa", 1.5, 1000, 0.8, 93.5533, 117.5953),
        ("UMa", 1.5, 1000, 2.0, 108.9069, 136.8006),
        ("UMi", 1.5, 500, 2.0, 106.8543, 124.0856),
    ],
)
def test_path_loss_of_the_tables(
    environment: Environment, height: float, distance: float, ghz: float, with_los: float, without: float
) -> None:
    assert path_loss_db(environment, height, distance, ghz, True) == pytest.approx(with_los, abs=1e-4)
    assert path_loss_db(environment, height, distance, ghz, False) == pytest.approx(without, abs=1e-4)


@pytest.mark.parametrize(
    ("environment", "height", "los", "expected"),
    [
        ("UMa", 100, True, 2.3982),
        ("RMa", 50, True, 3.3370),
        ("UMi", 300, True, 2.0),
        ("UMi", 50, True, 5 * math.exp(-0.5)),
        ("UMi", 50, False, 8.0),
        ("UMa", 50, False, 6.0),
        ("RMa", 30, False, 6.0),
        ("UMa", 10, True, 4.0),
        ("UMi", 10, False, 7.82),
        ("RMa", 5, False, 8.0),
    ],
)
def test_shadowing_of_the_tables(environment: Environment, height: float, los: bool, expected: float) -> None:
    assert shadowing_sigma_db(environment, height, los) == pytest.approx(expected, abs=5e-5)


def test_shadowing_over_land_rises_beyond_the_breakpoint() -> None:
    edge = float(breakpoint_m("RMa", 5.0, 0.8))
    assert edge == pytest.approx(2 * math.pi * 35 * 5 * 0.8e9 / 3e8)
    assert shadowing_sigma_db("RMa", 5.0, True, [edge - 1, edge + 1], 0.8).tolist() == [4.0, 6.0]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("height", HEIGHTS)
def test_the_chance_of_sight_falls_with_distance_without_a_step(environment: Environment, height: float) -> None:
    distance = np.linspace(0, 4000, 8001)
    chance = los_probability(environment, height, distance)
    assert chance.min() >= 0
    assert chance.max() <= 1
    assert chance[0] == 1
    steps = np.diff(chance)
    assert steps.min() > -0.03  # 0.5 m apart: no step at d1 or 18 m
    if not (environment == "UMa" and 13 < height <= 22.5):  # its factor for tall devices is not monotone
        assert steps.max() <= 1e-12


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("height", HEIGHTS)
def test_path_loss_rises_with_distance_and_more_without_sight(environment: Environment, height: float) -> None:
    distance = np.linspace(310, 4000, 3000)
    seen, hidden = (path_loss_db(environment, height, distance, 2.6, los) for los in (True, False))
    assert np.diff(seen).min() > -0.01  # RMa switches over ground and rises along the slant: it may dip by a hair
    assert np.diff(hidden).min() > -0.01
    assert (hidden >= seen).all()
    assert np.abs(np.diff(seen)).max() < 0.3


@pytest.mark.parametrize(("environment", "height", "ghz"), [("UMa", 1.5, 2.6), ("UMi", 20.0, 2.6), ("RMa", 1.5, 0.8)])
def test_path_loss_has_no_step_at_its_breakpoint(environment: Environment, height: float, ghz: float) -> None:
    base = {"RMa": 35.0, "UMa": 25.0, "UMi": 10.0}[environment]
    ground = float(breakpoint_m(environment, height, ghz)) * np.array([1 - 1e-9, 1 + 1e-9])
    before, after = path_loss_db(environment, height, np.hypot(ground, base - height), ghz, True)
    assert after == pytest.approx(before, abs=0.01)


def test_sight_is_certain_high_up_except_in_street_canyons() -> None:
    assert los_probability("RMa", 40.1, 10_000) == 1
    assert los_probability("UMa", 100.1, 4000) == 1
    assert los_probability("UMi", 300, 4000) < 0.3


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: los_probability("UMx", 50, 100), "environment 'UMx', expected RMa, UMa or UMi"),  # type: ignore[arg-type]
        (lambda: los_probability("UMa", [50, 301], 100), "height 301 m, expected 1.5 to 300"),
        (lambda: los_probability("UMa", float("nan"), 100), "height nan m"),
        (lambda: los_probability("UMa", 50, -1), "distance -1 m"),
        (lambda: path_loss_db("UMa", 50, 100, 0.1, True), "carrier frequency 0.1 GHz, expected 0.5 to 100"),
        (lambda: cqi_from_sinr(0.0, "D"), "CQI set 'D', expected A, B or C"),  # type: ignore[arg-type]
        (lambda: spectral_efficiency([3, 16]), "CQI 3 to 16, expected 0 to 15"),
    ],
)
def test_what_is_outside_the_tables_is_refused(call: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()


def test_cqi_table() -> None:
    rates = [78, 120, 193, 308, 449, 602, 378, 490, 616, 466, 567, 666, 772, 873, 948]
    bits = [2] * 6 + [4] * 3 + [6] * 6
    for cqi, (rate, bit) in enumerate(zip(rates, bits, strict=True), start=1):
        assert spectral_efficiency(cqi) == pytest.approx(bit * rate / 1024, abs=6e-5)
    assert spectral_efficiency(0) == 0
    assert spectral_efficiency([15, 0]).tolist() == [5.5547, 0.0]


@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_cqi_changes_exactly_at_its_thresholds(name: Literal["A", "B", "C"]) -> None:
    at = np.array(THRESHOLDS_DB[name])
    assert np.all(np.diff(at) > 0)
    assert cqi_from_sinr(at, name).tolist() == list(range(1, 16))
    assert cqi_from_sinr(at - 1e-9, name).tolist() == list(range(15))
    # Every set asks for more than Shannon's bound.
    assert np.all(np.log2(1 + 10 ** (at / 10)) > np.array(SPECTRAL_EFFICIENCY))


def test_set_b_is_the_rule_it_says() -> None:
    gamma = -math.log(5 * 5e-5) / 1.5
    assert 10 * math.log10(gamma) == pytest.approx(7.43, abs=0.005)
    expected = 10 * np.log10((2 ** np.array(SPECTRAL_EFFICIENCY) - 1) * gamma)
    assert np.array(THRESHOLDS_DB["B"]) == pytest.approx(expected, abs=0.051)


def test_set_a_is_the_default_and_its_table() -> None:
    assert cqi_from_sinr([-6.71, -6.7, 22.69, 22.7]).tolist() == [0, 1, 14, 15]
    assert THRESHOLDS_DB["C"][-1] == 29.32


def test_k_factors_of_the_tables() -> None:
    assert rician_k_db("UMa", [50, 50, 5, 5], [True, False, True, False]).tolist() == [20, 10, 9, -math.inf]
    assert rician_k_db("RMa", 9, True) == 7


def test_aerial_bands_begin_where_the_report_says() -> None:
    assert AERIAL_ABOVE_M == {"RMa": 10.0, "UMa": 22.5, "UMi": 22.5}
    assert shadowing_sigma_db("UMa", 22.5, True) == 4.0
    assert shadowing_sigma_db("UMa", 22.6, True) == pytest.approx(4.64 * math.exp(-0.0066 * 22.6))


def test_the_examples_of_the_docstring_hold() -> None:
    result = doctest.testmod(cqi_module)
    assert result.attempted > 0
    assert result.failed == 0
