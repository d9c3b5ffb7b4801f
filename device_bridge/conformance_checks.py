"""The rules of the contract that can be checked by listening: (record) -> (how often it was seen, what broke it)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from adaptsplit.device_bridge.conformance_record import Item, Record, grouped
from adaptsplit.device_bridge.control import (
    MAX_CONTROL_BYTES,
    Birth,
    Connection,
    DecisionCounts,
    State,
)
from adaptsplit.device_bridge.messages import FrameMessage
from adaptsplit.device_bridge.topics import EDGE, MAX_SLASHES, MAX_TOPIC_CHARS

Found: TypeAlias = tuple[int, list[str]]
Check: TypeAlias = Callable[[Record], Found]
CHECKS: dict[str, Check] = {}

SETTLE_S = 2.0  # what was sent later than this before the end may still be under way
FASTEST_STATE_MS, SLOWEST_STATE_MS = 90.0, 31_000.0
FASTEST_COUNTS_MS = 900.0


def rule(name: str) -> Callable[[Check], Check]:
    """Return a decorator that makes a function the check of a rule."""

    def add(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return add


def each(items: Sequence[Item], fault: Callable[[Item], str]) -> Found:
    """Return how many items there are, and what ``fault`` says of those that it says something of."""
    return len(items), [f"{item.heard.topic}: {text}" for item in items if (text := fault(item))]


def said(record: Record) -> list[Item]:
    """Messages on the topics of devices and edge servers, whatever they say."""
    return [item for item in record.items if item.leaf is not None and item.leaf.sender in ("device", "edge")]


def _enveloped(record: Record) -> list[Item]:
    return [item for item in said(record) if item.leaf is not None and item.leaf.schema and item.heard.payload]


def _numbered(record: Record) -> dict[object, Sequence[Item]]:
    """Live control messages by topic and session, without last wills."""
    items = [item for item in record.live() if item.envelope is not None and not says(item, "CONNECTION_BROKEN")]
    return grouped(items, lambda item: (item.heard.topic, item.envelope.session if item.envelope else ""))


def says(item: Item, state: str) -> bool:
    """Whether it is a connection message of this state."""
    return isinstance(item.content, Connection) and item.content.state == state


def session(item: Item) -> str:
    """The session of a control message, "" for anything else."""
    return item.envelope.session if item.envelope is not None else ""


def _is_device(owner: str) -> bool:
    return bool(owner) and not owner.startswith(EDGE)


@rule("AS-001")
def known_topics(record: Record) -> Found:
    """Every topic is of the table."""
    return each(record.items, lambda item: item.fault if item.leaf is None else "")


@rule("AS-002")
def short_topics(record: Record) -> Found:
    """Depth and length."""

    def fault(item: Item) -> str:
        topic = item.heard.topic
        long = topic.count("/") > MAX_SLASHES or len(topic) > MAX_TOPIC_CHARS
        return f"{topic.count('/')} slashes, {len(topic)} characters" if long else ""

    return each(record.items, fault)


@rule("AS-003")
def quality_of_service(record: Record) -> Found:
    """Each message came with its topic's quality of service (the listener asks for 1)."""
    items = [item for item in record.items if item.leaf is not None and record.keeps_qos]
    return each(items, lambda item: "" if item.leaf and item.heard.qos == item.leaf.qos else f"QoS {item.heard.qos}")


@rule("AS-004")
def retained(record: Record) -> Found:
    """A late listener has heard the connection of all that are there, and the birth of the devices."""
    later = {one.topic for one in record.later}
    owners = {item.owner: item.heard.topic for item, _ in record.contents(Connection)}
    wanted = [topic for topic in owners.values()]
    wanted += [f"{topic.rpartition('/')[0]}/birth" for owner, topic in owners.items() if _is_device(owner)]
    return len(wanted), [f"{topic}: not retained" for topic in wanted if topic not in later]


@rule("AS-005")
def not_retained(record: Record) -> Found:
    """Nothing else came as retained."""
    items = [item for item in record.items if item.leaf is not None and not item.leaf.retain]
    return each(items, lambda item: "retained" if item.heard.retained else "")


@rule("AS-010")
def envelopes(record: Record) -> Found:
    """Control messages can be read."""
    return each(_enveloped(record), lambda item: item.fault)


@rule("AS-011")
def size(record: Record) -> Found:
    """Control messages are small."""
    limit = MAX_CONTROL_BYTES
    return each(_enveloped(record), lambda i: f"{len(i.heard.payload)} bytes" if len(i.heard.payload) > limit else "")


@rule("AS-012")
def finite(record: Record) -> Found:
    """No NaN, no Infinity."""
    return each(_enveloped(record), lambda item: item.fault if "is not allowed" in item.fault else "")


@rule("AS-015")
def schemas(record: Record) -> Found:
    """The schema is that of the topic."""

    def fault(item: Item) -> str:
        assert item.envelope is not None
        assert item.leaf is not None
        name = item.envelope.schema_
        return "" if name.rpartition("/")[0] == item.leaf.schema else f"{name} where {item.leaf.schema} belongs"

    return each([item for item in _enveloped(record) if item.envelope is not None], fault)


@rule("AS-016")
def numbers(record: Record) -> Found:
    """Numbers rise by one; a message that the broker delivered twice counts once."""
    seen, faults = 0, []
    for items in _numbered(record).values():
        for one, two in pairwise(items):
            if one.envelope is None or two.envelope is None or one.heard.payload == two.heard.payload:
                continue
            seen += 1
            if two.envelope.seq != (one.envelope.seq + 1) % (1 << 32):
                faults.append(f"{one.heard.topic}: {two.envelope.seq} after {one.envelope.seq}")
    return seen, faults


@rule("AS-017")
def sessions(record: Record) -> Found:
    """A session that was followed by another one does not come back, and frames have the session of the device."""
    items = [item for item in record.live() if item.leaf and item.leaf.sender != "operator"]
    seen, faults = 0, []
    for owner, said in grouped((i for i in items if not says(i, "CONNECTION_BROKEN")), lambda i: i.owner).items():
        order = [session(item) for item in said]
        changes = [two for one, two in zip(["", *order], order, strict=False) if one != two]
        seen += len(said)
        faults += [f"{owner}: session {name} came back" for name, n in Counter(changes).items() if n > 1]
    known = {(item.owner, session(item)) for item in record.items if item.envelope is not None}
    owners = {owner for owner, _ in known}
    for item, frame in record.messages(FrameMessage):
        if item.owner in owners and (item.owner, frame.session.hex()) not in known:
            faults.append(f"{item.heard.topic}: frames of session {frame.session.hex()}")
    return seen, faults


@rule("AS-018")
def monotonic(record: Record) -> Found:
    """The sender's clock does not fall."""
    pairs = [pair for items in _numbered(record).values() for pair in pairwise(items)]
    faults = [
        f"{a.heard.topic}: falls" for a, b in pairs if a.envelope and b.envelope and b.envelope.mono < a.envelope.mono
    ]
    return len(pairs), faults


@rule("AS-020")
def wills(record: Record) -> Found:
    """Last wills have number 0."""
    items = [item for item, content in record.contents(Connection) if content.state == "CONNECTION_BROKEN"]
    return each(items, lambda item: f"seq {item.envelope.seq}" if item.envelope and item.envelope.seq else "")


@rule("AS-021")
def births(record: Record) -> Found:
    """After ONLINE a device says its birth."""
    seen, faults = 0, []
    born = [(item.owner, session(item), item.heard.at) for item, _ in record.contents(Birth)]
    for item in (i for i in record.live() if says(i, "ONLINE") and _is_device(i.owner)):
        if item.heard.at > record.ended - SETTLE_S:
            continue
        seen += 1
        if not any(o == item.owner and s == session(item) and at >= item.heard.at for o, s, at in born):
            faults.append(f"{item.owner}: no birth after ONLINE")
    return seen, faults


@rule("AS-022")
def ends(record: Record) -> Found:
    """After OFFLINE only ONLINE can follow in a session."""
    seen, faults = 0, []
    over: set[tuple[str, str]] = set()
    for item in record.live():
        life = item.owner, session(item)
        if item.leaf is None or item.leaf.sender == "operator":
            continue
        if says(item, "ONLINE"):
            over.discard(life)
        elif life in over:
            faults.append(f"{item.heard.topic}: after OFFLINE")
        if says(item, "OFFLINE"):
            seen += 1
            over.add(life)
    return seen, faults


@rule("AS-024")
def birth_sessions(record: Record) -> Found:
    """A birth has the session of the connection message before it."""
    seen, faults = 0, []
    last: dict[str, str] = {}
    for item in record.items:
        if says(item, "ONLINE"):
            last[item.owner] = session(item)
        elif isinstance(item.content, Birth) and item.owner in last and not item.heard.retained:
            seen += 1
            if last[item.owner] != session(item):
                faults.append(f"{item.owner}: birth of {session(item)}, ONLINE of {last[item.owner]}")
    return seen, faults


@rule("AS-025")
def late_wills(record: Record) -> Found:
    """Who goes on speaking after a last will under its id has said ONLINE again."""
    seen, faults = 0, []
    broken: dict[str, float] = {}
    for item in (item for item in record.live() if item.leaf is not None and item.leaf.sender != "operator"):
        if says(item, "CONNECTION_BROKEN"):
            broken[item.owner] = item.heard.at
        elif item.owner in broken and (says(item, "ONLINE") or item.heard.at > broken[item.owner] + SETTLE_S):
            seen += 1
            del broken[item.owner]
            faults += [] if says(item, "ONLINE") else [f"{item.heard.topic}: goes on without ONLINE after a last will"]
    return seen, faults


@rule("AS-030")
def state_rate(record: Record) -> Found:
    """State comes neither too often nor too rarely, by the device's clock."""
    seen, faults = 0, []
    states = [item for item, _ in record.contents(State)]
    for owner, items in grouped(states, lambda item: (item.owner, session(item))).items():
        for one, two in pairwise(items):
            assert one.envelope is not None
            assert two.envelope is not None
            seen, apart = seen + 1, two.envelope.mono - one.envelope.mono
            if not FASTEST_STATE_MS <= apart <= SLOWEST_STATE_MS:
                faults.append(f"{owner}: states {apart:.0f} ms apart")
    return seen, faults


@rule("AS-032")
def decision_counts(record: Record) -> Found:
    """Counts sum up, and come at most once a second but for the last one of a life."""
    counts = record.contents(DecisionCounts)
    faults = [
        f"{item.heard.topic}: counts do not sum to {said.frames} frames"
        for item, said in counts
        if any(sum(part.values()) != said.frames for part in (said.decisions, said.paths, said.controllers))
        or said.last - said.first + 1 < said.frames
    ]
    for owner, items in grouped((item for item, _ in counts), lambda i: (i.owner, session(i))).items():
        monos = [item.envelope.mono for item in items if item.envelope is not None]
        near = sum(two - one < FASTEST_COUNTS_MS for one, two in pairwise(monos))
        faults += [f"{owner}: {near} counts less than a second apart"] if near > 1 else []
    return len(counts), faults
