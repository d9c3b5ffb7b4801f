"""SplitEE and SplitEE-S: where to split when every frame either exits there or goes on to the end.

After Bajpai, Trivedi, Yadav, Hanawal: "SplitEE: Early Exit in Deep Neural Networks with Split Computing", AIMLSystems
2023. UCB over the depth of the split: run the first i layers on the device, exit when the confidence reaches alpha,
else offload. The reward is a confidence less costs, so no label is needed.

What differs here: the tail's answer may come late (then the exit's confidence counts), a split branch has a rate (the
one of the best predicted reward), and only the chosen branch's exit runs, so a shallower depth is not observed. The
side observations of SplitEE-S are therefore those of the *threshold*: an outcome of threshold t says exactly what every
threshold up to t of the same branch would have brought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adaptsplit.agents.bandits import IndexBandit
from adaptsplit.agents.bandits_arms import Arms, Floats, Ints, Paid, reward_for
from adaptsplit.agents.bandits_index import splitee
from adaptsplit.agents.bandits_memory import ArmState, Memory
from adaptsplit.agents.base import ControllerContext, full_name, need_summary, parse_parameters
from adaptsplit.agents.prediction import DecisionModel, nominal_observation
from adaptsplit.controller import Controller, controllers
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes, Path

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

PAPER_LAMBDA = 0.1  # price of a layer, in confidence; read in the authors' code
PAPER_OFFLOAD = 0.1  # the smallest of the offloading prices 0.1 to 0.6 that they sweep
DEFAULT_ALPHA = 0.85  # between the 0.7 and 0.85 of their code


@dataclass(frozen=True)
class PaperReward:
    """The paper's: confidence less ``lam`` times the depth (1 the shallowest), less ``offload`` when sent.

    With ``one_exit`` (SplitEE) a depth costs ``0.8 lam (i - 1) + lam``: one exit is evaluated, and an exit costs 0.2 of
    a layer; without (SplitEE-S) ``lam i``. ``depth`` (B,) is i of each branch. A dropped frame earns 0.
    """

    depth: Floats
    lam: float = PAPER_LAMBDA
    offload: float = PAPER_OFFLOAD
    one_exit: bool = True

    def __call__(self, outcomes: Outcomes) -> Floats:
        """Return the (N,) rewards, at most 1; they may be below 0."""
        depth = self.depth[np.maximum(outcomes["branch"], 0)]
        layers = self.lam * (0.8 * (depth - 1.0) + 1.0) if self.one_exit else self.lam * depth
        earned = outcomes["confidence"] - layers - self.offload * (outcomes["sent_bytes"] > 0)
        return np.where(outcomes["branch"] < 0, 0.0, earned.astype(np.float64))


class SideObservingBandit(IndexBandit):
    """SplitEE-S over the thresholds of each branch: every arm up to the chosen one learns from its outcome.

    The exit's confidence c is known whatever was decided. A threshold t' up to the chosen t exits where t' <= c, which
    costs no encoding and no sending; else both send, and the outcome is the same.
    """

    def __init__(
        self, name: str, arms: Arms, reward: Paid, model: DecisionModel, memory: Memory, explore: float = 1.0
    ) -> None:
        super().__init__(name, arms, splitee, reward, memory=memory, explore=explore)
        space, chosen = arms.space, arms.decisions
        self._value = np.array(space.thresholds)[chosen[:, 2]]
        same = chosen[:, None, 0] == chosen[None, :, 0]
        self.below = same & (self._value[None, :] <= self._value[:, None])
        pair = np.array([np.flatnonzero((model.pairs[:, :2] == row[:2]).all(axis=1))[0] for row in chosen])
        self._encode_j = model.context.compute_w * model.encode[pair]
        self._exit_s = (model.signal + model.head)[pair]

    def time(self, state: ArmState) -> float | None:
        """Return the number of frames; None (the sum of counts) where old outcomes are forgotten."""
        forgets = self.memory.window > 0 or self.memory.discount < 1.0
        return None if forgets else float(max(state.decisions, 1))

    def lessons(self, records: Outcomes, rows: Ints, arm: Ints) -> tuple[Ints, Ints, Floats]:
        """Return one lesson for each record and each arm up to its own: (rows, arms, rewards)."""
        source, other = np.nonzero(self.below[arm])
        copies = records[source]
        copies["branch"] = np.where(copies["branch"] < 0, -1, self.arms.decisions[other, 0])
        sent = ~np.isin(copies["path"], (Path.EXIT, Path.MISS)) & (copies["branch"] >= 0)
        would_exit = sent & (self._value[other] <= copies["exit_confidence"]) & (other != arm[source])
        exited = copies[would_exit]
        exited["path"], exited["sent_bytes"], exited["radio_j"] = Path.EXIT, 0, 0.0
        exited["confidence"], exited["quality"] = exited["exit_confidence"], np.nan
        chosen = arm[source][would_exit]
        exited["compute_j"] = np.maximum(exited["compute_j"] - self._encode_j[chosen], 0.0)
        exited["answer_latency_s"] = exited["decided_s"] - exited["arrived_s"] + self._exit_s[chosen]
        copies[would_exit] = exited
        return rows[source], other, self.reward(copies)


def depth_of(space: DecisionSpace, model: DecisionModel) -> Floats:
    """Return (B,) the depth of each branch: 1 for the split branch of the shortest head, counting on; local is last."""
    b = np.arange(len(space.branches))
    head = np.array([model.head[model.pairs[:, 0] == i][0] for i in b])
    split = np.array([branch.kind in ("split", "local") for branch in space.branches])
    order = np.argsort(np.where(split, head, np.inf), kind="stable")
    depth = np.empty(len(b))
    depth[order] = 1.0 + np.arange(len(b))
    return depth


def _at_rules(space: DecisionSpace, model: DecisionModel, rules: list[int]) -> Arms:
    """For each split branch and exit rule the decision of the best predicted rate; and ``local``, if there."""
    expected = model.expected(nominal_observation(model.context))[0]
    table, found = space.table, list[int]()
    for b in np.argsort(depth_of(space, model)):
        if space.branches[b].kind == "local":
            found.append(int(np.flatnonzero(table[:, 0] == b)[0]))
        if space.branches[b].kind != "split":
            continue
        sends = (table[:, 0] == b) & np.isin(table[:, 2], rules)
        rate = table[np.where(sends, expected, -np.inf).argmax(), 1]
        for rule in rules:
            row = space.canonical(np.array([[b, rate, rule]]))[0]
            found.append(int(np.flatnonzero((table == row).all(axis=1))[0]))
    return Arms(space, np.array(list(dict.fromkeys(found)), dtype=np.int64))


def _alpha_rule(name: str, space: DecisionSpace, alpha: float | None) -> int:
    """Index of the exit rule of threshold ``alpha`` (by default the nearest to 0.85) and the longest patience."""
    values, patience = np.array(space.thresholds), np.array(space.patience)
    wanted = values[np.abs(values - DEFAULT_ALPHA).argmin()] if alpha is None else alpha
    match = np.abs(values - wanted) < 1e-9
    if not match.any():
        known = ", ".join(f"{value:g}" for value in np.unique(values))
        raise ConfigError(
            f"controller {name!r}: alpha={alpha:g} is no threshold of this decision space; known: {known}"
        )
    return int(np.where(match, patience, -1.0).argmax())


def _reward(name: str, given: dict[str, object], context: ControllerContext, depth: Floats) -> Paid:
    cost = given.get("cost", "objective")
    prices = {key: float(str(given[key])) for key in ("lam", "offload") if key in given}
    if cost == "paper":
        return PaperReward(depth, one_exit=name == "splitee", **prices)
    if cost != "objective" or prices:
        raise ConfigError(
            f"controller {name!r}: cost={cost!r} with {sorted(prices)}; expected cost=objective (the scenario's), or "
            "cost=paper, which may have lam= and offload="
        )
    return reward_for(context, str(given.get("reward", "confidence")))


def _build(
    name: str, space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    known = {"alpha": float, "cost": str, "lam": float, "offload": float, "reward": str, "explore": float}
    known |= {"discount": float, "window": int}
    given = parse_parameters(name, argument, known)
    model = DecisionModel(space, need_summary(name, summary), context)
    if not any(branch.kind == "split" for branch in space.branches):
        raise ConfigError(f"controller {name!r} needs a split branch; this decision space has none")
    reward = _reward(name, given, context, depth_of(space, model))
    memory = Memory(given.get("discount", 1.0), given.get("window", 0))
    full, explore = full_name(name, argument), given.get("explore", 1.0)
    if name == "splitee":
        arms = _at_rules(space, model, [_alpha_rule(name, space, given.get("alpha"))])
        return IndexBandit(full, arms, splitee, reward, memory=memory, explore=explore)
    if "alpha" in given:
        raise ConfigError("controller 'splitee-s' chooses the threshold itself; leave alpha out, or take 'splitee'")
    rules = [i for i, share in enumerate(space.patience) if share == 1.0]
    return SideObservingBandit(full, _at_rules(space, model, rules), reward, model, memory, explore)


@controllers.register("splitee")
def _splitee(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    return _build("splitee", space, summary, context, argument)


@controllers.register("splitee-s")
def _splitee_s(
    space: DecisionSpace, summary: ProfileSummary | None, context: ControllerContext, argument: str
) -> Controller:
    return _build("splitee-s", space, summary, context, argument)
