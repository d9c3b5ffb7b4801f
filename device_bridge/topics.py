"""The topic tree, ``adaptsplit/v1/{fleet}/{device}/...``; at most seven slashes, so that it fits every cloud broker.

Each device speaks and hears below its own id, each edge server below ``_edge/{edge}``. ``LEAVES`` lists every topic
with its sender, quality of service and retention; ``docs/contract.md`` says what travels on each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from adaptsplit.errors import ConfigError, MessageError

PREFIX = "adaptsplit/v1"
EDGE = "_edge"
MAX_TOPIC_CHARS = 256
MAX_SLASHES = 7  # AWS IoT Core's limit, the tightest of the public brokers
_ID = re.compile(r"[A-Za-z0-9.:-][A-Za-z0-9_.:-]{0,63}")


def check_id(what: str, value: str) -> str:
    """Return ``value`` when it can be a fleet, device or edge id; ConfigError otherwise."""
    if not _ID.fullmatch(value):
        raise ConfigError(f"{what} id {value!r}: expected 1 to 64 of A-Z a-z 0-9 . : - _, not starting with _")
    return value


@dataclass(frozen=True, slots=True)
class Leaf:
    """One kind of topic. ``pattern`` is a filter below the device's (or edge server's) id; ``schema`` of its envelope.

    sender: who speaks there. An empty ``schema`` is a binary layout (``messages``).
    """

    pattern: str
    sender: Literal["device", "edge", "service", "operator"]
    qos: Literal[0, 1]
    retain: bool
    schema: str = ""


DESIRED, REPORTED, CHUNK = "policy/desired", "policy/reported", "policy/chunk"

LEAVES = (
    Leaf("up", "device", 0, False),
    Leaf("down", "edge", 0, False),
    Leaf("heartbeat", "device", 0, False),
    Leaf("heartbeat/reply", "edge", 0, False),
    Leaf("connection", "device", 1, True, "adaptsplit.connection"),
    Leaf("birth", "device", 1, True, "adaptsplit.birth"),
    Leaf("state", "device", 0, False, "adaptsplit.state"),
    Leaf("decision", "device", 0, False, "adaptsplit.decision"),
    Leaf("event", "device", 1, False, "adaptsplit.event"),
    Leaf("cmd/+", "operator", 1, False, "adaptsplit.command"),
    Leaf("cmd/+/reply", "device", 1, False, "adaptsplit.reply"),
    Leaf(DESIRED, "operator", 1, True, "adaptsplit.policy-desired"),
    Leaf(REPORTED, "device", 1, True, "adaptsplit.policy-reported"),
    Leaf(f"{CHUNK}/+/+", "operator", 1, False),
    Leaf("observe", "device", 0, False),
    Leaf("advice", "service", 0, False),
)
EDGE_LEAVES = (
    Leaf("connection", "edge", 1, True, "adaptsplit.connection"),
    Leaf("state", "edge", 0, False, "adaptsplit.edge"),
)


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


@lru_cache(maxsize=4096)
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


def leaf_of(topic: str, fleet: str) -> tuple[str, Leaf]:
    """Return (device or ``_edge/EDGE`` id, its kind of topic); MessageError for a topic that the contract has not."""
    start = f"{PREFIX}/{fleet}/{EDGE}/"
    if topic.startswith(start):
        edge, _, rest = topic[len(start) :].partition("/")
        known: tuple[Leaf, ...]
        owner, known = f"{EDGE}/{edge}", EDGE_LEAVES if _ID.fullmatch(edge) else ()
    else:
        owner, rest = device_of(topic, fleet)
        known = LEAVES
    for leaf in known:
        if len(topic) <= MAX_TOPIC_CHARS and topic_matches(leaf.pattern, rest):
            return owner, leaf
    raise MessageError(f"topic {topic[:80]!r}: not one of the contract")


def topic_matches(pattern: str, topic: str) -> bool:
    """Tell whether an MQTT filter (``+`` one level, trailing ``#`` the rest) matches a topic.

    Of a shared subscription (``$share/GROUP/FILTER``, MQTT 5, 4.8.2) the filter counts.
    """
    if pattern.startswith("$share/"):
        pattern = pattern.split("/", 2)[-1]
    wanted, levels = pattern.split("/"), topic.split("/")
    for i, part in enumerate(wanted):
        if part == "#":
            return True
        if i >= len(levels) or part not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)
