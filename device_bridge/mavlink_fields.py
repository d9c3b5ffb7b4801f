"""MAVLink messages of a vehicle as named values in SI units; pure: (message, time) in, values with their age out.

Units, and which raw value means unknown, are those of the MAVLink common message set (mavlink.io/en/messages/common);
a test compares them with the definitions that pymavlink carries. LINK_NODE_STATUS and CELLULAR_STATUS are in that set
and not in pymavlink's: they are decoded here from the layout that the set states.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

STALE_S = 5.0
"""Age at which a value no longer counts. An assumption: five times the usual period of 1 s of the slowest messages."""
LANDED_ON_GROUND = 1
_ARMED = 128  # MAV_MODE_FLAG_SAFETY_ARMED
_NO_AUTOPILOT = 8  # MAV_AUTOPILOT_INVALID: cameras, radios, ground stations
_DRIVES = (0, 1, 2)  # MAV_BATTERY_FUNCTION unknown, all, propulsion; avionics and payload do not fly the vehicle
_MAX_PARTS = 16


@dataclass(frozen=True, slots=True)
class Value:
    """One row of the table: ``message.field`` times ``scale`` is ``name``; the raw value ``unknown`` is none.

    ``unit`` is the raw one, as the message set writes it. ``radio``: any system may send it (telemetry radios have
    their own system id); else only the vehicle.
    """

    name: str
    message: str
    field: str
    unit: str = ""
    scale: float = 1.0
    unknown: int | None = None
    radio: bool = False


TABLE = (
    Value("battery", "BATTERY_STATUS", "battery_remaining", "%", 0.01, -1),
    Value("battery_current_a", "BATTERY_STATUS", "current_battery", "cA", 0.01, -1),
    Value("battery_left_s", "BATTERY_STATUS", "time_remaining", "s", 1.0, 0),
    Value("battery_system", "SYS_STATUS", "battery_remaining", "%", 0.01, -1),
    Value("autopilot_load", "SYS_STATUS", "load", "d%", 0.001),
    Value("comm_drop_rate", "SYS_STATUS", "drop_rate_comm", "c%", 0.0001),
    Value("comm_errors", "SYS_STATUS", "errors_comm"),
    Value("radio_rssi", "RADIO_STATUS", "rssi", "", 1.0, 255, radio=True),
    Value("radio_remote_rssi", "RADIO_STATUS", "remrssi", "", 1.0, 255, radio=True),
    Value("radio_noise", "RADIO_STATUS", "noise", "", 1.0, 255, radio=True),
    Value("radio_remote_noise", "RADIO_STATUS", "remnoise", "", 1.0, 255, radio=True),
    Value("radio_buffer_free", "RADIO_STATUS", "txbuf", "%", 0.01, radio=True),
    Value("radio_errors", "RADIO_STATUS", "rxerrors", radio=True),
    Value("link_tx_bytes_s", "LINK_NODE_STATUS", "tx_rate", "bytes/s", radio=True),
    Value("link_rx_bytes_s", "LINK_NODE_STATUS", "rx_rate", "bytes/s", radio=True),
    Value("link_tx_buffer_free", "LINK_NODE_STATUS", "tx_buf", "%", 0.01, radio=True),
    Value("link_rx_buffer_free", "LINK_NODE_STATUS", "rx_buf", "%", 0.01, radio=True),
    Value("link_messages_lost", "LINK_NODE_STATUS", "messages_lost", radio=True),
    Value("cellular_quality", "CELLULAR_STATUS", "quality", "%", 0.01, 255, radio=True),
    Value("latitude_deg", "GLOBAL_POSITION_INT", "lat", "degE7", 1e-7),
    Value("longitude_deg", "GLOBAL_POSITION_INT", "lon", "degE7", 1e-7),
    Value("altitude_m", "GLOBAL_POSITION_INT", "alt", "mm", 0.001),
    Value("height_m", "GLOBAL_POSITION_INT", "relative_alt", "mm", 0.001),
    Value("velocity_north_m_s", "GLOBAL_POSITION_INT", "vx", "cm/s", 0.01),
    Value("velocity_east_m_s", "GLOBAL_POSITION_INT", "vy", "cm/s", 0.01),
    Value("heading_deg", "GLOBAL_POSITION_INT", "hdg", "cdeg", 0.01, 65535),
    Value("local_north_m", "LOCAL_POSITION_NED", "x", "m"),
    Value("local_east_m", "LOCAL_POSITION_NED", "y", "m"),
    Value("local_down_m", "LOCAL_POSITION_NED", "z", "m"),
    Value("roll_rate_rad_s", "ATTITUDE", "rollspeed", "rad/s"),
    Value("pitch_rate_rad_s", "ATTITUDE", "pitchspeed", "rad/s"),
    Value("yaw_rate_rad_s", "ATTITUDE", "yawspeed", "rad/s"),
    Value("landed_state", "EXTENDED_SYS_STATE", "landed_state", "", 1.0, 0),
)
"""All that is taken from a vehicle; ``armed`` (HEARTBEAT) comes beside it."""
_ROWS: dict[str, list[Value]] = {}
for _row in TABLE:
    _ROWS.setdefault(_row.message, []).append(_row)
FRACTIONS = frozenset(row.name for row in TABLE if row.unit.endswith("%"))


@dataclass(frozen=True, slots=True)
class Layout:
    """A message that pymavlink does not know: id, CRC_EXTRA, wire format and field names, in the order of the wire."""

    name: str
    crc_extra: int
    wire: str
    fields: tuple[str, ...]


LAYOUTS = {
    8: Layout(
        "LINK_NODE_STATUS",
        117,
        "<QIIIIIHHHBB",
        (
            *("timestamp", "tx_rate", "rx_rate", "messages_sent", "messages_received", "messages_lost"),
            *("rx_parse_err", "tx_overflows", "rx_overflows", "tx_buf", "rx_buf"),
        ),
    ),
    334: Layout(
        "CELLULAR_STATUS", 72, "<HHHBBBB", ("mcc", "mnc", "lac", "status", "failure_reason", "type", "quality")
    ),
}


def decode_layout(message_id: int, payload: bytes) -> Any | None:
    """Return the fields of a message of ``LAYOUTS`` as attributes; None for another id.

    MAVLink 2 cuts zeros off the end of a payload, and fields that are added later follow at its end.
    """
    layout = LAYOUTS.get(message_id)
    if layout is None:
        return None
    size = struct.calcsize(layout.wire)
    values = struct.unpack(layout.wire, payload[:size].ljust(size, b"\0"))
    return SimpleNamespace(**dict(zip(layout.fields, values, strict=True)))


class Vehicle:
    """What has been heard of one vehicle, each value with the time of its message.

    The first system that sends an autopilot's HEARTBEAT is the vehicle (or ``system``, if named); another takes its
    place only when it has been silent for ``stale_s``.
    """

    def __init__(self, system: int | None = None, stale_s: float = STALE_S) -> None:
        self._named, self._stale_s = system, stale_s
        self._system: int | None = system
        self._values: dict[str, dict[int, tuple[float, float]]] = {}
        self._beat_at = -math.inf

    def take(self, name: str, fields: Any, system: int, now: float) -> bool:
        """Take a decoded message from ``system``; return whether any value came of it."""
        if name == "HEARTBEAT":
            return self._heartbeat(fields, system, now)
        if name == "BATTERY_STATUS" and int(fields.battery_function) not in _DRIVES:
            return False
        part = int(fields.id) if name == "BATTERY_STATUS" else 0
        taken = [
            self._note(row, fields, part, now) for row in _ROWS.get(name, ()) if row.radio or system == self._system
        ]
        return any(taken)

    def values(self, now: float) -> dict[str, float]:
        """Return all values that are fresh at ``now``; of several batteries the lowest charge, the sum of currents."""
        found = {}
        for name, parts in self._values.items():
            fresh = [value for value, at in parts.values() if now - at <= self._stale_s]
            if fresh:
                found[name] = sum(fresh) if name == "battery_current_a" else min(fresh)
        if "velocity_north_m_s" in found and "velocity_east_m_s" in found:
            found["speed_m_s"] = math.hypot(found["velocity_north_m_s"], found["velocity_east_m_s"])
        return found

    def _heartbeat(self, fields: Any, system: int, now: float) -> bool:
        if int(fields.autopilot) == _NO_AUTOPILOT or (self._named is not None and system != self._named):
            return False
        if system != self._system:
            if now - self._beat_at <= self._stale_s:
                return False
            self._system = system
            self._values.clear()
        self._beat_at = now
        self._values["armed"] = {0: (float(bool(int(fields.base_mode) & _ARMED)), now)}
        return True

    def _note(self, row: Value, fields: Any, part: int, now: float) -> bool:
        raw = getattr(fields, row.field)
        parts = self._values.setdefault(row.name, {})
        if raw == row.unknown or not math.isfinite(raw) or (len(parts) >= _MAX_PARTS and part not in parts):
            parts.pop(part, None)
            return False
        value = float(raw) * row.scale
        if row.name in FRACTIONS and not 0.0 <= value <= 1.0:
            return False
        parts[part] = value, now
        return True
