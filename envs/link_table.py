"""Link traces laid end to end for the compiled core. Letters: L traces, H samples of all traces in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit.links import LinkTrace

Array = NDArray[Any]


class LinkTable(NamedTuple):
    """Traces laid end to end; each has one row more than samples, for the sums at its end."""

    first: Array  # (L,) i8 index of the first sample
    samples: Array  # (L,) i8
    share: Array  # (L,) f8 cumulative probability that an episode uses the trace
    dt_s: Array  # (L,) f8
    table: Array  # (H + L, 6) f8 bits since the start, bit/s, rtt s, loss, dBm (NaN unknown), active s since the start


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
    first = np.concatenate([[0], np.cumsum(count + 1)[:-1]]).astype(np.int64)
    dt_s = np.array([trace.dt_s for trace in traces], dtype=np.float64)
    rows = np.concatenate([_rows(trace) for trace in traces])
    return LinkTable(first, count, np.cumsum(probabilities(traces)), dt_s, np.ascontiguousarray(rows))


def _rows(trace: LinkTrace) -> Array:
    """Return (H + 1, 6) of one trace."""
    rows = np.zeros((len(trace) + 1, 6))
    rows[-1, 4] = np.nan
    rows[1:, 0] = np.cumsum(trace.capacity_bps * trace.dt_s)
    rows[1:, 5] = np.cumsum((trace.capacity_bps > 0) * trace.dt_s)
    unknown = np.full(len(trace), np.nan)
    signal = unknown if trace.signal_dbm is None else trace.signal_dbm
    rows[:-1, 1:5] = np.column_stack([trace.capacity_bps, trace.rtt_s, trace.loss, signal])
    return rows
