"""Many light devices in one process, for load and soak tests: real protocol bytes, one TCP connection each, no threads.

A ``LightDevice`` runs the real ``DeviceSession``; what a board would compute (signals, head, codec) takes no time here
and gives the same container for every frame. MQTT is spoken by hand (3.1.1, QoS 0), since a hundred clients of a
library would be two hundred threads, and the load generator the bottleneck.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from adaptsplit.decision import Decision
from adaptsplit.device_bridge.actions import Action, Beat, Decide, Encode, Look, Run, Send, SessionConfig, Settled
from adaptsplit.device_bridge.messages import parse_message
from adaptsplit.device_bridge.mqtt import tune_socket
from adaptsplit.device_bridge.packets import PUBLISH, packet, publish_packet, text
from adaptsplit.device_bridge.session import DeviceSession
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.errors import MessageError, RunError
from adaptsplit.outcome import Outcomes

CONNACK, SUBACK = 0x20, 0x90
_CONNECT, _SUBSCRIBE, _PING = 0x10, 0x82, b"\xc0\x00"
KEEPALIVE_S = 60
CELLS = 16


class RawClient:
    """An MQTT connection on asyncio streams: connect, subscribe, publish and read at QoS 0."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, host: str, port: int, client_id: str, topics: list[str]) -> RawClient:
        """Connect with a clean session and subscribe; RunError when the broker refuses."""
        reader, writer = await asyncio.open_connection(host, port)
        tune_socket(writer.get_extra_info("socket"))
        client = cls(reader, writer)
        writer.write(packet(_CONNECT, text("MQTT") + b"\x04\x02" + KEEPALIVE_S.to_bytes(2, "big") + text(client_id)))
        kind, body = await client.read()
        if kind != CONNACK or body[1]:
            raise RunError(f"the broker refuses {client_id!r}: {body.hex()}")
        if topics:
            filters = b"".join(text(topic) + b"\x00" for topic in topics)
            writer.write(packet(_SUBSCRIBE, b"\x00\x01" + filters))
            kind, body = await client.read()
            if kind != SUBACK or any(code >= 0x80 for code in body[2:]):
                raise RunError(f"the broker refuses a subscription of {client_id!r}: {body.hex()}")
        return client

    async def read(self) -> tuple[int, bytes]:
        """Return the type (without flags) and body of the next packet; EOFError when the connection ends."""
        first = (await self._reader.readexactly(1))[0]
        length, shift = 0, 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return first & 0xF0, await self._reader.readexactly(length)

    async def message(self) -> tuple[str, bytes]:
        """Return topic and payload of the next PUBLISH at QoS 0."""
        while True:
            kind, body = await self.read()
            if kind == PUBLISH:
                end = 2 + int.from_bytes(body[:2], "big")
                return body[2:end].decode(), body[end:]

    def publish(self, topic: str, payload: bytes) -> None:
        """Write a PUBLISH."""
        self._writer.write(publish_packet(topic, payload))

    def ping(self) -> None:
        """Keep the connection alive."""
        self._writer.write(_PING)

    def set_send_buffer(self, size: int) -> None:
        """Bound what the system holds for this connection."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    async def close(self) -> None:
        """Disconnect."""
        with contextlib.suppress(OSError):
            self._writer.write(b"\xe0\x00")
            self._writer.close()
            await self._writer.wait_closed()


@dataclass
class LightDevice:
    """One simulated device that decides the same for every frame and sends the same ``container``.

    records: one outcome per frame that has ended. latencies: from frame message to result, s. lags: how late this
    process was at what the session had planned, s: a generator that lags measures itself. ``offset_s`` shifts its
    frames against those of the others.
    """

    name: str
    config: SessionConfig
    decision: Decision
    container: bytes
    fleet: str = "default"
    model: bytes = b""
    offset_s: float = 0.0
    records: list[Outcomes] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._topics = DeviceTopics(self.fleet, self.name)
        self.session = DeviceSession(self.config, lambda frame, prediction: 1.0)
        self._exit = np.zeros(CELLS, dtype=np.uint8)
        self._t0 = 0.0
        self._sent: dict[int, float] = {}
        self._client: RawClient | None = None

    async def run(self, host: str, port: int, start_at: float) -> None:
        """Connect and fly all frames from monotonic time ``start_at``; every frame ends in a record."""
        down = [self._topics.leaf("down"), self._topics.leaf("heartbeat/reply")]
        self._client = await RawClient.connect(host, port, self.name, down)
        self._t0 = start_at + self.offset_s
        reading = asyncio.create_task(self._read(self._client))
        try:
            await self._fly()
        finally:
            self._do(self.session.finish(self._now()))
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
                await reading
            await self._client.close()

    async def _fly(self) -> None:
        while not self.session.done:
            planned = self.session.next_wakeup()
            await asyncio.sleep(min(max(planned - self._now(), 0.0), 1.0))
            if (now := self._now()) >= planned:
                self.lags.append(now - planned)
                self._do(self.session.tick(now))

    async def _read(self, client: RawClient) -> None:
        while True:
            _, payload = await client.message()
            try:
                message = parse_message(payload)
            except MessageError:
                self.counts["malformed"] += 1
                continue
            if (status := getattr(message, "status", None)) is not None:
                self.counts[f"result_{status.name.lower()}"] += 1
                self.latencies.append(time.monotonic() - self._sent.pop(message.sequence))
            self._do(self.session.received(message, max(self._now(), 0.0)))

    def _now(self) -> float:
        return time.monotonic() - self._t0

    def _do(self, actions: list[Action]) -> None:
        """Do what the session asks; what a board would compute is done at once."""
        for action in actions:
            now = self._now()
            if isinstance(action, Settled):
                self.records.append(action.outcome)
            elif isinstance(action, Send | Beat):
                self._send(action, now)
            elif isinstance(action, Look):
                self._do(self.session.looked(action.frame, 0.1, 0.1, now))
            elif isinstance(action, Decide):
                self._do(self.session.decided(action.frame, self.decision, now))
            elif isinstance(action, Run):
                self._do(self.session.ran(action.frame, self._exit, 0.5, now))
            elif isinstance(action, Encode):
                self._do(self.session.encoded(action.frame, self.container, now))

    def _send(self, action: Send | Beat, now: float) -> None:
        assert self._client is not None
        if isinstance(action, Send):
            self._sent[action.message.sequence] = self._t0 + now
            self.counts["sent"] += 1
            message = replace(action.message, model=self.model)
            self._client.publish(self._topics.leaf("up"), message.to_bytes())
        else:
            self._client.publish(self._topics.leaf("heartbeat"), action.message.to_bytes())


async def fly_all(devices: list[LightDevice], host: str, port: int, lead_s: float = 1.0) -> None:
    """Run devices side by side; their first frames come ``lead_s`` after the call."""
    start = time.monotonic() + lead_s
    await asyncio.gather(*(device.run(host, port, start) for device in devices))
