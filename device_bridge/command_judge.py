"""Whether a command may be done: for this life, once, in order, in time, and known. Pure: it is told both clocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from adaptsplit.device_bridge.control import Command, CommandReply

TOLERANCE_S = 60.0  # between the wall clocks of sender and device
MAX_REMEMBERED = 256  # commands that could still come again; beyond it new ones are refused
MAX_SENDERS = 1024  # each `adaptsplit fleet cmd` is one


@dataclass(slots=True)
class _Seen:
    forget_at: float
    status: str = "under way"


class Judge:
    """See the module's text.

    A command is remembered for as long as a repetition of it could still pass for fresh. ``now`` is monotonic, in s;
    ``wall`` is UTC in s. A jump of the wall clock can refuse a command, but never repeat one: repetitions are known by
    id, and after that by the numbers of the newest 1024 senders.

    Args:
        life: session of this life of the device.
        known: the names that there are.
    """

    def __init__(self, life: str, known: Iterable[str]) -> None:
        self._life = life
        self._known = frozenset(known)
        self._names = ", ".join(sorted(self._known))
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._numbers: OrderedDict[str, int] = OrderedDict()

    def judge(self, sender: str, name: str, command: Command, wall: float, now: float) -> CommandReply | None:
        """Return the refusal, or None when the command is to be done (and is from now on remembered)."""
        self._forget(now)
        if command.life != self._life:
            return _no(command, "REFUSED", f"meant for life {command.life}; this one is {self._life}")
        if (seen := self._seen.get(command.cmd_id)) is not None:
            return _no(command, "DUPLICATE", f"this command was {seen.status}")
        if late := _age_fault(command, wall):
            return _no(command, "EXPIRED", late)
        if command.seq <= self._numbers.get(sender, -1):
            return _no(command, "OUT_OF_ORDER", f"number {command.seq} after {self._numbers[sender]}")
        if len(self._seen) >= MAX_REMEMBERED:
            return _no(command, "REFUSED", f"{MAX_REMEMBERED} commands are remembered; wait")
        self._remember(sender, command, now)
        return (
            None
            if name in self._known
            else _no(command, "UNKNOWN", f"no command {name!r} here; there are {self._names}")
        )

    def answered(self, reply: CommandReply) -> None:
        """Remember how a command ended, for whoever sends it again."""
        seen = self._seen.get(reply.cmd_id)
        if seen is not None and reply.status != "DUPLICATE":
            seen.status = reply.status

    def _remember(self, sender: str, command: Command, now: float) -> None:
        self._seen[command.cmd_id] = _Seen(now + command.ttl_ms * 1e-3 + 2.0 * TOLERANCE_S)
        self._numbers[sender] = command.seq
        self._numbers.move_to_end(sender)
        if len(self._numbers) > MAX_SENDERS:
            self._numbers.popitem(last=False)

    def _forget(self, now: float) -> None:
        for cmd_id in [cmd_id for cmd_id, seen in self._seen.items() if seen.forget_at < now]:
            del self._seen[cmd_id]


def _age_fault(command: Command, wall: float) -> str:
    age = wall - command.issued_ms * 1e-3
    if age > command.ttl_ms * 1e-3 + TOLERANCE_S:
        return f"issued {age:.0f} s ago by this device's clock; it held for {command.ttl_ms * 1e-3:g} s"
    if age < -TOLERANCE_S:
        return f"issued {-age:.0f} s ahead of this device's clock; set the clocks"
    return ""


def _no(command: Command, status: str, reason: str) -> CommandReply:
    return CommandReply.model_validate({"cmd_id": command.cmd_id, "status": status, "reason": reason})
