"""What the processes of the live side share: session ids, the ready line, exit codes, starting one another."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from adaptsplit.errors import AdaptsplitError, RunError


def new_session() -> bytes:
    """Return 16 random bytes that name one life of a process."""
    return uuid.uuid4().bytes


def announce(value: dict[str, Any]) -> None:
    """Print one JSON line on standard output; a parent process waits for it."""
    print(json.dumps(value), flush=True)


def run_main(body: Callable[[], None]) -> int:
    """Run ``body`` and return the exit code: our own errors become one line on standard error."""
    try:
        body()
    except AdaptsplitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    return 0


class Child:
    """One of our modules as a subprocess; a context manager that ends it. Standard error goes to ``log``."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        self.module = module
        self._log: IO[bytes] = log.open("ab")
        self._path = log
        command = [sys.executable, "-m", f"adaptsplit.device_bridge.{module}", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def read(self, timeout_s: float) -> dict[str, Any]:
        """Return the next JSON line of its standard output; RunError when it ends or says nothing."""
        assert self.process.stdout is not None
        line = _read_line(self.process.stdout.fileno(), time.monotonic() + timeout_s)
        if line is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
            state = self.process.poll()
            said = self._path.read_text(errors="replace").strip()[-500:]
            raise RunError(f"{self.module}: {'no answer' if state is None else f'ended with {state}'}; {said}")
        value: dict[str, Any] = json.loads(line)
        return value

    def write(self, value: dict[str, Any]) -> None:
        """Send one JSON line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, as a crash would end it."""
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self, timeout_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._close()

    def _close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout, self._log):
            if stream is not None and not stream.closed:
                with contextlib.suppress(OSError):
                    stream.close()


def _read_line(descriptor: int, until: float) -> bytes | None:
    """Read one line, byte by byte (lines are short and rare); None at the end or after ``until``."""
    line = b""
    while (left := until - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            return None
        byte = os.read(descriptor, 1)
        if not byte:
            return None
        if byte == b"\n":
            return line
        line += byte
    return None
