"""Whoever watches a fleet and gives it commands: one control connection, correlation by command id, a time-out."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adaptsplit.device_bridge.control import Command, CommandReply, parse_control
from adaptsplit.device_bridge.fleet_view import FleetView, Member
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.topics import DeviceTopics, every_device
from adaptsplit.device_bridge.transport import BrokerAddress, Extras
from adaptsplit.device_bridge.voice import Voice
from adaptsplit.errors import MessageError, RunError

log = logging.getLogger("adaptsplit.fleet")

TTL_S = 5.0
CONNECT_S = 10.0
POLL_S = 0.05
OTHER_S = 0.5  # how long the life that is meant may take longer to answer than another one does
SETTLE_S = 1.0  # for the broker to send what it retains (assumption)
DENIED = "reason_puback_0x87"  # not authorised; only MQTT 5 tells
SCHEMA = "adaptsplit.command/1"


@dataclass(slots=True)
class _Asked:
    """A command that waits for its reply on ``topic``.

    other: a reply of another life (a twin, a later life), and when it came.
    """

    topic: str
    life: str
    done: threading.Event
    reply: CommandReply | None = None
    other: tuple[CommandReply, float] | None = None


class Operator:
    """Connects on construction; a context manager. ``heals``: whether gaps and missing births are answered by rebirth.

    Thread-safe. Raises RunError where there is no broker, no such device, or no answer.
    """

    def __init__(self, broker: BrokerAddress, fleet: str = "default", *, heals: bool = True) -> None:
        self.view = FleetView(fleet)
        self._heals = heals
        self._lock = threading.Lock()
        self._asked: dict[str, _Asked] = {}
        self._numbers = 0
        self._cut = False
        session = new_session()
        self._voice = Voice(session)
        filters = [*self.view.filters, every_device(fleet, "cmd/+/reply")]
        self._link = MqttTransport(
            broker, f"operator-{new_session().hex()}", filters, self._received, self._linked, qos=1
        )
        try:
            self._link.wait_connected(CONNECT_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Operator:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._link.close()

    def listen(self, seconds: float, *, all_told: bool = False) -> FleetView:
        """Wait for messages (retained ones come at once) and return what is known.

        ``all_told``: no longer than until everybody that is there has told its state, after ``SETTLE_S``.
        """
        until = time.monotonic() + seconds
        time.sleep(min(SETTLE_S, seconds) if all_told else seconds)
        while time.monotonic() < until and not self._all_told():
            time.sleep(POLL_S)
        return self.view

    def _all_told(self) -> bool:
        with self._lock:
            there = [member for member in self.view.members.values() if member.connection == "ONLINE"]
            return all((member.edge if member.is_edge else member.state) is not None for member in there)

    def news(self) -> list[str]:
        """Return the lines of what has changed since the last call."""
        with self._lock:
            lines = list(self.view.news)
            self.view.news.clear()
            return lines

    def find(self, device: str, timeout_s: float = 3.0) -> Member:
        """Return a device once its life is known; RunError names those that are there."""
        until = time.monotonic() + timeout_s
        while True:
            with self._lock:
                member = self.view.members.get(device)
                if member is not None and member.life:
                    return member
                known = ", ".join(one.name for one in self.view.devices) or "none"
            if time.monotonic() >= until:
                raise RunError(f"device {device!r} was not heard of in fleet {self.view.fleet!r}; heard of: {known}")
            time.sleep(0.02)

    def command(
        self,
        device: str,
        name: str,
        args: Mapping[str, bool | int | float | str] | None = None,
        *,
        ttl_s: float = TTL_S,
        timeout_s: float = 10.0,
    ) -> CommandReply:
        """Give a command and wait for its reply; RunError when none comes within ``timeout_s``."""
        member = self.find(device)
        if member.connection in ("OFFLINE", "CONNECTION_BROKEN"):
            raise RunError(f"{device} is {member.connection}; commands reach only devices that are there")
        return self.ask(device, name, self.make(member.life, args or {}, ttl_s), timeout_s)

    def ask(self, device: str, name: str, command: Command, timeout_s: float = 10.0) -> CommandReply:
        """Send a command as it is and wait for its reply; RunError when none comes within ``timeout_s``."""
        topic = DeviceTopics(self.view.fleet, device).leaf(f"cmd/{name}/reply")
        asked, denied = _Asked(topic, command.life, threading.Event()), self._link.counts[DENIED]
        self._asked[command.cmd_id] = asked
        try:
            if not self.send(device, name, command):
                raise RunError("the connection to the broker is gone; try again")
            until = time.monotonic() + timeout_s
            while not asked.done.wait(POLL_S):
                if asked.other is not None and time.monotonic() >= asked.other[1] + OTHER_S:
                    return asked.other[0]
                if self._link.counts[DENIED] > denied or time.monotonic() >= until:
                    raise RunError(self._silence(device, name, timeout_s))
            assert asked.reply is not None
            return asked.reply
        finally:
            self._asked.pop(command.cmd_id, None)

    @property
    def denied(self) -> bool:
        """Whether the broker has refused a command of ours for want of rights (only MQTT 5 tells)."""
        return bool(self._link.counts[DENIED])

    def _silence(self, device: str, name: str, timeout_s: float) -> str:
        if self.denied:
            return f"the broker does not let this client give {device} a command; take an operator's certificate"
        return f"{device} has not answered {name!r} in {timeout_s:g} s; is it connected?"

    def make(self, life: str, args: Mapping[str, Any], ttl_s: float = TTL_S) -> Command:
        """Return a command with the next number and a new id."""
        with self._lock:
            self._numbers += 1
            number = self._numbers
        return Command(
            cmd_id=str(uuid.uuid4()),
            life=life,
            seq=number,
            issued_ms=int(time.time() * 1e3),
            ttl_ms=int(ttl_s * 1e3),
            args=dict(args),
        )

    def send(self, device: str, name: str, command: Command) -> bool:
        """Publish a command; MQTT 5 carries its expiry, where the answer goes, and the id to know it by."""
        topics = DeviceTopics(self.view.fleet, device)
        topic, answer = topics.leaf(f"cmd/{name}"), topics.leaf(f"cmd/{name}/reply")
        extras = Extras(SCHEMA, command.ttl_ms * 1e-3, answer, command.cmd_id.encode())

        def publish(payload: bytes, beside: Extras) -> bool:
            return self._link.publish(topic, payload, qos=1, extras=beside)

        return self._voice.say(topic, command, publish, extras)

    def _linked(self, up: bool) -> None:
        """Tell whoever watches that nothing is heard, and when it is again; a first connection is no news."""
        with self._lock:
            if not up:
                self.view.news.append("the broker's connection is lost: nothing is heard until it is back")
            elif self._cut:
                self.view.news.append("the broker is back")
            self._cut = not up

    def _received(self, topic: str, payload: bytes) -> None:
        if topic.endswith("/reply"):
            self._reply(topic, payload)
            return
        with self._lock:
            wanted = self.view.heard(topic, payload, time.monotonic())
            lives = {device: self.view.members[device].life for device in wanted}
        for device, life in lives.items():
            log.info("messages of %s are missing%s", device, "; asking for a rebirth" if self._heals else "")
            if self._heals:
                self.send(device, "rebirth", self.make(life, {}))

    def _reply(self, topic: str, payload: bytes) -> None:
        try:
            envelope, content = parse_control(payload)
        except MessageError as error:
            log.info("reply: %s", error)
            return
        asked = self._asked.get(content.cmd_id) if isinstance(content, CommandReply) else None
        if asked is None or asked.topic != topic or not isinstance(content, CommandReply):
            return
        if envelope.session != asked.life:
            asked.other = asked.other or (content, time.monotonic())
            return
        asked.reply = content
        asked.done.set()
