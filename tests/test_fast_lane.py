"""The fast lane beside paho: framing at every cut, what is left for paho, back-pressure, errors, and real brokers."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure_cases import ONE, make_fleet, secure

from adaptsplit.device_bridge.broker import EmbeddedBroker, find_mosquitto
from adaptsplit.device_bridge.fast_lane import MAX_HEADS, MAX_UNSENT_BYTES, FastLane, Waker
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.packets import MAX_PACKET_BYTES, body_of, packet, publish_packet, text
from adaptsplit.device_bridge.transport import BrokerAddress

QOS1 = packet(0x32, text("a/b") + b"\0\7" + b"once")
RETAINED = packet(0x31, text("a/b") + b"kept")
PINGRESP = packet(0xD0, b"")


class Ends:
    """A lane on one end of a socket pair, the other end, and what was delivered."""

    def __init__(self, mqtt5: bool = False, send_buffer: int | None = None) -> None:
        self.peer, mine = socket.socketpair()
        if send_buffer is not None:
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.got: list[tuple[bytes, bytes]] = []
        self.waker = Waker()
        self.lane = FastLane(mine, mqtt5, lambda topic, payload: self.got.append((topic, payload)), self.waker)
        self.lane.setblocking(False)

    def feed(self, data: bytes) -> None:
        """Let the lane read ``data``."""
        self.peer.sendall(data)
        self.lane.fill()

    def for_paho(self) -> bytes:
        """Return what is left for paho."""
        found = bytearray()
        while self.lane.news:
            piece = self.lane.recv(3)  # paho reads in small pieces
            if not piece:
                break
            found += piece
        return bytes(found)

    def heard(self, size: int) -> bytes:
        """Return ``size`` bytes that the lane has written."""
        found = bytearray()
        while len(found) < size:
            found += self.peer.recv(size - len(found))
        return bytes(found)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.lane.close()
    made.peer.close()
    made.waker.close()


def test_messages_at_qos_0_are_delivered_and_the_rest_is_paho_s(ends: Ends) -> None:
    ends.feed(publish_packet("a/b", b"one") + publish_packet("c", b"") + QOS1 + RETAINED + PINGRESP)
    assert ends.got == [(b"a/b", b"one"), (b"c", b"")]
    assert ends.for_paho() == QOS1 + RETAINED + PINGRESP
    with pytest.raises(BlockingIOError):
        ends.lane.recv(1)


def test_no_message_overtakes_what_paho_has_not_read(ends: Ends) -> None:
    """A SUBACK and the first message that it lets through come in one read: paho is told of both, in their order."""
    suback, message = packet(0x90, b"\0\1\0"), publish_packet("a/b", b"one")
    ends.feed(suback + message)
    assert ends.got == []
    assert ends.for_paho() == suback + message
    ends.feed(message)
    assert ends.got == [(b"a/b", b"one")]


PIECES = st.one_of(
    st.tuples(st.sampled_from(["a", "a/b", "drone-7/up"]), st.binary(max_size=400)).map(lambda m: publish_packet(*m)),
    st.sampled_from([QOS1, RETAINED, PINGRESP]),
)


@given(st.lists(PIECES, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_a_stream_in_any_pieces_is_told_whole_and_in_its_order(pieces: list[bytes], chance: random.Random) -> None:
    ends, stream, at, told = Ends(), b"".join(pieces), 0, bytearray()
    ends.lane._deliver = lambda topic, payload: told.extend(publish_packet(topic.decode(), payload))
    try:
        while at < len(stream):
            size = chance.randint(1, 600)
            ends.feed(stream[at : at + size])
            told += ends.for_paho()
            at += size
        assert bytes(told) == stream
    finally:
        ends.lane.close()
        ends.peer.close()
        ends.waker.close()


def test_a_stream_may_be_cut_anywhere(ends: Ends) -> None:
    first, last = publish_packet("a/b", bytes(200)), publish_packet("c", b"x")
    stream = first + QOS1 + last
    for cut in range(1, len(stream)):
        ends.got.clear()
        ends.feed(stream[:cut])
        early = ends.for_paho()
        ends.feed(stream[cut:])
        assert ends.got[0] == (b"a/b", bytes(200))
        told = early + ends.for_paho()
        assert told == QOS1 + (b"" if ends.got[1:] else last)  # beside paho once the one before has been read


def test_a_message_larger_than_a_read_arrives_whole(ends: Ends) -> None:
    payload = bytes(range(256)) * 12_000  # 3 MB, in pieces of what the system takes
    sender = threading.Thread(target=ends.peer.sendall, args=(publish_packet("big", payload),))
    sender.start()
    while not ends.got:
        ends.lane.fill()
    sender.join()
    assert ends.got == [(b"big", payload)]


@pytest.mark.parametrize(
    ("properties", "payload"),
    [(b"", b"plain"), (b"\x23\0\1", b"alias"), (b"\x26\0\1k\0\1v" * 30, b"long"), (b"\x02\0\0\0\1", b"")],
)
def test_properties_of_mqtt_5_are_passed_over(properties: bytes, payload: bytes) -> None:
    ends = Ends(mqtt5=True)
    length = packet(0, properties)[1 : -len(properties) or None]
    ends.feed(packet(0x30, text("a/b") + length + properties + payload))
    assert ends.got == [(b"a/b", payload)]
    ends.lane.publish("a", b"z")
    assert ends.heard(7) == b"\x30\x05\0\1a\0z"
    ends.lane.close()
    ends.peer.close()
    ends.waker.close()


@pytest.mark.parametrize(
    "body", [b"", b"\0", b"\0\0payload", b"\0\x09short", b"\xff\xff"], ids=["empty", "half", "alias", "beyond", "far"]
)
@pytest.mark.parametrize("mqtt5", [False, True])
def test_a_malformed_message_is_left_for_paho_to_judge(body: bytes, mqtt5: bool) -> None:
    ends = Ends(mqtt5)
    ends.feed(packet(0x30, body) + PINGRESP)
    assert ends.got == []
    assert ends.for_paho() == packet(0x30, body) + PINGRESP
    ends.lane.close()
    ends.peer.close()
    ends.waker.close()


@pytest.mark.parametrize("properties", [b"\xff\xff\xff\xff\xff", b"\x80", b"\x05abc", b"\xff\xff\xff\x7f"])
def test_malformed_properties_are_left_for_paho_to_judge(properties: bytes) -> None:
    ends, message = Ends(mqtt5=True), packet(0x30, text("a/b") + properties)
    ends.feed(message + PINGRESP)
    assert ends.got == []
    assert ends.for_paho() == message + PINGRESP
    ends.lane.close()
    ends.peer.close()
    ends.waker.close()


@pytest.mark.parametrize(
    ("stream", "why"),
    [(b"\x30\xff\xff\xff\xff\x7f", "malformed"), (b"\x30\xff\xff\xff\x7f", "268435455 bytes; at most 16777216")],
)
def test_lengths_that_nobody_sends_end_the_connection(ends: Ends, stream: bytes, why: str) -> None:
    ends.feed(stream)
    assert ends.lane.news
    with pytest.raises(OSError, match=why):
        ends.lane.recv(1)
    assert not ends.lane.publish("a", b"")


def test_the_largest_packet_is_taken() -> None:
    assert body_of(packet(0x30, bytes(MAX_PACKET_BYTES))[:5], 0) == (5, 5 + MAX_PACKET_BYTES)


def test_a_hundred_thousand_damaged_streams_neither_crash_nor_hang() -> None:
    """As a broker gone wrong would send them; each ends in deliveries, bytes for paho, or an OSError kept for it."""
    chance = random.Random(7)
    whole = publish_packet("a/b", bytes(40)) + QOS1 + publish_packet("c", b"x") + PINGRESP
    lanes = {mqtt5: Ends(mqtt5) for mqtt5 in (False, True)}
    errors = 0
    for turn in range(100_000):
        ends, stream = lanes[bool(turn % 2)], bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            stream[chance.randrange(len(stream))] = chance.randrange(256)
        if turn % 10 == 0:
            stream[(at := chance.randrange(len(stream))) : at] = b"\xff" * chance.randint(2, 6)
        data = bytes(stream[: chance.randint(1, len(stream))])
        ends.got.clear()
        try:
            ends.lane._split(data)
        except OSError:
            errors += 1
        used = sum(len(topic) + len(payload) for topic, payload in ends.got)
        assert used + len(ends.lane._for_paho) + len(ends.lane._rest) <= len(data)
        ends.lane._for_paho.clear()
        ends.lane._rest.clear()
    assert 100 < errors < 50_000
    for ends in lanes.values():
        ends.lane.close()
        ends.peer.close()
        ends.waker.close()


# ---- writing ----


@pytest.mark.parametrize("size", [0, 1, 122, 123, 16_378, 16_379, 70_000, 2_097_147])
def test_what_is_published_is_what_mqtt_writes(ends: Ends, size: int) -> None:
    expected = publish_packet("a/b", bytes(size))
    assert ends.lane.publish("a/b", bytes(size))
    found = bytearray()
    while len(found) < len(expected):
        found += ends.peer.recv(1 << 20)
        ends.lane.flush()
    assert bytes(found) == expected
    assert not ends.lane.unsent


def test_a_full_socket_leaves_whole_packets_waiting_then_refuses() -> None:
    ends = Ends(send_buffer=4096)
    payload, taken = bytes(100_000), 0
    while ends.lane.publish("a", payload):
        taken += 1
    assert ends.lane.unsent
    assert MAX_UNSENT_BYTES - 200_000 < taken * 100_000 < MAX_UNSENT_BYTES + 400_000
    assert ends.lane.send(PINGRESP) == len(PINGRESP)  # paho's packets are few, and always taken whole
    expected = publish_packet("a", payload) * taken + PINGRESP
    reader: list[bytes] = []
    thread = threading.Thread(target=lambda: reader.append(ends.heard(len(expected))))
    thread.start()
    while thread.is_alive():
        ends.lane.flush()
        time.sleep(0)
    assert reader == [expected]
    assert ends.lane.publish("a", payload)
    ends.lane.close()
    ends.peer.close()
    ends.waker.close()


def test_packets_of_many_threads_do_not_mix(ends: Ends) -> None:
    def speak(name: int) -> None:
        for k in range(200):
            assert ends.lane.publish(f"t{name}", bytes([name]) * (k * 7 % 900))

    speakers = [threading.Thread(target=speak, args=(name,)) for name in range(4)]
    other = Ends()
    for speaker in speakers:
        speaker.start()
    while any(speaker.is_alive() for speaker in speakers) or ends.lane.unsent or len(other.got) < 800:
        ends.lane.flush()
        other.feed(ends.peer.recv(1 << 16))
    for name in range(4):
        assert [len(p) for t, p in other.got if t == b"t%d" % name] == [k * 7 % 900 for k in range(200)]
    assert all(set(payload) <= {int(topic[1:])} for topic, payload in other.got)
    other.lane.close()
    other.peer.close()
    other.waker.close()


class Counting:
    """A socket whose writes are counted."""

    def __init__(self, raw: Any) -> None:
        self.raw, self.sends = raw, 0

    def send(self, data: bytearray) -> int:
        self.sends += 1
        return int(self.raw.send(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def test_answers_given_while_reading_leave_together(ends: Ends) -> None:
    ends.lane.raw = counting = Counting(ends.lane.raw)
    ends.lane._deliver = lambda topic, payload: ends.lane.publish("re", payload) and None
    ends.feed(publish_packet("a", b"1") * 20)
    assert ends.heard(20 * 7) == publish_packet("re", b"1") * 20
    assert counting.sends == 1


def test_topics_that_are_remembered_are_bounded(ends: Ends) -> None:
    for k in range(MAX_HEADS + 10):
        ends.lane.publish(f"t/{k}", b"")
        if k % 500 == 0:
            ends.peer.recv(1 << 20)
    assert len(ends.lane._heads) <= MAX_HEADS


def test_the_end_and_errors_reach_paho(ends: Ends) -> None:
    ends.peer.close()
    ends.lane.fill()
    assert ends.lane.news
    assert ends.lane.recv(1) == b""
    for _ in range(3):  # the first write to a peer that is gone may pass
        ends.lane.publish("a", b"x")
    assert not ends.lane.publish("a", b"x")
    with pytest.raises(OSError, match=r"[Bb]roken pipe|reset"):
        ends.lane.recv(1)


# ---- in a transport, on real brokers ----


@pytest.fixture(scope="module", params=["amqtt", "mosquitto"])
def broker(request: pytest.FixtureRequest) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(backend=request.param) as running:
        yield running


@pytest.mark.parametrize("mqtt5", [False, True])
def test_both_lanes_bring_every_message_once(broker: EmbeddedBroker, mqtt5: bool) -> None:
    address, got = BrokerAddress.parse(broker.url), []
    where = f"lanes/{mqtt5}"
    listener = MqttTransport(address, f"l{mqtt5}", [where], lambda t, p: got.append(p), qos=1, mqtt5=mqtt5)
    speaker = MqttTransport(address, f"s{mqtt5}", [], lambda t, p: None, mqtt5=mqtt5)
    try:
        for link in (listener, speaker):
            link.wait_connected(10.0)
        said = [b"%d" % k + bytes(k * 37 % 3000) for k in range(300)]
        for k, payload in enumerate(said):
            assert speaker.publish(where, payload, qos=k % 2)
            time.sleep(0.001)
        until = time.monotonic() + 10.0
        while len(got) < len(said) and time.monotonic() < until:
            time.sleep(0.01)
        assert sorted(got) == sorted(said)
        assert [payload for payload in got if payload in said[::2]] == said[::2]  # each lane keeps its order
        assert not listener.counts["callback_errors"]
    finally:
        speaker.close()
        listener.close()
    assert not listener._thread.is_alive()


def test_a_connection_whose_only_traffic_passes_beside_paho_stays_up() -> None:
    """Paho does not see these messages; its keep-alive of 4 s must neither cut the line nor be forgotten."""
    with EmbeddedBroker() as broker:
        address, got = BrokerAddress.parse(broker.url), []
        link = MqttTransport(address, "alive", ["alive"], lambda t, p: got.append(p), mqtt5=False)
        try:
            link.wait_connected(10.0)
            for _ in range(55):
                assert link.publish("alive", b"x")
                time.sleep(0.1)
            link.publish("alive", b"last")
            time.sleep(5.0)  # silence for longer than the keep-alive: now paho pings
            assert link.publish("alive", b"again")
            until = time.monotonic() + 5.0
            while len(got) < 57 and time.monotonic() < until:
                time.sleep(0.01)
            assert got == [b"x"] * 55 + [b"last", b"again"]
            assert link.counts["connected"] == 1
        finally:
            link.close()


@pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")
def test_over_tls_messages_of_many_threads_arrive_whole(tmp_path: Path) -> None:
    """OpenSSL allows one thread at a time: all writing is the network thread's, and callers only wake it."""
    folder = make_fleet(tmp_path / "farm")
    got: list[bytes] = []
    with EmbeddedBroker(secure=folder) as running:
        edge = MqttTransport(
            secure(running, folder, "edge-1"), "e", [ONE.leaf("up")], lambda t, p: got.append(p), mqtt5=False
        )
        device = MqttTransport(
            secure(running, folder, "device-1"), "d", [], lambda t, p: None, send_buffer=16 * 1024, mqtt5=False
        )
        try:
            for link in (edge, device):
                link.wait_connected(10.0)

            def speak(name: int) -> None:
                for k in range(60):
                    while not device.publish(ONE.leaf("up"), bytes([name, k]) * (k * 499)):
                        time.sleep(0.002)

            speakers = [threading.Thread(target=speak, args=(name,)) for name in range(4)]
            for speaker in speakers:
                speaker.start()
            for speaker in speakers:
                speaker.join(30.0)
            until = time.monotonic() + 20.0
            while len(got) < 240 and time.monotonic() < until:
                time.sleep(0.01)
            assert sorted(got) == sorted(bytes([name, k]) * (k * 499) for name in range(4) for k in range(60))
            assert device.counts["connected"] == edge.counts["connected"] == 1
        finally:
            device.close()
            edge.close()
