"""The topic tree, ``adaptsplit/v1/{fleet}/{device}/...``; at most seven slashes, so that it fits every cloud broker.

up, down              data plane: frames to the edge; acknowledgements and results to the device (QoS 0)
heartbeat             device to edge, 1 Hz (QoS 0); ``heartbeat/reply`` brings it back
connection            ONLINE, OFFLINE, CONNECTION_BROKEN (QoS 1, retained, last will)
birth                 the device describes itself (QoS 1, retained)
state, event          telemetry, latest only (QoS 0); things that happened (QoS 1)
adaptsplit/v1/{fleet}/_edge/{edge}/connection   the same for an edge server
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adaptsplit.errors import ConfigError, MessageError

PREFIX = "adaptsplit/v1"
EDGE = "_edge"
MAX_TOPIC_CHARS = 256
_ID = re.compile(r"[A-Za-z0-9.:-][A-Za-z0-9_.:-]{0,63}")


def check_id(what: str, value: str) -> str:
    """Return ``value`` when it can be a fleet, device or edge id; ConfigError otherwise."""
    if not _ID.fullmatch(value):
        raise ConfigError(f"{what} id {value!r}: expected 1 to 64 of A-Z a-z 0-9 . : - _, not starting with _")
    return value


@dataclass(frozen=True, slots=True)
class DeviceTopics:
    """The topics of one device."""

    fleet: str
    device: str

    def __post_init__(self) -> None:
        check_id("fleet", self.fleet)
        check_id("device", self.device)

    def leaf(self, name: str) -> str:
        """Return the device's topic called ``name`` (``up``, ``down``, ``heartbeat/reply``, ...)."""
        return f"{PREFIX}/{self.fleet}/{self.device}/{name}"

    @property
    def edges(self) -> str:
        """Filter for the connection topics of the fleet's edge servers."""
        return f"{PREFIX}/{self.fleet}/{EDGE}/+/connection"


def edge_connection(fleet: str, edge: str) -> str:
    """Return the connection topic of an edge server."""
    return f"{PREFIX}/{check_id('fleet', fleet)}/{EDGE}/{check_id('edge', edge)}/connection"


def every_device(fleet: str, leaf: str) -> str:
    """Return the filter for one leaf of all devices of a fleet."""
    return f"{PREFIX}/{check_id('fleet', fleet)}/+/{leaf}"


def device_of(topic: str, fleet: str) -> tuple[str, str]:
    """Split a device's topic into (device id, leaf); MessageError for any other topic."""
    start = f"{PREFIX}/{fleet}/"
    if len(topic) > MAX_TOPIC_CHARS or not topic.startswith(start):
        raise MessageError(f"topic {topic[:80]!r}: expected {start}...")
    device, _, leaf = topic[len(start) :].partition("/")
    if not _ID.fullmatch(device) or not leaf:
        raise MessageError(f"topic {topic[:80]!r}: expected {start}DEVICE/LEAF")
    return device, leaf


def edge_of(topic: str, fleet: str) -> str:
    """Return the edge id of an edge's connection topic; MessageError for any other topic."""
    start, end = f"{PREFIX}/{fleet}/{EDGE}/", "/connection"
    edge = topic[len(start) : -len(end)]
    if not (topic.startswith(start) and topic.endswith(end) and _ID.fullmatch(edge)):
        raise MessageError(f"topic {topic[:80]!r}: expected {start}EDGE{end}")
    return edge
