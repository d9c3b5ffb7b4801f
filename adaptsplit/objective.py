"""How an outcome becomes a reward: named terms and their weights, fixed by a scenario before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit.config import Config
from adaptsplit.outcome import Outcomes, Path


class Objective(Config):
    """Reward of a frame: ``quality * q - energy_per_j * E - bytes_per_kib * KiB - switch * s - miss * m``.

    q is the fraction of cells answered rightly (0 for a miss), E the device's energy for the frame in joules (compute
    above idle and transmission), KiB the payload handed to the link, s = 1 when the branch changed, m = 1 for a miss.
    """

    quality: float = Field(1.0, ge=0)
    energy_per_j: float = Field(0.0, ge=0)
    bytes_per_kib: float = Field(0.0, ge=0)
    switch: float = Field(0.0, ge=0)
    miss: float = Field(0.0, ge=0)

    def weights(self) -> tuple[float, float, float, float, float]:
        """Return (quality, energy per J, per byte, switch, miss), the order of the compiled core."""
        return self.quality, self.energy_per_j, self.bytes_per_kib / 1024.0, self.switch, self.miss

    def terms(self, outcomes: Outcomes) -> dict[str, NDArray[Any]]:
        """Return the weighted terms of each record, same shape; their sum is the reward."""
        return {
            "quality": self.quality * outcomes["quality"].astype(np.float64),
            "energy": -self.energy_per_j * (outcomes["compute_j"].astype(np.float64) + outcomes["radio_j"]),
            "bytes": -self.bytes_per_kib / 1024.0 * outcomes["sent_bytes"],
            "switching": -self.switch * outcomes["switched"].astype(np.float64),
            "miss": -self.miss * (outcomes["path"] == Path.MISS).astype(np.float64),
        }

    def reward(self, outcomes: Outcomes) -> NDArray[Any]:
        """Return the reward of each record, same shape."""
        return np.asarray(np.sum(list(self.terms(outcomes).values()), axis=0))
