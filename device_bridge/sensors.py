"""Which of a device's sensors the policy is shown: those that its training had.

A policy that was trained without a temperature gauge has never seen one; what it would make of a value is arbitrary, so
it is not shown any (telemetry and metrics still tell it). A sensor that the training always had and that the device has
not is another matter: the guard finds the observation out of range, and its recovery decides. On a real board that is
right. A board that is only modelled (``pace="profile"``) gets a constant in the trained range in its place.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from adaptsplit import observation as obs
from adaptsplit.device_bridge.telemetry import CombinedTelemetry, Reading, TelemetrySource
from adaptsplit.guard_range import TrainedRange

log = logging.getLogger("adaptsplit.device")

FIELDS = ("battery", "load", "temperature", "signal")
_KNOWN = tuple(obs.index(f"{name}_known") for name in FIELDS)


def as_trained(reading: Reading, trained: TrainedRange | None) -> Reading:
    """Return the reading without what the training never knew; all of it where no training is known."""
    if trained is None:
        return reading
    return Reading(*(v if trained.high[i] > 0.0 else math.nan for v, i in zip(reading, _KNOWN, strict=True)))


def missing(reading: Reading, trained: TrainedRange | None) -> list[str]:
    """Return the sensors that the training always had and ``reading`` has not."""
    if trained is None:
        return []
    pairs = zip(FIELDS, reading, _KNOWN, strict=True)
    return [name for name, value, i in pairs if value != value and trained.low[i] > 0.0]


def for_policy(given: TelemetrySource, trained: TrainedRange | None, *, modelled: bool) -> TelemetrySource:
    """Return ``given``, on a modelled board with constants for what the training had and it has not; both are told."""
    lacking = ", ".join(missing(given.read(0.0), trained))
    if trained is None or not lacking:
        return given
    if not modelled:
        log.warning("%s: known in training; until it is known here the recovery decides (--telemetry)", lacking)
        return given
    log.warning("%s: known in training, not here; the modelled board shows a constant (--telemetry)", lacking)
    return CombinedTelemetry([given, NominalTelemetry(trained)])


class NominalTelemetry:
    """Constants for a modelled board: a full battery, and of the others the middle of what the training knew."""

    def __init__(self, trained: TrainedRange) -> None:
        self._reading = Reading(*(self._value(name, trained) for name in FIELDS))

    @staticmethod
    def _value(name: str, trained: TrainedRange) -> float:
        known, i = obs.index(f"{name}_known"), obs.index(name)
        if trained.low[known] <= 0.0:
            return math.nan
        field = obs.FIELDS[i]
        share = trained.high[i] if name == "battery" else 0.5 * (trained.low[i] + trained.high[i])
        return field.low + share * (field.high - field.low)

    def read(self, now: float) -> Reading:
        """Return the constants."""
        return self._reading

    def spend(self, energy_j: float) -> None:
        """Nothing."""

    def details(self) -> Mapping[str, float]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Nothing to end."""
