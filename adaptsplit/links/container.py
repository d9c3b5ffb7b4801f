"""Files as the readers see them: one table at a time, unpacked in memory from zip and gzip, within fixed limits."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from adaptsplit.errors import LinkError

MAX_FILE_BYTES = 64 << 20
MAX_UNPACKED_BYTES = 64 << 20
MAX_TABLES = 1000
ZIP, GZIP = b"PK\x03\x04", b"\x1f\x8b"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others may ask for gigabytes before the first byte
_FAULTS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a file: ``place`` names it in errors, ``name`` in results, ``data`` is its unpacked content."""

    place: str
    name: str
    data: bytes

    def fail(self, line: int, found: object, expected: str) -> NoReturn:
        """Raise the LinkError of a faulty line (counted from 1)."""
        text = repr(found)
        text = text[:57] + "..." if len(text) > 60 else text
        raise LinkError(f"{self.place}, line {line}: found {text}, expected {expected}")

    def text(self) -> str:
        """Return the content as UTF-8 (a byte order mark is left out); LinkError when it is something else."""
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise LinkError(f"{self.place}: not text in UTF-8 ({error}); save it as UTF-8") from error


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return a file's content, at most ``limit`` bytes of it (None: 64 MiB); LinkError for what cannot be read."""
    limit = MAX_FILE_BYTES if limit is None else limit
    try:
        if not path.is_file():
            raise LinkError(f"{path}: no such file; give the path of a link recording")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise LinkError(f"{path}: cannot be read ({error}); give the path of a readable file") from error
    if len(data) > limit:
        raise LinkError(f"{path}: more than the {limit} bytes that are read; cut it into parts")
    return data


def unpack(path: Path, data: bytes) -> list[Table]:
    """Return the tables of a file's content: itself, or those of a zip or gzip, by name.

    Folders, hidden files and what macOS adds to a zip are left out; a gzip within a zip is unpacked too. Nothing is
    written to disk, since names in a zip are not to be trusted. LinkError for what is empty, damaged, encrypted,
    packed by another method than deflate, or more than 1000 tables or 64 MiB when unpacked.
    """
    if not data.strip():
        raise LinkError(f"{path}: the file is empty; expected a link recording")
    if not data.startswith((ZIP, GZIP)):
        return [Table(str(path), path.stem or path.name, data)]
    try:
        members = _zip_members(path, data) if data.startswith(ZIP) else [(_inner(path.name), _gunzip(data))]
    except _FAULTS as error:
        raise LinkError(f"{path}: the archive is damaged or not supported ({error}); fetch it again") from error
    full = [(member, content) for member, content in members if content.strip()]
    if not full:
        raise LinkError(f"{path}: the archive holds no table; expected link recordings in it")
    stems = [PurePosixPath(member).stem or member for member, _ in full]
    common = Counter(stems)
    return [
        Table(f"{path} ({member})", stem if common[stem] == 1 else member, content)
        for stem, (member, content) in zip(stems, full, strict=True)
    ]


def _zip_members(path: Path, data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = sorted((info for info in archive.infolist() if _wanted(info)), key=lambda info: info.filename)
        if len(infos) > MAX_TABLES:
            raise LinkError(f"{path}: {len(infos)} files in the zip, at most {MAX_TABLES} are read; take some out")
        members, room = [], MAX_UNPACKED_BYTES
        for info in infos:
            if info.compress_type not in _METHODS:
                place = f"{path} ({_inner(info.filename)})"
                raise LinkError(f"{place}: packed by method {info.compress_type}; pack it by deflate")
            with archive.open(info) as member:
                content = _bounded(member.read(room + 1), room)
            if content.startswith(GZIP):
                content = _gunzip(content, room)
            room -= len(content)
            members.append((_inner(info.filename), content))
    return members


def _wanted(info: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(info.filename).parts
    return bool(parts) and not info.is_dir() and not parts[-1].startswith(".") and "__MACOSX" not in parts


def _inner(name: str) -> str:
    """The name of a table, fit for a terminal, without the ending of its packing."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return shown[:-3] if shown.lower().endswith(".gz") and len(shown) > 3 else shown


def _gunzip(data: bytes, room: int | None = None) -> bytes:
    room = MAX_UNPACKED_BYTES if room is None else room
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as member:
        return _bounded(member.read(room + 1), room)


def _bounded(content: bytes, room: int) -> bytes:
    if len(content) > room:
        raise ValueError(f"more than {MAX_UNPACKED_BYTES} bytes when unpacked; take a part of it")
    return content
