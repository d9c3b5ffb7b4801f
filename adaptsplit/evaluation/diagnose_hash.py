"""Hashes of everything that the numbers of a diagnosis depend on."""

from __future__ import annotations

import hashlib
from importlib import resources

from adaptsplit.scenario import Scenario

SOURCES: dict[str, tuple[str, ...]] = {
    "adaptsplit": ("estimators.py", "objective.py", "decision.py", "observation.py"),
    "adaptsplit.envs": (),
    "adaptsplit.agents": ("oracle.py", "prediction.py", "rules.py"),
    "adaptsplit.evaluation": (
        "statistics.py",
        "sensitivity.py",
        "diagnose.py",
        *(f"diagnose_{part}.py" for part in ("bench", "checks", "fitted", "groups", "relax", "use")),
    ),
}
"""Modules whose text decides the numbers; of a package without names all modules."""


def scenario_hash(scenario: Scenario) -> str:
    """Return the SHA-256 of the scenario's file as it was understood (cheap: nothing is loaded)."""
    return hashlib.sha256(scenario.file.model_dump_json().encode()).hexdigest()


def content_hash(scenario: Scenario, split: str, settings: str = "") -> str:
    """Return the SHA-256 of scenario, settings, profiles, links and the simulator's own text.

    Changes whenever a number of the diagnosis could change. ConfigError or DataError when data is missing.
    """
    digest = hashlib.sha256(f"{scenario_hash(scenario)} {split} {settings} {source_hash()}".encode())
    for part in dict.fromkeys(("train", split)):
        for name, array in sorted(scenario.profile(part).arrays().items()):
            digest.update(name.encode() + array.tobytes())
        for trace in scenario.links(part):
            digest.update(trace.digest().encode())
    return digest.hexdigest()


def source_hash() -> str:
    """Return the SHA-256 of the modules that decide the numbers."""
    digest = hashlib.sha256()
    for package, names in SOURCES.items():
        for item in sorted(resources.files(package).iterdir(), key=lambda entry: entry.name):
            if item.name.endswith(".py") and (item.name in names or not names):
                digest.update(item.name.encode() + item.read_bytes())
    return digest.hexdigest()
