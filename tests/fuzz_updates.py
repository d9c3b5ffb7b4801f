"""Targets of fuzzing: policy updates on their way to a device."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fuzz_files import manifest_text
from fuzz_seeds import (
    KEY,
    NOW,
    agent,
    desired,
    envelope,
    statement,
)
from fuzzing import Target

from adaptsplit import fuzzing as fz
from adaptsplit.device_bridge.control import (
    PolicyReported,
)
from adaptsplit.device_bridge.policy_device import RefusingPart
from adaptsplit.device_bridge.policy_part import PolicyPart
from adaptsplit.device_bridge.policy_update import split_update
from adaptsplit.device_bridge.policy_updater import PolicyUpdater
from adaptsplit.errors import MessageError
from adaptsplit.signing import Trust


def updater() -> Target:
    """Announcements and chunks of policies: each ends as a report or in nothing, and no policy changes."""
    trust = Trust((KEY.public_key(),), clock=lambda: float(NOW))
    said: list[PolicyReported] = []
    store: Any = SimpleNamespace(
        state=SimpleNamespace(trial=None, last=None), check=lambda data: trust.check(data, "policy/desired"),
        flush=lambda: None, discard=lambda result: None, base=None,
    )  # fmt: skip
    active: Any = SimpleNamespace(signed=None, digest="0" * 64)
    host: Any = SimpleNamespace(say=said.append)
    machine = PolicyUpdater(store, host, active)
    part: Any = PolicyPart.__new__(PolicyPart)
    refusing = RefusingPart("why")
    refusing.started(agent())
    part._updater, part._post = machine, lambda act: act(0.0)
    whole = envelope(desired())
    leaves = itertools.cycle((f"policy/chunk/{'2' * 64}/0", f"policy/chunk/{'2' * 64}/4", "policy/chunk/x/99999999"))

    def read(data: bytes) -> None:
        part.message(next(leaves), data[:1024], 0.0)
        part.message("policy/desired", data, 0.0)
        refusing.message("policy/desired", data, 0.0)
        machine.tick(1e9)
        assert machine.active is active
        last = said[-1] if said else None
        said.clear()
        if last is None or last.status in ("REJECTED", "FAILED"):
            raise MessageError("nothing came of it" if last is None else last.detail)

    return Target([whole], [fz.json_of(whole)], read, 20_000)


def update() -> Target:
    """The bytes of an update whose hashes all hold, as a thief of the signing key could make them."""
    inner, announced, said = b"12345", desired(), statement()
    entry = {"policy.npz": {"sha256": hashlib.sha256(inner).hexdigest(), "bytes": len(inner)}}
    manifest = json.dumps({**json.loads(manifest_text()), "files": entry}).encode()
    mutate = fz.json_of(manifest)

    def read(data: bytes) -> None:
        size, digest = max(len(data) - len(inner), 1), hashlib.sha256(data).hexdigest()
        sizes = {"size": len(data), "sha256": digest, "manifest_bytes": size}
        signed = said.model_copy(update={"manifest": hashlib.sha256(data[:size]).hexdigest()})
        split_update(data, announced.model_copy(update=sizes), signed, b"")

    return Target([manifest + inner], [lambda rng: mutate(rng) + inner], read, 20_000)


UPDATES: dict[str, Callable[[], Target]] = {"policy-updater": updater, "policy-update": update}
