"""How fast the simulator is beside well-known environments, and what that means for planning and training.

    python benchmarks/env.py                      # about two minutes on two quiet cores
    python benchmarks/env.py --quick              # some 20 seconds, noisier
    python benchmarks/env.py --scenario flight-reuse --json

Everything runs in one process and one run. Actions are drawn beforehand. Contestants take turns, a fraction of a second
each, so that a busy moment of the machine hits all of them; a figure is the median over the turns. Compare ratios, not
absolute figures: they differ between machines by more than between programs.

CartPole is the common yardstick, and a toy: its step is a dozen multiplications on four numbers, ours simulates a
camera, a board, a link, a server and what the device learns of them, and returns 35 numbers. "vector" is Gymnasium's
numpy implementation of it, "sync" its loop over single environments. EnvPool is compared where it is installed
(pip install envpool); it runs with one thread, since a second one did not make so short a step faster (two cores).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import adaptsplit.envs  # noqa: F401  (registers the environments)
from adaptsplit.agents.oracle import plan
from adaptsplit.envs import SplitVectorEnv, build_world, episode_seeds
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]
SIZES = (1, 16, 256, 4096)
DRAWN = 64  # different batches of actions
ORACLES = (
    ("oracle-clairvoyant", 24),
    ("oracle-clairvoyant", 48),
    ("oracle-informed", 24),
    ("oracle-informed-0", None),
)


@dataclass
class Contestant:
    """One program at one batch size: ``step(i)`` takes the i-th batch of drawn actions in ``n`` environments."""

    name: str
    n: int
    step: Callable[[int], Any]
    rates: list[float] = field(default_factory=list)

    def turn(self, seconds: float) -> None:
        """Step for about ``seconds``; note the environment steps per second."""
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            for _ in range(max(1, 256 // self.n)):
                self.step(done)
                done += 1
        self.rates.append(done * self.n / (time.perf_counter() - begun))

    @property
    def rate(self) -> float:
        """Environment steps per second: the median turn."""
        return median(self.rates)


def single(name: str, env: gym.Env[Any, Any], actions: list[Any]) -> Contestant:
    """A single environment as ``gym.make`` gives it, wrappers and resets included."""
    env.reset(seed=0)

    def step(i: int) -> None:
        _, _, terminated, truncated, _ = env.step(actions[i % DRAWN])
        if terminated or truncated:
            env.reset()

    return Contestant(name, 1, step)


def vector(name: str, env: Any, n: int, actions: list[Any]) -> Contestant:
    """A vector environment; all of them restart finished rows by themselves."""
    env.reset()
    return Contestant(name, n, lambda i: env.step(actions[i % DRAWN]))


def pushes(rng: np.random.Generator, n: int) -> list[Array]:
    """Random actions of CartPole."""
    return [rng.integers(0, 2, n).astype(np.int32) for _ in range(DRAWN)]


def contestants(scenario: Scenario, threads: int | None) -> list[Contestant]:
    """Every program at every size, reset and with its first step (and its compilation) behind it."""
    rng, found = np.random.default_rng(0), []
    decisions = scenario.space.table[rng.integers(0, len(scenario.space.table), DRAWN)]
    found.append(single("ours, gym.make", gym.make("adaptsplit/Split-v0", scenario=scenario), list(decisions)))
    found.append(single("CartPole, gym.make", gym.make("CartPole-v1"), [int(a[0]) for a in pushes(rng, 1)]))
    for n in SIZES:
        rows = rng.integers(0, len(scenario.space.table), (DRAWN, n))
        taken = [scenario.space.table[row] for row in rows]
        found.append(vector("ours", SplitVectorEnv(scenario, n, threads=threads), n, taken))
        for mode, label in (("vector_entry_point", "vector"), ("sync", "sync")):
            env = gym.make_vec("CartPole-v1", num_envs=n, vectorization_mode=mode)
            found.append(vector(f"CartPole, {label}", env, n, pushes(rng, n)))
        if has_envpool():
            found.append(vector("CartPole, EnvPool", envpool_cartpole(n), n, pushes(rng, n)))
    for each in found:
        each.step(0)
    return found


def has_envpool() -> bool:
    """Whether EnvPool can be compared."""
    return importlib.util.find_spec("envpool") is not None


def envpool_cartpole(n: int) -> Any:
    """EnvPool's CartPole with one thread."""
    import envpool  # type: ignore[import-not-found, unused-ignore]

    return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=n, num_threads=1)


def oracle_rates(scenario: Scenario, episodes: int, repeats: int) -> dict[str, float]:
    """Frames planned per second by each oracle on test episodes (medians); compilation and set-up are left out."""
    world, train = build_world(scenario, "test"), build_world(scenario, "train")
    rates: dict[str, list[float]] = {}

    def seconds(name: str, width: int | None, count: int) -> float:
        begun = time.perf_counter()
        plan(world, train, scenario.space, episode_seeds(0, count, "test"), name, width=width)
        return time.perf_counter() - begun

    for _ in range(repeats):
        for name, width in ORACLES:
            seconds(name, width, 1)
            first = seconds(name, width, 1)
            planning = seconds(name, width, 1 + episodes) - first
            label = name if width is None else f"{name}, beam {width}"
            rates.setdefault(label, []).append(episodes * world.constants.frames / planning)
    return {label: median(values) for label, values in rates.items()}


def training_share(scenario: Scenario, frames: int) -> dict[str, float]:
    """Train the default PPO for ``frames``: frames/s, and the share of the time that the simulator takes."""
    import torch

    from adaptsplit.agents.hyperparameters import load_parameters
    from adaptsplit.agents.sb3 import make_model
    from adaptsplit.envs.sb3 import SplitVecEnv

    torch.set_num_threads(1)
    parameters = load_parameters("ppo")
    env = SplitVecEnv(scenario, parameters.envs, actions="multi", centred=True, expected=True)
    spent, plain = [0.0], env.step_wait

    def timed() -> Any:
        begun = time.perf_counter()
        answer = plain()
        spent[0] += time.perf_counter() - begun
        return answer

    env.step_wait = timed  # type: ignore[method-assign]
    model = make_model(parameters, env, seed=0)
    model.learn(parameters.envs)  # what is loaded and compiled at first use
    before, spent[0], begun = model.num_timesteps, 0.0, time.perf_counter()
    model.learn(frames, reset_num_timesteps=False)
    seconds, done = time.perf_counter() - begun, model.num_timesteps - before
    return {"frames": float(done), "frames_per_s": done / seconds, "simulation_share": spent[0] / seconds}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ("numpy", "numba", "gymnasium", "stable-baselines3", "torch", *(("envpool",) if has_envpool() else ()))
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; progress on standard error."""
    scenario, facts = load_scenario(options.scenario, options.data), machine()
    repeats, seconds = (3, 0.1) if options.quick else (options.repeats, options.seconds)
    entrants = contestants(scenario, options.threads)
    for turn in range(repeats):
        print(f"environments: turn {turn + 1} of {repeats}", file=sys.stderr)
        for entrant in entrants:
            entrant.turn(seconds)
    print("oracles", file=sys.stderr)
    oracles = oracle_rates(scenario, 4 if options.quick else 12, 1 if options.quick else 3)
    print("training", file=sys.stderr)
    training = training_share(scenario, 50_000 if options.quick else 150_000)
    facts["load_after"] = [round(value, 2) for value in os.getloadavg()]
    steps = [{"name": e.name, "n": e.n, "steps_per_s": e.rate, "turns": e.rates} for e in entrants]
    return {
        "scenario": scenario.name,
        "machine": facts,
        "environments": steps,
        "oracles": oracles,
        "training": training,
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as Markdown: environment steps per second, and ours over each other."""
    rate = {(row["name"], row["n"]): row["steps_per_s"] for row in found["environments"]}
    others = [name for name in ("CartPole, vector", "CartPole, sync", "CartPole, EnvPool") if (name, 1) in rate]
    gym_single = rate["CartPole, gym.make", 1]
    lines = ["| n | ours | " + " | ".join(others) + " | ours over each | ours / CartPole, gym.make |"]
    lines.append("| --: " * (len(others) + 4) + "|")
    for n in SIZES:
        ours = rate["ours", n]
        cells = [f"{rate[name, n]:,.0f}" for name in others]
        ratios = " / ".join(f"{ours / rate[name, n]:.2g}" for name in others)
        lines.append(f"| {n} | {ours:,.0f} | {' | '.join(cells)} | {ratios} | {ours / gym_single:.3g} |")
    if len(others) < 3:
        lines.append("\nEnvPool: not installed (pip install envpool).")
    single_rate = rate["ours, gym.make", 1]
    lines.append(f"\nSingle, through gym.make: ours {single_rate:,.0f}, CartPole {gym_single:,.0f} steps/s.")
    lines.append("\n| oracle | frames/s |\n| --- | --: |")
    lines += [f"| {name} | {value:,.0f} |" for name, value in found["oracles"].items()]
    t, m = found["training"], found["machine"]
    share = f"{t['simulation_share']:.1%}"
    lines.append(f"\nPPO, defaults: {t['frames_per_s']:,.0f} frames/s, of which the simulator takes {share}.")
    load = f"load {m['load_before'][0]} before, {m['load_after'][0]} after"
    versions = ", ".join(f"{name} {number}" for name, number in m["versions"].items())
    lines.append(f"\n{found['scenario']}; {m['cpu']}, {m['cores']} cores, {load}; Python {m['python']}, {versions}.")
    return "\n".join(lines)


def main() -> None:
    """Print a table, or JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="flight-lte", help="shipped name or YAML file (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="directory of recorded data, for scenarios that need it")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of our vector environment (default: the machine's cores)")
    parser.add_argument("--quick", action="store_true", help="three turns of 0.1 s, fewer episodes and frames")
    parser.add_argument("--json", action="store_true", help="one JSON document, every turn included")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure(options)
    print(json.dumps(found, indent=2) if options.json else table(found))


if __name__ == "__main__":
    main()
