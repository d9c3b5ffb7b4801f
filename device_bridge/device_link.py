"""A device's two MQTT connections: data, and control with birth, state, events and the edges' presence."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from adaptsplit.device_bridge.control import Birth, Connection, Data, Event, State, build_control, parse_control
from adaptsplit.device_bridge.messages import Message, parse_message
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.topics import DeviceTopics, device_of, edge_of
from adaptsplit.device_bridge.transport import BrokerAddress, Will, topic_matches
from adaptsplit.errors import MessageError

log = logging.getLogger("adaptsplit.device")

SEND_BUFFER_BYTES = 16 * 1024
MAX_EDGES = 64


@dataclass(frozen=True, slots=True)
class Linked:
    """A connection (``data`` or ``control``) came or went."""

    plane: str
    up: bool


@dataclass(frozen=True, slots=True)
class EdgeSeen:
    """An edge server's connection topic: its id, the session that speaks, and its state."""

    edge: str
    session: str
    state: str


@dataclass(frozen=True, slots=True)
class PartMessage:
    """A message on one of the parts' own topics, not looked into."""

    leaf: str
    payload: bytes


Incoming: TypeAlias = Message | Linked | EdgeSeen | PartMessage


class Edges:
    """Which edge servers are there. A last will counts only if it is of the life that was last ONLINE."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}

    @property
    def online(self) -> bool:
        """Whether any is."""
        return any(state == "ONLINE" for _, state in self._known.values())

    def clear(self) -> None:
        """Forget them: the control connection is gone."""
        self._known.clear()

    def seen(self, event: EdgeSeen) -> tuple[bool, bool]:
        """Take a connection message; return (it counts, it begins a new life of an edge that was there)."""
        alive = self._known.get(event.edge, (event.session, ""))[0]
        if event.state == "CONNECTION_BROKEN" and alive != event.session:
            return False, False
        if event.edge not in self._known and len(self._known) >= MAX_EDGES:
            return False, False
        self._known[event.edge] = event.session, event.state
        return True, event.state == "ONLINE" and alive != event.session


class DeviceLink:
    """Connects on construction. ``post`` gets everything that comes, with its monotonic time, on a network thread."""

    def __init__(
        self,
        broker: BrokerAddress,
        topics: DeviceTopics,
        session: bytes,
        birth: Birth,
        post: Callable[[Incoming, float], None],
        leaves: Sequence[str] = (),
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._topics = topics
        self._session = session
        self._sequence = 0
        self._birth = birth
        self._post = post
        self._leaves = [topics.leaf(leaf) for leaf in leaves]
        unique = f"{topics.device}-{session.hex()[:8]}"
        will = Will(topics.leaf("connection"), self._envelope(Connection(state="CONNECTION_BROKEN")))
        self._data = MqttTransport(
            broker,
            f"{unique}-data",
            [topics.leaf("down")],
            self._on_message,
            lambda up: self._post(Linked("data", up), time.monotonic()),
            send_buffer=SEND_BUFFER_BYTES,
        )
        filters = [topics.leaf("heartbeat/reply"), topics.edges, *self._leaves]
        self._control = MqttTransport(
            broker, f"{unique}-control", filters, self._on_message, self._on_control, will=will, qos=1
        )

    def wait_connected(self, timeout_s: float) -> None:
        """Block until both connections stand; RunError with the cure after ``timeout_s``."""
        self._data.wait_connected(timeout_s)
        self._control.wait_connected(timeout_s)

    def close(self) -> None:
        """Say OFFLINE and disconnect."""
        offline = self._envelope(Connection(state="OFFLINE"))
        self._control.publish(self._topics.leaf("connection"), offline, qos=1, retain=True)
        self._data.close()
        self._control.close()

    def send(self, payload: bytes) -> None:
        """Publish a frame message."""
        self.counts["sent_wire_bytes"] += len(payload)
        if not self._data.publish(self._topics.leaf("up"), payload):
            self.counts["publish_failed"] += 1

    def beat(self, payload: bytes) -> None:
        """Publish a heartbeat, unless older output still waits."""
        self._control.publish_latest(self._topics.leaf("heartbeat"), payload)

    def state(self, state: State) -> None:
        """Publish telemetry, unless older output still waits."""
        self._control.publish_latest(self._topics.leaf("state"), self._envelope(state))

    def event(self, kind: str, detail: str) -> None:
        """Publish something that happened."""
        self._control.publish(self._topics.leaf("event"), self._envelope(Event(kind=kind, detail=detail)), qos=1)

    def publish(self, leaf: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Publish on one of the device's topics of the control connection; False when it cannot leave now."""
        return self._control.publish(self._topics.leaf(leaf), payload, qos=qos, retain=retain)

    def tell(self, leaf: str, content: Data, *, qos: int = 1, retain: bool = False) -> bool:
        """Publish a control message in its envelope; False when it cannot leave now."""
        return self.publish(leaf, self._envelope(content), qos=qos, retain=retain)

    def transport_counts(self) -> dict[str, dict[str, int]]:
        """Return what the two connections counted."""
        return {"data": dict(self._data.counts), "control": dict(self._control.counts)}

    def _envelope(self, data: Data) -> bytes:
        self._sequence += 1
        utc, mono = time.time(), time.monotonic()
        return build_control(data, seq=self._sequence, session=self._session, ts_ms=int(utc * 1e3), mono_ms=mono * 1e3)

    def _on_control(self, up: bool) -> None:
        if up:
            for leaf, content in (("connection", Connection(state="ONLINE")), ("birth", self._birth)):
                self._control.publish(self._topics.leaf(leaf), self._envelope(content), qos=1, retain=True)
        self._post(Linked("control", up), time.monotonic())

    def _on_message(self, topic: str, payload: bytes) -> None:
        at = time.monotonic()
        try:
            self._post(self._parse(topic, payload), at)
        except MessageError as error:
            self.counts["malformed"] += 1
            log.info("%s: %s", topic, error)

    def _parse(self, topic: str, payload: bytes) -> Incoming:
        if topic in (self._topics.leaf("down"), self._topics.leaf("heartbeat/reply")):
            return parse_message(payload)
        if any(topic_matches(pattern, topic) for pattern in self._leaves):
            return PartMessage(device_of(topic, self._topics.fleet)[1], payload)
        edge = edge_of(topic, self._topics.fleet)
        envelope, content = parse_control(payload)
        if not isinstance(content, Connection):
            raise MessageError(f"{envelope.schema_} on a connection topic")
        return EdgeSeen(edge, envelope.session, content.state)
