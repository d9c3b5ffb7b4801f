"""The schema of ``league.json``: all controllers on all scenarios, as ranks, scores, duels and anatomy.

A normalised score is 0 for the best static decision in hindsight and 1 for ``oracle-informed-0`` on the same episodes;
rewards and differences are per frame; intervals are 95 %.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from adaptsplit.config import Config
from adaptsplit.errors import ConfigError
from adaptsplit.evaluation.documents import Document, read_document
from adaptsplit.evaluation.results import Estimate

SCHEMA: Final = "adaptsplit.league/1"
MAX_BYTES = 64 << 20
ALL, PAYS = "all", "pays"  # tables of standings: every scenario, and those in which adapting pays

Group = Literal["static", "random", "rule", "published", "bandit", "learned", "oracle"]
GROUPS: tuple[Group, ...] = ("static", "random", "rule", "published", "bandit", "learned", "oracle")
Verdict = Literal["better", "same", "worse"]
Count = Annotated[int, Field(ge=0)]


class Cell(Config):
    """One controller on one scenario. ``score`` and ``score_inf`` are None where that gap is undefined."""

    reward: float
    difference: Estimate = Field(description="reward, paired to the best static decision in hindsight")
    score: Estimate | None = Field(description="gap closed to informed(0)")
    score_inf: Estimate | None = Field(description="gap closed to informed(inf)")
    quality: float
    bytes: float
    energy_mj: float


class Roles(Config):
    """Who stands for whom on one scenario: the learned agent is chosen on validation, all others in hindsight."""

    best_static: str
    best_static_train: str
    published: str | None
    bandit: str | None
    rule: str | None
    learned: str | None


class ScenarioEntry(Config):
    """One scenario of the league."""

    name: str
    description: str
    diagnosis: Literal["yes", "no", "unclear"] | None = Field(description="the shipped diagnosis: does adapting pay")
    gap_0: Estimate | None = Field(description="informed(0) less the best static decision")
    gap_inf: Estimate | None = Field(description="informed(inf) less the best static decision")
    pays: bool = Field(description="gap_0 is above zero beyond doubt here, and the diagnosis does not say no")
    episodes: int
    recordings: int
    roles: Roles
    validation: dict[str, float] = Field(description="mean reward of each learned agent on validation episodes")
    cells: dict[str, Cell]
    left_out: dict[str, str] = Field(description="controllers that cannot play here, and why")


class Skipped(Config):
    """A scenario that was not played, and why."""

    name: str
    reason: str


class Tally(Config):
    """On how many scenarios a controller is significantly better than a reference, not told apart, or worse."""

    reference: str
    better: Count
    same: Count
    worse: Count


class Standing(Config):
    """One controller over all scenarios of a table. ``rank`` is None for oracles and for who missed a scenario."""

    controller: str
    group: Group
    runs: int = Field(ge=1, description="training runs pooled, the fewest on any scenario")
    scenarios: int = Field(ge=1, description="scenarios that it played, of the table's")
    score: Estimate | None = Field(description="mean normalised score over scenarios with a defined gap")
    gap_0: Estimate | None = Field(description="pooled: sum of gains over sum of gaps to informed(0)")
    gap_inf: Estimate | None = Field(description="the same to informed(inf)")
    rank: Estimate | None
    improvement: Estimate = Field(description="probability of a better episode than the best static decision's")
    beaten_by_learned: Estimate | None = Field(description="probability that the learned agent's episode is better")
    tallies: tuple[Tally, ...]


class Duel(Config):
    """The learned agent (chosen on validation) against one rival on one scenario.

    ``p`` is two-sided, from the bootstrap; ``p_holm`` is corrected over the scenarios of the same kind of rival.
    """

    scenario: str
    learned: str
    rival_kind: Literal["static", "published"]
    rival: str
    difference: Estimate
    improvement: Estimate
    p: float = Field(ge=0, le=1)
    p_holm: float = Field(ge=0, le=1)
    verdict: Verdict


class Headline(Config):
    """The learned agents, chosen on validation, over the scenarios in which adapting pays."""

    scenarios: Count
    at_least_static: Count = Field(description="scenarios with a mean not below the best static decision's")
    better_static: Count = Field(description="significantly above it, after Holm's correction")
    at_least_published: Count
    better_published: Count
    gap_0: Estimate | None
    gap_inf: Estimate | None


class Profile(Config):
    """Performance profile: the share of scenario-episodes with a normalised score of at least each ``tau``."""

    controller: str
    group: Group
    share: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class Profiles(Config):
    """Profiles over common thresholds."""

    tau: tuple[float, ...]
    curves: tuple[Profile, ...]


class Condition(Config):
    """What one controller decided while the link was in one state; each group of shares sums to 1."""

    frames: Count
    reward: float | None
    shares: dict[str, dict[str, float]]


class AnatomyRow(Config):
    """One controller's decisions by the link's state (``CONDITIONS`` of ``league_anatomy``)."""

    controller: str
    role: str
    conditions: dict[str, Condition]


class Anatomy(Config):
    """Who chooses what on one scenario; ``edges_bps`` divide the estimated goodput into thirds."""

    scenario: str
    episodes: int
    edges_bps: tuple[float, float]
    rows: tuple[AnatomyRow, ...]


class AblationRow(Config):
    """One agent trained without something; ``loss`` is the full agent's reward less this one's."""

    kind: Literal["group", "knob"]
    removed: str
    value: str | None = Field(description="where a frozen knob stands")
    runs: int
    reward: float
    loss: Estimate
    score: Estimate | None = Field(description="gap closed to informed(0) that is left")


class Ablation(Config):
    """All ablations of one agent on one scenario."""

    scenario: str
    agent: str
    runs: int
    steps: int | None
    reward: float
    score: Estimate | None
    rows: tuple[AblationRow, ...]


class NaviRow(Config):
    """One controller against the cheapest static decision of almost the best quality."""

    controller: str
    group: Group
    bytes: float
    quality: float
    bytes_saved: Estimate | None = Field(description="share of the reference's bytes; None where it sends none")
    quality_difference: Estimate
    reached: bool = Field(description="at least 95 % fewer bytes, and the quality not below the reference's")


class NaviBound(Config):
    """What an oracle that pays for bytes alone sends at a quality not below the reference's (``league_navibound``)."""

    oracle: str
    episodes: int
    bytes_per_kib: float = Field(description="the largest price found at which the quality is not below")
    bytes: float
    quality: float
    reference_bytes: float = Field(description="of the reference on the same episodes")
    bytes_saved: Estimate | None
    quality_difference: Estimate


class NaviSplit(Config):
    """NaviSplit's headline on our data: bytes saved at no loss of quality. A point of quality is 0.01."""

    scenario: str
    best_quality: str
    reference: str
    tolerance: float
    reference_bytes: float
    reference_quality: float
    rows: tuple[NaviRow, ...]
    bounds: tuple[NaviBound, ...] = ()


class League(Document):
    """What ``league.json`` holds."""

    schema_: Literal["adaptsplit.league/1"] = Field(alias="schema")
    version: str
    created: str
    command: str
    split: str
    seed: int
    episodes: int
    learned: tuple[str, ...]
    scenarios: tuple[ScenarioEntry, ...]
    skipped: tuple[Skipped, ...]
    failed_runs: tuple[Skipped, ...] = ()
    headline: Headline | None
    standings: dict[str, tuple[Standing, ...]]
    duels: tuple[Duel, ...]
    profiles: Profiles
    anatomy: tuple[Anatomy, ...]
    ablations: tuple[Ablation, ...]
    navisplit: NaviSplit | None

    @model_validator(mode="after")
    def _consistent(self) -> League:
        if unknown := set(self.standings) - {ALL, PAYS}:
            raise ValueError(f"standings: {sorted(unknown)}; expected {ALL} and {PAYS}")
        names = [entry.name for entry in self.scenarios]
        if len(set(names)) != len(names):
            raise ValueError("scenarios: each name once")
        return self

    def entry(self, name: str) -> ScenarioEntry:
        """Return one scenario; ConfigError names what is known."""
        for found in self.scenarios:
            if found.name == name:
                return found
        raise ConfigError(
            f"scenario {name!r} is not in this league; known: {', '.join(e.name for e in self.scenarios)}"
        )

    def table(self) -> tuple[Standing, ...]:
        """Return the standings that are shown first: where adapting pays, else of every scenario."""
        return self.standings.get(PAYS) or self.standings.get(ALL, ())


def read_league(path: str | Path) -> League:
    """Read and check a ``league.json``; DataError names file, fault and cure."""
    absent, damaged = "make it with adaptsplit league --out", "make it again with adaptsplit league"
    return read_document(League, path, MAX_BYTES, "a league.json of adaptsplit league", absent, damaged)
