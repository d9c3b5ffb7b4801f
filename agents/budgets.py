"""Budgets on what a policy may cost on average, their multipliers, and the prices that stand for them.

With costs c_i and budgets b_i, "most quality subject to E[c_i] <= b_i" is the saddle point of quality minus the sum of
mu_i (E[c_i] / b_i - 1): the policy maximises it for given multipliers mu, which rise while a budget is exceeded. As the
objective is linear in its weights, mu_i is nothing but a price of mu_i / b_i on cost i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adaptsplit.config import Config
from adaptsplit.errors import ConfigError
from adaptsplit.objective import Objective

Array = NDArray[Any]
COSTS = ("energy_j_per_frame", "bytes_per_frame", "miss_ratio", "latency_s")
UNITS: Mapping[str, str] = {"energy_j_per_frame": "J", "bytes_per_frame": "bytes", "miss_ratio": "", "latency_s": "s"}


class Budgets(Config):
    """Upper bounds on means; None: no bound.

    Device energy above idle per frame (J), payload per frame (bytes), share of frames without an answer, latency of the
    answered frames (s). ``tolerance``: the relative excess up to which a budget counts as kept.
    """

    energy_j_per_frame: float | None = Field(default=None, gt=0)
    bytes_per_frame: float | None = Field(default=None, gt=0)
    miss_ratio: float | None = Field(default=None, gt=0, lt=1)
    latency_s: float | None = Field(default=None, gt=0)
    tolerance: float = Field(default=0.02, ge=0, le=0.5)

    @model_validator(mode="after")
    def _some(self) -> Budgets:
        if not self.names:
            raise ValueError(f"no budget is given; name one of {', '.join(COSTS)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The budgets that are given, in the order of ``COSTS``."""
        return tuple(name for name in COSTS if getattr(self, name) is not None)

    @property
    def bounds(self) -> Array:
        """(C,) the given budgets."""
        return np.array([getattr(self, name) for name in self.names], dtype=np.float64)

    def costs(self, terms: Array) -> Array:
        """Return (..., C) the costs that are bounded, of mean terms (..., 6) as ``frontier.term_means`` has them."""
        answered = np.maximum(1.0 - terms[..., 4], 1e-9)
        every = {
            "energy_j_per_frame": terms[..., 1],
            "bytes_per_frame": terms[..., 2] * 1024.0,
            "miss_ratio": terms[..., 4],
            "latency_s": terms[..., 5] / answered,
        }
        return np.stack([every[name] for name in self.names], axis=-1)

    def excess(self, terms: Array) -> Array:
        """Return (..., C) cost / budget - 1: above 0 where a budget is exceeded."""
        return np.asarray(self.costs(terms) / self.bounds - 1.0)

    def kept(self, terms: Array) -> bool:
        """Tell whether mean terms (6,) keep every budget within the tolerance."""
        return bool((self.excess(terms) <= self.tolerance).all())

    def describe(self, terms: Array) -> str:
        """Return ``cost (budget)`` of each, for messages and logs."""
        pairs = zip(self.names, self.costs(terms), self.bounds, strict=True)
        return ", ".join(f"{name} {cost:.4g} (budget {bound:.4g} {UNITS[name]})" for name, cost, bound in pairs)

    def objective(self, base: Objective, multipliers: Array) -> Objective:
        """Return ``base`` with the multipliers (C,) as prices.

        A mean latency over answered frames is bounded by mu (l - b) / b on each of them: a price of mu / b per second,
        and mu on a miss, which would otherwise shirk it.
        """
        mu = dict(zip(self.names, (float(m) for m in multipliers), strict=True))

        def price(name: str) -> float:
            return mu[name] / float(getattr(self, name)) if name in mu else 0.0

        return base.model_copy(
            update={
                "family": None,
                "energy_per_j": base.energy_per_j + price("energy_j_per_frame"),
                "bytes_per_kib": base.bytes_per_kib + 1024.0 * price("bytes_per_frame"),
                "miss": base.miss + price("miss_ratio") + mu.get("latency_s", 0.0),
                "latency_per_s": base.latency_per_s + price("latency_s"),
            }
        )


class DualParameters(Config):
    """Gains of the multipliers' update, per update and unit of relative excess.

    ``integral`` alone is dual ascent. ``proportional`` adds the feedback of Stooke, Achiam and Abbeel (2020),
    "Responsive safety in reinforcement learning by PID Lagrangian methods", without the derivative, which damps the
    swings. ``limit``: the greatest multiplier; a budget that drives it there is not kept at any price. The defaults
    were tried on the embedded world, on train and validation data.
    """

    integral: float = Field(default=0.03, gt=0)
    proportional: float = Field(default=0.1, ge=0)
    limit: float = Field(default=10.0, gt=0)


@dataclass(slots=True)
class Multipliers:
    """Multipliers (C,) >= 0 of C budgets, moved by ``update``."""

    count: int
    parameters: DualParameters = field(default_factory=DualParameters)
    value: Array = field(init=False)
    _sum: Array = field(init=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"multipliers of {self.count} budgets: expected at least one")
        self.value, self._sum = np.zeros(self.count), np.zeros(self.count)

    def update(self, excess: Array) -> Array:
        """Move by the relative excess (C,); return the multipliers.

        The sum is kept within 0 and the limit (no wind-up), as is what comes of it.
        """
        p = self.parameters
        self._sum = np.clip(self._sum + p.integral * excess, 0.0, p.limit)
        self.value = np.clip(self._sum + p.proportional * excess, 0.0, p.limit)
        return self.value
