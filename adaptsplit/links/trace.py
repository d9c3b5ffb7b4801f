"""The link trace: what every reader and every generator makes, and what the simulator and the live shaper replay."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adaptsplit.errors import LinkError

Array = NDArray[np.float64]

MAX_SAMPLES = 5_000_000
MAX_CAPACITY_BPS = 1e12
MAX_RTT_S = 600.0
MAX_LOSS = math.nextafter(1.0, 0.0)
# column -> (least, greatest); the limits catch wrong units and broken files, they are no physics.
BOUNDS: dict[str, tuple[float, float]] = {
    "capacity_bps": (0.0, MAX_CAPACITY_BPS),
    "rtt_s": (0.0, MAX_RTT_S),
    "loss": (0.0, MAX_LOSS),
    "signal_dbm": (-300.0, 100.0),
    "sinr_db": (-100.0, 100.0),
    "altitude_m": (-1000.0, 100_000.0),
}
REPORTED = ("signal_dbm", "sinr_db", "altitude_m")  # what a device may report beside the link itself, or not


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Summary of one trace. Capacity figures are taken over bins of ``bin_s``, outages over the trace's own samples.

    A 20 ms sample of a slow link often holds no packet at all; that is scheduling and no outage, hence the bins.
    """

    duration_s: float
    bin_s: float
    mean_bps: float
    p5_bps: float
    p50_bps: float
    p95_bps: float
    zero_fraction: float
    longest_outage_s: float
    rtt_p50_s: float
    rtt_p95_s: float
    loss_mean: float

    def as_dict(self) -> dict[str, float]:
        """Return the fields as plain numbers, for JSON."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}


@dataclass(frozen=True, slots=True, eq=False)
class LinkTrace:
    """A time-varying uplink, sampled uniformly and looped at its end.

    Sample ``i`` holds on ``[i * dt_s, (i + 1) * dt_s)``; the period of the loop is ``H * dt_s``.

    Args:
        name: what the recording or the generated trace is called, unique within a list of traces.
        family: the kind of link it counts as in results, such as ``lte`` or ``starlink``.
        dt_s: length of one sample, s.
        capacity_bps: (H,) bit/s, not negative, some of them positive.
        rtt_s: (H,) s, round-trip time of a small message, without the time its bits take at ``capacity_bps``.
        loss: (H,) fraction of packets lost, in [0, 1).
        signal_dbm: (H,) received signal power as the modem reports it, or None where it reports none.
        provenance: what made the trace, one line per step, oldest first.
        sinr_db: (H,) dB, ratio of signal to interference and noise as the modem reports it, or None.
        altitude_m: (H,) m, altitude of the device, above what the recording or the generator says, or None.

    The arrays are copied and made read-only. Two traces are compared by ``digest()``.

    Raises:
        LinkError: a shape, a value or a name that cannot be used.

    >>> flat = np.full(2, 0.05)
    >>> LinkTrace("steady", "demo", 0.1, np.array([1e6, 2e6]), flat, 0.0 * flat, None, ("by hand",)).duration_s
    0.2
    """

    name: str
    family: str
    dt_s: float
    capacity_bps: Array
    rtt_s: Array
    loss: Array
    signal_dbm: Array | None = None
    provenance: tuple[str, ...] = ()
    sinr_db: Array | None = None
    altitude_m: Array | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.family:
            raise LinkError(f"a link trace needs a name and a family, found {self.name!r} and {self.family!r}")
        if not (math.isfinite(self.dt_s) and 0 < self.dt_s <= 3600):
            raise LinkError(f"{self.name}: dt_s is {self.dt_s!r}, expected a sample length in (0, 3600] seconds")
        for field, (low, high) in BOUNDS.items():
            values = getattr(self, field)
            if values is not None or field not in REPORTED:
                object.__setattr__(self, field, frozen(f"{self.name}: {field}", values, low, high))
        self._check_lengths()
        if not self.capacity_bps.any():
            raise LinkError(
                f"{self.name}: capacity is zero in all {len(self)} samples, so no frame would ever be delivered; "
                "leave the trace out, or choose a longer part of it"
            )

    def _check_lengths(self) -> None:
        for field in BOUNDS:
            values = getattr(self, field)
            if values is not None and values.size != len(self):
                raise LinkError(
                    f"{self.name}: {field} has {values.size} samples and capacity_bps {len(self)}; "
                    "give one value per sample"
                )

    def __len__(self) -> int:
        return int(self.capacity_bps.size)

    @property
    def duration_s(self) -> float:
        """Length of one loop, s."""
        return len(self) * self.dt_s

    def statistics(self, bin_s: float = 1.0) -> LinkStatistics:
        """Summarise the trace; capacity is averaged over bins of ``bin_s`` (never finer than a sample) first."""
        per_bin, binned = binned_mean(self.capacity_bps, self.dt_s, bin_s)
        p5, p50, p95 = (float(x) for x in np.quantile(binned, (0.05, 0.5, 0.95)))
        rtt50, rtt95 = (float(x) for x in np.quantile(self.rtt_s, (0.5, 0.95)))
        return LinkStatistics(
            duration_s=self.duration_s,
            bin_s=per_bin * self.dt_s,
            mean_bps=float(self.capacity_bps.mean()),
            p5_bps=p5,
            p50_bps=p50,
            p95_bps=p95,
            zero_fraction=float((binned == 0).mean()),
            longest_outage_s=longest_run(self.capacity_bps == 0) * self.dt_s,
            rtt_p50_s=rtt50,
            rtt_p95_s=rtt95,
            loss_mean=float(self.loss.mean()),
        )

    def slice(self, start_s: float, end_s: float) -> LinkTrace:
        """Return the samples that begin in ``[start_s, end_s)``, as a trace of its own."""
        if not (math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s < end_s):
            raise LinkError(f"{self.name}: slice [{start_s!r}, {end_s!r}) s, expected 0 <= start < end")
        first, last = (math.ceil(round(t / self.dt_s, 6)) for t in (start_s, end_s))
        if first >= min(last, len(self)):
            raise LinkError(
                f"{self.name}: slice [{start_s:g}, {end_s:g}) s holds no sample; the trace is "
                f"{self.duration_s:g} s long in samples of {self.dt_s:g} s"
            )
        part = np.s_[first : min(last, len(self))]
        return replace(
            self,
            name=f"{self.name}[{start_s:g}:{end_s:g}]",
            capacity_bps=self.capacity_bps[part],
            rtt_s=self.rtt_s[part],
            loss=self.loss[part],
            signal_dbm=None if self.signal_dbm is None else self.signal_dbm[part],
            sinr_db=None if self.sinr_db is None else self.sinr_db[part],
            altitude_m=None if self.altitude_m is None else self.altitude_m[part],
            provenance=(*self.provenance, f"slice {start_s:g} s to {end_s:g} s"),
        )

    def scaled(self, factor: float) -> LinkTrace:
        """Return the trace with its capacity multiplied by ``factor`` (> 0)."""
        if not (math.isfinite(factor) and factor > 0):
            raise LinkError(f"{self.name}: scale {factor!r}, expected a finite number above 0")
        capacity = self.capacity_bps * factor
        note = f"capacity scaled by {factor:g}"
        name = f"{self.name}*{factor:g}"
        return replace(self, name=name, capacity_bps=capacity, provenance=(*self.provenance, note))

    def with_rtt(self, rtt_s: float) -> LinkTrace:
        """Return the trace with a constant round-trip time of ``rtt_s``."""
        note = f"round-trip time set to {rtt_s:g} s"
        return replace(self, rtt_s=np.full(len(self), float(rtt_s)), provenance=(*self.provenance, note))

    def digest(self) -> str:
        """Return the SHA-256 of sample length and arrays; name, family and provenance do not enter."""
        sha = hashlib.sha256(b"adaptsplit.link/1" + np.array([self.dt_s, len(self)], dtype="<f8").tobytes())
        for array in (self.capacity_bps, self.rtt_s, self.loss):
            sha.update(array.astype("<f8").tobytes())
        sha.update(b"-" if self.signal_dbm is None else self.signal_dbm.astype("<f8").tobytes())
        for tag, extra in ((b"sinr_db", self.sinr_db), (b"altitude_m", self.altitude_m)):
            if extra is not None:  # nothing is added where it is absent: such traces keep the digest they always had
                sha.update(tag + extra.astype("<f8").tobytes())
        return sha.hexdigest()


def binned_mean(values: Array, dt_s: float, bin_s: float) -> tuple[int, Array]:
    """Return samples per bin of about ``bin_s`` (one at least, all at most), and the mean of every whole bin."""
    per_bin = min(max(1, round(bin_s / dt_s)), values.size)
    whole = values.size // per_bin * per_bin
    return per_bin, values[:whole].reshape(-1, per_bin).mean(axis=1)


def frozen(what: str, values: ArrayLike, low: float, high: float, *, unknown: bool = False) -> Array:
    """Return a read-only copy of ``values``, checked: one dimension, every value from ``low`` to ``high``.

    ``unknown`` allows NaN for samples of which nothing is known. LinkError says what is wrong and where.
    """
    try:
        array = np.array(values, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise LinkError(f"{what} is not an array of numbers ({error}); give one number per sample") from error
    if array.ndim != 1 or not 1 <= array.size <= MAX_SAMPLES:
        raise LinkError(f"{what} has shape {array.shape}, expected (H,) with 1 <= H <= {MAX_SAMPLES}")
    bad = ~((array >= low) & (array <= high))  # true for NaN as well
    if unknown:
        bad &= ~np.isnan(array)
    if bad.any():
        at = int(np.argmax(bad))
        raise LinkError(f"{what}[{at}] is {array[at]:g}, expected {low:g} to {high:g}; mend or leave out that sample")
    array += 0.0  # -0.0 becomes 0.0, so that equal traces have equal digests
    array.setflags(write=False)
    return array


def longest_run(flags: NDArray[np.bool_]) -> int:
    """Return the length of the longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) if edges.size else 0
