"""Simulated against live: the same controllers on the same link, the same columns, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adaptsplit.errors import DataError
from adaptsplit.evaluation.metrics import nanmean_rows
from adaptsplit.outcome import OUTCOME, Outcomes, Path

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
    Column("energy", "mJ", 1),
    *COLUMNS[5:],
)


@dataclass(frozen=True, slots=True)
class LiveRow:
    """One number of one controller, simulated and live (NaN where there is none).

    ``spread`` is the standard deviation of the simulated number over repeats of the same stretch (0 for one repeat):
    how much one run differs from another by stage times and losses alone.
    """

    controller: str
    column: Column
    simulated: float
    live: float
    spread: float = 0.0

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
    def verdict(self) -> Literal["within", "outside", "unknown"]:
        """Whether the difference is within the tolerance; "unknown" where none is set or a number is missing."""
        found = self.relative if self.column.relative else self.difference
        if self.column.tolerance is None or np.isnan(found):
            return "unknown"
        return "within" if abs(found) <= self.column.tolerance else "outside"


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
        ours, theirs, spread = _numbers(name, simulated[name]), _numbers(name, records), _spread(name, simulated[name])
        rows += [LiveRow(name, column, ours[column.name], theirs[column.name], spread[column.name]) for column in shown]
    return LiveComparison(tuple(rows), {name: int(records.size) for name, records in live.items()}, note)


def _columns(outcomes: list[Outcomes], columns: Sequence[Column]) -> list[Column]:
    stale = any((records["path"] == Path.STALE).any() for records in outcomes)
    return [column for column in columns if stale or column.name != "stale"]


def _numbers(name: str, outcomes: Outcomes) -> dict[str, float]:
    if outcomes.dtype != OUTCOME or outcomes.size == 0:
        raise DataError(f"{name}: expected at least one outcome record, found {outcomes.size} of type {outcomes.dtype}")
    flat = outcomes.ravel()
    path, answer = flat["path"], _known(flat["answer_latency_s"])
    fallback = (path == Path.FALLBACK_LATE) | (path == Path.FALLBACK_PASSED)
    return {
        "quality": float(nanmean_rows(flat["quality"][None].astype(np.float64))[0]),
        "answer p50": _percentile_ms(answer, 0.5),
        "answer p95": _percentile_ms(answer, 0.95),
        "remote p50": _percentile_ms(_known(flat["remote_latency_s"]), 0.5),
        "bytes": float(flat["sent_bytes"].mean()),
        "energy": 1e3 * float((flat["compute_j"].astype(np.float64) + flat["radio_j"]).mean()),
        "miss": 100 * float((path == Path.MISS).mean()),
        "fallback": 100 * float(fallback.mean()),
        "exit": 100 * float((path == Path.EXIT).mean()),
        "stale": 100 * float((path == Path.STALE).mean()),
        "sent": 100 * float((flat["sent_bytes"] > 0).mean()),
    }


def _spread(name: str, outcomes: Outcomes) -> dict[str, float]:
    """Standard deviation of each number over the repeats (rows ``env``) of a simulation."""
    flat = outcomes.ravel()
    repeats = [_numbers(name, flat[flat["env"] == row]) for row in np.unique(flat["env"])]
    numbers = {name: np.array([repeat[name] for repeat in repeats]) for name in repeats[0]}
    return {key: 0.0 if np.isnan(values).all() else float(np.nanstd(values)) for key, values in numbers.items()}


def _known(values: Outcomes) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.sort(values[~np.isnan(values)].astype(np.float64))


def _percentile_ms(ordered: np.ndarray[tuple[int], np.dtype[np.float64]], q: float) -> float:
    return 1e3 * float(ordered[max(0, int(np.ceil(q * len(ordered))) - 1)]) if len(ordered) else float("nan")
