"""How a radio signal fades between a base station and a drone: 3GPP TR 36.777 Annex B above the roofs, TR 38.901 below.

Pure functions of environment, height and distance; arrays of any shapes that broadcast. Aerial bands (tables B-1 to
B-3 of TR 36.777 v15.0.0): RMa above 10 m, UMa and UMi above 22.5 m, up to 300 m. Below, tables 7.4.1-1 and 7.4.2-1 of
TR 38.901 v19.4.0. ``height_m`` is that of the device; base stations stand 35 m (RMa), 25 m (UMa) and 10 m (UMi) high.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from adaptsplit.errors import ConfigError
from adaptsplit.links.trace import Array

Environment = Literal["RMa", "UMa", "UMi"]
BASE_HEIGHT_M: dict[str, float] = {"RMa": 35.0, "UMa": 25.0, "UMi": 10.0}
AERIAL_ABOVE_M: dict[str, float] = {"RMa": 10.0, "UMa": 22.5, "UMi": 22.5}
MAX_DISTANCE_M: dict[str, float] = {"RMa": 10_000.0, "UMa": 4_000.0, "UMi": 4_000.0}
MIN_DISTANCE_M = 10.0  # of TR 38.901, table 7.4.1-1
MIN_HEIGHT_M = 1.5  # least height of a device in UMa and UMi of TR 38.901; RMa goes down to 1 m
MAX_HEIGHT_M = 300.0
STREET_M, BUILDING_M = 20.0, 5.0  # RMa: mean street width W and building height h, defaults of TR 38.901
LIGHT_M_S = 3e8  # the rounded value that TR 38.901 prescribes for its breakpoint distances


def los_probability(environment: Environment, height_m: ArrayLike, d2d_m: ArrayLike) -> Array:
    """Return the probability of a line of sight (TR 36.777 table B-1, TR 38.901 table 7.4.2-1).

    Args:
        environment: ``RMa``, ``UMa`` or ``UMi``.
        height_m: height of the device, m, 1.5 to 300.
        d2d_m: distance over ground, m.

    Raises:
        ConfigError: an unknown environment, a height out of range, a negative distance.
    """
    height, distance = _checked(environment, height_m, d2d_m)
    floor = AERIAL_ABOVE_M[environment]
    aerial = _los_aerial(environment, np.maximum(height, floor), distance)
    return np.where(height > floor, aerial, _los_ground(environment, np.minimum(height, floor), distance))


def path_loss_db(
    environment: Environment, height_m: ArrayLike, d3d_m: ArrayLike, frequency_ghz: float, los: ArrayLike
) -> Array:
    """Return the mean path loss, dB (TR 36.777 table B-2, TR 38.901 table 7.4.1-1).

    Args:
        environment: ``RMa``, ``UMa`` or ``UMi``.
        height_m: height of the device, m, 1.5 to 300.
        d3d_m: distance between the antennas, m; one below the difference of their heights is taken as that.
        frequency_ghz: carrier, GHz, 0.5 to 100.
        los: whether there is a line of sight.

    The loss without a line of sight is never below that with one: the tables say so but for UMa above 22.5 m, where
    this binds only closer than the heights allow. Of UMa, the effective height of the environment is taken as 1 m.

    Raises:
        ConfigError: an unknown environment, a value out of range.
    """
    height, distance = _checked(environment, height_m, d3d_m)
    if not 0.5 <= frequency_ghz <= 100:
        raise ConfigError(f"carrier frequency {frequency_ghz!r} GHz, expected 0.5 to 100")
    distance = np.maximum(distance, np.maximum(np.abs(height - BASE_HEIGHT_M[environment]), 1.0))
    floor = AERIAL_ABOVE_M[environment]
    high, low = np.maximum(height, floor), np.minimum(height, floor)
    with_los = np.where(
        height > floor,
        _aerial_los_db(environment, high, distance, frequency_ghz),
        _ground_los_db(environment, low, distance, frequency_ghz),
    )
    without = np.where(
        height > floor,
        _aerial_nlos_db(environment, high, distance, frequency_ghz),
        _ground_nlos_db(environment, low, distance, frequency_ghz),
    )
    return np.where(np.asarray(los, dtype=bool), with_los, np.maximum(with_los, without))


def shadowing_sigma_db(
    environment: Environment, height_m: ArrayLike, los: ArrayLike, d2d_m: ArrayLike = 0.0, frequency_ghz: float = 2.0
) -> Array:
    """Return the standard deviation of the shadowing, dB (TR 36.777 table B-3, TR 38.901 table 7.4.1-1).

    ``d2d_m`` (m) and ``frequency_ghz`` matter for RMa below 10 m alone, where sigma rises beyond the breakpoint.
    """
    height, distance = _checked(environment, height_m, d2d_m)
    beyond = distance > breakpoint_m("RMa", height, frequency_ghz)
    rural = np.where(beyond, 6.0, 4.0)
    on_ground: dict[str, tuple[ArrayLike, float]] = {"RMa": (rural, 8.0), "UMa": (4.0, 6.0), "UMi": (4.0, 7.82)}
    in_air: dict[str, tuple[ArrayLike, float]] = {
        "RMa": (4.2 * np.exp(-0.0046 * height), 6.0),
        "UMa": (4.64 * np.exp(-0.0066 * height), 6.0),
        "UMi": (np.maximum(5.0 * np.exp(-0.01 * height), 2.0), 8.0),
    }
    ground, aerial = on_ground[environment], in_air[environment]
    sight = np.asarray(los, dtype=bool)
    is_aerial = height > AERIAL_ABOVE_M[environment]
    return np.where(sight, np.where(is_aerial, aerial[0], ground[0]), np.where(is_aerial, aerial[1], ground[1]))


def rician_k_db(environment: Environment, height_m: ArrayLike, los: ArrayLike) -> Array:
    """Return the Rician K factor, dB; ``-inf`` where there is no direct path (Rayleigh).

    Above the roofs 20 dB with and 10 dB without a line of sight (TR 36.777 tables B.1.1-1 and B.1.1-2, alternative 1;
    taken for UMi as well, for which that alternative gives none). Below, the mean of TR 38.901 table 7.5-6 with a line
    of sight: 7 dB (RMa), 9 dB (UMa, UMi).
    """
    height = np.asarray(height_m, dtype=np.float64)
    sight = np.asarray(los, dtype=bool)
    ground = np.where(sight, 7.0 if environment == "RMa" else 9.0, -np.inf)
    return np.where(height > AERIAL_ABOVE_M[environment], np.where(sight, 20.0, 10.0), ground)


def breakpoint_m(environment: Environment, height_m: ArrayLike, frequency_ghz: float) -> Array:
    """Return the distance over ground beyond which the ground reflection steepens the loss, m (TR 38.901)."""
    height = np.asarray(height_m, dtype=np.float64)
    hertz = frequency_ghz * 1e9
    if environment == "RMa":
        return np.asarray(2 * np.pi * BASE_HEIGHT_M["RMa"] * height * hertz / LIGHT_M_S)
    return np.asarray(4 * (BASE_HEIGHT_M[environment] - 1.0) * (height - 1.0) * hertz / LIGHT_M_S)


def _checked(environment: str, height_m: ArrayLike, distance_m: ArrayLike) -> tuple[Array, Array]:
    if environment not in BASE_HEIGHT_M:
        raise ConfigError(f"environment {environment!r}, expected RMa, UMa or UMi")
    height = np.asarray(height_m, dtype=np.float64)
    if not np.all((height >= MIN_HEIGHT_M) & (height <= MAX_HEIGHT_M)):
        raise ConfigError(
            f"height {_outside(height, MIN_HEIGHT_M, MAX_HEIGHT_M):g} m, expected {MIN_HEIGHT_M:g} to {MAX_HEIGHT_M:g}"
        )
    distance = np.asarray(distance_m, dtype=np.float64)
    if not np.all((distance >= 0) & (distance <= 1e6)):
        raise ConfigError(f"distance {_outside(distance, 0, 1e6):g} m, expected 0 to 1,000,000")
    return height, distance


def _outside(values: Array, low: float, high: float) -> float:
    flat = values.ravel()
    return float(flat[int(np.argmax(~((flat >= low) & (flat <= high))))])


def _log(values: Any) -> Array:
    return np.asarray(np.log10(values))


def _los_aerial(environment: str, height: Array, distance: Array) -> Array:
    if environment == "RMa":
        first, decay = np.maximum(1350.8 * _log(height) - 1602, 18.0), np.maximum(15021 * _log(height) - 16053, 1000.0)
    elif environment == "UMa":
        first, decay = np.maximum(460 * _log(height) - 700, 18.0), 4300 * _log(height) - 3800
    else:
        first, decay = np.maximum(294.05 * _log(height) - 432.94, 18.0), 233.98 * _log(height) - 0.95
    share = first / np.maximum(distance, first)
    formula = share + np.exp(-np.maximum(distance, first) / decay) * (1 - share)
    forced = {"RMa": 40.0, "UMa": 100.0, "UMi": np.inf}[environment]
    return np.where((height > forced) | (distance <= first), 1.0, formula)


def _los_ground(environment: str, height: Array, distance: Array) -> Array:
    if environment == "RMa":
        return np.exp(-np.maximum(distance - 10.0, 0.0) / 1000)
    share = 18.0 / np.maximum(distance, 18.0)
    decay = 36.0 if environment == "UMi" else 63.0
    formula = share + np.exp(-distance / decay) * (1 - share)
    if environment == "UMa":
        tall = (np.maximum(height - 13.0, 0.0) / 10) ** 1.5
        formula = formula * (1 + tall * 1.25 * (distance / 100) ** 3 * np.exp(-distance / 150))
    return np.where(distance <= 18.0, 1.0, formula)


def _free(frequency_ghz: float) -> float:
    return float(20 * np.log10(40 * np.pi * frequency_ghz / 3))


def _carrier(frequency_ghz: float) -> float:
    return float(20 * np.log10(frequency_ghz))


def _aerial_los_db(environment: str, height: Array, distance: Array, frequency_ghz: float) -> Array:
    if environment == "RMa":
        return np.maximum(23.9 - 1.8 * _log(height), 20.0) * _log(distance) + _free(frequency_ghz)
    carrier = _carrier(frequency_ghz)
    if environment == "UMa":
        return 28.0 + 22 * _log(distance) + carrier
    free_space = 32.45 + 20 * _log(distance) + carrier
    return np.maximum(free_space, 30.9 + (22.25 - 0.5 * _log(height)) * _log(distance) + carrier)


def _aerial_nlos_db(environment: str, height: Array, distance: Array, frequency_ghz: float) -> Array:
    if environment == "RMa":
        return -12 + (35 - 5.3 * _log(height)) * _log(distance) + _free(frequency_ghz)
    if environment == "UMa":
        return -17.5 + (46 - 7 * _log(height)) * _log(distance) + _free(frequency_ghz)
    return 32.4 + (43.2 - 7.6 * _log(height)) * _log(distance) + _carrier(frequency_ghz)


def _ground_los_db(environment: Environment, height: Array, distance: Array, frequency_ghz: float) -> Array:
    rise = BASE_HEIGHT_M[environment] - height
    over_ground = np.sqrt(np.maximum(distance**2 - rise**2, 0.0))
    edge = breakpoint_m(environment, height, frequency_ghz)
    if environment == "RMa":
        beyond = _rural_db(edge, frequency_ghz) + 40 * _log(distance / edge)
        return np.where(over_ground <= edge, _rural_db(distance, frequency_ghz), beyond)
    near, slope, merge = {"UMa": (28.0, 22.0, 9.0), "UMi": (32.4, 21.0, 9.5)}[environment]
    carrier = _carrier(frequency_ghz)
    first = near + slope * _log(distance) + carrier
    second = near + 40 * _log(distance) + carrier - merge * _log(edge**2 + rise**2)
    return np.where(over_ground <= edge, first, second)


def _rural_db(distance: Array, frequency_ghz: float) -> Array:
    grow = BUILDING_M**1.72
    slope = 20 + min(0.03 * grow, 10.0)
    constant = _free(frequency_ghz) - min(0.044 * grow, 14.77)
    return np.asarray(constant + slope * _log(distance) + 0.002 * _log(BUILDING_M) * distance)


def _ground_nlos_db(environment: str, height: Array, distance: Array, frequency_ghz: float) -> Array:
    carrier = _carrier(frequency_ghz)
    if environment == "UMa":
        return np.asarray(13.54 + 39.08 * _log(distance) + carrier - 0.6 * (height - 1.5))
    if environment == "UMi":
        return np.asarray(35.3 * _log(distance) + 22.4 + 21.3 * _log(frequency_ghz) - 0.3 * (height - 1.5))
    base = BASE_HEIGHT_M["RMa"]
    buildings = 161.04 - 7.1 * _log(STREET_M) + 7.5 * _log(BUILDING_M)
    station = (24.37 - 3.7 * (BUILDING_M / base) ** 2) * _log(base)
    slope = 43.42 - 3.1 * _log(base)
    device = 3.2 * _log(11.75 * height) ** 2 - 4.97
    return np.asarray(buildings - station + slope * (_log(distance) - 3) + carrier - device)
