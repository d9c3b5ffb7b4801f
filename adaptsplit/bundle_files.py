"""The files of a bundle: which there are, and whether each is what the manifest says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from adaptsplit.runtime.folder import MODEL_FILE
from adaptsplit.signing import (
    MAX_SIGNATURE_BYTES,
    SIGNATURE_FILE,
    Refusal,
    RefusedBundle,
    SignatureFile,
    Trust,
    read_capped,
)

MANIFEST_FILE = "manifest.json"
MODEL_FOLDER = "model"
MAX_MANIFEST_BYTES = 8 << 20
MAX_FILE_BYTES = 256 << 20
MAX_FILES = 256
EXPORT_AGAIN = "export the bundle again, or copy the whole folder again"


class Expected(Protocol):
    """What a file must be."""

    @property
    def sha256(self) -> str:
        """64 hex digits."""
        ...

    @property
    def bytes(self) -> int:
        """Its size."""
        ...


def entry(path: Path) -> dict[str, Any]:
    """Return a file's entry in the manifest."""
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def listed(folder: Path) -> list[str]:
    """Return the relative names of all files but manifest and signature; RefusedBundle when there are too many."""
    found = list(islice(_walk(folder), MAX_FILES + 3))
    if len(found) > MAX_FILES + 2:
        raise RefusedBundle(Refusal.CHANGED, f"{folder}: more than {MAX_FILES} files; {EXPORT_AGAIN}")
    return sorted(name for name in found if name not in (MANIFEST_FILE, SIGNATURE_FILE))


def _walk(folder: Path) -> Iterator[str]:
    """Yield the relative name of every file; RefusedBundle for anything that is neither a file nor a folder."""
    for item in sorted(os.scandir(folder), key=lambda each: each.name):
        if item.is_dir(follow_symlinks=False):
            yield from (f"{item.name}/{inner}" for inner in _walk(Path(item.path)))
        elif item.is_file(follow_symlinks=False):
            yield item.name
        else:
            raise RefusedBundle(
                Refusal.CHANGED, f"{item.path}: a link or special file; a bundle holds plain files only: {EXPORT_AGAIN}"
            )


def read_file(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes; RefusedBundle otherwise."""
    try:
        return read_capped(path, limit)
    except ValueError as error:
        raise RefusedBundle(Refusal.CHANGED, f"{path}: {error}; {EXPORT_AGAIN}") from error
    except OSError as error:
        raise RefusedBundle(
            Refusal.CHANGED,
            f"{path}: cannot be read ({error.strerror}); give the folder that `adaptsplit export` wrote",
        ) from error


def check_files(folder: Path, files: Mapping[str, Expected]) -> None:
    """Compare the folder with the manifest: every file, its size and its hash."""
    found = set(listed(folder))
    missing, extra = sorted(set(files) - found), sorted(found - set(files))
    if missing:
        raise RefusedBundle(Refusal.CHANGED, f"{folder / missing[0]}: missing; {EXPORT_AGAIN}")
    if extra:
        raise RefusedBundle(
            Refusal.CHANGED, f"{folder / extra[0]}: not listed in {MANIFEST_FILE}; remove it, or {EXPORT_AGAIN}"
        )
    for name, expected in files.items():
        read_checked(folder / name, expected)
    if f"{MODEL_FOLDER}/{MODEL_FILE}" not in files:
        raise RefusedBundle(
            Refusal.CHANGED, f"{folder / MANIFEST_FILE}: lists no {MODEL_FOLDER}/{MODEL_FILE}; {EXPORT_AGAIN}"
        )


def read_checked(path: Path, expected: Expected) -> bytes:
    """Return a file's bytes once they are found to be ``expected``; RefusedBundle otherwise.

    What is used is what was checked: whoever reads a file again must ask again, for it may have been exchanged.
    """
    data = read_file(path, MAX_FILE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if len(data) != expected.bytes or digest != expected.sha256:
        raise RefusedBundle(
            Refusal.CHANGED,
            f"{path}: {len(data)} bytes, SHA-256 {digest[:12]}..., but {MANIFEST_FILE} says "
            f"{expected.bytes} bytes, {expected.sha256[:12]}...; it is damaged or was changed: {EXPORT_AGAIN}",
        )
    return data


def check_signature(folder: Path, trusted: Trust, *, at_rest: bool = False) -> SignatureFile:
    """Read and check a bundle's signature file; RefusedBundle says why not. No other file is read."""
    where = folder / SIGNATURE_FILE
    try:
        data = read_capped(where, MAX_SIGNATURE_BYTES)
    except OSError as error:
        raise RefusedBundle(
            Refusal.UNSIGNED, f"{where}: cannot be read ({error.strerror}); sign it with `adaptsplit keys sign`"
        ) from error
    except ValueError as error:
        raise RefusedBundle(Refusal.MALFORMED, f"{where}: {error}; sign it again") from error
    return trusted.check(data, str(where), at_rest=at_rest)
