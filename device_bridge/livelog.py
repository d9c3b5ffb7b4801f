"""The live log: one JSON line per frame (the outcome record, the controller's name, the times of its stages, and, if it
was asked for, the decided observation), and one per event (``{"event": kind, "frame": ..., "detail": ...}``).

The first line is an event ``run``: what ran (controllers, block, frames, rates), so that the run can be played again in
the simulator. An event ``beat`` is an answered heartbeat (``sent_s``, ``heard_s``). ``times`` of a frame, in s since
frame 0 and only what is known: ``looked_s``, ``exit_s``, ``free_s`` (content signals, exit, encoding done), ``sent_s``,
``acked_s`` (handed to the link, acknowledged by the edge), ``wire_bytes``, the edge's ``server_s`` (residence) and
``queue_s`` (the waiting in it), both durations in s, and ``signal_dbm`` as it was reported. What of a log is a link is
read by ``adaptsplit.links.livelog``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from adaptsplit.errors import DataError
from adaptsplit.outcome import OUTCOME, Outcomes, from_rows, to_rows

OLD_SUFFIX = ".old"


class LiveLog:
    """Collects the records of a run and writes them as they come; a context manager.

    limit_bytes: a file that reaches it is set aside as ``NAME.old`` (as is what an earlier life left there) and a new
    one begun; None for one file without a bound. kept: how many frames' records stay in memory; None for all.
    """

    def __init__(
        self, path: Path | None, observations: bool = False, limit_bytes: int | None = None, kept: int | None = None
    ) -> None:
        self._limit = limit_bytes
        self._kept = kept
        self._path = path
        self._described: Mapping[str, Any] = {}
        if limit_bytes is not None:
            self._set_aside()
        self._file: IO[str] | None = None if path is None else path.open("w", encoding="utf-8")
        self._observations = observations
        self._records: dict[int, tuple[str, Outcomes]] = {}

    def __enter__(self) -> LiveLog:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self, description: Mapping[str, Any]) -> None:
        """Write what runs; numbers that are not finite become null."""
        self._described = {"event": "run", "frame": 0, "detail": "", **_finite(description)}
        self._write(self._described)

    def add(
        self,
        controller: str,
        outcome: Outcomes,
        observation: Sequence[float] | None,
        times: Mapping[str, float] | None = None,
    ) -> None:
        """Write one frame's end; ValueError when the frame has one already."""
        frame = int(outcome["frame"][0])
        if frame in self._records:
            raise ValueError(f"frame {frame} has ended twice")
        self._records[frame] = controller, outcome
        if self._kept is not None:
            self._records.pop(frame - self._kept, None)
        row: dict[str, Any] = {**next(iter(to_rows(outcome))), "controller": controller}
        if times:
            row["times"] = {name: round(value, 6) for name, value in times.items()}
        if self._observations and observation is not None:
            row["observation"] = [round(float(value), 6) for value in observation]
        self._write(row)

    def beat(self, sent_s: float, heard_s: float) -> None:
        """Write an answered heartbeat: when it was sent and when its reply came, s since frame 0."""
        if math.isfinite(sent_s) and math.isfinite(heard_s):
            self._write(
                {"event": "beat", "frame": -1, "detail": "", "sent_s": round(sent_s, 6), "heard_s": round(heard_s, 6)}
            )

    def event(self, frame: int, kind: str, detail: str) -> None:
        """Write something that happened at a frame, such as a switch of the guard."""
        self._write({"event": kind, "frame": frame, "detail": detail})

    def outcomes(self) -> dict[str, Outcomes]:
        """Return the records of each controller, in the order of frames."""
        return _by_controller([self._records[frame] for frame in sorted(self._records)])

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            self._rotate(self._file)

    def _rotate(self, file: IO[str]) -> None:
        """Begin a new file when this one is full; each has the line ``run`` first, and one older file is kept."""
        if self._limit is None or self._path is None or file.tell() < self._limit:
            return
        file.close()
        self._set_aside()
        self._file = self._path.open("w", encoding="utf-8")
        if self._described:
            self._file.write(json.dumps(self._described, allow_nan=False) + "\n")

    def _set_aside(self) -> None:
        if self._path is not None and self._path.is_file() and self._path.stat().st_size:
            self._path.replace(self._path.with_name(self._path.name + OLD_SUFFIX))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A live log as it was read: what ran (the line ``run``; empty where there is none), every frame's record in
    order (F,), the controller of each, and the times of its stages."""

    description: Mapping[str, Any]
    records: Outcomes
    controllers: tuple[str, ...]
    times: tuple[Mapping[str, float], ...] = field(repr=False)

    def by_controller(self) -> dict[str, Outcomes]:
        """Return the records of each controller, in the order of frames."""
        return {
            name: self.records[[own == name for own in self.controllers]] for name in dict.fromkeys(self.controllers)
        }


def read_run(path: Path) -> RecordedRun:
    """Read a live log; DataError names the line of a broken one."""
    description: Mapping[str, Any] = {}
    rows: list[tuple[Outcomes, str, Mapping[str, float]]] = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
            if "event" in row:
                description = row if row["event"] == "run" else description
                continue
            times = {str(name): float(value) for name, value in row.get("times", {}).items()}
            rows.append((from_rows([row]), str(row["controller"]), times))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}, line {number}: not a line of a live log ({error!r})") from error
    rows.sort(key=lambda item: int(item[0]["frame"][0]))
    records = np.concatenate([np.zeros(0, dtype=OUTCOME), *(row for row, _, _ in rows)])
    return RecordedRun(description, records, tuple(name for _, name, _ in rows), tuple(times for *_, times in rows))


def read_live_log(path: Path) -> dict[str, Outcomes]:
    """Read a live log: the records of each controller in the order of frames; DataError for a broken file."""
    return read_run(path).by_controller()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a live log ({error}); make one with: adaptsplit device --log FILE") from error


def _by_controller(rows: list[tuple[str, Outcomes]]) -> dict[str, Outcomes]:
    names = dict.fromkeys(name for name, _ in rows)
    nothing = np.zeros(0, dtype=OUTCOME)
    return {name: np.concatenate([nothing, *(row for owner, row in rows if owner == name)]) for name in names}
