"""Who is evaluated: from names, controllers and run folders to a checked list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from adaptsplit.agents import kind_of, make_controller
from adaptsplit.agents.oracle import LOOKAHEAD_S
from adaptsplit.controller import Controller
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.evaluation.results import KINDS, Kind
from adaptsplit.registry import did_you_mean
from adaptsplit.scenario import Scenario

DEFAULT_AGENTS = (
    "static",
    "random",
    "threshold",
    "deadline",
    "oracle-informed",
    "oracle-informed-0",
    "oracle-clairvoyant",
)
POLICY_FILE = "policy.npz"


@dataclass(frozen=True, slots=True)
class Entrant:
    """One controller of the comparison; several ``members`` are training runs of the same agent, pooled."""

    name: str
    kind: Kind
    members: tuple[Controller, ...]


@dataclass(frozen=True, slots=True)
class Entrants:
    """Everything to run beside the static grid (which is always run: it is the reference)."""

    controllers: tuple[Entrant, ...]
    oracles: tuple[str, ...]
    hashes: dict[str, str]


def resolve(agents: Sequence[str | Controller | Entrant], scenario: Scenario) -> Entrants:
    """Turn names into controllers.

    A name is ``static`` or ``static:...`` (part of the grid), an oracle, a controller of the registry, a run's folder,
    or a folder of run folders: those are training runs of one agent, pooled, with the run as a level of the bootstrap.
    UnknownNameError or ConfigError for what cannot be used.
    """
    controllers: dict[str, Entrant] = {}
    oracles: dict[str, None] = {}
    hashes: dict[str, str] = {}
    for agent in agents:
        if isinstance(agent, str) and (agent == "static" or agent.startswith("static:")):
            _check_static(agent, scenario)
        elif isinstance(agent, str) and agent.startswith("oracle"):
            oracles[_oracle(agent)] = None
        else:
            entrant = _entrant(agent, scenario, hashes)
            name = _free_name(entrant.name, controllers, repeated=isinstance(agent, str))
            controllers[name] = Entrant(name, entrant.kind, entrant.members)
    return Entrants(tuple(controllers.values()), tuple(oracles), hashes)


def _check_static(agent: str, scenario: Scenario) -> None:
    _, _, decision = agent.partition(":")
    if decision:
        scenario.space.parse(decision)


def _oracle(name: str) -> str:
    if name not in LOOKAHEAD_S:
        known = ", ".join(LOOKAHEAD_S)
        raise UnknownNameError(f"unknown oracle {name!r}{did_you_mean(name, LOOKAHEAD_S)} Known: {known}.")
    return name


def _free_name(name: str, taken: dict[str, Entrant], *, repeated: bool) -> str:
    if name not in taken:
        return name
    if repeated:
        raise ConfigError(f"agent {name!r} is named twice; name each once, or rename one of the folders")
    return next(f"{name}-{i}" for i in range(2, len(taken) + 3) if f"{name}-{i}" not in taken)


def _entrant(agent: str | Controller | Entrant, scenario: Scenario, hashes: dict[str, str]) -> Entrant:
    if isinstance(agent, Entrant):
        return agent
    if not isinstance(agent, str):
        return Entrant(agent.name, _kind(agent), (agent,))
    folder = Path(agent)
    runs = sorted(path.parent for path in folder.glob(f"*/{POLICY_FILE}")) if folder.is_dir() else []
    if runs and not (folder / POLICY_FILE).is_file():
        members = tuple(make_controller(str(run), scenario) for run in runs)
        hashes.update({f"policy {run.name}": _sha256(run / POLICY_FILE) for run in runs})
        return Entrant(folder.resolve().name, _kind(members[0]), members)
    controller = make_controller(agent, scenario)
    if (folder / POLICY_FILE).is_file():
        hashes[f"policy {controller.name}"] = _sha256(folder / POLICY_FILE)
    return Entrant(controller.name, _kind(controller), (controller,))


def _kind(controller: Controller) -> Kind:
    """The results' kinds are fewer: what is neither bandit nor learned is a rule."""
    kind = kind_of(controller)
    return cast("Kind", kind) if kind in KINDS else "rule"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
