"""Messages at QoS 0 beside paho, on the connection that paho keeps.

Paho connects, subscribes, pings, and does everything at QoS 1. It reads a packet in at least three system calls, makes
a condition variable for each message that it sends, and wakes its thread to write. A PUBLISH at QoS 0 needs none of
that (section 3.3 of MQTT 3.1.1 and 5.0). So paho's socket is wrapped here, as its websocket transport wraps it: what
arrives is read in large pieces, messages at QoS 0 go to ``deliver`` at once, and only the other packets are left for
paho to read. What is sent goes out on the caller's thread if the system takes it.

``LaneClient.turn`` is the network loop: paho's interface for external loops (``loop_read``, ``loop_write``,
``loop_misc``) with one ``poll``. Over TLS all of it happens on the loop's thread: OpenSSL forbids two at a time.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from adaptsplit.device_bridge.packets import MAX_PACKET_BYTES, PUBLISH, body_of, remaining_length

__all__ = ["FastLane", "LaneClient", "Waker"]

READ_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 4 << 20
MAX_HEADS = 4096

Deliver = Callable[[bytes, bytes], None]
"""(topic in UTF-8, payload); must not raise."""


class Waker:
    """Ends another thread's ``poll`` early."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Return what ``poll`` waits on."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Wake; many times are once."""
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Forget that it was woken."""
        with contextlib.suppress(OSError):
            self._reader.recv(4096)

    def close(self) -> None:
        """Close; ``wake`` then does nothing."""
        self._reader.close()
        self._writer.close()


class FastLane:
    """One connection's socket. Paho sees ``recv``, ``send``, ``fileno``, ``setblocking`` and ``close``.

    heard, said: when bytes last came and went, on the monotonic clock. ``publish`` is thread-safe; the rest belongs to
    the network's thread.
    """

    def __init__(self, raw: Any, mqtt5: bool, deliver: Deliver, waker: Waker) -> None:
        self.raw = raw
        self.heard = self.said = time.monotonic()
        self._properties = b"\0" if mqtt5 else b""
        self._deliver = deliver
        self._waker = waker
        self._tls = isinstance(raw, ssl.SSLSocket)
        self._rest, self._wanted = bytearray(), 0  # the beginning of a packet, and how long that must be to go on
        self._for_paho = bytearray()
        self._ended = False
        self._error: OSError | None = None
        self._lock = threading.Lock()
        self._out = bytearray()
        self._reader = 0
        self._reading = False
        self._heads: dict[str, bytes] = {}

    # ---- what paho calls ----

    def fileno(self) -> int:
        """Return the descriptor."""
        return int(self.raw.fileno())

    def setblocking(self, flag: bool) -> None:
        """Set the socket's mode."""
        self.raw.setblocking(flag)

    def recv(self, size: int) -> bytes:
        """Return bytes of packets that are left for paho; BlockingIOError when there are none."""
        if self._for_paho:
            data = bytes(self._for_paho[:size])
            del self._for_paho[:size]
            return data
        if self._error is not None:
            raise self._error
        if self._ended:
            return b""
        raise BlockingIOError

    def send(self, data: bytes | bytearray) -> int:
        """Take a whole packet and write what the system takes of all that waits."""
        self._write(data)
        return len(data)

    def close(self) -> None:
        """Write what still can be written, and close."""
        self.flush()
        with self._lock:
            self._out.clear()
            self.raw.close()

    # ---- what the network loop calls ----

    @property
    def news(self) -> bool:
        """Whether paho has something to read: packets, the end, or an error."""
        return bool(self._for_paho) or self._ended or self._error is not None

    @property
    def unsent(self) -> bool:
        """Whether bytes wait for the system to take them."""
        return bool(self._out)

    def fill(self) -> None:
        """Read what has come, deliver its messages, and write together what they were answered with."""
        self._reader, self._reading = threading.get_ident(), True
        try:
            while data := self._receive():
                self.heard = time.monotonic()
                self._split(data)
                if not (self._tls and self.raw.pending()):  # what TLS holds already does not show in poll
                    break
        except OSError as error:
            self._error = error
        finally:
            self._reading = False
            self.flush()

    def flush(self) -> None:
        """Write what the system takes."""
        with self._lock:
            self._flush()

    # ---- what everybody calls ----

    def publish(self, topic: str, payload: bytes) -> bool:
        """Send a message at QoS 0; False when the connection takes no more. The topic has at most 65535 bytes."""
        head = self._heads.get(topic)
        if head is None:
            head = self._head(topic)
        packet = b"".join((b"\x30", remaining_length(len(head) + len(payload)), head, payload))
        if self._out and len(self._out) + len(packet) > MAX_UNSENT_BYTES:
            return False
        return self._write(packet)

    # ---- reading ----

    def _receive(self) -> bytes:
        try:
            data: bytes = self.raw.recv(max(READ_BYTES, self._wanted - len(self._rest)))
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        self._ended = not data
        return data

    def _split(self, data: bytes) -> None:
        """Cut the stream into packets: messages at QoS 0 are delivered, the others are left for paho.

        As is whatever follows one of those: paho's SUBACK, say, is heard before the messages that it lets through.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest.clear()
            self._wanted = 0  # else every later read would ask for as much as the largest message so far
        at, size = 0, len(data)
        while at < size:
            body, end = body_of(data, at)
            if end > size:
                break
            if self._for_paho or data[at] != PUBLISH or not self._message(data, body, end):
                self._for_paho += data[at:end]
            at = end
        if at < size:
            self._rest += data[at:]
            self._wanted = end - at

    def _message(self, data: bytes, at: int, end: int) -> bool:
        """Deliver a PUBLISH; False when it is malformed, or means more than topic and payload: paho's business."""
        topic_end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        begin = topic_end
        if self._properties:
            if topic_end >= end:
                return False
            begin += _properties_size(data[topic_end : min(topic_end + 4, end)])
        if topic_end == at + 2 or begin > end:
            return False
        self._deliver(data[at + 2 : topic_end], data[begin:end])
        return True

    # ---- writing ----

    def _head(self, topic: str) -> bytes:
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        name = topic.encode()
        head = self._heads[topic] = len(name).to_bytes(2, "big") + name + self._properties
        return head

    def _write(self, packet: bytes | bytearray) -> bool:
        mine = threading.get_ident() == self._reader
        with self._lock:
            if self._error is not None or self.raw.fileno() < 0:
                return False
            self._out += packet
            if mine and self._reading:
                return True
            if mine or not self._tls:
                self._flush()
        if self._out and not mine:
            self._waker.wake()
        return True

    def _flush(self) -> None:
        """``flush`` with the lock held."""
        try:
            while self._out:
                del self._out[: self.raw.send(self._out)]
                self.said = time.monotonic()
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self._error = error
            self._out.clear()
            self._waker.wake()


def _properties_size(start: bytes) -> int:
    """Return how long properties are with their length, whose bytes ``start`` begins with; too long when it is none."""
    try:
        return body_of(b"\0" + start, 0)[1] - 1  # as a packet's, but for the type before
    except OSError:
        return MAX_PACKET_BYTES + 1


class LaneClient(paho.Client):
    """A paho client with a fast lane; ``turn`` is its network loop."""

    def __init__(self, client_id: str, protocol: Any, deliver: Deliver, waker: Waker) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id, protocol=protocol)
        self._mqtt5 = protocol == paho.MQTTv5
        self._deliver = deliver
        self._waker = waker

    @property
    def lane(self) -> FastLane | None:
        """The lane of the connection that stands."""
        lane = self.socket()
        return lane if isinstance(lane, FastLane) else None

    @property
    def busy(self) -> bool:
        """Whether output waits for the socket."""
        lane = self.lane
        return bool(self.want_write() or (lane is not None and lane.unsent))

    def turn(self, timeout_s: float) -> int:
        """Wait for the network or for output, at most ``timeout_s``, and handle it; a code of paho's."""
        lane = self.lane
        if lane is None:
            return paho.MQTT_ERR_NO_CONN
        try:
            ready = self._wait(lane, timeout_s)
        except (OSError, ValueError):  # closed under us
            return paho.MQTT_ERR_CONN_LOST
        if self._waker.fileno() in ready:
            self._waker.clear()
        if ready.get(lane.fileno(), 0) & ~select.POLLOUT:  # data, the end, or an error: reading tells
            lane.fill()
        while lane.news:
            if (code := self.loop_read()) or self.lane is not lane:
                return code
        return self._write_and_keep_alive(lane)

    def _wait(self, lane: FastLane, timeout_s: float) -> dict[int, int]:
        """Return the descriptors that have something, with what; ``poll`` takes numbers beyond 1023, too."""
        poll = select.poll()
        poll.register(lane, select.POLLIN | (select.POLLOUT if self.busy else 0))
        poll.register(self._waker, select.POLLIN)
        return dict(poll.poll(timeout_s * 1e3))

    def _write_and_keep_alive(self, lane: FastLane) -> int:
        if self.want_write() and ((code := self.loop_write()) or self.lane is not lane):
            return code
        lane.flush()
        quiet_since = min(lane.heard, lane.said)
        return self.loop_misc() if time.monotonic() - quiet_since >= self.keepalive else paho.MQTT_ERR_SUCCESS

    def _create_socket(self) -> Any:
        """Paho's place to make a socket, or what stands for one."""
        return FastLane(super()._create_socket(), self._mqtt5, self._deliver, self._waker)
