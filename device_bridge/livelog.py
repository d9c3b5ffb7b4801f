"""The live log: one JSON line per frame (the outcome record, the controller's name, the times of its stages, and, if it
was asked for, the decided observation), and one per event (``{"event": kind, "frame": ..., "detail": ...}``).

The first line is an event ``run``: what ran (controllers, block, frames, rates), so that the run can be played again in
the simulator. An event ``beat`` is an answered heartbeat (``sent_s``, ``heard_s``). ``times`` of a frame, in s since
frame 0 and only what is known: ``looked_s``, ``exit_s``, ``free_s`` (content signals, exit, encoding done), ``sent_s``,
``acked_s`` (handed to the link, acknowledged by the edge), ``wire_bytes``, the edge's ``server_s`` (residence) and
``queue_s`` (the waiting in it), both durations in s, and ``signal_dbm`` as it was reported. A log is read again by
``adaptsplit.recorded_run``; what of it is a link by ``adaptsplit.links.livelog``.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptsplit.device_bridge.line_file import LineFile
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes, to_rows
from adaptsplit.recorded_run import by_controller, joined

log = logging.getLogger("adaptsplit.device")

OLD_SUFFIX = ".old"
PATIENCE = 2  # how many times its limit a file may reach while it cannot be set aside


class LiveLog:
    """Collects the records of a run and writes them as they come; a context manager.

    limit_bytes: a file that reaches it is set aside as ``NAME.old`` (as is what an earlier life left there) and a new
    one begun; None for one file without a bound. kept: how many frames' records stay in memory; None for all.
    A file that cannot be set aside is written on, up to twice its limit, and every line tries again.
    A full disk costs lines (``lost``), and never an exception; the log goes on when there is room again.
    ConfigError at the start, when the log cannot be begun or what is there cannot be set aside.
    """

    def __init__(
        self, path: Path | None, observations: bool = False, limit_bytes: int | None = None, kept: int | None = None
    ) -> None:
        self._limit = limit_bytes
        self._kept = kept
        self._path = path
        self._described: Mapping[str, Any] = {}
        self._file = None if path is None else _opened(path, aside=limit_bytes is not None)
        self._lost = 0
        self._stuck = False
        self._observations = observations
        self._records: dict[int, tuple[str, Outcomes]] = {}

    def __enter__(self) -> LiveLog:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def lost(self) -> int:
        """How many lines the disk has not taken."""
        return self._lost + (self._file.lost if self._file is not None else 0)

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
        rows = [self._records[frame] for frame in sorted(self._records)]
        return by_controller([name for name, _ in rows], joined([row for _, row in rows]))

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        if self._full(self._file, PATIENCE) and not self._rotated(self._file):
            self._lost += 1
        elif self._file.write(json.dumps(row, allow_nan=False)) and self._full(self._file):
            self._rotated(self._file)

    def _full(self, file: LineFile, times: int = 1) -> bool:
        return self._limit is not None and file.size >= times * self._limit

    def _rotated(self, file: LineFile) -> bool:
        """Begin a new file, its first line ``run``, and keep the full one as the older; whether that went."""
        assert self._path is not None
        try:
            _set_aside(self._path)
            fresh = LineFile(self._path)
        except OSError as error:
            self._say_stuck(error)
            return False
        file.close()
        self._lost, self._file, self._stuck = self.lost, fresh, False
        if self._described:
            fresh.write(json.dumps(self._described, allow_nan=False))
        return True

    def _say_stuck(self, error: OSError) -> None:
        if not self._stuck:
            log.warning("%s: no new file (%s); the full one grows, then lines are lost", self._path, error.strerror)
        self._stuck = True


def _set_aside(path: Path) -> None:
    """Rename what is there; a log that is open is written on under its new name."""
    if path.is_file() and path.stat().st_size:
        path.replace(path.with_name(path.name + OLD_SUFFIX))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _opened(path: Path, *, aside: bool) -> LineFile:
    """Open the log, its folder made where it is missing; ConfigError at the start rather than a run without a log."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if aside:
            _set_aside(path)
        return LineFile(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file with --log") from error
