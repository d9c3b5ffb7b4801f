"""Zero-shot: a policy that has never seen a satellite or Wi-Fi link, on satellite and Wi-Fi links.

    ADAPTSPLIT_DATA=DATA python benchmarks/zeroshot.py                        # five seeds; half an hour on one core
    ADAPTSPLIT_DATA=DATA python benchmarks/zeroshot.py --seeds 1 --steps 300000 --json

Trained on a mixture of the LTE, 3G, 5G and air-to-ground links (train splits), chosen on their validation splits,
evaluated on the test splits of flight-starlink and flight-wifi. The rival is the static decision that earns most on the
training links: both know the same. Each target is evaluated under the objective of flight-lte and under its own (where
that is another one), each with a policy and a rival for that objective.

Intervals: 95 per cent, bootstrap over recordings, minutes, episodes and training seeds, paired by episode
(adaptsplit.evaluation.statistics). "hindsight" is the best static decision chosen on the test episodes themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.frontier import Panel
from adaptsplit.agents.general import MixtureTraining
from adaptsplit.agents.policy import load_policy
from adaptsplit.agents.randomise import LINKS_ONLY, Randomisation, edited, sources, variants
from adaptsplit.agents.training import train
from adaptsplit.controller import Controller
from adaptsplit.envs import World, build_world, episode_seeds, run_episodes
from adaptsplit.envs.runner import episode_info
from adaptsplit.evaluation.grid import static_rewards
from adaptsplit.evaluation.statistics import Interval, Resamples, paired, resample
from adaptsplit.objective import Objective
from adaptsplit.scenario import Scenario, data_directory, load_scenario

BASE, OTHERS = "flight-lte", ("flight-3g", "flight-5g", "flight-air-to-ground")
TARGETS = ("flight-starlink", "flight-wifi")
Array = NDArray[Any]


@dataclass(frozen=True)
class Line:
    """One target under one objective: means per frame, and the paired differences with their intervals."""

    target: str
    objective: str
    policy: float
    static: float
    static_name: str
    hindsight: float
    gain: Interval
    gain_over_hindsight: Interval
    seeds: tuple[float, ...]


def learned(scenario: Scenario, arguments: argparse.Namespace, seed: int, folder: Path) -> Controller:
    """Train on the mixture; return the policy that is best on the mixture's validation splits."""
    given = Randomisation(links=OTHERS) if arguments.randomise else Randomisation(links=OTHERS, **LINKS_ONLY)
    training = MixtureTraining(variants(scenario, given, arguments.worlds, seed), sources(scenario, given))
    result = train(
        scenario, arguments.agent, folder, arguments.steps, seed=seed, progress=False, hooks=training.hooks()
    )
    return load_policy(result.folder / "policy.npz")


def rewards(world: World, objective: Objective, controller: Controller, seeds: Array) -> Array:
    """Return (E,) the mean reward per frame of each episode."""
    return np.asarray(objective.reward(run_episodes(world, controller, seeds, batch=len(seeds))).mean(axis=1))


def compare(
    target: Scenario, objective: Objective, label: str, policies: list[Controller], row: int, episodes: int
) -> Line:
    """Evaluate policies (one per training seed) and static decisions on a target's test split."""
    world, seeds = build_world(target, "test"), episode_seeds(0, episodes, "test")
    info = episode_info(world, seeds, target.links("test"))
    resamples: Resamples = resample((info["recording"], info["segment"]))
    values = np.stack([rewards(world, objective, policy, seeds) for policy in policies])
    statics = static_rewards(world, target.space, objective, seeds)
    best = int(statics.mean(axis=1).argmax())
    return Line(
        target.name,
        label,
        float(values.mean()),
        float(statics[row].mean()),
        target.space.name(target.space.table[row]),
        float(statics[best].mean()),
        paired(values, statics[row], resamples),
        paired(values, statics[best], resamples),
        tuple(float(x) for x in values.mean(axis=1)),
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train for every objective, evaluate on every target; return the document that is printed."""
    base, targets = load_scenario(BASE), [load_scenario(name) for name in TARGETS]
    lines, started = [], time.monotonic()
    for label, objective in wanted_objectives(base, targets).items():
        scenario = edited(base, {"objective": objective})
        given = Randomisation(links=OTHERS, **LINKS_ONLY)
        row = Panel(sources(scenario, given), 64, split="train").best_static(objective)[0]
        with tempfile.TemporaryDirectory() as name:
            policies = [learned(scenario, arguments, seed, Path(name) / str(seed)) for seed in range(arguments.seeds)]
        for target in targets:
            if label == "flight-lte" or target.objective == objective:
                lines.append(compare(target, objective, label, policies, row, arguments.episodes))
    options = {key: value for key, value in vars(arguments).items() if key != "json"}
    return {"options": options, "seconds": round(time.monotonic() - started, 1), "lines": [asdict(x) for x in lines]}


def wanted_objectives(base: Scenario, targets: list[Scenario]) -> dict[str, Objective]:
    """Return flight-lte's objective, and each target's own that differs from it."""
    found = {base.name: base.objective}
    for target in targets:
        if target.objective not in found.values():
            found[target.name] = target.objective
    return found


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="ppo", help="any trainable agent")
    parser.add_argument("--seeds", type=int, default=5, help="training runs for each objective")
    parser.add_argument("--steps", type=int, default=None, help="frames of each training (default: the agent's)")
    parser.add_argument("--worlds", type=int, default=4, help="worlds in the mixture")
    parser.add_argument("--randomise", action="store_true", help="randomise links, loss and board as well")
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def text(interval: Interval) -> str:
    """Return ``+0.0123 [+0.0100, +0.0150]``."""
    return f"{interval.value:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def main() -> None:
    """Measure and print; without the recorded data only say so."""
    arguments = parsed()
    if data_directory(None) is None:
        print("skipped: needs the recorded links; name their directory by ADAPTSPLIT_DATA", file=sys.stderr)
        return
    document = measure(arguments)
    if arguments.json:
        print(json.dumps(document, indent=1))
        return
    head = f"{'target':<17}{'objective':<17}{'policy':>8}{'static':>8}"
    print(f"{head}  {'gain over static of training links':<36}over hindsight static")
    for line in document["lines"]:
        gains = text(Interval(**line["gain"])), text(Interval(**line["gain_over_hindsight"]))
        print(
            f"{line['target']:<17}{line['objective']:<17}{line['policy']:>8.4f}{line['static']:>8.4f}  {gains[0]:<36}"
            f"{gains[1]}  (static:{line['static_name']})"
        )
    print(f"{document['seconds']:.0f} s")


if __name__ == "__main__":
    main()
