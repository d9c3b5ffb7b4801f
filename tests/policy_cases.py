"""Bundles and policy updates for tests: the shipped scenario's networks, and small policies of random weights."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit import observation as obs
from adaptsplit.agents import PolicyNet, save_policy
from adaptsplit.bundle import Bundle, export_bundle, load_bundle
from adaptsplit.bundle_sign import sign_bundle
from adaptsplit.device_bridge.control import PolicyDesired, PolicyReported, build_control
from adaptsplit.device_bridge.policy_state import Rates
from adaptsplit.device_bridge.policy_update import CHUNK_BYTES, Update
from adaptsplit.device_bridge.policy_updater import Candidate
from adaptsplit.scenario import load_scenario
from adaptsplit.signing import Trust
from adaptsplit.signing_keys import PrivateKey

NOW = 1_763_700_000
SESSION = bytes(range(16))
Edit = Callable[[dict[str, Any]], object]


def write_run(folder: Path, seed: int) -> Path:
    """Write a run's folder with a random network for the scenario ``flight-lte``."""
    folder.mkdir(parents=True)
    space, rng = load_scenario("flight-lte").space, np.random.default_rng(seed)
    shapes = ((obs.SIZE, 32), (32, len(space.table)))
    layers = tuple((rng.normal(0, 0.5, s).astype(np.float32), np.zeros(s[1], dtype=np.float32)) for s in shapes)
    save_policy(folder / "policy.npz", "ppo", space, PolicyNet(layers, "tanh", "flat"))
    return folder


def export_policy(folder: Path, seed: int) -> Path:
    """Export the bundle of a random policy; unsigned."""
    run = write_run(folder / f"ppo-{seed}", seed)
    return export_bundle(str(run), load_scenario("flight-lte"), folder / f"bundle-{seed}").path


def signed_copy(source: Path, to: Path, key: PrivateKey, number: int, edit: Edit | None = None, **how: Any) -> Path:
    """Copy a bundle, change its manifest, and sign it; ``how`` as ``sign_bundle``."""
    shutil.copytree(source, to)
    if edit is not None:
        value = json.loads((to / "manifest.json").read_text())
        edit(value)
        (to / "manifest.json").write_text(json.dumps(value))
    sign_bundle(to, key, number=number, **{"now": NOW, **how})
    return to


def trust_in(key: PrivateKey, now: float = NOW) -> Trust:
    """Return the trust in one key, at a fixed time."""
    return Trust((key.public_key(),), clock=lambda: now)


def update_of(folder: Path) -> Update:
    """Return the update that a signed bundle makes."""
    return Update.of_bundle(load_bundle(folder))


def announce(update: Update, job: str = "1" * 32, **changes: Any) -> PolicyDesired:
    """Return the announcement of an update."""
    data = update.to_bytes()
    values: dict[str, Any] = {
        "job": job,
        "signature": json.loads(update.signature),
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "manifest_bytes": len(update.manifest),
        "chunk_bytes": CHUNK_BYTES,
    }
    return PolicyDesired(**{**values, **changes})


def envelope(desired: PolicyDesired) -> bytes:
    """Return an announcement as it travels."""
    return build_control(desired, seq=1, session=SESSION, ts_ms=0, mono_ms=0.0)


def chunk_of(update: Update, number: int) -> bytes:
    """Return one chunk."""
    return update.to_bytes()[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]


def chunks_in(update: Update) -> int:
    """Return how many chunks an update has."""
    return math.ceil(len(update.to_bytes()) / CHUNK_BYTES)


class FakeHost:
    """A device around an updater: keeps what it says, and builds controllers without a guard."""

    def __init__(self) -> None:
        self.said: list[PolicyReported] = []
        self.candidates: list[Candidate] = []
        self.rates = Rates()

    def say(self, reported: PolicyReported) -> None:
        """Keep a report."""
        self.said.append(reported)

    def prepare(self, bundle: Bundle) -> Candidate:
        """Take the bundle's controller as it is."""
        return Candidate(bundle, bundle.controller, bundle.controller.init(1, np.random.default_rng(0)))

    def ready(self, candidate: Candidate) -> None:
        """Keep a candidate."""
        self.candidates.append(candidate)

    def recent(self) -> Any:
        """Return some observations, one of them damaged."""
        rows = np.random.default_rng(1).random((5, obs.SIZE), dtype=np.float32)
        rows[2, 3] = np.nan
        return rows

    def before(self) -> Rates:
        """Return the rates that were set."""
        return self.rates


def two_versions(folder: Path, key: PrivateKey) -> Path:
    """Make bundles ``v1`` and ``v2`` in ``folder``, each of another policy and signed with ``key``; return it."""
    for number in (1, 2):
        signed_copy(export_policy(folder, number), folder / f"v{number}", key, number)
    return folder
