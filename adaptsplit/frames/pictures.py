"""Reading pictures from outside: every limit that keeps a bad or hostile file from doing harm."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image as Pillow

from adaptsplit.errors import DataError
from adaptsplit.frames.signals import Image

MAX_TILE_BYTES = 1 << 20
MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_SIDE = 4096
MAX_MEMBERS = 1_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_DECODER_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    EOFError,
    MemoryError,
    struct.error,
    Pillow.DecompressionBombError,
    Pillow.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture file: ``place`` for messages, its class folder, its file name, and how to get its bytes."""

    place: str
    folder: str
    file: str
    read: Callable[[], bytes]


def decode_picture(data: bytes, place: str) -> Pillow.Image:
    """Return the RGB picture in ``data``; DataError when it is no picture or more than 4096 pixels a side."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Pillow.open(io.BytesIO(data), formats=_FORMATS) as picture:
                _check_side(picture.size, place)
                return picture.convert("RGB")
    except _DECODER_FAULTS as error:
        raise DataError(f"{place}: not a readable picture ({error}); remove it, or save it anew as PNG") from error


def _check_side(size: tuple[int, int], place: str) -> None:
    if max(size) > MAX_IMAGE_SIDE:
        wide, high = size
        raise DataError(f"{place}: {wide} x {high} pixels; at most {MAX_IMAGE_SIDE} a side are read: scale it down")


def to_square(picture: Pillow.Image, side: int) -> Image:
    """Cut the middle square out and resize it: (side, side, 3) uint8."""
    wide, high = picture.size
    edge = min(wide, high)
    if (wide, high) != (side, side):
        left, top = (wide - edge) / 2, (high - edge) / 2
        box = (left, top, left + edge, top + edge)
        picture = picture.resize((side, side), Pillow.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return np.asarray(picture)


def is_picture(name: str) -> bool:
    """Tell by the suffix whether a file is meant to be a picture."""
    return name.lower().endswith(SUFFIXES)


def read_file(path: Path, limit: int) -> bytes:
    """Return a file's bytes; DataError when it cannot be read or is larger than ``limit``."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its rights, or remove it") from error
    if len(data) > limit:
        raise DataError(f"{path}: more than {limit} bytes, the limit for one picture; remove it or scale it down")
    return data


def walk_folder(root: Path) -> Iterator[Entry]:
    """Yield the pictures in the class folders of ``root``, sorted; a lone wrapping folder is stepped through."""
    folders = sorted(place for place in root.iterdir() if place.is_dir())
    if len(folders) == 1 and not any(is_picture(place.name) for place in folders[0].iterdir()):
        folders = sorted(place for place in folders[0].iterdir() if place.is_dir())
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_file() and is_picture(path.name):
                yield Entry(str(path), folder.name, path.name, partial(read_file, path, MAX_TILE_BYTES))


def walk_tar(path: Path) -> Iterator[Entry]:
    """Yield the pictures of a plain (not compressed) tar in its order; nothing is ever written to disk.

    DataError names the member for links, devices, names that climb out of the archive, and sizes above 1 MiB.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for count, member in enumerate(archive):
                place = f"{path}: member {member.name!r}"
                if count >= MAX_MEMBERS:
                    raise DataError(f"{path}: more than {MAX_MEMBERS} members; split the archive")
                if member.isdir():
                    continue
                _check_member(member, place)
                name = PurePosixPath(member.name)
                if is_picture(name.name):
                    yield Entry(place, name.parent.name, name.name, _reader(archive, member, place))
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable plain tar ({error}); give an uncompressed .tar or a folder of class folders"
        ) from error


def _reader(archive: tarfile.TarFile, member: tarfile.TarInfo, place: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            stream = archive.extractfile(member)
            data = stream.read() if stream is not None else b""
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{place}: cannot be read ({error}); the archive is cut off, fetch it again") from error
        if len(data) != member.size:
            raise DataError(f"{place}: {len(data)} of {member.size} bytes; the archive is cut off, fetch it again")
        return data

    return read


def _check_member(member: tarfile.TarInfo, place: str) -> None:
    name = PurePosixPath(member.name)
    if not member.isreg():
        raise DataError(f"{place}: a link or device; only plain files and folders are read, pack the archive anew")
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{place}: its name leaves the archive; pack the archive anew with relative names")
    if is_picture(name.name) and not name.parent.name:
        raise DataError(f"{place}: not inside a class folder; pictures are named CLASS/FILE")
    if member.size > MAX_TILE_BYTES:
        raise DataError(f"{place}: {member.size} bytes; at most {MAX_TILE_BYTES} are read, take it out of the archive")
