"""The table of a network's cut points: names, sizes, costs, and what choosing by them would give.

*Latency* (Neurosurgeon, ASPLOS'17; DADS, INFOCOM'19, light load) wants the cut with the least device + link + server
time, *throughput* (DADS, heavy load) the one whose slowest of the three is fastest. Both papers predict times from
measured layers; here a part's time is its MACs over a rate that you give, which is enough to choose candidates: what a
cut really costs is measured by ``adaptsplit profile``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from adaptsplit.errors import UnknownNameError
from adaptsplit.registry import did_you_mean

INPUT, OUTPUT = "input", "output"
FLOAT_BYTES = 4
AUTO_CUTS = 4
AUTO_LIMIT = 0.95
Objective = Literal["latency", "throughput"]


@dataclass(frozen=True, slots=True)
class CutPoint:
    """One place at which the network can be cut; all numbers are per image.

    ``name`` is the path of the module whose output is sent (the outermost one), or that path and the operations after
    it (``stem+relu``); ``aliases`` are other paths of the same tensor. ``shape`` leaves out the batch. ``head_macs``
    and ``head_parameters`` belong to what runs before the cut, ``tail_*`` to what runs after it. ``minor`` marks a cut
    that another one stands for: as many bytes, no MACs between (a convolution before its batch norm and ReLU).
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    head_macs: int
    tail_macs: int
    head_parameters: int
    tail_parameters: int
    natural: bool
    minor: bool

    @property
    def values(self) -> int:
        """Numbers that cross the cut."""
        return math.prod(self.shape)

    @property
    def float_bytes(self) -> int:
        """Bytes of the tensor as float32, before any codec."""
        return FLOAT_BYTES * self.values


@dataclass(frozen=True, slots=True)
class CutTime:
    """Predicted seconds of a choice: ``name`` is a cut, ``input`` (all on the server) or ``output`` (all on board)."""

    name: str
    device_s: float
    link_s: float
    server_s: float

    @property
    def total_s(self) -> float:
        """Time from image to answer."""
        return self.device_s + self.link_s + self.server_s

    @property
    def slowest_s(self) -> float:
        """Time per frame of the pipeline: that of its slowest part."""
        return max(self.device_s, self.link_s, self.server_s)


@dataclass(frozen=True, slots=True)
class CutTable:
    """Every cut point of a network in order of execution. ``how`` says which tracer found them.

    ``hidden`` counts the operations at which more than one tensor would have to be sent, and which are not offered.
    """

    network: str
    how: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    parameters: int
    hidden: int
    points: tuple[CutPoint, ...]

    @property
    def listed(self) -> tuple[CutPoint, ...]:
        """One point of each run of equal ones."""
        return tuple(point for point in self.points if not point.minor)

    def point(self, name: str) -> CutPoint:
        """Return the cut called ``name`` or an alias of it; UnknownNameError names the nearest one."""
        for one in self.points:
            if name == one.name or name in one.aliases:
                return one
        known = [path for one in self.points for path in (one.name, *one.aliases)]
        listed = ", ".join(one.name for one in self.listed)
        raise UnknownNameError(
            f"{self.network} has no cut {name!r}{did_you_mean(name, known)} Cuts: {listed}. Inside a residual or dense "
            "block several tensors would have to be sent; cut at its end"
        )

    def auto(self, limit: int = AUTO_CUTS) -> tuple[str, ...]:
        """Return at most ``limit`` cuts before 95 % of the MACs, in order of execution.

        These are the natural bottlenecks, spread evenly; a third of the MACs without one gives its smallest tensor.
        """
        early = [one for one in self.listed if 0 < one.head_macs < AUTO_LIMIT * self.macs] or list(self.listed)
        thirds: dict[int, list[CutPoint]] = {}
        for one in early:
            thirds.setdefault(3 * one.head_macs // max(1, self.macs), []).append(one)
        chosen = [one for one in early if one.natural]
        for points in thirds.values():
            if not any(one.natural for one in points):
                chosen.append(min(points, key=lambda one: (one.values, ":" in one.name)))
        return tuple(one.name for one in _spread(sorted(chosen, key=lambda one: one.head_macs), limit))

    def times(
        self,
        *,
        device_macs_per_s: float,
        server_macs_per_s: float,
        uplink_bps: float,
        rtt_s: float = 0.0,
        bits: float = 32.0,
        input_bits: float = 8.0,
    ) -> tuple[CutTime, ...]:
        """Return the predicted times of all-on-server, every listed cut and all-on-board.

        ``bits`` per sent value (after a codec, if there is one), ``input_bits`` per value of the image.
        """
        sent = uplink_bps / bits
        ends = [
            CutTime(
                INPUT, 0.0, math.prod(self.input_shape) * input_bits / uplink_bps + rtt_s, self.macs / server_macs_per_s
            )
        ]
        for one in self.listed:
            times = one.head_macs / device_macs_per_s, one.values / sent + rtt_s, one.tail_macs / server_macs_per_s
            ends.append(CutTime(one.name, *times))
        return (*ends, CutTime(OUTPUT, self.macs / device_macs_per_s, 0.0, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form: the network's numbers and every point with its bytes."""
        value = asdict(self)
        value["points"] = [asdict(one) | {"float_bytes": one.float_bytes} for one in self.points]
        return value


def best(times: Sequence[CutTime], objective: Objective = "latency") -> CutTime:
    """Return the choice of the least total time, or of the fastest pipeline; the earlier one of equals."""
    return min(times, key=lambda one: one.total_s if objective == "latency" else one.slowest_s)


def _spread(points: list[CutPoint], limit: int) -> list[CutPoint]:
    if len(points) <= limit:
        return points
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]
