"""What became of each frame: one record per frame, batched as a NumPy structured array; also the live log's schema.

Exactly one record exists for every frame of an episode or live run. Derived numbers (reward terms, ratios) are
functions of these records, never stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray


class Path(IntEnum):
    """How a frame got its answer."""

    MISS = 0  # no answer by the deadline: dropped, or even the device's answer was late
    EXIT = 1  # the exit's confidence reached the threshold
    LOCAL = 2  # the full model ran on the device
    REMOTE = 3  # the edge's result arrived by the deadline
    FALLBACK_LATE = 4  # sent, but the result was late: the exit answered at the deadline
    FALLBACK_PASSED = 5  # passed over by the sender: the exit answered at once
    STALE = 6  # skipped: the answer held from an earlier frame was used again


OUTCOME = np.dtype(
    [
        ("env", "i4"),  # row of the batch, or device
        ("frame", "i4"),  # index in the episode
        ("arrived_s", "f8"),  # when the camera delivered it, seconds since the episode's start
        ("decided_s", "f8"),  # when the head started; NaN for a dropped frame
        ("branch", "i2"),  # -1 for a dropped frame
        ("rate", "i2"),
        ("threshold", "f4"),
        ("patience", "f4"),  # share of the deadline after which the exit answers; NaN for a dropped frame
        ("path", "u1"),
        ("quality", "f4"),  # fraction of cells right; 0 for a miss; NaN live without labels
        ("confidence", "f4"),  # calibrated confidence of the answer that counted; 0 for a miss
        ("exit_confidence", "f4"),
        ("agreement", "f4"),  # fraction of cells on which exit and tail agree; NaN when nothing was sent
        ("answer_latency_s", "f4"),  # NaN for a miss
        ("remote_latency_s", "f4"),  # uncapped; NaN when nothing was sent, inf when the result never came
        ("sent_bytes", "i4"),  # payload (container) bytes handed to the link; 0 when nothing was sent
        ("compute_j", "f4"),  # device compute above idle
        ("radio_j", "f4"),  # transmission above the connected state
        ("known_s", "f8"),  # when the device knows all of this
        ("switched", "u1"),  # the branch differs from that of the frame decided before
    ]
)

Outcomes: TypeAlias = NDArray[np.void]


def empty(count: int) -> Outcomes:
    """Return ``count`` records of dropped frames (path MISS, nothing sent)."""
    records = np.zeros(count, dtype=OUTCOME)
    records["branch"] = records["rate"] = -1
    for field in ("decided_s", "threshold", "patience", "agreement", "answer_latency_s", "remote_latency_s"):
        records[field] = np.nan
    return records


def to_rows(outcomes: Outcomes) -> Iterable[dict[str, Any]]:
    """Yield one JSON-able dict per record (NaN becomes None, inf the string ``"inf"``): a line of the live log each."""
    for record in outcomes:
        row = {name: record[name].item() for name in OUTCOME.names or ()}
        yield {name: _json_number(value) for name, value in row.items()}


def from_rows(rows: Iterable[dict[str, Any]]) -> Outcomes:
    """Inverse of ``to_rows``; KeyError for a row that lacks a field."""
    listed = list(rows)
    records = empty(len(listed))
    for record, row in zip(records, listed, strict=True):
        for name in OUTCOME.names or ():
            value = row[name]
            record[name] = np.nan if value is None else float(value) if isinstance(value, str) else value
    return records


def _json_number(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else "inf"
    return value
