"""What was heard of a fleet, message by message, parsed once: the ground that the rules are checked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from adaptsplit.device_bridge.control import Data, Envelope, parse_control
from adaptsplit.device_bridge.messages import Message, parse_message
from adaptsplit.device_bridge.topics import Leaf, leaf_of
from adaptsplit.errors import MessageError

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Heard:
    """One message as the broker delivered it. at: the listener's monotonic time, s. retained: from before."""

    at: float
    topic: str
    payload: bytes
    qos: int
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A message and what it says; ``fault`` why it says nothing (then the rest is None)."""

    heard: Heard
    owner: str
    leaf: Leaf | None
    envelope: Envelope | None = None
    content: Data | None = None
    message: Message | None = None
    fault: str = ""


@dataclass(frozen=True)
class Record:
    """All that was heard in order, between ``began`` and ``ended``.

    later: what a second listener, who came at the end, heard as retained. probes: notes of active probes
    (rule, whether it was kept, what was seen). strangers: owners that only the prober spoke for. keeps_qos: whether the
    broker delivers with the sender's quality of service (amqtt does not, so 3.1.1 says nothing about it).
    """

    fleet: str
    heard: tuple[Heard, ...]
    began: float
    ended: float
    later: tuple[Heard, ...] = ()
    probes: tuple[tuple[str, bool, str], ...] = ()
    strangers: frozenset[str] = field(default_factory=frozenset)
    keeps_qos: bool = True

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The messages, parsed; what the prober itself said for nobody is left out."""
        return tuple(
            item for item in (parsed(self.fleet, one) for one in self.heard) if item.owner not in self.strangers
        )

    def live(self) -> Iterator[Item]:
        """The control messages that came while we listened, and could be read."""
        return (item for item in self.items if item.envelope is not None and not item.heard.retained)

    def contents(self, kind: type[M], owner: str = "") -> list[tuple[Item, M]]:
        """Messages whose content is of a kind, of one owner or all; retained ones too."""
        found = [(item, item.content) for item in self.items if not owner or item.owner == owner]
        return [(item, content) for item, content in found if isinstance(content, kind)]

    def messages(self, kind: type[M]) -> list[tuple[Item, M]]:
        """Messages of the data plane of a kind."""
        return [(item, item.message) for item in self.items if isinstance(item.message, kind)]


def parsed(fleet: str, heard: Heard) -> Item:
    """Parse one message; what is wrong with it is noted, never raised."""
    try:
        owner, leaf = leaf_of(heard.topic, fleet)
    except MessageError as error:
        return Item(heard, "", None, fault=str(error))
    if not heard.payload or leaf.pattern.startswith(("policy/chunk", "observe", "advice")):
        return Item(heard, owner, leaf)
    try:
        if leaf.schema:
            envelope, content = parse_control(heard.payload)
            return Item(heard, owner, leaf, envelope, content)
        return Item(heard, owner, leaf, message=parse_message(heard.payload))
    except MessageError as error:
        return Item(heard, owner, leaf, fault=str(error))


def grouped(items: Iterable[Item], key: Callable[[Item], object]) -> dict[object, Sequence[Item]]:
    """Return the items by key, each group in the order in which it was heard."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return dict(groups)
