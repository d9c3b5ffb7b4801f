"""Floods, bombs and texts from one peer: what each costs the others, and the machine. Each was tried before it was
mended; the numbers before are in the docstrings."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import SPACE
from policy_cases import NOW, trust_in, two_versions

import adaptsplit.agents.build  # noqa: F401  registers the controllers that a device knows
from adaptsplit import bundle as bundles
from adaptsplit import observation as obs
from adaptsplit.agents.static import StaticController
from adaptsplit.bundle import load_bundle
from adaptsplit.decision import Decision
from adaptsplit.device_bridge import commands
from adaptsplit.device_bridge.advice_messages import SCHEMA, ObservationMessage, space_id
from adaptsplit.device_bridge.batching import BatchTimes, TailQueue
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.control import Event, PolicyReported, State, build_control, parse_control
from adaptsplit.device_bridge.decision_service import DecisionServer
from adaptsplit.device_bridge.decision_session import DecisionSession
from adaptsplit.device_bridge.device_link import MAX_EDGES, MAX_HEARD_HZ, DeviceLink, Edges, EdgeSeen
from adaptsplit.device_bridge.edge_session import EdgeSession, Lane, TailAnswer, Work
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Heartbeat
from adaptsplit.device_bridge.metrics_server import MAX_SCRAPES, MetricsServer
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.policy_rollout import SendChunk
from adaptsplit.device_bridge.policy_sender import CHUNKS_HZ, PolicySender
from adaptsplit.device_bridge.rate_limit import RateLimit, limit_for
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import ConfigError
from adaptsplit.npz import read_npz
from adaptsplit.signing import Refusal, RefusedBundle, parse_signature, sign_statement
from adaptsplit.signing_keys import PrivateKey

SESSION = bytes(range(16))
MIB = 1 << 20


# ---- how much one peer may ask for ----


def test_a_bucket_is_filled_at_its_rate_and_holds_its_burst() -> None:
    limit = RateLimit(10.0, 5.0)
    assert sum(limit.allows("a", 0.0) for _ in range(100)) == 5
    assert 99 <= sum(limit.allows("a", 1e-3 * k) for k in range(1, 10_001)) <= 100  # 10 s at 10 Hz
    assert sum(limit.allows("a", 1e6) for _ in range(100)) == 5
    assert limit.allows("a", 0.0) is False, "time that runs backwards fills nothing"
    assert limit.allows("b", 0.0)


def test_the_limit_of_many_peers_is_bounded_and_forgets_the_silent_one() -> None:
    limit = RateLimit(1.0, 1.0, max_peers=3)
    assert all(limit.allows(name, 0.0) for name in "abc")
    assert not limit.allows("a", 0.1)
    assert limit.allows("d", 0.2)
    assert len(limit) == 3
    assert not limit.allows("a", 0.3), "a spoke last, so b was forgotten"
    for number in range(10_000):
        limit.allows(str(number), 1.0)
    assert len(limit) == 3


def test_what_a_device_sends_by_its_bundle_is_never_limited() -> None:
    """Frames at the full rate and heartbeats for an hour, and all that a window can hold after a minute of silence."""
    limit = limit_for(10.0)
    assert limit is not None
    assert limit_for(float("inf")) is None
    assert all(limit.allows("d", t) for k in range(36_000) for t in [0.1 * k] * (2 if k % 10 == 0 else 1))
    assert all(limit.allows("d", 3700.0) for _ in range(20))


TAIL_S = 0.010
FRAME = bytes(64)


class Clockwork:
    """An edge's session with a tail of 10 ms, on a clock of its own."""

    def __init__(self, limit: RateLimit | None) -> None:
        times = BatchTimes()
        for _ in range(9):
            times.note(0, 1, TAIL_S)
        self.edge = EdgeSession("default", lanes={b"model--A": Lane(1, TailQueue(64, 1 << 24, 1, times))}, limit=limit)
        self.waits: dict[str, list[float]] = {}
        self._running: Work | None = None
        self._ends = math.inf
        self._numbers: dict[str, int] = {}

    def until(self, now: float) -> None:
        """Let the tail work."""
        while self._ends <= now:
            assert self._running is not None
            job, at = self._running.job, self._ends
            self.waits.setdefault(job.device, []).append(at - job.arrived)
            self._begin(self.edge.finished(self._running, [TailAnswer(bytes(16), 0.5)], at), at)

    def send(self, device: str, now: float, budget_s: float) -> None:
        """A device sends a frame."""
        number = self._numbers[device] = self._numbers.get(device, -1) + 1
        message = FrameMessage(SESSION, number, number, 0, 0, 0, round(budget_s * 1e6), FRAME, b"model--A")
        actions = self.edge.received(DeviceTopics("default", device).leaf("up"), message.to_bytes(), now)
        if self._running is None:
            self._begin(actions, now)

    def _begin(self, actions: Any, now: float) -> None:
        works = [action for action in actions if isinstance(action, Work)]
        self._running = works[0] if works else None
        self._ends = now + TAIL_S if works else math.inf


def waits_under_attack(limit: RateLimit | None) -> tuple[list[float], Clockwork]:
    """Five devices at 10 frames/s fill half of the tail; one sends 500/s with the shortest deadline that is taken."""
    world = Clockwork(limit)
    for tick in range(10_000):
        now = 0.002 * tick
        world.until(now)
        world.send("attacker", now, 0.021)
        if tick % 10 == 0:
            world.send(f"d{tick // 10 % 5}", now, 0.2)
    world.until(30.0)
    return [wait for name, waits in world.waits.items() if name != "attacker" for wait in waits], world


def test_one_device_cannot_hold_up_the_answers_of_the_others() -> None:
    """The earliest deadline goes first, so whoever claims the least time does. Without a limit the answers of the five
    came at their deadlines (median 200 ms, of no use beyond the edge); with it after 10 ms."""
    held_up, unlimited = waits_under_attack(None)
    waits, limited = waits_under_attack(limit_for(10.0))
    assert float(np.median(held_up)) > 0.15, "the attack works where there is no limit"
    assert len(waits) == 1000
    assert float(np.quantile(waits, 0.95)) < 0.025
    assert limited.edge.counts["rate_limited"] > 9000
    assert len(limited.waits["attacker"]) <= 22 * 20 + 44
    assert "rate_limited" not in unlimited.edge.counts


def test_what_is_above_the_limit_is_neither_parsed_nor_answered() -> None:
    edge = EdgeSession("default", 1, limit=RateLimit(1.0, 2.0))
    topic = DeviceTopics("default", "d").leaf("heartbeat")
    beats = [edge.received(topic, Heartbeat(SESSION, k, 0).to_bytes(), 0.0) for k in range(5)]
    assert [len(actions) for actions in beats] == [1, 1, 0, 0, 0]
    assert edge.received(topic, b"garbage", 0.0) == []
    assert edge.counts == {"heartbeats": 2, "rate_limited": 4}
    other = DeviceTopics("default", "e").leaf("heartbeat")
    assert len(edge.received(other, Heartbeat(SESSION, 0, 0).to_bytes(), 0.0)) == 1


def test_a_decision_service_is_asked_no_more_often_than_a_device_decides() -> None:
    service = DecisionSession("default", StaticController(SPACE, Decision(0, 0, 0)), SPACE, limit=RateLimit(1.0, 3.0))
    values = np.full(obs.SIZE, 0.5, np.float32)
    for k in range(10):
        message = ObservationMessage(SESSION, k, SCHEMA, space_id(SPACE), values)
        service.received(DeviceTopics("default", "d").leaf("observe"), message.to_bytes(), 0.0)
    assert (service.counts["observations"], service.counts["rate_limited"]) == (3, 7)


# ---- what a device takes from an edge server or an operator ----


def heard_by_a_device() -> tuple[DeviceLink, list[Any]]:
    """A device's link without a broker."""
    told: list[Any] = []
    link = DeviceLink.__new__(DeviceLink)
    link.counts = Counter()
    link._limit = RateLimit(MAX_HEARD_HZ, MAX_HEARD_HZ)
    link._topics = DeviceTopics("default", "d")
    link._leaves = [link._topics.leaf("policy/chunk/+/+")]
    link._post = lambda event, at: told.append(event)
    return link, told


def test_a_device_hears_a_thousand_messages_a_second_and_presence_in_spite_of_them() -> None:
    """Each that reached the main loop would cost it time in which it should decide."""
    link, told = heard_by_a_device()
    ack = Ack(SESSION, 1, 1).to_bytes()
    began = time.monotonic()
    for _ in range(20_000):
        link._on_message(link._topics.leaf("down"), ack)
    took = time.monotonic() - began
    assert len(told) <= MAX_HEARD_HZ * (1.0 + took) + 1
    assert link.counts["rate_limited"] == 20_000 - len(told) > 10_000
    link._on_message(link._topics.leaf("heartbeat/reply"), Heartbeat(SESSION, 1, 0, reply=True).to_bytes())
    assert isinstance(told[-1], Heartbeat)


def test_nothing_large_waits_for_a_devices_main_loop() -> None:
    """Its inbox holds 4096 messages: of 8 MiB each they were 32 GiB."""
    link, told = heard_by_a_device()
    frame = FrameMessage(SESSION, 0, 0, 0, 0, 0, 1, bytes(4 * MIB)).to_bytes()
    link._on_message(link._topics.leaf("down"), frame)
    link._on_message(link._topics.leaf("policy/chunk/ab/0"), bytes(100 * 1024 + 1))
    assert (told, link.counts["malformed"]) == ([], 2)
    link._on_message(link._topics.leaf("policy/chunk/ab/0"), bytes(100 * 1024))
    assert len(told) == 1


def test_names_of_edge_servers_that_have_gone_make_room() -> None:
    """After 64 names (of replaced machines, or said by one that was taken over) a device knew no new edge server."""
    edges = Edges()
    for number in range(1000):
        for state in ("ONLINE", "OFFLINE"):
            assert edges.seen(EdgeSeen(f"e{number}", "s", state))[0]
    assert len(edges._known) <= MAX_EDGES
    for number in range(MAX_EDGES):
        assert edges.seen(EdgeSeen(f"there-{number}", "s", "ONLINE"))[0]
    assert edges.seen(EdgeSeen("one-more", "s", "ONLINE")) == (False, False)
    assert len(edges.names) == MAX_EDGES


def test_a_device_that_asks_for_chunks_without_end_gets_few() -> None:
    """A report of 300 bytes brought 16 chunks of 16 KiB, as often as it was sent: the operator's whole link."""
    sent: list[tuple[str, bytes]] = []
    sender = PolicySender.__new__(PolicySender)
    sender._fleet, sender.counts = "farm", Counter()
    sender._chunks = RateLimit(CHUNKS_HZ, CHUNKS_HZ)
    link: Any = SimpleNamespace(publish=lambda topic, data, qos: sent.append((topic, data)))
    sender._link = link
    parcel: Any = type(
        "Parcel", (), {"announcement": type("A", (), {"sha256": "0" * 64}), "chunk": lambda self, n: b"x"}
    )()
    began = time.monotonic()
    for number in range(5000):
        sender._do(parcel, [SendChunk("bad", number % 16)])
    assert len(sent) <= CHUNKS_HZ * (1.0 + time.monotonic() - began) + 1
    sender._do(parcel, [SendChunk("good", 0)])
    assert sent[-1][0].startswith("adaptsplit/v1/farm/good/")
    assert sender.counts["rate_limited"] > 3000


# ---- commands and texts ----


def test_a_command_reaches_no_file_through_a_controller_inside_another() -> None:
    """``service:/tmp/run`` loaded whatever policy lay there, unsigned; ``probing:1:online:...`` a learner's folder."""
    for name in (
        "service:/tmp/run",
        "service:bundle",
        "service:online:/tmp/x",
        "probing:1:online:/x",
        "online:/x",
        "service:service:online:x",
        "probing:1:service:/tmp/run",
        "service:probing:1:online:x",
    ):
        with pytest.raises(ConfigError, match="a command can name bundle"):
            commands._buildable(name)
    for name in (
        "bundle",
        "deadline",
        "static:stem/1/1.01",
        "service",
        "service:deadline",
        "probing",
        "probing:5",
        "probing:5:ucb1" if "ucb1" in commands.controllers else "probing:5:linear-ts",
    ):
        assert commands._buildable(name) == name


@pytest.mark.parametrize("count", [17, 18, 8000])
def test_a_command_names_few_controllers(count: int) -> None:
    """Eight thousand fit into one command; each would get a guard and a thread."""
    with pytest.raises(ConfigError, match="more than 16 controllers"):
        commands.controller(None, {"name": ",".join(["deadline"] * count)})  # type: ignore[arg-type]


def test_sixteen_controllers_are_not_too_many() -> None:
    """The last of sixteen is still looked at; a seventeenth would not be."""
    with pytest.raises(ConfigError, match="controller 'no-such-rule'; a command can name"):
        commands.controller(None, {"name": ",".join(["deadline"] * 15 + ["no-such-rule"])})  # type: ignore[arg-type]


EVIL = "\x1b]0;owned\x07\x1b[2J\r\u202e\x9b"


def test_no_text_of_a_device_moves_an_operators_cursor() -> None:
    """Escape sequences came through to `fleet list`, `fleet cmd` and `deploy`: they rewrite what an operator sees."""
    said = (
        Event(kind=EVIL, detail=EVIL),
        PolicyReported(job="", version=0, status="FAILED", reason=EVIL, detail=EVIL),
        State(
            frame=1,
            controller=EVIL,
            decision=EVIL,
            goodput_bps=1,
            rtt_s=0,
            unacked=0,
            edge="online",
            edges=[EVIL],
            paths={EVIL: 1},
        ),
    )
    for content in said:
        raw = content.model_dump() | {
            key: EVIL for key in ("kind", "detail", "reason", "controller") if hasattr(content, key)
        }
        whole = json.loads(build_control(content, seq=1, session=SESSION, ts_ms=0, mono_ms=0.0)) | {"data": raw}
        heard = parse_control(json.dumps(whole).encode())[1]
        assert str(heard.model_dump()).isprintable()
        for text in json.dumps(heard.model_dump(), ensure_ascii=False):
            assert text.isprintable()


# ---- files ----


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, key: PrivateKey) -> Path:
    return two_versions(tmp_path_factory.mktemp("made"), key)


def lying_npz(real: int, stated: int) -> bytes:
    """Return an npz whose array has ``real`` bytes, of which its directory states ``stated``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(real))
    data = bytearray(buffer.getvalue())
    for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):  # uncompressed size, APPNOTE 4.3.7 and 4.3.12
        where = data.find(mark) + at
        data[where : where + 4] = struct.pack("<I", stated)
    return bytes(data)


def test_an_array_that_unpacks_to_more_than_it_states_is_not_unpacked(tmp_path: Path) -> None:
    """600 KB of file took 1.2 GB of memory before they were refused."""
    bomb = tmp_path / "bomb.npz"
    bomb.write_bytes(lying_npz(200 * MIB, 1000))
    code = f"""
import resource
from adaptsplit.npz import read_npz
data = open({str(bomb)!r}, "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_npz(data, 1 << 20, 4)
except ValueError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 20 * MIB
    with pytest.raises(ValueError, match=r"CRC|header"):
        read_npz(lying_npz(5000, 1000), MIB, 4)


def rewritten(source: Path, to: Path, old: str, new: str, key: PrivateKey) -> Path:
    """Return a copy of a bundle whose manifest says ``new``, with a good signature."""
    shutil.copytree(source, to)
    manifest = (to / "manifest.json").read_text()
    assert manifest.count(old) == 1
    (to / "manifest.json").write_text(manifest.replace(old, new))
    digest = hashlib.sha256((to / "manifest.json").read_bytes()).hexdigest()
    statement = parse_signature((to / "signature.json").read_bytes(), "t").statement
    (to / "signature.json").write_bytes(sign_statement(statement.model_copy(update={"manifest": digest}), key))
    return to


def test_a_manifest_in_which_a_key_stands_twice_is_refused(made: Path, key: PrivateKey, tmp_path: Path) -> None:
    """One reader takes the first, another the last: what was reviewed would not be what runs."""
    twice = rewritten(made / "v1", tmp_path / "b", '"scenario": ', '"scenario": "another", "scenario": ', key)
    with pytest.raises(RefusedBundle, match="a key stands twice") as caught:
        load_bundle(twice, trust_in(key, NOW))
    assert caught.value.code is Refusal.MALFORMED


def test_a_manifest_cannot_write_on_a_terminal(made: Path, key: PrivateKey, tmp_path: Path) -> None:
    evil = rewritten(made / "v1", tmp_path / "b", '"library": "', '"library": "\\u001b[2J', key)
    with pytest.raises(RefusedBundle, match="a terminal would not show") as caught:
        load_bundle(evil, trust_in(key, NOW))
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_policy_that_is_exchanged_after_it_was_checked_is_not_used(
    made: Path, key: PrivateKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was hashed, and then read again."""
    folder = Path(shutil.copytree(made / "v1", tmp_path / "b"))
    check = bundles.check_files

    def check_and_exchange(*arguments: Any) -> None:
        check(*arguments)
        shutil.copyfile(made / "v2" / "policy.npz", folder / "policy.npz")

    monkeypatch.setattr(bundles, "check_files", check_and_exchange)
    with pytest.raises(RefusedBundle) as caught:
        load_bundle(folder, trust_in(key, NOW))
    assert caught.value.code is Refusal.CHANGED


def test_two_signed_bundles_cannot_be_mixed(made: Path, key: PrivateKey, tmp_path: Path) -> None:
    """Every file of one in the place of the other's: each mixture is refused."""
    for name in ("policy.npz", "manifest.json", "signature.json"):
        folder = Path(shutil.copytree(made / "v1", tmp_path / name))
        shutil.copyfile(made / "v2" / name, folder / name)
        with pytest.raises(RefusedBundle) as caught:
            load_bundle(folder, trust_in(key, NOW))
        assert caught.value.code is Refusal.CHANGED


# ---- metrics ----


def test_connections_that_are_held_open_take_few_threads_and_stop_no_scrape() -> None:
    """Each took a thread and a file of the device's process for as long as it stayed, without a limit."""
    pytest.importorskip("prometheus_client", reason="needs the extra device")
    server = MetricsServer("0")
    before = threading.active_count()
    held = []
    try:
        for number in range(100):
            held.append(socket.create_connection(("127.0.0.1", server.port), 5.0))
            if number % 2:
                held[-1].sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        end = time.monotonic() + 10.0
        while server.pushed_out < 100 - MAX_SCRAPES and time.monotonic() < end:
            time.sleep(0.02)
        assert server.pushed_out >= 100 - MAX_SCRAPES
        while threading.active_count() > before + MAX_SCRAPES and time.monotonic() < end:
            time.sleep(0.02)
        assert threading.active_count() <= before + MAX_SCRAPES
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as page:
            assert page.status == 200
    finally:
        for each in held:
            each.close()
        server.close()


# ---- a decision service whose controller hangs ----


class Hanging(StaticController):
    """Decides nothing until it is let go."""

    free = threading.Event()

    def act(self, observation: Any, state: Any) -> Any:
        """Wait."""
        self.free.wait(60.0)
        return super().act(observation, state)


def test_a_decision_service_whose_policy_hangs_can_be_ended() -> None:
    """It held the lock that ending it needs: SIGTERM did nothing."""
    with EmbeddedBroker() as broker:
        address = BrokerAddress.parse(broker.url)
        server = DecisionServer(Hanging(SPACE, Decision(0, 0, 0)), SPACE, address)
        device = MqttTransport(address, "d", [], lambda topic, payload: None)
        try:
            for link in (server, device):
                link.wait_connected(10.0)
            values = np.full(obs.SIZE, 0.5, np.float32)
            asks = ObservationMessage(SESSION, 0, SCHEMA, space_id(SPACE), values).to_bytes()
            assert device.publish(DeviceTopics("default", "d").leaf("observe"), asks)
            end = time.monotonic() + 10.0
            while not server.session.counts["batches"] and time.monotonic() < end:
                time.sleep(0.01)
            assert server.session.counts["batches"] == 1
            ended = threading.Thread(target=server.close, daemon=True)
            ended.start()
            ended.join(20.0)
            assert not ended.is_alive()
            assert server.summary()["observations"] == 1
        finally:
            Hanging.free.set()
            device.close()
