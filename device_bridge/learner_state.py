"""What a controller has learned, kept over a restart of the device process: one bounded file, written atomically.

Only numbers are stored: the arrays and plain numbers of the controller's state, by their place in it. A state that the
controller has just made is the pattern: a file is taken when name and every shape fit it, and what a file does not hold
stays as it was made. Nothing in a file is executed. Decisions that wait for outcomes (fields ``waiting*``, ``fresh``,
``last``, ``pending``) and generators are not kept: their outcomes died with the process.
"""

from __future__ import annotations

import io
import json
import reprlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.policy_file import parse_meta
from adaptsplit.agents.static import InterleavedState
from adaptsplit.config import printable
from adaptsplit.controller import State
from adaptsplit.errors import NPZ_FAULTS, DataError
from adaptsplit.files import write_whole
from adaptsplit.guard import GuardState
from adaptsplit.npz import read_npz

SCHEMA = "adaptsplit.learner/1"
MAX_STATE_BYTES = 16 << 20
MAX_LEAVES = 256
PASSING = ("waiting", "fresh", "last", "pending", "since")

Leaves = dict[str, NDArray[Any]]


def learned_part(state: State) -> State:
    """Return what is kept of a state: of a guard's its learned controller's, of an interleaved one each part's."""
    if isinstance(state, GuardState):
        return learned_part(state.learned)
    if isinstance(state, InterleavedState):
        return tuple(learned_part(part) for part in state.states)
    return state


def with_learned(state: State, learned: State) -> State:
    """Inverse of ``learned_part``: put what was kept back into a state."""
    if isinstance(state, GuardState):
        return replace(state, learned=with_learned(state.learned, learned))
    if isinstance(state, InterleavedState):
        pairs = zip(state.states, learned, strict=True)
        return replace(state, states=tuple(with_learned(part, own) for part, own in pairs))
    return learned


def leaves_of(state: State, place: str = "state") -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (place, array) of every array and number in a state of dataclasses and tuples."""
    if is_dataclass(state) and not isinstance(state, type):
        for field in fields(state):
            if not field.name.startswith(PASSING):
                yield from leaves_of(getattr(state, field.name), f"{place}.{field.name}")
    elif isinstance(state, tuple):
        for i, part in enumerate(state):
            yield from leaves_of(part, f"{place}.{i}")
    elif isinstance(state, np.ndarray | int | float) and np.asarray(state).dtype.kind in "biuf":
        yield place, np.asarray(state)


def put_leaves(state: State, leaves: Leaves, place: str = "state") -> State:
    """Return ``state`` with every array and number that ``leaves`` names; the rest as it is."""
    if is_dataclass(state) and not isinstance(state, type):
        kept = [field.name for field in fields(state) if not field.name.startswith(PASSING)]
        changes = {name: put_leaves(getattr(state, name), leaves, f"{place}.{name}") for name in kept}
        return replace(state, **changes)
    if isinstance(state, tuple):
        return tuple(put_leaves(part, leaves, f"{place}.{i}") for i, part in enumerate(state))
    if place not in leaves:
        return state
    value = leaves[place]
    return value.copy() if isinstance(state, np.ndarray) else type(state)(value.item())


def save_learned(path: Path, name: str, state: State) -> None:
    """Write what was learned beside ``path`` and put it in its place; DataError for more than a file may hold."""
    leaves = dict(leaves_of(learned_part(state)))
    meta = {"schema": SCHEMA, "controller": name, "observation": obs.schema_hash()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, meta=np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8), **leaves)
    if buffer.tell() > MAX_STATE_BYTES or len(leaves) > MAX_LEAVES:
        raise DataError(
            f"{path}: what {name!r} learned is {buffer.tell()} bytes in {len(leaves)} arrays; at most "
            f"{MAX_STATE_BYTES} in {MAX_LEAVES} are kept"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue(), durable=True)


def load_learned(path: Path, name: str, state: State) -> State:
    """Return ``state``, just made by the controller ``name``, with what the file holds; DataError when it is another's.

    FileNotFoundError when there is none yet.
    """
    meta, leaves = _read(path)
    expected = {"schema": SCHEMA, "controller": name, "observation": obs.schema_hash()}
    if meta != expected:
        raise DataError(f"{path}: kept for {reprlib.repr(meta)}; expected {expected}; delete it to start afresh")
    pattern = dict(leaves_of(learned_part(state)))
    for place in sorted(set(pattern) | set(leaves)):
        found, wanted = (_form(part.get(place)) for part in (leaves, pattern))
        if found != wanted:
            raise DataError(f"{path}: {printable(place[:80])} is {found}; expected {wanted}; delete it to start afresh")
        if not np.isfinite(leaves[place][np.isfinite(pattern[place])]).all():
            raise DataError(f"{path}: {place} holds what is no number; delete it to start afresh")
    return with_learned(state, put_leaves(learned_part(state), leaves))


def _form(array: NDArray[Any] | None) -> str:
    return "absent" if array is None else f"{array.dtype} {array.shape}"


def _read(path: Path) -> tuple[Any, Leaves]:
    size = path.stat().st_size
    if not 0 < size <= MAX_STATE_BYTES:
        raise DataError(f"{path}: {size} bytes; expected 1 to {MAX_STATE_BYTES}; delete it to start afresh")
    try:
        leaves = read_npz(path.read_bytes(), MAX_STATE_BYTES, MAX_LEAVES + 1)
        return parse_meta(leaves), leaves
    except (*NPZ_FAULTS, RecursionError) as error:
        raise DataError(printable(f"{path}: not what a learner kept ({error}); delete it to start afresh")) from error
