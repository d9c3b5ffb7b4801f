"""TLS, client certificates and access lists, against a real Mosquitto with the configuration that is shipped."""

from __future__ import annotations

import os
import re
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from live_cases import BIRTH, live_parts
from secure_cases import FLEET, ONE, TWO, Client, cut, make_fleet, plain, secure
from typer.testing import CliRunner

from adaptsplit.bundle import Bundle, export_bundle
from adaptsplit.cli_deploy import keys_app
from adaptsplit.device_bridge import device, edge
from adaptsplit.device_bridge.broker import EmbeddedBroker, find_mosquitto, free_port
from adaptsplit.device_bridge.certificates import Authority, holder_of, load_certificate, load_revoked
from adaptsplit.device_bridge.commands import Commands
from adaptsplit.device_bridge.device_link import DeviceLink, Incoming, PartMessage
from adaptsplit.device_bridge.live import LiveFrames, LiveOptions, run_live
from adaptsplit.device_bridge.messages import MAX_MESSAGE_BYTES
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.operator import Operator
from adaptsplit.device_bridge.secure_broker import MAX_PACKET_BYTES, Fleet, write_configuration
from adaptsplit.device_bridge.tls import check_address, client_context, is_loopback
from adaptsplit.device_bridge.topics import PREFIX, DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress, Will, secured
from adaptsplit.errors import ConfigError, RunError
from adaptsplit.frames import open_frames
from adaptsplit.links import LinkTrace
from adaptsplit.outcome import Path as Route
from adaptsplit.profiles import FrameSpec, measure
from adaptsplit.scenario import load_scenario

mosquitto = pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")
OWN = ("up", "heartbeat", "connection", "birth", "state", "event", "decision", "observe")
OWN += ("cmd/ping/reply", "policy/reported")
ANSWERS = ("down", "heartbeat/reply", "advice")
ORDERS = ("cmd/ping", "policy/desired", "policy/chunk/ab/0")
HEARD = (*ANSWERS, *ORDERS)
FOR_EDGES = ("up", "heartbeat", "birth", "observe")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's folder, in which ``gone`` was revoked."""
    folder = make_fleet(tmp_path_factory.mktemp("keys") / "farm")
    (folder / "gone.crt").with_name("kept.crt").write_bytes((folder / "gone.crt").read_bytes())
    (folder / "gone.key").with_name("kept.key").write_bytes((folder / "gone.key").read_bytes())
    (folder / "kept.key").chmod(0o600)
    Authority.load(folder).revoke("gone")
    return folder


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet of the same name and the same ids, made by somebody else."""
    return make_fleet(tmp_path_factory.mktemp("keys") / "strangers")


@pytest.fixture(scope="module")
def broker(keys: Path) -> Iterator[EmbeddedBroker]:
    if not find_mosquitto():
        pytest.skip("Mosquitto is not installed")
    with EmbeddedBroker(secure=keys, plain_port=free_port()) as running:
        yield running


def refused(address: BrokerAddress) -> str:
    """Return what a client is told that cannot connect; at once, not after the time-out."""
    began = time.monotonic()
    with pytest.raises(RunError) as caught:
        Client(address)
    assert time.monotonic() - began < 6.0
    return str(caught.value)


# ---- who may connect ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["device-1", "edge-1", "watch", "chief"])
def test_the_right_certificate_connects(broker: EmbeddedBroker, keys: Path, name: str) -> None:
    with Client(secure(broker, keys, name)) as client:
        assert client.link.counts["refused"] == client.link.counts["tls_refused"] == 0


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (None, "certificate required"),
        ("old", "certificate expired"),
        ("early", "certificate|alert"),
        ("kept", "certificate revoked"),
        ("broker", "certificate|alert"),
    ],
)
def test_a_client_without_a_valid_certificate_is_refused(
    broker: EmbeddedBroker, keys: Path, name: str | None, why: str
) -> None:
    """None at all, expired, not yet valid, revoked, and a server's certificate (wrong extended key usage).

    The alert may be lost when the broker resets the connection first (RFC 8446, 6.2): then the hint stands.
    """
    said = refused(secure(broker, keys, name))
    assert any(word in said for word in (*why.split("|"), "closes the connection")), said


def test_certificates_of_another_authority_are_refused_on_both_sides(
    broker: EmbeddedBroker, keys: Path, strangers: Path
) -> None:
    said = refused(secure(broker, strangers, "device-1", ca=keys))
    assert "unknown ca" in said or "closes the connection" in said
    said = refused(secure(broker, keys, "device-1", ca=strangers))
    assert "the broker's certificate is refused" in said
    assert "--ca" in said


def test_the_brokers_name_is_checked(broker: EmbeddedBroker, keys: Path) -> None:
    """The certificate says 127.0.0.1; by any other name it is not the broker."""
    said = refused(replace(secure(broker, keys, "device-1"), host="localhost"))
    assert "Hostname mismatch" in said


def test_a_brokers_expired_certificate_is_refused(tmp_path: Path) -> None:
    if not find_mosquitto():
        pytest.skip("Mosquitto is not installed")
    authority = Authority.create(tmp_path, FLEET)
    authority.issue("broker", "broker", ["127.0.0.1"], days=1, start=datetime.now(UTC) - timedelta(days=9))
    authority.issue("device-1", "device")
    with EmbeddedBroker(secure=tmp_path) as broker:
        assert "certificate has expired" in refused(secure(broker, tmp_path, "device-1"))


def test_a_device_cannot_play_the_broker(keys: Path) -> None:
    """Its certificate is for clients only, whatever name it has."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(keys / "device-1.crt", keys / "device-1.key")
    ours = client_context(keys / "ca.crt", None, None)
    ours.check_hostname = False
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ours.wrap_bio(to_client, to_server)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, other):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        client.do_handshake()


def test_without_tls_nobody_gets_in_but_on_loopback(broker: EmbeddedBroker, keys: Path) -> None:
    """Plain MQTT to the TLS port is cut; the plain port is there because it was asked for."""
    with pytest.raises(RunError, match="closes the connection"):
        Client(BrokerAddress("127.0.0.1", broker.port), timeout_s=1.0)
    with Client(plain(broker), ["t"]) as client:
        client.say("t", b"1")
        client.until("t", b"1")


def own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # documentation addresses; nothing is sent
        except OSError:
            return None
        return str(sock.getsockname()[0])


def listening(process: int) -> set[tuple[str, int]]:
    """Return the addresses (IPv4; IPv6 as hexadecimal digits) and ports that a process of Linux listens on."""
    sockets = {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, port = fields[1].split(":")
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # 0A: TCP_LISTEN, include/net/tcp_states.h
                host = socket.inet_ntoa(bytes.fromhex(address)[::-1]) if table == "tcp" else address
                found.add((host, int(port, 16)))
    return found


@mosquitto
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_else_is_opened(keys: Path) -> None:
    """Mosquitto 2.0 opens 0.0.0.0:1883, unasked, when a listener's option stands above the first listener."""
    plain_port = free_port()
    for more in (None, plain_port):
        with EmbeddedBroker(secure=keys, plain_port=more) as broker:
            assert broker._process is not None
            expected = {("127.0.0.1", broker.port)} | ({("127.0.0.1", plain_port)} if more else set())
            assert listening(broker._process.pid) == expected


@mosquitto
def test_the_plain_port_is_on_loopback_only(keys: Path) -> None:
    mine = own_address()
    if mine is None or is_loopback(mine):
        pytest.skip("this machine has no address but the loopback one")
    with EmbeddedBroker(secure=keys, host="0.0.0.0", plain_port=free_port()) as broker:
        assert broker.url == f"mqtts://127.0.0.1:{broker.port}"
        with socket.create_connection((mine, broker.port), 2.0):
            pass
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((mine, broker.plain_port), 2.0)


# ---- who may say and hear what ------------------------------------------------------------------------------------


PRESENCE = {f"{PREFIX}/{FLEET}/_edge/edge-1/{leaf}" for leaf in ("connection", "state")}
PRESENCE_OF_TWO = {f"{PREFIX}/{FLEET}/_edge/device-2/{leaf}" for leaf in ("connection", "state")}


def every_topic() -> set[str]:
    leaves = {
        topics.leaf(leaf) for topics in (ONE, TWO) for leaf in (*OWN, *HEARD, "command", "up/more", "cmd", "policy")
    }
    other = {f"{PREFIX}/other/device-2/{leaf}" for leaf in OWN}
    loose = {*PRESENCE, *PRESENCE_OF_TWO, "loose", f"{PREFIX}/x"}
    return leaves | other | loose


SAYS = {
    "device-2": {TWO.leaf(leaf) for leaf in OWN},
    "edge-1": {t.leaf(leaf) for t in (ONE, TWO) for leaf in ANSWERS} | PRESENCE,
    "watch": set(),
    "chief": {t.leaf(leaf) for t in (ONE, TWO) for leaf in ORDERS},
}
HEARS = {
    "device-2": {TWO.leaf(leaf) for leaf in (*HEARD, "connection")} | PRESENCE | PRESENCE_OF_TWO,
    "edge-1": {t.leaf(leaf) for t in (ONE, TWO) for leaf in FOR_EDGES} | PRESENCE | PRESENCE_OF_TWO,
    "watch": {topic for topic in every_topic() if topic.startswith(f"{PREFIX}/{FLEET}/")},
    "chief": {topic for topic in every_topic() if topic.startswith(f"{PREFIX}/{FLEET}/")},
}


@pytest.mark.parametrize("name", list(SAYS))
@pytest.mark.parametrize("retain", [False, True])
def test_who_may_say_what(broker: EmbeddedBroker, keys: Path, name: str, retain: bool) -> None:
    """Every topic is tried; nothing arrives but what is allowed. Order is kept, so the own last message closes it."""
    own = DeviceTopics(FLEET, name).leaf("event")  # the pattern rules hold for everybody under his own id
    with Client(plain(broker), ["#"]) as all_ears, Client(secure(broker, keys, name)) as client:
        mark = f"{name}{retain}".encode()
        for topic in sorted(every_topic() - {own}):
            client.say(topic, mark, retain=retain)
        client.say(own, b"end" + mark)
        all_ears.until(own, b"end" + mark)
        assert {topic for topic, payload in all_ears.heard if payload == mark} == SAYS[name] - {own}
        for topic in every_topic():
            all_ears.say(topic, b"", retain=True)


@pytest.mark.parametrize("name", list(HEARS))
def test_who_may_hear_what(broker: EmbeddedBroker, keys: Path, name: str) -> None:
    """Subscribed to everything in several ways; a retained message is tried, too."""
    last = {"device-2": TWO.leaf("down"), "edge-1": TWO.leaf("up"), "watch": TWO.leaf("event")}.get(
        name, TWO.leaf("event")
    )
    filters = ["#", "+/#", f"{PREFIX}/+/+/+", f"{PREFIX}/{FLEET}/device-1/#", *sorted(every_topic())]
    with Client(plain(broker)) as speaker:
        speaker.say(ONE.leaf("birth"), b"kept", retain=True)
        with Client(secure(broker, keys, name), filters) as client:
            for topic in every_topic():
                speaker.say(topic)
                time.sleep(0.005)  # MQTT 5 delivers once for each filter that matches; the broker keeps 100
            speaker.say(last, b"end")
            assert client.until(last, b"end") - {ONE.leaf("birth")} == HEARS[name] - {ONE.leaf("birth")}
            assert (ONE.leaf("birth") in {topic for topic, _ in client.heard}) == (name in ("edge-1", "watch", "chief"))
        speaker.say(ONE.leaf("birth"), b"", retain=True)


def test_a_user_name_does_not_change_who_one_is(broker: EmbeddedBroker, keys: Path) -> None:
    address = replace(secure(broker, keys, "device-2"), user="edge-1", password="x")
    with Client(secure(broker, keys, "watch"), ["#"]) as watch, Client(address) as client:
        client.say(ONE.leaf("down"))
        client.say(TWO.leaf("event"), b"end")
        assert ONE.leaf("down") not in watch.until(TWO.leaf("event"), b"end")


def test_a_last_will_on_anothers_topic_is_not_published(broker: EmbeddedBroker, keys: Path) -> None:
    others, own = (Will(topics.leaf("connection"), b"broken") for topics in (ONE, TWO))
    with Client(plain(broker), ["#"]) as all_ears:
        cut(Client(secure(broker, keys, "device-2"), will=others))
        cut(Client(secure(broker, keys, "device-2"), will=own))
        assert others.topic not in all_ears.until(own.topic, b"broken")
        all_ears.say(own.topic, b"", retain=True)


# ---- limits, and going on -----------------------------------------------------------------------------------------


def test_messages_and_packets_beyond_the_caps_do_not_pass(broker: EmbeddedBroker, keys: Path) -> None:
    up, event = ONE.leaf("up"), ONE.leaf("event")
    with (
        Client(secure(broker, keys, "watch"), [up, event]) as watch,
        Client(secure(broker, keys, "device-1"), mqtt5=False) as client,
    ):
        client.say(up, bytes(MAX_MESSAGE_BYTES + 1))
        client.say(event, b"small")
        assert up not in watch.until(event, b"small", 20.0)
        assert client.link.counts["connected"] == 1
        client.say(up, bytes(MAX_PACKET_BYTES + 1))
        end = time.monotonic() + 15.0
        while client.link.connected.is_set() and time.monotonic() < end:
            time.sleep(0.01)
        assert not client.link.connected.is_set()
        assert up not in {topic for topic, _ in watch.heard}


def test_what_the_broker_would_not_take_is_not_sent(broker: EmbeddedBroker, keys: Path) -> None:
    """MQTT 5: its CONNACK says how large a packet may be. So nothing ends the connection."""
    with Client(secure(broker, keys, "device-1")) as client:
        assert not client.link.publish(ONE.leaf("up"), bytes(MAX_PACKET_BYTES + 1), qos=1)
        assert client.link.counts["too_large"] == 1
        assert client.link.publish(ONE.leaf("event"), b"x", qos=1)
        time.sleep(0.3)
        assert client.link.counts["connected"] == 1


def test_a_denied_message_is_counted_with_its_reason(broker: EmbeddedBroker, keys: Path) -> None:
    """MQTT 5: 0x87, not authorised (2.4). On 3.1.1 nobody can know."""
    for mqtt5 in (True, False):
        with Client(secure(broker, keys, "device-1"), mqtt5=mqtt5) as client:
            client.say(TWO.leaf("event"), b"x")
            time.sleep(0.3)
            assert client.link.counts["reason_puback_0x87"] == (1 if mqtt5 else 0)


def test_only_an_operator_gives_commands(broker: EmbeddedBroker, keys: Path) -> None:
    """Over TLS: a device takes the operator's command; a monitor is told at once why nobody answers it."""
    part = Commands()

    def post(event: Incoming, at: float) -> None:
        if isinstance(event, PartMessage):
            part.message(event.leaf, event.payload, at)

    link = DeviceLink(secure(broker, keys, "device-1"), ONE, bytes(range(16)), BIRTH, post, ["cmd/+"])
    link.wait_connected(8.0)
    part.started(SimpleNamespace(link=link, counts=Counter()))  # type: ignore[arg-type]
    with Operator(secure(broker, keys, "chief"), FLEET) as chief:
        assert chief.command("device-1", "ping").status == "DONE"
    with Operator(secure(broker, keys, "watch"), FLEET, heals=False) as watch:
        with pytest.raises(RunError, match="take an operator's certificate"):
            watch.command("device-1", "ping", timeout_s=0.5)
        assert watch.view.members["device-1"].birth == BIRTH
    assert part.counts == {"done": 1}
    link.close()


def test_the_largest_message_and_a_restart_of_the_broker_pass(keys: Path) -> None:
    if not find_mosquitto():
        pytest.skip("Mosquitto is not installed")
    up = ONE.leaf("up")
    with (
        EmbeddedBroker(secure=keys) as broker,
        Client(secure(broker, keys, "watch"), [up]) as watch,
        Client(secure(broker, keys, "device-1")) as client,
    ):
        client.say(up, bytes(MAX_MESSAGE_BYTES))
        watch.until(up, bytes(MAX_MESSAGE_BYTES), 20.0)
        broker.kill()
        broker.start()
        end = time.monotonic() + 10.0
        while min(client.link.counts["connected"], watch.link.counts["connected"]) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        client.say(up, b"again")
        watch.until(up, b"again")


# ---- a device and an edge server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root, live = tmp_path_factory.mktemp("secure"), live_parts()
    model = live.make_model(root / "profile" / "model", open_frames("flight", split="test").classes)
    for split in ("train", "validation", "test"):
        spec = FrameSpec("flight", split, seed=0)
        measure(model, spec, live.BRANCHES, frames=[0, 1], workers=1, date="2026-01-02").save(root / "profile")
    link = {"kind": "generate", "generator": "constant", "duration_s": 10, "family": "demo"}
    links = {split: [{**link, "seeds": [seed]}] for seed, split in enumerate(("train", "validation", "test"))}
    value: dict[str, Any] = {"name": "tiny", "description": "tiny", "profile": str(root / "profile"), "links": links}
    value |= {"frames": "flight", "fps": 20.0, "deadline_s": 0.25, "episode_s": 10}
    value |= {"device": {"compute": "raspberry-pi-4b", "radio": "lte", "battery_wh": 60}}
    value |= {"priors": {"goodput_bps": 1e6, "rtt_s": 0.05, "server_s": 0.01}, "objective": {"quality": 1}}
    return export_bundle("static:stem/1/1.01", load_scenario(value), root / "bundle")


@mosquitto
def test_a_device_and_an_edge_server_work_over_tls(bundle: Bundle, tmp_path: Path) -> None:
    """Four processes, certificates checked on every connection, a shaped link between device and broker."""
    folder = make_fleet(tmp_path / "keys", "default")
    trace = LinkTrace("steady", "demo", 0.1, np.full(10, 5e6), np.full(10, 0.04), np.zeros(10))
    run = run_live(bundle, LiveFrames(count=40), trace, options=LiveOptions(secure=folder, state_s=0.5))
    (log,) = run.outcomes.values()
    assert run.backend == "mosquitto"
    assert log["frame"].tolist() == list(range(40))
    assert (log["path"] == Route.REMOTE).mean() > 0.8
    assert run.edge["counts"]["frames"] == run.edge["counts"]["answered"] > 30
    assert run.edge["counts"].get("malformed", 0) == 0
    assert run.device["session"].get("edge_offline", 0) == 0
    assert all(counts.get("tls_refused", 0) == 0 for counts in run.device["transport"].values())


# ---- certificates -------------------------------------------------------------------------------------------------


def test_certificates_say_who_for_how_long_and_what_for(keys: Path) -> None:
    certificate = load_certificate(keys / "device-1.crt")
    holder = holder_of(certificate)
    assert (holder.name, holder.role, holder.fleet, holder.hosts) == ("device-1", "device", FLEET, ())
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=365)
    use = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [oid.dotted_string for oid in use] == ["1.3.6.1.5.5.7.3.2"]  # id-kp-clientAuth, RFC 5280, 4.2.1.12
    assert holder_of(load_certificate(keys / "broker.crt")).hosts == ("127.0.0.1",)
    for key in keys.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key
    kept = load_certificate(keys / "kept.crt").serial_number
    assert [entry.serial_number for entry in load_revoked(keys / "ca.crl")] == [kept]
    authority = load_certificate(keys / "ca.crt")
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)


@pytest.mark.parametrize("name", ["device-1", "broker"])
def test_openssl_accepts_them_by_its_strict_rules(keys: Path, name: str) -> None:
    command = ["openssl", "verify", "-x509_strict", "-crl_check", "-CRLfile", str(keys / "ca.crl")]
    command += ["-CAfile", str(keys / "ca.crt"), str(keys / f"{name}.crt")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert done.returncode == 0, done.stderr


def test_a_certificate_ends_with_its_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, FLEET, days=10)
    path, _ = authority.issue("device-1", "device", days=365)
    assert load_certificate(path).not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_nothing_is_overwritten_and_a_revoked_id_can_be_issued_anew(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, FLEET)
    first, private = authority.issue("device-1", "device")
    old = first.read_bytes(), private.read_bytes(), (tmp_path / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        authority.issue("device-1", "device")
    with pytest.raises(ConfigError, match="exists"):
        Authority.create(tmp_path, FLEET)
    assert old == (first.read_bytes(), private.read_bytes(), (tmp_path / "ca.key").read_bytes())
    authority.revoke("device-1")
    assert not first.exists()
    authority.issue("device-1", "device")
    authority.revoke("device-1")
    assert len(load_revoked(tmp_path / "ca.crl")) == 2


@pytest.mark.parametrize(
    ("name", "role", "hosts", "says"),
    [
        ("a/b", "device", [], "A-Z a-z"),
        ("+", "device", [], "A-Z a-z"),
        ("_edge", "device", [], "not starting with _"),
        ("x\nuser y", "edge", [], "A-Z a-z"),
        ("ca", "device", [], "is taken"),
        ("broker", "device", [], "nothing else is"),
        ("other", "broker", ["h"], "nothing else is"),
        ("broker", "broker", [], "needs --host"),
        ("d", "device", ["h"], "others have none"),
        ("d", "pilot", [], "expected one of device, edge, monitor, operator, broker"),
        ("broker", "broker", ["höst"], "in ASCII"),
    ],
)
def test_ids_roles_and_hosts_that_cannot_be(tmp_path: Path, name: str, role: str, hosts: list[str], says: str) -> None:
    authority = Authority.create(tmp_path, FLEET)
    with pytest.raises(ConfigError, match=says):
        authority.issue(name, role, hosts)
    assert {path.name for path in tmp_path.iterdir()} == {"ca.crt", "ca.key", "ca.crl"}


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    runner, folder = CliRunner(), tmp_path / "f"
    for arguments in (
        ["ca", "farm", "--out", str(folder)],
        ["issue", "broker", "--dir", str(folder), "--role", "broker", "--host", "b.example", "--host", "10.0.0.1"],
        ["issue", "device-7", "--dir", str(folder), "--days", "30"],
        ["revoke", "device-7", "--dir", str(folder)],
    ):
        done = runner.invoke(keys_app, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        assert str(folder) in done.output
    assert Fleet.load(folder).hosts == ("b.example", "10.0.0.1")


# ---- what is refused before anything is sent ----------------------------------------------------------------------


def test_plain_mqtt_stays_on_loopback_unless_told_otherwise() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert check_address(BrokerAddress(host, 1883)).host == host
    for host in ("192.0.2.1", "0.0.0.0", "broker.example", "localhost.example", "127.0.0.1.example", "fe80::1"):
        with pytest.raises(ConfigError, match="--ca, --cert and --key, or say --insecure"):
            MqttTransport(BrokerAddress(host, 1883), "c", [], lambda topic, payload: None)
        assert check_address(BrokerAddress(host, 1883, insecure=True))
    assert secured("mqtt://192.0.2.1", None, None, None, True).insecure


@pytest.mark.parametrize("main", [device.main, edge.main])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--broker", "mqtt://192.0.2.1"], "without TLS only the loopback interface"),
        (["--broker", "mqtt://127.0.0.1", "--ca", "ca.crt"], "write mqtts://"),
        (["--broker", "mqtts://192.0.2.1", "--insecure"], "leave --insecure out"),
        (["--broker", "mqtts://192.0.2.1?verify=no"], "verify=no"),
    ],
)
def test_processes_refuse_unsafe_addresses(
    main: object, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(main)
    assert main(["--bundle", "nowhere", *options]) == 2
    assert says in capsys.readouterr().err


def test_an_address_is_its_url() -> None:
    files = Path("/k/c a.crt"), Path("d&1.crt"), Path("k=?#.key")
    for address in (
        BrokerAddress("h", 1),
        BrokerAddress("::1", 1883),
        BrokerAddress("h", 2, insecure=True),
        BrokerAddress("h", 8883, "a:b@", "p/?#", True, *files),
    ):
        assert BrokerAddress.parse(address.url) == address
    assert BrokerAddress.parse("mqtts://h?ca=x").port == 8883


def test_files_of_tls_that_cannot_be_used(keys: Path, strangers: Path, tmp_path: Path) -> None:
    ca, cert, key = keys / "ca.crt", keys / "device-1.crt", keys / "device-1.key"
    assert client_context(ca, cert, key).verify_mode == ssl.CERT_REQUIRED
    assert client_context(ca, None, None).check_hostname
    open_key, empty = tmp_path / "open.key", tmp_path / "empty"
    open_key.write_bytes(key.read_bytes())
    open_key.chmod(0o644)
    empty.write_bytes(b"")
    empty.chmod(0o600)
    for files, says in (
        ((ca, cert, None), "needs both"),
        ((ca, None, key), "needs both"),
        ((keys / "none", cert, key), "cannot be read"),
        ((empty, cert, key), "not usable for TLS"),
        ((ca, cert, empty), "not usable for TLS"),
        ((ca, cert, strangers / "device-1.key"), "not usable for TLS"),
        ((ca, cert, keys / "none.key"), "cannot be read"),
        ((ca, cert, open_key), "chmod 600"),
    ):
        with pytest.raises(ConfigError, match=says):
            client_context(*files)


def test_an_encrypted_key_is_refused_and_nobody_is_asked(keys: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as pem

    private = pem.load_pem_private_key((keys / "device-1.key").read_bytes(), None)
    locked = tmp_path / "locked.key"
    form = pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"secret")
    locked.write_bytes(private.private_bytes(pem.Encoding.PEM, *form))
    locked.chmod(0o600)
    with pytest.raises(ConfigError, match=r"device-1\.crt: not usable"):
        client_context(keys / "ca.crt", keys / "device-1.crt", locked)


# ---- the broker's folder ------------------------------------------------------------------------------------------


def test_the_shipped_configuration_says_what_it_must(keys: Path, tmp_path: Path) -> None:
    fleet = Fleet.load(keys)
    path = write_configuration(fleet, tmp_path, "0.0.0.0", 8883)
    lines = path.read_text().splitlines()
    for line in ("require_certificate true", "use_identity_as_username true", "allow_anonymous false"):
        assert line in lines
    assert [line for line in lines if line.startswith("listener")] == ["listener 8883 0.0.0.0"]
    assert "allow_anonymous true" not in lines
    access = (tmp_path / "fleet.acl").read_text()
    assert "@" not in "".join(line for line in (*lines, access) if not line.startswith("#"))
    assert re.findall("^user (.*)$", access, re.MULTILINE) == ["chief", "edge-1", "watch"]
    assert not (tmp_path / "ca.key").exists()
    for copied in tmp_path.iterdir():
        assert stat.S_IMODE(copied.stat().st_mode) == 0o600, copied
    write_configuration(fleet, tmp_path, "0.0.0.0", 8883, plain_port=1883)
    assert "listener 1883 127.0.0.1" in path.read_text().splitlines()


def test_folders_that_cannot_be_used(keys: Path, strangers: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adaptsplit keys ca"):
        Fleet.load(tmp_path)
    authority = Authority.create(tmp_path, FLEET)
    with pytest.raises(ConfigError, match="private key"):
        Fleet.load(tmp_path)
    authority.issue("broker", "broker", ["h"])
    assert Fleet.load(tmp_path).name == FLEET
    (tmp_path / "edge-1.crt").write_bytes((strangers / "edge-1.crt").read_bytes())
    with pytest.raises(ConfigError, match=r"edge-1\.crt: not signed by"):
        Fleet.load(tmp_path)
    (tmp_path / "edge-1.crt").write_bytes((tmp_path / "broker.crt").read_bytes())
    with pytest.raises(ConfigError, match="is of 'broker'"):
        Fleet.load(tmp_path)
    (tmp_path / "edge-1.crt").write_bytes(b"-----BEGIN")
    with pytest.raises(ConfigError, match="no certificate in PEM form"):
        Fleet.load(tmp_path)
    (tmp_path / "edge-1.crt").unlink()
    (tmp_path / "broker.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Fleet.load(tmp_path)


def test_a_revoked_edge_loses_its_rights(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, FLEET)
    authority.issue("broker", "broker", ["h"])
    authority.issue("edge-9", "edge")
    assert "user edge-9" in Fleet.load(tmp_path).access()
    authority.revoke("edge-9")
    assert "edge-9" not in Fleet.load(tmp_path).access()


def test_brokers_that_cannot_be_secured(keys: Path) -> None:
    with pytest.raises(ConfigError, match="amqtt takes clients without a certificate"):
        EmbeddedBroker(secure=keys, backend="amqtt")
    with pytest.raises(ConfigError, match="goes with --secure"):
        EmbeddedBroker(plain_port=1883)
    with pytest.raises(ConfigError, match="start it with --secure DIR"):
        EmbeddedBroker(host="0.0.0.0")
