"""How a device starts with or without policy updates: which bundle it runs, and the part that hears announcements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptsplit.bundle import Bundle, load_bundle
from adaptsplit.bundle_sign import trust_of
from adaptsplit.device_bridge.parts import DevicePart
from adaptsplit.device_bridge.policy_canary import CanaryLimits
from adaptsplit.device_bridge.policy_part import PolicyPart, RefusingPart, learner_folder
from adaptsplit.device_bridge.policy_store import PolicyStore
from adaptsplit.errors import ConfigError

OFF = "policy updates need --trust KEY and --policies DIR; this device was started without"
NOT_RUN = "this device does not run its bundle's controller (--controller has no 'bundle')"


@dataclass(frozen=True, slots=True)
class PolicySource:
    """Where a device's policy comes from: the options of ``adaptsplit device``.

    bundle: the factory bundle. trust, memory: as ``trust_of``. policies: folder of the policy store, None for no
    updates. canary: how a new policy is tried.
    """

    bundle: Path
    trust: Sequence[Path] = ()
    memory: Path | None = None
    policies: Path | None = None
    canary: CanaryLimits = field(default_factory=CanaryLimits)


@dataclass(frozen=True, slots=True)
class StartedPolicy:
    """What a device runs: its bundle, where its learner keeps what it learned, and its part for updates."""

    bundle: Bundle
    keep: Path | None
    part: DevicePart

    @property
    def updates(self) -> str:
        """Say whether policies are taken over the air."""
        if isinstance(self.part, PolicyPart):
            return "policy updates are taken"
        return "policy updates are refused (they need --trust, --policies, and the controller 'bundle')"


def start_policy(source: PolicySource, controllers: Sequence[str], keep: Path | None) -> StartedPolicy:
    """Open the policy store, or load the bundle where there is none; RefusedBundle where nothing good is there."""
    trust = trust_of(source.trust, source.memory)
    if source.policies is None:
        return StartedPolicy(load_bundle(source.bundle, trust), keep, RefusingPart(OFF))
    if trust is None:
        raise ConfigError("--policies without --trust; name the public key whose policies are taken with --trust")
    store = PolicyStore(source.policies, trust)
    opened = store.open(source.bundle)
    folder = learner_folder(keep, store, opened.bundle)
    if "bundle" not in controllers:
        store.park()
        store.close()
        return StartedPolicy(opened.bundle, folder, RefusingPart(NOT_RUN))
    return StartedPolicy(opened.bundle, folder, PolicyPart(store, opened, source.canary, keep))
