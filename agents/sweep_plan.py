"""What a sweep trains: scenarios x agents x seeds, from a strict YAML file or from the command line's lists.

A sweep file::

    scenarios: [flight-lte, worlds/mine.yaml]    # shipped names, or files beside this one
    agents:
      ppo: {}                                    # an agent with its shipped hyperparameters
      ppo-wide: {agent: ppo, set: {net_arch: [128, 128]}}
      tuned: {agent: ppo, params: tuned/best.yaml}
    seeds: 0-4                                   # or a list
    steps: 500000                                # optional, for all; envs likewise
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from adaptsplit.agents.hyperparameters import AGENTS, Common, load_parameters
from adaptsplit.agents.sweep_trial import TrialSpec, spec_of
from adaptsplit.config import Config, parse, read_yaml
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import Scenario, load_scenario, scenario_names

VALIDATIONS = 25
VALIDATION_EPISODES = 128
MAX_SEEDS = 1000
MAX_TRIALS = 10_000
LABEL = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class AgentEntry(Config):
    """One agent of a sweep: which algorithm (default: the entry's own name), its file, and single values changed."""

    agent: str | None = None
    params: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)


class SweepFile(Config):
    """The form of a sweep file; every unknown key is an error."""

    scenarios: tuple[str, ...] = Field(min_length=1)
    agents: dict[str, AgentEntry] = Field(min_length=1)
    seeds: str | tuple[int, ...] = "0-4"
    steps: int | None = Field(None, ge=1)
    envs: int | None = Field(None, ge=1)


@dataclass(frozen=True, slots=True)
class Trial:
    """One cell of the grid: its spec, run folder, log, and the SHA-256 of everything that its result depends on."""

    scenario: str
    agent: str
    seed: int
    spec: TrialSpec
    folder: Path
    log: Path
    identity: str

    @property
    def name(self) -> str:
        """``scenario/agent/seed``."""
        return self.spec.name


@dataclass(frozen=True, slots=True)
class Sweep:
    """A whole grid: its folder, scenarios by name, and trials."""

    out: Path
    scenarios: dict[str, Scenario]
    agents: tuple[str, ...]
    trials: tuple[Trial, ...]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of ``0-4`` or ``0,1,7`` (or both mixed); ConfigError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first or last - first >= MAX_SEEDS:
            raise ConfigError(f"seeds {text!r}: expected numbers and ranges such as 0-4 or 0,1,7")
        found += range(first, last + 1)
    return tuple(found)


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file; ConfigError lists every fault."""
    return parse(SweepFile, read_yaml(path), str(path))


def plan(
    file: SweepFile,
    out: Path,
    *,
    base: Path = Path(),
    data: Path | None = None,
    validations: int = VALIDATIONS,
    validation_episodes: int = VALIDATION_EPISODES,
) -> Sweep:
    """Check a sweep as a whole and lay it out as trials in ``out/SCENARIO/AGENT/SEED``; nothing is written.

    ``base``: the folder that paths in ``file`` start from. ConfigError or UnknownNameError for what cannot be used.
    """
    scenarios = _scenarios(file.scenarios, base, data)
    agents = {label: _parameters(label, entry, file, base) for label, entry in file.agents.items()}
    seeds = parse_seeds(file.seeds) if isinstance(file.seeds, str) else file.seeds
    _check_seeds(seeds)
    if len(scenarios) * len(agents) * len(seeds) > MAX_TRIALS:
        raise ConfigError(f"{len(scenarios) * len(agents) * len(seeds)} trials; a sweep has at most {MAX_TRIALS}")
    trials = [
        _trial(out, scenario, label, agent, parameters, seed, validations, validation_episodes)
        for scenario in scenarios.values()
        for label, (agent, parameters) in agents.items()
        for seed in seeds
    ]
    return Sweep(out, scenarios, tuple(agents), tuple(trials))


def _check_seeds(seeds: Sequence[int]) -> None:
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {list(seeds)}: expected at least one, none negative, each once")


def _scenarios(names: Sequence[str], base: Path, data: Path | None) -> dict[str, Scenario]:
    found: dict[str, Scenario] = {}
    for name in names:
        beside = base / name
        source = beside if name not in scenario_names() and beside.is_file() else name
        scenario = load_scenario(source, data)
        if scenario.name in found:
            raise ConfigError(f"scenario {scenario.name!r} is named twice; name each once, or rename one of the files")
        found[scenario.name] = scenario
    return found


def _parameters(label: str, entry: AgentEntry, file: SweepFile, base: Path) -> tuple[str, Common]:
    """Return the algorithm of an entry, and its whole record with every change applied."""
    if not LABEL.fullmatch(label):
        raise ConfigError(f"agent {label!r}: a name has 1 to 64 of a-z, 0-9, _, . and -, since it names a folder")
    agent = entry.agent or label
    loaded = load_parameters(agent, None if entry.params is None else base / entry.params)
    common = {key: value for key, value in (("steps", file.steps), ("envs", file.envs)) if value is not None}
    return agent, with_changes(agent, loaded, common | entry.set, f"agent {label!r}")


def with_changes(agent: str, parameters: Common, changes: Mapping[str, Any], where: str) -> Common:
    """Return a record with some values changed; ConfigError names an unknown key and the nearest one."""
    return parse(AGENTS[agent], {**parameters.model_dump(mode="json"), **changes}, where)


def _trial(out: Path, scenario: Scenario, label: str, agent: str, parameters: Common, seed: int, validations: int,
           validation_episodes: int) -> Trial:  # fmt: skip
    folder = out / scenario.name / label
    name = f"{scenario.name}/{label}/{seed}"
    spec = spec_of(scenario, name, agent, parameters, (seed,), folder, validations, validation_episodes)
    return Trial(scenario.name, label, seed, spec, folder / str(seed), folder / f"{seed}.log", identity(spec))


def identity(spec: TrialSpec) -> str:
    """Return the SHA-256 of what a trial's result depends on (not of where it is written)."""
    parts = spec.model_dump(mode="json", include={"scenario", "agent", "parameters", "seeds", "validations"})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
