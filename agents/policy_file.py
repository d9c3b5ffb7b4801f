"""The file format of learned policies, ``policy.npz``: arrays and a JSON text ``meta``, read without pickle.

Every kind of policy uses it (network, recurrent network, tree, table, ...); ``meta`` names the kind by its ``schema``
and carries what all have: agent, observation hash, decision space.
"""

from __future__ import annotations

import io
import json
import math
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
from adaptsplit.npz import Arrays as Arrays
from adaptsplit.npz import read_npz as read_npz

MAX_POLICY_BYTES = 16 << 20
MAX_ARRAYS = 40
MAX_META_BYTES = 1 << 20
MAX_DECISIONS = 1 << 16  # points of the full grid; the largest shipped space has a few hundred


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
