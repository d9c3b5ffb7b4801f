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
    LINK_SUM,
    Packed,
    of_branch,
    of_link,
)


@inlined
def sample(w: Packed, link: int, time: float) -> int:
    """Return the index (into the flat arrays) of the sample that holds at ``time``."""
    position = math.floor(time / of_link(w, LINK_DT, link))
    return of_branch(w, LINK_FIRST, link) + position % of_branch(w, LINK_COUNT, link)


@inlined
def _grown(w: Packed, sums: int, link: int, time: float) -> float:
    """Return the cumulative value of table ``sums`` at ``time``, loops included."""
    dt, count = of_link(w, LINK_DT, link), of_branch(w, LINK_COUNT, link)
    position = math.floor(time / dt)
    loops, inside = position // count, position % count
    base = of_branch(w, LINK_SUM, link)
    rate = of_link(w, CAPACITY, of_branch(w, LINK_FIRST, link) + inside)
    if sums == ACTIVE:
        rate = 1.0 if rate > 0.0 else 0.0
    whole = loops * of_link(w, sums, base + count) + of_link(w, sums, base + inside)
    return whole + rate * (time - position * dt)


@inlined
def bits_until(w: Packed, link: int, time: float) -> float:
    """Return the cumulative capacity in bits from the trace's start to ``time``."""
    return _grown(w, CUMULATIVE, link, time)


@inlined
def active_until(w: Packed, link: int, time: float) -> float:
    """Return the seconds with any capacity from the trace's start to ``time``."""
    return _grown(w, ACTIVE, link, time)


@inlined
def _search(w: Packed, base: int, count: int, target: float) -> int:
    """Return the smallest i whose cumulative capacity at its end reaches ``target`` (in (0, total])."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if of_link(w, CUMULATIVE, base + middle + 1) >= target:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def finish(w: Packed, link: int, start: float, amount: float, freeze: float) -> float:
    """Return when ``amount`` bits that start at ``start`` have been served (infinity: never, when frozen at zero)."""
    dt, count, base = of_link(w, LINK_DT, link), of_branch(w, LINK_COUNT, link), of_branch(w, LINK_SUM, link)
    total = of_link(w, CUMULATIVE, base + count)
    begun = bits_until(w, link, start)
    target = begun + amount
    loops = math.floor(target / total)
    rest = target - loops * total
    if rest <= 0.0:
        loops -= 1
        rest += total
    i = _search(w, base, count, rest)
    rate = of_link(w, CAPACITY, of_branch(w, LINK_FIRST, link) + i)
    end = loops * count * dt + i * dt + (rest - of_link(w, CUMULATIVE, base + i)) / rate
    end = max(end, start)
    if end <= freeze:
        return end
    known = max(start, freeze)
    rate = of_link(w, CAPACITY, sample(w, link, freeze))
    if rate <= 0.0:
        return math.inf
    return known + (amount - (bits_until(w, link, known) - begun)) / rate
