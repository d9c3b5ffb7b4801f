"""A device as a systemd service: it says when it is ready and that it is alive, and ends cleanly on SIGTERM.

The protocol is that of sd_notify(3): datagrams of ``NAME=value`` lines to the socket that NOTIFY_SOCKET names. Without
that variable nothing is sent. The units are in ``contrib/systemd``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from adaptsplit.device_bridge.parts import QuietPart

if TYPE_CHECKING:
    from adaptsplit.device_bridge.agent import DeviceAgent

log = logging.getLogger("adaptsplit.device")

PINGS_PER_PERIOD = 3  # sd_watchdog_enabled(3) recommends two at least


class Notifier:
    """Tells the service manager; silent where there is none.

    ``watchdog_s`` is how often it wants to hear that the process is alive (inf: never).
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environment)

    @property
    def there(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def tell(self, *lines: str) -> bool:
        """Send ``NAME=value`` lines; whether they left. A manager that cannot be told is no reason to fail."""
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(0.1)
                sender.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("the service manager cannot be told: %s", error)
            return False
        return True


class ServicePart(QuietPart):
    """Ready once connected (or flying alone), alive as long as the main loop turns, stopping at the end."""

    name = "service"

    def __init__(self, notifier: Notifier | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._notifier = notifier or Notifier()
        self._clock = clock
        self._next = 0.0

    def started(self, agent: DeviceAgent) -> None:
        """Say READY."""
        self._notifier.tell("READY=1", f"STATUS=device {agent.options.device}, policy {agent.decider.names[0]}")

    def tick(self, now: float) -> None:
        """Say that the main loop turns."""
        if self._clock() >= self._next:
            self._next = self._clock() + self._notifier.watchdog_s / PINGS_PER_PERIOD
            self._notifier.tell("WATCHDOG=1")

    def close(self) -> None:
        """Say STOPPING."""
        self._notifier.tell("STOPPING=1")


def _watchdog_s(environment: Mapping[str, str]) -> float:
    micros, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not micros.isdecimal() or int(micros) == 0 or (process and process != str(os.getpid())):
        return float("inf")
    return int(micros) * 1e-6


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM raises KeyboardInterrupt as SIGINT does, so that a start that is broken off is cleaned up, too.

    On other threads than the main one, which signals do not reach, it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Within, SIGTERM and SIGINT call ``stop`` in place of ending the process; on other threads nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
