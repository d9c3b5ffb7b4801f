"""MQTT by paho, with its traps closed.

* TCP_NODELAY on every socket (else Nagle and delayed acknowledgements cost about 44 ms a round trip);
* callbacks never raise: an exception in one would end paho's network thread while it still looks connected;
* the network loop runs in a thread of ours that starts it again whatever ends it;
* messages at QoS 0 go beside paho, which spends more on each of them than all else together (``fast_lane``);
* nothing is queued while disconnected, and whatever paho still holds is dropped on reconnection: what a device sends is
  worth something now or never. Retained self-descriptions are published anew by ``on_link(True)``;
* TLS checks the broker's certificate and name always; what a broker refuses for good ends ``wait_connected`` at once;
* MQTT 5 where the broker speaks it, else 3.1.1 with the same payloads (``mqtt5``); reason codes are counted and told;
* keep-alive of 4 s (a silent link is noticed after about 7 s), reconnection after 1 to 4 s with jitter.
"""

from __future__ import annotations

import logging
import math
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as paho

from adaptsplit.device_bridge.deliveries import Deliveries
from adaptsplit.device_bridge.fast_lane import FastLane, LaneClient, Waker
from adaptsplit.device_bridge.mqtt5 import (
    MAX_HEADER_BYTES,
    Negotiation,
    largest_packet,
    note_reason,
    publish_properties,
    will_properties,
)
from adaptsplit.device_bridge.tls import TlsContext, check_address, client_context
from adaptsplit.device_bridge.transport import (
    BrokerAddress,
    Extras,
    OnDetail,
    OnLink,
    OnMessage,
    Will,
    no_connection,
)
from adaptsplit.errors import RunError

log = logging.getLogger("adaptsplit.mqtt")

KEEPALIVE_S = 4
MAX_QUEUED = 64
_RECONNECT_MIN_S, _RECONNECT_MAX_S = 1, 4
_POLL_S = 0.05
_ANSWER_S = 6.0  # to CONNECT; paho itself waits for ever
_FINAL = ("Bad user name or password", "Not authorized")  # CONNACK 4 and 5, as paho words them


def tune_socket(sock: socket.socket, send_buffer: int | None = None) -> None:
    """Set TCP_NODELAY, and a small send buffer where the queue must stand in the application."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)


class MqttTransport:
    """One MQTT connection with a clean session. See the module's text; ``Transport`` is its protocol.

    live: filters whose retained messages are dropped and counted (``retained_dropped``): commands. on_detail: called
    before ``on_message`` with quality of service and retention. mqtt5: False for 3.1.1 from the start.
    ``version`` is 5, or 4 (3.1.1) once the broker has said that it does not speak 5.
    """

    def __init__(
        self,
        broker: BrokerAddress,
        client_id: str,
        filters: Sequence[str],
        on_message: OnMessage,
        on_link: OnLink | None = None,
        *,
        will: Will | None = None,
        qos: int = 0,
        send_buffer: int | None = None,
        live: Sequence[str] = (),
        on_detail: OnDetail | None = None,
        mqtt5: bool = True,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.connected = threading.Event()
        self._broker = check_address(broker)
        self._tls: TlsContext | None = client_context(broker.ca, broker.cert, broker.key) if broker.tls else None
        self._refusal = ""
        self._filters = [(topic, qos) for topic in filters]
        self._deliveries = Deliveries(filters, live, on_message, on_detail, self.counts)
        self._on_link = on_link
        self._send_buffer = send_buffer
        self._id, self._will = client_id, will
        self._protocol = Negotiation(mqtt5, will is not None)
        self._closing = threading.Event()
        self._answer_by = 0.0
        self._max_packet: float = math.inf
        self._last: Any = None
        self._waker = Waker()
        self._lane: FastLane | None = None
        self._client = self._make_client()
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{client_id}", daemon=True)
        self._thread.start()

    @property
    def version(self) -> int:
        """Of MQTT: 5, or 4 for 3.1.1."""
        return self._protocol.version

    def _make_client(self) -> LaneClient:
        will = None if self._protocol.asking else self._will
        client = LaneClient(self._id, self._protocol.paho_version, self._deliveries.beside_paho, self._waker)
        client.max_queued_messages_set(MAX_QUEUED)
        client.reconnect_delay_set(_RECONNECT_MIN_S, _RECONNECT_MAX_S)
        client.connect_timeout = 3.0
        if self._broker.user is not None:
            client.username_pw_set(self._broker.user, self._broker.password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if will is not None:
            properties = will_properties(will.extras, self.version)
            client.will_set(will.topic, will.payload, qos=1, retain=True, properties=properties)
        client.on_socket_open = self._guard(self._socket_opened)
        client.on_socket_register_write = self._has_output  # else publish() writes on the caller's thread
        client.on_connect = self._guard(self._connected)
        if self.version == 5:  # 3.1.1 gives no reasons, and paho would make objects for them at QoS 0, too
            client.on_publish = self._guard(self._published)
        client.on_subscribe = self._guard(self._subscribed)
        client.on_disconnect = self._guard(self._disconnected)
        client.on_message = self._deliveries.by_paho
        return client

    # ---- Transport ----

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, extras: Extras | None = None
    ) -> bool:
        """Hand a message over if connected; False otherwise (nothing is queued for later)."""
        if not self.connected.is_set():
            self.counts["not_connected"] += 1
            return False
        if len(payload) + len(topic) + MAX_HEADER_BYTES > self._max_packet:
            self.counts["too_large"] += 1
            return False
        properties = publish_properties(extras, self.version)
        if self._lane is not None and not (qos or retain or properties):
            left = self._lane.publish(topic, payload)
            self.counts["not_taken"] += not left
            return left
        return self._publish_by_paho(topic, payload, qos, retain, properties)

    def _publish_by_paho(self, topic: str, payload: bytes, qos: int, retain: bool, properties: Any) -> bool:
        info = self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        left = bool(info.rc == paho.MQTT_ERR_SUCCESS)
        if qos and left:
            self._last = info
        return left

    def publish_latest(self, topic: str, payload: bytes, *, extras: Extras | None = None) -> bool:
        """Publish at QoS 0 unless older output still waits for the socket: then this value is skipped, not queued."""
        if self._client.busy:
            self.counts["skipped_latest"] += 1
            return False
        return self.publish(topic, payload, extras=extras)

    def close(self) -> None:
        """Send what is queued, wait for its acknowledgement (1 s at most), disconnect cleanly, end the thread.

        amqtt publishes the last will of a client that disconnects while it still works on the client's messages.
        """
        until = time.monotonic() + 1.0
        while self.connected.is_set() and self._pending() and time.monotonic() < until:
            time.sleep(0.005)
        self._closing.set()
        self._client.disconnect()
        self._thread.join(timeout=5.0)
        self._waker.close()

    def _pending(self) -> bool:
        """Whether output waits, or the newest message at QoS 1 is not acknowledged (those before it are then)."""
        last = self._last
        return bool(self._client.busy or (last is not None and not last.is_published()))

    def wait_connected(self, timeout_s: float) -> None:
        """Block until connected; RunError with the cure after ``timeout_s``, or once the broker or TLS refuses."""
        until = time.monotonic() + timeout_s
        while not self.connected.wait(min(_POLL_S, timeout_s)):
            if self._why() or time.monotonic() >= until:
                raise RunError(no_connection(self._broker, self._why(), bool(self.counts["closed_early"])))

    def _why(self) -> str:
        return self._refusal or (self._tls.fault if self._tls is not None else "")

    # ---- paho's callbacks ----

    def _guard(self, function: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                function(*arguments)
            except Exception:
                self.counts["callback_errors"] += 1
                log.exception("callback failed")

        return guarded

    def _socket_opened(self, client: Any, userdata: Any, lane: FastLane) -> None:
        self._lane = lane
        tune_socket(lane.raw, self._send_buffer)

    def _has_output(self, client: Any, userdata: Any, sock: Any) -> None:
        """Paho has something to write: the network's thread shall."""
        self._waker.wake()

    def _connected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if not self._protocol.answer(reason):
            return
        if reason.is_failure:
            self.counts["refused"] += 1
            note_reason(self.counts, "connack", reason)
            log.warning("broker refuses the connection: %s", reason)
            self._refusal = f"the broker says {reason}" if str(reason) in _FINAL else ""
            return
        self._refusal = ""
        self._max_packet = largest_packet(properties)
        if self._tls is not None:
            self._tls.fault = ""
        client.drop_out_messages()
        self._last = None
        if self._filters:
            client.subscribe(self._filters)
        else:
            self._ready()

    def _subscribed(self, client: Any, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self.counts["refused"] += 1
            for code in reasons:
                note_reason(self.counts, "suback", code)
            log.warning("broker refuses a subscription: %s", [str(code) for code in reasons])
            self._refusal = "the broker refuses a subscription"
            return
        self._ready()

    def _ready(self) -> None:
        """Connected and subscribed: from now on nothing that is sent to us is lost."""
        self.counts["connected"] += 1
        self.connected.set()
        if self._on_link is not None:
            self._on_link(True)

    def _published(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        note_reason(self.counts, "puback", reason)

    def _disconnected(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if flags is not None and flags.is_disconnect_packet_from_server:
            note_reason(self.counts, "disconnect", reason)
        was = self.connected.is_set()
        self.counts["closed_early"] += not (was or self._closing.is_set() or self._protocol.change)
        self.connected.clear()
        if was and self._on_link is not None and not self._closing.is_set():
            self._on_link(False)

    # ---- the network thread ----

    def _run(self) -> None:
        """Connect, loop, and start again whatever ended it."""
        delay = float(_RECONNECT_MIN_S)
        while not self._closing.is_set():
            try:
                self._open()
                while self._goes_on() and self._client.turn(0.5) == paho.MQTT_ERR_SUCCESS:
                    delay = float(_RECONNECT_MIN_S) if self.connected.is_set() else delay
            except OSError as error:
                log.info("broker unreachable: %s", error)
            except Exception:
                self.counts["loop_errors"] += 1
                log.exception("network loop failed")
            self._protocol.ends()
            if self._protocol.change and self._protocol.answered:
                continue
            self._lost()
            self._note()
            self._closing.wait(delay * random.uniform(0.5, 1.0))
            delay = min(2.0 * delay, float(_RECONNECT_MAX_S))
        self._drain()

    def _open(self) -> None:
        """Begin an attempt, with a new client where another version, or the will, calls for one."""
        if self._protocol.change:
            self._replace()
        self._protocol.begins()
        options = self._protocol.connect_options()
        self._client.connect(self._broker.host, self._broker.port, keepalive=KEEPALIVE_S, **options)
        self._answer_by = time.monotonic() + _ANSWER_S

    def _goes_on(self) -> bool:
        unanswered = not self._protocol.answered and time.monotonic() > self._answer_by
        return not (self._closing.is_set() or self._protocol.change or unanswered)

    def _replace(self) -> None:
        old = self._client
        old.on_disconnect = None
        if old.disconnect() == paho.MQTT_ERR_SUCCESS:
            self._drain()
        if self._protocol.fell_back and not self.counts["fell_back"]:
            self.counts["fell_back"] += 1
            log.info("%s speaks no MQTT 5; going on with 3.1.1", self._broker.host)
        self._protocol.change = False
        self._client = self._make_client()

    def _lost(self) -> None:
        """Report a loss that paho has not reported itself."""
        if self.connected.is_set():
            self._guard(self._disconnected)(self._client, None, None, None, None)

    def _note(self) -> None:
        """Say once what TLS is refused for; the thread goes on trying, for clocks are set and certificates renewed."""
        if self._tls is not None and self._tls.fault and not self.counts["tls_refused"]:
            log.warning("no TLS with %s: %s", self._broker.host, self._tls.fault)
        self.counts["tls_refused"] += bool(self._tls is not None and self._tls.fault)

    def _drain(self) -> None:
        """Give the clean DISCONNECT a moment to leave."""
        for _ in range(4):
            if self._client.turn(0.02) != paho.MQTT_ERR_SUCCESS:
                return
