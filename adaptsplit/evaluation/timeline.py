"""One episode to look at: which one is chosen, and the link's capacity during it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.links import LinkTrace
from adaptsplit.outcome import Outcomes

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """One episode of several controllers on the same link and frames.

    ``time_s``, ``capacity_bps``: (H,) the link as recorded; ``outcomes``: (F,) records by controller name, the one that
    the page is about first.
    """

    recording: str
    family: str
    episode: int
    time_s: Floats
    capacity_bps: Floats
    outcomes: Mapping[str, Outcomes]


def capacity_during(trace: LinkTrace, offset_s: float, duration_s: float) -> tuple[Floats, Floats]:
    """Return (time since ``offset_s``, capacity in bit/s) of a looped trace, averaged to at most ~600 points."""
    first = int(np.floor(offset_s / trace.dt_s))
    count = max(1, int(np.ceil(duration_s / trace.dt_s)))
    values = trace.capacity_bps[(first + np.arange(count)) % len(trace)]
    group = max(1, count // 600)
    whole = count // group * group
    times = np.arange(0, whole, group, dtype=np.float64) * float(trace.dt_s)
    return times, np.asarray(values[:whole].reshape(-1, group).mean(axis=1), dtype=np.float64)


def choose_episode(gain: Floats, info: NDArray[Any], traces: Mapping[str, LinkTrace], duration_s: float) -> int:
    """Return the episode to show: of the third whose links vary most, the one whose gain is nearest to the mean.

    ``gain``: (E,) paired difference of the controller that is shown. Neither the best nor the worst is picked.
    """
    spread = np.array([_variation(row, traces, duration_s) for row in info])
    lively = np.flatnonzero(spread >= np.quantile(spread, 2 / 3))
    return int(lively[np.argmin(np.abs(gain[lively] - gain.mean()))])


def _variation(row: Any, traces: Mapping[str, LinkTrace], duration_s: float) -> float:
    trace = traces.get(str(row["recording"]))
    if trace is None:
        return 0.0
    capacity = capacity_during(trace, float(row["offset_s"]), duration_s)[1]
    return float(capacity.std() / max(capacity.mean(), 1.0))
