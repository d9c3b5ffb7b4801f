"""A decision tree as a policy: five short arrays, and at most ``depth`` comparisons per decision.

``policy.npz`` of schema ``adaptsplit.tree/1`` holds per node ``feature`` (i2, -1 at a leaf), ``threshold`` (f4, of the
scaled observation), ``left`` and ``right`` (i2 nodes, -1 at a leaf) and ``decision`` (i2 row of the space's table, -1
at an inner node). An observation goes left where ``observation[feature] <= threshold``, as in scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.policy_cells import AGAIN, CellPolicy, Rows, read_meta, take
from adaptsplit.agents.policy_file import Arrays
from adaptsplit.agents.policy_text import C_ANSWER, C_SIGNATURE, c_array, c_decisions, c_header, condition
from adaptsplit.controller import Observations
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import DataError

SCHEMA = "adaptsplit.tree/1"
MAX_NODES = 16_383
MAX_DEPTH = 64
TYPES = {"feature": "i2", "threshold": "f4", "left": "i2", "right": "i2", "decision": "i2"}


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes of a binary tree, parents before their children, the root first; each array (nodes,)."""

    feature: NDArray[np.int16]
    threshold: NDArray[np.float32]
    left: NDArray[np.int16]
    right: NDArray[np.int16]

    @property
    def leaves(self) -> NDArray[np.bool_]:
        """(nodes,) whether a node is a leaf."""
        return np.asarray(self.feature < 0)

    @property
    def depth(self) -> int:
        """Number of comparisons on the longest path."""
        return int(self.depths().max())

    def depths(self) -> NDArray[np.int64]:
        """(nodes,) number of comparisons before each node."""
        depths = np.zeros(len(self.feature), dtype=np.int64)
        for node in np.flatnonzero(~self.leaves):
            depths[[self.left[node], self.right[node]]] = depths[node] + 1
        return depths


class TreeController(CellPolicy):
    """Takes the decision of the leaf that the observation falls into. ``rows`` (nodes,): -1 at inner nodes."""

    schema = SCHEMA
    agent = "tree"

    def __init__(self, name: str, space: DecisionSpace, tree: Tree, rows: NDArray[Any]) -> None:
        """DataError unless every path ends in a decision of the space."""
        check_tree(tree, rows, space, name)
        super().__init__(name, space, rows)
        self.tree = tree
        self._depth = tree.depth
        here = np.arange(len(tree.feature))
        self._column = np.maximum(tree.feature, 0).astype(np.int64)
        self._left = np.where(tree.leaves, here, tree.left)
        self._right = np.where(tree.leaves, here, tree.right)
        nodes = (tree.feature, tree.threshold, tree.left, tree.right)
        self._nodes = list(zip(*(array.tolist() for array in nodes), strict=True))

    def cells(self, observation: Observations) -> NDArray[np.int64]:
        """Return the (n,) leaves that (n, D) observations fall into, as node numbers."""
        values, rows = np.asarray(observation, dtype=np.float32), np.arange(len(observation))
        node = np.zeros(len(values), dtype=np.int64)
        for _ in range(self._depth):
            goes_left = values[rows, self._column[node]] <= self.tree.threshold[node]
            node = np.where(goes_left, self._left[node], self._right[node])
        return node

    def _cell(self, row: NDArray[np.float32]) -> int:
        nodes, node = self._nodes, 0
        values = row.tolist()
        feature, threshold, left, right = nodes[0]
        while feature >= 0:
            node = left if values[feature] <= threshold else right
            feature, threshold, left, right = nodes[node]
        return node

    def replaced(self, rows: NDArray[Any]) -> Self:
        """Return the same tree with other decisions (nodes,)."""
        return type(self)(self.name, self.space, self.tree, rows)

    def arrays(self) -> Arrays:
        """Return the five arrays of the file."""
        tree = self.tree
        return {
            "feature": tree.feature,
            "threshold": tree.threshold,
            "left": tree.left,
            "right": tree.right,
            "decision": self.rows,
        }

    def pruned(self) -> Self:
        """Return a tree that decides the same without splits whose two sides decide alike; nodes in preorder."""
        nodes: list[tuple[int, float, int, int, int]] = []
        self._keep(0, self._uniform(), nodes)
        columns = [np.array(column) for column in zip(*nodes, strict=True)]
        return type(self)(self.name, self.space, tree_of(*columns[:4]), columns[4])

    def _uniform(self) -> NDArray[np.int64]:
        """(nodes,) the one decision below each node, -1 where there are several."""
        tree, same = self.tree, self.rows.astype(np.int64)
        for node in np.flatnonzero(~tree.leaves)[::-1]:
            a, b = same[tree.left[node]], same[tree.right[node]]
            same[node] = a if a == b else -1
        return same

    def _keep(self, node: int, same: NDArray[np.int64], nodes: list[tuple[int, float, int, int, int]]) -> int:
        place = len(nodes)
        nodes.append((-1, 0.0, -1, -1, int(same[node])))
        if same[node] < 0:
            left = self._keep(int(self.tree.left[node]), same, nodes)
            right = self._keep(int(self.tree.right[node]), same, nodes)
            nodes[place] = (int(self.tree.feature[node]), float(self.tree.threshold[node]), left, right, -1)
        return place

    def describe(self) -> str:
        """Return the tree as indented if/else text, thresholds in physical units."""
        lines: list[str] = []
        self._tell(0, "", lines)
        return "\n".join(lines) + "\n"

    def _tell(self, node: int, indent: str, lines: list[str]) -> None:
        tree = self.tree
        if tree.feature[node] < 0:
            lines.append(indent + self.space.name(self._table[self.rows[node]]))
            return
        lines.append(f"{indent}if {condition(int(tree.feature[node]), float(tree.threshold[node]), self.space)}:")
        self._tell(int(tree.left[node]), indent + "    ", lines)
        lines.append(f"{indent}else:")
        self._tell(int(tree.right[node]), indent + "    ", lines)

    def to_c(self) -> str:
        """Return ``adaptsplit_decide`` in C99: a walk over constant arrays, no library, no memory of its own."""
        tree = self.tree
        parts = [
            c_header(f"Decision tree of {self.size} leaves", tree.feature[~tree.leaves].tolist()),
            c_array("short", "feature", tree.feature),
            c_array("float", "threshold", tree.threshold),
            c_array("short", "left", tree.left),
            c_array("short", "right", tree.right),
            c_array("short", "leaf", self.rows),
            c_decisions(self.space),
            f"\n{C_SIGNATURE} {{\n  int node = 0, row;",
            "  while (feature[node] >= 0)",
            "    node = observation[feature[node]] <= threshold[node] ? left[node] : right[node];",
            "  row = leaf[node];",
        ]
        return "\n".join(parts) + "\n" + C_ANSWER


def tree_of(feature: NDArray[Any], threshold: NDArray[Any], left: NDArray[Any], right: NDArray[Any]) -> Tree:
    """Return a tree in the types of the file; a threshold becomes the largest f4 that is not above it.

    An f4 observation is then on the same side of the new threshold as of a finer one (that of scikit-learn is f8).
    """
    exact = np.asarray(threshold, dtype=np.float64)
    rounded = exact.astype(np.float32)
    rounded = np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded).astype(np.float32)
    return Tree(feature.astype(np.int16), rounded, left.astype(np.int16), right.astype(np.int16))


def check_tree(tree: Tree, rows: Rows | NDArray[Any], space: DecisionSpace, where: str) -> None:
    """DataError unless the arrays are one tree over our observation whose every path ends in a decision."""
    count = len(tree.feature)
    if not 1 <= count <= MAX_NODES or any(len(a) != count for a in (tree.threshold, tree.left, tree.right, rows)):
        raise DataError(f"{where}: {count} nodes in arrays of one length; expected 1 to {MAX_NODES}; {AGAIN}")
    leaf, here = tree.leaves, np.arange(count)
    if np.any(tree.feature < -1) or np.any(tree.feature >= obs.SIZE) or not np.isfinite(tree.threshold).all():
        raise DataError(f"{where}: a node that compares no field of the {obs.SIZE}, or with no finite number; {AGAIN}")
    children = np.concatenate([tree.left[~leaf], tree.right[~leaf]])
    parents = np.tile(here[~leaf], 2)
    if np.any(children <= parents) or np.any(children >= count):
        raise DataError(f"{where}: a child that does not stand behind its parent among {count} nodes; {AGAIN}")
    if not np.array_equal(np.sort(children), here[1:]):
        raise DataError(f"{where}: a node that is the child of none or of two others; {AGAIN}")
    if np.any(tree.left[leaf] != -1) or np.any(tree.right[leaf] != -1) or np.any(rows[~leaf] != -1):
        raise DataError(f"{where}: a leaf with children, or an inner node with a decision; {AGAIN}")
    if np.any(rows[leaf] < 0) or np.any(rows[leaf] >= len(space.table)):
        raise DataError(f"{where}: a leaf without one of the {len(space.table)} decisions of its space; {AGAIN}")
    if tree.depth > MAX_DEPTH:
        raise DataError(f"{where}: {tree.depth} comparisons deep; at most {MAX_DEPTH}; {AGAIN}")


def parse(meta: dict[str, Any], arrays: Arrays, where: str, name: str | None) -> TreeController:
    """Build the controller from what ``policy.npz`` holds; DataError says what is wrong with it."""
    agent, space = read_meta(meta, SCHEMA, where)
    *nodes, rows = take(arrays, TYPES, where)
    tree = Tree(*nodes)
    check_tree(tree, rows, space, where)
    return TreeController(name or agent, space, tree, rows)
