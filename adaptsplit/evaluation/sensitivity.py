"""How much the result hangs on the objective's weights: each is halved and doubled in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptsplit.agents import make_controller
from adaptsplit.envs import run_episodes
from adaptsplit.evaluation.diagnose_bench import Bench, Floats, Statics
from adaptsplit.evaluation.diagnose_document import WeightChange
from adaptsplit.evaluation.diagnose_relax import priced
from adaptsplit.objective import WEIGHTS, Objective
from adaptsplit.scenario import Scenario

FACTORS = (0.5, 2.0)
INFORMED_0 = "oracle-informed-0"
BEST_STATIC = "best static"


def under(scenario: Scenario, objective: Objective) -> Scenario:
    """Return the scenario with another objective (rules weigh by it); profiles and links are read anew when asked."""
    return Scenario(scenario.file.model_copy(update={"objective": objective}), scenario.base, scenario.data)


def changes(objective: Objective) -> list[tuple[str, float]]:
    """Return every (weight, factor) to try: none where only one weight is not zero, since its scale means nothing."""
    used = [name for name in WEIGHTS if getattr(objective, name) > 0]
    return [(name, factor) for name in used for factor in FACTORS] if len(used) > 1 else []


def weight_sensitivity(bench: Bench, count: int, statics: Statics, rules: Sequence[str]) -> tuple[WeightChange, ...]:
    """Rank best static decision, ``rules`` and informed(0) anew under each changed weight.

    Works on the first ``count`` episodes; the unchanged objective stands first (factor 1). ``statics`` are the bench's.
    """
    tried = [("as it is", 1.0), *changes(bench.scenario.objective)]
    found = []
    for i, (weight, factor) in enumerate(tried):
        objective = bench.scenario.objective
        changed = objective if factor == 1.0 else objective.scaled(weight, factor)
        found.append(_change(bench, count, statics, rules, weight, factor, changed))
        bench.progress("weights", i + 1, len(tried))
    return tuple(found)


def _change(
    bench: Bench,
    count: int,
    statics: Statics,
    rules: Sequence[str],
    weight: str,
    factor: float,
    objective: Objective,
) -> WeightChange:
    rewards = statics.rewards(objective)[:, :count]
    best = int(rewards.mean(axis=1).argmax())
    world, train = priced(bench.world, objective), priced(bench.train, objective)
    informed = bench.reward(bench.plan(INFORMED_0, count, world=world, train=train), objective)
    entrants = {BEST_STATIC: rewards[best], INFORMED_0: informed, **_rules(bench, count, rules, objective)}
    return WeightChange(
        weight=weight,
        factor=factor,
        best_static=bench.scenario.space.name(bench.scenario.space.table[best]),
        margin=bench.paired(informed, rewards[best]),
        ranking=ranking(entrants),
    )


def _rules(bench: Bench, count: int, rules: Sequence[str], objective: Objective) -> dict[str, Floats]:
    scenario, world = under(bench.scenario, objective), priced(bench.world, objective)
    return {
        name: bench.reward(
            run_episodes(world, make_controller(name, scenario), bench.seeds[:count], seed=bench.seed), objective
        )
        for name in rules
    }


def ranking(entrants: Mapping[str, Floats]) -> tuple[str, ...]:
    """Return the names by mean reward, the best first."""
    return tuple(sorted(entrants, key=lambda name: -float(np.mean(entrants[name]))))


def same_winner(found: Sequence[WeightChange]) -> bool:
    """Tell whether the same entrant comes first under every weight tried."""
    return len({change.ranking[0] for change in found}) == 1
