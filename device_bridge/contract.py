"""The live contract as numbered rules: what devices, edge servers and operators keep, and others may rely on.

``docs/contract.md`` shows them; ``tests/test_live_contract.py`` holds each by a test that names it, and
``adaptsplit conformance`` checks on a running fleet what can be seen from outside. A rule keeps its number for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adaptsplit.device_bridge.control import MAX_CONTROL_BYTES
from adaptsplit.device_bridge.topics import EDGE_LEAVES, LEAVES, MAX_SLASHES, MAX_TOPIC_CHARS, Leaf

Profile = Literal["all", "device", "edge", "operator"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``profile``: who must keep it (``operator``: whoever listens or commands)."""

    id: str
    profile: Profile
    text: str


RULES = (
    Rule("AS-001", "all", "Everything is said on a topic of the table, under the sender's own id."),
    Rule("AS-002", "all", f"A topic has at most {MAX_SLASHES} slashes and {MAX_TOPIC_CHARS} characters."),
    Rule("AS-003", "all", "Each topic has the quality of service of the table."),
    Rule("AS-004", "all", "What the table retains is retained: whoever comes later hears it."),
    Rule("AS-005", "all", "What the table does not retain never is."),
    Rule("AS-010", "all", "A control message is a JSON object with schema, seq, session, ts, mono and data."),
    Rule("AS-011", "all", f"It has at most {MAX_CONTROL_BYTES} bytes; a larger one is refused before it is parsed."),
    Rule("AS-012", "all", "NaN and Infinity are neither sent nor taken."),
    Rule("AS-013", "all", "Unknown keys are ignored, in the envelope and in its data."),
    Rule("AS-014", "all", "A missing or impossible value refuses the whole message."),
    Rule("AS-015", "all", "The schema is that of the topic."),
    Rule("AS-016", "all", "seq rises by one from message to message of a topic within a session, modulo 2^32."),
    Rule("AS-017", "all", "session is new for each life of a process, and the same in all that this life says."),
    Rule("AS-018", "all", "mono never falls within a session."),
    Rule("AS-019", "all", "A message that is not ours or is damaged is counted and changes nothing."),
    Rule("AS-020", "all", "The last will is CONNECTION_BROKEN with the session of this life and seq 0."),
    Rule("AS-021", "device", "On every connection a device says ONLINE and then its birth."),
    Rule("AS-022", "all", "A clean end says OFFLINE before it disconnects; after it nothing but ONLINE can follow."),
    Rule("AS-023", "all", "A last will of another session than the one that was last there is ignored."),
    Rule("AS-024", "device", "The birth has the session of the connection message before it."),
    Rule(
        "AS-025",
        "all",
        "Who is there and hears a last will (or OFFLINE of another life) under its id says ONLINE again.",
    ),
    Rule("AS-026", "device", "Another life under the same id is told as an event (twin); who said ONLINE last counts."),
    Rule("AS-027", "all", "Who is told to end takes up nothing new, ends what is under way in 3 s, and says OFFLINE."),
    Rule("AS-030", "device", "State comes at most 10 times a second and at least every 30 s."),
    Rule("AS-031", "device", "State waits behind nothing: what cannot leave at once is left out, and takes no number."),
    Rule("AS-032", "device", "Decisions are told as counts, at most once a second, that sum up to the frames."),
    Rule("AS-033", "edge", "Every heartbeat is returned with its session, sequence and time."),
    Rule("AS-040", "all", "Frames, acknowledgements, results and heartbeats have the fixed layouts, with a checksum."),
    Rule(
        "AS-041",
        "edge",
        "A frame message for a model that it has is acknowledged when it comes, up to twice the bundle's rate.",
    ),
    Rule("AS-042", "edge", "A frame message that was had before is acknowledged and not worked on again."),
    Rule("AS-043", "edge", "Every frame message that it has acknowledged gets one result: done, dropped or refused."),
    Rule("AS-044", "edge", "A frame that cannot be answered by its deadline is dropped, with a result that says so."),
    Rule("AS-045", "device", "Results of another session, and repeated ones, are ignored."),
    Rule("AS-046", "device", "The sequence of frame messages rises within a session."),
    Rule("AS-050", "operator", "A command names the life that it is for, its id, number, time of issue and validity."),
    Rule("AS-051", "device", "Every well-formed command is answered once, on its reply topic, with its id."),
    Rule("AS-052", "device", "A command whose validity is over by more than 60 s is not done: EXPIRED."),
    Rule("AS-053", "device", "A command that was had before is not done again: DUPLICATE."),
    Rule("AS-054", "device", "A command whose number does not exceed its sender's last is not done: OUT_OF_ORDER."),
    Rule("AS-055", "device", "A command that the device does not have is answered: UNKNOWN."),
    Rule("AS-056", "device", "A command for another life is not done: REFUSED."),
    Rule("AS-057", "device", "A retained command is never done."),
    Rule("AS-058", "device", "The wall clock judges the age of commands and of signatures; no decision depends on it."),
    Rule("AS-059", "device", "rebirth is answered by ONLINE and the birth."),
    Rule("AS-060", "operator", "Whoever misses a number, or a birth, asks for a rebirth; at most every 5 s."),
    Rule("AS-070", "all", "Control speaks MQTT 5 where the broker does, else 3.1.1 (same payloads); data 3.1.1."),
    Rule("AS-071", "all", "What MQTT 5 carries beside a payload repeats what the payload says."),
    Rule("AS-072", "all", "Connections start clean: nothing that was said while one was away comes later."),
)


def rules_table() -> str:
    """Return the rules as a Markdown table."""
    head = "| rule | who | what |\n| --- | --- | --- |\n"
    return head + "\n".join(f"| {rule.id} | {rule.profile} | {rule.text} |" for rule in RULES)


def topics_table() -> str:
    """Return the topics as a Markdown table."""
    head = "| topic | said by | QoS | retained | content |\n| --- | --- | --- | --- | --- |\n"
    rows = [_row("{device}", leaf) for leaf in LEAVES] + [_row("_edge/{edge}", leaf) for leaf in EDGE_LEAVES]
    return head + "\n".join(rows)


def _row(owner: str, leaf: Leaf) -> str:
    content = f"`{leaf.schema}/1`" if leaf.schema else "binary"
    return f"| `{owner}/{leaf.pattern}` | {leaf.sender} | {leaf.qos} | {'yes' if leaf.retain else 'no'} | {content} |"


def tables() -> str:
    """Return both tables, as ``docs/contract.md`` shows them."""
    return f"{topics_table()}\n\n{rules_table()}"
