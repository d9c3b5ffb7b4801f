"""A fleet's certificates, clients of the secured broker, and what a load of messages is made of."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.certificates import Authority
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress, Will
from adaptsplit.errors import RunError

FLEET = "farm"
ONE, TWO = DeviceTopics(FLEET, "device-1"), DeviceTopics(FLEET, "device-2")


def make_fleet(folder: Path, fleet: str = FLEET) -> Path:
    authority = Authority.create(folder, fleet)
    authority.issue("broker", "broker", ["127.0.0.1"])
    authority.issue("edge-1", "edge")
    authority.issue("watch", "monitor")
    authority.issue("chief", "operator")
    for name in ("device-1", "device-2", "gone"):
        authority.issue(name, "device")
    authority.issue("old", "device", days=1, start=datetime.now(UTC) - timedelta(days=9))
    authority.issue("early", "device", days=9, start=datetime.now(UTC) + timedelta(days=2))
    return folder


class Client:
    """A connected client that keeps what it hears."""

    def __init__(
        self,
        address: BrokerAddress,
        filters: list[str] | None = None,
        will: Will | None = None,
        timeout_s: float = 8.0,
        mqtt5: bool = True,
    ) -> None:
        self.heard: list[tuple[str, bytes]] = []
        name = address.cert.stem if address.cert else "nobody"
        self.link = MqttTransport(
            address,
            f"{name}-{id(self)}",
            filters or [],
            lambda topic, payload: self.heard.append((topic, payload)),
            will=will,
            qos=1,
            mqtt5=mqtt5,
        )
        try:
            self.link.wait_connected(timeout_s)
        except RunError:
            self.link.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.link.close()

    def say(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
        assert self.link.publish(topic, payload, qos=1, retain=retain)

    def until(self, topic: str, payload: bytes, timeout_s: float = 8.0) -> set[str]:
        """Wait for a message and return the topics of all that were heard before it."""
        end = time.monotonic() + timeout_s
        while (topic, payload) not in self.heard:
            assert time.monotonic() < end, f"{payload!r} on {topic} did not come; heard {self.heard[-5:]}"
            time.sleep(0.01)
        return {where for where, what in self.heard[: self.heard.index((topic, payload))]}


def secure(broker: EmbeddedBroker, keys: Path, name: str | None, ca: Path | None = None) -> BrokerAddress:
    cert, key = (None, None) if name is None else (keys / f"{name}.crt", keys / f"{name}.key")
    return BrokerAddress("127.0.0.1", broker.port, tls=True, ca=(ca or keys) / "ca.crt", cert=cert, key=key)


def plain(broker: EmbeddedBroker) -> BrokerAddress:
    assert broker.plain_port is not None
    return BrokerAddress("127.0.0.1", broker.plain_port)


def cut(client: Client) -> None:
    """End the connection as a crash would, without DISCONNECT."""
    client.link._closing.set()
    client.link._client.lane.raw.shutdown(socket.SHUT_RDWR)
    client.link.close()
