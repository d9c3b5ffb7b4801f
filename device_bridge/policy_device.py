"""How a device starts with or without policy updates: which bundle it runs, and the part that hears announcements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adaptsplit.bundle import Bundle, load_bundle
from adaptsplit.bundle_sign import trust_of
from adaptsplit.device_bridge.control import PolicyReported, parse_control
from adaptsplit.device_bridge.parts import DevicePart, QuietPart
from adaptsplit.device_bridge.policy_canary import CanaryLimits
from adaptsplit.device_bridge.policy_reasons import Reason
from adaptsplit.device_bridge.topics import DESIRED, REPORTED
from adaptsplit.errors import ConfigError, MessageError

if TYPE_CHECKING:
    from adaptsplit.device_bridge.agent import DeviceAgent

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


class RefusingPart(QuietPart):
    """Answers every announcement of a policy with NOT_ENABLED and ``why``: the device cannot take any."""

    name = "policy"
    leaves: tuple[str, ...] = (DESIRED,)

    def __init__(self, why: str) -> None:
        self._why = why
        self._agent: DeviceAgent | None = None

    def started(self, agent: DeviceAgent) -> None:
        """Begin."""
        self._agent = agent

    def message(self, leaf: str, payload: bytes, now: float) -> None:
        """Refuse."""
        if not payload or self._agent is None:
            return
        try:
            job = str(getattr(parse_control(payload)[1], "job", ""))
        except MessageError:
            job = ""
        reported = PolicyReported(job=job, version=0, status="REJECTED", reason=Reason.NOT_ENABLED, detail=self._why)
        self._agent.link.tell(REPORTED, reported, retain=True)


@dataclass(frozen=True, slots=True)
class StartedPolicy:
    """What a device runs: its bundle, where its learner keeps what it learned, and its part for updates."""

    bundle: Bundle
    keep: Path | None
    part: DevicePart

    @property
    def updates(self) -> str:
        """Say whether policies are taken over the air."""
        if isinstance(self.part, RefusingPart):
            return "policy updates are refused (they need --trust, --policies, and the controller 'bundle')"
        return "policy updates are taken"


def start_policy(source: PolicySource, controllers: Sequence[str], keep: Path | None) -> StartedPolicy:
    """Open the policy store, or load the bundle where there is none; RefusedBundle where nothing good is there."""
    trust = trust_of(source.trust, source.memory)
    if source.policies is None:
        return StartedPolicy(load_bundle(source.bundle, trust), keep, RefusingPart(OFF))
    if trust is None:
        raise ConfigError("--policies without --trust; name the public key whose policies are taken with --trust")
    from adaptsplit.device_bridge.policy_part import PolicyPart, learner_folder  # here: few devices take updates
    from adaptsplit.device_bridge.policy_store import PolicyStore

    store = PolicyStore(source.policies, trust)
    opened = store.open(source.bundle)
    folder = learner_folder(keep, store, opened.bundle)
    if "bundle" not in controllers:
        store.park()
        store.close()
        return StartedPolicy(opened.bundle, folder, RefusingPart(NOT_RUN))
    return StartedPolicy(opened.bundle, folder, PolicyPart(store, opened, source.canary, keep))
