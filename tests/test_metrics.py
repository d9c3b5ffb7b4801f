"""Metrics of a running device, the service manager's protocol, a run without end, and the files in ``contrib``."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adaptsplit import estimators as est
from adaptsplit.bundle import Bundle, export_bundle
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.process import Child
from adaptsplit.device_bridge.service import Notifier, ServicePart, stopping
from adaptsplit.device_bridge.telemetry import Reading
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import ConfigError, MissingExtraError
from adaptsplit.outcome import empty
from adaptsplit.scenario import load_scenario

prometheus_client = pytest.importorskip("prometheus_client", reason="needs the extra device")
from adaptsplit.device_bridge.metrics import EdgeMetrics, MetricsPart, MetricsServer, parse_where  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CONTRIB = ROOT / "contrib"


def scrape(port: int) -> dict[str, float]:
    """Return every sample of the page, by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        text = page.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            samples[name + "".join(f"[{v}]" for _, v in sorted(labels.items()))] = value
    return samples


def wait_for(done: Callable[[], bool], timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle("deadline", load_scenario("flight-lte"), tmp_path_factory.mktemp("metrics") / "bundle")


# ---- a device that runs for ever, alone, as a service ----


class Manager:
    """Stands in for systemd: the socket of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(20.0)
        self.heard: list[str] = []

    def hear(self, wanted: str) -> None:
        while not any(line.startswith(wanted) for line in self.heard):
            self.heard += self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


Service = tuple[subprocess.Popen[str], Manager, int, Path]


@pytest.fixture(scope="module")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A device process without a broker: a closed port stands for it."""
    folder = tmp_path_factory.mktemp("service")
    manager = Manager(folder / "notify")
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    arguments = ["--bundle", str(bundle.path), "--broker", f"mqtt://127.0.0.1:{ports[0]}", "--count", "0"]
    arguments += ["--log", str(folder / "live.jsonl"), "--metrics", str(ports[1]), "--telemetry", "host"]
    arguments += ["--connect-s", "0.2", "--edge-wait-s", "0.2"]
    environment = {**os.environ, "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1500000"}
    (folder / "live.jsonl").write_text('{"event": "run"}\n')
    command = [sys.executable, "-m", "adaptsplit.device_bridge.device", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
    yield process, manager, ports[1], folder
    process.kill()
    process.communicate()
    manager.close()


def test_a_service_flies_alone_tells_its_manager_and_ends_on_sigterm(
    service: Service,
) -> None:
    process, manager, port, folder = service
    manager.hear("READY=1")
    assert any(line.startswith("STATUS=device device-1, policy deadline") for line in manager.heard)
    manager.heard.clear()
    manager.hear("WATCHDOG=1")
    wait_for(lambda: sum(v for k, v in scrape(port).items() if k.startswith("adaptsplit_frames_total")) >= 20)
    seen = scrape(port)
    assert seen["adaptsplit_connected[control]"] == seen["adaptsplit_connected[data]"] == 0
    assert math.isnan(seen["adaptsplit_edge_online"])
    assert seen["adaptsplit_mode[rule]"] == 1
    assert seen["adaptsplit_mode[learned]"] == 0
    assert seen["adaptsplit_decision_seconds_count"] >= 20
    assert 0 < seen["adaptsplit_decision_seconds_sum"] / seen["adaptsplit_decision_seconds_count"] < 0.1
    answered = sum(v for k, v in seen.items() if k.startswith("adaptsplit_frames_total") and "[miss]" not in k)
    assert seen["adaptsplit_answer_seconds_count"] > 0
    assert abs(seen["adaptsplit_answer_seconds_count"] - answered) <= 15  # the histogram is newer than the snapshot
    assert seen["adaptsplit_energy_joules_total[compute]"] > 0
    assert seen["adaptsplit_frame"] > 0
    assert 0 <= seen["adaptsplit_load_ratio"] <= 1
    assert math.isnan(seen["adaptsplit_policy_version"])
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=15)
    assert process.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["frames"] >= 20
    assert "until then this device answers alone" in err
    manager.hear("STOPPING=1")
    lines = (folder / "live.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["frames"] is None
    records = [json.loads(line) for line in lines if '"path"' in line]
    assert [row["frame"] for row in sorted(records, key=lambda row: int(row["frame"]))] == list(range(len(records)))
    assert (folder / "live.jsonl.old").read_text() == '{"event": "run"}\n'


def test_every_metric_of_the_dashboard_and_the_page_exists() -> None:
    known = names_of_metrics()
    board = json.loads((CONTRIB / "grafana" / "adaptsplit-device.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(queries) >= 10
    for query in queries:
        used = set(re.findall(r"adaptsplit_\w+", query))
        assert used, query
        assert used <= known, query
    page = (ROOT / "docs" / "telemetry.md").read_text()
    told = set(re.findall(r"`(adaptsplit_\w+)", page))
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in known}
    assert told <= known | families | {"adaptsplit_edge_events_total", "adaptsplit_edge_state"}
    missing = {name for name in families if not any(name in each for each in told)}
    assert not missing, "docs/telemetry.md must list every metric"


def names_of_metrics() -> set[str]:
    """Return the names of all samples that a device's page can have."""
    part = MetricsPart("0")
    try:
        part._snapshot.take(part._families(stub_agent(), 1.0))
        part.settled("x", empty(1))
        names = {name.partition("[")[0] for name in scrape(part.server.port)}
    finally:
        part.close()
    return {name for name in names if not name.endswith("_created")}


def stub_agent() -> Any:
    """Return what a part reads of an agent, with one value of everything."""
    link = SimpleNamespace(goodput_bps=1e6, rtt_s=0.05, unacked=1, edge="online", frame=7)
    tracker = np.zeros(est.TRACKER_SIZE)
    session = SimpleNamespace(counts=Counter(lost=1), tracker=tracker, waiting=True, link_state=lambda: link)
    decider = SimpleNamespace(
        mode="learned", durations=deque(), counts=Counter({"guard_late": 2, "guard_returns": 1}), names=["dqn"]
    )
    manifest = SimpleNamespace(name="flight-lte-dqn")
    return SimpleNamespace(
        counts=Counter({"data_up": 3, "data_down": 2, "control_up": 1}),
        link=SimpleNamespace(counts=Counter(malformed=1)),
        session=session,
        decider=decider,
        bundle=SimpleNamespace(digest="ab" * 32, manifest=manifest, signed=SimpleNamespace(version=5)),
        reading=Reading(0.5, 0.25, 40.0, -60.0),
        telemetry=SimpleNamespace(details=lambda: {"radio_rssi": 190.0}),
        state_at=0.25,
    )


def test_what_a_snapshot_says_is_what_the_agent_holds() -> None:
    part = MetricsPart("0")
    try:
        agent = stub_agent()
        agent.decider.durations.extend([1e-5, 3e-3])
        part.started(agent)
        row = empty(3)
        row["path"], row["answer_latency_s"] = [3, 4, 0], [0.08, 0.25, np.nan]
        row["sent_bytes"], row["compute_j"], row["radio_j"] = (
            [100, 200, 0],
            [0.5, 0.25, np.nan],
            [0.125, np.nan, np.nan],
        )
        for k in range(3):
            part.settled("dqn", row[k : k + 1])
        part.tick(2.0)
        seen = scrape(part.server.port)
    finally:
        part.close()
    assert seen["adaptsplit_frames_total[remote]"] == seen["adaptsplit_frames_total[miss]"] == 1
    assert seen["adaptsplit_fallbacks_total[late]"] == 1
    assert seen["adaptsplit_sent_bytes_total[data]"] == 300
    assert seen["adaptsplit_energy_joules_total[compute]"] == 0.75
    assert seen["adaptsplit_energy_joules_total[radio]"] == 0.125
    assert seen["adaptsplit_decision_seconds_count"] == 2
    assert seen["adaptsplit_decision_seconds_bucket[1e-05]"] == 1
    assert seen["adaptsplit_answer_seconds_bucket[0.1]"] == 1
    assert seen["adaptsplit_answer_seconds_count"] == 2
    assert seen["adaptsplit_guard_switches_total[late]"] == 2
    assert seen["adaptsplit_reconnects_total[data]"] == 2
    assert seen["adaptsplit_connected[data]"] == seen["adaptsplit_connected[control]"] == 1
    assert seen["adaptsplit_outbox_frames"] == 2
    assert seen["adaptsplit_heard_age_seconds"] == 2.0
    assert seen["adaptsplit_state_age_seconds"] == 1.75
    assert seen["adaptsplit_policy_version"] == 5
    assert seen["adaptsplit_policy_info[abababababab][dqn][flight-lte-dqn]"] == 1
    assert seen["adaptsplit_vehicle[radio_rssi]"] == 190
    assert seen["adaptsplit_signal_dbm"] == -60


def test_metrics_listen_on_the_loopback_interface_unless_told() -> None:
    assert parse_where("9400") == ("127.0.0.1", 9400)
    assert parse_where("0.0.0.0:9400") == ("0.0.0.0", 9400)
    assert parse_where("[::1]:9400") == ("::1", 9400)
    server = MetricsServer("0")
    try:
        assert server._server.server_address[0] == "127.0.0.1"
        with pytest.raises(ConfigError, match="name another port with --metrics"):
            MetricsServer(str(server.port))
    finally:
        server.close()


@pytest.mark.parametrize("text", ["", "port", ":9400", "70000", "host:", "9400:host"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected PORT \(127.0.0.1\) or HOST:PORT"):
        parse_where(text)


def test_without_prometheus_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"prometheus-client.*pip install 'adaptsplit\[device\]'"):
        MetricsServer("0")


def test_an_edge_server_is_asked_at_each_scrape() -> None:
    counts = {"frames": 3.0, "queue": 1.0}
    metrics = EdgeMetrics("0", lambda: counts, gauges=("queue",))
    try:
        assert scrape(metrics.server.port)["adaptsplit_edge_events_total[frames]"] == 3
        counts.update(frames=5.0, queue=0.0)
        seen = scrape(metrics.server.port)
    finally:
        metrics.close()
    assert seen["adaptsplit_edge_events_total[frames]"] == 5
    assert seen["adaptsplit_edge_state[queue]"] == 0
    assert "adaptsplit_edge_events_total[queue]" not in seen


def test_an_edge_process_serves_its_counts(bundle: Bundle, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EmbeddedBroker() as broker:
        arguments = ["--bundle", str(bundle.path), "--broker", broker.url, "--attached", "--metrics", str(port)]
        with Child("edge", arguments, tmp_path / "edge.log") as edge:
            edge.read(60.0)
            transport = MqttTransport(BrokerAddress.parse(broker.url), "test", [], lambda topic, payload: None)
            transport.wait_connected(5.0)
            transport.publish(DeviceTopics("default", "d").leaf("up"), b"not a frame", qos=1)
            wait_for(lambda: sum(v for k, v in scrape(port).items() if "edge_events_total" in k) >= 1)
            assert any("malformed" in name for name in scrape(port))
            transport.close()


# ---- the service manager ----


def test_the_watchdog_is_fed_three_times_a_period(tmp_path: Path) -> None:
    manager, clock = Manager(tmp_path / "s"), [100.0]
    environment = {"NOTIFY_SOCKET": str(tmp_path / "s"), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    part = ServicePart(Notifier(environment), lambda: clock[0])
    for _ in range(61):  # 6 s in steps of 0.1 s
        part.tick(clock[0])
        clock[0] += 0.1
    part.close()
    manager.hear("STOPPING=1")
    manager.close()
    assert 6 <= manager.heard.count("WATCHDOG=1") <= 7


def test_an_abstract_socket_and_a_dead_one(tmp_path: Path) -> None:
    name = f"adaptsplit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(5.0)
        assert Notifier({"NOTIFY_SOCKET": f"@{name}"}).tell("READY=1", "STATUS=x")
        assert listener.recv(100) == b"READY=1\nSTATUS=x"
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell("READY=1")
    assert not Notifier({}).tell("READY=1")
    assert not Notifier({}).there


@pytest.mark.parametrize("usec", ["", "0", "x", "-5"])
def test_without_a_watchdog_nothing_is_fed_twice(usec: str) -> None:
    assert math.isinf(Notifier({"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": usec}).watchdog_s)


def test_another_processes_watchdog_is_not_ours() -> None:
    assert math.isinf(Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s)


def test_signals_stop_and_are_given_back() -> None:
    stopped = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with stopping(stopped.set):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.wait(5.0)
    assert signal.getsignal(signal.SIGTERM) is before


# ---- what must not grow ----


def test_the_log_of_a_service_is_bounded_on_disk_and_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    with LiveLog(path, limit_bytes=20_000, kept=10) as log:
        log.begin({"fps": 10.0})
        for frame in range(500):
            row = empty(1)
            row["frame"] = frame
            log.add("deadline", row, None)
        assert log.outcomes()["deadline"]["frame"].tolist() == list(range(490, 500))
    old = path.with_name("live.jsonl.old")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, old.name}
    assert old.stat().st_size < 21_000
    assert path.stat().st_size < 21_000
    for file in (path, old):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert rows[0]["event"] == "run"
        frames = [row["frame"] for row in rows[1:]]
        assert frames == list(range(frames[0], frames[-1] + 1))
    assert json.loads(path.read_text().splitlines()[-1])["frame"] == 499


# ---- contrib ----

UNITS = sorted((CONTRIB / "systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_units_are_hardened_restarted_and_keep_their_state(unit: Path) -> None:
    text = unit.read_text()
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "Restart=always", "StartLimitIntervalSec=0"):
        assert line in text, line
    assert re.search(r"^StateDirectory=adaptsplit", text, re.MULTILINE)
    assert re.search(r"^WantedBy=multi-user.target$", text, re.MULTILINE)


def test_there_is_a_unit_for_each_role() -> None:
    assert [unit.stem for unit in UNITS] == ["adaptsplit-broker", "adaptsplit-device", "adaptsplit-edge"]
    device = (CONTRIB / "systemd" / "adaptsplit-device.service").read_text()
    assert "Type=notify" in device
    assert "WatchdogSec=" in device
    assert "--count 0" in device


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_units_pass_systemds_own_check(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/adaptsplit/bin/adaptsplit", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60
    )
    complaints = [line for line in done.stderr.splitlines() if unit.name in line]
    assert not complaints


@pytest.mark.parametrize("unit", UNITS, ids=lambda p: p.name)
def test_the_commands_of_the_units_exist(unit: Path) -> None:
    """Every option of ExecStart is one of the command line's."""
    from typer.main import get_command

    from adaptsplit.cli import app

    text = unit.read_text().replace("\\\n", " ")
    words = next(line for line in text.splitlines() if line.startswith("ExecStart=")).split()
    command = get_command(app).commands[words[1]]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    used = {word for word in words if word.startswith("--")}
    assert used
    assert used <= options


def test_no_name_of_a_heavy_module_is_loaded_by_the_device() -> None:
    """What only some devices need is loaded when it is used: start and memory of a small board."""
    heavy = {"cv2", "psutil", "pymavlink", "prometheus_client", "rich", "typer", "multiprocessing.pool", "torch"}
    heavy |= {"concurrent.futures.process", "cryptography.x509"}
    code = f"import sys, adaptsplit.device_bridge.device; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
