"""Where MAVLink bytes come from: UDP, TCP or a serial line. Only read; nothing is ever sent to a vehicle.

udp:HOST:PORT          listens there (mavlink-router, MAVProxy and simulators send to 14550)
tcp:HOST:PORT          connects (ArduPilot SITL: 5760)
serial:/dev/NAME:BAUD  a line to the autopilot, 8N1 (Linux and other POSIX systems)
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from dataclasses import dataclass
from typing import Protocol

from adaptsplit.config import printable
from adaptsplit.errors import ConfigError

MAX_DATAGRAM = 65535
CONNECT_S = 3.0


class ByteSource(Protocol):
    """Bytes as they come. ``datagrams``: each read is a whole number of messages. OSError: open it anew."""

    datagrams: bool

    def read(self, timeout_s: float) -> bytes:
        """Return what has come, b"" after ``timeout_s``; OSError when the source has ended."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL: kind (udp, tcp, serial), host or device, port or baud rate."""

    kind: str
    place: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse ``kind:place:number``; ConfigError with the forms that there are."""
        kind, _, rest = text.partition(":")
        place, _, number = rest.rpartition(":")
        if kind not in ("udp", "tcp", "serial") or not place or not number.isdecimal() or len(number) > 7:
            forms = "udp:HOST:PORT, tcp:HOST:PORT or serial:/dev/NAME:BAUD"
            raise ConfigError(f"MAVLink address {printable(text)!r}; expected {forms}")
        if kind != "serial" and not 0 <= int(number) <= 65535:
            raise ConfigError(f"MAVLink address {printable(text)!r}: port {number}; expected 0 to 65535")
        if kind == "serial":
            _speed(int(number))
        return cls(kind, place.strip("[]"), int(number))

    def open(self) -> ByteSource:
        """Open it; OSError when that fails."""
        if self.kind == "udp":
            return UdpSource(self.place, self.number)
        if self.kind == "tcp":
            return TcpSource(self.place, self.number)
        return SerialSource(self.place, self.number)


class UdpSource:
    """Listens on a UDP port; ``port`` says on which."""

    datagrams = True

    def __init__(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self._socket.bind((host, port))
        except BaseException:
            self._socket.close()
            raise
        self.port = int(self._socket.getsockname()[1])

    def read(self, timeout_s: float) -> bytes:
        """Return one datagram."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(MAX_DATAGRAM)
        except TimeoutError:
            return b""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class TcpSource:
    """A TCP connection."""

    datagrams = False

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), CONNECT_S)

    def read(self, timeout_s: float) -> bytes:
        """Return what has come."""
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(4096)
        except TimeoutError:
            return b""
        if not data:
            raise ConnectionError("the other side closed the connection")
        return data

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class SerialSource:
    """A serial line in raw mode, 8 bits, no parity, one stop bit."""

    datagrams = False

    def __init__(self, device: str, baud: int) -> None:
        import termios
        import tty

        self._file = os.open(device, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            tty.setraw(self._file, termios.TCSANOW)
            settings = termios.tcgetattr(self._file)
            settings[2] = (settings[2] & ~(termios.CSTOPB | termios.PARENB)) | termios.CLOCAL | termios.CREAD
            settings[4] = settings[5] = _speed(baud)
            termios.tcsetattr(self._file, termios.TCSANOW, settings)
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, termios.error):
                raise OSError(f"{device}: not a serial line ({error})") from error
            raise

    def read(self, timeout_s: float) -> bytes:
        """Return what has come."""
        if not select.select([self._file], [], [], timeout_s)[0]:
            return b""
        with contextlib.suppress(BlockingIOError):
            if data := os.read(self._file, 4096):
                return data
            raise ConnectionError("the serial line has gone")
        return b""

    def close(self) -> None:
        """Close the line."""
        os.close(self._file)


def _speed(baud: int) -> int:
    """Return the constant of a baud rate; ConfigError for one that serial lines do not have."""
    try:
        import termios
    except ImportError as missing:
        raise ConfigError("serial lines need a POSIX system; use udp: or tcp: here") from missing
    speed = getattr(termios, f"B{baud}", None)
    if not isinstance(speed, int) or not baud:
        raise ConfigError(f"baud rate {baud}; expected one that the system knows, such as 57600, 115200 or 921600")
    return speed
