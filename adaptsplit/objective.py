"""How an outcome becomes a reward: named terms and their weights, fixed by a scenario before anything is trained.

A scenario names a family (``objective: fresh-answers``), a family with weights of its own (``objective: {family:
fresh-answers, energy_per_j: 0.1}``), or plain weights. Where the families' numbers come from: docs/objectives.md, and
the three functions below that turn physical statements into prices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adaptsplit.config import Config
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.outcome import Outcomes, Path
from adaptsplit.registry import Registry

WEIGHTS = ("quality", "energy_per_j", "bytes_per_kib", "switch", "miss", "latency_per_s")


class Objective(Config):
    """Reward of a frame: ``quality q - energy_per_j E - bytes_per_kib KiB - switch s - miss m - latency_per_s l``.

    q is the fraction of cells answered rightly (0 for a miss), E the device's energy for the frame in joules (compute
    above idle and transmission), KiB the payload handed to the link, s = 1 when the branch changed, m = 1 for a miss,
    l the answer's latency in seconds (0 for a miss). ``family`` is the family that the weights were taken from, None
    for weights of one's own; what is named beside it replaces the family's weight.
    """

    family: str | None = None
    quality: float = Field(1.0, ge=0)
    energy_per_j: float = Field(0.0, ge=0)
    bytes_per_kib: float = Field(0.0, ge=0)
    switch: float = Field(0.0, ge=0)
    miss: float = Field(0.0, ge=0)
    latency_per_s: float = Field(0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _from_family(cls, value: Any) -> Any:
        """Fill in the weights of a family that is named alone, or under the key ``family``."""
        given = {"family": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping) or not isinstance(given.get("family"), str):
            return value
        try:
            weights = families.get(given["family"]).weights
        except UnknownNameError as error:
            raise ValueError(str(error)) from error
        return {**weights, **given}

    def weights(self) -> tuple[float, float, float, float, float, float]:
        """Return (quality, energy per J, per byte, switch, miss, latency per s), the order of the compiled core."""
        per_byte = self.bytes_per_kib / 1024.0
        return self.quality, self.energy_per_j, per_byte, self.switch, self.miss, self.latency_per_s

    def scaled(self, weight: str, factor: float) -> Objective:
        """Return the objective with one weight of ``WEIGHTS`` multiplied; ConfigError for another name."""
        if weight not in WEIGHTS:
            raise ConfigError(f"weight {weight!r}: expected one of {', '.join(WEIGHTS)}")
        return self.model_copy(update={weight: factor * getattr(self, weight)})

    def terms(self, outcomes: Outcomes) -> dict[str, NDArray[Any]]:
        """Return the weighted terms of each record, same shape; their sum is the reward."""
        return {
            "quality": self.quality * outcomes["quality"].astype(np.float64),
            "energy": -self.energy_per_j * (outcomes["compute_j"].astype(np.float64) + outcomes["radio_j"]),
            "bytes": -self.bytes_per_kib / 1024.0 * outcomes["sent_bytes"],
            "switching": -self.switch * outcomes["switched"].astype(np.float64),
            "miss": -self.miss * (outcomes["path"] == Path.MISS).astype(np.float64),
            "lateness": -self.latency_per_s * np.nan_to_num(outcomes["answer_latency_s"].astype(np.float64)),
        }

    def terms_of(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return the weighted terms of one record given as plain numbers, as ``terms`` does for arrays."""
        missed, latency = record["path"] == Path.MISS, record["answer_latency_s"]
        return {
            "quality": self.quality * record["quality"],
            "energy": -self.energy_per_j * (record["compute_j"] + record["radio_j"]),
            "bytes": -self.bytes_per_kib / 1024.0 * record["sent_bytes"],
            "switching": -self.switch * float(record["switched"]),
            "miss": -self.miss if missed else 0.0,
            "lateness": 0.0 if missed else -self.latency_per_s * latency,
        }

    def reward(self, outcomes: Outcomes) -> NDArray[Any]:
        """Return the reward of each record, same shape."""
        return np.asarray(np.sum(list(self.terms(outcomes).values()), axis=0))


def energy_price(quality: float, fps: float, base_w: float) -> float:
    """Return the weight per joule of a device whose mission lasts as long as its battery.

    A battery of B joules keeps the device up for ``B / (base_w + fps E)`` seconds when a frame costs E joules above the
    power ``base_w`` (W) that is drawn whatever is decided. The mission's worth, quality times time, changes by
    ``dq / q - fps dE / (base_w + fps E)``; at small E a joule per frame therefore costs ``quality fps / base_w`` of
    quality. ConfigError unless all three are positive.
    """
    _positive(quality=quality, fps=fps, base_w=base_w)
    return quality * fps / base_w


def bytes_price(usd_per_mib: float, usd_per_hour: float, fps: float) -> float:
    """Return the weight per KiB of a link that is paid by volume.

    An hour of work that is worth ``usd_per_hour`` with every cell right has 3600 fps frames, so a frame's quality of 1
    is worth ``usd_per_hour / (3600 fps)``; a KiB costs ``usd_per_mib / 1024``. ConfigError unless all are positive.
    """
    _positive(usd_per_mib=usd_per_mib, usd_per_hour=usd_per_hour, fps=fps)
    return usd_per_mib / 1024.0 * 3600.0 * fps / usd_per_hour


def latency_price(quality: float, retention: float, fps: float) -> float:
    """Return the weight per second of an answer that is used when it comes, for a scene that has moved on.

    ``retention`` is the share of cells whose answer is the same one frame later (``ProfileSummary.retention``), so an
    answer l seconds old is right in ``quality retention^(fps l)`` of the cells: at small l it loses
    ``-quality fps ln(retention)`` a second. ConfigError unless 0 < retention <= 1 and the others are positive.
    """
    _positive(quality=quality, retention=retention, fps=fps)
    if retention > 1.0:
        raise ConfigError(f"retention={retention:g}: expected a share in (0, 1]")
    return quality * fps * abs(math.log(retention))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}={value:g}: expected a positive number")


@dataclass(frozen=True, slots=True)
class Family:
    """A named objective: the weights that differ from the plain ones, why they are these, and what was assumed."""

    name: str
    weights: Mapping[str, float]
    reason: str
    assumed: str


families: Registry[Family] = Registry("objective")
"""Objectives by name."""


def _add(name: str, weights: Mapping[str, float], reason: str, assumed: str) -> None:
    families.register(name)(Family(name, weights, reason, assumed))


_add(
    "accuracy-under-deadline",
    {"quality": 1.0},
    "An answer counts when it is right and in time; nothing else has a price. On a craft of 206 W, board and radio are "
    "about 2 W and no argument, and neither are bytes on a link that is paid by the month.",
    "that energy and bytes are free; an answer by the deadline is worth as much as an early one",
)
_add(
    "energy-bound-mission",
    {"quality": 1.0, "energy_per_j": 0.36},
    "The battery ends the mission: energy_price(quality=0.9, fps=10, base_w=25) = 0.36 per J, so one point of accuracy "
    "is worth 28 mJ per frame. 25 W whatever is decided is a Tello-class craft (22 W in flight) with an idle Pi 4B and "
    "a connected LTE radio. On the 210 W of a larger quadrotor it would be 0.043 per J, on a ground robot of 9 W 1.0.",
    "22 W in flight (devices/presets.yaml); 0.9 is the quality at which the price is taken",
)
_add(
    "data-capped-link",
    {"quality": 1.0, "bytes_per_kib": 0.018},
    "The link is paid by volume: bytes_price(usd_per_mib=0.05, usd_per_hour=100, fps=10) = 0.0176 per KiB, so one "
    "point of accuracy is worth 0.57 KiB. At the 5 USD per MiB of a hand-held satellite terminal it would be 1.8 per "
    "KiB, and nothing should be sent; at 5 USD per GiB 0.0017.",
    "all prices: 0.05 USD per MiB for roaming machine data, 5 for satellite, 100 USD for an hour of inspection",
)
_add(
    "fresh-answers",
    {"quality": 1.0, "latency_per_s": 0.33},
    "Answers steer something now: latency_price(quality=1, retention=0.9672, fps=10) = 0.33 per s. In the embedded "
    "world 96.7 per cent of the cells have the same answer a frame of 100 ms later (measured, train split), so an "
    "answer loses a third of its worth in a second, and 8 points at a deadline of 250 ms.",
    "that the answer is used once, when it comes, for the view of that moment",
)
