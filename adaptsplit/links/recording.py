"""What a reader makes of a file: named columns on one uniform grid, whichever of them the file holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.trace import BOUNDS, REPORTED, Array, LinkTrace, frozen

DEFAULT_RTT_S = 0.05  # assumed: the order of an LTE round trip; every trace that uses it says so in its provenance


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Uniformly sampled columns of one recording.

    Sample ``i`` of every column holds on ``[i * dt_s, (i + 1) * dt_s)``.

    Args:
        name: what the recording is called, unique within a file.
        family: the kind of link it counts as, such as ``lte``.
        dt_s: length of one sample, s.
        columns: name -> (H,), any mix of ``capacity_bps`` (bit/s), ``rtt_s`` (s), ``loss`` (fraction in [0, 1)),
            ``signal_dbm`` (received power, RSRP where the modem reports that), ``sinr_db`` and ``altitude_m`` (m).
            NaN says that a sample is unknown, and may stand in the last three only.
        provenance: what made it, one line per step, oldest first.
        filled: samples for which the file holds nothing and an earlier value was repeated.

    The arrays are copied and made read-only, the mapping cannot be changed.

    Raises:
        LinkError: no column or an unknown one, lengths that differ, values out of range, a bad name or ``dt_s``.

    >>> probe = Recording("probe", "demo", 1.0, {"rtt_s": np.array([0.05, 0.07])})
    >>> probe.duration_s, list(probe.columns)
    (2.0, ['rtt_s'])
    """

    name: str
    family: str
    dt_s: float
    columns: Mapping[str, Array]
    provenance: tuple[str, ...] = ()
    filled: int = 0

    def __post_init__(self) -> None:
        if not self.name or not self.family:
            raise LinkError(f"a recording needs a name and a family, found {self.name!r} and {self.family!r}")
        if not (math.isfinite(self.dt_s) and 0 < self.dt_s <= 3600):
            raise LinkError(f"{self.name}: dt_s is {self.dt_s!r}, expected a sample length in (0, 3600] seconds")
        odd = [name for name in self.columns if name not in BOUNDS]
        if odd or not self.columns:
            raise LinkError(f"{self.name}: columns {list(self.columns)}, expected at least one of {', '.join(BOUNDS)}")
        checked = {
            name: frozen(f"{self.name}: {name}", self.columns[name], low, high, unknown=name in REPORTED)
            for name, (low, high) in BOUNDS.items()
            if name in self.columns
        }
        object.__setattr__(self, "columns", MappingProxyType(checked))
        sizes = {name: values.size for name, values in checked.items()}
        if len(set(sizes.values())) > 1:
            raise LinkError(f"{self.name}: columns of different lengths {sizes}; give one value per sample")

    def __len__(self) -> int:
        return int(next(iter(self.columns.values())).size)

    @property
    def duration_s(self) -> float:
        """Length, s."""
        return len(self) * self.dt_s

    def trace(self, rtt_s: float = DEFAULT_RTT_S) -> LinkTrace:
        """Return the recording as a link trace.

        Args:
            rtt_s: round-trip time where none is recorded, s. Loss is 0 where none is recorded. An unknown sample of
                signal, SINR or altitude takes the last known value, as a device that keeps its last report would;
                a column without any known value is left out.

        Raises:
            LinkError: there is no capacity, or it is zero throughout.
        """
        if "capacity_bps" not in self.columns:
            cure = "use it as rtt_from of another link" if "rtt_s" in self.columns else "it cannot serve as a link"
            raise LinkError(f"{self.name}: this recording has only {', '.join(self.columns)}; {cure}")
        notes = list(self.provenance)
        if "rtt_s" not in self.columns:
            notes.append(f"round trip taken as {rtt_s:g} s")
        reported = {name: last_known(self.columns[name]) for name in REPORTED if name in self.columns}
        repeated = [name for name, values in reported.items() if values is not None and self._unknown(name)]
        if repeated:
            notes.append(f"unknown samples of {', '.join(repeated)} repeat the last known one")
        return LinkTrace(
            self.name,
            self.family,
            self.dt_s,
            self.columns["capacity_bps"],
            self.columns.get("rtt_s", np.full(len(self), float(rtt_s))),
            self.columns.get("loss", np.zeros(len(self))),
            provenance=tuple(notes),
            signal_dbm=reported.get("signal_dbm"),
            sinr_db=reported.get("sinr_db"),
            altitude_m=reported.get("altitude_m"),
        )

    def _unknown(self, name: str) -> bool:
        return bool(np.isnan(self.columns[name]).any())


def last_known(values: Array) -> Array | None:
    """Return ``values`` with each NaN replaced by the value before it (the first known one at the start), or None.

    >>> last_known(np.array([np.nan, 1.0, np.nan, 2.0]))
    array([1., 1., 1., 2.])
    """
    known = np.flatnonzero(~np.isnan(values))
    if not known.size:
        return None
    before = np.searchsorted(known, np.arange(values.size), side="right") - 1
    held: Array = values[known[np.maximum(before, 0)]]
    return held
