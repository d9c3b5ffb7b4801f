"""Files that are written whole or not at all, that are never overwritten, or that only their owner may read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from adaptsplit.errors import ConfigError

_OTHERS = 0o077


def write_whole(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write ``data`` beside ``path`` (``NAME.draft-PID``) and put it in its place at one instant.

    Whatever fails, the old content stays and the draft is removed. ``durable`` waits until data and name are on the
    disk, so that a power cut leaves the old content or the new one. OSError as any writing.
    """
    draft = path.with_name(f"{path.name}.draft-{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        _remove(draft)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; only POSIX lets a folder be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist yet, with these permissions from its first byte on.

    OSError as any writing; a file that was begun is removed then, so that writing can be tried again.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except BaseException:
        _remove(path)
        raise


def _remove(path: Path) -> None:
    """Remove what was begun, if that goes: why it was not finished matters more."""
    with contextlib.suppress(OSError):
        path.unlink()


def check_private(path: Path) -> None:
    """Refuse a private key that is missing, or that others may read (POSIX); ConfigError with the cure."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a private key") from error
    if os.name == "posix" and mode & _OTHERS:
        raise ConfigError(f"{path}: others may read this private key; cure: chmod 600 {path}")
