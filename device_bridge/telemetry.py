"""What a device measures of itself: battery, load, temperature, signal; from a model, the host, a vehicle, or several.

    model.json                          battery and signal modelled as the simulator does (``Telemetry``)
    host                                the board itself (``host.HostTelemetry``; extra ``device``)
    mavlink:udp:127.0.0.1:14550         a vehicle's autopilot (``mavlink.MavlinkTelemetry``; extra ``mavlink``)
    mavlink:udp:127.0.0.1:14550+host    several: of each value the first that is known counts

Whatever is not known, or too old, is NaN; the observation then says so by its ``..._known`` field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from adaptsplit.config import printable
from adaptsplit.errors import ConfigError

_MODEL = 'expected such as {"capacity_j": 3600, "start": 1.0, "base_w": 2.5, "dt_s": 1.0, "signal_dbm": [-80, -82]}'
MIN_DT_S = 1e-6  # between two samples of a signal; no radio gives them faster


class Reading(NamedTuple):
    """What is known now, NaN for the rest: charge 0..1, load by other work 0..1, degrees Celsius, dBm."""

    battery: float = math.nan
    load: float = math.nan
    temperature: float = math.nan
    signal: float = math.nan


UNKNOWN = Reading()


class TelemetrySource(Protocol):
    """Where telemetry comes from. No call blocks: what takes time runs on a thread of the source's own."""

    def read(self, now: float) -> Reading:
        """Return what is known at ``now`` s since frame 0."""
        ...

    def spend(self, energy_j: float) -> None:
        """Take note of the energy of a frame's computation and transmission (a modelled battery sinks by it)."""
        ...

    def details(self) -> Mapping[str, float]:
        """Return whatever else is known, by name (``latitude_deg``, ``radio_rssi``, ...; ``docs/telemetry.md``)."""
        ...

    def close(self) -> None:
        """End threads and connections."""
        ...


@dataclass(slots=True)
class Telemetry:
    """Battery (``capacity_j``, fraction ``start``, constant ``base_w``) and signal samples every ``dt_s``, looped.

    Whatever is left out is unknown (NaN) to the controller. ``spend`` takes energy out of the battery.
    """

    capacity_j: float = math.nan
    start: float = 1.0
    base_w: float = 0.0
    signal_dbm: Sequence[float] = ()
    dt_s: float = 1.0
    offset_s: float = 0.0
    _spent_j: float = field(default=0.0, init=False)

    def spend(self, energy_j: float) -> None:
        """Take the energy of a frame's computation and transmission."""
        self._spent_j += energy_j

    def read(self, now: float) -> Reading:
        """Return battery fraction and signal at ``now`` s since frame 0; load and temperature are not modelled here."""
        battery = self.start - (self.base_w * now + self._spent_j) / self.capacity_j
        signal = math.nan
        if self.signal_dbm:
            signal = self.signal_dbm[int((now + self.offset_s) / self.dt_s) % len(self.signal_dbm)]
        return Reading(min(max(battery, 0.0), 1.0) if battery == battery else math.nan, signal=signal)

    def details(self) -> Mapping[str, float]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Nothing to end."""

    def save(self, path: Path) -> None:
        """Write the model as JSON."""
        names = ("capacity_j", "start", "base_w", "dt_s", "offset_s")
        value = {name: getattr(self, name) for name in names if not math.isnan(getattr(self, name))}
        path.write_text(json.dumps({**value, "signal_dbm": [float(v) for v in self.signal_dbm]}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Telemetry:
        """Read the model; ConfigError when it is not one."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise TypeError(f"{type(value).__name__} in place of an object")
            numbers = {name: float(v) for name, v in value.items() if name != "signal_dbm"}
            found = cls(**numbers, signal_dbm=[float(v) for v in value["signal_dbm"]])
            if not (found.dt_s >= MIN_DT_S and found.capacity_j != 0.0 and math.isfinite(found.dt_s + found.offset_s)):
                raise ValueError(f"dt_s {found.dt_s:g}, offset_s {found.offset_s:g}, capacity_j {found.capacity_j:g}")
            return found
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ConfigError(printable(f"{path}: not a telemetry model ({str(error)[:200]}); {_MODEL}")) from error


def state_fields(reading: Reading, details: Mapping[str, float]) -> dict[str, float | None]:
    """Return the telemetry fields of a state message (``control.State``): None for what is not known."""
    own = zip(("battery", "load", "temperature_c", "signal_dbm"), reading, strict=True)
    place = ((name, details.get(name, math.nan)) for name in ("latitude_deg", "longitude_deg", "altitude_m"))
    return {name: value if math.isfinite(value) else None for name, value in (*own, *place)}


class CombinedTelemetry:
    """Several sources: of each value the first that is known counts."""

    def __init__(self, sources: Sequence[TelemetrySource]) -> None:
        self._sources = tuple(sources)

    def read(self, now: float) -> Reading:
        """Return the first known of each value."""
        readings = [source.read(now) for source in self._sources]
        return Reading(*(next((v for v in values if v == v), math.nan) for values in zip(*readings, strict=True)))

    def spend(self, energy_j: float) -> None:
        """Tell every source."""
        for source in self._sources:
            source.spend(energy_j)

    def details(self) -> Mapping[str, float]:
        """Return all of them; of equal names the first source's."""
        return {name: v for source in reversed(self._sources) for name, v in source.details().items()}

    def close(self) -> None:
        """Close every source."""
        for source in self._sources:
            source.close()


def open_telemetry(text: str) -> TelemetrySource:
    """Open what ``--telemetry`` names (the module's text lists the forms); ConfigError, MissingExtraError."""
    if text.endswith(".json"):
        return Telemetry.load(Path(text))
    opened: list[TelemetrySource] = []
    try:
        for part in text.split("+"):
            opened.append(_open_one(part.strip()))
    except BaseException:
        CombinedTelemetry(opened).close()
        raise
    return opened[0] if len(opened) == 1 else CombinedTelemetry(opened)


def _open_one(text: str) -> TelemetrySource:
    if text == "host":
        from adaptsplit.device_bridge.host import HostTelemetry

        return HostTelemetry()
    if text.startswith("mavlink:"):
        from adaptsplit.device_bridge.mavlink import MavlinkTelemetry

        return MavlinkTelemetry(text.removeprefix("mavlink:"))
    raise ConfigError(
        f"telemetry {printable(text)!r}; expected host, mavlink:URL, a model's FILE.json, or several joined by +"
    )
