"""The generated uplink: share in sight, shadowing, fading, link budget, handover, flight path."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from adaptsplit.errors import ConfigError, LinkError
from adaptsplit.links import LinkTrace, link_generators
from adaptsplit.links.air_to_ground import AirToGroundParameters, _gains, averaged_fading, site_places
from adaptsplit.links.cqi import THRESHOLDS_DB, cqi_from_sinr, spectral_efficiency
from adaptsplit.links.draws import Draws, ar1_between, redrawn
from adaptsplit.links.flight_path import FlightPath
from adaptsplit.links.propagation import Environment, los_probability

# 3 km round a site at 150 m, always in sight of a UMa site: the path loss hardly changes, the shadowing does.
AROUND = {"waypoints_m": [[500 * math.cos(a), 500 * math.sin(a), 150] for a in np.linspace(0, 2 * math.pi, 73)[:-1]]}


def uplink(seed: int, duration_s: float, **parameters: Any) -> LinkTrace:
    return link_generators.get("air-to-ground")(seed, duration_s, parameters)


def test_fading_has_mean_one_and_the_variance_of_its_k_factor() -> None:
    for k_db, count in ((20.0, 1), (10.0, 1), (10.0, 4), (-math.inf, 1), (9.0, 8)):
        power = averaged_fading(Draws(1, 0), np.full(100_000, k_db), count)
        k = 10 ** (k_db / 10)
        assert power.min() > 0
        assert power.mean() == pytest.approx(1.0, abs=0.012)
        assert power.var() == pytest.approx((1 + 2 * k) / (1 + k) ** 2 / count, rel=0.03)


def test_a_number_redrawn_along_the_way_is_uniform_and_forgets_exponentially() -> None:
    way = np.arange(400_000, dtype=np.float64)
    held = redrawn(Draws(3, 0), way, 20.0)
    assert held.mean() == pytest.approx(0.5, abs=0.01)
    assert np.mean(held < 0.2) == pytest.approx(0.2, abs=0.015)
    for lag in (1, 10, 40):
        assert np.corrcoef(held[:-lag], held[lag:])[0, 1] == pytest.approx(math.exp(-lag / 20), abs=0.02)
    assert np.ptp(redrawn(Draws(3, 0), np.zeros(50), 20.0)) == 0  # a hovering drone keeps its draw


def test_steps_of_any_size_keep_the_correlation_over_distance() -> None:
    steps = np.tile([0.0, 1.0, 4.0], 60_000)
    values = ar1_between(Draws(4, 0), np.exp(-steps / 10))
    assert (values.mean(), values.std()) == pytest.approx((0.0, 1.0), abs=0.03)
    assert np.array_equal(values[0::3][:-1], values[1::3])  # no step, no change
    assert np.corrcoef(values[:-3], values[3:])[0, 1] == pytest.approx(math.exp(-0.5), abs=0.02)


@pytest.mark.parametrize(("environment", "height"), [("UMa", 50.0), ("UMi", 100.0), ("RMa", 25.0)])
def test_the_share_in_sight_is_its_probability(environment: Environment, height: float) -> None:
    angle = np.linspace(0, 2 * math.pi * 50, 160_000)
    places = np.column_stack((500 * np.cos(angle), 500 * np.sin(angle), np.full(angle.size, height)))
    p = AirToGroundParameters(environment=environment, sites=1)
    shares = [_gains(seed, places, p)[1].mean() for seed in range(3)]
    # 3 x 157 km with a redraw every 50 or 60 m: about 8,000 draws, a standard error of 0.006 at most.
    assert np.mean(shares) == pytest.approx(float(los_probability(environment, height, 500)), abs=0.018)


def test_shadowing_forgets_exponentially_over_distance() -> None:
    trace = uplink(2, 20_000.0, flight=AROUND, sites=1, dt_s=0.5)
    assert trace.signal_dbm is not None
    dip = trace.signal_dbm - trace.signal_dbm.mean()
    assert dip.std() == pytest.approx(4.64 * math.exp(-0.0066 * 150), rel=0.05)
    for lag in (2, 6, 12):  # 4 m of flight per sample
        assert np.corrcoef(dip[:-lag], dip[lag:])[0, 1] == pytest.approx(math.exp(-4 * lag / 25), abs=0.05)


def test_the_budget_by_hand() -> None:
    """One hovering sample without randomness that matters: 1,000 m of ground from a UMa site, 120 m up."""
    hover = {"waypoints_m": [[1000.0, 0.0, 120.0]]}
    p = AirToGroundParameters.model_validate({"flight": hover, "sites": 1})
    traces = [uplink(seed, 5.0, flight=hover, sites=1) for seed in range(300)]
    loss = 28 + 22 * math.log10(math.hypot(1000, 95)) + 20 * math.log10(2.6)
    assert p.noise_dbm == pytest.approx(-174 + 10 * math.log10(2e6) + 5)
    rsrp = np.array([trace.signal_dbm[0] for trace in traces if trace.signal_dbm is not None])
    assert rsrp.mean() == pytest.approx(46 - 10 * math.log10(600) - loss, abs=0.4)
    assert rsrp.std() == pytest.approx(4.64 * math.exp(-0.0066 * 120), rel=0.15)
    sinr = np.array([trace.sinr_db.mean() for trace in traces if trace.sinr_db is not None])
    assert (sinr - rsrp).mean() == pytest.approx(
        23 - p.noise_dbm - 10 - (46 - 10 * math.log10(600)), abs=0.1
    )  # fading at K = 20 dB takes 0.05 dB from the mean of the logarithm
    for trace in traces[:20]:
        assert trace.sinr_db is not None
        expected = spectral_efficiency(cqi_from_sinr(trace.sinr_db)) * 2e6 * 0.75
        clear = np.abs(trace.sinr_db[:, None] - THRESHOLDS_DB["A"]).min(axis=1) > 0.001  # it is stated to 0.001 dB
        assert clear.sum() > 90
        assert trace.capacity_bps[clear] == pytest.approx(expected[clear], abs=0.51)
        assert trace.altitude_m is not None
        assert set(trace.altitude_m) == {120.0}


def test_the_link_is_down_below_the_lowest_threshold_and_slow_where_it_is_weak() -> None:
    trace = uplink(1, 600.0, interference_db=22.0)
    assert trace.sinr_db is not None
    down = trace.sinr_db < -6.7
    assert down.any()
    assert not trace.capacity_bps[down].any()
    assert trace.rtt_s[down] == pytest.approx(0.045 + 3 * 0.008)
    assert trace.rtt_s[trace.sinr_db > 6] == pytest.approx(0.045 + 0.1 * 0.008)
    weak = (trace.sinr_db >= -6.7) & (trace.sinr_db < 5.9)
    assert np.all(trace.rtt_s[weak] > 0.0458)
    with pytest.raises(LinkError, match="capacity is zero in all"):
        uplink(1, 10.0, interference_db=50.0, power_dbm=-50.0)


def test_handover_interrupts_once_and_goes_to_the_better_site() -> None:
    """A straight flight between two sites, shadowing next to nothing: one handover, 3 dB past the middle."""
    x, y = site_places(2, 2000.0)[1].tolist()
    way = {"waypoints_m": [[x / 100, y / 100, 300.0], [0.99 * x, 0.99 * y, 300.0]]}
    options = {"flight": way, "site_distance_m": 2000.0, "sites": 2, "dt_s": 0.1, "shadowing_m": 1000.0}
    trace = uplink(3, 245.0, **options)
    calm = uplink(3, 245.0, **options, interruption_s=0.0)
    gaps = np.flatnonzero(calm.capacity_bps != trace.capacity_bps)
    assert gaps.size == 1
    assert trace.capacity_bps[gaps[0]] == pytest.approx(calm.capacity_bps[gaps[0]] / 2, abs=1)  # 50 of its 100 ms
    # Without shadowing, 3 dB at 22 dB per decade of distance, 275 m above the stations: 1,200 m of the way.
    assert 1000 < 20 + 8 * 0.1 * gaps[0] < 1400
    long = uplink(3, 245.0, **options, interruption_s=0.55)
    lost = long.capacity_bps[gaps[0] : gaps[0] + 6]
    assert not lost[:5].any()
    assert lost[5] == pytest.approx(calm.capacity_bps[gaps[0] + 5] / 2, abs=1)
    assert long.signal_dbm is not None
    assert long.signal_dbm[gaps[0]] > long.signal_dbm[gaps[0] - 1] + 2  # shadowing moves 0.1 dB at most meanwhile
    never = uplink(3, 245.0, **options, hysteresis_db=30.0)
    assert never.capacity_bps[-1] < calm.capacity_bps[-1]


def test_sites_stand_on_a_hexagonal_grid() -> None:
    places = site_places(19, 500.0)
    radius = np.hypot(places[:, 0], places[:, 1])
    assert radius[0] == 0
    assert radius[1:7] == pytest.approx(np.full(6, 500.0))
    assert np.sort(radius[7:]) == pytest.approx([500 * math.sqrt(3)] * 6 + [1000.0] * 6)
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) + 1e9 * np.eye(19)
    assert apart.min() == pytest.approx(500.0)


def test_the_default_flight_leaves_circles_and_returns() -> None:
    path = FlightPath()
    times = np.arange(0, 600, 0.5)
    places = path.positions(1, times)
    radius = np.hypot(places[:, 0], places[:, 1])
    assert radius[0] == pytest.approx(200.0)
    assert places[0, 2] == 1.5
    assert places[:, 2].max() == 40.0
    assert 400 <= radius.max() <= 1600
    speed = np.hypot(*np.diff(places, axis=0)[:, :2].T) / 0.5
    assert speed.max() <= 8.0 + 1e-9
    assert np.abs(np.diff(places[:, 2])).max() / 0.5 <= 2.5 + 1e-9
    assert np.abs(places - path.positions(2, times)).max() > 100
    corners = path.corners(1)
    centre = corners[2:-2, :2].mean(axis=0)
    assert np.hypot(*(corners[2:-1, :2] - centre).T) == pytest.approx(np.full(73, 100.0), rel=0.03)


def test_waypoints_are_flown_at_the_stated_speeds_and_closed() -> None:
    path = FlightPath(waypoints_m=((0.0, 0.0, 10.0), (80.0, 0.0, 10.0), (80.0, 0.0, 60.0)), climb_mps=5.0)
    places = path.positions(0, np.array([0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 55.0]))
    assert places[:, 0].tolist() == pytest.approx([0, 40, 80, 80, 80, 40, 0, 40])
    assert places[:, 2].tolist() == pytest.approx([10, 10, 10, 35, 60, 35, 10, 35])
    hover = FlightPath(waypoints_m=((1.0, 2.0, 3.0),)).positions(0, np.arange(3.0))
    assert hover.tolist() == [[1, 2, 3]] * 3
    moved = [FlightPath(random_start=True).positions(seed, np.zeros(1))[0, 2] for seed in range(20)]
    assert len(set(moved)) > 1


def test_golden_digest_and_summary_of_the_default() -> None:
    """Scenarios name links by seed: the trace behind a seed must never change unseen."""
    trace = uplink(1, 60.0)
    assert trace.digest()[:16] == "d5eae729f24610b3"
    seconds = np.concatenate([uplink(s, 300.0).capacity_bps.reshape(-1, 20).mean(axis=1) for s in range(10)]) / 1e6
    assert 1.0 <= np.quantile(seconds, 0.05) <= 3.0
    assert 5.0 <= np.median(seconds) <= 7.0
    assert seconds.max() <= 8.34


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"environment": "city"}, "environment"),
        ({"flight": {"height_m": 301}}, "height_m"),
        ({"flight": {"distance_m": [900, 100]}}, "exchange them"),
        ({"flight": {"hieght_m": 30}}, "did you mean 'height_m'"),
        ({"flight": {"distance_m": [9000, 9000]}, "sites": 1}, "specified up to 4000 m"),
        ({"cell_share": 0}, "cell_share"),
        ({"dt_s": 0.001}, "draws, at most"),
    ],
)
def test_faulty_parameters_are_named(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        link_generators.get("air-to-ground")(1, 4500.0, parameters)
