"""The schema of ``diagnosis.json``. Differences and worths are in reward per frame, with 95 % intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from adaptsplit.config import Config
from adaptsplit.errors import ConfigError
from adaptsplit.evaluation.documents import Document, read_document
from adaptsplit.evaluation.results import Estimate

SCHEMA: Final = "adaptsplit.diagnosis/1"
MAX_BYTES = 16 << 20

Pays = Literal["yes", "no", "unclear"]
Role = Literal["static", "rule", "fitted", "oracle", "bound"]


class Standing(Config):
    """One controller: its reward, and the paired difference to the best static decision in hindsight."""

    name: str
    role: Role
    episodes: int = Field(description="the first episodes, where not all were played")
    reward: Estimate
    difference: Estimate


class Use(Config):
    """Which decisions an oracle takes: how many, how many cover 90 % of the decided frames, the most frequent ones."""

    oracle: str
    distinct: int
    covering_90: int
    top: str
    top_share: float
    shares: dict[str, float] = Field(description="share of the decided frames of the eight most frequent decisions")


class Knob(Config):
    """What one knob is worth to the informed oracle: all knobs free, less this one frozen at its best value."""

    knob: Literal["branch", "rate", "exit rule", "skip", "patience"]
    best_value: str
    worth: Estimate


class Relaxation(Config):
    """What the informed oracle gains when one constraint is taken away.

    ``worth`` of a price is the gain in all other terms; ``paid`` is what the price takes away now, None for physics.
    ``changed`` is the share of frames on which the oracle decides otherwise, or another part answers.
    """

    constraint: str
    meaning: str
    worth: Estimate
    paid: float | None
    changed: float


class Group(Config):
    """What one group of observation fields is worth to the fitted controller.

    ``worth``: reward with all groups, less that of a controller fitted without this one. ``reliance``: less that of the
    same controller when the group stands at its mean. ``moves`` is false for a group that never changes here.
    """

    group: str
    fields: tuple[str, ...]
    moves: bool
    worth: Estimate
    reliance: Estimate


class Fitted(Config):
    """The cheap fitted controller that the groups are measured with."""

    states: int
    decisions: int
    horizon_frames: int
    difference: Estimate = Field(description="to the best static decision in hindsight")
    groups: tuple[Group, ...]


class WeightChange(Config):
    """The scenario under another weight of one term: best static decision, margin of informed(0) over it, ranking."""

    weight: str
    factor: float
    best_static: str
    margin: Estimate
    ranking: tuple[str, ...]


class Sufficiency(Config):
    """Share of link time in which an idle link delivers one message of a pair (branch, codec) by the deadline."""

    easiest: str
    easiest_share: float
    hardest: str
    hardest_share: float


class Caution(Config):
    """One warning; ``text`` holds the number that triggered it."""

    kind: str
    text: str


class Diagnosis(Document):
    """What ``diagnosis.json`` holds."""

    schema_: Literal["adaptsplit.diagnosis/1"] = Field(alias="schema")
    version: str
    scenario: str
    description: str
    hash: str = Field(description="of everything that the numbers depend on (diagnose_catalog.content_hash)")
    scenario_hash: str = Field(description="of the scenario's file alone")
    split: str
    seed: int
    quick: bool
    episodes: int
    frames_per_episode: int
    seconds: float
    objective: dict[str, Any]
    static_decisions: int
    best_static: str
    chosen_on_train: str
    pays: Pays
    verdict: str
    binding: str | None = Field(description="the constraint whose relaxation is worth most; None when none gains")
    standings: tuple[Standing, ...]
    uses: tuple[Use, ...]
    knobs: tuple[Knob, ...]
    relaxations: tuple[Relaxation, ...]
    fitted: Fitted
    sensitivity: tuple[WeightChange, ...]
    sufficiency: Sufficiency | None
    cautions: tuple[Caution, ...]

    def standing(self, name: str) -> Standing:
        """Return one row; ConfigError names what is known."""
        for row in self.standings:
            if row.name == name:
                return row
        raise ConfigError(f"no standing of {name!r}; known: {', '.join(row.name for row in self.standings)}")


def read_diagnosis(path: Path) -> Diagnosis:
    """Read and check a ``diagnosis.json``; DataError names file, fault and cure."""
    absent, damaged = "make it with scenarios diagnose --out", "make it again with scenarios diagnose --out"
    return read_document(Diagnosis, path, MAX_BYTES, "a diagnosis.json", absent, damaged)
