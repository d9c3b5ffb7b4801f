"""An edge server's two MQTT connections, as a member of a group of workers that share the devices' messages, or alone.

With ``workers`` the edge subscribes to ``$share/{workers}/adaptsplit/v1/{fleet}/+/up`` (MQTT 5 section 4.8.2;
Mosquitto takes it from 3.1.1 clients too): the broker gives each message to one member. Brokers without it (amqtt) take
the filter for a plain topic and deliver nothing; so a member subscribes to its own presence in this way, too, and looks
whether it hears itself (``check_shared``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from adaptsplit.device_bridge.control import Connection, EdgeState, parse_control
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.rate_limit import for_screens
from adaptsplit.device_bridge.topics import check_id, edge_connection, every_device
from adaptsplit.device_bridge.transport import BrokerAddress, Extras, OnMessage, Will
from adaptsplit.device_bridge.voice import Voice
from adaptsplit.errors import ConfigError, MessageError, RunError

log = logging.getLogger("adaptsplit.edge")

SHARED_WAIT_S = 3.0
UNSUBSCRIBE_S = 2.0
MIN_GROUP_CHARS = 16  # beyond guessing at the rate of a network


class SharedTransport(MqttTransport):
    """An MQTT connection whose filters may be shared subscriptions, and which can leave them."""

    _left: threading.Event | None = None

    def leave(self, timeout_s: float = UNSUBSCRIBE_S) -> bool:
        """Unsubscribe from everything; True once the broker says that nothing more will come."""
        self._left = threading.Event()
        self._client.on_unsubscribe = self._guard(self._unsubscribed)
        self._client.unsubscribe([topic for topic, _ in self._filters])
        return self._left.wait(timeout_s)

    def _unsubscribed(self, *arguments: Any) -> None:
        assert self._left is not None
        self._left.set()


def shared(pattern: str, workers: str | None) -> str:
    """Return the filter as a member of the group ``workers`` subscribes to it; None: as it is."""
    return pattern if workers is None else f"$share/{check_id('workers group', workers)}/{pattern}"


def checked_group(workers: str | None, *, secret: bool) -> str | None:
    """Return the group's name; ConfigError for one that can be guessed where it must be ``secret``.

    A broker gives each message to one member, and Mosquitto 2.0 judges no subscription: any client that knows the name
    can join, and what falls to it is lost. So nobody is told the name, and beyond a closed broker it must be long.
    """
    if workers is not None and secret and len(workers) < MIN_GROUP_CHARS:
        raise ConfigError(
            f"workers group of {len(workers)} characters; with TLS its name is a secret that the group's edge servers "
            f"share, of at least {MIN_GROUP_CHARS}: make one with `openssl rand -hex 16`"
        )
    return workers


class EdgeLink:
    """Data, and control with the edge's presence. Connects on construction; callbacks come on network threads.

    ONLINE is said when both connections stand, so that nobody sends frames that nobody hears.
    """

    def __init__(
        self, broker: BrokerAddress, fleet: str, edge: str, received: OnMessage, workers: str | None = None
    ) -> None:
        self.workers = checked_group(workers, secret=broker.tls)
        self._voice = Voice(new_session())
        self._topic = edge_connection(fleet, edge)
        self._state_topic = self._topic.removesuffix("connection") + "state"
        self._lock = threading.RLock()
        self._up: set[str] = set()
        self._draining = False
        self._received = received
        self._heard_self = threading.Event()
        self._told = for_screens()
        unique = f"{edge}-{new_session().hex()}"  # told to nobody: who knows a client id can push its client out
        ups, beats = (shared(every_device(fleet, leaf), workers) for leaf in ("up", "heartbeat"))
        own = shared(self._topic, None if workers is None else new_session().hex())
        with self._lock:  # a connection may stand before its constructor has returned: what it says must find both
            # 3.1.1: nothing on the data plane has properties, and one version on it is one form to measure and test.
            self._data = SharedTransport(broker, f"{unique}-data", [ups], received, self._linked("data"), mqtt5=False)
            self._control = SharedTransport(
                broker,
                f"{unique}-control",
                [beats, own],
                self._on_control,
                self._linked("control"),
                will=Will(self._topic, *self._voice.will(Connection(state="CONNECTION_BROKEN"))),
                live=[self._topic],
            )

    @property
    def group(self) -> str:
        """What others are told of the group: that there is one, never its name."""
        return "" if self.workers is None else "shared"

    def wait_connected(self, timeout_s: float) -> None:
        """Block until both connections stand; RunError after ``timeout_s``."""
        self._data.wait_connected(timeout_s)
        self._control.wait_connected(timeout_s)
        if self.workers is not None:
            self.check_shared()

    def check_shared(self, timeout_s: float = SHARED_WAIT_S) -> None:
        """RunError unless a message comes back through a shared subscription of our own."""
        until = time.monotonic() + timeout_s
        while not self._heard_self.wait(0.2):
            self._say("ONLINE")
            if time.monotonic() > until:
                raise RunError(
                    "the broker delivers nothing to shared subscriptions ($share), which --workers-group needs: take "
                    "Mosquitto (or allow this edge to read its own connection topic), or leave --workers-group out"
                )

    def publish(self, topic: str, payload: bytes, *, control: bool = False) -> None:
        """Publish at QoS 0 on the data or the control connection."""
        (self._control if control else self._data).publish(topic, payload)

    def state(self, state: EdgeState) -> None:
        """Publish telemetry, unless older output still waits."""
        topic = self._state_topic
        self._voice.say(
            topic, state, lambda payload, extras: self._control.publish_latest(topic, payload, extras=extras)
        )

    def leave_group(self) -> None:
        """Take no more of the group's messages: the broker gives them to the other members. Nothing for one alone."""
        if self.workers is not None:
            self._data.leave()

    def offline(self) -> None:
        """Say OFFLINE, for good."""
        self._draining = True
        self._say("OFFLINE")

    def close(self) -> None:
        """Disconnect."""
        self._data.close()
        self._control.close()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return what the two connections counted."""
        return {"data": dict(self._data.counts), "control": dict(self._control.counts)}

    def _on_control(self, topic: str, payload: bytes) -> None:
        if topic == self._topic:
            self._heard_self.set()
            self._own(payload)
        else:
            self._received(topic, payload)

    def _own(self, payload: bytes) -> None:
        """Our own presence: a late will, of an earlier life or of an earlier connection, is put right (AS-025)."""
        try:
            envelope, content = parse_control(payload)
        except MessageError as error:
            log.info("%s: %s", self._topic, error)
            return
        ours = envelope.session == self._voice.session.hex()
        if not isinstance(content, Connection) or (ours and content.state != "CONNECTION_BROKEN"):
            return
        with self._lock:
            if content.state == "ONLINE":
                self._twin(envelope.session)
            elif self._up == {"data", "control"} and not self._draining:
                self._control.counts["late_wills"] += 1
                self._say("ONLINE")

    def _twin(self, session: str) -> None:
        if not self._control.counts["twins"]:
            log.warning("another edge server speaks on %s (session %s); give each its own --id", self._topic, session)
        self._control.counts["twins"] += 1

    def _linked(self, plane: str) -> Callable[[bool], None]:
        def linked(up: bool) -> None:
            with self._lock:
                if self._told.allows(plane, time.monotonic()):  # for whoever looks at the screen or the journal
                    log.warning("link %s %s", plane, "up" if up else "down")
                self._up = self._up | {plane} if up else self._up - {plane}
                if "control" in self._up and not self._draining:
                    self._say("ONLINE" if "data" in self._up else "OFFLINE")

        return linked

    def _say(self, state: Literal["ONLINE", "OFFLINE"]) -> None:
        def send(payload: bytes, extras: Extras) -> bool:
            return self._control.publish(self._topic, payload, qos=1, retain=True, extras=extras)

        self._voice.say(self._topic, Connection(state=state), send)
