"""The live log: one JSON line per frame (the outcome record, the controller's name, the decided observation), and one
per event (``{"event": kind, "frame": ..., "detail": ...}``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from adaptsplit.errors import DataError
from adaptsplit.outcome import OUTCOME, Outcomes, from_rows, to_rows


class LiveLog:
    """Collects the records of a run and writes them as they come; a context manager."""

    def __init__(self, path: Path | None, observations: bool = False) -> None:
        self._file: IO[str] | None = None if path is None else path.open("w", encoding="utf-8")
        self._observations = observations
        self._records: dict[int, tuple[str, Outcomes]] = {}

    def __enter__(self) -> LiveLog:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, controller: str, outcome: Outcomes, observation: Sequence[float] | None) -> None:
        """Write one frame's end; ValueError when the frame has one already."""
        frame = int(outcome["frame"][0])
        if frame in self._records:
            raise ValueError(f"frame {frame} has ended twice")
        self._records[frame] = controller, outcome
        if self._file is not None:
            row: dict[str, Any] = {**next(iter(to_rows(outcome))), "controller": controller}
            if self._observations and observation is not None:
                row["observation"] = [round(float(value), 6) for value in observation]
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()

    def event(self, frame: int, kind: str, detail: str) -> None:
        """Write something that happened at a frame, such as a switch of the guard."""
        if self._file is not None:
            self._file.write(json.dumps({"event": kind, "frame": frame, "detail": detail}) + "\n")
            self._file.flush()

    def outcomes(self) -> dict[str, Outcomes]:
        """Return the records of each controller, in the order of frames."""
        return _by_controller([self._records[frame] for frame in sorted(self._records)])


def read_live_log(path: Path) -> dict[str, Outcomes]:
    """Read a live log: the records of each controller in the order of frames; DataError for a broken file."""
    rows: list[tuple[str, Outcomes]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            if "event" in row:
                continue
            rows.append((str(row["controller"]), from_rows([row])))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a line of a live log ({error!r})") from error
    return _by_controller(sorted(rows, key=lambda item: int(item[1]["frame"][0])))


def _by_controller(rows: list[tuple[str, Outcomes]]) -> dict[str, Outcomes]:
    names = dict.fromkeys(name for name, _ in rows)
    nothing = np.zeros(0, dtype=OUTCOME)
    return {name: np.concatenate([nothing, *(row for owner, row in rows if owner == name)]) for name in names}
