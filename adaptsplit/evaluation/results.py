"""The schema of ``results.json``, and reading and writing it.

One document holds all numbers of an evaluation; the report and the terminal tables are made from it. A number that is
undefined (no frame was sent, the gap is not told apart from zero, a result never came) is ``null``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from adaptsplit.config import Config
from adaptsplit.errors import ConfigError
from adaptsplit.evaluation.documents import Document, read_document
from adaptsplit.evaluation.metrics import LATENCIES, NAMES, PERCENTILES

SCHEMA: Final = "adaptsplit.results/1"
MAX_BYTES = 64 << 20

Number = float | None
Bounds = Annotated[tuple[Number, Number], Field(description="95 % confidence interval: low, high")]
KINDS = ("static", "rule", "bandit", "learned", "oracle")
Kind = Literal["static", "rule", "bandit", "learned", "oracle"]

GAPS = {"gap_closed": "oracle-informed", "gap_closed_0": "oracle-informed-0"}
"""Metric of the gap closed, and the oracle that it is measured against."""
EXTRA = ("reward_iqm", "regret", *GAPS)


class Estimate(Config):
    """A number with its 95 % confidence interval."""

    value: Number
    low: Number
    high: Number


class Paired(Config):
    """Paired comparison with one reference on the same episodes."""

    reference: str
    difference: dict[str, Estimate]
    probability_of_improvement: Estimate


class ControllerResult(Config):
    """All that is known of one controller; ``metrics`` and ``ci95`` have the same keys."""

    name: str
    kind: Kind
    runs: int = Field(ge=1, description="training runs pooled in it")
    metrics: dict[str, Number | dict[str, Number]]
    ci95: dict[str, Bounds | dict[str, Bounds] | None]
    paired: dict[str, Paired]
    shares: dict[str, dict[str, float]]

    @model_validator(mode="after")
    def _complete(self) -> ControllerResult:
        expected = {*NAMES, *EXTRA, *(metric.name for metric in LATENCIES)}
        for label, found in (("metrics", set(self.metrics)), ("ci95", set(self.ci95))):
            if found != expected:
                raise ValueError(f"{label} of {self.name!r}: {sorted(found ^ expected)} missing or unknown")
        for metric in LATENCIES:
            percentiles = self.metrics[metric.name]
            if not isinstance(percentiles, dict) or set(percentiles) != set(PERCENTILES):
                raise ValueError(f"{metric.name} of {self.name!r}: expected {sorted(PERCENTILES)}")
        return self

    def number(self, metric: str, percentile: str | None = None) -> Number:
        """Return one metric (or one percentile of a latency)."""
        value = self.metrics[metric]
        return value.get(percentile or "p50") if isinstance(value, dict) else value

    def bounds(self, metric: str, percentile: str | None = None) -> tuple[Number, Number]:
        """Return its confidence interval, (None, None) where it is unknown."""
        value = self.ci95[metric]
        if isinstance(value, dict):
            return value.get(percentile or "p50", (None, None))
        return value or (None, None)


class BestStatic(Config):
    """The best static decision, stated twice."""

    hindsight: str = Field(description="best on the evaluated episodes: the harder mark, the headline's reference")
    chosen_on_train: str = Field(description="best on the train split: what could have been chosen beforehand")


class FamilyResult(Config):
    """One controller on the episodes of one link family."""

    controller: str
    reward: Estimate
    quality: Estimate
    difference: Estimate = Field(
        description="reward, paired to the best static decision in hindsight (of all families)"
    )


class Family(Config):
    """Results on one family of links."""

    episodes: int
    recordings: int
    controllers: tuple[FamilyResult, ...]


class Knob(Config):
    """What one knob is worth to the informed oracle: its value with all knobs less its best with this one frozen."""

    knob: Literal["branch", "rate", "threshold"]
    best_value: str = Field(description="the value at which freezing costs least")
    frozen_reward: float
    worth: Estimate
    by_value: dict[str, float] = Field(description="the oracle's reward with the knob frozen at each value")


class Knobs(Config):
    """The worth of the three knobs, measured with ``oracle`` on the first ``episodes`` episodes."""

    oracle: str
    episodes: int
    all_knobs_reward: float
    knobs: tuple[Knob, ...]


class Gap(Config):
    """The gap between an oracle and the best static decision in hindsight: the denominator of gap closed."""

    oracle: str
    difference: Estimate
    defined: bool


class ResultsDocument(Document):
    """What ``results.json`` holds."""

    schema_: Literal["adaptsplit.results/1"] = Field(alias="schema")
    version: str
    created: str
    scenario: str
    description: str
    seed: int
    split: str
    episodes: int
    frames_per_episode: int
    fps: float
    deadline_ms: float
    hashes: dict[str, str]
    objective: dict[str, Any]
    space: dict[str, Any]
    best_static: BestStatic
    controllers: tuple[ControllerResult, ...]
    gap: dict[str, Gap]
    families: dict[str, Family]
    knobs: Knobs | None

    @model_validator(mode="after")
    def _references(self) -> ResultsDocument:
        names = [controller.name for controller in self.controllers]
        if len(set(names)) != len(names):
            raise ValueError("controllers: each name once")
        for name in (self.best_static.hindsight, self.best_static.chosen_on_train):
            if name not in names:
                raise ValueError(f"best_static: {name!r} is not among the controllers")
        return self

    def controller(self, name: str) -> ControllerResult:
        """Return the result of one controller; ConfigError names what is known."""
        for found in self.controllers:
            if found.name == name:
                return found
        raise ConfigError(f"no results of {name!r}; known: {', '.join(c.name for c in self.controllers)}")

    def of_kind(self, *kinds: str) -> list[ControllerResult]:
        """Return the controllers of these kinds, best reward first."""
        found = [controller for controller in self.controllers if controller.kind in kinds]
        return sorted(found, key=lambda controller: -(controller.number("reward") or 0.0))


def read_results(path: str | Path) -> ResultsDocument:
    """Read and check a ``results.json``; DataError names file, fault and cure."""
    absent, damaged = "give the results.json of an evaluation", "make it again with adaptsplit evaluate"
    return read_document(ResultsDocument, path, MAX_BYTES, "a results.json of adaptsplit evaluate", absent, damaged)
