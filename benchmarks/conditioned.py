"""What it costs to train one policy for all prices instead of one policy for each.

    python benchmarks/conditioned.py                        # about six minutes on one quiet core
    python benchmarks/conditioned.py --steps 300000 --json
    python benchmarks/conditioned.py --weight bytes_per_kib --prices 0.0005 0.002 0.01 0.04

One policy is trained with the weight as an input, then one policy for each price, with the same number of frames each
(so the single ones have as many times more in all as there are prices). All are evaluated on the same test episodes, at
the same prices, beside the static decision that earns most at that price on the train split. The rest of the objective
is the scenario's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit.agents.conditioned import load_conditioned
from adaptsplit.agents.conditioned_train import train_conditioned
from adaptsplit.agents.conditions import Condition, inputs_of
from adaptsplit.agents.frontier import Panel, prices
from adaptsplit.agents.policy import PolicyController, load_policy
from adaptsplit.agents.randomise import edited
from adaptsplit.agents.training import train
from adaptsplit.controller import Controller
from adaptsplit.objective import Objective
from adaptsplit.scenario import Scenario, load_scenario

COLUMNS = ("price", "energy mJ", "KiB", "quality", "reward", "single", "static", "cond.-single")


def objectives(scenario: Scenario, weight: str, values: list[float]) -> list[Objective]:
    """Return the scenario's objective at each value of one weight."""
    return [scenario.objective.model_copy(update={"family": None, weight: value}) for value in values]


def single(scenario: Scenario, objective: Objective, steps: int, seed: int, folder: Path) -> Controller:
    """Train a policy for one objective."""
    result = train(edited(scenario, {"objective": objective}), "ppo", folder, steps, seed=seed, progress=False)
    return load_policy(result.folder / "policy.npz")


def row(test: Panel, train_split: Panel, objective: Objective, weight: str, one: Controller, alone: Controller) -> Any:
    """Measure both policies and the static decision at one objective."""
    terms, price = test.terms(one)[0], prices(objective)
    chosen = train_split.best_static(objective)[0]
    found = {
        "price": getattr(objective, weight),
        "energy mJ": 1e3 * terms[1],
        "KiB": terms[2],
        "quality": terms[0],
        "reward": float(terms @ price),
        "single": float(test.terms(alone)[0] @ price),
        "static": float(test.grid()[0, chosen] @ price),
    }
    return found | {"cond.-single": found["reward"] - found["single"]}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate, and return the document that is printed."""
    scenario, weight = load_scenario(arguments.scenario, arguments.data), arguments.weight
    condition = Condition(weight=weight, low=min(arguments.prices) or 0.03, high=max(arguments.prices))
    wanted = objectives(scenario, weight, arguments.prices)
    for objective in (scenario.objective, *wanted):
        inputs_of((condition,), objective)
    test, train_split = Panel([scenario], arguments.episodes, split="test"), Panel([scenario], 64, split="train")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options: dict[str, Any] = {"steps": arguments.steps, "seed": arguments.seed, "progress": False}
        result = train_conditioned(scenario, "ppo", folder / "all", (condition,), **options)
        policy = load_conditioned(result.folder / "conditioned.npz")
        rows = []
        for i, objective in enumerate(wanted):
            one = PolicyController("conditioned", scenario.space, policy.net.at(objective))
            alone = single(scenario, objective, arguments.steps, arguments.seed, folder / str(i))
            rows.append(row(test, train_split, objective, weight, one, alone))
    mean = float(np.mean([line["cond.-single"] for line in rows]))
    return {
        "scenario": scenario.name,
        "weight": weight,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "episodes": arguments.episodes,
        "rows": rows,
        "mean_difference": mean,
        "seconds_conditioned": round(result.seconds, 1),
    }


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="flight-lte")
    parser.add_argument("--weight", default="energy_per_j")
    parser.add_argument("--prices", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0, 3.0])
    parser.add_argument("--steps", type=int, default=800_000, help="frames of each training")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    arguments = parsed()
    document = measure(arguments)
    if arguments.json:
        print(json.dumps(document, indent=1))
        return
    print("".join(f"{name:>14}" for name in COLUMNS))
    for line in document["rows"]:
        print("".join(f"{line[name]:>14.4f}" for name in COLUMNS))
    print(f"conditioned - single, mean over the prices: {document['mean_difference']:+.4f} per frame")


if __name__ == "__main__":
    main()
