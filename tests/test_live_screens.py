"""What people see of a running fleet: the tables, the lines on standard error, and errors that name their cure."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from live_cases import BIRTH
from rich.console import Console

from adaptsplit.bundle import export_bundle
from adaptsplit.cli_fleet_tables import fleet_tables
from adaptsplit.device_bridge import broker as broker_module
from adaptsplit.device_bridge.broker import EmbeddedBroker, find_mosquitto, free_port
from adaptsplit.device_bridge.certificates import Authority
from adaptsplit.device_bridge.command_judge import Judge
from adaptsplit.device_bridge.commands import HANDLERS, controller
from adaptsplit.device_bridge.control import Command, EdgeQueue, EdgeState, PolicyReported, State
from adaptsplit.device_bridge.device_link import DeviceLink
from adaptsplit.device_bridge.fleet_view import FleetView, Member
from adaptsplit.device_bridge.identity import check_identity, date_note
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.device_bridge.operator import Operator
from adaptsplit.device_bridge.policy_rollout import Rollout
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress, no_connection
from adaptsplit.errors import ConfigError, MissingExtraError
from adaptsplit.frames import open_frames
from adaptsplit.scenario import load_scenario
from adaptsplit.signing_keys import load_private, make_keys

pytestmark = pytest.mark.timeout(300)

WAIT_S = 40.0  # on a busy machine; nothing here is about speed
LONG = "drone-of-the-northern-farm-7"
STATE = State(
    frame=1234567,
    controller="dqn",
    decision="shallow/1/1.01",
    goodput_bps=12.345e6,
    rtt_s=0.0423,
    unacked=0,
    edge="online",
    paths={},
    mode="recovery",
    edges=["edge-1"],
)


def until(what: Callable[[], bool], why: Callable[[], str]) -> None:
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


# ---- the tables ----


def shown(*members: Member, width: int = 80) -> str:
    view = FleetView("farm")
    view.members = {member.name: member for member in members}
    text = io.StringIO()
    Console(file=text, width=width).print(fleet_tables(view, now=100.0))
    return text.getvalue()


def test_in_80_columns_an_id_and_a_presence_are_whole_and_nothing_is_cut() -> None:
    text = shown(
        Member("drone-7", connection="CONNECTION_BROKEN"),
        Member("drone-8", connection="ONLINE", state=STATE, state_at=99.5),
    )
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for word in ("drone-7", "CONNECTION_BROKEN", "ONLINE", "recovery", "1234567", "12.35", "42", "0.5"):
        assert word in text, text


def test_a_long_id_is_whole_where_there_is_room() -> None:
    assert LONG in shown(Member(LONG, connection="ONLINE", state=STATE), width=120)


def test_edge_servers_show_what_they_counted() -> None:
    counts = {"frames": 31, "answered": 17, "dropped_late": 5, "dropped_full": 8, "refused": 3}
    told = EdgeState(queues={"0" * 16: EdgeQueue(waiting=6, wait_s=0.1, max_batch=1)}, counts=counts)
    text = shown(Member("_edge/edge-1", connection="ONLINE", edge=told, state_at=98.0))
    row = next(line for line in text.splitlines() if "edge-1" in line)
    assert row.split() == ["edge-1", "ONLINE", "31", "17", "13", "3", "6", "2.0"]
    assert "0 devices, 0 online" in text
    assert "1 edge server, 1 online" in text


def test_a_listener_waits_until_everybody_has_told_its_state_and_no_longer() -> None:
    with EmbeddedBroker() as broker:
        address = BrokerAddress.parse(broker.url)
        link = DeviceLink(address, DeviceTopics("default", "d"), new_session(), BIRTH, lambda event, at: None)
        try:
            link.wait_connected(WAIT_S)
            with Operator(address, heals=False) as operator:
                teller = threading.Timer(2.0, lambda: link.state(STATE))
                teller.start()
                began = time.monotonic()
                view = operator.listen(WAIT_S, all_told=True)
                teller.join()
                assert view.members["d"].state == STATE
                assert 1.5 < time.monotonic() - began < WAIT_S - 5.0
        finally:
            link.close()


# ---- what a start says ----


def test_a_certificate_of_another_id_fleet_or_role_is_said_before_the_start(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "keys", "farm")
    device, edge = (authority.issue(name, role)[0] for name, role in (("drone-7", "device"), ("edge-1", "edge")))

    def start(cert: Path | None, fleet: str = "farm", name: str | None = None, role: str = "") -> None:
        check_identity(BrokerAddress("host", 8883, tls=True, cert=cert), fleet, name, role)

    start(None)
    start(tmp_path / "missing.crt", "else", "who")  # TLS says that better
    start(device, name="drone-7")
    start(edge, name="edge-1", role="edge")
    with pytest.raises(ConfigError, match="say --id drone-7, or make one with `adaptsplit keys issue drone-8 --dir"):
        start(device, name="drone-8")
    with pytest.raises(ConfigError, match="of device 'drone-7' in fleet 'farm'; found --fleet north"):
        start(device, "north")
    with pytest.raises(ConfigError, match="needs one with the role edge"):
        start(device, role="edge")
    foreign = tmp_path / "foreign.crt"
    foreign.write_text("no certificate", encoding="ascii")
    start(foreign, name="who")


@pytest.mark.parametrize(("days_ago", "said"), [(-3.0, "holds from"), (1.0, ""), (30.0, "has expired on")])
def test_dates_of_a_certificate_are_told_by_this_clock(tmp_path: Path, days_ago: float, said: str) -> None:
    now = datetime.now(UTC)
    start = now - timedelta(days=days_ago)
    cert = Authority.create(tmp_path / "keys", "farm").issue("drone-7", "device", days=5, start=start)[0]
    note = date_note(BrokerAddress("host", 8883, tls=True, cert=cert), now)
    assert said in note
    assert bool(note) == bool(said)


def test_a_broker_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"Mosquitto \(apt install mosquitto\) or amqtt.*adaptsplit\[broker\]"):
        EmbeddedBroker()


def test_a_log_makes_its_folder_and_says_where_it_cannot(tmp_path: Path) -> None:
    with LiveLog(tmp_path / "new" / "live.jsonl"):
        assert (tmp_path / "new" / "live.jsonl").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written .* name another file with --log"):
        LiveLog(tmp_path / "file" / "live.jsonl")


def test_a_port_that_wants_tls_is_guessed() -> None:
    plain, secure = BrokerAddress("h", 8883, password="secret"), BrokerAddress("h", 8883, tls=True)
    assert "does it want TLS (mqtts://h:8883" in no_connection(plain, "", closed_early=True)
    assert "take this client's certificate" in no_connection(secure, "", closed_early=True)
    assert (plain.shown, secure.shown) == ("mqtt://h:8883", "mqtts://h:8883")


def test_keys_that_are_no_private_ones_and_ids_without_a_certificate(tmp_path: Path) -> None:
    public = make_keys(tmp_path, "fleet")[1]
    with pytest.raises(ConfigError, match=r"a public key; give the private one, fleet\.key"):
        load_private(public)
    authority = Authority.create(tmp_path / "tls", "farm")
    authority.issue("drone-7", "device")
    with pytest.raises(ConfigError, match=r"no certificate of 'drone-8' in .*; there are drone-7$"):
        authority.revoke("drone-8")


def test_a_recording_that_is_not_there_is_no_folder_of_images(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(ConfigError, match=r"nothing at .*; give the path of a recording, or a number for a camera"):
        open_frames("camera:nowhere.mp4", split="test", data=tmp_path)
    with pytest.raises(ConfigError, match=r"unknown frame source 'nowhere'\. Known: camera"):
        open_frames("nowhere", split="test")


# ---- commands and updates ----


def test_a_command_that_there_is_not_is_answered_with_those_that_there_are() -> None:
    judge = Judge("a" * 32, HANDLERS)
    asked = Command(cmd_id=f"{0:08x}-0000-0000-0000-{0:012x}", life="a" * 32, seq=1, issued_ms=1000, ttl_ms=5000)
    reply = judge.judge("s", "reboot", asked, 1.0, 0.0)
    assert reply is not None
    assert reply.reason.startswith("no command 'reboot' here; there are controller, pause-learning, ping")


@pytest.mark.parametrize("args", [{}, {"controller": "deadline"}, {"name": ""}, {"name": "deadline", "blok": 5}])
def test_the_command_controller_says_what_it_takes(args: dict[str, Any]) -> None:
    agent: Any = None  # refused before anything is asked of the device
    with pytest.raises(ConfigError, match="controller takes name=NAME and block=FRAMES; a command can name bundle, "):
        controller(agent, args)


def test_a_roll_out_says_what_becomes_of_devices_that_have_not_ended() -> None:
    rollout = Rollout("0" * 32, 1, ["a", "b", "c", "d"], canaries=3)
    rollout.start()
    for device, status, stage in (("b", "IN_PROGRESS", "canary"), ("c", "SUCCEEDED", "")):
        told = {"job": "0" * 32, "version": 1, "status": status, "stage": stage}
        rollout.heard(device, PolicyReported.model_validate(told))
    assert rollout.left_over(5.0) == [
        "a has not answered in 5 s; it hears of the update when it is back",
        "b is not done after 5 s (canary)",
        "d was not told: those that go first have not kept it",
    ]


# ---- processes ----


class Screen:
    """A command of ours as a process; ``text`` is what it has said so far."""

    def __init__(self, folder: Path, *arguments: str | Path) -> None:
        self._path = folder / f"{arguments[0]}-{time.monotonic_ns()}.txt"
        with self._path.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "adaptsplit.cli", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def text(self) -> str:
        return self._path.read_text(encoding="utf-8", errors="replace")

    def says(self, words: str, times: int = 1) -> None:
        until(lambda: self.text.count(words) >= times, lambda: f"{words!r} x {times} not in:\n{self.text}")

    def ends(self, how: signal.Signals | None = None) -> int:
        if how is not None:
            self.process.send_signal(how)
        return self.process.wait(WAIT_S)


@contextmanager
def screens(folder: Path) -> Iterator[Callable[..., Screen]]:
    opened: list[Screen] = []

    def open_one(*arguments: str | Path) -> Screen:
        opened.append(Screen(folder, *arguments))
        return opened[-1]

    try:
        yield open_one
    finally:
        for one in opened:
            if one.process.poll() is None:
                one.process.terminate()
                try:
                    one.process.wait(10.0)
                except subprocess.TimeoutExpired:
                    one.process.kill()
                    one.process.wait()


@pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")
def test_deaths_are_seen_on_every_screen(tmp_path: Path) -> None:
    export_bundle("deadline", load_scenario("flight-lte"), tmp_path / "bundle")
    port = str(free_port())
    where = ("--broker", f"mqtt://127.0.0.1:{port}")
    with screens(tmp_path) as run:
        edge = run("edge", "--bundle", tmp_path / "bundle", *where)  # before there is a broker
        edge.says("edge-1 of fleet default: broker mqtt://127.0.0.1:")
        assert edge.ends(signal.SIGTERM) == 130, edge.text  # a start that waits can be ended
        broker = run("broker", "--port", port)
        broker.says('"ready": true')
        edge = run("edge", "--bundle", tmp_path / "bundle", *where, "--metrics", str(metrics := free_port()))
        edge.says('"ready": true')
        device = run("device", "--bundle", tmp_path / "bundle", *where, "--count", "0", "--pace", "native")
        device.says("edge online")
        watch = run("fleet", "watch", *where)
        watch.says("device-1: ONLINE")

        twin = run("edge", "--bundle", tmp_path / "bundle", *where, "--metrics", str(metrics))
        assert twin.ends() == 2, twin.text  # its port is taken: it must not take the other one's id either
        assert "name another port with --metrics" in twin.text
        assert "OFFLINE" not in watch.text
        assert "edge offline" not in device.text

        edge.ends(signal.SIGKILL)
        device.says("edge offline")
        watch.says("_edge/edge-1: CONNECTION_BROKEN")
        (mosquitto,) = psutil.Process(broker.process.pid).children()
        mosquitto.kill()
        assert broker.ends() == 1, broker.text
        assert "mosquitto has ended by itself (signal 9)" in broker.text
        device.says("link data down")
        watch.says("the broker's connection is lost")
        broker = run("broker", "--port", port)
        device.says("link data up", times=2)
        watch.says("the broker is back")
        assert device.ends(signal.SIGTERM) == 0, device.text
        assert broker.ends(signal.SIGTERM) == 0, broker.text
        for screen in (device, watch, edge):
            assert "Traceback" not in screen.text, screen.text
