"""Which decisions an oracle takes, and what each knob is worth to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.oracle import candidates_of
from adaptsplit.controller import Decisions
from adaptsplit.decision import SKIP, DecisionSpace
from adaptsplit.evaluation.diagnose_bench import Bench, Floats
from adaptsplit.evaluation.diagnose_document import Knob, Use
from adaptsplit.evaluation.knobs import KNOBS, frozen_table, value_name
from adaptsplit.outcome import Outcomes

SHOWN = 8
COVER = 0.9
KnobName = Literal["branch", "rate", "exit rule", "skip", "patience"]


def use_of(oracle: str, outcomes: Outcomes, space: DecisionSpace) -> Use:
    """Count the decisions of (E, F) outcomes. An oracle knows the confidence, so its exit rules are always or never."""
    shares = decision_counts(outcomes, space)
    ordered = np.array([share for _, share in shares])
    return Use(
        oracle=oracle,
        distinct=len(shares),
        covering_90=int(np.searchsorted(np.cumsum(ordered), COVER - 1e-12) + 1),
        top=shares[0][0],
        top_share=shares[0][1],
        shares=dict(shares[:SHOWN]),
    )


def decision_counts(outcomes: Outcomes, space: DecisionSpace) -> list[tuple[str, float]]:
    """Return (name, share of the decided frames) of each decision that occurs, most frequent first."""
    taken = decisions_of(outcomes, space)
    taken = taken[taken[..., 0] >= 0]
    rows, counts = np.unique(taken, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(space.name(rows[i]), float(counts[i] / len(taken))) for i in order] or [("none", 1.0)]


def decisions_of(outcomes: Outcomes, space: DecisionSpace) -> NDArray[np.int64]:
    """Return (..., 3) indices of the decisions in outcomes; -1 for a dropped frame."""
    rules = np.column_stack([np.minimum(space.thresholds, 2.0), space.patience])
    taken = np.stack([outcomes["threshold"], outcomes["patience"]], axis=-1).astype(np.float64)
    rule = np.abs(np.nan_to_num(taken)[..., None, :] - rules).sum(axis=-1).argmin(axis=-1)
    found = np.stack([outcomes["branch"], outcomes["rate"], rule], axis=-1).astype(np.int64)
    dropped = outcomes["branch"] < 0
    found[dropped] = 0
    canonical = space.canonical(found.reshape(-1, 3)).reshape(found.shape)
    canonical[dropped] = -1
    return canonical


Frozen = tuple[KnobName, list[tuple[str, Decisions]]]


def frozen_tables(space: DecisionSpace) -> list[Frozen]:
    """Return each knob that the space has, with the decisions (M, 3) that remain at each of its values.

    Only decisions that an oracle needs (exit always or never) remain, but where the exit rule itself is frozen.
    """
    needed = oracle_rows(space)
    found: list[Frozen] = []
    for knob, size in zip(KNOBS, space.shape, strict=True):
        name: KnobName = "exit rule" if knob == "threshold" else knob
        tables = [(value_name(space, knob, i), frozen_table(space, knob, i)) for i in range(size)]
        if size > 1:
            kept = tables if knob == "threshold" else [(value, _within(rows, needed)) for value, rows in tables]
            found.append((name, [(value, rows) for value, rows in kept if len(rows)]))
    skips = np.array([branch.kind == SKIP for branch in space.branches])[needed[:, 0]]
    if skips.any():
        found.append(("skip", [("never", needed[~skips])]))
    found += _patience(space, needed)
    return found


def _patience(space: DecisionSpace, needed: Decisions) -> list[Frozen]:
    shares = np.array(space.patience)[needed[:, 2]]
    waits = (np.array(space.thresholds)[needed[:, 2]] > 0.0) & ~space.answers_alone[needed[:, 0]]
    values = np.unique(shares[waits])
    if len(values) < 2:
        return []
    return [("patience", [(f"{value:g}", needed[~waits | (shares == value)]) for value in values])]


def oracle_rows(space: DecisionSpace) -> Decisions:
    """Return the (C, 3) decisions that an oracle chooses among over the whole space."""
    candidates = candidates_of(space)
    rules = np.column_stack([np.minimum(space.thresholds, 1.01), space.patience])
    rule = np.abs(candidates[:, None, 2:] - rules).sum(axis=2).argmin(axis=1)
    return np.column_stack([candidates[:, :2].astype(np.int64), rule])


def _within(rows: Decisions, needed: Decisions) -> Decisions:
    return np.asarray(rows[(rows[:, None, :] == needed[None]).all(axis=2).any(axis=1)], dtype=np.int64)


def knob_worths(bench: Bench, count: int, rivals: Sequence[Outcomes]) -> tuple[Knob, ...]:
    """Freeze each knob at each of its values on the first ``count`` episodes.

    The free oracle is shown the frozen plans. It weighs them by *expected* quality, so a worth may come out a little
    below zero, within what its interval says.
    """
    frozen = frozen_tables(bench.scenario.space)
    total = sum(len(tables) for _, tables in frozen) + 1
    done, plans = 0, list(rivals)
    found: list[tuple[KnobName, str, Floats]] = []
    for knob, tables in frozen:
        tried = []
        for value, rows in tables:
            outcomes = bench.plan("oracle-informed", count, table=rows)
            plans.append(outcomes)
            tried.append((value, bench.reward(outcomes)))
            done += 1
            bench.progress("worth of the knobs", done, total)
        value, reward = max(tried, key=lambda item: float(item[1].mean()))
        found.append((knob, value, reward))
    free = bench.reward(bench.plan("oracle-informed", count, rivals=plans))
    bench.progress("worth of the knobs", total, total)
    return tuple(Knob(knob=k, best_value=v, worth=bench.paired(free, reward)) for k, v, reward in found)
