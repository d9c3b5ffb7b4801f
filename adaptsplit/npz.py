"""The one reader of ``.npz`` files from outside: plain arrays, without pickle, in bounded memory.

Policies, a learner's state and the tables of learned priors come through here. The subset that is read is what
``numpy.savez`` and ``numpy.savez_compressed`` write for numbers: a zip (APPNOTE.TXT 6.3) of ``.npy`` files of version
1.0 (NEP 1).
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import NPZ_FAULTS

Arrays = dict[str, NDArray[Any]]

MAX_ENTRY_BYTES = 512  # of a zip's directory per array: name and constants

_HEADER = re.compile(
    rb"\{'descr': '([<>|][biuf]\d{1,2})', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,80})\), \} *\n"
)
_ZIP_FAULTS = (*NPZ_FAULTS, struct.error, ArithmeticError, AttributeError, LookupError)


def read_npz(data: bytes, max_bytes: int, max_arrays: int) -> Arrays:
    """Return the arrays of an .npz as ``numpy.savez`` writes it, plain numbers only; ValueError for anything else.

    At most ``max_arrays`` arrays of ``max_bytes`` bytes in all. numpy's own reader believes a header and makes room for
    what it states; here an array is exactly as large as what stands in the file.
    """
    try:
        _check_directory(data, max_arrays)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, max_bytes, max_arrays)
            return {entry.filename.removesuffix(".npy"): _parse_npy(_unpacked(archive, entry)) for entry in entries}
    except _ZIP_FAULTS as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return an entry's bytes: as many as it states, and one more if there are (``read()`` unpacks all there is)."""
    with archive.open(entry) as packed:
        return packed.read(entry.file_size + 1)


def _check_directory(data: bytes, max_arrays: int) -> None:
    """Refuse a zip with a long directory before it is parsed: 16 MiB of it take four seconds (APPNOTE 4.3.16)."""
    end = data[-22:]
    if len(end) < 22 or end[:4] != b"PK\5\6" or end[-2:] != b"\0\0" or data[-42:-38] == b"PK\6\7":
        raise ValueError("no plain zip directory at its end")
    size = int.from_bytes(end[12:16], "little")
    if size > max_arrays * MAX_ENTRY_BYTES:
        raise ValueError(f"a zip directory of {size} bytes for at most {max_arrays} arrays")


def _check_entries(entries: list[zipfile.ZipInfo], max_bytes: int, max_arrays: int) -> None:
    total = sum(entry.file_size for entry in entries)
    if len(entries) > max_arrays or total > max_bytes:
        raise ValueError(f"{len(entries)} arrays of {total} bytes; at most {max_arrays} of {max_bytes}")
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise ValueError("an array packed neither by deflate nor plainly")
    if len({entry.filename.removesuffix(".npy") for entry in entries}) != len(entries):
        raise ValueError("a name that stands twice")


def _parse_npy(raw: bytes) -> NDArray[Any]:
    """Return the array of a .npy file of version 1.0 (NEP 1) with the header that numpy writes."""
    start = 10 + int.from_bytes(raw[8:10], "little")
    header = _HEADER.fullmatch(raw[10:start]) if raw[:8] == b"\x93NUMPY\1\0" else None
    if header is None:
        raise ValueError("an array without the header that numpy.savez writes for plain numbers")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(size) for size in header[3].decode().split(",") if size.strip())
    if start + math.prod(shape) * dtype.itemsize != len(raw) or max(shape, default=0) > len(raw):
        raise ValueError(f"{len(raw)} bytes for an array of {dtype} {shape}")
    return np.ndarray(shape, dtype, raw, start, order="F" if header[2] == b"True" else "C").copy(order="K")
