"""Telemetry of the host: parsers on files by hand, the sampling thread under an injected clock, several sources."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from adaptsplit.device_bridge import host
from adaptsplit.device_bridge.control import State, build_control, parse_control
from adaptsplit.device_bridge.host import HostTelemetry, board_temperature, iw_dbm, other_load, wifi_dbm, wireless_dbm
from adaptsplit.device_bridge.telemetry import (
    UNKNOWN,
    CombinedTelemetry,
    Reading,
    Telemetry,
    open_telemetry,
    state_fields,
)
from adaptsplit.errors import ConfigError, MissingExtraError

# The layout is that of wireless_seq_show in Linux, net/wireless/wext-proc.c; the values are made up.
WIRELESS = """\
Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE
 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22
 wlan0: 0000   48.  -62.  -256        0      0      0      0     58        0
 wlan1: 0000   70.  -41   -256        0      0      0      0      0        0
"""
IW_LINK = """\
Connected to 02:00:00:00:00:01 (on wlan0)
\tSSID: field
\tfreq: 5180
\tsignal: -57 dBm
\ttx bitrate: 433.3 MBit/s
"""


def wait_for(done: Callable[[], bool], timeout_s: float = 5.0) -> None:
    until = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.005)


def test_the_best_of_the_wifi_interfaces_is_read() -> None:
    assert wireless_dbm(WIRELESS) == -41.0


@pytest.mark.parametrize(
    "text",
    ["", "one\ntwo\n", "a\nb\n wlan0 0000 48. -62.\n", "a\nb\n wlan0: 0000 48. x\n", "a\nb\n wlan0: 0000 48. 60.\n"],
)
def test_levels_without_a_known_unit_are_unknown(text: str) -> None:
    assert math.isnan(wireless_dbm(text))


def test_what_iw_prints_is_read() -> None:
    assert iw_dbm(IW_LINK) == -57.0
    assert math.isnan(iw_dbm("Not connected.\n"))
    assert math.isnan(iw_dbm("\tsignal: much dBm\n"))


def test_iw_is_asked_where_the_kernel_has_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wlan0" / "phy80211").mkdir(parents=True)
    (tmp_path / "eth0").mkdir()
    asked: list[str] = []

    def iw(name: str) -> str:
        asked.append(name)
        return IW_LINK

    monkeypatch.setattr(host, "_iw", iw)
    assert wifi_dbm(tmp_path / "absent", tmp_path) == -57.0
    assert asked == ["wlan0"]


def test_an_absent_iw_is_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "wlan0" / "phy80211").mkdir(parents=True)
    assert math.isnan(wifi_dbm(tmp_path / "absent", tmp_path))


def test_own_work_does_not_count_as_load() -> None:
    assert other_load(50.0, 100.0, 4) == pytest.approx(0.25)
    assert other_load(10.0, 100.0, 4) == 0.0
    assert other_load(100.0, 0.0, 1) == 1.0


def sensors(**named: tuple[float | None, ...]) -> dict[str, list[SimpleNamespace]]:
    return {name: [SimpleNamespace(current=value) for value in values] for name, values in named.items()}


def test_the_boards_own_sensor_is_preferred() -> None:
    assert board_temperature(sensors(cpu_thermal=(61.0,), nvme=(80.0,))) == 61.0
    assert board_temperature(sensors(coretemp=(50.0, 58.5), acpitz=(20.0,))) == 58.5
    assert board_temperature(sensors(nvme=(44.0, 46.0))) == 46.0


def test_impossible_temperatures_do_not_count() -> None:
    assert math.isnan(board_temperature(sensors(cpu_thermal=(-273.0, None, 1e6))))
    assert board_temperature(sensors(cpu_thermal=(-256.0,), gpu=(40.0,))) == 40.0
    assert math.isnan(board_temperature({}))


def test_the_real_host_is_read() -> None:
    pytest.importorskip("psutil")
    telemetry = HostTelemetry(period_s=0.05)
    try:
        wait_for(lambda: telemetry.counts["sampled"] >= 2)
        reading = telemetry.read(0.0)
    finally:
        telemetry.close()
    assert 0.0 <= reading.load <= 1.0
    assert math.isnan(reading.battery) or 0.0 <= reading.battery <= 1.0
    assert math.isnan(reading.temperature) or -40.0 <= reading.temperature <= 150.0
    assert math.isnan(reading.signal) or reading.signal < 0.0


def test_reading_never_waits_for_the_probe_and_old_samples_are_unknown() -> None:
    clock, release, sample = [100.0], threading.Event(), Reading(0.5, 0.25, 40.0, -60.0)
    calls: list[int] = []

    def probe() -> Reading:
        calls.append(1)
        if len(calls) > 1:
            release.wait(5.0)
        return sample

    telemetry = HostTelemetry(probe, period_s=0.001, clock=lambda: clock[0])
    try:
        wait_for(lambda: len(calls) > 1)
        assert telemetry.read(0.0) == sample
        clock[0] += 5.0
        assert telemetry.read(0.0) == sample
        clock[0] += 0.001
        begun = time.perf_counter()
        assert telemetry.read(0.0) is UNKNOWN
        assert time.perf_counter() - begun < 0.1
    finally:
        release.set()
        telemetry.close()


def test_a_failing_probe_is_counted_and_tried_again() -> None:
    calls: list[int] = []

    def probe() -> Reading:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("the sensor is busy")
        return Reading(battery=0.9)

    telemetry = HostTelemetry(probe, period_s=0.001)
    try:
        wait_for(lambda: telemetry.counts["sampled"] > 0)
        assert telemetry.counts["failed"] == 2
        assert telemetry.read(0.0).battery == 0.9
    finally:
        telemetry.close()
    assert not any(thread.name == "telemetry-host" for thread in threading.enumerate())


def test_without_psutil_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    with pytest.raises(MissingExtraError, match=r"psutil.*pip install 'adaptsplit\[device\]'"):
        open_telemetry("host")


def test_of_several_sources_the_first_that_knows_counts() -> None:
    first, second = Telemetry(100.0, 0.5), Telemetry(1000.0, 1.0, signal_dbm=[-80.0])
    both = CombinedTelemetry([first, second])
    assert both.read(0.0)[0] == 0.5
    assert both.read(0.0).signal == -80.0
    assert math.isnan(both.read(0.0).load)
    both.spend(50.0)
    assert both.read(0.0).battery == 0.0
    assert second.read(0.0).battery == pytest.approx(0.95)
    both.close()


def test_a_model_is_opened_by_its_file(tmp_path: Path) -> None:
    Telemetry(1000.0, 0.5).save(tmp_path / "a+b.json")
    assert open_telemetry(str(tmp_path / "a+b.json")).read(0.0).battery == 0.5


def test_unknown_sources_are_refused_with_the_forms() -> None:
    with pytest.raises(ConfigError, match=r"telemetry 'gps'; expected host, mavlink:URL"):
        open_telemetry("gps")


def test_the_state_message_tells_what_is_known_and_nothing_else() -> None:
    known = state_fields(Reading(battery=0.5, signal=-70.0), {"latitude_deg": 47.4, "heading_deg": 12.0})
    link = {"goodput_bps": 1e6, "rtt_s": 0.05, "unacked": 0, "edge": "online", "paths": {}}
    state = State.model_validate({"frame": 3, "controller": "dqn", "decision": "x", **link, **known})
    payload = build_control(state, seq=1, session=bytes(16), ts_ms=0, mono_ms=0.0)
    sent = json.loads(payload)["data"]
    assert (sent["battery"], sent["signal_dbm"], sent["latitude_deg"]) == (0.5, -70.0, 47.4)
    assert not {"load", "temperature_c", "longitude_deg", "altitude_m", "heading_deg"} & sent.keys()
    assert parse_control(payload)[1] == state
