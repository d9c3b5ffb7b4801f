"""Files that are written whole or not at all, that are never overwritten, or that only their owner may read."""

from __future__ import annotations

import os
from pathlib import Path

from adaptsplit.errors import ConfigError

_OTHERS = 0o077


def write_whole(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write ``data`` beside ``path`` (``NAME.part``) and put it in its place at one instant.

    ``durable`` waits until the data is on the disk, so that it outlives a power cut, too. OSError as any writing.
    """
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist yet, with these permissions from its first byte on; OSError as any writing."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def check_private(path: Path) -> None:
    """Refuse a private key that is missing, or that others may read (POSIX); ConfigError with the cure."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a private key") from error
    if os.name == "posix" and mode & _OTHERS:
        raise ConfigError(f"{path}: others may read this private key; cure: chmod 600 {path}")
