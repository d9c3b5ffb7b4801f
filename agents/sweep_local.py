"""Trials as processes of this machine: one process each, watched and ended on time; a crash ends that trial only."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from adaptsplit.agents.sweep_trial import TrialSpec

COMMAND = (sys.executable, "-m", "adaptsplit.agents.sweep_trial")
GRACE_S = 20.0
"""How long a process that is told to end may take: it writes a checkpoint first."""
KINDS = ("point", "done", "failed")


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a trial: ``point`` (seed, steps, reward), ``done``, or ``failed`` (error)."""

    trial: str
    kind: Literal["point", "done", "failed"]
    value: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    deadline: float
    last: Event | None = None


class TrialProcesses:
    """Trials at work, each in its own process; a context manager that leaves no process behind.

    ``timeout_s`` limits each trial. ``wait`` returns events in the order in which they happen.
    """

    def __init__(self, timeout_s: float | None = None, command: Sequence[str] = COMMAND) -> None:
        self._timeout_s, self._command = timeout_s, tuple(command)
        self._running: dict[str, _Running] = {}
        self._lines: queue.Queue[tuple[str, subprocess.Popen[bytes], bytes | None]] = queue.Queue()

    def __enter__(self) -> TrialProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for running in self._running.values():
            running.process.terminate()
        for name in list(self._running):
            self.stop(name)

    def __len__(self) -> int:
        return len(self._running)

    def start(self, spec: TrialSpec, log: Path) -> None:
        """Start a trial; what it prints is appended to ``log``."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
                start_new_session=True,  # Ctrl-C reaches this process only, which then ends its trials in order
            )
        limit = float("inf") if self._timeout_s is None else time.monotonic() + self._timeout_s
        self._running[spec.name] = _Running(process, limit)
        threading.Thread(target=self._read, args=(spec.name, process), daemon=True).start()
        self._tell(process, spec)

    @staticmethod
    def _tell(process: subprocess.Popen[bytes], spec: TrialSpec) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(spec.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended already: its end is an event

    def _read(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put((name, process, line))
        self._lines.put((name, process, None))

    def stop(self, name: str) -> None:
        """End a trial now; it causes no event."""
        running = self._running.pop(name, None)
        if running is not None:
            running.process.terminate()
            _end(running.process)

    def wait(self, seconds: float = 1.0) -> Event | None:
        """Return the next event, None when nothing happened for ``seconds``."""
        until = time.monotonic() + seconds
        while True:
            late = self._overdue()
            if late is not None:
                return late
            left = until - time.monotonic()
            if left <= 0:
                return None
            try:
                name, process, line = self._lines.get(timeout=min(left, 0.2))
            except queue.Empty:
                continue
            event = self._event(name, process, line)
            if event is not None:
                return event

    def _overdue(self) -> Event | None:
        for name, running in self._running.items():
            if time.monotonic() > running.deadline:
                self.stop(name)
                return Event(name, "failed", {"error": f"took longer than {self._timeout_s:g} s and was ended"})
        return None

    def _event(self, name: str, process: subprocess.Popen[bytes], line: bytes | None) -> Event | None:
        running = self._running.get(name)
        if running is None or running.process is not process:
            return None  # of a trial that was stopped
        if line is None:
            del self._running[name]
            code = _end(process)
            return running.last or Event(name, "failed", {"error": _died(code)})
        event = _parse(name, line)
        if event is None or event.kind == "point":
            return event
        running.last = event  # told when the process has ended
        return None


def _parse(name: str, line: bytes) -> Event | None:
    try:
        message = json.loads(line)
        kind = message.pop("kind")
        return Event(name, kind, message) if kind in KINDS else None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that is ending, by force after ``GRACE_S``; return its exit code."""
    try:
        code = process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if process.stdin is not None:
        process.stdin.close()
    return code


def _died(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code} and no result"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = " (out of memory?)" if -code == getattr(signal, "SIGKILL", 9) else ""
    return f"its process was killed by {name}{hint}"


def run_local(
    trials: Sequence[tuple[TrialSpec, Path]], workers: int, timeout_s: float | None = None
) -> Iterator[Event]:
    """Run trials, ``workers`` at once; yields their events. Every trial ends in exactly one ``done`` or ``failed``."""
    waiting = list(reversed(trials))
    with TrialProcesses(timeout_s) as processes:
        while waiting or len(processes):
            while waiting and len(processes) < workers:
                processes.start(*waiting.pop())
            event = processes.wait()
            if event is not None:
                yield event
