"""What a controller decides: head branch, compression rate, exit rule.

``DecisionSpace`` is the one table of choices. Gymnasium spaces, the static grid, the bundle's manifest and the names on
the command line (``static:stem/2/0.8``) are derived from it. Letters: B branches, R rates, T exit rules.

Two parts are optional. A *skip* branch answers a frame with the answer held from an earlier one (frame skipping with
stale reuse). *Patience* is a deadline of the frame's own: an exit rule is a threshold and the share of the scenario's
deadline after which the exit answers for a remote result that has not come (``stem/2/0.8@0.5``; 1 when not named).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.registry import did_you_mean

BranchKind = Literal["split", "offload", "local", "skip"]
KINDS: tuple[BranchKind, ...] = ("split", "offload", "local", "skip")
SKIP = "skip"  # the name of the skip branch that a scenario adds

ALWAYS_EXIT = 0.0
NEVER_EXIT = 1.01
DEFAULT_THRESHOLDS = (ALWAYS_EXIT, 0.7, 0.8, 0.85, 0.9, 0.95, NEVER_EXIT)


@dataclass(frozen=True, slots=True)
class BranchSpec:
    """One head branch.

    ``codecs`` names the codec of each rate, strongest compression first. ``exit`` names the split branch whose head and
    exit run on the device when this branch has none of its own (``offload``). A ``local`` branch runs the full model on
    the device, a ``skip`` branch nothing at all: these two answer alone, have no codec, no exit, and one decision.
    """

    name: str
    kind: BranchKind
    codecs: tuple[str, ...] = ()
    exit: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"branch {self.name!r}: kind {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.answers_alone != (len(self.codecs) == 0):
            raise ConfigError(f"branch {self.name!r}: a local or skip branch has no codecs, every other at least one")
        if (self.kind == "offload") != (self.exit is not None):
            raise ConfigError(f"branch {self.name!r}: an offload branch names its fallback exit, no other does")

    @property
    def answers_alone(self) -> bool:
        """Whether the frame's answer never depends on exit or link (``local``, ``skip``)."""
        return self.kind in ("local", "skip")


@dataclass(frozen=True, slots=True)
class Decision:
    """One choice: indices into the space's branches, rates and exit rules."""

    branch: int
    rate: int
    threshold: int


@dataclass(frozen=True)
class DecisionSpace:
    """Branches x rates x exit rules, and the flat table of the choices that differ.

    ``thresholds`` and ``patience`` (default: 1 everywhere) are the two numbers of each exit rule; ``exit_rules`` builds
    them as a grid. A threshold of 0 always exits, so the rate is irrelevant and only rate 0 is listed; a branch that
    answers alone has one entry.
    """

    branches: tuple[BranchSpec, ...]
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    patience: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        names = [branch.name for branch in self.branches]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"branches {names}: at least one, each name once")
        if not self.patience:
            object.__setattr__(self, "patience", (1.0,) * len(self.thresholds))
        self._check_rules()
        split = {branch.name for branch in self.branches if branch.kind == "split"}
        for branch in self.branches:
            if branch.exit is not None and branch.exit not in split:
                raise ConfigError(
                    f"branch {branch.name!r}: exit {branch.exit!r} is not one of the split branches {sorted(split)}"
                )

    def _check_rules(self) -> None:
        if len(self.patience) != len(self.thresholds) or not all(0 < share <= 1 for share in self.patience):
            raise ConfigError(f"patience {self.patience}: expected a share in (0, 1] for each threshold")
        rules = list(zip(self.thresholds, self.patience, strict=True))
        finite = all(math.isfinite(value) for value in self.thresholds)
        if not finite or rules != sorted(set(rules)) or not rules or rules[0][0] < 0:
            raise ConfigError(f"thresholds {self.thresholds}: expected ascending finite values >= 0")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, R, T): R is the largest number of rates of any branch."""
        return len(self.branches), max(1, *(len(branch.codecs) for branch in self.branches)), len(self.thresholds)

    @cached_property
    def rates_per_branch(self) -> NDArray[np.int64]:
        """(B,) number of rates of each branch, at least 1."""
        return np.array([max(1, len(branch.codecs)) for branch in self.branches], dtype=np.int64)

    @cached_property
    def exit_branches(self) -> NDArray[np.int64]:
        """(B,) index of the branch whose head and exit run on the device (itself but for ``offload``)."""
        index = {branch.name: i for i, branch in enumerate(self.branches)}
        return np.array([index[branch.exit or branch.name] for branch in self.branches], dtype=np.int64)

    @cached_property
    def table(self) -> NDArray[np.int64]:
        """(M, 3) every decision that differs from the others, in lexicographic order."""
        every = np.stack([axis.ravel() for axis in np.indices(self.shape)], axis=1)
        return every[np.all(self.grid == every, axis=1)]

    @cached_property
    def grid(self) -> NDArray[np.int64]:
        """(B * R * T, 3) the canonical decision of each point of the full grid, in lexicographic order."""
        return self.canonical(np.stack([axis.ravel() for axis in np.indices(self.shape)], axis=1))

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """(M,) the place of each decision of the table in the grid."""
        return np.asarray(np.ravel_multi_index(tuple(self.table.T), self.shape), dtype=np.int64)

    def canonical(self, decisions: NDArray[Any]) -> NDArray[np.int64]:
        """Map any (n, 3) indices inside ``shape`` to the decision of the table that does the same.

        A rate beyond the branch's own is its last; an always-exit threshold makes rate and patience irrelevant (0); a
        branch that answers alone is (b, 0, 0). IndexError outside ``shape``.
        """
        out = np.array(decisions, dtype=np.int64, copy=True)
        if out.size and (out.min() < 0 or np.any(out.max(axis=0) >= np.array(self.shape))):
            raise IndexError(f"decision outside {self.shape}: {out.max(axis=0)}")
        branch = out[:, 0]
        out[:, 1] = np.minimum(out[:, 1], self.rates_per_branch[branch] - 1)
        out[self.answers_alone[branch], 1:] = 0
        exits = np.array(self.thresholds)[out[:, 2]] <= ALWAYS_EXIT
        out[exits, 1:] = 0
        return out

    @cached_property
    def answers_alone(self) -> NDArray[np.bool_]:
        """(B,) whether the branch answers without exit rule or link."""
        return np.array([branch.answers_alone for branch in self.branches], dtype=np.bool_)

    def masks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return (valid (B, R, T) of the full grid, its ravelled view) for masked agents."""
        valid = np.zeros(self.shape, dtype=np.bool_)
        valid[tuple(self.table.T)] = True
        return valid, valid.ravel()

    def name(self, decision: Sequence[int] | NDArray[Any]) -> str:
        """``"stem/2/0.8"``: branch name / rate index / exit rule."""
        b, r, t = (int(i) for i in decision)
        return f"{self.branches[b].name}/{r}/{self.rule_names[t]}"

    @cached_property
    def rule_names(self) -> tuple[str, ...]:
        """Name of each exit rule: its threshold, with ``@`` and its patience where that is below 1."""
        rules = zip(self.thresholds, self.patience, strict=True)
        return tuple(f"{value:g}" if share == 1 else f"{value:g}@{share:g}" for value, share in rules)

    def parse(self, name: str) -> Decision:
        """Inverse of ``name``; UnknownNameError says which part is wrong and what is known."""
        parts = name.split("/")
        if len(parts) != 3:
            raise UnknownNameError(
                f"decision {name!r}: expected BRANCH/RATE/THRESHOLD such as {self.name(self.table[0])!r}"
            )
        names = [branch.name for branch in self.branches]
        if parts[0] not in names:
            raise UnknownNameError(
                f"decision {name!r}: unknown branch{did_you_mean(parts[0], names)} Known: {', '.join(names)}."
            )
        b = names.index(parts[0])
        rates = [str(i) for i in range(int(self.rates_per_branch[b]))]
        if parts[1] not in rates:
            raise UnknownNameError(f"decision {name!r}: branch {parts[0]!r} has rates {', '.join(rates)}")
        if parts[2] not in self.rule_names:
            raise UnknownNameError(f"decision {name!r}: thresholds are {', '.join(self.rule_names)}")
        chosen = self.canonical(np.array([[b, int(parts[1]), self.rule_names.index(parts[2])]]))[0]
        return Decision(*(int(i) for i in chosen))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able description; ``from_dict`` is its inverse."""
        branches = [{"name": b.name, "kind": b.kind, "codecs": list(b.codecs), "exit": b.exit} for b in self.branches]
        return {"branches": branches, "thresholds": list(self.thresholds), "patience": list(self.patience)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> DecisionSpace:
        """Build a space from ``to_dict``'s form; ConfigError when it does not have that form."""
        try:
            branches = tuple(
                BranchSpec(str(b["name"]), b["kind"], tuple(str(c) for c in b["codecs"]), b["exit"])
                for b in value["branches"]
            )
            rules = (tuple(float(number) for number in value[key]) for key in ("thresholds", "patience"))
            return cls(branches, *rules)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(f"decision space: not of the expected form ({error!r})") from error


def exit_rules(thresholds: Sequence[float], patience: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return every pair of a threshold and a patience as two tuples, ascending; what always exits never waits."""
    pairs = {(value, share if value > ALWAYS_EXIT else 1.0) for value in thresholds for share in patience}
    ordered = sorted(pairs)
    return tuple(value for value, _ in ordered), tuple(share for _, share in ordered)
