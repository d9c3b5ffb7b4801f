"""A file of lines that are written whole or not at all, by a process that must go on when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

log = logging.getLogger("adaptsplit.device")


class LineFile:
    """Opened anew for writing; unbuffered, so that a line that was written survives the process.

    A line that the disk does not take is lost and counted (``lost``), and what of it was written is taken back: the
    file stays one of whole lines, and goes on when there is room again. ``size`` is in bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=0)
        self.size = 0
        self.lost = 0

    def write(self, line: str) -> bool:
        """Write a line (without its end); whether the disk has taken it. Never raises OSError."""
        data = line.encode() + b"\n"
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._take_back(error)
            return False
        self.size += len(data)
        return True

    def close(self) -> None:
        """Close the file; a disk that fails even then is no reason to fail."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _take_back(self, error: OSError) -> None:
        if not self.lost:
            log.warning("%s: %s; lines are lost until there is room, the flight goes on", self._path, error.strerror)
        self.lost += 1
        with contextlib.suppress(OSError):
            self._file.truncate(self.size)
            self._file.seek(self.size)
