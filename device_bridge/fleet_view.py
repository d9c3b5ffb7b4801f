"""What a listener knows of a fleet, from control messages: a pure state, told (topic, payload, now)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from adaptsplit.config import printable
from adaptsplit.device_bridge.control import (
    Birth,
    Connection,
    Data,
    DecisionCounts,
    EdgeState,
    Envelope,
    Event,
    State,
    parse_control,
)
from adaptsplit.device_bridge.topics import EDGE, PREFIX, leaf_of
from adaptsplit.errors import MessageError

MAX_DEVICES = 4096
MAX_EVENTS = 32
MAX_NEWS = 1000
WATCHED = ("connection", "birth", "state", "decision", "event")
REBIRTH_S = 5.0  # between two requests to one device


@dataclass(slots=True)
class Member:
    """A device (or, with an id ``_edge/EDGE``, an edge server) as it is known. Times are the listener's, monotonic s.

    life: the session that counts (of twins the one that said ONLINE last). connection: "" before any was heard.
    state is a device's, edge an edge server's.
    """

    name: str
    life: str = ""
    connection: str = ""
    birth: Birth | None = None
    state: State | None = None
    edge: EdgeState | None = None
    decision: DecisionCounts | None = None
    events: list[Event] = field(default_factory=list)
    heard_at: float = 0.0
    state_at: float = float("-inf")
    gaps: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    asked_at: float = float("-inf")

    @property
    def is_edge(self) -> bool:
        """Whether it is an edge server."""
        return self.name.startswith(f"{EDGE}/")

    @property
    def presence(self) -> str:
        """The connection's state, or DRAINING for one that is ONLINE and says that it takes up nothing new."""
        said = self.edge if self.is_edge else self.state
        return "DRAINING" if self.connection == "ONLINE" and said is not None and said.draining else self.connection


class FleetView:
    """See the module's text. ``heard`` returns the ids of devices that should be asked for a rebirth."""

    def __init__(self, fleet: str) -> None:
        self.fleet = fleet
        self.members: dict[str, Member] = {}
        self.counts: Counter[str] = Counter()
        self.news: deque[str] = deque(maxlen=MAX_NEWS)  # a line for each change of presence, event and gap

    @property
    def filters(self) -> list[str]:
        """What must be subscribed to."""
        own = f"{PREFIX}/{self.fleet}"
        return [f"{own}/{EDGE}/+/connection", f"{own}/{EDGE}/+/state", *(f"{own}/+/{leaf}" for leaf in WATCHED)]

    @property
    def devices(self) -> list[Member]:
        """The devices, by name."""
        return [member for _, member in sorted(self.members.items()) if not member.is_edge]

    @property
    def edges(self) -> list[Member]:
        """The edge servers, by name."""
        return [member for _, member in sorted(self.members.items()) if member.is_edge]

    def heard(self, topic: str, payload: bytes, now: float) -> Sequence[str]:
        """Take a message; what is not ours, damaged, or of a life that is over is counted and ignored."""
        if not payload:
            return self._cleared(topic)
        try:
            owner, leaf = leaf_of(topic, self.fleet)
            envelope, content = parse_control(payload)
            if envelope.schema_.rpartition("/")[0] != leaf.schema:
                raise MessageError(f"{envelope.schema_} on {leaf.pattern}")
        except MessageError:
            self.counts["malformed"] += 1
            return ()
        if owner not in self.members and len(self.members) >= MAX_DEVICES:
            self.counts["too_many"] += 1
            return ()
        return self._take(self.members.setdefault(owner, Member(owner)), topic, envelope, content, now)

    def _cleared(self, topic: str) -> Sequence[str]:
        """An empty retained message takes what was retained away: the member is forgotten with its connection."""
        try:
            owner, leaf = leaf_of(topic, self.fleet)
        except MessageError:
            self.counts["malformed"] += 1
            return ()
        if leaf.pattern == "connection":
            self.members.pop(owner, None)
        return ()

    def _take(self, member: Member, topic: str, envelope: Envelope, content: Data, now: float) -> Sequence[str]:
        broken = isinstance(content, Connection) and content.state == "CONNECTION_BROKEN"
        if broken and member.life not in ("", envelope.session):
            self.counts["stale_will"] += 1
            return ()
        if envelope.session != member.life:
            if member.connection == "ONLINE" and not (isinstance(content, Connection) and content.state == "ONLINE"):
                return self._twin(member, content)
            self._new_life(member, envelope.session)
        member.heard_at = now
        gap = not broken and self._gap(member, topic, envelope.seq)
        self._note(member, content, now)
        lacks = member.birth is None and not isinstance(content, Connection)
        if (gap or lacks) and now - member.asked_at >= REBIRTH_S and not broken and not member.is_edge:
            member.asked_at = now
            return (member.name,)
        return ()

    def _twin(self, member: Member, content: Data) -> Sequence[str]:
        """Of another life than the one that said ONLINE last, and has not ended, only events are told."""
        self.counts["other_life"] += 1
        if isinstance(content, Event):
            self._tell(member, content)
        return ()

    @staticmethod
    def _new_life(member: Member, session: str) -> None:
        member.life, member.numbers = session, {}
        member.birth = member.state = member.decision = member.edge = None

    def _gap(self, member: Member, topic: str, sequence: int) -> bool:
        """Note a topic's number; whether messages are missing before it."""
        last = member.numbers.get(topic)
        member.numbers[topic] = sequence
        if last is None or sequence == (last + 1) % (1 << 32) or sequence == last:
            return False
        member.gaps += 1
        missing = sequence - last - 1
        are = "message is" if missing == 1 else "messages are"
        self.news.append(f"{member.name}: {missing} {are} missing on {topic.rpartition('/')[2]}")
        return True

    def _note(self, member: Member, content: Data, now: float) -> None:
        if isinstance(content, Connection):
            if content.state != member.connection:
                self.news.append(f"{member.name}: {content.state}")
            member.connection = content.state
        elif isinstance(content, Birth):
            member.birth = content
        elif isinstance(content, State):
            member.state, member.state_at = content, now
        elif isinstance(content, EdgeState):
            member.edge, member.state_at = content, now
        elif isinstance(content, DecisionCounts):
            member.decision = content
        elif isinstance(content, Event):
            self._tell(member, content)

    def _tell(self, member: Member, event: Event) -> None:
        member.events = [*member.events[-MAX_EVENTS + 1 :], event]
        self.news.append(printable(f"{member.name}: {event.kind} {event.detail}"[:300]))
