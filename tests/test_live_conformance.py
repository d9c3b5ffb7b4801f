"""The contract's check over TLS with client certificates, and one's own presence under the shipped access list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import live_cases
import pytest
from live_cases import live_parts
from secure_cases import make_fleet, secure
from typer.testing import CliRunner

from adaptsplit.bundle import Bundle
from adaptsplit.cli import app
from adaptsplit.device_bridge.broker import EmbeddedBroker, find_mosquitto
from adaptsplit.device_bridge.control import Connection, build_control, parse_control
from adaptsplit.device_bridge.edge_link import EdgeLink
from adaptsplit.device_bridge.live import LiveFrames, LiveOptions, LiveSetup
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.topics import edge_connection

pytestmark = pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")
FLEET = "default"
bundle = live_parts().bundle


def until(done: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    return live_cases.until(done, timeout_s)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fleet(tmp_path_factory.mktemp("keys") / FLEET, FLEET)


@pytest.fixture(scope="module")
def running(bundle: Bundle, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSetup]:
    """Broker with TLS and the shipped access list, edge server and device as processes; the device flies on."""
    folder = tmp_path_factory.mktemp("tls")
    with (
        LiveSetup(bundle, None, folder, LiveOptions(secure=keys, state_s=0.5)) as setup,
        setup.device(LiveFrames(count=5000), ["bundle"]),
    ):
        yield setup


def examined(setup: LiveSetup, keys: Path, name: str, *more: str) -> tuple[int, dict[str, dict[str, object]], str]:
    """Run ``adaptsplit conformance`` with a certificate; return its exit code, its verdicts by rule, its output."""
    files = ["--ca", str(keys / "ca.crt"), "--cert", str(keys / f"{name}.crt"), "--key", str(keys / f"{name}.key")]
    done = CliRunner().invoke(app, ["conformance", "--broker", setup.broker.url, *files, "--json", *more])
    verdicts = json.loads(done.stdout) if done.stdout.startswith("[") else []
    return done.exit_code, {one["id"]: one for one in verdicts}, f"{done.output}{done.exception or ''}"


def test_an_operator_checks_a_fleet_over_tls(running: LiveSetup, keys: Path) -> None:
    code, verdicts, output = examined(running, keys, "chief", "--seconds", "6")
    assert code == 0, output
    assert not any(one["faults"] for one in verdicts.values())
    held = {name for name, one in verdicts.items() if one["status"] == "held"}
    assert held >= {"AS-003", "AS-004", "AS-005", "AS-016", "AS-021", "AS-033", "AS-041", "AS-043", "AS-046"}
    assert held >= {f"AS-05{digit}" for digit in "123456"} | {"AS-019", "AS-059"}, "its commands were taken"
    assert verdicts["AS-042"]["status"] == "not seen", "an operator may not send frames in a device's place"


def test_a_monitor_listens_only_and_is_told_what_it_may_not(running: LiveSetup, keys: Path) -> None:
    code, verdicts, output = examined(running, keys, "watch", "--seconds", "5", "--passive")
    assert code == 0, output
    assert verdicts["AS-043"]["status"] == "held"
    assert verdicts["AS-055"]["status"] == "not seen"
    code, _, output = examined(running, keys, "watch", "--seconds", "1")
    assert code == 1
    assert "does not let this client give device-1 a command" in output


def test_an_edge_server_hears_its_own_late_will_through_the_shipped_access_list(keys: Path) -> None:
    """The role ``edge`` may read its own connection topic, and write it: a stale will is put right."""
    with EmbeddedBroker(secure=keys) as broker:
        address, topic, heard = secure(broker, keys, "edge-1"), edge_connection(FLEET, "edge-1"), []

        def listen(where: str, payload: bytes) -> None:
            heard.append(getattr(parse_control(payload)[1], "state", ""))

        watch = MqttTransport(secure(broker, keys, "watch"), "watch", [topic], listen)
        watch.wait_connected(10.0)
        link = EdgeLink(address, FLEET, "edge-1", lambda where, payload: None)
        link.wait_connected(10.0)
        assert until(lambda: heard[-1:] == ["ONLINE"])
        heard.clear()
        other = MqttTransport(address, "another-life", [], lambda where, payload: None)  # the same certificate
        other.wait_connected(10.0)
        will = build_control(Connection(state="CONNECTION_BROKEN"), seq=0, session=bytes(16), ts_ms=1, mono_ms=1.0)
        other.publish(topic, will, qos=1, retain=True)
        assert until(lambda: heard == ["CONNECTION_BROKEN", "ONLINE"])
        for one in (other, link, watch):
            one.close()
