"""The numbered rules of the live contract (docs/contract.md): each is held by a test that names it."""

from __future__ import annotations

import ast
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
import live_cases
import numpy as np
import paho.mqtt.client as paho
import pytest
from live_cases import BIRTH, live_parts
from paho.mqtt.enums import CallbackAPIVersion

import adaptsplit.device_bridge as bridge
from adaptsplit.bundle import Bundle
from adaptsplit.device_bridge.broker import EmbeddedBroker, find_mosquitto
from adaptsplit.device_bridge.conformance import Listener, examine, judge, record
from adaptsplit.device_bridge.conformance_checks import CHECKS
from adaptsplit.device_bridge.conformance_probes import PretendedDevice
from adaptsplit.device_bridge.conformance_record import Heard, Item, Record, parsed
from adaptsplit.device_bridge.contract import RULES
from adaptsplit.device_bridge.control import (
    MAX_CONTROL_BYTES,
    Birth,
    Command,
    CommandReply,
    Connection,
    DecisionCounts,
    EdgeState,
    Event,
    State,
    build_control,
    parse_control,
)
from adaptsplit.device_bridge.device_link import DeviceLink, Edges, EdgeSeen, Incoming, PartMessage, Twin
from adaptsplit.device_bridge.edge_link import EdgeLink
from adaptsplit.device_bridge.edge_session import EdgeSession, Reply, Work
from adaptsplit.device_bridge.fleet_view import FleetView
from adaptsplit.device_bridge.live import LiveFrames, LiveOptions, LiveSetup, run_live
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Heartbeat, Result, Status
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.process import Child, new_session
from adaptsplit.device_bridge.topics import EDGE_LEAVES, LEAVES, PREFIX, DeviceTopics, edge_connection, leaf_of
from adaptsplit.device_bridge.transport import BrokerAddress, Extras
from adaptsplit.errors import CodecError, MessageError, RunError
from adaptsplit.recorded_run import read_run

ROOT = Path(__file__).resolve().parents[1]
FLEET = "default"
DEVICE = DeviceTopics(FLEET, "device-1")
BACKENDS = [
    pytest.param("mosquitto", marks=pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")),
    "amqtt",
]
HELD: dict[str, list[str]] = {}
T = TypeVar("T", bound=Callable[..., Any])


def holds(*rules: str) -> Callable[[T], T]:
    """Say which rules a test holds; a rule that does not exist is an error."""
    known = {rule.id for rule in RULES}

    def note(test: T) -> T:
        for rule in rules:
            assert rule in known, rule
            HELD.setdefault(rule, []).append(test.__name__)
        return test

    return note


def until(done: Callable[[], bool], timeout_s: float = 8.0) -> bool:
    return live_cases.until(done, timeout_s)


# ---- one live run, heard from outside ------------------------------------------------------------------------------


bundle = live_parts().bundle


@pytest.fixture(scope="module")
def heard(bundle: Bundle) -> Record:
    """A device flies 60 frames of two controllers in turn; we listen from before it ends until after, and probe."""
    found: list[Record] = []

    def during(setup: LiveSetup) -> None:
        found.append(record(BrokerAddress.parse(setup.broker.url), FLEET, 5.5))

    run_live(bundle, LiveFrames(count=60), None, ["bundle", "deadline"], LiveOptions(state_s=0.5), during=during)
    return found[0]


SEEN = ("001", "002", "003", "004", "005", "010", "011", "012", "015", "016", "017", "018", "019", "021", "022", "024")
SEEN += ("030", "032", "033", "040", "041", "042", "043", "046", "050", "051", "052", "053", "054", "055", "056", "059")


@pytest.mark.parametrize("rule", [f"AS-{number}" for number in SEEN])
@holds(*(f"AS-{number}" for number in SEEN))
def test_a_live_device_and_edge_keep(heard: Record, rule: str) -> None:
    """Seen at least once in the run, and never broken."""
    verdict = next(one for one in judge(heard) if one.rule.id == rule)
    if rule == "AS-003" and not find_mosquitto():
        pytest.skip("amqtt delivers with the listener's quality of service")
    assert verdict.faults == ()
    assert verdict.status == "held"


def test_no_rule_is_violated(heard: Record) -> None:
    assert [(one.rule.id, one.faults) for one in judge(heard) if one.faults] == []


# ---- a fleet that breaks a rule is found out -----------------------------------------------------------------------


def edit(found: Record, pick: Callable[[Item], bool], change: Callable[[Heard], Heard | None], skip: int = 0) -> Record:
    """Change (or, by None, take away) one message: the first that is picked after ``skip`` others."""
    left, out = skip, []
    for item in found.items:
        one: Heard | None = item.heard
        if left >= 0 and pick(item):
            left -= 1
            one = change(item.heard) if left < 0 else one
        out += [one] if one is not None else []
    return replace(found, heard=tuple(out))


def of(kind: type[Any], **fields: object) -> Callable[[Item], bool]:
    def pick(item: Item) -> bool:
        said = item.content if item.content is not None else item.message
        return (
            isinstance(said, kind) and not item.heard.retained and all(getattr(said, k) == v for k, v in fields.items())
        )

    return pick


def json_with(**fields: object) -> Callable[[Heard], Heard]:
    def change(one: Heard) -> Heard:
        value = json.loads(one.payload) | {k: v for k, v in fields.items() if k != "data"}
        value["data"] |= fields.get("data", {})
        return replace(one, payload=json.dumps(value).encode())

    return change


def gone(one: Heard) -> None:
    return None


def add(found: Record, topic: str, payload: bytes, **fields: Any) -> Record:
    return replace(found, heard=(*found.heard, Heard(found.ended, topic, payload, 1, **fields)))


def again(found: Record, kind: type[Any], **fields: object) -> Record:
    item = next(item for item in found.items if of(kind, **fields)(item))
    return replace(found, heard=(*found.heard, replace(item.heard, at=found.ended)))


def envelope(content: Any, seq: int = 1, session: bytes = bytes(16)) -> bytes:
    return build_control(content, seq=seq, session=session, ts_ms=1, mono_ms=1.0)


BROKEN = Connection(state="CONNECTION_BROKEN")


def broken_for_good(found: Record) -> Record:
    """A last will of the device comes at the start, and it never says ONLINE."""
    will = Heard(found.heard[0].at, DEVICE.leaf("connection"), envelope(BROKEN, 0), 1)
    return replace(found, heard=(will, *(i.heard for i in found.items if i.content != Connection(state="ONLINE"))))


def two_states_at_once(found: Record) -> Record:
    """The second state of the run comes 10 ms after the first."""
    first = next(item.envelope for item in found.items if of(State)(item))
    assert first is not None
    return edit(found, of(State), json_with(mono=first.mono + 10.0), skip=1)


DOCTORED: dict[str, Callable[[Record], Record]] = {
    "AS-001": lambda r: add(r, DEVICE.leaf("other"), b"x"),
    "AS-002": lambda r: add(r, DEVICE.leaf("a/b/c/d/e"), b"x"),
    "AS-003": lambda r: replace(edit(r, of(State), lambda one: replace(one, qos=1)), keeps_qos=True),
    "AS-004": lambda r: replace(r, later=tuple(one for one in r.later if not one.topic.endswith("birth"))),
    "AS-005": lambda r: edit(r, of(State), lambda one: replace(one, retained=True)),
    "AS-010": lambda r: edit(r, of(State), lambda one: replace(one, payload=b"{}")),
    "AS-011": lambda r: edit(r, of(State), json_with(more="x" * MAX_CONTROL_BYTES)),
    "AS-012": lambda r: edit(r, of(State), json_with(mono=float("nan"))),
    "AS-015": lambda r: add(r, DEVICE.leaf("state"), envelope(Event(kind="k", detail="d"))),
    "AS-016": lambda r: edit(r, of(State), gone, skip=1),
    "AS-017": lambda r: edit(r, of(State), json_with(session="0" * 32), skip=1),
    "AS-018": lambda r: edit(r, of(State), json_with(mono=0.0), skip=1),
    "AS-020": lambda r: add(r, DEVICE.leaf("connection"), envelope(BROKEN, seq=5)),
    "AS-021": lambda r: replace(r, heard=tuple(i.heard for i in r.items if not isinstance(i.content, Birth))),
    "AS-022": lambda r: again(r, State),
    "AS-024": lambda r: edit(r, of(Birth), json_with(session="0" * 32)),
    "AS-025": broken_for_good,
    "AS-030": two_states_at_once,
    "AS-032": lambda r: edit(r, of(DecisionCounts), json_with(data={"frames": 7777})),
    "AS-033": lambda r: edit(r, of(Heartbeat, reply=True), gone),
    "AS-040": lambda r: edit(r, of(FrameMessage), lambda one: replace(one, payload=one.payload[:20] + b"!" * 20)),
    "AS-041": lambda r: edit(r, of(Ack), gone),
    "AS-043": lambda r: again(r, Result),
    "AS-046": lambda r: again(r, FrameMessage),
    "AS-050": lambda r: add(r, DEVICE.leaf("event"), next(i.heard.payload for i in r.items if of(Command)(i))),
    "AS-051": lambda r: edit(r, of(CommandReply), gone),
}


@pytest.mark.parametrize("rule", list(DOCTORED))
def test_a_broken_rule_is_found(heard: Record, rule: str) -> None:
    """The run as it was, but for one message: the rule's check says so."""
    assert not CHECKS[rule](heard)[1]
    assert CHECKS[rule](DOCTORED[rule](heard))[1]


def test_every_check_was_tried_on_a_broken_record() -> None:
    assert set(CHECKS) == set(DOCTORED) <= {rule.id for rule in RULES}


def test_a_device_that_does_whatever_it_is_told_is_found_out() -> None:
    """It answers DONE to everything: repeated, expired, behind, unknown, and meant for another life."""
    with EmbeddedBroker() as broker:
        address, voice = BrokerAddress.parse(broker.url), new_session()

        def obey(topic: str, payload: bytes) -> None:
            command = parse_control(payload)[1]
            assert isinstance(command, Command)
            reply = envelope(CommandReply(cmd_id=command.cmd_id, status="DONE"), session=voice)
            link.publish(f"{topic}/reply", reply, qos=1)

        link = MqttTransport(address, "d", [DEVICE.leaf("cmd/+")], obey)
        link.wait_connected(8.0)
        for leaf, content in (("connection", Connection(state="ONLINE")), ("birth", BIRTH)):
            link.publish(DEVICE.leaf(leaf), envelope(content, session=voice), qos=1, retain=True)
        verdicts = {one.rule.id: one.status for one in examine(address, FLEET, 1.0)}
        link.close()
    assert {name for name, status in verdicts.items() if status == "violated"} >= {
        *(f"AS-05{digit}" for digit in "23456"),
        "AS-016",  # it numbers all replies 1
    }
    with EmbeddedBroker() as broker, pytest.raises(RunError, match="nothing was heard of fleet 'nobody'"):
        examine(BrokerAddress.parse(broker.url), "nobody", 0.1)


# ---- topics and envelope -------------------------------------------------------------------------------------------


@holds("AS-001", "AS-002")
def test_every_topic_of_the_table_is_known_and_short() -> None:
    long = "x" * 64
    for leaves, start in ((LEAVES, f"{PREFIX}/{long}/{long}"), (EDGE_LEAVES, f"{PREFIX}/{long}/_edge/{long}")):
        for leaf in leaves:
            topic = f"{start}/{leaf.pattern.replace('+', 'ab12')}"
            assert leaf_of(topic, long)[1] is leaf
            assert topic.count("/") <= 7
    for topic in (
        f"{PREFIX}/{FLEET}/_edge/e/up",
        DEVICE.leaf("cmd"),
        DEVICE.leaf("cmd/a/b/c"),
        f"{PREFIX}/{FLEET}/_e/up",
    ):
        with pytest.raises(MessageError):
            leaf_of(topic, FLEET)


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(envelope(Connection(state="ONLINE"))) | fields).encode()


@holds("AS-011")
def test_a_large_message_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("adaptsplit.device_bridge.control.json.loads", never)
    with pytest.raises(MessageError, match="at most 65536"):
        parse_control(b"{" + b" " * MAX_CONTROL_BYTES)


@holds("AS-012")
def test_numbers_are_finite_on_the_way_in_and_out() -> None:
    for bad in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(MessageError, match=f"{bad} is not allowed"):
            parse_control(changed().replace(b'"mono": 1.0', f'"mono": {bad}'.encode()))
    with pytest.raises(ValueError, match="JSON compliant"):
        envelope(CommandReply(cmd_id=ID, status="DONE", data={"x": float("nan")}))


@holds("AS-013")
def test_unknown_keys_are_ignored() -> None:
    assert parse_control(changed(more=[1], data={"state": "ONLINE", "more": {}}))[1] == Connection(state="ONLINE")


@holds("AS-014", "AS-010")
def test_missing_and_impossible_values_refuse_the_message() -> None:
    whole = json.loads(changed())
    for key in whole:
        with pytest.raises(MessageError):
            parse_control(json.dumps({k: v for k, v in whole.items() if k != key}).encode())
    for fields in ({"seq": -1}, {"seq": 1 << 32}, {"session": "no"}, {"mono": -1}, {"data": {"state": "?"}}):
        with pytest.raises(MessageError):
            parse_control(changed(**fields))


def schema_files() -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in (ROOT / "device_bridge" / "schemas").glob("*.json")}


@holds("AS-010", "AS-015")
def test_the_shipped_schemas_are_those_of_the_models() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from make_schemas import documents  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    shipped = {path.name: path.read_text() for path in (ROOT / "device_bridge" / "schemas").glob("*.json")}
    assert shipped == documents(), "run: python docs/make_schemas.py"


@holds("AS-010", "AS-015")
def test_what_is_said_fits_the_shipped_schemas(heard: Record) -> None:
    """Every control message of the live run; and what is not ours does not fit."""
    schemas = schema_files()
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    used = set()
    for item in heard.items:
        if item.envelope is not None:
            name = item.envelope.schema_.removeprefix("adaptsplit.").replace("/", "-") + ".json"
            jsonschema.Draft202012Validator(schemas[name]).validate(json.loads(item.heard.payload))
            used.add(name)
    assert {"connection-1.json", "birth-1.json", "state-1.json", "decision-1.json", "command-1.json"} <= used
    strict = jsonschema.Draft202012Validator(schemas["connection-1.json"])
    for fields in ({"seq": -1}, {"session": "no"}, {"schema": "adaptsplit.state/1"}, {"data": {"state": "?"}}):
        assert not strict.is_valid(json.loads(changed(**fields)))


# ---- presence ------------------------------------------------------------------------------------------------------

ID = "00000000-0000-0000-0000-000000000001"


@pytest.fixture(scope="module", params=BACKENDS)
def broker(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(backend=request.param) as running:
        yield running


@pytest.fixture
def topics(broker: EmbeddedBroker, request: pytest.FixtureRequest) -> DeviceTopics:
    """A device id of the test's own: the broker is shared, and retains."""
    return DeviceTopics(FLEET, re.sub("[^a-z0-9]", "-", request.node.name)[-60:].strip("-_"))


def break_off(transport: MqttTransport) -> None:
    """End a connection as a crash would."""
    lane = transport._client.lane
    assert lane is not None
    transport._closing.set()
    lane.raw.shutdown(2)
    transport.close()


class Ends:
    """A device's connections, what it is told, and what the broker delivers of it to others."""

    def __init__(self, broker: EmbeddedBroker, topics: DeviceTopics) -> None:
        self.told: list[Incoming] = []
        self.session = new_session()
        address = BrokerAddress.parse(broker.url)
        self.link = DeviceLink(address, topics, self.session, BIRTH, lambda e, at: self.told.append(e), ["cmd/+"])
        self.link.wait_connected(8.0)

    def cut(self) -> None:
        """End the connections as a crash would."""
        for transport in (self.link._control, self.link._data):
            break_off(transport)


def said(listener: Listener, topics: DeviceTopics, leaf: str = "connection") -> list[tuple[str, str, int]]:
    """(state or kind, session, seq) of what was heard on a topic, in order; retained ones left out."""
    found = []
    for one in listener.heard():
        if one.topic == topics.leaf(leaf) and one.payload and not one.retained:
            envelope, content = parse_control(one.payload)
            found.append((getattr(content, "state", getattr(content, "kind", "")), envelope.session, envelope.seq))
    return found


@holds("AS-020", "AS-021", "AS-022", "AS-024")
def test_a_life_begins_and_ends_as_it_should(broker: EmbeddedBroker, topics: DeviceTopics) -> None:
    listener = Listener(BrokerAddress.parse(broker.url), FLEET)
    one = Ends(broker, topics)
    assert until(lambda: bool(said(listener, topics, "birth")))
    one.cut()
    first = one.session.hex()
    assert until(lambda: len(said(listener, topics)) == 2)
    assert said(listener, topics) == [("ONLINE", first, 1), ("CONNECTION_BROKEN", first, 0)]
    assert [session for _, session, _ in said(listener, topics, "birth")] == [first]
    two = Ends(broker, topics)
    two.link.close()
    assert until(lambda: len(said(listener, topics)) == 4)
    time.sleep(0.3)
    assert said(listener, topics)[2:] == [("ONLINE", two.session.hex(), 1), ("OFFLINE", two.session.hex(), 2)]
    listener.close()


@holds("AS-025", "AS-026")
def test_a_late_will_is_put_right_and_a_twin_is_told_of(broker: EmbeddedBroker, topics: DeviceTopics) -> None:
    listener = Listener(BrokerAddress.parse(broker.url), FLEET)
    old = Ends(broker, topics)
    new = Ends(broker, topics)
    assert until(lambda: any(isinstance(event, Twin) for event in old.told))
    assert not any(isinstance(event, Twin) for event in new.told), "what was retained is no sign of life"
    old.cut()
    assert until(lambda: new.link.counts["late_wills"] == 1)
    assert until(lambda: said(listener, topics)[-1][:2] == ("ONLINE", new.session.hex()))
    late = Listener(BrokerAddress.parse(broker.url), FLEET)
    assert until(lambda: any(h.retained and h.topic == topics.leaf("connection") for h in late.heard()))
    kept = next(h for h in late.heard() if h.topic == topics.leaf("connection"))
    assert parse_control(kept.payload)[1] == Connection(state="ONLINE")
    new.link.close()
    for one in (late, listener):
        one.close()


@holds("AS-025")
def test_a_late_will_of_an_earlier_connection_is_put_right_too(broker: EmbeddedBroker, topics: DeviceTopics) -> None:
    """A device hears a will of its own session: of a connection that it has lost and replaced."""
    listener = Listener(BrokerAddress.parse(broker.url), FLEET)
    one = Ends(broker, topics)
    assert until(lambda: len(said(listener, topics)) == 1)
    listener.link.publish(topics.leaf("connection"), envelope(BROKEN, 0, one.session), qos=1, retain=True)
    assert until(lambda: [state for state, _, _ in said(listener, topics)][1:] == ["CONNECTION_BROKEN", "ONLINE"])
    assert not any(isinstance(event, Twin) for event in one.told)
    one.link.close()
    listener.close()


@holds("AS-025", "AS-022")
@pytest.mark.parametrize("earlier", ["life", "connection"])
def test_an_edge_server_puts_a_late_will_right(broker: EmbeddedBroker, earlier: str) -> None:
    """Also when two of one id are there (they do not wake each other for ever); not once it has said OFFLINE."""
    address, name = BrokerAddress.parse(broker.url), f"edge-{broker.backend}-{earlier}"
    topic, heard = edge_connection(FLEET, name), []

    def listen(where: str, payload: bytes) -> None:
        if payload:
            envelope, content = parse_control(payload)
            heard.append((getattr(content, "state", ""), envelope.session))

    watch = MqttTransport(address, f"watch-{name}", [topic], listen, live=[topic])
    watch.wait_connected(8.0)
    link = EdgeLink(address, FLEET, name, lambda where, payload: None)
    link.wait_connected(8.0)
    mine = link._voice.session
    assert until(lambda: heard[-1:] == [("ONLINE", mine.hex())])
    heard.clear()
    watch.publish(topic, envelope(BROKEN, 0, mine if earlier == "connection" else bytes(16)), qos=1, retain=True)
    assert until(lambda: [state for state, _ in heard] == ["CONNECTION_BROKEN", "ONLINE"])
    assert link.counts()["control"]["late_wills"] == 1
    twin = EdgeLink(address, FLEET, name, lambda where, payload: None)
    twin.wait_connected(8.0)
    assert until(lambda: link.counts()["control"].get("twins", 0) > 0)
    time.sleep(0.3)
    before = len(heard)
    twin.offline()
    assert until(lambda: heard[before:] == [("OFFLINE", twin._voice.session.hex()), ("ONLINE", mine.hex())])
    twin.close()
    link.offline()
    assert until(lambda: heard[-1] == ("OFFLINE", mine.hex()))
    watch.publish(topic, envelope(BROKEN, 0), qos=1, retain=True)
    assert until(lambda: heard[-1][0] == "CONNECTION_BROKEN")
    time.sleep(0.3)
    assert heard[-1][0] == "CONNECTION_BROKEN", "it has said OFFLINE for good"
    link.close()
    watch.publish(topic, b"", qos=1, retain=True)  # the broker is shared
    watch.close()


@holds("AS-026")
def test_of_twins_the_last_to_say_online_counts_and_the_other_is_told_of() -> None:
    view, one, two = FleetView(FLEET), b"1" * 16, b"2" * 16
    connection = DEVICE.leaf("connection")
    view.heard(connection, envelope(Connection(state="ONLINE"), 1, one), 0.0)
    view.heard(DEVICE.leaf("birth"), envelope(BIRTH, 1, one), 0.0)
    view.heard(connection, envelope(Connection(state="ONLINE"), 1, two), 1.0)
    view.heard(DEVICE.leaf("birth"), envelope(BIRTH, 1, two), 1.0)
    member = view.members["device-1"]
    for seq in range(1, 4):
        assert view.heard(DEVICE.leaf("state"), envelope(STATE, seq, one), 10.0 * seq) == ()
        view.heard(DEVICE.leaf("state"), envelope(STATE, seq, two), 10.0 * seq)
    view.heard(DEVICE.leaf("event"), envelope(Event(kind="twin", detail="another"), 1, one), 40.0)
    view.heard(connection, envelope(Connection(state="OFFLINE"), 2, one), 41.0)
    assert (member.life, member.connection, member.gaps) == (two.hex(), "ONLINE", 0)
    assert view.counts["other_life"] == 5
    assert "device-1: twin another" in view.news
    view.heard(connection, envelope(Connection(state="OFFLINE"), 2, two), 42.0)
    view.heard(connection, envelope(Connection(state="ONLINE"), 3, one), 43.0)
    assert (member.life, member.connection) == (one.hex(), "ONLINE")


@holds("AS-027")
def test_a_device_that_is_told_to_end_ends_in_good_order(bundle: Bundle, tmp_path: Path) -> None:
    """SIGTERM in the middle of a flight: no frame without a record, none taken up later, OFFLINE, the summary."""
    with LiveSetup(bundle, None, tmp_path, LiveOptions(state_s=0.5)) as setup:
        listener = Listener(BrokerAddress.parse(setup.broker.url), FLEET)
        with setup.device(LiveFrames(count=2000), ["bundle"]) as device:
            assert until(lambda: any(one.topic == DEVICE.leaf("state") for one in listener.heard()))
            device.process.terminate()
            began = time.monotonic()
            summary = device.read(20.0)
            assert device.process.wait(20.0) == 0
            took = time.monotonic() - began
        assert until(lambda: said(listener, DEVICE)[-1][0] == "OFFLINE")
        heard = listener.close()
    assert took < 15.0, "3 s, and a busy machine"
    assert [state for state, _, _ in said(listener, DEVICE)] == ["ONLINE", "OFFLINE"]
    events = [item.content for item in (parsed(FLEET, one) for one in heard) if isinstance(item.content, Event)]
    assert events[-1].kind == "draining"
    records = read_run(tmp_path / "live.jsonl").records
    assert records["frame"].tolist() == list(range(len(records)))
    assert summary["frames"] == len(records) < 2000
    assert np.isfinite(records["remote_latency_s"][records["sent_bytes"] > 0][-3:]).all(), "what was sent was awaited"


@holds("AS-027")
def test_a_device_that_is_told_to_end_before_its_flight_says_offline(bundle: Bundle, tmp_path: Path) -> None:
    """It waits for an edge server, and there is none."""
    with EmbeddedBroker() as broker:
        listener = Listener(BrokerAddress.parse(broker.url), FLEET)
        arguments = ["--bundle", str(bundle.path), "--broker", broker.url, "--edge-wait-s", "300"]
        with Child("device", arguments, tmp_path / "device.log") as device:
            assert until(lambda: bool(said(listener, DEVICE)), 60.0)
            device.process.terminate()
            assert device.process.wait(20.0) == 0
        assert until(lambda: [state for state, _, _ in said(listener, DEVICE)] == ["ONLINE", "OFFLINE"])
        listener.close()


@holds("AS-027")
def test_an_edge_server_that_is_told_to_end_says_offline(bundle: Bundle, tmp_path: Path) -> None:
    with LiveSetup(bundle, None, tmp_path, LiveOptions()) as setup:
        topic, states = edge_connection(FLEET, "edge-1"), []
        watch = MqttTransport(
            BrokerAddress.parse(setup.broker.url), "w", [topic], lambda where, payload: states.append(payload)
        )
        watch.wait_connected(8.0)
        assert setup.edge is not None
        setup.edge.process.terminate()
        assert setup.edge.process.wait(20.0) == 0
        assert until(lambda: parse_control(states[-1])[1] == Connection(state="OFFLINE"))
        watch.close()


@holds("AS-027", "AS-030")
def test_a_fleet_shows_who_is_draining() -> None:
    view, topic = FleetView(FLEET), f"{PREFIX}/{FLEET}/_edge/e"
    assert f"{PREFIX}/{FLEET}/_edge/+/state" in view.filters
    for start in (DEVICE.leaf("connection"), f"{topic}/connection"):
        view.heard(start, envelope(Connection(state="ONLINE")), 0.0)
    (device,), (edge,) = view.devices, view.edges
    assert (device.presence, edge.presence) == ("ONLINE", "ONLINE")
    view.heard(DEVICE.leaf("state"), envelope(STATE.model_copy(update={"draining": True})), 1.0)
    view.heard(f"{topic}/state", envelope(EdgeState(queues={}, counts={}, draining=True)), 1.0)
    assert (device.presence, edge.presence) == ("DRAINING", "DRAINING")
    assert view.heard(f"{topic}/state", envelope(EdgeState(queues={}, counts={}), seq=9), 99.0) == (), "no rebirth"
    view.heard(DEVICE.leaf("connection"), envelope(Connection(state="OFFLINE"), 2), 2.0)
    assert device.presence == "OFFLINE"


@holds("AS-023")
def test_a_will_of_another_life_is_ignored_by_devices_and_listeners() -> None:
    edges = Edges()
    assert edges.seen(EdgeSeen("e", "new", "ONLINE")) == (True, False)
    assert edges.seen(EdgeSeen("e", "old", "CONNECTION_BROKEN")) == (False, False)
    assert edges.online
    assert edges.names == ["e"]
    assert edges.seen(EdgeSeen("e", "new", "CONNECTION_BROKEN")) == (True, False)
    assert not edges.online
    view, topic = FleetView(FLEET), DEVICE.leaf("connection")
    view.heard(topic, envelope(Connection(state="ONLINE"), session=b"n" * 16), 0.0)
    view.heard(topic, envelope(BROKEN, 0, b"o" * 16), 1.0)
    assert (view.members["device-1"].connection, view.counts["stale_will"]) == ("ONLINE", 1)
    view.heard(topic, envelope(BROKEN, 0, b"n" * 16), 2.0)
    assert view.members["device-1"].connection == "CONNECTION_BROKEN"


# ---- telemetry, frames ---------------------------------------------------------------------------------------------

STATE = State(
    frame=1, controller="c", decision="d", goodput_bps=1, rtt_s=1, unacked=0, edge="online", paths={}, mode="recovery"
)


@holds("AS-031", "AS-016")
def test_state_that_cannot_leave_takes_no_number(
    broker: EmbeddedBroker, topics: DeviceTopics, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener(BrokerAddress.parse(broker.url), FLEET)
    one = Ends(broker, topics)
    control = one.link._control
    assert until(lambda: one.link.latest("state", STATE)), "once ONLINE and birth have left"
    skipped = control.counts["skipped_latest"]
    with monkeypatch.context() as stuck:
        stuck.setattr(control._client, "want_write", lambda: True)
        one.link.state(STATE)
        one.link.state(STATE)
    assert control.counts["skipped_latest"] == skipped + 2
    assert until(lambda: one.link.latest("state", STATE))
    assert until(lambda: len(said(listener, topics, "state")) == 2)
    assert [number for _, _, number in said(listener, topics, "state")] == [1, 2]
    one.link.close()
    listener.close()


@holds("AS-044")
def test_a_frame_without_time_is_dropped_with_a_result() -> None:
    """It waits behind another one until its deadline (1 us after it came) has passed."""
    edge, pretended = EdgeSession(FLEET, 4), PretendedDevice(DEVICE)
    up = DEVICE.leaf("up")
    work = next(one for one in edge.received(up, pretended.frame(0, 1.0), 0.0) if isinstance(one, Work))
    said = edge.received(up, pretended.frame(1, 1e-6), 0.001)
    said += edge.refused(work.jobs[0], CodecError("of no use"), 0.1)
    assert not any(isinstance(one, Work) for one in said)
    for one in said:
        assert isinstance(one, Reply)
        pretended.receive(one.topic, one.payload)
    assert (pretended.count(Ack, 1), pretended.status(1)) == (1, "DROPPED")


@holds("AS-045")
def test_results_of_another_life_or_repeated_change_nothing() -> None:
    from cases import SPACE

    from adaptsplit.device_bridge.actions import SessionConfig
    from adaptsplit.device_bridge.session import DeviceSession

    session = DeviceSession(SessionConfig(b"s" * 16, SPACE, 10.0, 0.2), lambda frame, prediction: float("nan"))
    before = session.tracker.copy()
    for life in (b"o" * 16, b"s" * 16):
        assert session.received(Result(life, 0, 0, 0.1, 0.0, 0.5, Status.DONE, b"1" * 16), 1.0) == []
        assert session.received(Ack(life, 0, 0), 1.0) == []
    assert session.counts["foreign_session"] == 2
    np.testing.assert_array_equal(session.tracker, before)


# ---- commands (more in test_live_commands.py) ----------------------------------------------------------------------


@holds("AS-057")
def test_a_retained_command_never_reaches_the_device(broker: EmbeddedBroker, topics: DeviceTopics) -> None:
    address, payload = BrokerAddress.parse(broker.url), b'{"any": "thing"}'
    link = MqttTransport(address, "chief", [], lambda topic, payload: None)
    link.wait_connected(8.0)
    link.publish(topics.leaf("cmd/ping"), payload, qos=1, retain=True)
    time.sleep(0.3)
    one = Ends(broker, topics)
    assert until(lambda: one.link._control.counts["retained_dropped"] >= 1)
    link.publish(topics.leaf("cmd/ping"), b"now", qos=1)
    assert until(lambda: PartMessage("cmd/ping", b"now") in one.told)
    assert PartMessage("cmd/ping", payload) not in one.told
    link.publish(topics.leaf("cmd/ping"), b"", qos=1, retain=True)
    link.close()
    one.link.close()


FRAME_PATH = [
    "agent",
    "actions",
    "camera",
    "decider",
    "edge_session",
    "flight",
    "ledger",
    "sender",
    "session",
    "worker",
    "messages",
]


@holds("AS-058")
def test_no_module_on_a_frames_way_reads_the_wall_clock() -> None:
    """``time.time``, ``datetime.now`` and the like belong to envelopes, commands and signatures."""
    folders = [Path(str(bridge.__file__)).parent / f"{name}.py" for name in FRAME_PATH]
    folders += [*(ROOT / "adaptsplit").glob("guard*.py"), ROOT / "adaptsplit" / "observation.py"]
    folders += [ROOT / "adaptsplit" / "estimators.py", *(ROOT / "adaptsplit" / "runtime").glob("*.py")]
    for file in folders:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("time", "time"), ("time", "time_ns"), ("datetime", "now")}, (
                    file
                )
            if isinstance(node, ast.ImportFrom):
                assert node.module != "datetime", file
                assert node.module != "time" or {name.name for name in node.names} <= {"monotonic", "perf_counter"}, (
                    file
                )


@holds("AS-060")
def test_a_gap_or_a_missing_birth_asks_for_a_rebirth() -> None:
    view, topic = FleetView(FLEET), DEVICE.leaf("state")
    states = [envelope(STATE, seq) for seq in range(1, 12)]
    assert view.heard(topic, states[0], 0.0) == ("device-1",), "there is no birth yet"
    assert view.heard(topic, states[1], 1.0) == (), "asked a second ago"
    assert view.heard(topic, states[2], 6.0) == ("device-1",)
    view.heard(DEVICE.leaf("birth"), envelope(BIRTH), 6.5)
    assert view.heard(topic, states[3], 12.0) == ()
    assert view.heard(topic, states[5], 13.0) == ("device-1",)
    assert view.heard(topic, states[8], 14.0) == ()
    assert view.members["device-1"].gaps == 2
    assert view.heard(topic, envelope(STATE, 1, b"n" * 16), 20.0) == ("device-1",), "a new life without a birth"


# ---- MQTT 5 and 3.1.1 ----------------------------------------------------------------------------------------------


@holds("AS-070")
@pytest.mark.parametrize("backend", BACKENDS)
def test_mqtt_5_where_it_is_spoken_else_3_1_1(backend: str) -> None:
    """With a last will and without; and when the broker is another one after a restart."""
    with EmbeddedBroker(backend=backend) as broker:
        topics, listener = DeviceTopics(FLEET, "d"), Listener(BrokerAddress.parse(broker.url), FLEET)
        began = time.monotonic()
        one = Ends(broker, topics)
        assert time.monotonic() - began < 2.0
        version = 5 if backend == "mosquitto" else 4
        for transport in (one.link._control, listener.link):
            assert transport.version == version
            assert transport.counts["fell_back"] == (0 if version == 5 else 1)
        assert one.link._data.version == 4, "nothing on the data plane has properties"
        assert until(lambda: said(listener, topics) == [("ONLINE", one.session.hex(), 1)])
        one.link.close()
        listener.close()


@pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")
@holds("AS-070")
def test_a_broker_that_comes_back_without_mqtt_5_is_spoken_to() -> None:
    with EmbeddedBroker(backend="mosquitto") as broker:
        one = Ends(broker, DeviceTopics(FLEET, "d"))
        assert one.link._control.version == 5
        broker.kill()
        broker.backend = "amqtt"
        broker.start()
        assert until(lambda: one.link._control.counts["connected"] == one.link._data.counts["connected"] == 2, 20.0)
        assert (one.link._control.version, one.link._data.version) == (4, 4)
        one.link.close()


@pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")
@holds("AS-071")
def test_mqtt_5_repeats_what_the_payload_says() -> None:
    """Heard with a client that is not ours: schema, content type, expiry, response topic, correlation; wills too."""
    found: dict[str, Any] = {}
    with EmbeddedBroker(backend="mosquitto") as broker:
        other = paho.Client(CallbackAPIVersion.VERSION2, "other", protocol=paho.MQTTv5)
        other.on_message = lambda client, userdata, message: found.update({message.topic: message})
        other.connect("127.0.0.1", broker.port)
        other.subscribe("#", qos=1)
        other.loop_start()
        time.sleep(0.2)
        topics = DeviceTopics(FLEET, "d")
        one, address = Ends(broker, topics), BrokerAddress.parse(broker.url)
        answer = CommandReply(cmd_id=ID, status="DONE")
        one.link.tell("cmd/ping/reply", answer, extras=Extras("adaptsplit.reply/1", correlation=ID.encode()))
        command = Extras("adaptsplit.command/1", 4.2, topics.leaf("cmd/ping/reply"), ID.encode())
        chief = MqttTransport(address, "chief", [], lambda topic, payload: None)
        chief.wait_connected(8.0)
        chief.publish(topics.leaf("cmd/ping"), b"{}", qos=1, extras=command)
        leaves = {name: topics.leaf(name) for name in ("connection", "birth", "cmd/ping", "cmd/ping/reply")}
        assert until(lambda: set(leaves.values()) <= set(found))
        for name in ("connection", "birth", "cmd/ping/reply"):
            message = found[leaves[name]]
            schema = parse_control(message.payload)[0].schema_
            assert dict(message.properties.UserProperty) == {"schema": schema}
            assert message.properties.ContentType == "application/json"
        asked, replied = found[leaves["cmd/ping"]].properties, found[leaves["cmd/ping/reply"]].properties
        assert asked.MessageExpiryInterval in (4, 5)
        assert asked.ResponseTopic == leaves["cmd/ping/reply"]
        assert asked.CorrelationData == replied.CorrelationData == ID.encode()
        del found[leaves["connection"]]
        one.cut()
        assert until(lambda: leaves["connection"] in found)
        assert dict(found[leaves["connection"]].properties.UserProperty) == {"schema": "adaptsplit.connection/1"}
        chief.close()
        other.disconnect()
        other.loop_stop()


@holds("AS-072")
def test_nothing_that_was_said_while_away_comes_later(broker: EmbeddedBroker, topics: DeviceTopics) -> None:
    address, topic = BrokerAddress.parse(broker.url), topics.leaf("cmd/ping")
    got: list[bytes] = []

    def connected(name: str) -> MqttTransport:
        link = MqttTransport(address, name, [topic], lambda where, payload: got.append(payload), qos=1)
        link.wait_connected(8.0)
        return link

    speaker, first = connected("speaker"), connected("same-id")
    break_off(first)
    got.clear()
    speaker.publish(topic, b"while away", qos=1)
    assert until(lambda: got == [b"while away"]), "the speaker hears itself"
    time.sleep(0.2)
    second = connected("same-id")
    speaker.publish(topic, b"now", qos=1)
    assert until(lambda: got.count(b"now") == 2)
    assert got.count(b"while away") == 1
    for link in (speaker, second):
        link.close()


# ---- the rules themselves ------------------------------------------------------------------------------------------


@holds("AS-019")
def test_damaged_messages_are_counted_and_change_nothing(broker: EmbeddedBroker, topics: DeviceTopics) -> None:
    one = Ends(broker, topics)
    speaker = MqttTransport(BrokerAddress.parse(broker.url), "noise", [], lambda topic, payload: None)
    speaker.wait_connected(8.0)
    assert until(lambda: len(one.told) == 2), "both connections are told of"
    for where in (
        topics.leaf("connection"),
        topics.leaf("heartbeat/reply"),
        edge_connection(FLEET, "e"),
        topics.leaf("down"),
    ):
        for payload in (b"", b"\x00", b"[" * 5000, b'{"seq": NaN}', bytes(MAX_CONTROL_BYTES + 1)):
            speaker.publish(where, payload, qos=1)
    assert until(lambda: one.link.counts["malformed"] == 20)
    assert len(one.told) == 2
    assert one.link._control.counts["callback_errors"] == 0
    speaker.close()
    one.link.close()


def test_every_rule_is_held_by_a_test_and_numbers_are_in_order() -> None:
    here = sys.modules[__name__]
    ids = [rule.id for rule in RULES]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"AS-\d{3}", name) for name in ids)
    assert set(HELD) == set(ids)
    for file in Path(__file__).parent.glob("test_live*.py"):
        named = re.findall(r"_as_(\d{3})(?=_)", file.read_text(encoding="utf-8"))
        assert {f"AS-{number}" for number in named} <= set(ids), file.name
    for names in HELD.values():
        assert all(name.startswith("test_") and callable(getattr(here, name)) for name in names)
