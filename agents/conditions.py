"""Weights of the objective as inputs of a policy: their ranges, how they are scaled, and their text form.

A policy that is conditioned on its objective sees, behind the observation, one number in 0..1 for each named weight.
All weights count relative to the weight of quality: a common factor changes no decision. Imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from adaptsplit.config import Config, parse
from adaptsplit.errors import ConfigError
from adaptsplit.objective import WEIGHTS, Objective

Array = NDArray[Any]
Priced = Literal["energy_per_j", "bytes_per_kib", "switch", "miss", "latency_per_s"]


class Condition(Config):
    """One weight that a policy is conditioned on, from 0 to ``high`` (units of ``Objective``, at quality weight 1).

    The scale is ``ln(1 + w / low) / ln(1 + high / low)``: logarithmic above ``low``, linear below, so that a price of
    nothing is a point of it. Training draws it uniformly, which is log-uniform above ``low``.
    """

    weight: Priced
    low: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Condition:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self

    def scaled(self, value: float) -> float:
        """Return the input, 0..1, that stands for a weight; ConfigError outside 0 to ``high``."""
        if not 0.0 <= value <= self.high * (1 + 1e-9):
            raise ConfigError(
                f"{self.weight}={value:g} (at quality weight 1): the policy was trained for 0 to {self.high:g}; "
                "name a value inside, or train it for a wider range"
            )
        return math.log1p(value / self.low) / math.log1p(self.high / self.low)

    def value(self, scaled: float) -> float:
        """Return the weight that an input of 0..1 stands for: the inverse of ``scaled``."""
        return self.low * math.expm1(scaled * math.log1p(self.high / self.low))


DEFAULT_CONDITIONS = (
    Condition(weight="energy_per_j", low=0.03, high=3.0),
    Condition(weight="bytes_per_kib", low=0.0005, high=0.05),
)
"""A decade above and below the prices of the shipped objectives (0.3 to 1 per J, 0.002 to 0.018 per KiB)."""


def parse_condition(text: str) -> Condition:
    """Read ``energy_per_j=0.03:3``; ConfigError names what is wrong."""
    weight, equals, bounds = text.partition("=")
    low, colon, high = bounds.partition(":")
    if not (equals and colon):
        raise ConfigError(f"condition {text!r}: expected WEIGHT=LOW:HIGH, such as energy_per_j=0.03:3")
    try:
        value = {"weight": weight.strip(), "low": float(low), "high": float(high)}
    except ValueError as error:
        raise ConfigError(f"condition {text!r}: bounds that are no numbers; write WEIGHT=LOW:HIGH") from error
    return parse(Condition, value, f"condition {text!r}")


def check_conditions(conditions: Sequence[Condition]) -> tuple[Condition, ...]:
    """Return them as a tuple; ConfigError for none, or for a weight that is named twice."""
    names = [condition.weight for condition in conditions]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"conditions on {', '.join(names) or 'nothing'}: name at least one weight, each once")
    return tuple(conditions)


def relative(objective: Objective) -> dict[str, float]:
    """Return the five prices of an objective at quality weight 1; ConfigError when quality counts nothing."""
    if objective.quality <= 0:
        raise ConfigError(f"objective with quality weight {objective.quality:g}: expected one above 0 to divide by")
    return {name: getattr(objective, name) / objective.quality for name in WEIGHTS if name != "quality"}


def inputs_of(conditions: Sequence[Condition], objective: Objective) -> Array:
    """Return (C,) f4, the inputs that stand for an objective; ConfigError for a weight outside its range."""
    prices = relative(objective)
    return np.array([condition.scaled(prices[condition.weight]) for condition in conditions], dtype=np.float32)


def objective_at(conditions: Sequence[Condition], base: Objective, scaled: Array) -> Objective:
    """Return ``base`` with the conditioned weights at inputs (C,) of 0..1, relative to its quality weight."""
    pairs = zip(conditions, scaled, strict=True)
    return base.model_copy(
        update={condition.weight: base.quality * condition.value(float(u)) for condition, u in pairs}
    )


def spread(conditions: Sequence[Condition], base: Objective, count: int, seed: int = 0) -> list[Objective]:
    """Return ``count`` objectives spread over the conditions' ranges (a Latin hypercube)."""
    rng = np.random.default_rng(seed)
    places = [(rng.permutation(count) + 0.5) / count for _ in conditions]
    return [objective_at(conditions, base, np.array(row)) for row in zip(*places, strict=True)]
