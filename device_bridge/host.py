"""Telemetry of the board itself: load by other work, temperature, battery (psutil), Wi-Fi signal (/proc, ``iw``).

All of it is read once a second on a thread of its own: reading sensors may take milliseconds, and a decision must not
wait for them. Layouts that are read: ``/proc/net/wireless`` as Linux writes it (net/wireless/wext-proc.c), and
``iw dev NAME link``.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from adaptsplit.device_bridge.telemetry import UNKNOWN, Reading
from adaptsplit.errors import MissingExtraError

log = logging.getLogger("adaptsplit.device")

PERIOD_S = 1.0
STALE_S = 5.0  # a sample older than this is unknown; an assumption: five periods
IW_S = 1.0
PROC_WIRELESS = Path("/proc/net/wireless")
SYS_NET = Path("/sys/class/net")
BOARD_SENSORS = ("cpu", "soc", "coretemp", "k10temp")
"""Beginnings of the names that compute boards and processors give their own sensor: ``cpu_thermal`` (Raspberry Pi),
``cpu-thermal`` and ``soc0-thermal`` (Jetson), ``coretemp`` and ``k10temp`` (x86)."""


class Temperature(Protocol):
    """One entry of ``psutil.sensors_temperatures()``."""

    @property
    def current(self) -> float | None:
        """Degrees Celsius."""


class HostTelemetry:
    """Samples ``probe`` at once, then every ``period_s`` on a thread; ``read`` returns the last sample while fresh.

    Args:
        probe: returns a reading; it may raise (counted as ``failed``, and the values grow stale).
        clock: monotonic time, s.
    """

    def __init__(
        self,
        probe: Callable[[], Reading] | None = None,
        period_s: float = PERIOD_S,
        stale_s: float = STALE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._probe = probe or HostProbe()
        self._period_s, self._stale_s, self._clock = period_s, stale_s, clock
        self._sample = UNKNOWN, -math.inf
        self._closing = threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._loop, name="telemetry-host", daemon=True)
        self._thread.start()

    def read(self, now: float) -> Reading:
        """Return the last sample, or nothing known when it is older than ``stale_s``; ``now`` does not matter."""
        sample, at = self._sample
        return sample if self._clock() - at <= self._stale_s else UNKNOWN

    def spend(self, energy_j: float) -> None:
        """Nothing: a real battery knows."""

    def details(self) -> Mapping[str, float]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join(timeout=2.0)

    def _loop(self) -> None:
        while not self._closing.wait(self._period_s):
            self._take()

    def _take(self) -> None:
        try:
            self._sample = self._probe(), self._clock()
            self.counts["sampled"] += 1
        except Exception:
            if not self.counts["failed"]:
                log.exception("telemetry of the host failed; it is tried again every %g s", self._period_s)
            self.counts["failed"] += 1


class HostProbe:
    """Reads the board; call it from one thread only, as psutil measures load between two calls."""

    def __init__(self) -> None:
        try:
            import psutil
        except ImportError as missing:
            raise MissingExtraError("psutil", "device") from missing
        self._psutil: Any = psutil
        self._cores = psutil.cpu_count() or 1
        self._process = psutil.Process()
        psutil.cpu_percent(None)
        self._process.cpu_percent(None)

    def __call__(self) -> Reading:
        """Return what the board can tell."""
        load = other_load(self._psutil.cpu_percent(None), self._process.cpu_percent(None), self._cores)
        return Reading(self._battery(), load, self._temperature(), wifi_dbm())

    def _battery(self) -> float:
        battery = getattr(self._psutil, "sensors_battery", lambda: None)()
        return math.nan if battery is None else min(max(battery.percent / 100.0, 0.0), 1.0)

    def _temperature(self) -> float:
        return board_temperature(getattr(self._psutil, "sensors_temperatures", dict[str, Any])())


def other_load(busy_percent: float, own_percent: float, cores: int) -> float:
    """Return the share of the board that other processes take, 0..1.

    ``busy_percent`` is of all cores (0..100), ``own_percent`` this process's, of one core (0..100 * cores).
    """
    return min(max((busy_percent - own_percent / cores) / 100.0, 0.0), 1.0)


def board_temperature(sensors: Mapping[str, Sequence[Temperature]]) -> float:
    """Return the hottest of the processor's own sensors, else of all; NaN where there is none (-40..150 counts)."""
    own = {name: rows for name, rows in sensors.items() if name.lower().startswith(BOARD_SENSORS)}
    for chosen in (own, sensors):
        values = [row.current for rows in chosen.values() for row in rows if row.current is not None]
        if known := [value for value in values if -40.0 <= value <= 150.0]:
            return float(max(known))
    return math.nan


def wifi_dbm(table: Path = PROC_WIRELESS, interfaces: Path = SYS_NET) -> float:
    """Return the best received power of the board's Wi-Fi interfaces, dBm; NaN without one."""
    try:
        known = wireless_dbm(table.read_text(encoding="ascii", errors="replace"))
    except OSError:
        known = math.nan
    if known == known:
        return known
    names = [place.parent.name for place in sorted(interfaces.glob("*/phy80211"))]
    values = [value for name in names if (value := iw_dbm(_iw(name))) == value]
    return max(values, default=math.nan)


def wireless_dbm(text: str) -> float:
    """Return the best level of ``/proc/net/wireless``, dBm; a level that is not negative is in no known unit."""
    values = []
    for line in text.splitlines()[2:]:
        name, colon, rest = line.partition(":")
        fields = rest.split()
        if not colon or not name.strip() or len(fields) < 3:
            continue
        try:
            level = float(fields[2].rstrip("."))
        except ValueError:
            continue
        if -140.0 <= level < 0.0:
            values.append(level)
    return max(values, default=math.nan)


def iw_dbm(text: str) -> float:
    """Return the received power that ``iw dev NAME link`` prints (``signal: -52 dBm``); NaN when not connected."""
    for line in text.splitlines():
        name, _, value = line.strip().partition(":")
        words = value.split()
        if name == "signal" and len(words) >= 2 and words[1] == "dBm":
            try:
                return float(words[0])
            except ValueError:
                return math.nan
    return math.nan


def _iw(name: str) -> str:
    command = ["iw", "dev", name, "link"]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IW_S, env=environment, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout[:4096]
