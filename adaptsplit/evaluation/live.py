"""Simulated against live: the same controllers on the same link, the same columns, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import DataError
from adaptsplit.evaluation.metrics import nanmean_rows
from adaptsplit.evaluation.statistics import Interval
from adaptsplit.outcome import OUTCOME, Outcomes, Path

Floats = NDArray[np.float64]

DASH = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Column:
    """One compared number; ``tolerance`` is what the twin promises, absolute or relative, None where nothing is."""

    name: str
    unit: str
    digits: int
    tolerance: float | None = None
    relative: bool = False


COLUMNS = (
    Column("quality", "", 3, 0.02),
    Column("answer p50", "ms", 1, 0.15, relative=True),
    Column("answer p95", "ms", 1),
    Column("remote p50", "ms", 1),
    Column("bytes", "B/frame", 0, 0.02, relative=True),
    Column("miss", "%", 1),
    Column("fallback", "%", 1),
    Column("exit", "%", 1),
    Column("stale", "%", 1),
    Column("sent", "%", 1),
)
# What a replay on the run's own link promises (``replay``): the link is known there, so more can be asked.
REPLAY_COLUMNS = (
    Column("quality", "", 3, 0.02),
    Column("answer p50", "ms", 1, 0.10, relative=True),
    Column("answer p95", "ms", 1, 0.20, relative=True),
    Column("remote p50", "ms", 1),
    Column("bytes", "B/frame", 0, 0.01, relative=True),
    Column("bytes of a sent one", "B", 0),
    Column("energy", "mJ", 1),
    *COLUMNS[5:],
)


@dataclass(frozen=True, slots=True)
class LiveRow:
    """One number of one controller, simulated and live (NaN where there is none).

    ``spread`` is the standard deviation of the simulated number over repeats of the same stretch (0 for one repeat):
    how much one run differs from another by stage times and losses alone. ``interval`` is that of ``gap``, where one
    was made (``adaptsplit.evaluation.gap``).
    """

    controller: str
    column: Column
    simulated: float
    live: float
    spread: float = 0.0
    interval: Interval | None = None

    @property
    def simulated_text(self) -> str:
        """The simulated number with its spread over repeats, as tables print it."""
        if np.isnan(self.simulated):
            return DASH
        digits = self.column.digits
        text = f"{self.simulated:.{digits}f}"
        return f"{text} ±{self.spread:.{digits}f}" if self.spread >= 0.5 * 10**-digits else text

    @property
    def difference(self) -> float:
        """Live less simulated, in the column's unit."""
        return self.live - self.simulated

    @property
    def relative(self) -> float:
        """The difference as a fraction of the simulated value; NaN where that is 0."""
        return self.difference / self.simulated if self.simulated else float("nan")

    @property
    def gap(self) -> float:
        """What the tolerance is held against: ``relative`` where it is a fraction, else ``difference``."""
        return gap_of(self.column, self.simulated, self.live)

    @property
    def sure(self) -> bool:
        """Whether the whole interval of the gap is on the side of the tolerance on which the gap is."""
        if self.interval is None or self.column.tolerance is None:
            return False
        limit, low, high = self.column.tolerance, self.interval.low, self.interval.high
        return max(abs(low), abs(high)) <= limit if self.verdict == "within" else low > limit or high < -limit

    @property
    def verdict(self) -> Literal["within", "outside", "unknown"]:
        """Whether the difference is within the tolerance; "unknown" where none is set or a number is missing."""
        if self.column.tolerance is None or np.isnan(self.gap):
            return "unknown"
        return "within" if abs(self.gap) <= self.column.tolerance else "outside"


def gap_of(column: Column, simulated: float, live: float) -> float:
    """Return live less simulated, as a fraction of the simulated value where the column says so (NaN when that is 0).

    Two zeros have no gap.
    """
    if not column.relative or live == simulated:
        return live - simulated
    return (live - simulated) / simulated if simulated else float("nan")


@dataclass(frozen=True, slots=True)
class LiveComparison:
    """All rows, controller by controller; ``frames`` is the number of live frames per controller."""

    rows: tuple[LiveRow, ...]
    frames: Mapping[str, int]
    note: str = ""

    @property
    def controllers(self) -> tuple[str, ...]:
        """Names in the order given."""
        return tuple(dict.fromkeys(row.controller for row in self.rows))


def compare_live(
    simulated: Mapping[str, Outcomes],
    live: Mapping[str, Outcomes],
    *,
    note: str = "",
    columns: Sequence[Column] = COLUMNS,
) -> LiveComparison:
    """Compare outcomes of the same controllers (any shape of ``OUTCOME`` records); DataError when names differ.

    The share of answers that were used again ("stale") is a row only where there are such answers.
    """
    if set(simulated) != set(live) or not live:
        raise DataError(
            f"live results of {sorted(live)}, simulated of {sorted(simulated)}; expected the same names; give every "
            "controller a block on both sides (more frames, or a smaller --block)"
        )
    shown = _columns([*simulated.values(), *live.values()], columns)
    rows = []
    for name, records in live.items():
        ours, theirs, spread = (
            numbers_of(name, simulated[name]),
            numbers_of(name, records),
            _spread(name, simulated[name]),
        )
        rows += [LiveRow(name, column, ours[column.name], theirs[column.name], spread[column.name]) for column in shown]
    return LiveComparison(tuple(rows), {name: int(records.size) for name, records in live.items()}, note)


def _columns(outcomes: list[Outcomes], columns: Sequence[Column]) -> list[Column]:
    stale = any((records["path"] == Path.STALE).any() for records in outcomes)
    return [column for column in columns if stale or column.name != "stale"]


def numbers_of(name: str, outcomes: Outcomes) -> dict[str, float]:
    """Return every number that a ``Column`` names, of records of any shape; DataError (it says ``name``) for none."""
    if outcomes.dtype != OUTCOME or outcomes.size == 0:
        raise DataError(f"{name}: expected at least one outcome record, found {outcomes.size} of type {outcomes.dtype}")
    return {column: float(value[0]) for column, value in reduced(values_of(outcomes.ravel()[None])).items()}


def values_of(outcomes: Outcomes) -> dict[str, Floats]:
    """Return what of (W, N) records the numbers are made of, each (W, N) float64."""
    energy = outcomes["compute_j"].astype(np.float64) + outcomes["radio_j"]
    plain = ("quality", "answer_latency_s", "remote_latency_s", "sent_bytes", "path")
    return {name: outcomes[name].astype(np.float64) for name in plain} | {"energy_j": energy}


def reduced(values: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return every number that a ``Column`` names, (W,), over the N records of each row of ``values_of``."""
    path, sent = values["path"], values["sent_bytes"]
    fallback = (path == Path.FALLBACK_LATE) | (path == Path.FALLBACK_PASSED)
    answer = np.sort(values["answer_latency_s"], axis=1)
    return {
        "quality": nanmean_rows(values["quality"]),
        "answer p50": _percentile_ms(answer, 0.5),
        "answer p95": _percentile_ms(answer, 0.95),
        "remote p50": _percentile_ms(np.sort(values["remote_latency_s"], axis=1), 0.5),
        "bytes": sent.mean(axis=1),
        "bytes of a sent one": nanmean_rows(np.where(sent > 0, sent, np.nan)),
        "energy": 1e3 * values["energy_j"].mean(axis=1),
        "miss": 100 * (path == Path.MISS).mean(axis=1),
        "fallback": 100 * fallback.mean(axis=1),
        "exit": 100 * (path == Path.EXIT).mean(axis=1),
        "stale": 100 * (path == Path.STALE).mean(axis=1),
        "sent": 100 * (sent > 0).mean(axis=1),
    }


def _spread(name: str, outcomes: Outcomes) -> dict[str, float]:
    """Standard deviation of each number over the repeats (rows ``env``) of a simulation."""
    flat = outcomes.ravel()
    repeats = [numbers_of(name, flat[flat["env"] == row]) for row in np.unique(flat["env"])]
    numbers = {name: np.array([repeat[name] for repeat in repeats]) for name in repeats[0]}
    return {key: 0.0 if np.isnan(values).all() else float(np.nanstd(values)) for key, values in numbers.items()}


def _percentile_ms(ordered: Floats, q: float) -> Floats:
    """(W,) the smallest of each row that at least a share ``q`` of its known ones does not exceed; NaN comes last."""
    known = (~np.isnan(ordered)).sum(axis=1)
    place = np.maximum(np.ceil(q * known).astype(np.int64) - 1, 0)
    return np.asarray(1e3 * np.take_along_axis(ordered, place[:, None], axis=1)[:, 0])
