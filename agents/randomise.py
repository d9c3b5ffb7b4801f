"""Domain randomisation: variants of a scenario whose train split has other links, boards, servers and prices.

After Tobin et al. (2017), "Domain randomization for transferring deep neural networks from simulation to the real
world": a policy that has met many worlds treats the real one as one more. Validation and test are the source's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from adaptsplit.agents.conditions import Priced
from adaptsplit.config import Config, parse, read_yaml
from adaptsplit.devices import compute_presets
from adaptsplit.devices.server import ServerSpec, UtilisationLevel
from adaptsplit.errors import ConfigError
from adaptsplit.links import LinkSpec, LinkTrace
from adaptsplit.links.trace import MAX_LOSS
from adaptsplit.scenario import Scenario, load_scenario

Generator = np.random.Generator


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"range {bounds[0]:g} to {bounds[1]:g}: the lower end comes first")
    return bounds


Share = Annotated[float, Field(ge=0, le=0.5)]
Factor = Annotated[float, Field(gt=0, le=100)]
Factors = Annotated[tuple[Factor, Factor], AfterValidator(_ascending)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_ascending)]


class ServerRange(Config):
    """Background work on the edge server: a constant utilisation from the range, in jobs of ``job_s`` (exponential)."""

    utilisation: Annotated[tuple[float, float], AfterValidator(_ascending)] = (0.0, 0.8)
    job_s: float = Field(default=0.015, gt=0)


class Randomisation(Config):
    """What may differ between the worlds that a policy is trained in; factors are drawn log-uniformly.

    ``links``: shipped names or files of scenarios with the same profile (with their links come their radio and their
    priors), or link entries; used in turn beside the scenario's own (``own_links``). ``devices``: names of compute
    presets, drawn evenly; none: the scenario's. ``compute_factor``: on the board's speed. ``rtt_factor`` and
    ``capacity_factor``: on a variant's links. ``loss``: a probability of loss added to theirs, uniform. ``server``:
    background work, or None for the scenario's own. ``objective``: range of each named weight.

    The defaults: compute presets are known within 30 per cent (devices/presets.yaml); the other ranges are assumed.
    """

    links: tuple[str | LinkSpec, ...] = ()
    own_links: bool = True
    devices: tuple[str, ...] = ()
    compute_factor: Factors = (0.7, 1.4)
    rtt_factor: Factors = (0.7, 1.5)
    capacity_factor: Factors = (0.5, 2.0)
    loss: Shares = (0.0, 0.01)
    server: ServerRange | None = None
    objective: dict[Priced, Factors] = Field(default_factory=dict)


SAME = (1.0, 1.0)
LINKS_ONLY: Mapping[str, Any] = {
    "compute_factor": SAME,
    "rtt_factor": SAME,
    "capacity_factor": SAME,
    "loss": (0.0, 0.0),
}
"""Keys that make every range a point: only what is named beside them differs between the variants."""


def load_randomisation(path: Path) -> Randomisation:
    """Read a YAML file; ConfigError lists every fault."""
    return parse(Randomisation, read_yaml(path), str(path))


def edited(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """Return a scenario with keys of its file replaced (typed values); profile, board and link traces are shared.

    Not for keys that change the profile itself (``profile``, ``branches``, ``skip``): ConfigError.
    """
    wrong = sorted(
        set(changes) - set(type(scenario.file).model_fields) | set(changes) & {"profile", "branches", "skip"}
    )
    if wrong:
        raise ConfigError(f"scenario {scenario.name!r}: {wrong[0]!r} cannot be edited in a variant of it")
    variant = Scenario(scenario.file.model_copy(update=dict(changes)), scenario.base, scenario.data)
    variant._profiles, variant._links = scenario._profiles, dict(scenario._links)
    if "device" not in changes:
        variant.compute = scenario.compute
    return variant


def variants(scenario: Scenario, randomisation: Randomisation, count: int, seed: int = 0) -> list[Scenario]:
    """Return ``count`` scenarios that differ from ``scenario`` in the train split, the first being unchanged.

    (The first takes the first source of links; without ``own_links`` that is not the scenario's own.) Sources of links
    are used in turn, so every one has its share as soon as there are as many variants. ConfigError for a named scenario
    of another decision space, or for no source at all.
    """
    found = sources(scenario, randomisation)
    if count < len(found):
        raise ConfigError(f"{count} worlds for {len(found)} sources of links; ask for at least one world for each")
    made = []
    for k in range(count):
        source, rng = found[k % len(found)], np.random.default_rng([seed, 2, k])
        name = f"{scenario.name[:56]}-v{k}"
        made.append(_named(source, name) if k == 0 else _variant(source, randomisation, name, rng))
    return made


def _named(source: Scenario, name: str) -> Scenario:
    source.links("train")  # read once, shared by all variants
    return edited(source, {"name": name})


def sources(scenario: Scenario, randomisation: Randomisation) -> list[Scenario]:
    """Return the scenario as it is on each source of links: its own first, then those of ``randomisation.links``.

    Those of a named scenario have its links in every split; a link entry takes the place of the train links only.
    ConfigError for a named scenario of another decision space, or for no source at all.
    """
    found = [scenario] if randomisation.own_links else []
    for link in randomisation.links:
        found.append(_on_links_of(scenario, link) if isinstance(link, str) else _on_entry(scenario, link))
    if not found:
        raise ConfigError("randomisation: no links; name some under 'links', or leave 'own_links' true")
    return found


def _on_links_of(scenario: Scenario, name: str) -> Scenario:
    other = load_scenario(name, scenario.data)
    if other.space != scenario.space:
        raise ConfigError(f"scenario {name!r}: another decision space than {scenario.name!r}; mix one profile only")
    device = scenario.file.device.model_copy(update={"radio": other.file.device.radio})
    on = edited(scenario, {"device": device, "priors": other.priors, "links": other.file.links})
    on.compute, on._links = scenario.compute, other._links
    return on


def _on_entry(scenario: Scenario, entry: Any) -> Scenario:
    links = scenario.file.links.model_copy(update={"train": [entry]})
    on = edited(scenario, {"links": links})
    on._links.pop("train", None)
    return on


def _variant(source: Scenario, given: Randomisation, name: str, rng: Generator) -> Scenario:
    """Draw one variant. Each number is drawn whether it is used or not, so that ranges do not disturb one another."""
    rtt, capacity, speed = (_factor(rng, r) for r in (given.rtt_factor, given.capacity_factor, given.compute_factor))
    loss, board, work = rng.uniform(*given.loss), rng.integers(max(len(given.devices), 1)), rng.random()
    prices = {str(key): source.objective.quality * _factor(rng, r) for key, r in sorted(given.objective.items())}
    what = f"{source.description} Round trip x {rtt:.3g}, capacity x {capacity:.3g}, loss + {loss:.3g}."
    changes: dict[str, Any] = {
        "name": name,
        "description": what,
        "objective": source.objective.model_copy(update=prices),
    }
    if given.server is not None:
        changes["server"] = _server(given.server, work)
    variant = edited(source, changes)
    preset = compute_presets.get(given.devices[board]) if given.devices else source.compute
    rate = preset.macs_per_s or source.profile("train").host_macs_per_s
    slow = {"macs_per_s": rate * speed, "scalar_slowdown": preset.scalar_slowdown / speed}
    variant.compute = preset.model_copy(update=slow) if speed != 1.0 else preset
    variant._links["train"] = [_shaped(trace, rtt, capacity, loss) for trace in source.links("train")]
    return variant


def _factor(rng: Generator, bounds: tuple[float, float]) -> float:
    return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1]))) if bounds[0] < bounds[1] else bounds[0]


def _server(given: ServerRange, work: float) -> ServerSpec:
    low, high = given.utilisation
    level = UtilisationLevel(utilisation=low + work * (high - low), mean_s=60.0)
    return ServerSpec(utilisation=(level,), job_s=given.job_s)


def _shaped(trace: LinkTrace, rtt: float, capacity: float, loss: float) -> LinkTrace:
    """Return the trace itself where nothing changes, so that variants share it."""
    if rtt == 1.0 and capacity == 1.0 and loss == 0.0:
        return trace
    scaled = trace if capacity == 1.0 else trace.scaled(capacity)
    note = f"round-trip times scaled by {rtt:.6g}, loss raised by {loss:.6g}"
    lost = np.minimum(trace.loss + loss, MAX_LOSS)
    return replace(scaled, rtt_s=trace.rtt_s * rtt, loss=lost, provenance=(*scaled.provenance, note))
