"""Who plays in the league on one scenario: every registered controller, trained agents, oracles."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptsplit.agents import make_controller
from adaptsplit.agents.build import POLICY_FILE
from adaptsplit.controller import Controller, controllers
from adaptsplit.errors import ConfigError, DataError, UnknownNameError
from adaptsplit.evaluation.entrants import Entrant
from adaptsplit.evaluation.league_document import Group
from adaptsplit.evaluation.results import Kind
from adaptsplit.registry import did_you_mean
from adaptsplit.scenario import Scenario

ORACLES = ("oracle-informed", "oracle-informed-0", "oracle-clairvoyant")
NEEDED_ORACLES = ORACLES[:2]
"""The marks that scores are measured against: they always play."""
STATIC = "static"
NOT_ALONE = ("online", "service")
"""These need a run to stand on, or somebody who decides for them."""
PUBLISHED_LEARNED = ("edgerl-style", "navisplit-style")
"""Controllers of the literature that have to be trained: with the published ones, not with the learned ones."""
_GROUPS: tuple[tuple[str, Group], ...] = (
    ("adaptsplit.agents.bandits_probe", "rule"),  # the deadline rule, with probes
    ("adaptsplit.agents.bandits", "bandit"),
    ("adaptsplit.agents.online", "bandit"),
    ("adaptsplit.agents.published", "published"),
    ("adaptsplit.agents.rules", "rule"),
)
_KINDS: Mapping[Group, Kind] = {"bandit": "bandit", "learned": "learned"}


@dataclass(frozen=True, slots=True)
class LineUp:
    """Everybody on one scenario: entrants by group, oracles, and who cannot play and why."""

    entrants: tuple[Entrant, ...]
    groups: dict[str, Group]
    oracles: tuple[str, ...]
    left_out: dict[str, str]
    sources: dict[str, str]
    """SHA-256 of each policy file and of the source of each controller's classes."""

    def of_group(self, *groups: Group) -> list[Entrant]:
        """Return the entrants of these groups."""
        return [entrant for entrant in self.entrants if self.groups[entrant.name] in groups]


def line_up(
    scenario: Scenario, names: Sequence[str] | None, runs: Path | None, learned: Sequence[str] | None
) -> LineUp:
    """Return who plays on ``scenario``.

    ``names``: controllers of the registry, ``random`` and oracles (None: all of them). Trained agents are the folders
    ``runs/SCENARIO/AGENT`` (None: no agents), ``learned`` chooses among them (None: all that are there). A controller
    that cannot be built for this scenario is left out with its reason. UnknownNameError for an unknown name.
    """
    chosen = registered() if names is None else [name for name in names if name not in (STATIC, *ORACLES)]
    entrants: list[Entrant] = []
    groups: dict[str, Group] = {}
    left_out: dict[str, str] = {}
    for name in chosen:
        _check(name)
        _add(name, [name], scenario, entrants, groups, left_out)
    for agent, folders in trained(runs, scenario.name, learned).items():
        _add(agent, [str(folder) for folder in folders], scenario, entrants, groups, left_out)
    wanted = ORACLES if names is None else tuple(o for o in ORACLES if o in names or o in NEEDED_ORACLES)
    return LineUp(tuple(entrants), groups, wanted, left_out, _sources(entrants, runs, scenario.name))


def registered() -> list[str]:
    """Return the registered controllers that decide by themselves."""
    return [name for name in controllers.names() if name not in (STATIC, *NOT_ALONE)]


def _check(name: str) -> None:
    known = [*controllers.names(), *ORACLES]
    if name.partition(":")[0] not in known:
        hint = did_you_mean(name, known)
        raise UnknownNameError(f"league: unknown controller {name!r}{hint} Known: {', '.join(known)}.")


def _add(
    name: str,
    sources: Sequence[str],
    scenario: Scenario,
    entrants: list[Entrant],
    groups: dict[str, Group],
    left_out: dict[str, str],
) -> None:
    try:
        members = tuple(make_controller(source, scenario) for source in sources)
    except (ConfigError, DataError) as error:
        left_out[name] = str(error)
        return
    group = group_of(name, members[0])
    entrants.append(Entrant(name, _KINDS.get(group, "rule"), members))
    groups[name] = group


def group_of(name: str, controller: Controller) -> Group:
    """Return the league's group of a controller: by the module that it comes from, a trained one by its name."""
    if name == "random":
        return "random"
    module = type(controller).__module__
    found = next((group for prefix, group in _GROUPS if module.startswith(prefix)), None)
    if found is not None:
        return found
    return "published" if name in PUBLISHED_LEARNED else "learned"


def trained(runs: Path | None, scenario: str, learned: Sequence[str] | None) -> dict[str, list[Path]]:
    """Return the run folders of each agent: ``runs/SCENARIO/AGENT/SEED``, or ``runs/SCENARIO/AGENT`` itself."""
    place = None if runs is None else runs / scenario
    if place is None or not place.is_dir():
        return {}
    names = [item.name for item in sorted(place.iterdir()) if item.is_dir()]
    found = {}
    for agent in names if learned is None else [name for name in learned if name in names]:
        folders = sorted((path.parent for path in (place / agent).glob(f"*/{POLICY_FILE}")), key=_seed_order)
        if not folders and (place / agent / POLICY_FILE).is_file():
            folders = [place / agent]
        if folders:
            found[agent] = folders
    return found


def _seed_order(folder: Path) -> tuple[int, str]:
    return (int(folder.name) if folder.name.isdigit() else 1 << 30, folder.name)


def _sources(entrants: Sequence[Entrant], runs: Path | None, scenario: str) -> dict[str, str]:
    """What the decisions depend on, beside the scenario."""
    hashes = {}
    for entrant in entrants:
        for module in type(entrant.members[0]).__mro__:
            if module.__module__.startswith("adaptsplit"):
                hashes[module.__module__] = _sha256(Path(inspect.getfile(module)))
    for agent, folders in trained(runs, scenario, None).items():
        if any(entrant.name == agent for entrant in entrants):
            hashes.update({f"policy {agent}/{folder.name}": _sha256(folder / POLICY_FILE) for folder in folders})
    return dict(sorted(hashes.items()))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
