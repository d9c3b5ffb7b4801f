"""Telemetry from a vehicle's autopilot over MAVLink (extra ``mavlink``): listened to, never answered.

adaptsplit must not sit in the vehicle's control loop, so nothing is sent: neither heartbeats nor requests. Message
rates are set on the autopilot (``docs/telemetry.md``). MAVLink is not authenticated here: listen on the loopback
interface or on a line that you trust.

    udp:127.0.0.1:14550?radio=sik&system=1&stale=5

``radio`` says how RADIO_STATUS gives the signal, as its scale is each radio's own: ``sik`` (dBm = rssi / 1.9 - 127,
SiK and 3DR radios, ArduPilot's documentation of them), ``elrs`` (dBm = -remrssi, as ExpressLRS sends it and INAV reads
it); without it the signal stays unknown. ``system`` names the vehicle's system id, ``stale`` the age limit in s.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from adaptsplit.config import printable
from adaptsplit.device_bridge.mavlink_fields import STALE_S, Vehicle, decode_layout
from adaptsplit.device_bridge.mavlink_links import Address, ByteSource
from adaptsplit.device_bridge.telemetry import Reading
from adaptsplit.errors import ConfigError, MissingExtraError

log = logging.getLogger("adaptsplit.device")

POLL_S = 0.2
RETRY_S = 2.0
REFRESH_S = 0.1  # values are gathered at most this often, so that a read costs nothing
_HEADER_2, _HEADER_1, _CHECKSUM, _SIGNATURE = 10, 6, 2, 13
RADIOS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "none": lambda values: math.nan,
    "sik": lambda values: values.get("radio_rssi", math.nan) / 1.9 - 127.0,
    "elrs": lambda values: -values.get("radio_remote_rssi", math.nan),
}


class Decoder:
    """Bytes in, (name, fields, system id) out, by pymavlink; whatever the bytes are, it goes on. Pure."""

    def __init__(self) -> None:
        try:
            from pymavlink.dialects.v20 import common
        except ImportError as missing:
            raise MissingExtraError("pymavlink", "mavlink") from missing
        self.counts: Counter[str] = Counter()
        self._dialect: Any = common
        self._parser = self._new()

    def feed(self, data: bytes, whole: bool = False) -> list[tuple[str, Any, int]]:
        """Return the messages in ``data``; ``whole``: no message goes on in the next call (a datagram)."""
        try:
            messages = self._parser.parse_buffer(data) or []
        except Exception:
            log.debug("bytes that pymavlink fails on", exc_info=True)
            self.counts["parser_failed"] += 1
            messages, whole = [], True
        if whole:
            self._parser = self._new()
        found = [known for message in messages if (known := self._known(message)) is not None]
        self.counts["messages"] += len(found)
        return found

    def _new(self) -> Any:
        parser = self._dialect.MAVLink(None)
        parser.robust_parsing = True
        return parser

    def _known(self, message: Any) -> tuple[str, Any, int] | None:
        name = message.get_type()
        if name == "BAD_DATA":
            self.counts["bad_data"] += 1
            return None
        if not name.startswith("UNKNOWN_"):
            return name, message, message.get_srcSystem()
        return self._own(bytes(message.get_msgbuf()))

    def _own(self, packet: bytes) -> tuple[str, Any, int] | None:
        """Decode a message of ``LAYOUTS``: pymavlink passes on what it does not know unchecked."""
        from adaptsplit.device_bridge.mavlink_fields import LAYOUTS

        second = packet[0] == self._dialect.PROTOCOL_MARKER_V2
        head = _HEADER_2 if second else _HEADER_1
        end = len(packet) - _CHECKSUM - (_SIGNATURE if second and packet[2] & 1 else 0)
        message_id = int.from_bytes(packet[7:10], "little") if second else packet[5]
        layout = LAYOUTS.get(message_id)
        if layout is None or end < head:
            return None
        checksum = self._dialect.x25crc(packet[1:end] + bytes([layout.crc_extra])).crc
        if checksum != int.from_bytes(packet[end : end + _CHECKSUM], "little"):
            self.counts["bad_data"] += 1
            return None
        return layout.name, decode_layout(message_id, packet[head:end]), packet[5 if second else 3]


class MavlinkTelemetry:
    """A vehicle heard on ``url`` (the module's text), by a thread of its own; opened again whenever it ends.

    ConfigError for an address or option that cannot be used, MissingExtraError without pymavlink. A UDP port that is
    taken is a ConfigError at once; a TCP peer or line that is not there yet is waited for.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        place, _, query = url.partition("?")
        self.address = Address.parse(place)
        self._radio, system, stale_s = _options(query)
        self._clock = clock
        self._vehicle = Vehicle(system, stale_s)
        self._decoder = Decoder()
        self._lock = threading.Lock()
        self._values: dict[str, float] = {}
        self._gathered_at = -math.inf
        self._closing = threading.Event()
        self._counts: Counter[str] = Counter()
        self._source = self._first()
        self._thread = threading.Thread(target=self._loop, name="telemetry-mavlink", daemon=True)
        self._thread.start()

    def read(self, now: float) -> Reading:
        """Return charge and signal of the vehicle, as far as they are fresh; ``now`` does not matter.

        The load in SYS_STATUS is the autopilot's own, not that of the board that decides: it is in ``details``.
        """
        values = self._gather()
        battery = values.get("battery", values.get("battery_system", math.nan))
        return Reading(battery, signal=RADIOS[self._radio](values))

    def spend(self, energy_j: float) -> None:
        """Nothing: the vehicle's battery knows."""

    def details(self) -> Mapping[str, float]:
        """Return everything that is fresh, by the names of ``mavlink_fields.TABLE``."""
        return self._gather()

    @property
    def counts(self) -> Counter[str]:
        """Messages, bad data, and how often the source was opened or failed."""
        return self._counts + self._decoder.counts

    @property
    def port(self) -> int:
        """The UDP port that is listened on."""
        return int(getattr(self._source, "port", self.address.number))

    def close(self) -> None:
        """End the thread and close the source."""
        self._closing.set()
        self._thread.join(timeout=5.0)

    def _gather(self) -> dict[str, float]:
        now = self._clock()
        if now - self._gathered_at >= REFRESH_S:
            with self._lock:
                self._values = self._vehicle.values(now)
            self._gathered_at = now
        return self._values

    def _first(self) -> ByteSource | None:
        try:
            return self.address.open()
        except OSError as error:
            if self.address.kind == "udp":
                a = self.address
                raise ConfigError(f"MAVLink at udp:{a.place}:{a.number}: {error}; name a free port") from error
            log.warning("MAVLink at %s: %s; it is tried again every %g s", self.address.place, error, RETRY_S)
            return None

    def _loop(self) -> None:
        while not self._closing.is_set():
            try:
                self._source = self._source or self.address.open()
                self._read(self._source)
            except Exception as error:
                log.info("MAVLink at %s: %s", self.address.place, error)
                self._counts["source_failed"] += 1
                self._end()
                self._closing.wait(RETRY_S)
        self._end()

    def _read(self, source: ByteSource) -> None:
        while not self._closing.is_set():
            if data := source.read(POLL_S):
                self._take(self._decoder.feed(data, source.datagrams))

    def _take(self, messages: list[tuple[str, Any, int]]) -> None:
        now = self._clock()
        with self._lock:
            for name, fields, system in messages:
                self._vehicle.take(name, fields, system, now)

    def _end(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None


def _options(query: str) -> tuple[str, int | None, float]:
    """Return radio, system id and age limit of a URL's query; ConfigError names what is wrong."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := given.keys() - {"radio", "system", "stale"}:
        raise ConfigError(f"MAVLink option {printable(min(unknown))!r}; expected radio, system or stale")
    radio, system, stale = given.get("radio", "none"), given.get("system"), given.get("stale")
    if radio not in RADIOS:
        raise ConfigError(f"MAVLink radio {printable(radio)!r}; expected one of {', '.join(RADIOS)}")
    if system is not None and not (system.isdecimal() and 1 <= int(system[:4]) <= 255):
        raise ConfigError(f"MAVLink system {printable(system)!r}; expected 1 to 255")
    try:
        stale_s = STALE_S if stale is None else float(stale)
    except ValueError:
        stale_s = math.nan
    if not 0.1 <= stale_s <= 3600.0:
        raise ConfigError(f"MAVLink stale {printable(stale or '')!r}; expected an age in s, 0.1 to 3600")
    return radio, None if system is None else int(system), stale_s
