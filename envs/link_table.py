"""Link traces laid end to end for the compiled core. Letters: L traces, H samples of all traces in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit.links import LinkTrace

Array = NDArray[Any]


class LinkTable(NamedTuple):
    """Traces laid end to end; cumulative arrays have one entry more than samples for each trace."""

    first: Array  # (L,) i8 index of the first sample
    first_sum: Array  # (L,) i8 index of the first cumulative entry
    samples: Array  # (L,) i8
    share: Array  # (L,) f8 cumulative probability that an episode uses the trace
    dt_s: Array  # (L,) f8
    capacity: Array  # (H,) f8 bit/s
    cumulative: Array  # (H + L,) f8 bits since the trace's start
    active: Array  # (H + L,) f8 seconds with any capacity since the trace's start
    rtt: Array  # (H,) f8 s
    loss: Array  # (H,) f8
    signal: Array  # (H,) f8 dBm, NaN where unknown


def probabilities(traces: Sequence[LinkTrace]) -> Array:
    """Return (L,) the probability of each trace: families alike, within a family by duration.

    A recording that was cut into many pieces must not outweigh one that was not.
    """
    duration = np.array([len(trace.capacity_bps) * trace.dt_s for trace in traces], dtype=np.float64)
    families = [trace.family for trace in traces]
    total = {name: sum(d for d, f in zip(duration, families, strict=True) if f == name) for name in set(families)}
    return np.asarray(duration / np.array([total[name] for name in families]) / len(total))


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
        np.cumsum(probabilities(traces)),
        np.array([trace.dt_s for trace in traces], dtype=np.float64),
        np.ascontiguousarray(np.concatenate([trace.capacity_bps for trace in traces]), dtype=np.float64),
        np.concatenate(sums),
        np.concatenate(active),
        np.ascontiguousarray(np.concatenate([trace.rtt_s for trace in traces]), dtype=np.float64),
        np.ascontiguousarray(np.concatenate([trace.loss for trace in traces]), dtype=np.float64),
        np.ascontiguousarray(np.concatenate(signal), dtype=np.float64),
    )
