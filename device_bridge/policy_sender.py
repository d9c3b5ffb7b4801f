"""Sends a policy update to devices: announces it, serves the chunks that they ask for, and watches what they report."""

from __future__ import annotations

import hashlib
import json
import math
import queue
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptsplit.bundle import load_bundle
from adaptsplit.device_bridge.control import Connection, Data, PolicyDesired, PolicyReported, parse_control
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.operator import DENIED
from adaptsplit.device_bridge.policy_rollout import Action, Announce, Rollout
from adaptsplit.device_bridge.policy_update import CHUNK_BYTES, MAX_UPDATE_BYTES, Update
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.rate_limit import RateLimit
from adaptsplit.device_bridge.topics import CHUNK, DESIRED, REPORTED, DeviceTopics, device_of, every_device
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.device_bridge.voice import Voice
from adaptsplit.errors import ConfigError, MessageError, RunError
from adaptsplit.signing import CLOCK_TOLERANCE_S, Statement, parse_signature

CONNECT_S = 10.0
DISCOVER_S = 2.0  # for the broker to send what it retains (assumption)
ANNOUNCE_AGAIN_S = 10.0  # while a device does not answer
POLL_S = 0.2
MAX_HEARD = 4096  # reports that wait to be looked at
CHUNKS_HZ = 100.0  # to one device, 1.6 MB/s: what it asks for above that it must ask for again


@dataclass(frozen=True, slots=True)
class Parcel:
    """An update ready to be sent: its announcement without a job, its statement, its bytes."""

    announcement: PolicyDesired
    statement: Statement
    data: bytes

    @classmethod
    def of(cls, folder: Path, now: float | None = None) -> Parcel:
        """Read a signed bundle; ConfigError for one that is not signed, has expired, or is too large."""
        update = Update.of_bundle(load_bundle(folder))
        statement = parse_signature(update.signature, str(folder)).statement
        late = (time.time() if now is None else now) - statement.not_after
        if late > CLOCK_TOLERANCE_S:
            raise ConfigError(
                f"{folder}: its signature expired {late:.0f} s ago; sign it again: "
                f"adaptsplit keys sign {folder} --key NAME.key"
            )
        data = update.to_bytes()
        if len(data) > MAX_UPDATE_BYTES:
            raise ConfigError(f"{folder}: an update of {len(data)} bytes; devices take at most {MAX_UPDATE_BYTES}")
        desired = PolicyDesired(
            job=uuid.uuid4().hex,
            signature=json.loads(update.signature),
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            manifest_bytes=len(update.manifest),
            chunk_bytes=CHUNK_BYTES,
        )
        return cls(desired, statement, data)

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return math.ceil(len(self.data) / CHUNK_BYTES)

    def chunk(self, number: int) -> bytes:
        """Return one chunk."""
        return self.data[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]


class PolicySender:
    """One operator's connection; a context manager."""

    def __init__(self, broker: BrokerAddress, fleet: str) -> None:
        self._fleet = fleet
        self.counts: Counter[str] = Counter()
        self._heard: queue.Queue[tuple[str, Data]] = queue.Queue(MAX_HEARD)
        self._chunks = RateLimit(CHUNKS_HZ, CHUNKS_HZ)
        session = new_session()
        self._voice = Voice(session)
        filters = [every_device(fleet, leaf) for leaf in (REPORTED, "connection")]
        self._link = MqttTransport(broker, f"deploy-{new_session().hex()}", filters, self._on_message, qos=1)

    def __enter__(self) -> PolicySender:
        try:
            self._link.wait_connected(CONNECT_S)
        except BaseException:
            self._link.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._link.close()

    def online(self, wait_s: float = DISCOVER_S) -> list[str]:
        """Return the devices that are there, sorted: those whose retained ``connection`` says ONLINE."""
        states: dict[str, str] = {}
        until = time.monotonic() + wait_s
        while (left := until - time.monotonic()) > 0:
            for device, data in self._take(left):
                if isinstance(data, Connection):
                    states[device] = data.state
        return sorted(device for device, state in states.items() if state == "ONLINE")

    def run(self, parcel: Parcel, rollout: Rollout, wait_s: float, show: Callable[[Rollout], object]) -> None:
        """Roll an update out until every device has ended, or for ``wait_s``; ``show`` is called on every change.

        RunError where the broker refuses what we say (only MQTT 5 tells).
        """
        until, announced = time.monotonic() + wait_s, time.monotonic()
        self._do(parcel, rollout.start())
        show(rollout)
        while not rollout.done and time.monotonic() < until:
            if self._link.counts[DENIED]:
                raise RunError("the broker does not let this client update devices; take an operator's certificate")
            for device, data in self._take(POLL_S):
                if isinstance(data, PolicyReported):
                    self._do(parcel, rollout.heard(device, data))
                    show(rollout)
            if time.monotonic() > announced + ANNOUNCE_AGAIN_S:
                announced = time.monotonic()
                silent = [state.device for state in rollout.states.values() if state.status == "PENDING"]
                self._do(parcel, [Announce(device) for device in silent])

    def _do(self, parcel: Parcel, actions: Sequence[Action]) -> None:
        for action in actions:
            topics = DeviceTopics(self._fleet, action.device)
            if isinstance(action, Announce):
                self._announce(topics.leaf(DESIRED), parcel.announcement)
            elif self._chunks.allows(action.device, time.monotonic()):
                topic = topics.leaf(f"{CHUNK}/{parcel.announcement.sha256}/{action.number}")
                self._link.publish(topic, parcel.chunk(action.number), qos=1)
            else:
                self.counts["rate_limited"] += 1

    def _announce(self, topic: str, desired: PolicyDesired) -> None:
        def send(payload: bytes, extras: Any) -> bool:
            return self._link.publish(topic, payload, qos=1, retain=True, extras=extras)

        self._voice.say(topic, desired, send)

    def _take(self, timeout_s: float) -> list[tuple[str, Data]]:
        try:
            return [self._heard.get(timeout=timeout_s)]
        except queue.Empty:
            return []

    def _on_message(self, topic: str, payload: bytes) -> None:
        try:
            device = device_of(topic, self._fleet)[0]
            self._heard.put_nowait((device, parse_control(payload)[1]))
        except (MessageError, queue.Full):
            self.counts["dropped"] += 1
