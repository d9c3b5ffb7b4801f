"""MAVLink: the table against pymavlink's definitions, each message by hand, a simulated vehicle, hostile bytes."""

from __future__ import annotations

import functools
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adaptsplit.device_bridge.mavlink import Decoder, MavlinkTelemetry
from adaptsplit.device_bridge.mavlink_fields import LAYOUTS, STALE_S, TABLE, Vehicle, decode_layout
from adaptsplit.device_bridge.mavlink_links import Address
from adaptsplit.device_bridge.mavlink_vehicle import SimulatedVehicle
from adaptsplit.device_bridge.telemetry import open_telemetry
from adaptsplit.errors import ConfigError, MissingExtraError

common = pytest.importorskip("pymavlink.dialects.v20.common", reason="needs the extra mavlink")

SCALES = {
    "": 1.0,
    "%": 0.01,
    "d%": 0.001,
    "c%": 1e-4,
    "cA": 0.01,
    "cm/s": 0.01,
    "cdeg": 0.01,
    "mm": 1e-3,
    "degE7": 1e-7,
}
TYPES = {"Q": "uint64_t", "I": "uint32_t", "H": "uint16_t", "B": "uint8_t"}


def wait_for(done: Callable[[], bool], timeout_s: float = 5.0) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture
def telemetry() -> Iterator[MavlinkTelemetry]:
    source = MavlinkTelemetry("udp:127.0.0.1:0?radio=sik")
    yield source
    source.close()


# ---- the table ----


def test_units_and_fields_are_those_of_the_message_definitions() -> None:
    known = {message.msgname: message for message in common.mavlink_map.values()}
    own = {layout.name: layout.fields for layout in LAYOUTS.values()}
    for row in TABLE:
        assert row.scale == SCALES.get(row.unit, 1.0), row
        if row.message in own:
            assert row.field in own[row.message]
            continue
        assert row.field in known[row.message].fieldnames
        assert known[row.message].fieldunits_by_name.get(row.field, "") == row.unit, row
    assert len({row.name for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("message_id", sorted(LAYOUTS))
def test_crc_extra_of_our_own_layouts_follows_from_their_fields(message_id: int) -> None:
    """The rule of mavlink.io/en/guide/serialization: CRC of name and of each field's type and name, folded."""
    layout = LAYOUTS[message_id]
    text = layout.name + " "
    for kind, name in zip(layout.wire[1:], layout.fields, strict=True):
        text += f"{TYPES[kind]} {name} "
    crc = common.x25crc(text.encode()).crc
    assert (crc & 0xFF) ^ (crc >> 8) == layout.crc_extra


# ---- one vehicle, message by message ----

HEARTBEAT = SimpleNamespace(autopilot=12, base_mode=128 | 1)


def heard(*messages: tuple[str, dict[str, Any]], now: float = 0.0) -> dict[str, float]:
    vehicle = Vehicle()
    vehicle.take("HEARTBEAT", HEARTBEAT, 1, now)
    for name, fields in messages:
        full = {row.field: row.unknown or 0 for row in TABLE if row.message == name}
        vehicle.take(name, _fields(full, fields), 1, now)
    return vehicle.values(now)


def _fields(full: dict[str, Any], given: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**{"id": 0, "battery_function": 1} | full | given)


def test_battery_comes_in_per_cent_and_minus_one_is_unknown() -> None:
    values = heard(("BATTERY_STATUS", {"battery_remaining": 73, "current_battery": 1250, "time_remaining": 600}))
    assert values["battery"] == pytest.approx(0.73)
    assert values["battery_current_a"] == pytest.approx(12.5)
    assert values["battery_left_s"] == 600
    assert values["armed"] == 1.0
    nothing = heard(("BATTERY_STATUS", {"battery_remaining": -1, "current_battery": -1, "time_remaining": 0}))
    assert set(nothing) == {"armed"}


def test_of_several_packs_the_emptiest_counts_and_the_cameras_does_not() -> None:
    packs = [("BATTERY_STATUS", {"id": i, "battery_remaining": r}) for i, r in ((0, 80), (1, 55))]
    camera = ("BATTERY_STATUS", {"id": 2, "battery_remaining": 5, "battery_function": 4})
    assert heard(*packs, camera)["battery"] == pytest.approx(0.55)


def test_position_and_link_come_in_si_units() -> None:
    where = {
        "lat": 473977000,
        "lon": -85456000,
        "alt": 518000,
        "relative_alt": 30000,
        "vx": 300,
        "vy": -400,
        "hdg": 9000,
    }
    values = heard(("GLOBAL_POSITION_INT", where), ("SYS_STATUS", {"load": 310, "drop_rate_comm": 150}))
    assert values["latitude_deg"] == pytest.approx(47.3977)
    assert values["longitude_deg"] == pytest.approx(-8.5456)
    assert (values["altitude_m"], values["height_m"]) == (518.0, 30.0)
    assert values["speed_m_s"] == pytest.approx(5.0)
    assert values["heading_deg"] == pytest.approx(90.0)
    assert values["autopilot_load"] == pytest.approx(0.31)
    assert values["comm_drop_rate"] == pytest.approx(0.015)


def test_values_grow_stale() -> None:
    vehicle = Vehicle()
    vehicle.take("HEARTBEAT", HEARTBEAT, 1, 10.0)
    assert vehicle.values(10.0 + STALE_S) == {"armed": 1.0}
    assert vehicle.values(10.001 + STALE_S) == {}


def test_only_the_vehicle_itself_is_believed() -> None:
    """A ground station's heartbeat is none, another vehicle waits until the first has been silent."""
    vehicle, status = Vehicle(), _fields({row.field: 0 for row in TABLE if row.message == "SYS_STATUS"}, {})
    assert not vehicle.take("SYS_STATUS", status, 1, 0.0)
    assert not vehicle.take("HEARTBEAT", SimpleNamespace(autopilot=8, base_mode=0), 255, 0.0)
    assert vehicle.take("HEARTBEAT", HEARTBEAT, 7, 0.0)
    assert not vehicle.take("HEARTBEAT", HEARTBEAT, 9, 1.0)
    assert not vehicle.take("SYS_STATUS", status, 9, 1.0)
    assert vehicle.take("SYS_STATUS", status, 7, 1.0)
    assert vehicle.take("HEARTBEAT", HEARTBEAT, 9, 6.0)
    assert vehicle.take("SYS_STATUS", status, 9, 6.0)
    named = Vehicle(system=3)
    assert not named.take("HEARTBEAT", HEARTBEAT, 1, 100.0)
    assert named.take("HEARTBEAT", HEARTBEAT, 3, 100.0)


def test_numbers_that_cannot_be_do_not_count() -> None:
    values = heard(
        ("SYS_STATUS", {"load": 5000, "battery_remaining": 120}), ("ATTITUDE", {"yawspeed": math.nan, "rollspeed": 0.5})
    )
    assert "autopilot_load" not in values
    assert "battery_system" not in values
    assert "yaw_rate_rad_s" not in values
    assert values["roll_rate_rad_s"] == 0.5


def test_payloads_cut_short_and_made_longer_are_read() -> None:
    short = decode_layout(8, b"\x01")
    assert short is not None
    assert (short.timestamp, short.tx_buf) == (1, 0)
    longer = decode_layout(334, bytes([0, 0, 0, 0, 0, 0, 9, 0, 4, 60]) + bytes(40))
    assert longer is not None
    assert longer.quality == 60
    assert decode_layout(1, b"") is None


# ---- a simulated vehicle over UDP ----


def send(packets: list[bytes], port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for packet in packets:
            sender.sendto(packet, ("127.0.0.1", port))


def test_a_simulated_vehicle_is_heard_on_loopback(telemetry: MavlinkTelemetry) -> None:
    vehicle = SimulatedVehicle()
    send(vehicle.packets(0) + vehicle.packets(1), telemetry.port)
    wait_for(lambda: "yaw_rate_rad_s" in telemetry.details() and "link_messages_lost" in telemetry.details())
    reading, details = telemetry.read(0.0), telemetry.details()
    assert reading.battery == pytest.approx(0.95)
    assert reading.signal == pytest.approx(190 / 1.9 - 127)  # -27 dBm: rssi 130 + 60 at the start
    assert math.isnan(reading.load)
    assert math.isnan(reading.temperature)
    assert details["autopilot_load"] == pytest.approx(0.31)
    assert details["height_m"] == 30.0
    assert details["speed_m_s"] == pytest.approx(2 * math.pi * 100 / 60, abs=0.01)
    assert details["link_messages_lost"] == 11
    assert details["link_tx_buffer_free"] == pytest.approx(0.8)
    assert details["landed_state"] == 2


def test_the_vehicle_is_the_same_every_time() -> None:
    one, other = SimulatedVehicle(), SimulatedVehicle()
    assert [one.packets(k) for k in range(9)] == [other.packets(k) for k in range(9)]


def test_its_process_flies_and_ends(telemetry: MavlinkTelemetry) -> None:
    to = ["--to", f"127.0.0.1:{telemetry.port}", "--seconds", "0.5", "--rate", "10"]
    command = [sys.executable, "-m", "adaptsplit.device_bridge.mavlink_vehicle", *to]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert '"packets": 16' in done.stdout  # 5 steps of two, and six once
    wait_for(lambda: telemetry.counts["messages"] == 16)


def test_a_silent_vehicle_is_unknown_after_its_age_limit() -> None:
    clock = [50.0]
    source = MavlinkTelemetry("udp:127.0.0.1:0?radio=sik&stale=2", clock=lambda: clock[0])
    try:
        send(SimulatedVehicle().packets(0), source.port)
        wait_for(lambda: source.counts["messages"] == 8)
        clock[0] += 1.0
        assert source.read(0.0).battery == pytest.approx(0.95)
        clock[0] += 1.1
        assert all(math.isnan(value) for value in source.read(0.0))
        assert source.details() == {}
    finally:
        source.close()


def test_nothing_is_ever_sent_to_the_vehicle(telemetry: MavlinkTelemetry) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as vehicle:
        vehicle.bind(("127.0.0.1", 0))
        for packet in SimulatedVehicle().packets(0):
            vehicle.sendto(packet, ("127.0.0.1", telemetry.port))
        wait_for(lambda: telemetry.counts["messages"] == 8)
        vehicle.settimeout(0.3)
        with pytest.raises(TimeoutError):
            vehicle.recv(100)


def test_vehicle_over_host() -> None:
    pytest.importorskip("psutil")
    source = open_telemetry("mavlink:udp:127.0.0.1:0+host")
    try:
        wait_for(lambda: source.read(0.0).load == source.read(0.0).load)
    finally:
        source.close()


def test_a_radio_that_is_not_named_gives_no_signal() -> None:
    source = MavlinkTelemetry("udp:127.0.0.1:0")
    try:
        send(SimulatedVehicle().packets(0), source.port)
        wait_for(lambda: "radio_rssi" in source.details())
        assert math.isnan(source.read(0.0).signal)
        assert source.details()["radio_rssi"] == 190
    finally:
        source.close()


# ---- other ways to it ----


def test_a_serial_line_is_read() -> None:
    """A pseudo-terminal stands in for the line; the stream is cut at odd places."""
    vehicle_end, device_end = os.openpty()
    source = MavlinkTelemetry(f"serial:{os.ttyname(device_end)}:57600?radio=elrs")
    stream = b"".join(SimulatedVehicle().packets(0))
    try:
        for start in range(0, len(stream), 7):
            os.write(vehicle_end, stream[start : start + 7])
        wait_for(lambda: source.counts["messages"] == 8)
        assert source.read(0.0).battery == pytest.approx(0.95)
        assert source.read(0.0).signal == -186.0 + 0.0  # ExpressLRS gives -dBm in remrssi: 190 - 4
    finally:
        source.close()
        os.close(vehicle_end)
        os.close(device_end)


def test_a_tcp_peer_may_come_late_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptsplit.device_bridge.mavlink.RETRY_S", 0.05)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = MavlinkTelemetry(f"tcp:127.0.0.1:{port}")
    try:
        with socket.create_server(("127.0.0.1", port)) as server:
            for wanted in (8, 16):
                peer, _ = server.accept()
                with peer:
                    peer.sendall(b"".join(SimulatedVehicle().packets(0)))
                    wait_for(functools.partial(lambda least: source.counts["messages"] >= least, wanted))
    finally:
        source.close()
    assert not any(thread.name == "telemetry-mavlink" for thread in threading.enumerate())


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("14550", "expected udp:HOST:PORT"),
        ("udp:127.0.0.1", "expected udp:HOST:PORT"),
        ("udp:127.0.0.1:70000", "port 70000; expected 0 to 65535"),
        ("serial:/dev/ttyAMA0:12345", "baud rate 12345"),
        ("udp:127.0.0.1:0?radio=loud", "radio 'loud'; expected one of none, sik, elrs"),
        ("udp:127.0.0.1:0?system=0", "system '0'; expected 1 to 255"),
        ("udp:127.0.0.1:0?stale=nan", "stale 'nan'; expected an age in s"),
        ("udp:127.0.0.1:0?speed=9", "option 'speed'; expected radio, system or stale"),
    ],
)
def test_addresses_and_options_are_checked(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MavlinkTelemetry(text)


def test_a_taken_port_is_told_at_once(telemetry: MavlinkTelemetry) -> None:
    with pytest.raises(ConfigError, match="name a free port"):
        MavlinkTelemetry(f"udp:127.0.0.1:{telemetry.port}")


def test_a_file_is_no_serial_line(tmp_path: Path) -> None:
    (tmp_path / "line").write_bytes(b"")
    with pytest.raises(OSError, match="not a serial line"):
        Address.parse(f"serial:{tmp_path / 'line'}:57600").open()


def test_without_pymavlink_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymavlink.dialects.v20", None)
    with pytest.raises(MissingExtraError, match=r"pymavlink.*pip install 'adaptsplit\[mavlink\]'"):
        MavlinkTelemetry("udp:127.0.0.1:0")


@pytest.mark.parametrize("whole", [True, False])
def test_hostile_bytes_stop_nothing(whole: bool) -> None:
    """Mutated packets and noise: no exception, and the next good datagram is understood."""
    rng, vehicle, decoder, state = np.random.default_rng(5), SimulatedVehicle(), Decoder(), Vehicle()
    packets = [packet for k in range(4) for packet in vehicle.packets(k)]
    for count in range(4000):
        packet = bytearray(packets[count % len(packets)])
        for place in rng.integers(0, len(packet), rng.integers(1, 4)):
            packet[place] = rng.integers(0, 256)
        cut = int(rng.integers(1, len(packet) + 1)) if count % 3 else len(packet)
        for name, fields, system in decoder.feed(bytes(packet[:cut]), whole):
            state.take(name, fields, system, count * 0.01)
        state.values(count * 0.01)
    assert decoder.counts["bad_data"] > 100
    assert decoder.counts["parser_failed"] == 0
    decoder.feed(bytes(600), whole)
    names = [name for packet in vehicle.packets(0) for name, _, _ in decoder.feed(packet, whole)]
    assert "BATTERY_STATUS" in names
    assert "LINK_NODE_STATUS" in names


def test_a_flood_of_noise_does_not_stop_the_thread(telemetry: MavlinkTelemetry) -> None:
    rng = np.random.default_rng(1)
    send([rng.bytes(1400) for _ in range(200)], telemetry.port)
    send([b"\xfd" * 300] * 50, telemetry.port)

    def understood() -> bool:  # the system may have dropped what came while its buffer was full of noise
        send(SimulatedVehicle().packets(0), telemetry.port)
        return telemetry.read(0.0).battery == pytest.approx(0.95)

    wait_for(understood)
    assert telemetry.counts["bad_data"] > 100
    assert telemetry.counts["source_failed"] == 0
