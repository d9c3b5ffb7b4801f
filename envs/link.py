"""The compiled link: cumulative capacity of looped traces (the twin of ``adaptsplit.links.LinkClock``).

Capacity sample i holds on [i * dt, (i + 1) * dt); a trace of H samples repeats every H * dt. A transmission ends at the
earliest time at which the cumulative capacity since its start has grown by its bits: one search in a cumulative sum.
``freeze`` ends what is known: from then on capacity and round trip stay at their value of that moment (planning only;
infinity in the real world).
"""

from __future__ import annotations

import math

from adaptsplit.envs.compiled import compiled, inlined
from adaptsplit.envs.packed import (
    ACTIVE,
    CAPACITY,
    CUMULATIVE,
    LINK_COUNT,
    LINK_DT,
    LINK_FIRST,
    Packed,
    of_branch,
    of_link,
    of_sample,
)


@inlined
def sample(w: Packed, link: int, time: float) -> int:
    """Return the index (into the flat arrays) of the sample that holds at ``time``."""
    position = math.floor(time / of_link(w, LINK_DT, link))
    count = of_branch(w, LINK_COUNT, link)
    if position >= count or position < 0:
        position %= count
    return int(of_branch(w, LINK_FIRST, link) + position)


@inlined
def _grown(w: Packed, sums: int, link: int, time: float) -> float:
    """Return the cumulative value of table ``sums`` at ``time``, loops included."""
    dt, count = of_link(w, LINK_DT, link), of_branch(w, LINK_COUNT, link)
    position = math.floor(time / dt)
    loops, inside = 0, position
    if position >= count or position < 0:
        loops, inside = position // count, position % count
    base = of_branch(w, LINK_FIRST, link)
    rate = of_sample(w, CAPACITY, base + inside)
    if sums == ACTIVE:
        rate = 1.0 if rate > 0.0 else 0.0
    whole = loops * of_sample(w, sums, base + count) + of_sample(w, sums, base + inside)
    return whole + rate * (time - position * dt)


@inlined
def bits_until(w: Packed, link: int, time: float) -> float:
    """Return the cumulative capacity in bits from the trace's start to ``time``."""
    return _grown(w, CUMULATIVE, link, time)


@inlined
def active_between(w: Packed, link: int, begin: float, end: float) -> float:
    """Return the seconds with any capacity from ``begin`` to ``end``."""
    dt, count, base = of_link(w, LINK_DT, link), of_branch(w, LINK_COUNT, link), of_branch(w, LINK_FIRST, link)
    if of_sample(w, ACTIVE, base + count) >= (count - 0.5) * dt:  # a trace without any outage
        return end - begin
    return _grown(w, ACTIVE, link, end) - _grown(w, ACTIVE, link, begin)


@inlined
def _search(w: Packed, base: int, low: int, count: int, target: float) -> int:
    """Return the smallest i >= low whose cumulative capacity at its end reaches ``target``: galloping, then halving."""
    high, stride = low, 1
    while high < count - 1 and of_sample(w, CUMULATIVE, base + high + 1) < target:
        low = high + 1
        high = min(high + stride, count - 1)
        stride *= 2
    while low < high:
        middle = (low + high) // 2
        if of_sample(w, CUMULATIVE, base + middle + 1) >= target:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def finish(w: Packed, link: int, start: float, amount: float, freeze: float) -> float:
    """Return when ``amount`` bits that start at ``start`` have been served (infinity: never, when frozen at zero)."""
    dt, count, base = of_link(w, LINK_DT, link), of_branch(w, LINK_COUNT, link), of_branch(w, LINK_FIRST, link)
    total = of_sample(w, CUMULATIVE, base + count)
    position = math.floor(start / dt)
    loops, inside = 0, position
    if position >= count or position < 0:
        loops, inside = position // count, position % count
    rate = of_sample(w, CAPACITY, base + inside)
    begun = of_sample(w, CUMULATIVE, base + inside) + rate * (start - position * dt)
    rest = begun + amount
    if rest > total:
        more = math.ceil(rest / total) - 1
        loops, inside = loops + more, 0
        rest = min(max(rest - more * total, 1e-9), total)
    i = _search(w, base, inside, count, rest)
    rate = of_sample(w, CAPACITY, base + i)
    end = max((loops * count + i) * dt + (rest - of_sample(w, CUMULATIVE, base + i)) / rate, start)
    if end <= freeze:
        return end
    known = max(start, freeze)
    rate = of_sample(w, CAPACITY, sample(w, link, freeze))
    if rate <= 0.0:
        return math.inf
    served = bits_until(w, link, known) - bits_until(w, link, start)
    return known + (amount - served) / rate
