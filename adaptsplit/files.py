"""Writing a file so that no reader, and no process that is killed, ever leaves or meets half of it."""

from __future__ import annotations

import os
from pathlib import Path


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
