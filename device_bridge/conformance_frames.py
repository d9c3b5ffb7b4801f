"""Rules of the data plane and of commands that can be checked by listening; see ``conformance_checks``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from adaptsplit.device_bridge.conformance_checks import SETTLE_S, Found, each, rule, said, says
from adaptsplit.device_bridge.conformance_record import Record
from adaptsplit.device_bridge.control import Command, CommandReply, Connection
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Heartbeat, Result
from adaptsplit.device_bridge.topics import EDGE

FRAME_RULES = ("AS-033", "AS-040", "AS-041", "AS-043", "AS-046", "AS-050", "AS-051")


def _served(record: Record) -> Callable[[float], bool]:
    """Whether some edge server was there from a time until what it was asked then was answered."""
    changes = [
        (item.heard.at, item.owner, said.state) for item, said in record.contents(Connection) if EDGE in item.owner
    ]

    def served(at: float) -> bool:
        if at > record.ended - SETTLE_S:
            return False
        before = {owner: state for when, owner, state in changes if when <= at}
        during = [state for when, _, state in changes if at < when <= at + SETTLE_S]
        return "ONLINE" in before.values() and all(state == "ONLINE" for state in during)

    return served


@rule("AS-033")
def heartbeats(record: Record) -> Found:
    """Heartbeats come back as they were."""
    served, beats = _served(record), record.messages(Heartbeat)
    back = {(item.owner, beat.session, beat.sequence, beat.sent_us) for item, beat in beats if beat.reply}
    asked = [(i, b) for i, b in beats if not b.reply and served(i.heard.at)]
    lost = [(i, b) for i, b in asked if (i.owner, b.session, b.sequence, b.sent_us) not in back]
    return len(asked), [f"{item.owner}: heartbeat {beat.sequence} not returned" for item, beat in lost]


@rule("AS-040")
def layouts(record: Record) -> Found:
    """Messages of the data plane can be read."""
    items = [i for i in said(record) if i.leaf and not i.leaf.schema and (i.message is not None or i.fault)]
    return each(items, lambda item: item.fault)


def _frames(record: Record) -> list[tuple[str, bytes, int]]:
    """(owner, session, sequence) of frame messages that an edge server was there for."""
    served = _served(record)
    return [(i.owner, f.session, f.sequence) for i, f in record.messages(FrameMessage) if served(i.heard.at)]


@rule("AS-041")
def acknowledged(record: Record) -> Found:
    """Frame messages are acknowledged."""
    frames, acks = _frames(record), {(i.owner, a.session, a.sequence) for i, a in record.messages(Ack)}
    lost = [key for key in frames if key not in acks]
    return len(frames), [f"{owner}: frame message {number} has no acknowledgement" for owner, _, number in lost]


@rule("AS-043")
def answered(record: Record) -> Found:
    """Frame messages have one result each."""
    frames = _frames(record)
    results = Counter((i.owner, r.session, r.sequence) for i, r in record.messages(Result))
    faults = [f"{key[0]}: frame message {key[2]} has no result" for key in frames if not results[key]]
    faults += [f"{key[0]}: {count} results of frame message {key[2]}" for key, count in results.items() if count > 1]
    return len(frames), faults


@rule("AS-046")
def frame_numbers(record: Record) -> Found:
    """Sequences of frame messages rise."""
    numbers: dict[tuple[str, bytes], list[int]] = {}
    for item, frame in record.messages(FrameMessage):
        numbers.setdefault((item.owner, frame.session), []).append(frame.sequence)
    pairs = [(owner, one, two) for (owner, _), said in numbers.items() for one, two in pairwise(said)]
    return len(pairs), [f"{owner}: frame message {two} after {one}" for owner, one, two in pairs if two <= one]


@rule("AS-050")
def commands(record: Record) -> Found:
    """Commands can be read, and are on topics of their own."""
    items = [item for item, _ in record.contents(Command)]
    return each(items, lambda item: "" if item.leaf and item.leaf.pattern == "cmd/+" else "not on a command topic")


@rule("AS-051")
def replies(record: Record) -> Found:
    """As many replies as commands, by id, from every device that was there."""
    there = {item.owner for item in record.items if says(item, "ONLINE")}
    given = Counter((i.owner, c.cmd_id) for i, c in record.contents(Command) if i.heard.at < record.ended - SETTLE_S)
    got = Counter((item.owner, reply.cmd_id) for item, reply in record.contents(CommandReply))
    asked = {key: n for key, n in given.items() if key[0] in there}
    return len(asked), [
        f"{key[0]}: {got[key]} replies to {n} commands {key[1]}" for key, n in asked.items() if got[key] != n
    ]
