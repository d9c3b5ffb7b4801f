"""A simulated vehicle for tests and demonstrations: ``python -m adaptsplit.device_bridge.mavlink_vehicle``.

It sends to one UDP address what an autopilot and its telemetry radio send, and hears nothing. What it sends is a
function of the step's number alone: it flies a circle of 100 m around 47.3977 N, 8.5456 E (the home position of PX4's
simulators), its battery sinks from 95 % by 1 % in 10 s, its radio fades over the circle.
"""

from __future__ import annotations

import argparse
import math
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from adaptsplit.device_bridge.mavlink_fields import LAYOUTS
from adaptsplit.device_bridge.process import announce, run_main
from adaptsplit.errors import ConfigError, MissingExtraError, RunError

LATITUDE_DEG, LONGITUDE_DEG, ALTITUDE_M, HEIGHT_M = 47.3977, 8.5456, 488.0, 30.0
RADIUS_M, LAP_S = 100.0, 60.0
_METRES_PER_DEGREE = 111_320.0  # of latitude, and of longitude at the equator
_RADIO_SYSTEM, _RADIO_COMPONENT = 51, 68  # as SiK radios name themselves


class SimulatedVehicle:
    """Makes the packets of step k; ``rate_hz`` steps a second."""

    def __init__(self, system: int = 1, rate_hz: float = 4.0) -> None:
        try:
            from pymavlink.dialects.v20 import common
        except ImportError as missing:
            raise MissingExtraError("pymavlink", "mavlink") from missing
        self._dialect: Any = common
        self._rate_hz = rate_hz
        self._autopilot = common.MAVLink(None, srcSystem=system, srcComponent=1)
        self._radio = common.MAVLink(None, srcSystem=_RADIO_SYSTEM, srcComponent=_RADIO_COMPONENT)

    def packets(self, step: int) -> list[bytes]:
        """Return what is sent at ``step``: position each time, the rest once a second."""
        seconds = step / self._rate_hz
        sent = [self._position(seconds), self._attitude(seconds)]
        if step % max(round(self._rate_hz), 1) == 0:
            sent += [self._heartbeat(), self._system_status(seconds), self._battery(seconds), self._landed()]
            sent += [self._radio_status(seconds), self._link_status(seconds)]
        return sent

    def charge(self, seconds: float) -> int:
        """Return the battery's charge, %."""
        return max(95 - int(seconds / 10.0), 5)

    def rssi(self, seconds: float) -> int:
        """Return the radio's signal as SiK radios scale it."""
        return round(130.0 + 60.0 * math.cos(2.0 * math.pi * seconds / LAP_S))

    def _pack(self, message: Any, sender: Any) -> bytes:
        packet = bytes(message.pack(sender))
        sender.seq = (sender.seq + 1) % 256
        return packet

    def _heartbeat(self) -> bytes:
        d = self._dialect
        mode = d.MAV_MODE_FLAG_SAFETY_ARMED | d.MAV_MODE_FLAG_CUSTOM_MODE_ENABLED
        kind, autopilot, state = d.MAV_TYPE_QUADROTOR, d.MAV_AUTOPILOT_PX4, d.MAV_STATE_ACTIVE
        return self._pack(d.MAVLink_heartbeat_message(kind, autopilot, mode, 0, state, 3), self._autopilot)

    def _system_status(self, seconds: float) -> bytes:
        charge = self.charge(seconds)
        message = self._dialect.MAVLink_sys_status_message(
            0, 0, 0, load=310, voltage_battery=15_200, current_battery=1450, battery_remaining=charge,
            drop_rate_comm=12, errors_comm=3, errors_count1=0, errors_count2=0, errors_count3=0, errors_count4=0,
        )  # fmt: skip
        return self._pack(message, self._autopilot)

    def _battery(self, seconds: float) -> bytes:
        charge, cells = self.charge(seconds), [3800] * 4 + [65535] * 6
        message = self._dialect.MAVLink_battery_status_message(
            id=0, battery_function=1, type=1, temperature=3100, voltages=cells, current_battery=1450,
            current_consumed=900, energy_consumed=-1, battery_remaining=charge, time_remaining=charge * 10,
        )  # fmt: skip
        return self._pack(message, self._autopilot)

    def _landed(self) -> bytes:
        return self._pack(self._dialect.MAVLink_extended_sys_state_message(0, 2), self._autopilot)  # in the air

    def _position(self, seconds: float) -> bytes:
        angle = 2.0 * math.pi * seconds / LAP_S
        speed = 2.0 * math.pi * RADIUS_M / LAP_S
        north, east = RADIUS_M * math.cos(angle), RADIUS_M * math.sin(angle)
        latitude = LATITUDE_DEG + north / _METRES_PER_DEGREE
        longitude = LONGITUDE_DEG + east / (_METRES_PER_DEGREE * math.cos(math.radians(LATITUDE_DEG)))
        message = self._dialect.MAVLink_global_position_int_message(
            int(seconds * 1e3), round(latitude * 1e7), round(longitude * 1e7), round((ALTITUDE_M + HEIGHT_M) * 1e3),
            round(HEIGHT_M * 1e3), round(-100 * speed * math.sin(angle)), round(100 * speed * math.cos(angle)), 0,
            round(math.degrees(angle + math.pi / 2) * 100) % 36000,
        )  # fmt: skip
        return self._pack(message, self._autopilot)

    def _attitude(self, seconds: float) -> bytes:
        rate = 2.0 * math.pi / LAP_S
        return self._pack(
            self._dialect.MAVLink_attitude_message(int(seconds * 1e3), 0.1, 0.0, 0.0, 0.0, 0.0, rate), self._autopilot
        )

    def _radio_status(self, seconds: float) -> bytes:
        rssi = self.rssi(seconds)
        return self._pack(self._dialect.MAVLink_radio_status_message(rssi, rssi - 4, 90, 40, 42, 7, 0), self._radio)

    def _link_status(self, seconds: float) -> bytes:
        values = (int(seconds * 1e3), 5000, 800, 4000, 900, 11, 0, 0, 0, 80, 95)
        return self.frame(8, struct.pack(LAYOUTS[8].wire, *values))

    def frame(self, message_id: int, payload: bytes) -> bytes:
        """Return the MAVLink 2 packet of a message of ``LAYOUTS``, from the radio."""
        sender, payload = self._radio, payload.rstrip(b"\0") or b"\0"
        head = bytes([len(payload), 0, 0, sender.seq, _RADIO_SYSTEM, _RADIO_COMPONENT])
        body = head + message_id.to_bytes(3, "little") + payload
        checksum = self._dialect.x25crc(body + bytes([LAYOUTS[message_id].crc_extra])).crc
        sender.seq = (sender.seq + 1) % 256
        marker, checked = bytes([self._dialect.PROTOCOL_MARKER_V2]), int(checksum).to_bytes(2, "little")
        return marker + body + checked


def fly(to: tuple[str, int], seconds: float, rate_hz: float, system: int = 1) -> int:
    """Send to a UDP address for ``seconds`` (inf: until interrupted); return the number of packets."""
    vehicle, count, begun = SimulatedVehicle(system, rate_hz), 0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        step = 0
        while step / rate_hz < seconds:
            for packet in vehicle.packets(step):
                try:
                    sender.sendto(packet, to)
                except ConnectionRefusedError:  # nobody listens at present
                    continue
                except OSError as error:
                    raise RunError(f"cannot send to {to[0]}:{to[1]}: {error}") from error
                count += 1
            step += 1
            time.sleep(max(begun + step / rate_hz - time.monotonic(), 0.0))
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; prints one JSON line at its end."""
    parser = argparse.ArgumentParser(prog="mavlink_vehicle", description="a simulated vehicle that sends MAVLink")
    parser.add_argument("--to", default="127.0.0.1:14550", help="HOST:PORT, UDP (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="how long (default: until interrupted)")
    parser.add_argument("--rate", type=float, default=4.0, help="positions a second (default: %(default)s)")
    parser.add_argument("--system", type=int, default=1, help="MAVLink system id (default: %(default)s)")
    o = parser.parse_args(arguments)

    def body() -> None:
        host, _, port = str(o.to).rpartition(":")
        if not host or not port.isdecimal() or not o.rate > 0:
            raise ConfigError(f"--to {o.to!r} --rate {o.rate:g}; expected HOST:PORT and a rate above 0")
        announce({"role": "vehicle", "packets": fly((host, int(port)), o.seconds, o.rate, o.system)})

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
