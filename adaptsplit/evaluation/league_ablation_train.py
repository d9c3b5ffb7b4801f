"""Training with something taken away: a group of observation fields, or one of the three knobs.

What is left is folded into a plain policy of the whole observation and the whole decision space: fields that were
always 0 in training lose their weights in the first layer, decisions that could not be taken get an output below all
others in the last. So an ablated run is evaluated, exported and flown like any other, and the folding changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from adaptsplit.agents.hyperparameters import OnPolicy, Parameters, load_parameters
from adaptsplit.agents.policy import PolicyNet
from adaptsplit.agents.sb3 import export_net
from adaptsplit.agents.training import Hooks, train
from adaptsplit.decision import DecisionSpace
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.evaluation.diagnose_fitted import field_groups
from adaptsplit.evaluation.knobs import KNOBS, frozen_table
from adaptsplit.evaluation.league_ablation import Removal
from adaptsplit.registry import did_you_mean
from adaptsplit.scenario import Scenario

Indices = NDArray[np.int64]

NEVER = np.float32(-1e9)
PLAIN = ("ppo", "a2c", "dqn", "qr-dqn")
"""Agents whose policy is one network without memory or mask: what the folding knows."""
Trainer = Callable[[Scenario, str, Path, int, "Parts", int | None, bool], None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What an ablation means for one space.

    ``columns``: observation fields that stand at 0. ``table`` (K, 3): the decisions that are left, None for all.
    ``frozen``: (knob's place, its value), None when no knob is frozen.
    """

    columns: Indices
    table: Indices | None
    frozen: tuple[int, int] | None


def parts_of(space: DecisionSpace, removal: Removal) -> Parts:
    """Return the columns and decisions of an ablation; UnknownNameError for a group or knob that there is not."""
    groups = field_groups()
    known: Sequence[str] = tuple(groups) if removal.kind == "group" else KNOBS
    if removal.kind != "full" and removal.what not in known:
        hint = did_you_mean(removal.what, known)
        raise UnknownNameError(f"ablation: no {removal.kind} {removal.what!r}{hint} Known: {', '.join(known)}.")
    columns = groups[removal.what] if removal.kind == "group" else np.zeros(0, dtype=np.int64)
    if removal.kind != "knob":
        return Parts(columns, None, None)
    decision = space.parse(str(removal.at).removeprefix("static:"))
    knob = next(name for name in KNOBS if name == removal.what)
    value = int(getattr(decision, knob))
    return Parts(columns, frozen_table(space, knob, value), (KNOBS.index(knob), value))


def train_ablated(
    scenario: Scenario,
    agent: str,
    out: Path,
    seed: int,
    *,
    without: str | None = None,
    frozen: str | None = None,
    at: str | None = None,
    steps: int | None = None,
    progress: bool = False,
) -> None:
    """Train ``agent`` without one group of fields, or with one knob frozen at its value in the decision ``at``.

    With neither, the whole agent is trained. The run's folder is ``out``; ``TRAINERS`` has trainers of other agents.
    ConfigError for an agent whose policy cannot be folded, or when both, or no ``at``, are given.
    """
    if (without is not None and frozen is not None) or (frozen is None) != (at is None):
        raise ConfigError("ablation: give a group to leave out, or a knob to freeze and the decision it is frozen at")
    removal = Removal("group", without) if without is not None else Removal("full", "", None)
    if frozen is not None:
        removal = Removal("knob", frozen, at)
    trainer = TRAINERS.get(agent, train_with_sb3)
    trainer(scenario, agent, out, seed, parts_of(scenario.space, removal), steps, progress)


def train_with_sb3(
    scenario: Scenario, agent: str, out: Path, seed: int, parts: Parts, steps: int | None, progress: bool
) -> None:
    """Train one of ``PLAIN`` on the wrapped environment; what is validated and kept is the folded policy."""
    if agent not in PLAIN:
        raise ConfigError(f"ablation: the policy of {agent!r} cannot be folded; use one of {', '.join(PLAIN)}")
    space = scenario.space

    def make(_: Scenario, p: Parameters, env_seed: int) -> VecEnv:
        actions = p.actions if isinstance(p, OnPolicy) else "flat"
        env = SplitVecEnv(scenario, p.envs, seed=env_seed, actions=actions, centred=True, expected=True)
        return AblatedVecEnv(env, parts)

    def export(model: BaseAlgorithm, p: Parameters) -> PolicyNet:
        return fold(export_net(model, p), space, parts)

    hooks = Hooks(env=make, export=export)
    train(scenario, agent, out, steps, seed=seed, progress=progress, hooks=hooks, parameters=load_parameters(agent))


TRAINERS: dict[str, Trainer] = {}
"""Trainers of agents that are not stable-baselines3's, by the agent's name; they get ``parts.table`` and columns."""


class AblatedVecEnv(VecEnvWrapper):
    """A vector environment without some observation fields (they are 0) or some decisions (they cannot be named)."""

    def __init__(self, venv: SplitVecEnv, parts: Parts) -> None:
        self._columns = parts.columns
        self._rows: Indices | None = None
        self._frozen: tuple[int, int] | None = None
        action_space: spaces.Space[Any] = venv.action_space
        if parts.table is not None and venv.actions == "flat":
            self._rows = rows_of(venv.decisions, parts.table)
            action_space = spaces.Discrete(len(self._rows))
        elif parts.frozen is not None:
            self._frozen = parts.frozen
            sizes = list(venv.decisions.shape)
            sizes[parts.frozen[0]] = 1
            action_space = spaces.MultiDiscrete(sizes)
        super().__init__(venv, action_space=action_space)

    def reset(self) -> VecEnvObs:
        """Start every row."""
        return self._blind(self.venv.reset())

    def step_async(self, actions: NDArray[Any]) -> None:
        """Name the decisions that the actions stand for."""
        if self._rows is not None:
            actions = self._rows[np.asarray(actions, dtype=np.int64)]
        if self._frozen is not None:
            actions = np.array(actions, dtype=np.int64)
            actions[:, self._frozen[0]] = self._frozen[1]
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Step; terminal observations lose the same fields."""
        observations, rewards, done, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"][self._columns] = 0.0
        return self._blind(observations), rewards, done, infos

    def _blind(self, observations: VecEnvObs) -> VecEnvObs:
        assert isinstance(observations, np.ndarray)
        observations[:, self._columns] = 0.0
        return observations


def rows_of(space: DecisionSpace, table: Indices) -> Indices:
    """Return the places (K,) of decisions (K, 3) in ``space.table``."""
    places = {tuple(row): i for i, row in enumerate(space.table.tolist())}
    return np.array([places[tuple(row)] for row in table.tolist()], dtype=np.int64)


def fold(net: PolicyNet, space: DecisionSpace, parts: Parts) -> PolicyNet:
    """Return a network of the whole observation and the whole space that decides as ``net`` did in training."""
    layers = [(weight.copy(), bias.copy()) for weight, bias in net.layers]
    layers[0][0][parts.columns] = 0.0
    if parts.table is not None and parts.frozen is not None:
        kept = rows_of(space, parts.table) if net.head == "flat" else _outputs(space, *parts.frozen)
        width = len(space.table) if net.head == "flat" else sum(space.shape)
        layers[-1] = _widen(*layers[-1], kept, width)
    return PolicyNet(tuple(layers), net.activation, net.head)


def _outputs(space: DecisionSpace, knob: int, value: int) -> Indices:
    """Return the outputs of a multi head that remain when one knob has a single value."""
    starts = np.cumsum((0, *space.shape))
    own = [np.arange(starts[i], starts[i + 1]) for i in range(3)]
    own[knob] = np.array([starts[knob] + value])
    return np.concatenate(own)


def _widen(
    weight: NDArray[np.float32], bias: NDArray[np.float32], kept: Indices, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    wide = np.zeros((len(weight), width), dtype=np.float32)
    shift = np.full(width, NEVER, dtype=np.float32)
    wide[:, kept], shift[kept] = weight, bias
    return wide, shift
