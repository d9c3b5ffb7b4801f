"""``adaptsplit conformance``: listen to a fleet, ask it some things, and say which rules of the contract it keeps."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adaptsplit.device_bridge.conformance_checks import CHECKS
from adaptsplit.device_bridge.conformance_frames import FRAME_RULES
from adaptsplit.device_bridge.conformance_probes import Note, PretendedDevice, probe_device, probe_edge
from adaptsplit.device_bridge.conformance_record import Heard, Record
from adaptsplit.device_bridge.contract import RULES, Rule
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.operator import Operator
from adaptsplit.device_bridge.topics import PREFIX, DeviceTopics, check_id
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import RunError

__all__ = ["FRAME_RULES", "Verdict", "examine", "judge", "record"]

CONNECT_S = 10.0
MAX_HEARD = 500_000
LATE_S = 0.7  # for a late listener to get what was retained


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one rule: how often it was seen, and what broke it (at most ten, then a count)."""

    rule: Rule
    seen: int
    faults: tuple[str, ...]

    @property
    def status(self) -> Literal["held", "violated", "not seen"]:
        """Held, violated, or not seen."""
        return "violated" if self.faults else "held" if self.seen else "not seen"


class Listener:
    """Hears everything of a fleet, at QoS 1, and keeps it."""

    def __init__(self, broker: BrokerAddress, fleet: str) -> None:
        self._lock = threading.Lock()
        self._heard: list[Heard] = []
        own = [f"{PREFIX}/{check_id('fleet', fleet)}/#"]
        name = f"conformance-{uuid.uuid4().hex[:12]}"
        self.link = MqttTransport(broker, name, own, lambda topic, payload: None, qos=1, on_detail=self._take)
        try:
            self.link.wait_connected(CONNECT_S)
        except RunError:
            self.link.close()
            raise

    def _take(self, topic: str, payload: bytes, qos: int, retained: bool) -> None:
        with self._lock:
            if len(self._heard) < MAX_HEARD:
                self._heard.append(Heard(time.monotonic(), topic, payload, qos, retained))

    def heard(self) -> tuple[Heard, ...]:
        """Return what was heard so far."""
        with self._lock:
            return tuple(self._heard)

    def close(self) -> tuple[Heard, ...]:
        """Disconnect and return what was heard."""
        self.link.close()
        return self.heard()


def examine(
    broker: BrokerAddress, fleet: str, seconds: float, devices: Sequence[str] = (), *, probe: bool = True
) -> list[Verdict]:
    """Listen for ``seconds`` (and probe ``devices``, by default all that are there); return a verdict on every rule.

    RunError when there is no broker, when a named device was not heard of, or when nothing at all was heard.
    """
    found = record(broker, fleet, seconds, devices, probe=probe)
    if not found.heard:
        raise RunError(f"nothing was heard of fleet {fleet!r} in {seconds:g} s; check its name, and who is there")
    return judge(found)


def record(
    broker: BrokerAddress, fleet: str, seconds: float, devices: Sequence[str] = (), *, probe: bool = True
) -> Record:
    """Listen, probe, and listen again as one who comes late."""
    listener = Listener(broker, fleet)
    try:
        began = time.monotonic()
        pretended = PretendedDevice(DeviceTopics(fleet, f"conformance-{uuid.uuid4().hex[:8]}"))
        notes = _probe(broker, fleet, devices, pretended) if probe else []
        time.sleep(max(began + seconds - time.monotonic(), 0.0))
        ended = time.monotonic()
        late = Listener(broker, fleet)
        time.sleep(LATE_S)
        later = tuple(one for one in late.close() if one.retained and one.payload)
    finally:
        heard = listener.close()
    strangers, keeps_qos = frozenset({pretended.topics.device}), listener.link.version == 5
    return Record(fleet, heard, began, ended, later, tuple(notes), strangers, keeps_qos)


def _probe(broker: BrokerAddress, fleet: str, devices: Sequence[str], pretended: PretendedDevice) -> list[Note]:
    notes: list[Note] = []
    link = MqttTransport(broker, pretended.topics.device, pretended.filters, pretended.receive)
    try:
        link.wait_connected(CONNECT_S)
        with Operator(broker, fleet, heals=False) as operator:
            view = operator.listen(LATE_S)
            there = [one.name for one in view.devices if one.connection == "ONLINE"]
            for device in devices or there:
                notes += probe_device(operator, link, device)
            if any(edge.connection == "ONLINE" for edge in view.edges):
                notes += probe_edge(link, pretended)
    finally:
        link.close()
    return notes


def judge(found: Record) -> list[Verdict]:
    """Return a verdict on every rule of the contract."""
    return [_verdict(rule, found) for rule in RULES]


def _verdict(rule: Rule, found: Record) -> Verdict:
    check = CHECKS.get(rule.id)
    seen, faults = check(found) if check is not None else (0, [])
    probes = [(kept, text) for name, kept, text in found.probes if name == rule.id]
    faults = [*faults, *(text for kept, text in probes if not kept)]
    more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
    return Verdict(rule, seen + len(probes), (*faults[:10], *more))
