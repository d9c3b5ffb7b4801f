"""Commands: judged, done at most once, always answered; and the operator's side of it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import SPACE
from hypothesis import given, settings
from hypothesis import strategies as st
from live_cases import BIRTH
from typer.testing import CliRunner

from adaptsplit.cli import app
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.command_judge import MAX_REMEMBERED, TOLERANCE_S, Judge
from adaptsplit.device_bridge.commands import HANDLERS, Args, Commands, Job
from adaptsplit.device_bridge.control import (
    MAX_TTL_MS,
    Birth,
    Command,
    CommandReply,
    DecisionCounts,
    build_control,
    parse_control,
)
from adaptsplit.device_bridge.decider import Decider
from adaptsplit.device_bridge.decision_report import DecisionReport
from adaptsplit.device_bridge.device_link import DeviceLink, Incoming, PartMessage
from adaptsplit.device_bridge.operator import Operator
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import ConfigError, MessageError, RunError
from adaptsplit.outcome import Path as Route
from adaptsplit.outcome import empty

LIFE, OTHER = "a" * 32, "b" * 32
NOW = 1_800_000_000.0  # UTC, s


def wrapped(content: Command | CommandReply, seq: int = 1) -> bytes:
    return build_control(content, seq=seq, session=bytes(16), ts_ms=1, mono_ms=1.0)


def command(number: int, seq: int | None = None, **change: Any) -> Command:
    given = {"issued_ms": int(NOW * 1e3), "ttl_ms": 5000, "life": LIFE, "seq": number if seq is None else seq}
    return Command(cmd_id=f"00000000-0000-0000-0000-{number:012x}", **(given | change))


def judged(
    judge: Judge, one: Command, wall: float = NOW, now: float = 0.0, sender: str = "s", name: str = "ping"
) -> str:
    reply = judge.judge(sender, name, one, wall, now)
    if reply is None:
        judge.answered(CommandReply(cmd_id=one.cmd_id, status="DONE"))
    return "DO" if reply is None else reply.status


# ---- the judge -----------------------------------------------------------------------------------------------------


def test_as_052_to_056_each_refusal_has_its_word() -> None:
    judge = Judge(LIFE, HANDLERS)
    assert judged(judge, command(5)) == "DO"
    assert judged(judge, command(5)) == "DUPLICATE"
    assert judged(judge, command(6, seq=5)) == "OUT_OF_ORDER"
    assert judged(judge, command(7, seq=4), sender="other") == "DO"
    assert judged(judge, command(8, life=OTHER)) == "REFUSED"
    assert judged(judge, command(9), name="fly") == "UNKNOWN"
    assert judged(judge, command(9), name="fly") == "DUPLICATE"
    assert judged(judge, command(10)) == "DO"


def test_as_055_a_refusal_names_what_there_is_however_the_names_were_given() -> None:
    reply = Judge(LIFE, iter(["rebirth", "ping"])).judge("s", "fly", command(1), NOW, 0.0)
    assert reply is not None
    assert reply.reason == "no command 'fly' here; there are ping, rebirth"


@pytest.mark.parametrize(
    ("offset_s", "says"),
    [
        (0, "DO"),
        (64.9, "DO"),
        (65.1, "EXPIRED"),
        (3600, "EXPIRED"),
        (-59.9, "DO"),
        (-60.1, "EXPIRED"),
        (-3600, "EXPIRED"),
    ],
)
def test_as_052_the_age_is_judged_with_a_minute_of_tolerance(offset_s: float, says: str) -> None:
    """A validity of 5 s: by the device's clock 65 s after the time of issue at most, and 60 s before it."""
    assert judged(Judge(LIFE, HANDLERS), command(1), wall=NOW + offset_s) == says


def test_as_058_no_jump_of_the_clock_does_a_command_twice() -> None:
    """However the wall clock jumps, also an hour back when the id is long forgotten: its number is not."""
    judge = Judge(LIFE, HANDLERS)
    assert judged(judge, command(3)) == "DO"
    for wall, now in ((NOW + 3600, 10.0), (NOW - 3600, 20.0), (NOW, 30.0), (NOW, 1000.0), (NOW + 1, 5000.0)):
        assert judged(judge, command(3), wall, now) in ("DUPLICATE", "EXPIRED", "OUT_OF_ORDER")
    assert judged(judge, command(4, issued_ms=int((NOW + 3600) * 1e3)), NOW + 3600, 6000.0) == "DO"


def test_what_is_remembered_is_bounded_and_never_too_short() -> None:
    judge = Judge(LIFE, HANDLERS)
    for number in range(MAX_REMEMBERED):
        assert judged(judge, command(number)) == "DO"
    assert judged(judge, command(9999)) == "REFUSED"
    later = 5.0 + 2 * TOLERANCE_S
    assert judged(judge, command(9999), now=later) == "REFUSED"
    assert judged(judge, command(9999), now=later + 0.1) == "DO"


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.floats(-200, 200), st.sampled_from("xy")), max_size=60)
)
@settings(max_examples=200, deadline=None)
def test_as_053_as_054_nothing_is_done_twice_or_backwards(sent: list[tuple[int, int, float, str]]) -> None:
    """Any order, repetition and clock: each id is done once, and numbers rise for each sender."""
    judge, done = Judge(LIFE, HANDLERS), []
    for step, (number, seq, jump, sender) in enumerate(sent):
        if judged(judge, command(number, seq), NOW + jump, step * 20.0, sender) == "DO":
            done.append((sender, seq, number))
    for name in "xy":
        numbers = [seq for sender, seq, _ in done if sender == name]
        assert numbers == sorted(set(numbers))
        ids = [number for sender, _, number in done if sender == name]
        assert len(ids) == len(set(ids)) or step * 20.0 > 5.0 + 2 * TOLERANCE_S


@pytest.mark.parametrize(
    "change",
    [{"ttl_ms": 0}, {"ttl_ms": MAX_TTL_MS + 1}, {"cmd_id": "x"}, {"life": "x"}, {"seq": -1}, {"args": {"a": []}}],
)
def test_as_050_impossible_commands_are_refused(change: dict[str, Any]) -> None:
    value = json.loads(wrapped(command(1)))
    parse_control(json.dumps(value).encode())
    with pytest.raises(MessageError, match=next(iter(change))):
        parse_control(json.dumps(value | {"data": value["data"] | change}).encode())
    for key in ("cmd_id", "life", "seq", "issued_ms", "ttl_ms"):
        with pytest.raises(MessageError, match=key):
            parse_control(json.dumps(value | {"data": {k: v for k, v in value["data"].items() if k != key}}).encode())


# ---- the device's part ---------------------------------------------------------------------------------------------


class Sayer:
    """A controller that always decides the same; ``learned`` is what it was told."""

    kind = "learned"
    learns = True

    def __init__(self, name: str, row: int = 0) -> None:
        self.name, self.row = name, row

    def init(self, n: int, rng: np.random.Generator) -> int:
        return 0

    def act(self, observation: Any, state: int) -> tuple[Any, int]:
        return SPACE.table[[self.row] * len(observation)], state

    def learn(self, outcomes: Any, state: int) -> int:
        return state + len(outcomes)


@dataclass
class Said:
    """A link that keeps what a device says."""

    session: str = LIFE
    told: list[tuple[str, Any]] = field(default_factory=list)
    births: list[Birth] = field(default_factory=list)
    stuck: bool = False
    birth: Birth = BIRTH

    def tell(self, leaf: str, content: Any, **more: Any) -> bool:
        self.told.append((leaf, content))
        return True

    def latest(self, leaf: str, content: Any) -> bool:
        return not self.stuck and self.tell(leaf, content)

    def event(self, kind: str, detail: str) -> None:
        self.told.append(("event", (kind, detail)))

    def rebirth(self, birth: Birth | None = None) -> bool:
        self.births.append(birth or self.birth)
        return True


def an_agent(build: Callable[..., Any] = lambda *names, **more: Sayer("new", 1)) -> Any:
    bundle = SimpleNamespace(build=build, space=SPACE)
    agent = SimpleNamespace(link=Said(), counts=Counter(), bundle=bundle, options=SimpleNamespace(guard=True))
    agent.summary = lambda: {"frames": 3}
    agent.decider = Decider(Sayer("old"), SPACE, 0)
    return agent


class Device:
    """A ``Commands`` part on a device that is not there."""

    def __init__(self, agent: Any = None, handlers: Any = None) -> None:
        self.agent = agent or an_agent()
        self.part = Commands(handlers, wall=lambda: NOW)
        self.part.started(self.agent)
        self.number = 0

    def give(self, name: str, /, **args: Any) -> CommandReply | None:
        """Give a command and return the reply, once it is there."""
        self.number += 1
        payload = build_control(
            command(self.number, args=args), seq=self.number, session=bytes(16), ts_ms=1, mono_ms=1.0
        )
        before = len(self.replies(name))
        self.part.message(f"cmd/{name}", payload, 0.0)
        end = time.monotonic() + 3.0
        while len(self.replies(name)) == before and time.monotonic() < end:
            self.part.tick(1.0)
            time.sleep(0.001)
        return self.replies(name)[-1] if len(self.replies(name)) > before else None

    def replies(self, name: str) -> list[CommandReply]:
        return [content for leaf, content in self.agent.link.told if leaf == f"cmd/{name}/reply"]


def status(reply: CommandReply | None) -> str:
    assert reply is not None
    return reply.status


def test_as_051_as_059_the_simple_commands() -> None:
    device = Device()
    assert status(device.give("ping")) == "DONE"
    assert device.give("report").data == {"frames": 3}  # type: ignore[union-attr]
    assert status(device.give("rebirth")) == "DONE"
    assert device.agent.link.births == [device.agent.link.birth]
    assert status(device.give("fly")) == "UNKNOWN"
    assert device.agent.counts == {"command_done": 3, "command_unknown": 1}


def test_a_controller_is_exchanged_between_two_frames() -> None:
    device = Device()
    decider, observation = device.agent.decider, np.zeros(SPACE.table.shape[1], np.float32)
    before = decider.decide(observation)
    reply = device.give("controller", name="bundle")
    assert reply is not None
    assert (reply.status, reply.data) == ("DONE", {"controllers": ["new"]})
    after = decider.decide(observation)
    assert (before[1], after[1]) == ("old", "new")
    assert tuple(SPACE.table[1]) == (after[0].branch, after[0].rate, after[0].threshold)
    assert decider.mode == "learned"
    assert device.agent.link.births[-1].controllers == ["new"]
    assert ("event", ("controller", "new")) in device.agent.link.told


def test_a_controller_is_built_beside_the_frames_and_one_at_a_time() -> None:
    """Building takes 0.2 s; the call that takes the command returns at once, and a second one is refused."""

    def slow(*names: Any, **more: Any) -> Any:
        time.sleep(0.2)
        return Sayer("slow")

    device = Device(an_agent(slow))
    payload = [
        build_control(command(n, args={"name": "bundle"}), seq=n, session=bytes(16), ts_ms=1, mono_ms=1.0)
        for n in (1, 2)
    ]
    began = time.monotonic()
    device.part.message("cmd/controller", payload[0], 0.0)
    device.part.message("cmd/controller", payload[1], 0.0)
    device.part.tick(0.1)
    assert time.monotonic() - began < 0.1
    assert [reply.status for reply in device.replies("controller")] == ["REFUSED"]
    device.number = 2
    assert status(device.give("ping")) == "DONE"
    end = time.monotonic() + 3.0
    while len(device.replies("controller")) < 2 and time.monotonic() < end:
        device.part.tick(1.0)
    assert device.agent.decider.names == ["slow"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({}, "a command can name bundle"),
        ({"name": "no-such-rule"}, "a command can name bundle"),
        ({"name": "/tmp/run"}, "a command can name bundle"),
        ({"name": "online:/tmp/run"}, "a command can name bundle"),
        ({"name": "bundle", "block": 0}, "expected 1 to"),
        ({"name": "bundle", "block": "x"}, "expected 1 to"),
    ],
)
def test_controllers_that_a_command_cannot_name(args: dict[str, Any], says: str) -> None:
    device = Device()
    reply = device.give("controller", **args)
    assert status(reply) == "REFUSED"
    assert says in reply.reason  # type: ignore[union-attr]
    assert device.agent.decider.names == ["old"]


def test_a_controller_that_cannot_be_built_leaves_the_old_one() -> None:
    def broken(*names: Any, **more: Any) -> Any:
        raise ConfigError("does not fit")

    device = Device(an_agent(broken))
    reply = device.give("controller", name="deadline")
    assert reply is not None
    assert (reply.status, reply.reason) == ("REFUSED", "does not fit")
    assert device.agent.decider.names == ["old"]


def test_learning_can_be_paused() -> None:
    device, told = Device(), empty(1)
    decider, observation = device.agent.decider, np.zeros(4, np.float32)

    def learned() -> int:
        decider.outcome(told)
        decider.decide(observation)
        return int(decider._state)

    assert learned() == 1
    assert status(device.give("pause-learning")) == "DONE"
    assert learned() == 1
    assert status(device.give("resume-learning")) == "DONE"
    assert learned() == 2


def test_a_handler_that_fails_is_answered_and_the_part_goes_on() -> None:
    def fail(agent: Any, args: Args) -> dict[str, Any]:
        raise ZeroDivisionError("on purpose")

    def fail_later(agent: Any, args: Args) -> Job:
        return Job(lambda: 1 / 0, lambda made: {})

    def unsayable(agent: Any, args: Args) -> dict[str, Any]:
        return {"x": 1}

    device = Device(handlers={"fail": fail, "later": fail_later, "fine": unsayable})
    for name in ("fail", "later"):
        reply = device.give(name)
        assert status(reply) == "REFUSED"
        assert "ZeroDivisionError" in reply.reason  # type: ignore[union-attr]
    assert status(device.give("fine")) == "DONE"


def test_as_019_garbage_is_counted_and_not_answered() -> None:
    device = Device()
    fine = wrapped(command(1))
    for leaf, payload in (
        ("cmd/ping", b"\x00"),
        ("cmd/ping", b"{}"),
        ("cmd/PING", fine),
        ("cmd/" + "x" * 40, fine),
        (
            "cmd/ping",
            wrapped(CommandReply(cmd_id=command(1).cmd_id, status="DONE")),
        ),
    ):
        device.part.message(leaf, payload, 0.0)
    device.part.message("cmd/ping", b"", 0.0)
    assert device.agent.link.told == []
    assert device.part.counts == {"malformed": 5}


# ---- the report of decisions ---------------------------------------------------------------------------------------


def test_as_032_counts_of_decisions_sum_up_also_when_some_cannot_leave() -> None:
    agent, part = an_agent(), DecisionReport(1.0)
    part.started(agent)
    told = lambda: [content for leaf, content in agent.link.told if leaf == "decision"]  # noqa: E731
    rows = empty(40)
    rows["frame"] = np.arange(40)
    rows["branch"], rows["rate"], rows["threshold"], rows["patience"], rows["path"] = 0, 1, 0.8, 1.0, Route.EXIT
    rows["branch"][:4], rows["path"][:4], rows["patience"][20:] = -1, Route.MISS, 0.5
    for i in range(40):
        agent.link.stuck = 10 <= i < 30
        part.settled("a" if i < 25 else "b", rows[i : i + 1])
        part.tick(i / 10.0)
    assert sum(counts.frames for counts in told()) < 40
    agent.link.stuck = False
    part.close()
    assert sum(counts.frames for counts in told()) == 40
    whole: Counter[str] = Counter()
    for counts in told():
        assert isinstance(counts, DecisionCounts)
        assert counts.frames == sum(counts.paths.values()) == sum(counts.controllers.values())
        whole.update(counts.decisions)
    assert whole == {"none": 4, "stem/1/0.8": 16, "stem/1/0.8@0.5": 20}
    assert (told()[0].first, told()[-1].last) == (0, 39)
    before = len(told())
    part.tick(100.0)
    assert len(told()) == before, "nothing new, nothing said"


def test_many_names_are_counted_as_other() -> None:
    agent, part = an_agent(), DecisionReport()
    part.started(agent)
    for i in range(100):
        row = empty(1)
        row["frame"], row["branch"], row["rate"], row["threshold"], row["patience"] = i, 0, 0, i / 1000, 1.0
        part.settled("c", row)
    part.close()
    (counts,) = [content for leaf, content in agent.link.told if leaf == "decision"]
    assert (len(counts.decisions), counts.decisions["other"], counts.frames) == (64, 37, 100)


# ---- the operator, through a broker --------------------------------------------------------------------------------


class Flying:
    """A device's connections and its commands part, on one thread, without frames."""

    def __init__(self, broker: EmbeddedBroker, name: str) -> None:
        self.agent = an_agent()
        self.part = Commands()
        birth = self.agent.link.birth
        self.agent.link = DeviceLink(
            BrokerAddress.parse(broker.url), DeviceTopics("default", name), new_session(), birth, self._post, ["cmd/+"]
        )
        self.agent.link.wait_connected(8.0)
        self.part.started(self.agent)

    def _post(self, event: Incoming, at: float) -> None:
        if isinstance(event, PartMessage):
            self.part.message(event.leaf, event.payload, at)
            self.part.tick(at)


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


def test_an_operator_finds_devices_and_gets_replies(broker: EmbeddedBroker) -> None:
    device = Flying(broker, "one")
    with Operator(BrokerAddress.parse(broker.url)) as operator:
        assert operator.command("one", "ping").status == "DONE"
        assert operator.command("one", "fly").status == "UNKNOWN"
        member = operator.find("one")
        assert (member.connection, member.life) == ("ONLINE", device.agent.link.session)
        with pytest.raises(RunError, match=r"'two' was not heard of .* heard of: one"):
            operator.find("two", 0.1)
        device.part.message = lambda leaf, payload, now: None  # type: ignore[method-assign]
        with pytest.raises(RunError, match=r"has not answered 'ping' in 0\.2 s"):
            operator.command("one", "ping", timeout_s=0.2)
        device.agent.link.close()
        end = time.monotonic() + 5.0
        while operator.view.members["one"].connection != "OFFLINE" and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(RunError, match="one is OFFLINE; commands reach only"):
            operator.command("one", "ping")


def test_as_060_an_operator_asks_for_a_rebirth_after_a_gap(broker: EmbeddedBroker) -> None:
    device = Flying(broker, "gap")
    with Operator(BrokerAddress.parse(broker.url)) as operator:
        operator.find("gap")
        link = device.agent.link
        link.event("a", "1")
        link._voice._said[DeviceTopics("default", "gap").leaf("event")] = 7  # six messages were lost
        link.event("a", "2")
        end = time.monotonic() + 5.0
        while not device.part.counts["done"] and time.monotonic() < end:
            time.sleep(0.01)
        assert device.part.counts == {"done": 1}
        assert operator.view.members["gap"].gaps == 1
        assert "gap: 6 messages are missing on event" in operator.news()
    device.agent.link.close()


def test_the_command_line(broker: EmbeddedBroker) -> None:
    device, run = Flying(broker, "cli"), CliRunner()
    where = ["--broker", broker.url]
    done = run.invoke(app, ["fleet", "cmd", "cli", "report", *where])
    assert done.exit_code == 0
    assert "DONE" in done.stdout
    assert '"frames": 3' in done.stdout
    refused = run.invoke(
        app, ["fleet", "cmd", "cli", "controller", "--arg", "name=zzz", "--arg", "block=5", "--json", *where]
    )
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["status"] == "REFUSED"
    listed = run.invoke(app, ["fleet", "list", "--seconds", "0.3", "--json", *where])
    rows = {row["id"]: row for row in json.loads(listed.stdout)}
    assert rows["cli"]["connection"] == "ONLINE"
    assert rows["cli"]["birth"]["controllers"] == ["c"]
    shown = run.invoke(app, ["fleet", "list", "--seconds", "0.3", *where])
    assert "cli" in shown.stdout
    assert "ONLINE" in shown.stdout
    device.agent.link.event("guard", "recovery \x1b[2J")
    watched = run.invoke(app, ["fleet", "watch", "--seconds", "0.5", *where])
    assert "cli: ONLINE" in watched.stdout
    bad = run.invoke(app, ["fleet", "cmd", "cli", "ping", "--arg", "x", *where])
    assert "expected KEY=VALUE" in str(bad.exception)
    checked = run.invoke(app, ["conformance", "--seconds", "1", "--device", "cli", "--json", *where])
    assert checked.exit_code == 0, checked.stdout
    verdicts = {row["id"]: row["status"] for row in json.loads(checked.stdout)}
    assert verdicts["AS-053"] == verdicts["AS-059"] == "held"
    device.agent.link.close()
