"""The uplink of a drone over a cellular network: 3GPP channel, flight path, handover; from SINR to bit/s."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit.config import Config
from adaptsplit.errors import ConfigError
from adaptsplit.links.cqi import CqiSet, cqi_from_sinr, spectral_efficiency
from adaptsplit.links.draws import Draws, ar1_between, redrawn
from adaptsplit.links.flight_path import FlightPath
from adaptsplit.links.generation import Fraction, RoundTrip, SampleLength, generated, generator, sample_count
from adaptsplit.links.propagation import (
    BASE_HEIGHT_M,
    MAX_DISTANCE_M,
    MIN_DISTANCE_M,
    Environment,
    los_probability,
    path_loss_db,
    rician_k_db,
    shadowing_sigma_db,
)
from adaptsplit.links.trace import Array, LinkTrace

LOS_DISTANCE_M = {"RMa": 60.0, "UMa": 50.0, "UMi": 50.0}  # TR 38.901 v19.4.0 table 7.6.3.1-2
MAX_FADING_DRAWS = 64
MAX_DRAWS = 20_000_000
LIGHT_M_S = 299_792_458.0
SUBCARRIER_HZ = 15e3  # LTE
TARGET_BLER = 0.1  # block error rate that link adaptation aims at; the CQI sets are made for it
SURE_CQI = 7  # first CQI that is not QPSK


class AirToGroundParameters(Config):
    """Radio, network and flight. "Assumed" marks what no source fixes.

    environment, flight: see ``propagation`` and ``FlightPath``. site_distance_m, sites: base stations on a hexagonal
    grid, 1, 7 or 19 of them (assumed: sparse suburban
    macro sites).
    frequency_ghz, bandwidth_hz: LTE band 7, 10 MHz (assumed). cell_share: share of the band's resource blocks that the
    drone is granted; its power is spread over them alone (assumed). overhead: share of the granted resources that
    carries reference signals and control (assumed). power_dbm: 23, UE power class 3. noise_figure_db: 5, a base
    station. antenna_gain_db: sum of gains and losses of both antennas; 0, since a drone above a tilted antenna is
    served by its side lobes (assumed). interference_db: rise of interference over thermal noise (assumed).
    cqi_set: see ``cqi``. los_distance_m: correlation distance of the line of sight, None for that of TR 38.901.
    shadowing_m: distance after which shadowing is forgotten; 25 m after TR 36.777 table B-3.
    base_rtt_s: round trip at good signal (assumed). harq_s: time of one retransmission, 8 ms in LTE (FDD). poor_rounds:
    mean retransmissions at CQI 1 and where the link is down (assumed). loss: what retransmission leaves (assumed).
    hysteresis_db, trigger_s, interruption_s: handover after a neighbour was better by that much for that long, with
    no capacity meanwhile (3 dB, 160 ms and 50 ms assumed; LTE networks use 2 to 6 dB, 0.1 to 0.6 s, 30 to 50 ms).
    base_power_dbm: power of a base station over the whole band, for the RSRP alone (46 dBm for 10 MHz, from memory of
    the 3GPP evaluation assumptions).
    """

    environment: Environment = "UMa"
    flight: FlightPath = FlightPath()
    site_distance_m: float = Field(default=3000.0, gt=0, le=10_000)
    sites: int = Field(default=7, ge=1, le=19)
    frequency_ghz: float = Field(default=2.6, ge=0.5, le=100)
    bandwidth_hz: float = Field(default=10e6, ge=1e5, le=4e8)
    cell_share: float = Field(default=0.2, gt=0, le=1)
    overhead: float = Field(default=0.25, ge=0, lt=1)
    power_dbm: float = Field(default=23.0, ge=-50, le=50)
    noise_figure_db: float = Field(default=5.0, ge=0, le=30)
    antenna_gain_db: float = Field(default=0.0, ge=-50, le=50)
    interference_db: float = Field(default=10.0, ge=0, le=50)
    cqi_set: CqiSet = "A"
    los_distance_m: float | None = Field(default=None, ge=1, le=1000)
    shadowing_m: float = Field(default=25.0, ge=1, le=1000)
    base_rtt_s: RoundTrip = 0.045
    harq_s: float = Field(default=0.008, ge=0, le=1)
    poor_rounds: float = Field(default=3.0, ge=0, le=10)
    loss: Fraction = 0.001
    hysteresis_db: float = Field(default=3.0, ge=0, le=30)
    trigger_s: float = Field(default=0.16, ge=0, le=10)
    interruption_s: float = Field(default=0.05, ge=0, le=10)
    base_power_dbm: float = Field(default=46.0, ge=0, le=80)
    dt_s: SampleLength = 0.05

    @property
    def noise_dbm(self) -> float:
        """Thermal noise of the granted band at the base station: ``-174 + 10 log10(Hz) + noise figure``, dBm."""
        return -174 + 10 * math.log10(self.bandwidth_hz * self.cell_share) + self.noise_figure_db

    @property
    def fading_draws(self) -> int:
        """Independent fades in a sample: one per half wavelength flown at ``flight.speed_mps`` (Clarke), 1 to 64."""
        wavelength = LIGHT_M_S / (self.frequency_ghz * 1e9)
        return min(max(1, round(self.flight.speed_mps * self.dt_s / (wavelength / 2))), MAX_FADING_DRAWS)


@generator("air-to-ground", AirToGroundParameters)
def air_to_ground(seed: int, duration_s: float, parameters: AirToGroundParameters) -> LinkTrace:
    """The uplink along ``parameters.flight``.

    Per site and sample: the line of sight holds where a number that is redrawn along the way (``redrawn``) is below
    ``los_probability``, so its share is that probability; the gain is ``-path_loss_db`` plus shadowing with
    exponential autocorrelation over the way flown. A second flight through a place draws anew. SINR of the serving
    site = power + gain + Rician fading averaged over the sample - noise - interference margin; capacity = spectral
    efficiency of its CQI times the granted band without overhead, and 0 below CQI 1. The round trip grows by
    retransmissions as the CQI falls.

    The trace's ``signal_dbm`` is RSRP: base-station power per LTE subcarrier plus the gain, without fast fading, as
    modems report it. ``sinr_db`` is that of the uplink, fading included; ``altitude_m`` is above ground.

    Raises:
        ConfigError: the flight leaves the distances for which the channel is specified, or takes too many draws.
    """
    p = parameters
    count = _count(duration_s, p)
    middles = np.arange(0.5, count, dtype=np.float64) * p.dt_s
    places = p.flight.positions(seed, middles)
    gain, sight = _gains(seed, places, p)
    serving, changes = _serving(gain, p)
    rows = np.arange(count)
    own, own_sight = gain[rows, serving], sight[rows, serving]
    fading = averaged_fading(Draws(seed, 12), rician_k_db(p.environment, places[:, 2], own_sight), p.fading_draws)
    sinr = np.clip(p.power_dbm + own + 10 * np.log10(fading) - p.noise_dbm - p.interference_db, -100, 100)
    cqi = cqi_from_sinr(sinr, p.cqi_set)
    capacity = spectral_efficiency(cqi) * p.bandwidth_hz * p.cell_share * (1 - p.overhead)
    capacity = capacity * (1 - _interrupted(changes, count, p))
    rtt = p.base_rtt_s + p.harq_s * _retransmissions(cqi, p.poor_rounds)
    rsrp = p.base_power_dbm - 10 * math.log10(0.9 * p.bandwidth_hz / SUBCARRIER_HZ) + own
    return generated(
        "air-to-ground",
        seed,
        p,
        capacity,
        rtt,
        np.full(count, p.loss),
        signal_dbm=np.clip(rsrp, -300, 100),
        sinr_db=sinr,
        altitude_m=places[:, 2],
    )


def _count(duration_s: float, p: AirToGroundParameters) -> int:
    count = sample_count("air-to-ground", duration_s, p.dt_s)
    draws = count * max(p.sites, p.fading_draws)
    if draws > MAX_DRAWS:
        raise ConfigError(f"air-to-ground: {draws} draws, at most {MAX_DRAWS}; shorten it, raise dt_s or fewer sites")
    return count


def averaged_fading(draws: Draws, k_db: Array, count: int) -> Array:
    """Return (H,) mean power of ``count`` independent Rician fades per sample, mean 1.

    One fade is ``|sqrt(K / (K + 1)) + CN(0, 1 / (K + 1))|^2`` with ``K = 10^(k_db / 10)``; the variance of the mean is
    ``(1 + 2K) / (1 + K)^2 / count``.
    """
    k = (10 ** (k_db / 10))[:, None]
    scatter = np.sqrt(0.5 / (k + 1))
    shape = (k_db.size, count)
    in_phase = np.sqrt(k / (k + 1)) + scatter * draws.normal(k_db.size * count).reshape(shape)
    quadrature = scatter * draws.normal(k_db.size * count).reshape(shape)
    power: Array = (in_phase**2 + quadrature**2).mean(axis=1)
    return power


def site_places(count: int, distance_m: float) -> Array:
    """Return (count, 2) places of base stations on a hexagonal grid, nearest to (0, 0) first, m."""
    axis = np.arange(-2, 3)
    grid = np.array([(a + b / 2, b * math.sqrt(0.75)) for a in axis for b in axis])
    radius = np.round(np.hypot(grid[:, 0], grid[:, 1]), 9)
    angle = np.round(np.arctan2(grid[:, 1], grid[:, 0]), 9)
    placed: Array = grid[np.lexsort((angle, radius))][:count] * distance_m
    return placed


def _gains(seed: int, places: Array, p: AirToGroundParameters) -> tuple[Array, NDArray[np.bool_]]:
    """(H, sites) gain of the way to each site, dB, without fast fading, and whether there is a line of sight."""
    over_ground = places[:, None, :2] - site_places(p.sites, p.site_distance_m)[None]
    d2d = np.maximum(np.hypot(over_ground[..., 0], over_ground[..., 1]), MIN_DISTANCE_M)
    _check_reach(d2d, p)
    height = places[:, 2:]
    d3d = np.hypot(d2d, height - BASE_HEIGHT_M[p.environment])
    steps = np.sqrt(np.square(np.diff(places, axis=0)).sum(axis=1))
    way = np.concatenate(([0.0], np.cumsum(steps)))
    length = p.los_distance_m or LOS_DISTANCE_M[p.environment]
    uniform = np.column_stack([redrawn(Draws(seed, 100 + k), way, length) for k in range(p.sites)])
    fades = np.column_stack([ar1_between(Draws(seed, 200 + k), np.exp(-steps / p.shadowing_m)) for k in range(p.sites)])
    sight = uniform < los_probability(p.environment, height, d2d)
    sigma = shadowing_sigma_db(p.environment, height, sight, d2d, p.frequency_ghz)
    loss = path_loss_db(p.environment, height, d3d, p.frequency_ghz, sight)
    return p.antenna_gain_db - loss + sigma * fades, sight


def _check_reach(d2d: Array, p: AirToGroundParameters) -> None:
    nearest = float(d2d.min(axis=1).max())
    if nearest > MAX_DISTANCE_M[p.environment]:
        raise ConfigError(
            f"air-to-ground: the flight leads {nearest:.0f} m away from every site, and the channel {p.environment} is "
            f"specified up to {MAX_DISTANCE_M[p.environment]:.0f} m; shorten the flight or add sites"
        )


def _serving(gain: Array, p: AirToGroundParameters) -> tuple[NDArray[np.int64], list[int]]:
    """(H,) the serving site, and the samples at which it changes."""
    wait = max(1, math.ceil(round(p.trigger_s / p.dt_s, 6)))
    best = gain.argmax(axis=1).tolist()
    values = gain.tolist()
    serving = best[0]
    found, changes, better = [], [], 0
    for k, row in enumerate(values):
        better = better + 1 if row[best[k]] > row[serving] + p.hysteresis_db else 0
        if better >= wait:
            serving, better = best[k], 0
            changes.append(k)
        found.append(serving)
    return np.array(found), changes


def _interrupted(changes: list[int], count: int, p: AirToGroundParameters) -> Array:
    """(H,) share of each sample that handovers take."""
    covered = np.zeros(count)
    for change in changes:
        last = min(count, change + math.ceil(round(p.interruption_s / p.dt_s, 6)))
        part = p.interruption_s / p.dt_s - np.arange(last - change)
        covered[change:last] = np.maximum(covered[change:last], np.clip(part, 0.0, 1.0))
    return covered


def _retransmissions(cqi: NDArray[np.int64], poor_rounds: float) -> Array:
    """(H,) mean retransmissions of a message: the target error rate from CQI 7 on, rising to ``poor_rounds`` at CQI 1.

    Assumed: QPSK at low rate is where link adaptation has no scheme left to fall back on.
    """
    poor = np.clip((SURE_CQI - np.maximum(cqi, 1)) / (SURE_CQI - 1), 0.0, 1.0)
    mean: Array = TARGET_BLER + poor * max(0.0, poor_rounds - TARGET_BLER)
    return mean
