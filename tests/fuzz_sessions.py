"""Targets of fuzzing: the state machines that messages go to.

They never raise: they count what they cannot use, and a rise of that count is told here as a refusal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from fuzz_policies import SPACE
from fuzz_seeds import (
    FLEET,
    NOW,
    NoTransport,
    agent,
    command,
    contents,
    data_plane,
    envelope,
    observation_of,
    unless_counted,
)
from fuzzing import SESSION, Target, sealed

from adaptsplit import fuzzing as fz
from adaptsplit import observation as obs
from adaptsplit.agents.static import StaticController
from adaptsplit.decision import Decision
from adaptsplit.device_bridge import device_link, operator, policy_sender
from adaptsplit.device_bridge import edge_link as edge_module
from adaptsplit.device_bridge.actions import Action, Send, SessionConfig, Settled
from adaptsplit.device_bridge.advice import Desk
from adaptsplit.device_bridge.advice_messages import (
    Advice,
    parse_observation,
)
from adaptsplit.device_bridge.commands import HANDLERS, Commands
from adaptsplit.device_bridge.conformance_record import Heard, parsed
from adaptsplit.device_bridge.control import (
    Birth,
    Connection,
)
from adaptsplit.device_bridge.decision_session import DecisionSession
from adaptsplit.device_bridge.edge_session import EdgeSession, Work
from adaptsplit.device_bridge.fleet_view import FleetView
from adaptsplit.device_bridge.messages import (
    FrameMessage,
    Heartbeat,
    parse_message,
)
from adaptsplit.device_bridge.session import DeviceSession
from adaptsplit.device_bridge.topics import LEAVES, DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import CodecError


def edge() -> Target:
    """An edge server's session: frames and heartbeats of everybody; its tail refuses what it is given."""
    whole, mutators = data_plane()
    session, times = EdgeSession(FLEET, branches=4, max_queue=8), itertools.count()
    leaves = itertools.cycle(("up", "up", "heartbeat"))

    def read(data: bytes) -> None:
        before, now = session.counts["malformed"], next(times) * 1e-3
        leaf = "heartbeat" if data[3:4] == b"\4" else next(leaves)
        actions = session.received(f"adaptsplit/v1/{FLEET}/d/{leaf}", data, now)
        while work := [action for action in actions if isinstance(action, Work)]:
            actions = session.finished(work[0], [CodecError("no container of ours")] * len(work[0].jobs), now)
        unless_counted(session.counts, "malformed", before)

    return Target([whole[-1], whole[-2], whole[-4]], mutators, read)


class _OneFrame:
    """A device's session with one frame that waits for its answer; every fifth message meets a new one."""

    def __init__(self) -> None:
        self.session = DeviceSession(SessionConfig(SESSION, SPACE, 10.0, 0.25), lambda frame, prediction: 0.5)
        self.records, self._left, self._frame = 0, 0, -1

    def sent(self) -> tuple[FrameMessage, float]:
        """Return the message of the frame that is under way, and a time at which its answer would count."""
        self._left -= 1
        if self._left < 0:
            self._left, self._message = 4, self._next()
        return self._message, self._frame / 10.0 + 0.1

    def _next(self) -> FrameMessage:
        self._frame += 400  # what is under way gives up long before
        session, now, actions = self.session, self._frame / 10.0, list[Action]()
        session._frame = self._frame
        actions += session.tick(now)
        actions += session.looked(self._frame, 0.1, 0.1, now)
        actions += session.decided(self._frame, Decision(0, 0, 2), now)
        actions += session.ran(self._frame, np.zeros(16, np.uint8), 0.4, now)
        actions += session.encoded(self._frame, bytes(100), now)
        self.records += sum(isinstance(action, Settled) for action in actions)
        return next(action.message for action in actions if isinstance(action, Send))


def session() -> Target:
    """Answers of an edge server as a device's session takes them, meant for a frame that waits for one."""
    whole, mutators = data_plane()
    one = _OneFrame()

    def read(data: bytes) -> None:
        found, (sent, now) = parse_message(data), one.sent()
        if not isinstance(found, Heartbeat):
            found = replace(found, sequence=sent.sequence, frame=sent.frame)
        ended = [action for action in one.session.received(found, now) if isinstance(action, Settled)]
        assert len(ended) <= 1
        one.records += len(ended)
        assert one.records <= one._frame // 400 + 1  # each frame ends once

    return Target(whole[1:2], [mutator for mutator in mutators[:6] for _ in (0, 1)], read)


def commands() -> Target:
    """Commands to a device, judged and done; a device is born anew every 200 inputs, as it remembers 256."""
    whole = [envelope(command())]
    leaves = itertools.cycle(("cmd/ping", "cmd/controller", "cmd/report", "cmd/Ping", "cmd/x"))
    handlers = {name: HANDLERS[name] for name in ("ping", "report", "pause-learning")}
    handlers["controller"] = lambda agent, args: {"taken": bool(HANDLERS["controller"](agent, args))}
    parts = iter(_parts(handlers))

    def read(data: bytes) -> None:
        part = next(parts)
        before = part.counts["malformed"]
        part.message("cmd/ping" if data in whole else next(leaves), data, 0.0)
        part.tick(0.0)
        unless_counted(part.counts, "malformed", before)

    return Target(whole, [fz.json_of(text) for text in whole], read)


def _parts(handlers: dict[str, Any]) -> Iterable[Commands]:
    while True:
        part = Commands(handlers, wall=lambda: float(NOW))
        part.started(agent())
        yield from itertools.repeat(part, 200)


def device() -> Target:
    """All that a device's two connections bring: answers, presence of edge servers, its own topic, its parts'."""
    posted: list[object] = []
    topics = DeviceTopics(FLEET, "d")
    with mock.patch.object(device_link, "MqttTransport", NoTransport):
        address = BrokerAddress.parse("mqtt://127.0.0.1")
        birth = next(content for content in contents() if isinstance(content, Birth))
        link = device_link.DeviceLink(address, topics, SESSION, birth, lambda e, at: posted.append(e), ["cmd/+"])
    own, other = topics.leaf("connection"), f"adaptsplit/v1/{FLEET}/_edge/e/connection"
    names = itertools.cycle((topics.leaf("down"), topics.leaf("heartbeat/reply"), own, other, topics.leaf("cmd/x")))
    short, mutators = data_plane()
    online = [envelope(Connection(state="ONLINE")), envelope(Connection(state="CONNECTION_BROKEN"))]

    def read(data: bytes) -> None:
        before = link.counts["malformed"]
        link._on_message(topics.leaf("down") if data in short else next(names), data)
        posted.clear()
        unless_counted(link.counts, "malformed", before)

    return Target([*short[:2]], [*mutators, *(fz.json_of(text) for text in online)], read)


def edge_link() -> Target:
    """What an edge server's control connection brings: heartbeats, and its own topic."""
    heard: list[bytes] = []
    with mock.patch.object(edge_module, "SharedTransport", NoTransport):
        address = BrokerAddress.parse("mqtt://127.0.0.1")
        link = edge_module.EdgeLink(address, FLEET, "e", lambda name, data: heard.append(data))
    whole = [envelope(Connection(state="ONLINE")), envelope(Connection(state="CONNECTION_BROKEN"))]

    def read(data: bytes) -> None:
        link._on_control(f"adaptsplit/v1/{FLEET}/_edge/e/connection", data)
        assert not heard

    return Target(whole, [fz.json_of(text) for text in whole], read, 25_000)


def fleet() -> Target:
    """What an operator's tools hear: the view of the fleet, replies, reports of policies, the conformance record."""
    told = contents()
    whole = [envelope(content) for content in told]
    leaves = [leaf for leaf in LEAVES if leaf.schema]
    names = [(leaf.schema.encode(), f"adaptsplit/v1/{FLEET}/d/{leaf.pattern.replace('+', 'ping')}") for leaf in leaves]
    view, times = FleetView(FLEET), itertools.count()
    with mock.patch.object(operator, "MqttTransport", NoTransport):
        chief = operator.Operator(BrokerAddress.parse("mqtt://127.0.0.1"))
    with mock.patch.object(policy_sender, "MqttTransport", NoTransport):
        sender = policy_sender.PolicySender(BrokerAddress.parse("mqtt://127.0.0.1"), FLEET)

    def read(data: bytes) -> None:
        now = float(next(times))
        name = next((name for schema, name in names if schema in data), f"adaptsplit/v1/{FLEET}/_edge/e/state")
        before = view.counts["malformed"]
        view.heard(name, data, now)
        chief._received(name, data)
        sender._on_message(name, data)
        while not sender._heard.empty():
            sender._heard.get()
        item = parsed(FLEET, Heard(now, name, data, 0))
        assert (item.envelope is None) == (item.content is None)
        unless_counted(view.counts, "malformed", before)

    return Target(whole[:1], [fz.json_of(text) for text in whole], read, 25_000)


def decider() -> Target:
    """The decision service's session, with the decision on what it took."""
    session = DecisionSession(FLEET, StaticController(SPACE, SPACE.parse("stem/1/0.8")), SPACE)
    data, times = observation_of().to_bytes(), itertools.count()

    def read(content: bytes) -> None:
        before = session.counts["malformed"]
        session.received(f"adaptsplit/v1/{FLEET}/d/observe", content, float(next(times)))
        assert len(session.decide(float(next(times)))) <= 1
        assert not session.counts["failed"]
        unless_counted(session.counts, "malformed", before)

    return Target([data], [fz.sealed_of(data[:-4], sealed)], read)


def desk() -> Target:
    """Advice as a device takes it: only what it asked for, and a legal decision."""
    place = Desk(SPACE)
    asked = place.ask(np.full(obs.SIZE, 0.5, np.float32), 0.0)
    session = parse_observation(asked).session
    data = Advice(session, 1, 0, 1, 2, 0.004).to_bytes()

    def read(content: bytes) -> None:
        before = place.counts["malformed"]
        place.heard(content)
        newest = place.newest(0.1)
        assert newest is None or (SPACE.table == newest).all(axis=1).any()
        unless_counted(place.counts, "malformed", before)

    return Target([data], [fz.sealed_of(data[:-4], sealed)], read)


SESSIONS: dict[str, Callable[[], Target]] = {
    "edge-session": edge,
    "device-session": session,
    "edge-link": edge_link,
    "commands": commands,
    "device-link": device,
    "fleet": fleet,
    "decision-session": decider,
    "desk": desk,
}
