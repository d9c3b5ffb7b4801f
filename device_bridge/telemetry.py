"""What a device measures of itself. Boards differ; this one models battery and signal as the simulator does."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptsplit.errors import ConfigError


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

    def read(self, now: float) -> tuple[float, float, float, float]:
        """Return (battery fraction, load, temperature, signal in dBm) at ``now`` s since frame 0."""
        battery = self.start - (self.base_w * now + self._spent_j) / self.capacity_j
        signal = math.nan
        if self.signal_dbm:
            signal = self.signal_dbm[int((now + self.offset_s) / self.dt_s) % len(self.signal_dbm)]
        return min(max(battery, 0.0), 1.0) if battery == battery else math.nan, math.nan, math.nan, signal

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
            return cls(**numbers, signal_dbm=[float(v) for v in value["signal_dbm"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not a telemetry model ({error!r})") from error
