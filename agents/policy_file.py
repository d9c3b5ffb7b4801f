"""The file format of learned policies, ``policy.npz``: arrays and a JSON text ``meta``, read without pickle.

Every kind of policy uses it (network, recurrent network, tree, table, ...); ``meta`` names the kind by its ``schema``
and carries what all have: agent, observation hash, decision space.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.config import printable, refuse_constant
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import NPZ_FAULTS, AdaptsplitError, DataError
from adaptsplit.files import write_whole

MAX_POLICY_BYTES = 16 << 20
MAX_ARRAYS = 40
MAX_META_BYTES = 1 << 20
MAX_ENTRY_BYTES = 512  # of a zip's directory per array: name and constants
MAX_DECISIONS = 1 << 16  # points of the full grid; the largest shipped space has a few hundred

Arrays = dict[str, NDArray[Any]]

_HEADER = re.compile(
    rb"\{'descr': '([<>|][biuf]\d{1,2})', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,80})\), \} *\n"
)
_ZIP_FAULTS = (*NPZ_FAULTS, struct.error, ArithmeticError, AttributeError, LookupError)


def common_meta(schema: str, agent: str, space: DecisionSpace) -> dict[str, Any]:
    """Return the part of ``meta`` that every kind of policy has."""
    return {"schema": schema, "agent": agent, "observation": obs.schema_hash(), "space": space.to_dict()}


def write_policy(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a policy file beside ``path`` and put it in its place: no reader meets half a file.

    ``meta`` is ``common_meta`` and what the kind adds; the name "meta" is no array's.
    """
    text = json.dumps(dict(meta), allow_nan=False)
    kept = {"meta": np.frombuffer(text.encode(), dtype=np.uint8), **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **kept)
    write_whole(path, buffer.getvalue())


def read_policy(data: bytes, where: str) -> tuple[dict[str, Any], Arrays]:
    """Return (meta, arrays) of a file's bytes; DataError unless it was made for this version's observation.

    ``where`` is named in errors. Nothing in the file is executed; its arrays are bounded in number and size.
    """
    arrays = _read_arrays(data, where)
    try:
        meta = parse_meta(arrays)
        made_for = meta["observation"]
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(printable(f"{where}: not a policy of ours ({error}); train or export it again")) from error
    if made_for != obs.schema_hash():
        found = printable(str(made_for)[:80]) if isinstance(made_for, str) else f"a {type(made_for).__name__}"
        raise DataError(f"{where}: made for observation {found}, this version has {obs.schema_hash()}; train it again")
    return meta, arrays


def parse_meta(arrays: Arrays) -> dict[str, Any]:
    """Take ``meta`` out of the arrays; ValueError, KeyError or RecursionError unless it is a JSON object."""
    text = arrays.pop("meta")
    if text.nbytes > MAX_META_BYTES:
        raise ValueError(f"a description of {text.nbytes} bytes; at most {MAX_META_BYTES}")
    meta = json.loads(text.tobytes().decode(), parse_constant=refuse_constant)
    if not isinstance(meta, dict):
        raise ValueError(f"expected a JSON object, found {type(meta).__name__}")
    return meta


def space_of(meta: Mapping[str, Any], where: str) -> DecisionSpace:
    """Return the decision space that ``meta`` describes; DataError when it describes none."""
    try:
        space = DecisionSpace.from_dict(meta["space"])
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError, AdaptsplitError) as error:
        raise DataError(printable(f"{where}: not a policy of ours ({error}); train or export it again")) from error
    if math.prod(space.shape) > MAX_DECISIONS:
        raise DataError(f"{where}: {space.shape} decisions, more than {MAX_DECISIONS}; train or export it again")
    return space


def _read_arrays(data: bytes, where: str) -> Arrays:
    """Read all arrays of an .npz, none larger than the cap allows, without pickle."""
    if not 0 < len(data) <= MAX_POLICY_BYTES:
        raise DataError(f"{where}: {len(data)} bytes; a policy has 1 to {MAX_POLICY_BYTES}; train or export it again")
    try:
        return read_npz(data, MAX_POLICY_BYTES, MAX_ARRAYS)
    except NPZ_FAULTS as error:
        raise DataError(printable(f"{where}: not a policy file ({error}); train or export it again")) from error


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
            return {entry.filename.removesuffix(".npy"): _parse_npy(archive.read(entry)) for entry in entries}
    except _ZIP_FAULTS as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


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
