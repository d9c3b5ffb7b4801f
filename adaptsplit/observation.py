"""The ONE definition of what a controller sees.

``FIELDS`` lists every number with its unit, bounds, scale and meaning; the vector, the Gymnasium space, the bundle's
schema, the documentation table and the rules' access by name are derived from it. Each entry of the vector is scaled to
0..1 by its fixed bounds (linearly or logarithmically), so that a policy carries no statistics of its own and a value
outside its bounds is clipped, never unbounded. Missing telemetry is flagged by a ``*_known`` field, not faked.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.registry import did_you_mean


@dataclass(frozen=True, slots=True)
class Field:
    """One observed number: physical bounds in ``unit``; ``scale`` says how it is mapped to 0..1."""

    name: str
    unit: str
    low: float
    high: float
    scale: Literal["linear", "log"]
    group: str
    meaning: str


FIELDS: tuple[Field, ...] = (
    Field("goodput", "bit/s", 1e4, 1e8, "log", "link", "estimated goodput, bounded by the link's silence"),
    Field("goodput_known", "", 0, 1, "linear", "link", "1 once an acknowledgement has given a sample"),
    Field("goodput_age", "s", 0.05, 50, "log", "link", "age of the newest goodput sample"),
    Field("goodput_spread", "", 0, 2, "linear", "link", "mean |ln(sample / estimate)|"),
    Field("rtt", "s", 0.002, 5, "log", "link", "round trip of an almost empty message"),
    Field("heard_age", "s", 0.05, 50, "log", "link", "time since anything came from the edge"),
    Field("signal", "dBm", -140, -40, "linear", "link", "received signal power, where the device reports it"),
    Field("signal_known", "", 0, 1, "linear", "link", "1 when the device reports it"),
    Field("unacked_bytes", "bytes", 64, 1e6, "log", "queue", "sent and not acknowledged"),
    Field("unacked_count", "messages", 0, 8, "linear", "queue", "sent and not acknowledged"),
    Field("backlog", "s", 0, 2, "linear", "queue", "estimated time until those are served"),
    Field("overdue", "s", 0, 2, "linear", "queue", "how long those are overdue at the estimated goodput"),
    Field("slot_occupied", "", 0, 1, "linear", "queue", "1 when a frame waits for the window to open"),
    Field("frame_wait", "s", 0, 0.5, "linear", "queue", "age of the frame at hand when the head starts"),
    Field("server_time", "s", 0.001, 1, "log", "server", "residence on the server as last reported"),
    Field("server_queue", "s", 0.001, 1, "log", "server", "queueing part of it"),
    Field("load", "", 0, 1, "linear", "device", "load of the device by other work"),
    Field("load_known", "", 0, 1, "linear", "device", "1 when the device reports it"),
    Field("temperature", "degC", 0, 100, "linear", "device", "temperature of the device"),
    Field("temperature_known", "", 0, 1, "linear", "device", "1 when the device reports it"),
    Field("battery", "", 0, 1, "linear", "device", "battery charge, fraction"),
    Field("battery_known", "", 0, 1, "linear", "device", "1 when the device reports it"),
    Field("exit_confidence", "", 0, 1, "linear", "content", "calibrated confidence of the last exit"),
    Field("exit_confidence_mean", "", 0, 1, "linear", "content", "its forgetting mean"),
    Field("agreement", "", 0, 1, "linear", "content", "forgetting mean of exit-tail agreement in results that came"),
    Field("sharpness", "", 0, 1, "linear", "content", "sharpness of the frame at hand"),
    Field("difference", "", 0, 1, "linear", "content", "difference of the frame at hand to the last one"),
    Field("held_age", "s", 0, 2, "linear", "content", "age of the frame whose answer is held (2 when none is)"),
    Field("held_confidence", "", 0, 1, "linear", "content", "confidence of the answer that is held"),
    Field("last_branch", "", 0, 1, "linear", "history", "index of the last branch / (B - 1)"),
    Field("last_rate", "", 0, 1, "linear", "history", "index of the last rate / (R - 1)"),
    Field("last_threshold", "", 0, 1, "linear", "history", "last exit threshold, at most 1"),
    Field("last_sent", "", 0, 1, "linear", "history", "1 when the last frame was handed to the link"),
    Field("miss_rate", "", 0, 1, "linear", "history", "forgetting mean of misses"),
    Field("fallback_rate", "", 0, 1, "linear", "history", "forgetting mean of fallbacks"),
)
SIZE = len(FIELDS)
NAMES = tuple(field.name for field in FIELDS)

_LOG = np.array([field.scale == "log" for field in FIELDS])
_LOW = np.array([math.log(f.low) if f.scale == "log" else f.low for f in FIELDS], dtype=np.float64)
_HIGH = np.array([math.log(f.high) if f.scale == "log" else f.high for f in FIELDS], dtype=np.float64)


def schema_hash() -> str:
    """Return 16 hex digits that change with any change of the fields; a bundle carries it."""
    text = json.dumps([asdict(field) for field in FIELDS], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def index(name: str) -> int:
    """Return the position of a field; KeyError names the nearest one."""
    if name not in NAMES:
        raise KeyError(f"unknown observation field {name!r}{did_you_mean(name, NAMES)}")
    return NAMES.index(name)


def physical(observation: NDArray[Any], name: str) -> NDArray[np.float64]:
    """Return one field of (..., D) observations in its unit (clipped to its bounds)."""
    i = index(name)
    value = _LOW[i] + np.asarray(observation[..., i], dtype=np.float64) * (_HIGH[i] - _LOW[i])
    return np.asarray(np.exp(value) if _LOG[i] else value)


def scaled(name: str, value: NDArray[Any] | float) -> NDArray[np.float64]:
    """Return values (...) of one field in its unit as an observation holds them: the inverse of ``physical``."""
    i = index(name)
    given = np.log(value) if _LOG[i] else np.asarray(value, dtype=np.float64)
    return np.asarray(np.clip((given - _LOW[i]) / (_HIGH[i] - _LOW[i]), 0.0, 1.0))


def markdown_table() -> str:
    """Return the documentation table of the fields."""
    head = "| # | field | unit | bounds | scale | group | meaning |\n| --: | --- | --- | --- | --- | --- | --- |\n"
    rows = (
        f"| {i} | `{f.name}` | {f.unit} | {f.low:g} .. {f.high:g} | {f.scale} | {f.group} | {f.meaning} |"
        for i, f in enumerate(FIELDS)
    )
    return head + "\n".join(rows)


def observe(
    x: est.Tracker,
    now: float,
    frame_wait: float,
    slot_occupied: float,
    sharpness: float,
    difference: float,
    raw: NDArray[Any],
) -> None:
    """Write the physical value of every field into ``raw`` (D,), in the order of ``FIELDS``.

    Compiled by the simulator and called as plain Python by the device.
    """
    raw[0] = est.goodput_now(x, now)
    raw[1] = 0.0 if x[est.GOODPUT_AT] == -math.inf else 1.0
    raw[2] = now - x[est.GOODPUT_AT]
    raw[3] = x[est.GOODPUT_SPREAD]
    raw[4] = x[est.RTT]
    raw[5] = now - x[est.HEARD_AT]
    _known(x[est.SIGNAL], raw, 6)
    raw[8] = x[est.UNACKED_BYTES]
    raw[9] = x[est.UNACKED_COUNT]
    raw[10] = est.backlog_s(x, now)
    raw[11] = est.overdue_s(x, now)
    raw[12] = slot_occupied
    raw[13] = frame_wait
    raw[14] = x[est.SERVER_S]
    raw[15] = x[est.SERVER_QUEUE_S]
    _known(x[est.LOAD], raw, 16)
    _known(x[est.TEMPERATURE], raw, 18)
    _known(x[est.BATTERY], raw, 20)
    raw[22] = x[est.EXIT_CONFIDENCE]
    raw[23] = x[est.EXIT_CONFIDENCE_MEAN]
    raw[24] = x[est.AGREEMENT]
    raw[25] = sharpness
    raw[26] = difference
    raw[27] = now - x[est.HELD_AT]
    raw[28] = x[est.HELD_CONFIDENCE]
    raw[29] = x[est.LAST_BRANCH]
    raw[30] = x[est.LAST_RATE]
    raw[31] = x[est.LAST_THRESHOLD]
    raw[32] = x[est.LAST_SENT]
    raw[33] = x[est.MISS_RATE]
    raw[34] = x[est.FALLBACK_RATE]


_LOGS = [i for i, field in enumerate(FIELDS) if field.scale == "log"]
_SPAN = _HIGH - _LOW
_ZEROS, _ONES = np.zeros(SIZE), np.ones(SIZE)


def observation_row(
    x: NDArray[Any], now: float, frame_wait: float, slot_occupied: float, sharpness: float, difference: float
) -> NDArray[np.float32]:
    """Return one observation (D,): ``observe`` and ``normalise`` on Python's numbers, for a device.

    The same values in a quarter of the time. The goodput in ``x`` must be above 0, as from ``estimators.start`` on.
    """
    raw: Any = [0.0] * SIZE
    numbers: Any = x.tolist()
    observe(numbers, now, frame_wait, slot_occupied, sharpness, difference, raw)
    for i in _LOGS:
        raw[i] = math.log(raw[i]) if raw[i] > 0.0 else -math.inf
    row = np.array(raw)
    row -= _LOW
    row /= _SPAN
    np.fmax(row, _ZEROS, out=row)  # NaN becomes 0
    np.fmin(row, _ONES, out=row)
    return row.astype(np.float32)


def _known(value: float, raw: NDArray[Any], i: int) -> None:
    """Write a telemetry value and its flag at ``i`` and ``i + 1``."""
    known = not math.isnan(value)
    raw[i] = value if known else 0.0
    raw[i + 1] = 1.0 if known else 0.0


def normalise(raw: NDArray[Any], out: NDArray[Any]) -> None:
    """Scale physical values (D,) to 0..1 into ``out`` (D,); what is outside the bounds is clipped, NaN becomes 0."""
    for i in range(SIZE):
        value = raw[i]
        if _LOG[i]:
            value = math.log(value) if value > 0.0 else -math.inf
        scaled = (value - _LOW[i]) / (_HIGH[i] - _LOW[i])
        out[i] = min(max(scaled, 0.0), 1.0) if scaled == scaled else 0.0
