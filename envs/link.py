"""The compiled link: cumulative capacity of looped traces (the twin of ``adaptsplit.links.LinkClock``).

Capacity sample i holds on [i * dt, (i + 1) * dt); a trace of H samples repeats every H * dt. A transmission ends at the
earliest time at which the cumulative capacity since its start has grown by its bits: one search in a cumulative sum.
``freeze`` ends what is known: from then on capacity and round trip stay at their value of that moment (planning only;
infinity in the real world). Letters: L traces, H samples of all traces in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit.envs.compiled import compiled, inlined
from adaptsplit.links import LinkTrace

Array = NDArray[Any]


class LinkTable(NamedTuple):
    """Traces laid end to end; cumulative arrays have one entry more than samples for each trace."""

    first: Array  # (L,) i8 index of the first sample
    first_sum: Array  # (L,) i8 index of the first cumulative entry
    count: Array  # (L,) i8 samples
    dt_s: Array  # (L,) f8
    capacity: Array  # (H,) f8 bit/s
    cumulative: Array  # (H + L,) f8 bits since the trace's start
    active: Array  # (H + L,) f8 seconds with any capacity since the trace's start
    rtt: Array  # (H,) f8 s
    loss: Array  # (H,) f8
    signal: Array  # (H,) f8 dBm, NaN where unknown


def build_table(traces: Sequence[LinkTrace]) -> LinkTable:
    """Lay traces out for the compiled core."""
    count = np.array([len(trace.capacity_bps) for trace in traces], dtype=np.int64)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)
    sums, active, signal = [], [], []
    for trace in traces:
        sums.append(np.concatenate([[0.0], np.cumsum(trace.capacity_bps * trace.dt_s)]))
        active.append(np.concatenate([[0.0], np.cumsum((trace.capacity_bps > 0) * trace.dt_s)]))
        unknown = np.full(len(trace.capacity_bps), np.nan)
        signal.append(unknown if trace.signal_dbm is None else trace.signal_dbm)
    return LinkTable(
        first,
        first + np.arange(len(traces)),
        count,
        np.array([trace.dt_s for trace in traces], dtype=np.float64),
        np.ascontiguousarray(np.concatenate([trace.capacity_bps for trace in traces]), dtype=np.float64),
        np.concatenate(sums),
        np.concatenate(active),
        np.ascontiguousarray(np.concatenate([trace.rtt_s for trace in traces]), dtype=np.float64),
        np.ascontiguousarray(np.concatenate([trace.loss for trace in traces]), dtype=np.float64),
        np.ascontiguousarray(np.concatenate(signal), dtype=np.float64),
    )


@inlined
def sample(links: LinkTable, link: int, time: float) -> int:
    """Return the index (into the flat arrays) of the sample that holds at ``time``."""
    position = math.floor(time / links.dt_s[link])
    return int(links.first[link] + position % links.count[link])


@inlined
def _grown(links: LinkTable, sums: Array, rates: Array, link: int, time: float, unit: bool) -> float:
    """Return the cumulative value of ``sums`` at ``time`` (loops included); ``unit`` counts active seconds."""
    dt, count = links.dt_s[link], links.count[link]
    position = math.floor(time / dt)
    loops, inside = position // count, position % count
    base = links.first_sum[link]
    rate = rates[links.first[link] + inside]
    if unit:
        rate = 1.0 if rate > 0.0 else 0.0
    return float(loops * sums[base + count] + sums[base + inside] + rate * (time - position * dt))


@inlined
def bits_until(links: LinkTable, link: int, time: float) -> float:
    """Return the cumulative capacity in bits from the trace's start to ``time``."""
    return _grown(links, links.cumulative, links.capacity, link, time, False)


@inlined
def active_until(links: LinkTable, link: int, time: float) -> float:
    """Return the seconds with any capacity from the trace's start to ``time``."""
    return _grown(links, links.active, links.capacity, link, time, True)


@inlined
def _search(sums: Array, base: int, count: int, target: float) -> int:
    """Return the smallest i with sums[base + i + 1] >= target (target in (0, total])."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if sums[base + middle + 1] >= target:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def finish(links: LinkTable, link: int, start: float, amount: float, freeze: float) -> float:
    """Return when ``amount`` bits that start at ``start`` have been served (infinity: never, when frozen at zero)."""
    dt, count, base = links.dt_s[link], links.count[link], links.first_sum[link]
    total = links.cumulative[base + count]
    begun = bits_until(links, link, start)
    target = begun + amount
    loops = math.floor(target / total)
    rest = target - loops * total
    if rest <= 0.0:
        loops -= 1.0
        rest += total
    i = _search(links.cumulative, base, count, rest)
    rate = links.capacity[links.first[link] + i]
    end = loops * count * dt + i * dt + (rest - links.cumulative[base + i]) / rate
    end = max(end, start)
    if end <= freeze:
        return float(end)
    known = max(start, freeze)
    rate = links.capacity[sample(links, link, freeze)]
    if rate <= 0.0:
        return math.inf
    return float(known + (amount - (bits_until(links, link, known) - begun)) / rate)
