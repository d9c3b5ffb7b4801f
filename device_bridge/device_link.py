"""A device's two MQTT connections: data, and control with birth, state, events and the edges' presence."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from adaptsplit.device_bridge.control import MAX_CHUNK_BYTES, Birth, Connection, Data, Event, State, parse_control
from adaptsplit.device_bridge.messages import FrameMessage, Message, parse_message
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.rate_limit import RateLimit
from adaptsplit.device_bridge.topics import DeviceTopics, device_of, edge_of
from adaptsplit.device_bridge.transport import BrokerAddress, Extras, Will, topic_matches
from adaptsplit.device_bridge.voice import Voice
from adaptsplit.errors import MessageError

log = logging.getLogger("adaptsplit.device")

SEND_BUFFER_BYTES = 16 * 1024
MAX_EDGES = 64
MAX_HEARD_HZ = 1000.0  # on each plane: a device hears two messages a frame; more would cost it its deadlines


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
class Twin:
    """Another life speaks under this device's id: ``session`` is there, too, at this moment."""

    session: str


@dataclass(frozen=True, slots=True)
class PartMessage:
    """A message on one of the parts' own topics, not looked into."""

    leaf: str
    payload: bytes


Incoming: TypeAlias = Message | Linked | EdgeSeen | PartMessage | Twin


class Edges:
    """Which edge servers are there. A last will counts only if it is of the life that was last ONLINE."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}

    @property
    def online(self) -> bool:
        """Whether any is."""
        return any(state == "ONLINE" for _, state in self._known.values())

    @property
    def names(self) -> list[str]:
        """Ids of those that are there, sorted."""
        return sorted(edge for edge, (_, state) in self._known.items() if state == "ONLINE")

    def clear(self) -> None:
        """Forget them: the control connection is gone."""
        self._known.clear()

    def seen(self, event: EdgeSeen) -> tuple[bool, bool]:
        """Take a connection message; return (it counts, it begins a new life of an edge that was there)."""
        alive = self._known.get(event.edge, (event.session, ""))[0]
        if event.state == "CONNECTION_BROKEN" and alive != event.session:
            return False, False
        if event.edge not in self._known and len(self._known) >= MAX_EDGES and not self._forget_one():
            return False, False
        self._known[event.edge] = event.session, event.state
        return True, event.state == "ONLINE" and alive != event.session

    def _forget_one(self) -> bool:
        """Make room: names of edge servers that have gone add up over the life of a device."""
        gone = next((edge for edge, (_, state) in self._known.items() if state != "ONLINE"), None)
        if gone is not None:
            del self._known[gone]
        return gone is not None


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
        self._limit = RateLimit(MAX_HEARD_HZ, MAX_HEARD_HZ)
        self._topics = topics
        self._voice = Voice(session)
        self._birth = birth
        self._post = post
        self._leaves = [topics.leaf(leaf) for leaf in leaves]
        unique = f"{topics.device}-{new_session().hex()}"  # told to nobody: who knows a client id can push it out
        will = Will(topics.leaf("connection"), *self._voice.will(Connection(state="CONNECTION_BROKEN")))
        self._data = MqttTransport(
            broker,
            f"{unique}-data",
            [topics.leaf("down")],
            self._on_message,
            lambda up: self._post(Linked("data", up), time.monotonic()),
            send_buffer=SEND_BUFFER_BYTES,
            mqtt5=False,  # as the edge server's: nothing on the data plane has properties
        )
        self._made = threading.Event()  # the connection may stand before its constructor has returned
        self._control = MqttTransport(
            broker,
            f"{unique}-control",
            [topics.leaf("heartbeat/reply"), topics.leaf("connection"), topics.edges, *self._leaves],
            self._on_message,
            self._on_control,
            will=will,
            qos=1,
            live=[topics.leaf("cmd/+"), topics.leaf("connection")],
        )
        self._made.set()

    def wait_connected(self, timeout_s: float) -> None:
        """Block until both connections stand; RunError with the cure after ``timeout_s``."""
        self._data.wait_connected(timeout_s)
        self._control.wait_connected(timeout_s)

    def close(self) -> None:
        """Say OFFLINE and disconnect."""
        self.tell("connection", Connection(state="OFFLINE"), retain=True)
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

    def state(self, state: State) -> bool:
        """Publish telemetry, unless older output still waits; whether it left."""
        return self.latest("state", state)

    def latest(self, leaf: str, content: Data) -> bool:
        """Publish a control message at QoS 0; False (and no number is spent) when older output still waits."""
        topic = self._topics.leaf(leaf)
        return self._voice.say(
            topic, content, lambda payload, extras: self._control.publish_latest(topic, payload, extras=extras)
        )

    def event(self, kind: str, detail: str) -> None:
        """Publish something that happened."""
        self.tell("event", Event(kind=kind, detail=detail))

    def rebirth(self, birth: Birth | None = None) -> bool:
        """Say ONLINE and the birth (a new one, if given) again; False when they cannot leave now."""
        self._birth = birth or self._birth
        said = [self.tell("connection", Connection(state="ONLINE"), retain=True)]
        return all([*said, self.tell("birth", self._birth, retain=True)])

    @property
    def birth(self) -> Birth:
        """What the device says of itself."""
        return self._birth

    @property
    def session(self) -> str:
        """The id of this life of the device, 32 hex digits."""
        return self._voice.session.hex()

    def publish(self, leaf: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Publish on one of the device's topics of the control connection; False when it cannot leave now."""
        return self._control.publish(self._topics.leaf(leaf), payload, qos=qos, retain=retain)

    def tell(
        self, leaf: str, content: Data, *, qos: int = 1, retain: bool = False, extras: Extras | None = None
    ) -> bool:
        """Publish a control message in its envelope; False when it cannot leave now.

        ``extras`` is for what MQTT 5 carries beside it; by default the name of its schema.
        """
        topic = self._topics.leaf(leaf)

        def send(payload: bytes, beside: Extras) -> bool:
            return self._control.publish(topic, payload, qos=qos, retain=retain, extras=beside)

        return self._voice.say(topic, content, send, extras)

    def transport_counts(self) -> dict[str, dict[str, int]]:
        """Return what the two connections counted."""
        return {"data": dict(self._data.counts), "control": dict(self._control.counts)}

    def _on_control(self, up: bool) -> None:
        self._made.wait()
        if up:
            self.rebirth()
        self._post(Linked("control", up), time.monotonic())

    def _on_message(self, topic: str, payload: bytes) -> None:
        at = time.monotonic()
        if not self._limit.allows("data" if topic == self._topics.leaf("down") else "control", at):
            self.counts["rate_limited"] += 1
            return
        try:
            event = self._own(payload) if topic == self._topics.leaf("connection") else self._parse(topic, payload)
            if event is not None:
                self._post(event, at)
        except MessageError as error:
            self.counts["malformed"] += 1
            log.info("%s: %s", topic, error)

    def _own(self, payload: bytes) -> Twin | None:
        """Our own connection topic: a late will, of an earlier life or connection, is put right, a twin is told of."""
        envelope, content = parse_control(payload)
        ours = envelope.session == self.session
        if not isinstance(content, Connection) or (ours and content.state != "CONNECTION_BROKEN"):
            return None
        if content.state == "ONLINE":
            return Twin(envelope.session)
        self.counts["late_wills"] += 1
        self.rebirth()
        return None

    def _parse(self, topic: str, payload: bytes) -> Incoming:
        if topic in (self._topics.leaf("down"), self._topics.leaf("heartbeat/reply")):
            message = parse_message(payload)
            if isinstance(message, FrameMessage):
                raise MessageError("a frame, to a device")
            return message
        if any(topic_matches(pattern, topic) for pattern in self._leaves):
            if len(payload) > MAX_CHUNK_BYTES:  # the largest that any of them is; 4096 may wait for the main loop
                raise MessageError(f"{len(payload)} bytes; at most {MAX_CHUNK_BYTES}")
            return PartMessage(device_of(topic, self._topics.fleet)[1], payload)
        edge = edge_of(topic, self._topics.fleet)
        envelope, content = parse_control(payload)
        if not isinstance(content, Connection):
            raise MessageError(f"{envelope.schema_} on a connection topic")
        return EdgeSeen(edge, envelope.session, content.state)
