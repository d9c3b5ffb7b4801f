"""A roll-out of one update over devices, as a state machine: a few first, the rest once those have kept it.

Nothing here knows MQTT or time: what a device reported goes in, what to publish comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from adaptsplit.device_bridge.control import PolicyReported

FINAL = ("SUCCEEDED", "FAILED", "REJECTED", "ROLLED_BACK")
Outcome: TypeAlias = Literal[
    "WAITING", "PENDING", "QUEUED", "IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED", "ROLLED_BACK"
]


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell a device what it shall run."""

    device: str


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Send a device a chunk that it asked for."""

    device: str
    number: int


Action: TypeAlias = Announce | SendChunk


@dataclass(slots=True)
class DeviceProgress:
    """Where a device stands: WAITING for its turn, PENDING when it has not answered yet, else what it reported."""

    device: str
    status: Outcome = "WAITING"
    stage: str = ""
    reason: str = ""
    detail: str = ""
    progress: float = 0.0

    def row(self) -> dict[str, object]:
        """Return it as plain values."""
        about = {"device": self.device, "status": self.status, "stage": self.stage}
        return {**about, "reason": self.reason, "detail": self.detail, "progress": round(self.progress, 3)}


@dataclass(slots=True)
class Rollout:
    """One update for ``devices``; the first ``canaries`` of them go first, 0 for all at once.

    job: names the request; reports of others are not ours. chunks: how many the update has.
    """

    job: str
    chunks: int
    devices: Sequence[str]
    canaries: int = 0
    states: dict[str, DeviceProgress] = field(init=False)

    def __post_init__(self) -> None:
        self.states = {device: DeviceProgress(device) for device in self.devices}

    def start(self) -> list[Action]:
        """Begin with the canaries, or with all."""
        first = self.devices[: self.canaries] if self.canaries else self.devices
        return self._announce(first)

    def heard(self, device: str, reported: PolicyReported) -> list[Action]:
        """Take a device's report; return what to publish now."""
        state = self.states.get(device)
        if state is None or state.status in ("WAITING", *FINAL) or reported.job != self.job:
            return []
        state.status, state.stage, state.reason = reported.status, reported.stage, reported.reason
        state.detail, state.progress = reported.detail, reported.progress
        wanted = [number for number in reported.missing if number < self.chunks]
        sent: list[Action] = [SendChunk(device, number) for number in wanted]
        return sent + self._next()

    def _next(self) -> list[Action]:
        """The rest, once all canaries have kept it."""
        waiting = [device for device, state in self.states.items() if state.status == "WAITING"]
        begun = [state.status for state in self.states.values() if state.status != "WAITING"]
        return self._announce(waiting) if all(status == "SUCCEEDED" for status in begun) else []

    def _announce(self, devices: Sequence[str]) -> list[Action]:
        for device in devices:
            self.states[device].status = "PENDING"
        return [Announce(device) for device in devices]

    @property
    def done(self) -> bool:
        """Whether nothing more can come: all have ended, or a canary has failed and the others have ended."""
        begun = [state for state in self.states.values() if state.status != "WAITING"]
        return all(state.status in FINAL for state in begun)

    def left_over(self, waited_s: float) -> list[str]:
        """Return a line for each device that has not ended after ``waited_s``, with what becomes of it."""
        lines = []
        for state in self.states.values():
            if state.status == "PENDING":
                lines.append(
                    f"{state.device} has not answered in {waited_s:g} s; it hears of the update when it is back"
                )
            elif state.status == "WAITING":
                lines.append(f"{state.device} was not told: those that go first have not kept it")
            elif state.status not in FINAL:
                lines.append(f"{state.device} is not done after {waited_s:g} s ({state.stage or state.status})")
        return lines

    @property
    def succeeded(self) -> bool:
        """Whether every device runs it."""
        return all(state.status == "SUCCEEDED" for state in self.states.values())
