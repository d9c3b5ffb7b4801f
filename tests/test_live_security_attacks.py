"""What somebody who is inside does: a device or a monitor with a valid certificate, an edge server that has been taken
over. Each of these was tried before it was mended. Against a real Mosquitto with the configuration that is shipped."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from rich.console import Console
from secure_cases import FLEET, ONE, TWO, Client, make_fleet, plain, secure

from adaptsplit.cli_fleet_tables import fleet_tables
from adaptsplit.device_bridge import secure_broker
from adaptsplit.device_bridge.broker import EmbeddedBroker, find_mosquitto, free_port
from adaptsplit.device_bridge.control import Birth, Connection, EdgeState, build_control
from adaptsplit.device_bridge.device_link import DeviceLink
from adaptsplit.device_bridge.edge_link import MIN_GROUP_CHARS, EdgeLink, shared
from adaptsplit.device_bridge.fleet_view import FleetView
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.operator import Operator
from adaptsplit.device_bridge.policy_sender import PolicySender
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.tls import check_address, client_context
from adaptsplit.device_bridge.topics import PREFIX, DeviceTopics, every_device
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import ConfigError

pytestmark = pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")
GROUP = "5f2c9a7be1d04836"
MIB = 1 << 20
BIRTH = Birth(
    library="0", bundle="b", controllers=[], observation="o", branches=[], classes=[], fps=1, deadline_s=1, window=1
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fleet(tmp_path_factory.mktemp("keys") / "farm")


@pytest.fixture(scope="module")
def broker(keys: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(secure=keys, plain_port=free_port()) as running:
        yield running


def until(true: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


# ---- a group of edge servers ----


def edges_hear(broker: EmbeddedBroker, keys: Path, thieves: list[str]) -> int:
    """Send 60 frames; return how many a group's one edge server hears while a device subscribes to ``thieves``."""
    heard: list[bytes] = []
    link = EdgeLink(
        secure(broker, keys, "edge-1"), FLEET, "edge-1", lambda topic, payload: heard.append(payload), GROUP
    )
    link.wait_connected(10.0)
    others = [Client(secure(broker, keys, "device-2"), [each]) for each in thieves]
    with Client(secure(broker, keys, "device-1")) as device:
        for number in range(60):
            device.say(ONE.leaf("up"), str(number).encode())
        device.say(ONE.leaf("heartbeat"), b"end")
        until(lambda: b"end" in heard, "the last message did not come")
    time.sleep(0.3)
    for other in others:
        other.link.close()
    link.close()
    return len(heard) - 1


def test_a_device_takes_no_frames_from_a_group_whose_name_it_does_not_know(broker: EmbeddedBroker, keys: Path) -> None:
    """Nine clients with one certificate took 90 % of the frames of a group called ``tails``: Mosquitto 2.0 judges no
    subscription, and what falls to one that may not read is lost."""
    ups = every_device(FLEET, "up")
    assert edges_hear(broker, keys, [shared(ups, name) for name in ("tails", "shared", "edge-1", FLEET)] + [ups]) == 60
    assert edges_hear(broker, keys, [shared(ups, GROUP)] * 3) < 30, "it is the name that protects"


def test_the_name_of_a_group_is_told_to_nobody_and_cannot_be_short(broker: EmbeddedBroker, keys: Path) -> None:
    with Client(plain(broker), ["#"]) as ears:
        link = EdgeLink(secure(broker, keys, "edge-1"), FLEET, "edge-1", lambda topic, payload: None, GROUP)
        link.wait_connected(10.0)
        link.state(EdgeState(queues={}, counts={}, workers=link.group))
        until(lambda: any(topic.endswith("/state") for topic, _ in ears.heard), "no state came")
        link.close()
        assert not [payload for _, payload in ears.heard if GROUP.encode() in payload]
        assert b'"workers":"shared"' in b"".join(payload for _, payload in ears.heard)
    short = "x" * (MIN_GROUP_CHARS - 1)
    with pytest.raises(ConfigError, match="with TLS its name is a secret"):
        EdgeLink(secure(broker, keys, "edge-1"), FLEET, "edge-1", lambda topic, payload: None, short)


# ---- who pushes whom out ----


def links_of(broker: EmbeddedBroker, keys: Path) -> tuple[EdgeLink, DeviceLink, Operator, PolicySender]:
    edge = EdgeLink(secure(broker, keys, "edge-1"), FLEET, "edge-1", lambda topic, payload: None)
    device = DeviceLink(secure(broker, keys, "device-1"), ONE, new_session(), BIRTH, lambda event, at: None, ["cmd/+"])
    for link in (edge, device):
        link.wait_connected(10.0)
    return (
        edge,
        device,
        Operator(secure(broker, keys, "chief"), FLEET),
        PolicySender(secure(broker, keys, "chief"), FLEET),
    )


def test_nobody_can_push_another_client_out(broker: EmbeddedBroker, keys: Path) -> None:
    """A client id ended a connection of its owner, whoever connected with it; and it was made of the session, which is
    in every message. So an edge server could be kept away from all of its devices by one of them."""
    with Client(plain(broker), ["#"]) as ears:
        edge, device, chief, sender = links_of(broker, keys)
        with chief, sender:
            device.event("test", "x")
            chief.send("device-1", "ping", chief.make(device.session, {}))
            edge.state(EdgeState(queues={}, counts={}))
            until(lambda: any("cmd/ping" in topic for topic, _ in ears.heard), "no command came")
            sessions = {json.loads(payload)["session"] for _, payload in ears.heard if payload.startswith(b"{")}
            assert len(sessions) >= 3
            clients = [edge._data, edge._control, device._data, device._control, chief._link, sender._link]
            for client in clients:
                known = client._id.split("-")
                assert any(len(part) == 32 for part in known), client._id  # 128 random bits
                said = b"".join(topic.encode() + payload for topic, payload in ears.heard)
                assert not [part for part in known if len(part) == 32 and part.encode() in said]
            guesses = [
                f"{who}-{session[:8]}-{plane}"
                for session in sessions
                for who in ("edge-1", "device-1")
                for plane in ("data", "control")
            ]
            for guess in guesses:
                thief = MqttTransport(secure(broker, keys, "device-2"), guess, [], lambda topic, payload: None)
                thief.wait_connected(8.0)
                thief.close()
            assert [client.counts["connected"] for client in clients] == [1] * len(clients)
        edge.close()
        device.close()


# ---- what a device may not hear or fill ----


def test_a_device_hears_nothing_of_the_broker_itself(broker: EmbeddedBroker, keys: Path) -> None:
    """Nor can it speak there, or to a shared subscription by its name."""
    own = TWO.leaf("cmd/end")
    with Client(plain(broker), ["$SYS/#", "#"]) as all_ears:
        until(lambda: any(topic.startswith("$SYS/") for topic, _ in all_ears.heard), "the broker says nothing")
        with Client(secure(broker, keys, "device-2"), ["$SYS/#", "$SYS/broker/version", own], mqtt5=False) as client:
            client.say("$SYS/broker/version", b"mine", retain=True)
            client.say(f"{PREFIX}/{FLEET}/device-2", b"mine")
            client.say(TWO.leaf("event"), b"end")
            all_ears.until(TWO.leaf("event"), b"end")
            all_ears.say(own, b"end")
            assert client.until(own, b"end") == set()
            assert not [topic for topic, payload in all_ears.heard if payload == b"mine"]


def resident_bytes(broker: EmbeddedBroker) -> int:
    assert broker._process is not None
    status = Path(f"/proc/{broker._process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


def flood(client: Client, count: int, size: int) -> None:
    """Retain ``count`` messages on as many topics, or as many as the broker takes."""
    for number in range(count):
        end = time.monotonic() + 1.0
        while len(client.link._client._out_messages) > 4 and time.monotonic() < end:
            time.sleep(0.005)
        client.link.publish(TWO.leaf(f"cmd/x{number}/reply"), bytes(size), qos=1, retain=True)
        if client.link.counts["connected"] > 1 or not client.link.connected.is_set():
            return


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_flood_of_retained_messages_ends_the_flooder_and_nobody_else(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a limit each MiB that one device retained was a MiB of the broker's memory, without end."""
    monkeypatch.setattr(secure_broker, "MEMORY_BYTES", 32 * MIB)
    with (
        EmbeddedBroker(secure=keys) as broker,
        Client(secure(broker, keys, "watch"), [ONE.leaf("event")]) as watch,
        Client(secure(broker, keys, "device-1")) as good,
        Client(secure(broker, keys, "device-2"), mqtt5=False) as bad,
    ):
        before = resident_bytes(broker)
        flood(bad, 80, MIB)
        until(lambda: not bad.link.connected.is_set() or bad.link.counts["connected"] > 1, "it was not cut off")
        assert resident_bytes(broker) - before < 48 * MIB
        for number in range(5):
            good.say(ONE.leaf("event"), str(number).encode())
        watch.until(ONE.leaf("event"), b"4")
        assert (good.link.counts["connected"], watch.link.counts["connected"]) == (1, 1)


def test_the_shipped_limits_stand_in_the_configuration(keys: Path, tmp_path: Path) -> None:
    """A session that nobody comes back for ended never; 100 were made in a second with one certificate."""
    path = secure_broker.write_configuration(secure_broker.Fleet.load(keys), tmp_path, "127.0.0.1", 8883)
    options = dict(line.split(" ", 1) for line in path.read_text().splitlines() if line and not line.startswith("#"))
    assert options["memory_limit"] == str(1 << 30)
    assert options["persistent_client_expiration"] == "1h"


def test_what_a_stranger_leaves_behind_does_not_reach_the_next_connection(broker: EmbeddedBroker, keys: Path) -> None:
    """A session under a device's former client id, made to outlive its connection by another device, gets nothing of
    the first device's: every message is judged when it is delivered."""
    context = client_context(keys / "ca.crt", keys / "device-2.crt", keys / "device-2.key")
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="device-1-data", protocol=paho.MQTTv5)
    client.tls_set_context(context)
    kept = Properties(PacketTypes.CONNECT)
    kept.SessionExpiryInterval = 600
    heard: list[bytes] = []
    done: list[object] = []
    client.on_connect = lambda *_: client.subscribe([(ONE.leaf("cmd/+"), 1), (ONE.leaf("down"), 1)])
    client.on_subscribe = lambda *_: done.append(1)
    client.on_message = lambda _, __, message: heard.append(message.payload)
    for turn in (0, 1):
        client.connect("127.0.0.1", broker.port, clean_start=not turn, properties=kept)
        until(lambda: client.loop(0.02) is None or done, "no subscription")
        done.clear()
        client.disconnect()
        client.loop(0.05)
        with Client(secure(broker, keys, "chief")) as chief:
            chief.say(ONE.leaf("cmd/ping"), b"secret")
    assert heard == []


# ---- an address with a password ----


def test_a_plain_address_beyond_loopback_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        check_address(BrokerAddress.parse("mqtt://me:hunter2@broker.example"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://me:hunter2@host:port",
        "mqtt://me:hunter2@host/path",
        "http://me:hunter2@host",
        "mqtt://me:hunter2@h?x=1",
        "me:hunter2@host:port",
        "mqtt://me:hunter2/hunter2@host",
        "mqtt://me:hunter2@hunter2@host:port",
    ],
)
def test_an_address_that_is_refused_does_not_show_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BrokerAddress.parse(url)
    assert "hunter2" not in str(caught.value)
    assert "***@h" in str(caught.value)


def test_what_devices_say_of_themselves_is_not_markup() -> None:
    view = FleetView("farm")
    name = "x [/red] [bold]y"
    session = bytes(range(16))
    birth = BIRTH.model_copy(update={"controllers": [name]})
    for leaf, content in (("connection", Connection(state="ONLINE")), ("birth", birth)):
        payload = build_control(content, seq=0, session=session, ts_ms=0, mono_ms=0.0)
        view.heard(DeviceTopics("farm", "d").leaf(leaf), payload, 0.0)
    console = Console(width=200, file=io.StringIO())
    console.print(fleet_tables(view, 1.0))
    assert name in console.file.getvalue()
