"""Slots: whole bundles in a device's folder of policies, each named by the SHA-256 of its signature.

A slot appears at one instant: its files are written and synced in a draft folder, which is then renamed. Networks are
hard links to those of the running bundle where the file system has them, else copies; whoever opens a slot checks every
hash again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from adaptsplit.bundle import MANIFEST_FILE, Bundle
from adaptsplit.device_bridge.policy_reasons import Reason, RefusedUpdate
from adaptsplit.device_bridge.policy_update import Update, networks
from adaptsplit.files import sync_folder
from adaptsplit.signing import SIGNATURE_FILE

DRAFT = ".draft"
RESERVE_BYTES = 4 << 20  # of the disk that an update leaves free, for logs and what a learner keeps (assumption)
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)


class Slots:
    """The folder ``slots`` of a policy store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, slot: str) -> Path:
        """Return the folder of a slot."""
        return self.folder / slot

    def sweep(self, keep: Collection[str]) -> None:
        """Remove every slot but ``keep``, and drafts; what cannot be removed stays, for it harms nothing."""
        with contextlib.suppress(OSError):
            for item in list(os.scandir(self.folder)):
                if item.name not in keep:
                    remove(Path(item.path))

    def write(self, update: Update, running: Bundle) -> Path:
        """Write an update's slot with the networks of ``running``; OSError, or RefusedUpdate for a full disk."""
        place, draft = self.path(update.slot), self.folder / f"{DRAFT}-{update.slot[:16]}"
        remove(draft)
        remove(place)
        self._check_room(len(update.manifest) + sum(map(len, update.files.values())), running)
        try:
            self._fill(draft, update, running)
            draft.rename(place)
            sync_folder(self.folder)
        except OSError:
            remove(draft)
            raise
        return place

    def _fill(self, draft: Path, update: Update, running: Bundle) -> None:
        contents = {**update.files, MANIFEST_FILE: update.manifest, SIGNATURE_FILE: update.signature}
        names = [*contents, *networks(running.manifest.files)]
        folders = {draft, *((draft / name).parent for name in names)}
        for folder in sorted(folders):
            folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            write_synced(draft / name, data)
        for name in networks(running.manifest.files):
            _share(running.path / name, draft / name)
        for folder in folders:
            sync_folder(folder)

    def _check_room(self, size: int, running: Bundle) -> None:
        """Refuse before anything is written where the disk is too full, also for copies of the networks."""
        if os.stat(self.folder).st_dev != os.stat(running.path).st_dev:
            size += sum(entry.bytes for entry in networks(running.manifest.files).values())
        free = shutil.disk_usage(self.folder).free
        if free < size + RESERVE_BYTES:
            raise RefusedUpdate(
                Reason.DISK_FULL, f"{self.folder}: {free >> 10} KiB free; {(size + RESERVE_BYTES) >> 10} KiB needed"
            )


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _share(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_synced(place, source.read_bytes())
