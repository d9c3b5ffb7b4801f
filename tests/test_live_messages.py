"""What travels: golden bytes, strict parsers under mutation, topics, control envelopes."""

from __future__ import annotations

import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptsplit import estimators as est
from adaptsplit.codecs import get_codec
from adaptsplit.device_bridge.control import (
    MAX_CONTROL_BYTES,
    SCHEMAS,
    Connection,
    Event,
    build_control,
    json_schemas,
    parse_control,
)
from adaptsplit.device_bridge.messages import (
    FRAME_HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    Ack,
    FrameMessage,
    Heartbeat,
    Message,
    Result,
    Status,
    parse_message,
)
from adaptsplit.device_bridge.topics import DeviceTopics, device_of, edge_connection, edge_of
from adaptsplit.device_bridge.transport import BrokerAddress, topic_matches
from adaptsplit.errors import ConfigError, MessageError

SESSION = bytes(range(16))
CONTAINER = get_codec("q4c-zstd").encode(np.linspace(-1, 1, 5 * 16 * 16, dtype=np.float32).reshape(5, 16, 16))
MESSAGES: list[Message] = [
    FrameMessage(SESSION, 7, 300, 2, 3, 5_000_001, 180_000, CONTAINER),
    Ack(SESSION, 7, 300),
    Result(SESSION, 7, 300, 0.012, 0.002, 0.75, Status.DONE, bytes(range(16))),
    Result(SESSION, 8, 301, 0.3, 0.3, 0.0, Status.DROPPED, b""),
    Heartbeat(SESSION, 4, 4_000_000),
    Heartbeat(SESSION, 4, 4_000_000, reply=True),
]
GOLDEN = {
    0: "41420101000102030405060708090a0b0c0d0e0f000000070000012c0203000000000000004c4b410002bf203da8855e",
    1: "41420102000102030405060708090a0b0c0d0e0f000000070000012cd25c443d",
    2: "41420103000102030405060708090a0b0c0d0e0f000000070000012c00002ee0000007d03f4000000010"
    "000102030405060708090a0b0c0d0e0f190bc703",
    3: "41420103000102030405060708090a0b0c0d0e0f000000080000012d000493e0000493e000000000010070995af8",
    4: "41420104000102030405060708090a0b0c0d0e0f000000040000000000000000003d09003e44f5fd",
    5: "41420105000102030405060708090a0b0c0d0e0f000000040000000000000000003d090008b6650e",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert parse_message(message.to_bytes()) == message


@pytest.mark.parametrize("i", GOLDEN)
def test_golden_bytes(i: int) -> None:
    assert MESSAGES[i].to_bytes() == bytes.fromhex(GOLDEN[i]) + (CONTAINER if i == 0 else b"")


def test_wire_overhead_is_within_the_simulators_constant() -> None:
    topic = DeviceTopics("default", "device-1").leaf("up")
    mqtt_header = 1 + 2 + 2
    overhead = FRAME_HEADER_BYTES + mqtt_header + len(topic)
    assert overhead == 86
    assert est.OVERHEAD_BYTES - 16 <= overhead <= est.OVERHEAD_BYTES
    beat = len(MESSAGES[4].to_bytes()) + 1 + 1 + 2 + len(DeviceTopics("default", "device-1").leaf("heartbeat"))
    assert est.HEARTBEAT_BYTES - 16 <= beat <= est.HEARTBEAT_BYTES


def test_twelve_thousand_mutations_give_an_error_or_a_message() -> None:
    rng = np.random.default_rng(5)
    wires = [message.to_bytes() for message in MESSAGES]
    refused = 0
    for k in range(12_000):
        data = bytearray(wires[k % len(wires)])
        for _ in range(1 + k % 3):
            at = int(rng.integers(len(data)))
            match int(rng.integers(4)):
                case 0:
                    data[at] ^= 1 << int(rng.integers(8))
                case 1:
                    del data[at:]
                case 2:
                    data[at:at] = rng.bytes(int(rng.integers(1, 9)))
                case 3:
                    data[at : at + 4] = rng.bytes(4)
            data = data or bytearray(b"A")
        try:
            parsed = parse_message(bytes(data))
        except MessageError:
            refused += 1
        else:
            assert parsed.to_bytes() == bytes(data)
    assert refused > 6_000


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_an_error_or_a_message(data: bytes) -> None:
    for candidate in (data, MESSAGES[1].to_bytes()[:4] + data):
        with contextlib.suppress(MessageError):
            assert parse_message(candidate).to_bytes() == candidate


@pytest.mark.parametrize(
    ("i", "old", "new", "says"),
    [
        (1, b"AB", b"AS", "not a message of ours"),
        (1, b"AB\x01", b"AB\x09", "version 9"),
        (1, b"AB\x01\x02", b"AB\x01\x0c", "type 12"),
        (1, SESSION, bytes(16), "checksum"),
    ],
)
def test_what_is_wrong_is_named(i: int, old: bytes, new: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        parse_message(MESSAGES[i].to_bytes().replace(old, new, 1))


def test_sizes_are_bounded() -> None:
    with pytest.raises(MessageError, match="expected 10 to"):
        FrameMessage(SESSION, 0, 0, 0, 0, 0, 0, b"short").to_bytes()
    with pytest.raises(MessageError, match="bytes; a message has"):
        parse_message(MESSAGES[0].to_bytes() + bytes(MAX_MESSAGE_BYTES))


@pytest.mark.parametrize(
    "change",
    [
        {"confidence": math.nan},
        {"confidence": 1.5},
        {"prediction": b""},
        {"queue_s": 5.0},
        {"session": b"x"},
        {"sequence": -1},
        {"frame": 1 << 32},
    ],
)
def test_impossible_results_are_refused(change: dict[str, object]) -> None:
    fields = {name: getattr(MESSAGES[2], name) for name in Result.__slots__} | change
    with pytest.raises(MessageError):
        parse_message(Result(**fields).to_bytes())


# ---- topics -------------------------------------------------------------------------------------------------------


def test_topics_and_their_inverse() -> None:
    topics = DeviceTopics("default", "drone-1")
    assert topics.leaf("up") == "adaptsplit/v1/default/drone-1/up"
    assert device_of(topics.leaf("heartbeat/reply"), "default") == ("drone-1", "heartbeat/reply")
    assert edge_of(edge_connection("default", "e.1"), "default") == "e.1"
    assert topics.leaf("heartbeat/reply").count("/") <= 7
    assert topic_matches(topics.edges, edge_connection("default", "e"))
    assert not topic_matches(topics.edges, topics.leaf("connection"))


@pytest.mark.parametrize("topic", ["", "a/b", "adaptsplit/v1/other/d/up", "adaptsplit/v1/default//up", "x" * 400])
def test_foreign_topics_are_refused(topic: str) -> None:
    with pytest.raises(MessageError):
        device_of(topic, "default")
    with pytest.raises(MessageError):
        edge_of(topic, "default")


@pytest.mark.parametrize("name", ["", "_edge", "a/b", "a+", "#", "x" * 65, "ä"])
def test_bad_ids_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 64"):
        DeviceTopics("default", name)


def test_broker_urls() -> None:
    assert BrokerAddress.parse("mqtt://h:1") == BrokerAddress("h", 1)
    assert BrokerAddress.parse("h") == BrokerAddress("h", 1883)
    secure = BrokerAddress.parse("mqtts://me:p%40ss@h")
    assert (secure.port, secure.user, secure.password, secure.tls) == (8883, "me", "p@ss", True)
    assert "p@ss" not in repr(secure)
    for bad in ("http://h", "mqtt://", "mqtt://h:99999", "mqtt://h/topic"):
        with pytest.raises(ConfigError, match="expected mqtt://HOST:PORT"):
            BrokerAddress.parse(bad)


# ---- control plane ------------------------------------------------------------------------------------------------


def control(**change: object) -> bytes:
    value = json.loads(build_control(Connection(state="ONLINE"), seq=1, session=SESSION, ts_ms=5, mono_ms=1.0))
    return json.dumps(value | change).encode()


def test_a_control_message_survives() -> None:
    envelope, content = parse_control(control(extra={"ignored": 1}))
    assert content == Connection(state="ONLINE")
    assert envelope.session == SESSION.hex()
    event = build_control(Event(kind="link", detail="up"), seq=2, session=SESSION, ts_ms=5, mono_ms=1.0)
    assert parse_control(event)[1] == Event(kind="link", detail="up")


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 30_000, "not JSON"),
        (b"[1]", "control message"),
        (control(mono=math.nan), "NaN is not allowed"),
        (control(mono=math.inf), "Infinity is not allowed"),
        (control(seq=-1), "seq"),
        (control(session="x"), "session"),
        (control(schema="adaptsplit.other/1"), "known: adaptsplit.connection/1"),
        (control(data={"state": "MAYBE"}), "state"),
        (control(data={}), "state"),
        (control(padding="x" * MAX_CONTROL_BYTES), "at most 65536"),
    ],
)
def test_bad_control_messages_are_refused(payload: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        parse_control(payload)


def test_schemas_are_published() -> None:
    schemas = json_schemas()
    assert set(schemas) == {"adaptsplit.envelope/1", *SCHEMAS}
    assert schemas["adaptsplit.envelope/1"]["required"] == ["schema", "seq", "session", "ts", "mono", "data"]
    json.dumps(schemas)
