"""Probes: what devices and edge servers must do when they are asked, and what must not move them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adaptsplit.device_bridge.control import MAX_CONTROL_BYTES, Command, build_control
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Heartbeat, Message, Result, Status, parse_message
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.operator import DENIED, Operator
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.errors import MessageError, RunError

Note = tuple[str, bool, str]
"""(rule, whether it was kept, what was seen)."""

ANSWER_S = 5.0
QUIET_S = 0.5
OTHER_LIFE = "0" * 32
CONTAINER = b"AS\x01 this is no container of ours"
GARBAGE = (
    b"\x00" * 40,
    b"[" * 3000,
    b'{"schema": NaN}',
    b"{}",
    bytes(MAX_CONTROL_BYTES + 1),
    b'{"seq":-1}',
)


def probe_device(operator: Operator, link: MqttTransport, device: str) -> list[Note]:
    """Give a device commands that it must do, and commands that it must not; RunError when it was not heard of."""
    life = operator.find(device).life

    def asked(rule: str, wanted: str, command: Command, name: str = "ping") -> Note:
        try:
            reply = operator.ask(device, name, command, ANSWER_S)
        except RunError as error:
            if operator.denied:
                raise
            return rule, False, f"{device}: {error}"
        return rule, reply.status == wanted, f"{device}: {name} {reply.status}, expected {wanted}"

    def fresh(**change: object) -> Command:
        return operator.make(life, {}).model_copy(update=change)

    first, behind = fresh(), fresh()
    notes = [asked("AS-051", "DONE", first), asked("AS-053", "DUPLICATE", first)]
    ahead = fresh()
    notes += [asked("AS-051", "DONE", ahead), asked("AS-054", "OUT_OF_ORDER", behind)]
    notes.append(asked("AS-052", "EXPIRED", fresh(issued_ms=int(time.time() * 1e3) - 600_000)))
    notes.append(asked("AS-055", "UNKNOWN", fresh(), "no-such-command"))
    notes.append(asked("AS-056", "REFUSED", fresh(life=OTHER_LIFE)))
    for payload in (*GARBAGE, _with_unknown_keys(fresh())):
        link.publish(DeviceTopics(operator.view.fleet, device).leaf("cmd/ping"), payload, qos=1)
    notes.append(asked("AS-019", "DONE", fresh()))
    notes.append(_reborn(operator, device, asked("AS-059", "DONE", fresh(), "rebirth")))
    return notes


def _with_unknown_keys(command: Command) -> bytes:
    """A command with more in it than there is: it must be answered all the same (AS-013, by AS-051's count)."""
    plain = build_control(command, seq=1, session=new_session(), ts_ms=int(time.time() * 1e3), mono_ms=0.0)
    value = json.loads(plain)
    value["data"]["unknown"], value["unknown"] = 1, [1]
    return json.dumps(value).encode()


def _reborn(operator: Operator, device: str, done: Note) -> Note:
    member = operator.view.members[device]
    said = done[1] and member.connection == "ONLINE" and member.birth is not None
    return done[0], said, f"{done[2]}; then {member.connection or 'nothing'}, birth {member.birth is not None}"


@dataclass
class PretendedDevice:
    """A device that only probes an edge server. ``heard`` is filled from a subscription to its ``down`` topics."""

    topics: DeviceTopics
    session: bytes = field(default_factory=new_session)
    heard: list[Message] = field(default_factory=list)

    def receive(self, topic: str, payload: bytes) -> None:
        """Take a message of the data plane."""
        try:
            self.heard.append(parse_message(payload))
        except MessageError:
            return

    @property
    def filters(self) -> Sequence[str]:
        """What it hears."""
        return [self.topics.leaf("down"), self.topics.leaf("heartbeat/reply")]

    def frame(self, sequence: int, budget_s: float = 1.0) -> bytes:
        """Return a frame message whose container nobody can decode."""
        budget = round(budget_s * 1e6)
        return FrameMessage(self.session, sequence, sequence, 0, 0, sequence + 1, budget, CONTAINER).to_bytes()

    def count(self, kind: type[Ack] | type[Result], sequence: int) -> int:
        """How many acknowledgements or results of a frame message were heard."""
        return sum(isinstance(one, kind) and one.sequence == sequence for one in self.heard)

    def status(self, sequence: int) -> str:
        """The status of the result of a frame message, "" while there is none."""
        found = [one.status for one in self.heard if isinstance(one, Result) and one.sequence == sequence]
        return Status(found[0]).name if found else ""


def probe_edge(link: MqttTransport, device: PretendedDevice) -> list[Note]:
    """Send heartbeats and frames that cannot be used, one of them twice; [] where the broker does not let us."""

    def until(done: Callable[[], bool]) -> bool:
        end = time.monotonic() + ANSWER_S
        while not done() and time.monotonic() < end:
            time.sleep(0.01)
        return done()

    beat = Heartbeat(device.session, 0, 1)
    link.publish(device.topics.leaf("heartbeat"), beat.to_bytes(), qos=1)

    def returned() -> bool:
        return any(isinstance(one, Heartbeat) and one.reply for one in device.heard)

    until(lambda: returned() or bool(link.counts[DENIED]))
    back = returned()
    if not back and link.counts[DENIED]:
        return []
    up = device.topics.leaf("up")
    link.publish(up, device.frame(0))
    answered = until(lambda: bool(device.status(0)))
    acknowledged = until(lambda: device.count(Ack, 0) == 1)
    link.publish(up, device.frame(0))
    again = until(lambda: device.count(Ack, 0) == 2)
    time.sleep(QUIET_S)
    once = device.count(Result, 0) == 1
    return [
        ("AS-033", back, f"edge: heartbeat {'' if back else 'not '}returned"),
        ("AS-041", acknowledged, f"edge: {device.count(Ack, 0)} acknowledgements"),
        (
            "AS-043",
            answered,
            f"edge: a frame of no use is {device.status(0).lower() or 'silent'}",
        ),
        ("AS-042", again and once, f"edge: frame sent twice has {device.count(Result, 0)} results"),
    ]
