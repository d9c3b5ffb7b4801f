"""A live log as it was written on a device (``adaptsplit.device_bridge.livelog`` describes the lines), read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.errors import DataError
from adaptsplit.outcome import OUTCOME, Outcomes, from_rows

MAX_LOG_BYTES = 512 << 20  # about a day at 10 frames/s: 580 bytes each, more with observations
BROKEN_LINE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)

Seen: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Row:
    """One frame: its record (1,), who decided, the times of its stages, what was seen (D,) where that was read."""

    outcome: Outcomes
    controller: str
    times: Mapping[str, float]
    observation: Seen | None


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A live log as it was read: what ran (the line ``run``; empty where there is none), every frame's record in
    order (F,), the controller of each, the times of its stages, and the (D,) observation of each that has one (all
    None unless observations were asked for)."""

    description: Mapping[str, Any]
    records: Outcomes
    controllers: tuple[str, ...]
    times: tuple[Mapping[str, float], ...] = field(repr=False)
    observations: tuple[Seen | None, ...] = field(default=(), repr=False)

    def by_controller(self) -> dict[str, Outcomes]:
        """Return the records of each controller, in the order of frames."""
        return by_controller(self.controllers, self.records)


def by_controller(controllers: Sequence[str], records: Outcomes) -> dict[str, Outcomes]:
    """Return the records (F,) of each controller, in their order; ``controllers`` names the one of each record."""
    return {name: records[[own == name for own in controllers]] for name in dict.fromkeys(controllers)}


def joined(records: Sequence[Outcomes]) -> Outcomes:
    """Return records (F,) from F records (1,), of which there may be none."""
    return np.concatenate([np.zeros(0, dtype=OUTCOME), *records])


def read_run(path: Path, *, observations: bool = False) -> RecordedRun:
    """Read a live log; DataError names file and line of what is broken, or larger than ``MAX_LOG_BYTES``.

    observations: read what the controller saw, too; a row that is no observation of this version is then an error.
    """
    description: Mapping[str, Any] = {}
    rows: list[_Row] = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
            if "event" in row:
                description = row if row["event"] == "run" else description
            else:
                rows.append(_row(row, observations))
        except BROKEN_LINE as error:
            raise DataError(f"{path}, line {number}: not a line of a live log ({error!r}); take another log") from error
    rows.sort(key=lambda row: int(row.outcome["frame"][0]))
    return RecordedRun(
        description,
        joined([row.outcome for row in rows]),
        tuple(row.controller for row in rows),
        tuple(row.times for row in rows),
        tuple(row.observation for row in rows),
    )


def read_live_log(path: Path) -> dict[str, Outcomes]:
    """Read a live log: the records of each controller in the order of frames; DataError for a broken file."""
    return read_run(path).by_controller()


def _lines(path: Path) -> list[str]:
    try:
        size = path.stat().st_size
        if size > MAX_LOG_BYTES:
            raise DataError(f"{path}: {size} bytes; a log has at most {MAX_LOG_BYTES}; split it")
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a live log ({error}); make one with: adaptsplit device --log FILE") from error


def _row(row: Mapping[str, Any], observed: bool) -> _Row:
    times = {str(name): float(value) for name, value in row.get("times", {}).items()}
    seen = _observation(row.get("observation")) if observed else None
    return _Row(from_rows([dict(row)]), str(row["controller"]), times, seen)


def _observation(value: object) -> Seen | None:
    if value is None:
        return None
    row = np.asarray(value, dtype=np.float32)
    if row.shape != (obs.SIZE,) or not ((row >= 0.0) & (row <= 1.0)).all():
        raise ValueError(f"observation of {row.size} numbers; this version has {obs.SIZE} in 0..1")
    return row
