"""Presets against the tables that they cite; heat, radio tails, craft; the documentation's tables."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from adaptsplit.config import parse
from adaptsplit.devices import (
    AirframePreset,
    ComputePreset,
    RadioPreset,
    airframe_presets,
    compute_presets,
    kept_spread,
    radio_presets,
    scaling_note,
)
from adaptsplit.devices.derive import derived_rates, edge_rate, nas_latencies_ms, opencv_rates
from adaptsplit.devices.processes import temperature_after, throttle_after
from adaptsplit.devices.radio import gap_energy_j
from adaptsplit.devices.tables import markdown_tables
from adaptsplit.errors import ConfigError, DataError

DERIVED = ("jetson-nano", "jetson-orin-nano", "phone", "raspberry-pi-3b-plus", "raspberry-pi-4b", "raspberry-pi-5")

# Narayanan et al. 2021, walking uplink test (file in the preset's source), every third second: RSRP dBm, Mbit/s, mW.
WALK = """-99 30.57 6236,-94 37.23 5808,-94 41.14 5382,-92 35.99 5541,-92 39.95 5378,-94 42.10 5323,-94 39.96 5664,
-89 41.72 5427,-89 43.48 5363,-87 39.20 5618,-87 35.42 5511,-87 38.23 5790,-85 33.77 5502,-85 36.76 5888,
-84 12.92 5722,-82 23.24 5510,-78 33.43 5742,-84 29.81 6105,-86 31.70 5736,-85 35.79 5396,-85 29.83 5577,
-80 13.42 5226,-82 30.23 5785,-79 34.41 5719,-79 31.35 5771,-81 32.00 5831,-86 29.28 5951,-79 33.13 5630,
-77 34.13 5827,-78 31.62 5874,-80 31.67 5855,-85 32.72 5549,-82 33.11 6016,-90 31.10 6136,-94 33.63 6202,
-95 32.11 5838,-95 30.30 6504,-97 31.07 5984,-97 28.51 6457,-97 30.46 5949,-97 30.74 6288,-97 28.75 6053,
-97 28.24 6416,-97 30.35 6210,-97 29.79 6312,-97 30.44 6086,-97 30.32 5974,-101 30.87 5912,-106 31.06 6219,
-106 30.03 6131,-106 30.88 6046,-106 26.56 6180,-104 24.21 6196,-105 28.70 6279,-100 24.12 6746,-104 25.13 6162,
-106 27.80 6003,-111 26.42 6236,-106 27.04 6053,-106 27.86 6422,-106 27.93 5984,-105 28.72 6203"""


def test_rates_are_those_of_the_published_tables(shared_data: Path) -> None:
    rates = derived_rates(shared_data)
    assert set(DERIVED) | {"server"} == set(rates)
    for name, rate in rates.items():
        assert compute_presets.get(name).macs_per_s == pytest.approx(rate, rel=0.01), name


def test_nas_latencies_are_read_without_unpickling(shared_data: Path) -> None:
    latencies = nas_latencies_ms(shared_data / "prof_help_nb201/data/nasbench201/latency/raspi4.pt")
    assert median(latencies) == pytest.approx(25.7, abs=0.05)
    assert max(latencies) == pytest.approx(99, abs=1)


def test_a_table_without_the_row_is_refused() -> None:
    with pytest.raises(DataError, match="'### Intel 12700K' is missing"):
        opencv_rates("### Raspberry Pi 4B\n", "Intel 12700K", "CPU")
    with pytest.raises(DataError, match="no row for image_classification_mobilenetv1"):
        opencv_rates("### Intel 12700K\nCPU:\n```\nmean\n```\n", "Intel 12700K", "CPU")
    with pytest.raises(DataError, match="no TensorFlow Lite row for Raspberry Pi 9"):
        edge_rate("| Raspberry Pi 5 | TensorFlow Lite | | 23.5 | 16.9 |", "Raspberry Pi 9")


def test_the_other_rates_are_macs_over_published_latency() -> None:
    assert compute_presets.get("jetson-tx2").macs_per_s == pytest.approx((15.35e9 + 0.1236e9) / 0.4869, rel=0.01)
    assert compute_presets.get("jetson-orin-nx").macs_per_s == pytest.approx(8.7e9 / 2 * 512 / 640 / 0.0318, rel=0.01)
    server = compute_presets.get("server").macs_per_s
    assert server is not None
    assert compute_presets.get("laptop").macs_per_s == pytest.approx(server / 2, rel=0.01)


def _settled(name: str, ambient_c: float) -> float:
    board = compute_presets.get(name)
    assert board.thermal is not None
    return ambient_c + board.thermal.k_per_w * board.active_w


def test_which_boards_throttle_under_full_load_in_still_air() -> None:
    for name, level in (("raspberry-pi-3b-plus", 1), ("raspberry-pi-4b", 0), ("raspberry-pi-5", 2), ("jetson-nano", 0)):
        heat = compute_presets.get(name).thermal
        assert heat is not None
        found = throttle_after(0.0, _settled(name, 25.0), heat.soft_c, heat.hard_c, heat.hysteresis_k)
        assert found == level, name
    hot = compute_presets.get("raspberry-pi-4b").thermal
    assert hot is not None
    assert _settled("raspberry-pi-4b", 45.0) > hot.soft_c


def test_a_pi_4_heats_up_as_recorded() -> None:
    """Bare board from idle to stress, 46.5 degC at first; one time constant: first too slow, then too fast."""
    board = compute_presets.get("raspberry-pi-4b")
    heat = board.thermal
    assert heat is not None
    surroundings = 46.5 - heat.k_per_w * board.idle_w
    for seconds, recorded in ((20.0, 59.0), (46.0, 62.5), (100.0, 67.0), (200.0, 70.0), (300.0, 72.0)):
        found = temperature_after(46.5, surroundings, heat.k_per_w, heat.tau_s, board.active_w, seconds)
        assert found == pytest.approx(recorded, abs=4.0), seconds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"soft_c": 90}, r"ambient 25\.0, soft 90\.0, hard 85\.0 degC: must ascend"),
        ({"hard_speed": 0.9}, r"hard_speed 0\.9 above soft_speed"),
        ({"tau_s": 0}, r"thermal\.tau_s"),
        ({"celsius": 0}, r"unknown key"),
    ],
)
def test_bad_thermal_blocks_are_refused(change: dict[str, float], message: str) -> None:
    board = compute_presets.get("raspberry-pi-4b")
    assert board.thermal is not None
    value = board.model_dump() | {"thermal": board.thermal.model_dump() | change}
    with pytest.raises(ConfigError, match=message):
        parse(ComputePreset, value, "board.yaml")


def test_scaling_keeps_the_ratios_of_quantiles_and_says_so() -> None:
    quantiles = np.array([[0.9, 1.0, 1.0, 1.6], [2.0, 3.0, 5.0, 8.0]])
    assert kept_spread(quantiles) == pytest.approx(np.array([[0.9, 1.0, 1.0, 1.6], [0.5, 0.75, 1.25, 2.0]]))
    assert kept_spread(quantiles * 7.3) == pytest.approx(kept_spread(quantiles))
    note = scaling_note("a laptop", compute_presets.get("raspberry-pi-4b"))
    assert "MODELLED for raspberry-pi-4b" in note
    assert "measured on a laptop, networks scaled to 8.5 GMAC/s, other code to 6 times" in note
    assert "MODELLED" not in scaling_note("a laptop", compute_presets.get("edge-server"))
    with pytest.raises(ConfigError, match="measure the profile again"):
        kept_spread(np.zeros((2, 4)))


def test_the_5g_prices_are_medians_of_the_recorded_walk() -> None:
    radio = radio_presets.get("5g")
    rows = [tuple(map(float, row.split())) for row in WALK.split(",")]
    for low, high, (_, price) in zip((-120, -100, -90), (-101, -91, 0), radio.j_per_bit_at, strict=True):
        found = [(mw / 1e3 - radio.beta_w) / (rate * 1e6) for dbm, rate, mw in rows if low <= dbm <= high]
        assert len(found) >= 14
        assert price == pytest.approx(median(found), rel=0.02)
    watts = [(radio.transmit_power_w(rate * 1e6, dbm), mw / 1e3) for dbm, rate, mw in rows]
    assert np.mean([abs(model - power) / power for model, power in watts]) == pytest.approx(0.07, abs=0.01)


def test_a_bit_costs_more_where_the_signal_is_weak() -> None:
    radio = radio_presets.get("5g")
    table = radio.j_per_bit_at
    assert [radio.energy_per_bit(dbm) for dbm, _ in table] == [price for _, price in table]
    assert radio.energy_per_bit(-140.0) == table[0][1]
    assert radio.energy_per_bit(-40.0) == table[-1][1]
    middle = (table[0][0] + table[1][0]) / 2
    assert radio.energy_per_bit(middle) == pytest.approx((table[0][1] + table[1][1]) / 2)
    assert radio.energy_per_bit(math.nan) == pytest.approx(median(price for _, price in table))
    prices = [radio.energy_per_bit(dbm) for dbm in np.linspace(-120, -60, 50).tolist()]
    assert prices == sorted(prices, reverse=True)


@pytest.mark.parametrize("name", ["lte", "wifi", "3g"])
def test_without_a_table_the_signal_does_not_matter(name: str) -> None:
    radio = radio_presets.get(name)
    assert radio.energy_per_bit(-120.0) == radio.energy_per_bit() == radio.alpha_w_per_mbps / 1e6
    assert radio.transmit_energy_j(1000, 0.01, -120.0) == radio.transmit_energy_j(1000, 0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"j_per_bit_at": [[-90, 1e-7], [-100, 1e-7]]}, r"expected ascending: sort the rows"),
        ({"j_per_bit_at": [[-90, -1e-7]]}, r"-1e-07 J/bit; expected >= 0"),
        ({"j_per_bit_at": [[-90, 2e-7]]}, r"alpha_w_per_mbps 0\.0856; expected the table's median 0\.2"),
        ({"j_per_bit_at": [[-90]]}, r"j_per_bit_at\.0"),
        ({"tail_s": -1}, r"tail_s"),
    ],
)
def test_bad_radios_are_refused(change: dict[str, object], message: str) -> None:
    value = radio_presets.get("5g").model_dump() | change
    with pytest.raises(ConfigError, match=message):
        parse(RadioPreset, value, "radio.yaml")


def _integrated(radio: RadioPreset, sends: list[tuple[float, float, float]]) -> float:
    """Energy by stepping through the radio's states in steps of 1 ms; the price of bits is spread over each send."""
    step, energy, awake_until = 1e-3, 0.0, -math.inf
    for k in range(round((sends[-1][1] + radio.tail_s) / step)):
        now = (k + 0.5) * step
        current = next((send for send in sends if send[0] <= now < send[1]), None)
        if current is not None:
            start, end, size = current
            energy += radio.promotion_j if now > awake_until else 0.0
            energy += step * (radio.beta_w + radio.energy_per_bit() * 8 * size / (end - start))
            awake_until = end + radio.tail_s
        elif now < awake_until:
            energy += step * radio.tail_w
    return energy


@pytest.mark.parametrize("name", ["lte", "wifi", "5g"])
def test_a_sequence_with_tails_equals_its_integral(name: str) -> None:
    radio = radio_presets.get(name)
    sends = [(0.0, 0.2, 4000.0), (0.2, 0.3, 9000.0), (3.0, 3.5, 1e5), (20.0, 20.1, 500.0), (30.0, 31.0, 2e4)]
    assert radio.sequence_energy_j(sends) == pytest.approx(_integrated(radio, sends), rel=2e-4)
    alone = radio.sequence_energy_j(sends[:1])
    assert alone == pytest.approx(radio.wake_energy_j + radio.transmit_energy_j(4000, 0.2))
    assert radio.sequence_energy_j([]) == 0.0


def test_a_gap_costs_the_tail_until_the_radio_sleeps() -> None:
    assert gap_energy_j(0.0, 1.06, 11.5, 0.3) == 0.0
    assert gap_energy_j(2.0, 1.06, 11.5, 0.3) == pytest.approx(2.12)
    assert gap_energy_j(11.5, 1.06, 11.5, 0.3) == pytest.approx(12.19)
    assert gap_energy_j(500.0, 1.06, 11.5, 0.3) == pytest.approx(12.49)


def test_the_rotary_wing_formula_gives_the_published_figures() -> None:
    craft = airframe_presets.get("rotary-wing")
    speeds = np.linspace(0.5, 30.0, 2951)
    power = np.array([craft.flight_power_w(v) for v in speeds.tolist()])
    assert craft.hover_w == pytest.approx(168.5, abs=0.05)
    assert power.min() == pytest.approx(126.0, abs=0.05)
    assert speeds[power.argmin()] == pytest.approx(10.2, abs=0.1)
    assert speeds[(power / speeds).argmin()] == pytest.approx(18.3, abs=0.1)


def test_blade_and_induced_power_follow_from_the_geometry() -> None:
    """P0 = delta/8 rho s A Omega^3 R^3, Pi = (1 + k) W^1.5 / sqrt(2 rho A): delta 0.012, 300 rad/s, 0.4 m, k 0.1."""
    wing = airframe_presets.get("rotary-wing").rotary
    assert wing is not None
    mass = wing.air_kg_per_m3 * wing.disc_m2
    assert wing.blade_w == pytest.approx(0.012 / 8 * mass * wing.solidity * 300**3 * 0.4**3, rel=0.002)
    assert wing.induced_w == pytest.approx(1.1 * 20**1.5 / math.sqrt(2 * mass), rel=0.002)
    assert wing.tip_speed == pytest.approx(300 * 0.4)
    assert wing.induced_speed == pytest.approx(math.sqrt(20 / (2 * mass)), rel=0.002)


def test_a_tello_stays_up_as_long_as_reported() -> None:
    tello = airframe_presets.get("dji-tello")
    assert tello.battery_wh == pytest.approx(3.8 * 1.1)
    assert 10 * 60 < tello.time_aloft_s(1.0) < 13 * 60
    lost = tello.time_aloft_s(1.0) - tello.time_aloft_s(1.0, extra_w=5.0)
    assert lost / tello.time_aloft_s(1.0) == pytest.approx(5 / 27)


@pytest.mark.parametrize("name", ["3dr-iris", "rotary-wing", "dji-tello"])
def test_the_reserve_is_what_flying_home_takes(name: str) -> None:
    craft = airframe_presets.get(name)
    reserve = craft.reserve_fraction(400.0, 8.0)
    assert craft.battery_fraction(reserve, 400.0 / 8.0, speed_m_per_s=8.0) == pytest.approx(0.0, abs=1e-12)
    assert craft.time_aloft_s(reserve, 8.0) == pytest.approx(50.0)
    assert craft.reserve_fraction(0.0, 8.0) == 0.0
    assert craft.reserve_fraction(1e6, 8.0) > 1.0
    assert craft.reserve_fraction(400.0, 8.0, extra_w=10.0) > reserve


def test_impossible_flights_are_refused() -> None:
    iris = airframe_presets.get("3dr-iris")
    with pytest.raises(ConfigError, match=r"speed 0\.0 m/s.*expected >= 0, > 0"):
        iris.reserve_fraction(100.0, 0.0)
    with pytest.raises(ConfigError, match="0 to 15"):
        iris.reserve_fraction(100.0, 16.0)
    with pytest.raises(ConfigError, match=r"fraction 1\.5"):
        iris.time_aloft_s(1.5)
    changes: list[dict[str, object]] = [{"rotary": None, "level_power_w": []}, {"level_power_w": [200.0]}]
    for change in changes:
        value = airframe_presets.get("rotary-wing").model_dump() | change
        with pytest.raises(ConfigError, match="exactly one of level_power_w and rotary"):
            parse(AirframePreset, value, "craft.yaml")


def test_the_documentation_shows_every_preset() -> None:
    tables = markdown_tables()
    for registry in (compute_presets, radio_presets, airframe_presets):
        for name in registry.names():
            assert tables.count(f"| `{name}` |") == 1
            assert tables.count(f"- `{name}`: ") == 1
    rows = [line for line in tables.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {10, 8, 7}
    page = (Path(__file__).resolve().parents[1] / "docs/devices.md").read_text(encoding="utf-8")
    begin, end = "<!-- devices: generated by docs/make_tables.py -->", "<!-- end of devices -->"
    assert page.split(begin)[1].split(end)[0].strip() == tables.strip(), "run python docs/make_tables.py"
