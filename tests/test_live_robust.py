"""What a device lives through besides its link: clocks that jump, full disks, twins, and hundreds of reconnections."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import resource
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import live_cases
import paho.mqtt.client as paho
import pytest
from faults import FaultProxy
from killing import flying
from live_cases import BIRTH
from policy_cases import export_policy
from test_live_session import Bench

from adaptsplit.bundle import Bundle, export_bundle, load_bundle
from adaptsplit.device_bridge import mqtt
from adaptsplit.device_bridge.broker import EmbeddedBroker, find_mosquitto
from adaptsplit.device_bridge.camera import KEPT, Camera, endless_order
from adaptsplit.device_bridge.commands import Commands
from adaptsplit.device_bridge.decider import Decider
from adaptsplit.device_bridge.describe import session_config
from adaptsplit.device_bridge.device_link import DeviceLink
from adaptsplit.device_bridge.edge_link import EdgeLink
from adaptsplit.device_bridge.line_file import LineFile
from adaptsplit.device_bridge.live import LiveFrames, LiveOptions, LiveSetup
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.device_bridge.operator import Operator
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import ConfigError
from adaptsplit.frames import open_frames
from adaptsplit.outcome import Outcomes
from adaptsplit.recorded_run import read_run
from adaptsplit.scenario import load_scenario

FLEET = "default"
HOUR_S = 3600.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A static decision that sends every frame."""
    folder = tmp_path_factory.mktemp("robust") / "bundle"
    return export_bundle("static:stem/1/1.01", load_scenario("flight-lte"), folder)


def until(done: Callable[[], bool], timeout_s: float = 15.0) -> bool:
    return live_cases.until(done, timeout_s)


# ---- the wall clock -----------------------------------------------------------------------------------------------


def flight(bundle: Bundle, wall: Callable[[int], float]) -> tuple[Outcomes, list[tuple[int, ...]]]:
    """120 frames in simulated time of a learned policy in its guard; ``wall`` sets the wall clock at each frame."""
    config = session_config(bundle, bytes(16), 120)
    decider = Decider(bundle.build(["bundle"], 1), bundle.space, 0)
    bench, chosen = Bench(config), []

    def decide(frame: int) -> Any:
        wall(frame)
        decision, _ = decider.decide(bench.observations[frame])
        chosen.append((decision.branch, decision.rate, decision.threshold))
        return decision

    bench.decide = decide
    bench.signals = lambda frame: (0.2 + 0.6 * ((frame * 7) % 11) / 11, 0.1)
    bench.payload = lambda frame, decision: 500 + (frame * 997) % 4000
    try:
        return bench.run().log(), chosen
    finally:
        decider.close()


def test_decisions_do_not_depend_on_the_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour ahead, an hour behind, and jumps in flight: the same decisions and records, bit for bit."""
    bundle, now = load_bundle(export_policy(tmp_path, 3)), [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "time_ns", lambda: int(now[0] * 1e9))
    start = now[0]

    def fixed(offset_s: float) -> Callable[[int], float]:
        return lambda frame: now.__setitem__(0, start + offset_s + 0.1 * frame) or 0.0

    def jumping(frame: int) -> float:
        now[0] = start + 0.1 * frame + (HOUR_S if 40 <= frame < 80 else -HOUR_S if frame >= 80 else 0.0)
        return 0.0

    records, chosen = flight(bundle, fixed(0.0))
    assert len(set(chosen)) > 3, "a policy that always decides alike would prove nothing"
    for wall in (fixed(HOUR_S), fixed(-HOUR_S), jumping):
        again, others = flight(bundle, wall)
        assert others == chosen
        assert again.tobytes() == records.tobytes()


def test_a_clock_that_jumps_in_flight_costs_no_frame_and_no_connection(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour forth and an hour back; a command by a clock that is an hour away is refused, one by its own is done."""
    true, offset = time.time, [0.0]
    with LiveSetup(bundle, None, tmp_path, LiveOptions()) as setup:
        with (
            flying(bundle, setup.broker.url, setup.log, [Commands(wall=lambda: time.time())], ["bundle"]) as agent,
            Operator(BrokerAddress.parse(setup.broker.url), heals=False) as operator,
        ):
            life = operator.find("device-1").life
            monkeypatch.setattr(time, "time", lambda: true() + offset[0])
            said = []
            for jump in (0.0, HOUR_S, -HOUR_S, 0.0):
                offset[0] = jump
                frame = agent.last_decided
                command = operator.make(life, {}).model_copy(update={"issued_ms": int(true() * 1e3)})
                said.append(operator.ask("device-1", "ping", command).status)
                assert until(lambda at=frame: agent.last_decided >= at + 5)
        assert said == ["DONE", "EXPIRED", "EXPIRED", "DONE"]
        assert agent.counts["data_down"] == agent.counts["control_down"] == 0
    records = read_run(setup.log).records
    assert records["frame"].tolist() == list(range(len(records)))
    assert len(records) >= 20


# ---- a full disk --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within, this process writes no file beyond ``size`` bytes: writes are cut short there, and then fail (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log")
    with largest_file(25):
        assert [file.write(10 * name) for name in "abc"] == [True, True, False]
        assert (tmp_path / "log").read_bytes() == b"aaaaaaaaaa\nbbbbbbbbbb\n", "what was written of it is taken back"
        assert file.write("ok")
    assert file.write(10 * "d")
    assert file.lost == 1
    file.close()
    assert (tmp_path / "log").read_text().split() == [10 * "a", 10 * "b", "ok", 10 * "d"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_disk_that_is_full_from_the_start_costs_lines_only() -> None:
    with LiveLog(Path("/dev/full")) as log:
        log.begin({"fps": 10.0})
        log.event(0, "guard", "")
        assert log.lost == 2


@pytest.mark.parametrize("step", ["replace", "open"])
def test_a_log_that_cannot_be_rotated_counts_what_is_lost_and_goes_on(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of 75 bytes and a limit of 100: two fill a file, three fill twice that, and what comes then is lost."""

    def full(*arguments: Any, **more: Any) -> Any:
        raise OSError(28, "No space")

    def frames(name: str) -> list[int]:
        return [json.loads(line)["frame"] for line in (tmp_path / name).read_text().splitlines()]

    with LiveLog(tmp_path / "log", limit_bytes=100) as log:
        with monkeypatch.context() as disk:
            disk.setattr(Path, step, full)
            for frame in range(6):
                log.event(frame, "guard", 30 * "x")
        assert log.lost == 3
        log.event(6, "guard", 30 * "x")
        assert log.lost == 3
    assert frames("log.old") == [0, 1, 2]
    assert frames("log") == [6]


def test_a_rotation_that_fails_once_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LiveLog(tmp_path / "log", limit_bytes=200) as log:
        log.begin({"fps": 10.0})
        with monkeypatch.context() as disk:
            disk.setattr(Path, "replace", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space")))
            for frame in range(3):
                log.event(frame, "guard", 30 * "x")
        log.event(3, "guard", 30 * "x")
        log.event(4, "guard", 30 * "x")
        assert log.lost == 0
    old, new = ((tmp_path / name).read_text().splitlines() for name in ("log.old", "log"))
    assert [json.loads(line)["event"] for line in (old[0], new[0])] == ["run", "run"]
    assert [json.loads(line)["frame"] for line in [*old[1:], *new[1:]]] == [0, 1, 2, 3, 4]


def test_an_older_log_that_cannot_be_set_aside_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").write_text("older\n")
    monkeypatch.setattr(Path, "replace", lambda *arguments: (_ for _ in ()).throw(OSError(13, "Permission denied")))
    with pytest.raises(
        ConfigError, match=r"log: cannot be written \(Permission denied\); name another file with --log"
    ):
        LiveLog(tmp_path / "log", limit_bytes=100)
    assert (tmp_path / "log").read_text() == "older\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_device_whose_disk_is_full_flies_to_the_end(bundle: Bundle, tmp_path: Path) -> None:
    with LiveSetup(bundle, None, tmp_path, LiveOptions(pace="native")) as setup:
        setup.log.symlink_to("/dev/full")
        with setup.device(LiveFrames(count=15), ["bundle"]) as device:
            summary = device.read(60.0)
    assert summary["frames"] == 15
    assert summary["session"]["path_remote"] > 0
    assert summary["device"]["log_lost"] > 15


# ---- twins --------------------------------------------------------------------------------------------------------


def test_of_two_devices_with_one_id_the_newer_gets_the_commands_and_both_fly(bundle: Bundle, tmp_path: Path) -> None:
    """Neither takes the other's connections away (their client ids differ); the older one says that there is one."""
    given: list[str] = []

    def part(name: str) -> Any:
        return Commands({"who": lambda agent, args: {"me": given.append(name) or name}})

    with LiveSetup(bundle, None, tmp_path, LiveOptions()) as setup:
        url = setup.broker.url
        with (
            Operator(BrokerAddress.parse(url), heals=False) as operator,
            flying(bundle, url, tmp_path / "one.jsonl", [part("one")], ["bundle"]) as one,
        ):
            with flying(bundle, url, tmp_path / "two.jsonl", [part("two")], ["bundle"]) as two:
                assert until(lambda: one.counts["twins"] == 1)
                assert until(lambda: any("twin" in line for line in operator.news()))
                for agent in (one, two):
                    remote = agent.session.counts["path_remote"]
                    assert until(lambda a=agent, n=remote: a.session.counts["path_remote"] > n + 3)
                assert operator.find("device-1").life == two.link.session
                assert operator.command("device-1", "who").data == {"me": "two"}
            assert until(lambda: operator.find("device-1").life == one.link.session), "it says ONLINE again"
            assert operator.command("device-1", "who").data == {"me": "one"}
            assert one.counts["data_down"] == one.counts["control_down"] == 0
            assert two.counts["twins"] == 0
    assert given == ["two", "one"]


# ---- reconnections ------------------------------------------------------------------------------------------------

ROUNDS = int(os.environ.get("ADAPTSPLIT_RECONNECTIONS", "40"))
OURS = ("adaptsplit.", "paho.", "socket.", "threading.", "ssl.")


def objects() -> Counter[str]:
    """How many objects of our own classes, of paho's and of connections there are (no attribute of any is read)."""
    gc.collect()
    names = (f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return Counter(name for name in names if name.startswith(OURS))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


@pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")
def test_reconnections_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Device and edge connections are reset again and again: same objects, threads and descriptors, no memory kept."""
    monkeypatch.setattr(mqtt, "_RECONNECT_MIN_S", 0.02)
    monkeypatch.setattr(mqtt, "_RECONNECT_MAX_S", 0.05)
    with EmbeddedBroker(backend="mosquitto") as broker, FaultProxy(("127.0.0.1", broker.port)) as proxy:
        address = BrokerAddress.parse(proxy.url)
        device = DeviceLink(address, DeviceTopics(FLEET, "d"), new_session(), BIRTH, lambda event, at: None, ["cmd/+"])
        edge = EdgeLink(address, FLEET, "e", lambda topic, payload: None)
        links = (device._data, device._control, edge._data, edge._control)

        def again() -> None:
            wanted = [link.counts["connected"] + 1 for link in links]
            proxy.cut()
            assert until(lambda: all(x.counts["connected"] >= n for x, n in zip(links, wanted, strict=True)))

        try:
            device.wait_connected(10.0)
            edge.wait_connected(10.0)
            for _ in range(10):
                again()
            before = objects(), threading.active_count(), descriptors()
            tracemalloc.start(1)
            base = tracemalloc.get_traced_memory()[0]
            for _ in range(ROUNDS):
                again()
            after = objects(), threading.active_count(), descriptors()
            grown = tracemalloc.get_traced_memory()[0] - base
        finally:
            tracemalloc.stop()
            device.close()
            edge.close()
    print(f"{4 * ROUNDS} reconnections: {grown} bytes")
    assert sum(issubclass(type(one), paho.Client) for one in gc.get_objects()) == len(links)
    assert {name: n for name, n in (after[0] - before[0]).items() if n > 4} == {}
    assert after[1:] == before[1:]
    assert grown < 256 * 1024 + 100 * 4 * ROUNDS, "bytes for a reconnection"


def test_frames_that_a_busy_device_passes_over_are_given_back() -> None:
    """Every fifth frame is looked at: what is kept is bounded by what is rendered ahead and kept for late answers."""
    source = open_frames("flight", split="test")
    with Camera(source, endless_order(source, 0), ahead=8) as camera:
        kept = []
        for number in range(0, 400, 5):
            camera.shot(number)
            kept.append(len(camera._ready))
    assert max(kept) <= KEPT + 8 + 6
    assert kept[-1] <= max(kept[: len(kept) // 2])


@pytest.mark.timeout(30)
def test_a_device_far_ahead_of_its_camera_still_gets_its_frame() -> None:
    """As after a stall: every frame that is rendered on the way is older than all that are kept."""
    source = open_frames("flight", split="test")
    with Camera(source, endless_order(source, 0), ahead=8) as camera:
        camera.shot(0)
        shot = camera.shot(8 + 3 * KEPT)
        assert shot.frame.image.tobytes() == source.frame(8 + 3 * KEPT).image.tobytes()


# ---- the page of promises -------------------------------------------------------------------------------------------


def test_every_test_that_the_page_of_promises_names_exists() -> None:
    here = Path(__file__).parent
    page = (here.parent / "docs" / "acceptance.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(set(named)) > 50
    for file in {file for file, _ in named}:
        text = (here / file).read_text(encoding="utf-8")
        there = set(re.findall(r"^def (test_\w+)\(", text, flags=re.MULTILINE))
        assert {name for where, name in named if where == file} <= there, file
