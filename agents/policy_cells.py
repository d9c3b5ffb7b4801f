"""What the small policies share: the observation space cut into cells, and one decision of the table per cell.

A device needs comparisons only to run one: no matrix product, no onnxruntime. ``agents.policy_tree`` cuts by a binary
tree, ``agents.policy_lookup`` by bins of a few fields.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit import observation as obs
from adaptsplit.agents.base import Kind
from adaptsplit.agents.policy_file import Arrays, common_meta, space_of, write_policy
from adaptsplit.config import Config, parse
from adaptsplit.controller import Decisions, Observations, State, Stateless
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import AdaptsplitError, DataError

Rows = NDArray[np.int16]
AGAIN = "distil it again"


class CellMeta(Config):
    """What the file of a small policy says about itself: the same keys as a network's, without the network."""

    schema_: str = Field(alias="schema")
    agent: str
    observation: str
    space: dict[str, Any]


class CellPolicy(Stateless, ABC):
    """A policy with one decision per cell. ``rows`` (C,) holds rows of the space's table, -1 where no cell ends."""

    kind: Kind = "learned"
    schema = ""
    agent = ""

    def __init__(self, name: str, space: DecisionSpace, rows: NDArray[Any]) -> None:
        self.name, self.space = name, space
        self.rows: Rows = np.ascontiguousarray(rows, dtype=np.int16)
        self._table = space.table
        self._lists = [self._table[row : row + 1] if row >= 0 else self._table[:0] for row in self.rows.tolist()]

    @abstractmethod
    def cells(self, observation: Observations) -> NDArray[np.int64]:
        """Return the (n,) cells that (n, D) observations lie in."""

    @abstractmethod
    def _cell(self, row: NDArray[np.float32]) -> int:
        """Return the cell of one observation (D,), with as little work as Python can."""

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions of the table."""
        if len(observation) == 1:
            return self._lists[self._cell(observation[0])], state
        return self._table[self.rows[self.cells(observation)]], state

    @abstractmethod
    def replaced(self, rows: NDArray[Any]) -> Self:
        """Return the same cells with other decisions (C,)."""

    def pruned(self) -> Self:
        """Return a policy that decides the same, without cells that can be joined; itself where none can."""
        return self

    @abstractmethod
    def arrays(self) -> Arrays:
        """Return what is saved beside ``meta``."""

    def save(self, path: Path) -> None:
        """Write the policy file."""
        write_policy(path, common_meta(self.schema, self.agent, self.space), self.arrays())

    def to_bytes(self) -> bytes:
        """Return the bytes of the policy file."""
        with TemporaryDirectory() as folder:
            place = Path(folder) / "policy.npz"
            self.save(place)
            return place.read_bytes()

    @property
    def size(self) -> int:
        """Number of cells that end in a decision."""
        return int((self.rows >= 0).sum())

    @abstractmethod
    def describe(self) -> str:
        """Return the policy as text, in physical units."""

    @abstractmethod
    def to_c(self) -> str:
        """Return it as a C function that needs no library."""


def read_meta(meta: Mapping[str, Any], schema: str, where: str) -> tuple[str, DecisionSpace]:
    """Return (agent, space) of a saved policy; DataError unless schema, observation and space are usable here."""
    try:
        found = parse(CellMeta, meta, where)
        space = space_of(meta, where)
    except AdaptsplitError as error:
        raise DataError(f"{where}: not a policy of ours ({error}); {AGAIN}") from error
    if found.schema_ != schema:
        raise DataError(f"{where}: schema {found.schema_!r}; expected {schema!r}; {AGAIN}")
    if found.observation != obs.schema_hash():
        raise DataError(
            f"{where}: made for observation {found.observation}, this version has {obs.schema_hash()}; {AGAIN}"
        )
    return found.agent, space


def take(arrays: Arrays, expected: Mapping[str, str], where: str) -> list[NDArray[Any]]:
    """Return the named one-dimensional arrays in order; DataError unless there are exactly these, of these types."""
    if set(arrays) != set(expected):
        raise DataError(f"{where}: arrays {sorted(arrays)!r:.200}; expected {sorted(expected)}; {AGAIN}")
    for key, kind in expected.items():
        array = arrays[key]
        if array.ndim != 1 or array.dtype != np.dtype(kind):
            raise DataError(
                f"{where}: array {key!r} is {array.dtype} of shape {array.shape}; expected {np.dtype(kind)} of one "
                f"dimension; {AGAIN}"
            )
    return [np.ascontiguousarray(arrays[key]) for key in expected]
