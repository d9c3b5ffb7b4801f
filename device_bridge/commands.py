"""Commands to a device: each is judged, done at most once, and always answered.

    cmd/{name}        QoS 1, never retained: ``Command``, meant for one life of the device
    cmd/{name}/reply  QoS 1: ``CommandReply``, with the command's id

Nothing of this touches a frame: what takes long is prepared on a thread of its own, and a new controller takes over
between two decisions. The wall clock decides about a command's age only (with 60 s of tolerance), never about a frame.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any, TypeAlias

from adaptsplit.controller import Controller, controllers
from adaptsplit.device_bridge.command_judge import Judge
from adaptsplit.device_bridge.control import Command, CommandReply, Envelope, parse_control
from adaptsplit.device_bridge.parts import QuietPart
from adaptsplit.device_bridge.transport import Extras
from adaptsplit.errors import AdaptsplitError, ConfigError, MessageError

if TYPE_CHECKING:
    from adaptsplit.device_bridge.agent import DeviceAgent

log = logging.getLogger("adaptsplit.device")

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
MAX_BLOCK = 100_000
MAX_NAMES = 16
FROM_FILES = ("online",)  # families of controllers whose argument is a folder
NESTED = {"service": 0, "probing": 1}  # whose argument ends with another controller's name; parts before it


@dataclass(frozen=True, slots=True)
class Job:
    """A command's work: ``prepare`` runs on a thread of its own, ``apply`` with its result between two frames."""

    prepare: Callable[[], Any]
    apply: Callable[[Any], dict[str, Any]]


Args: TypeAlias = Mapping[str, bool | int | float | str]
Handler: TypeAlias = Callable[["DeviceAgent", Args], "dict[str, Any] | Job"]
"""(agent, arguments) -> what the reply tells; an AdaptsplitError refuses the command with its message."""


def ping(agent: DeviceAgent, args: Args) -> dict[str, Any]:
    """Answer, and do nothing else."""
    return {}


def rebirth(agent: DeviceAgent, args: Args) -> dict[str, Any]:
    """Say ONLINE and the birth again."""
    return {"said": agent.link.rebirth()}


def report(agent: DeviceAgent, args: Args) -> dict[str, Any]:
    """Tell what has happened so far: the summary that the device prints at its end."""
    return agent.summary()


def controller(agent: DeviceAgent, args: Args) -> dict[str, Any] | Job:
    """Let another controller decide: ``name`` is one of the bundle's names; several, with commas, take turns."""
    if not args.get("name") or not {"name", "block"}.issuperset(args):
        raise ConfigError(f"controller takes name=NAME and block=FRAMES; a command can name {_nameable()}")
    names, block = str(args["name"]), args.get("block", 50)
    if not isinstance(block, int) or not 1 <= block <= MAX_BLOCK:
        raise ConfigError(f"block {block!r}; expected 1 to {MAX_BLOCK} frames")
    if names.count(",") >= MAX_NAMES:
        raise ConfigError(f"more than {MAX_NAMES} controllers; name fewer")
    wanted = [_buildable(name.strip()) for name in names.split(",")]

    def apply(made: Controller) -> dict[str, Any]:
        agent.decider.swap(made)
        listed = list(agent.decider.names)
        agent.link.event("controller", ",".join(listed)[:1000])
        agent.link.rebirth(agent.link.birth.model_copy(update={"controllers": listed[:64]}))
        return {"controllers": listed}

    return Job(lambda: agent.bundle.build(wanted, block, guard=agent.options.guard), apply)


def _buildable(name: str) -> str:
    """Refuse names that stand for files: who gives commands chooses among what the device has, and brings nothing."""
    if name == "bundle" or _from_no_file(name):
        return name
    raise ConfigError(f"controller {name[:80]!r}; a command can name {_nameable()}")


def _nameable() -> str:
    return ", ".join(["bundle", *(known for known in controllers.names() if known not in FROM_FILES)])


def _from_no_file(name: str) -> bool:
    """Whether a name, and every name inside it, is of a family that reads no file."""
    family, *parts = name.split(":")
    if family in NESTED and (inner := ":".join(parts[NESTED[family] :])):
        return _from_no_file(inner)
    return family in controllers and family not in FROM_FILES


def pause(agent: DeviceAgent, args: Args) -> dict[str, Any]:
    """Tell a controller that learns no more outcomes; it goes on deciding."""
    return _learn(agent, False)


def resume(agent: DeviceAgent, args: Args) -> dict[str, Any]:
    """Tell outcomes to the controller again."""
    return _learn(agent, True)


def _learn(agent: DeviceAgent, on: bool) -> dict[str, Any]:
    agent.decider.learning = on
    agent.link.event("learning", "on" if on else "off")
    return {"learning": on}


HANDLERS: dict[str, Handler] = {
    "ping": ping,
    "rebirth": rebirth,
    "report": report,
    "controller": controller,
    "pause-learning": pause,
    "resume-learning": resume,
}


@dataclass(slots=True)
class _Running:
    name: str
    command: Command
    job: Job
    result: Any = None
    error: Exception | None = None
    done: bool = False

    def run(self) -> None:
        try:
            self.result = self.job.prepare()
        except Exception as error:
            self.error = error
        self.done = True


class Commands(QuietPart):
    """The part of a device that takes commands. ``handlers`` by name; ``wall`` is the clock that ages are judged by."""

    name = "commands"
    leaves: tuple[str, ...] = ("cmd/+",)

    def __init__(self, handlers: Mapping[str, Handler] | None = None, wall: Callable[[], float] = time) -> None:
        self.counts: Counter[str] = Counter()
        self._handlers = dict(HANDLERS if handlers is None else handlers)
        self._wall = wall
        self._agent: DeviceAgent | None = None
        self._judge: Judge | None = None
        self._running: _Running | None = None

    def started(self, agent: DeviceAgent) -> None:
        """Take the agent that is commanded."""
        self._agent, self._judge = agent, Judge(agent.link.session, self._handlers)

    def message(self, leaf: str, payload: bytes, now: float) -> None:
        """Judge a command, do it, and answer."""
        if not payload or self._judge is None:
            return
        name = leaf.removeprefix("cmd/")
        try:
            envelope, command = _parse(name, payload)
        except MessageError as error:
            self.counts["malformed"] += 1
            log.info("%s: %s", leaf, error)
            return
        verdict = self._judge.judge(envelope.session, name, command, self._wall(), now)
        if verdict is not None:
            self._answer(name, verdict)
        else:
            self._do(name, command)

    def tick(self, now: float) -> None:
        """Apply what has been prepared."""
        running = self._running
        if running is None or not running.done:
            return
        self._running = None
        if running.error is not None:
            self._failed(running.name, running.command, running.error)
        else:
            self._try(running.name, running.command, lambda: running.job.apply(running.result))

    def _do(self, name: str, command: Command) -> None:
        agent = self._agent
        assert agent is not None
        self._try(name, command, lambda: self._handlers[name](agent, command.args))

    def _try(self, name: str, command: Command, act: Callable[[], dict[str, Any] | Job]) -> None:
        try:
            given = act()
            if isinstance(given, Job):
                self._prepare(name, command, given)
            else:
                self._answer(name, CommandReply(cmd_id=command.cmd_id, status="DONE", data=given))
        except Exception as error:
            self._failed(name, command, error)

    def _prepare(self, name: str, command: Command, job: Job) -> None:
        if self._running is not None:
            raise ConfigError(f"{self._running.name} is still being prepared; try again")
        self._running = _Running(name, command, job)
        threading.Thread(target=self._running.run, name="command", daemon=True).start()

    def _failed(self, name: str, command: Command, error: Exception) -> None:
        if not isinstance(error, AdaptsplitError):
            log.error("command %s failed", name, exc_info=error)
        reason = str(error) if isinstance(error, AdaptsplitError) else f"failed: {error!r}"
        self._answer(name, CommandReply(cmd_id=command.cmd_id, status="REFUSED", reason=reason[:1000]))

    def _answer(self, name: str, reply: CommandReply) -> None:
        assert self._agent is not None
        assert self._judge is not None
        self.counts[reply.status.lower()] += 1
        self._agent.counts[f"command_{reply.status.lower()}"] += 1
        self._judge.answered(reply)
        extras = Extras("adaptsplit.reply/1", correlation=reply.cmd_id.encode())
        self._agent.link.tell(f"cmd/{name}/reply", reply, extras=extras)


def _parse(name: str, payload: bytes) -> tuple[Envelope, Command]:
    if not NAME.fullmatch(name):
        raise MessageError(f"command {name[:40]!r}: expected small letters, digits and -, at most 32")
    envelope, content = parse_control(payload)
    if not isinstance(content, Command):
        raise MessageError(f"{envelope.schema_} on a command topic")
    return envelope, content
