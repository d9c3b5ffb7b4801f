"""Growing small policies from labels: trees by scikit-learn's CART, tables by greedy choice of fields and bins.

Three ways to weigh a wrong label ("criterion"): ``weighted`` by what it loses (VIPER), ``plain`` all alike (cloning,
Gini), and ``chances``, the squared error of the probabilities that the teacher gives to each decision. Which is best
differs from size to size; the caller tries them in the simulator.
Letters: n states, M decisions of the table, C cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.distil_costs import Floats, Labels
from adaptsplit.agents.policy_cells import CellPolicy
from adaptsplit.agents.policy_lookup import MAX_FIELDS, LookupController, cells_of
from adaptsplit.agents.policy_tree import MAX_DEPTH, TreeController, tree_of
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import MissingExtraError

Criterion = Literal["weighted", "plain", "chances"]
Score = Callable[[CellPolicy], float]
"""``score(policy)``: the mean reward of a policy on the selection episodes."""

MIN_LEAF = 5  # states in a leaf; fewer are an accident of the sample
BINS = (2, 3, 4, 6, 8, 12, 16)
COARSE = 4  # bins; each field is tried coarsely as well, so that cells are left for the next one
TRIED = 3  # fields of each greedy step that are tried in the simulator
PRIOR = 5.0  # states that a cell's decision before the last cut counts for


def criteria_of(labels: Labels) -> tuple[Criterion, ...]:
    """Return the criteria that the labels allow."""
    return ("weighted", "plain") if labels.chances is None else ("weighted", "plain", "chances")


def grow_tree(
    labels: Labels, space: DecisionSpace, leaves: int, criterion: Criterion, seed: int = 0, name: str = "tree"
) -> TreeController:
    """Return a tree of at most ``leaves`` leaves, grown best split first and rid of splits that decide nothing.

    CART after Breiman, Friedman, Olshen, Stone 1984 as scikit-learn has it. Each leaf takes the decision of the largest
    sum of weights. MissingExtraError without scikit-learn.
    """
    fitted = _cart(labels, leaves, criterion, seed).tree_
    tree = tree_of(fitted.feature, fitted.threshold, fitted.children_left, fitted.children_right)
    tree.feature[tree.left < 0] = -1  # scikit-learn marks leaves by -2
    tree.threshold[tree.left < 0] = 0.0
    nodes = fitted.apply(labels.observations)
    sums = summed(nodes, labels, len(tree.feature), len(space.table), criterion)
    return TreeController(name, space, tree, np.where(tree.left < 0, sums.argmax(axis=1), -1)).pruned()


def _cart(labels: Labels, leaves: int, criterion: Criterion, seed: int) -> Any:
    try:
        from sklearn.tree import (  # type: ignore[import-untyped, unused-ignore]
            DecisionTreeClassifier,
            DecisionTreeRegressor,
        )
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "train") from error
    limits = {"max_leaf_nodes": max(leaves, 2), "max_depth": MAX_DEPTH, "min_samples_leaf": MIN_LEAF}
    if criterion == "chances" and labels.chances is not None:
        used = labels.chances.mean(axis=0) > 1e-4  # the others change no split
        return DecisionTreeRegressor(**limits, random_state=seed).fit(labels.observations, labels.chances[:, used])
    weights = labels.weights if criterion == "weighted" else None
    return DecisionTreeClassifier(**limits, random_state=seed).fit(labels.observations, labels.taught, weights)


def summed(cells: NDArray[np.int64], labels: Labels, count: int, decisions: int, criterion: Criterion) -> Floats:
    """Return (C, M): weight of the states of each cell for each decision; what is left over is the cost of it."""
    if criterion == "chances" and labels.chances is not None:
        order = np.argsort(cells, kind="stable")
        starts = np.searchsorted(cells[order], np.arange(count))
        sums = np.concatenate([np.zeros((1, decisions)), np.cumsum(labels.chances[order], axis=0, dtype=np.float64)])
        return np.asarray(np.diff(sums[[*starts, len(cells)]], axis=0))
    weights = labels.weights / labels.weights.mean() if criterion == "weighted" else None
    flat = np.bincount(cells * decisions + labels.taught, weights, minlength=count * decisions)
    return np.asarray(flat.reshape(count, decisions), dtype=np.float64)


def grow_lookup(
    labels: Labels,
    held_out: Labels,
    space: DecisionSpace,
    cells: int,
    criterion: Criterion,
    score: Score,
    name: str = "lookup",
) -> LookupController:
    """Return a table of at most ``cells`` cells: fields and bins are added one by one while the reward grows.

    Every field in every number of bins that still fits is screened by its weighted errors on ``held_out`` labels; the
    best few fields are run in the simulator (``score``), each with its best and with its best coarse bins, and the best
    table of either kind is extended.
    """
    found: list[tuple[float, LookupController]] = []
    parents: list[LookupController | None] = [None]
    for _ in range(MAX_FIELDS):
        grown = [_extended(each, labels, held_out, space, cells, criterion, name) for each in parents]
        scored = sorted(((score(table), table) for each in grown for table in each), key=lambda item: -item[0])
        if not scored or (found and scored[0][0] <= max(found, key=lambda item: item[0])[0]):
            break
        found += scored
        coarse = [table for _, table in scored if 2 * table.size <= cells]
        parents = list(dict.fromkeys([scored[0][1], *coarse[:1]]))
    return max(found, key=lambda item: item[0])[1]


def _extended(
    before: LookupController | None,
    labels: Labels,
    held_out: Labels,
    space: DecisionSpace,
    cells: int,
    criterion: Criterion,
    name: str,
) -> list[LookupController]:
    """Return the most promising tables with one field more."""
    fields = () if before is None else before.fields
    used = 1 if before is None else before.size
    best: dict[tuple[int, bool], tuple[float, LookupController]] = {}
    for field, bins in itertools.product(range(obs.SIZE), BINS):
        edges = _edges(labels.observations[:, field], bins)
        if field in fields or not len(edges) or used * (len(edges) + 1) > cells:
            continue
        table = _table(before, field, edges, labels, space, criterion, name)
        wrong = float(held_out.weights @ (space_rows(table, held_out) != held_out.taught))
        coarse = bins <= max(2, min(COARSE, math.isqrt(cells // used)))
        for key in ((field, False), (field, True))[: 1 + coarse]:
            if key not in best or wrong < best[key][0]:
                best[key] = (wrong, table)
    ordered = sorted(best, key=lambda key: (best[key][0], key))
    chosen = list(dict.fromkeys(field for field, _ in ordered))[:TRIED]
    tables = {id(best[key][1]): best[key][1] for key in ordered if key[0] in chosen}
    return list(tables.values())


def space_rows(table: CellPolicy, labels: Labels) -> NDArray[np.int64]:
    """Return the (n,) rows of the table of decisions that a policy takes in the labels' states."""
    return table.rows[table.cells(labels.observations)].astype(np.int64)


def _edges(values: NDArray[np.float32], bins: int) -> NDArray[np.float32]:
    """Return the edges of ``bins`` bins of equally many states; fewer where values repeat, none where all are one."""
    inner = np.quantile(values, np.arange(1, bins) / bins, method="lower")
    edges = np.unique(inner)
    return np.asarray(edges[edges < values.max()], dtype=np.float32)


def _table(
    before: LookupController | None,
    field: int,
    edges: NDArray[np.float32],
    labels: Labels,
    space: DecisionSpace,
    criterion: Criterion,
    name: str,
) -> LookupController:
    """Return ``before`` with one axis more; a cell with few states leans on what it was cut from."""
    fields: Sequence[int] = (*(before.fields if before else ()), field)
    all_edges = (*(before.edges if before else ()), edges)
    bins, count = len(edges) + 1, (before.size if before else 1)
    cells = cells_of(labels.observations, fields, all_edges)
    sums = summed(cells, labels, count * bins, len(space.table), criterion)
    whole = sums.reshape(count, bins, -1).sum(axis=1)
    whole = whole + 1e-9 * sums.sum(axis=0)  # a cell without any state: the best decision overall
    prior = PRIOR * whole / np.maximum(whole.sum(axis=1, keepdims=True), 1e-12)
    rows = (sums + np.repeat(prior, bins, axis=0)).argmax(axis=1)
    return LookupController(name, space, fields, all_edges, rows)
