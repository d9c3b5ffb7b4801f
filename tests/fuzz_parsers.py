"""Targets of fuzzing: what takes apart the bytes of a socket."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from fuzz_seeds import (
    FLEET,
    contents,
    data_plane,
    envelope,
    observation_of,
)
from fuzzing import SESSION, Target, sealed

from adaptsplit import fuzzing as fz
from adaptsplit.device_bridge.advice_messages import (
    Advice,
    parse_advice,
    parse_observation,
)
from adaptsplit.device_bridge.control import (
    SCHEMAS,
    parse_control,
)
from adaptsplit.device_bridge.deliveries import Deliveries
from adaptsplit.device_bridge.fast_lane import FastLane
from adaptsplit.device_bridge.mavlink import Decoder
from adaptsplit.device_bridge.mavlink_fields import Vehicle
from adaptsplit.device_bridge.mavlink_vehicle import SimulatedVehicle
from adaptsplit.device_bridge.messages import (
    parse_message,
)
from adaptsplit.device_bridge.topics import device_of, edge_of, leaf_of
from adaptsplit.errors import MessageError


def message() -> Target:
    """Every message of the data plane; what is read gives the same bytes again."""
    whole, mutators = data_plane()

    def read(data: bytes) -> None:
        assert parse_message(data).to_bytes() == data

    return Target(whole, mutators, read)


def control() -> Target:
    """Control messages of every schema."""
    whole = [envelope(content) for content in contents()]
    assert len(whole) == len(SCHEMAS)
    return Target(whole, [fz.json_of(text) for text in whole], parse_control)


def topic() -> Target:
    """Names of topics, which everybody on a broker may choose."""
    names = (f"adaptsplit/v1/{FLEET}/d-1/cmd/ping", f"adaptsplit/v1/{FLEET}/_edge/e/connection")
    whole = [name.encode() for name in (*names, f"adaptsplit/v1/{FLEET}/d-1/policy/chunk/{'0' * 64}/3")]

    def read(data: bytes) -> None:
        name = data.decode(errors="replace")
        owner, leaf = leaf_of(name, FLEET)
        if leaf.sender == "edge" and owner.startswith("_edge/") and leaf.pattern == "connection":
            assert f"_edge/{edge_of(name, FLEET)}" == owner
        elif not owner.startswith("_edge/"):
            assert "/".join(device_of(name, FLEET)).startswith(f"{owner}/")

    return Target(whole, [fz.bytes_of(data) for data in whole], read)


def observation() -> Target:
    """Observations for the decision service."""
    data = observation_of().to_bytes()

    def read(content: bytes) -> None:
        assert parse_observation(content).to_bytes() == content

    return Target([data], [fz.sealed_of(data[:-4], sealed)], read)


def advice() -> Target:
    """Advice of the decision service."""
    data = Advice(SESSION, 3, 0, 1, 2, 0.004).to_bytes()

    def read(content: bytes) -> None:
        assert parse_advice(content).to_bytes() == content

    return Target([data], [fz.sealed_of(data[:-4], sealed)], read)


def packets() -> Target:
    """MQTT packets of a broker, cut into messages beside paho; no byte is lost or made up."""
    body, ping, ack = b"\0\5topic" + b"payload", b"\xd0\0", b"\x40\2\0\1"
    five = b"\0\5topic" + b"\2\x23\1" + b"payload"
    one, with_properties = (bytes((0x30, len(said))) + said for said in (body, five))
    whole = [one, one + ping + one, with_properties, ack + one]
    waker: Any = SimpleNamespace(wake=lambda: None)

    heard: list[tuple[bytes, bytes]] = []
    onward = Deliveries(["adaptsplit/#", "topic"], (), lambda name, text: None, None, Counter())

    def deliver(name: bytes, text: bytes) -> None:
        heard.append((name, text))
        onward.beside_paho(name, text)

    def read(data: bytes) -> None:
        for mqtt5 in (False, True):
            heard.clear()
            lane = FastLane(_Source(data), mqtt5, deliver, waker)
            lane.fill()
            if lane._error is not None:
                raise MessageError(str(lane._error))
            kept = len(lane._for_paho) + len(lane._rest) + sum(len(name) + len(text) for name, text in heard)
            assert kept <= len(data)
            assert heard or len(lane._for_paho) + len(lane._rest) == len(data)

    return Target(whole, [fz.bytes_of(data) for data in whole], read)


class _Source:
    """A socket that brings ``data`` and then nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv(self, size: int) -> bytes:
        if not self._data:
            raise BlockingIOError
        data, self._data = self._data[:size], self._data[size:]
        return data

    def fileno(self) -> int:
        return 0


def mavlink() -> Target:
    """Datagrams of a vehicle: decoded and taken as values; those that are fresh are finite."""
    made, extra = SimulatedVehicle(), (334, b"\1\0\2\0\3\0\4\5\6\x50")
    whole = [*made.packets(0), made.frame(*extra)]
    decoder, vehicle = Decoder(), Vehicle()

    def read(data: bytes) -> None:
        found = decoder.feed(data, whole=True)
        now = time.monotonic()
        for name, fields, system in found:
            vehicle.take(name, fields, system, now)
        assert all(np.isfinite(list(vehicle.values(now).values())))
        if not found:
            raise MessageError("no message of a vehicle")

    return Target(whole, [fz.sealed_of(data[1:-2], _packet_of(data)) for data in whole], read)


def _packet_of(data: bytes) -> Callable[[bytes], bytes]:
    """Return what makes a MAVLink packet of its body: start and checksum, by the message's CRC_EXTRA."""
    from pymavlink.dialects.v20 import common

    from adaptsplit.device_bridge.mavlink_fields import LAYOUTS

    def packet(body: bytes) -> bytes:
        number = int.from_bytes(body[6:9], "little")
        known = common.mavlink_map.get(number)
        extra = known.crc_extra if known else LAYOUTS[number].crc_extra if number in LAYOUTS else 0
        return data[:1] + body + int(common.x25crc(body + bytes([extra])).crc).to_bytes(2, "little")

    return packet


PARSERS: dict[str, Callable[[], Target]] = {
    "message": message,
    "control": control,
    "topic": topic,
    "observation": observation,
    "advice": advice,
    "packets": packets,
    "mavlink": mavlink,
}
