"""When does a transmission end? The pure arithmetic that the live shaper uses; the simulator has a compiled twin."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.trace import LinkTrace


class LinkClock:
    """Replays a trace from ``offset_s`` on.

    The convention, which the compiled twin follows to the letter:

    * time ``t`` (s, >= 0) lies at ``t + offset_s`` of the trace, whose sample ``i`` holds on ``[i dt, (i + 1) dt)``;
      the trace is looped with period ``P = H dt``;
    * let ``C[i]`` be the bits that fit before sample ``i`` (``C[0] = 0``, ``C[H]`` = bits of one loop) and ``F`` its
      piecewise linear, looped continuation. ``finish(start, bits)`` is the EARLIEST ``t >= start`` with
      ``F(t) - F(start) >= bits``, found by one binary search, over as many loops as it takes;
    * a transmission of 0 bits ends when it starts, within an outage too.

    >>> trace = LinkTrace("t", "demo", 1.0, np.array([8.0, 0.0]), np.array([0.1, 0.2]), np.zeros(2))
    >>> clock = LinkClock(trace)
    >>> clock.finish(0.5, 4.0), clock.finish(0.5, 5.0), clock.finish(0.5, 21.0)
    (1.0, 2.125, 6.125)
    """

    __slots__ = ("_bits", "_capacity", "_dt", "_offset", "_period", "_rtt")

    def __init__(self, trace: LinkTrace, offset_s: float = 0.0) -> None:
        if not (math.isfinite(offset_s) and offset_s >= 0):
            raise LinkError(f"{trace.name}: offset {offset_s!r} s, expected a finite number, at least 0")
        self._dt = trace.dt_s
        self._period = len(trace) * trace.dt_s
        self._offset = offset_s
        self._capacity: list[float] = trace.capacity_bps.tolist()
        self._rtt: list[float] = trace.rtt_s.tolist()
        self._bits: list[float] = [0.0, *np.cumsum(trace.capacity_bps * trace.dt_s).tolist()]

    def finish(self, start_s: float, bits: float) -> float:
        """Return the earliest time (s) at which ``bits`` handed to the link at ``start_s`` have crossed it."""
        if bits <= 0:
            return start_s
        loop, phase = self._place(start_s)
        i = self._index(phase)
        total = self._bits[-1]
        target = self._bits[i] + (phase - i * self._dt) * self._capacity[i] + bits
        more = max(0, math.ceil(target / total) - 1)
        rest = target - more * total
        if rest <= 0:  # the division rounded up at a multiple of a loop; more >= 1, since target is above 0
            more, rest = more - 1, rest + total
        rest = min(rest, total)
        k = bisect_left(self._bits, rest)  # at least 1: bits[0] = 0 < rest
        inside = (k - 1) * self._dt + (rest - self._bits[k - 1]) / self._capacity[k - 1]
        return max(start_s, (loop + more) * self._period + inside - self._offset)

    def capacity(self, t_s: float) -> float:
        """Return the capacity at ``t_s``, bit/s."""
        return self._capacity[self._index(self._place(t_s)[1])]

    def rtt(self, t_s: float) -> float:
        """Return the round-trip time at ``t_s``, s."""
        return self._rtt[self._index(self._place(t_s)[1])]

    def _place(self, t_s: float) -> tuple[int, float]:
        """Loop number and time within the loop."""
        at = t_s + self._offset
        loop = math.floor(at / self._period)
        return loop, max(0.0, at - loop * self._period)

    def _index(self, phase: float) -> int:
        return min(int(phase / self._dt), len(self._capacity) - 1)
