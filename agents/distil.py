"""Distillation: any controller becomes a small tree or a decision table, with its loss stated. ``adaptsplit distil``.

Rounds of DAgger gather states on the student's own path with the teacher's decisions (``distil_costs``); trees and
tables of several sizes are grown from them (``distil_fit``), their cells' decisions are improved in the simulator on
train episodes (``distil_search``), and one is chosen on validation episodes. The loss is stated on further validation
episodes that chose nothing (``distil_state``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit.agents.build import make_controller
from adaptsplit.agents.distil_costs import (
    Floats,
    Labels,
    Visited,
    candidates_of,
    measured_weights,
    teacher_values,
    visit,
)
from adaptsplit.agents.distil_fit import Criterion, criteria_of, grow_lookup, grow_tree
from adaptsplit.agents.distil_search import Search
from adaptsplit.agents.distil_state import Bench, Loss
from adaptsplit.agents.policy import PolicyController
from adaptsplit.agents.policy_cells import CellPolicy
from adaptsplit.agents.run_folder import RUN_FILE, Run
from adaptsplit.agents.validation import Validator
from adaptsplit.config import Config
from adaptsplit.controller import Controller
from adaptsplit.envs import build_world, episode_seeds, run_episodes
from adaptsplit.errors import ConfigError

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

Form = Literal["tree", "lookup"]
Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``."""

SIZES = (4, 8, 16, 32, 64, 128, 256, 512)
MAX_LEAVES = 4096
TEXT_FILE, C_FILE = "policy.txt", "policy.c"
CANDIDATES = 12  # decisions that are tried from a state to measure what a wrong one loses
FLOOR = 0.01  # of the mean weight: where nothing is lost, the teacher is followed none the less
SEARCHED = 2  # grown policies of each size that the search goes on from
SCREENED = 48  # selection episodes on which the steps of a table's growth are compared
SEARCH_UP_TO = 128  # cells; beyond it the search costs minutes and was seen to gain next to nothing
STATED_SEED = 1000  # seeds of the episodes that the loss is stated on begin here, apart from all that chose anything


class Distilling(Config):
    """How a policy is distilled.

    ``leaves`` is the largest number of leaves or table cells, ``rounds`` those of DAgger (1: plain cloning), ``states``
    how many each keeps of its ``episodes``. ``mixture`` is the teacher's share of the decisions in the second round; it
    falls by that factor from round to round. 0 is the paper's simplest schedule, and safest: a teacher that decides
    every other frame keeps the student off its own path. ``costs`` "values" weighs errors by the teacher's own outputs,
    "rollouts" by trying decisions in the simulator, "auto" by the first where there are outputs. ``search_episodes`` 0
    leaves out the search.
    """

    form: Form = "tree"
    leaves: int = Field(default=64, ge=2, le=MAX_LEAVES)
    rounds: int = Field(default=4, ge=1, le=64)
    states: int = Field(default=6000, ge=100, le=200_000)
    episodes: int = Field(default=128, ge=1, le=4096)
    mixture: float = Field(default=0.0, ge=0, le=1)
    costs: Literal["auto", "values", "rollouts"] = "auto"
    search_episodes: int = Field(default=96, ge=0, le=4096)
    selection_episodes: int = Field(default=128, ge=2, le=4096)
    stated_episodes: int = Field(default=256, ge=2, le=4096)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy of at most ``limit`` cells and its (E,) rewards on the selection episodes."""

    policy: CellPolicy
    limit: int
    criterion: Criterion
    rewards: Floats

    @property
    def reward(self) -> float:
        """Mean reward per frame."""
        return float(self.rewards.mean())


@dataclass(frozen=True, slots=True)
class Distilled:
    """What a distillation came to; ``tried`` has the best policy of each size, ``folder`` is None where none was asked
    for."""

    policy: CellPolicy
    loss: Loss
    tried: tuple[Candidate, ...]
    seconds: float
    folder: Path | None


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


class Distiller:
    """A teacher and a scenario at work; ``distil`` runs all of it."""

    def __init__(
        self, teacher: Controller, scenario: Scenario, settings: Distilling, *, agent: str = "", seed: int = 0
    ) -> None:
        """``agent`` names what trained the teacher: the outputs of "dqn" and "qr-dqn" are values, others' logits."""
        self.teacher, self.scenario, self.settings, self.agent, self.seed = teacher, scenario, settings, agent, seed
        self.space = scenario.space
        self.train, self.validation = build_world(scenario, "train"), build_world(scenario, "validation")
        self._select = episode_seeds(0, settings.selection_episodes, "validation")
        self._search = Search(self.train, scenario.objective, seed, max(1, settings.search_episodes))
        self._candidates: NDArray[np.int64] | None = None

    def gather(self, progress: Progress = silent) -> Labels:
        """Return the labels of all rounds: the first on the teacher's path, the others on that of the last student."""
        labels: Labels | None = None
        for turn in range(self.settings.rounds):
            student = None if labels is None else self.grow(labels, self.settings.leaves, "weighted")
            found = self._label(self._visit(student, turn), student)
            labels = found if labels is None else labels.joined(found)
            progress("rounds", turn + 1, self.settings.rounds)
        assert labels is not None  # there is at least one round
        return labels

    def _visit(self, student: CellPolicy | None, turn: int) -> Visited:
        given = self.settings
        seeds = episode_seeds(1 + self.seed * given.rounds + turn, given.episodes, "train")
        mixture, key = given.mixture**turn, self.seed * given.rounds + turn
        return visit(self.train, self.space, self.teacher, student, seeds, given.states, mixture=mixture, seed=key)

    def _label(self, visited: Visited, student: CellPolicy | None) -> Labels:
        """Weigh the visited states: by the teacher's outputs, or by trying decisions in the simulator."""
        if self._candidates is None:
            self._candidates = candidates_of(visited.taught, CANDIDATES)
        chances, weights = None, None
        if self._by_values():
            values, unit = teacher_values(self.teacher, visited.observations, self.agent)
            chances = np.exp(values).astype(np.float32) if unit == "log" else None
            weights = values.max(axis=1) - values[:, self._candidates].min(axis=1)
        elif (follower := self._follower(visited, student)) is not None:
            weights = measured_weights(self.train, self.space, visited, self._candidates, follower)
        weights = np.ones(len(visited)) if weights is None else weights + FLOOR * weights.mean() + 1e-12
        return Labels(visited.observations, visited.taught, weights, chances)

    def _by_values(self) -> bool:
        if self.settings.costs == "values" and not isinstance(self.teacher, PolicyController):
            raise ConfigError(f"costs 'values': {self.teacher.name!r} has no outputs to read; take costs 'rollouts'")
        return self.settings.costs != "rollouts" and isinstance(self.teacher, PolicyController)

    def _follower(self, visited: Visited, student: CellPolicy | None) -> Controller:
        """Who decides after a decision that is tried: the teacher, or, where it has a state, a stateless student."""
        if self.teacher.init(1, np.random.default_rng(0)) is None:
            return self.teacher
        if student is not None:
            return student
        labels = Labels(visited.observations, visited.taught, np.ones(len(visited)))
        return grow_tree(labels, self.space, self.settings.leaves, "plain", self.seed)

    def grow(self, labels: Labels, limit: int, criterion: Criterion) -> CellPolicy:
        """Return a policy of at most ``limit`` cells that was grown from labels."""
        if self.settings.form == "tree":
            return grow_tree(labels, self.space, limit, criterion, self.seed)
        held = np.random.default_rng([self.seed, 5]).random(len(labels)) < 0.2
        return grow_lookup(labels.part(~held), labels.part(held), self.space, limit, criterion, self._screen)

    def _screen(self, policy: CellPolicy) -> float:
        return float(self.score(policy, SCREENED).mean())

    def score(self, policy: Controller, first: int | None = None) -> Floats:
        """Return the (E,) rewards on the ``first`` selection episodes (all), those of ``adaptsplit train``."""
        outcomes = run_episodes(self.validation, policy, self._select[:first])
        return np.asarray(self.scenario.objective.reward(outcomes).mean(axis=1), dtype=np.float64)

    def best_of(self, labels: Labels, limit: int) -> Candidate:
        """Return the best policy of at most ``limit`` cells: over the criteria, and after the search."""
        grown = [self._candidate(self.grow(labels, limit, each), limit, each) for each in criteria_of(labels)]
        grown.sort(key=lambda item: -item.reward)
        if not self.settings.search_episodes or limit > SEARCH_UP_TO:
            return grown[0]
        for item in grown[:SEARCHED]:
            found = self._search.improve(item.policy, labels)
            grown.append(self._candidate(found.pruned(), limit, item.criterion))
        return max(grown, key=lambda item: item.reward)

    def sizes(self, labels: Labels, progress: Progress = silent) -> tuple[Candidate, ...]:
        """Return the best policy of each size up to ``leaves``; a smaller one stands where the larger is worse."""
        tried: list[Candidate] = []
        limits = sizes_up_to(self.settings.leaves)
        for i, limit in enumerate(limits):
            found = self.best_of(labels, limit)
            tried.append(max((*tried[-1:], found), key=lambda item: item.reward))
            progress("sizes", i + 1, len(limits))
        return tuple(tried)

    def _candidate(self, policy: CellPolicy, limit: int, criterion: Criterion) -> Candidate:
        return Candidate(policy, limit, criterion, self.score(policy))


def sizes_up_to(leaves: int) -> tuple[int, ...]:
    """Return the sizes that are tried: powers of two below ``leaves``, and it."""
    return (*(size for size in SIZES if size < leaves), leaves)


def choose(tried: tuple[Candidate, ...]) -> Candidate:
    """Return the smallest policy whose reward is within one standard error of the best one's (CART's rule).

    The error is that of the paired difference on the selection episodes.
    """
    best = max(tried, key=lambda item: item.reward)
    for item in sorted(tried, key=lambda each: each.policy.size):
        behind = best.rewards - item.rewards
        if behind.mean() <= behind.std() / np.sqrt(len(behind)):
            return item
    return best


def distil(
    teacher: Controller | Path | str,
    scenario: Scenario,
    out: Path | str | None = None,
    form: Form = "tree",
    leaves: int = 64,
    *,
    seed: int = 0,
    settings: Distilling | None = None,
    progress: Progress = silent,
) -> Distilled:
    """Distil a controller, a registered name or a run's folder into a tree or table of at most ``leaves`` cells.

    With ``out``, writes a run's folder there: ``policy.npz``, ``run.json`` with the loss, ``policy.txt`` (the policy in
    words) and ``policy.c``. ``settings`` takes the place of ``form`` and ``leaves``. ConfigError for an ``out`` that
    holds another run, UnknownNameError for a teacher that nothing answers to.
    """
    begun = time.monotonic()
    chosen = settings or Distilling(form=form, leaves=leaves)
    folder = None if out is None else check_out(Path(out))
    built, agent = _teacher(teacher, scenario)
    work = Distiller(built, scenario, chosen, agent=agent, seed=seed)
    tried = work.sizes(work.gather(progress), progress)
    winner = choose(tried).policy
    bench = Bench(scenario, built, chosen.stated_episodes, STATED_SEED + seed)
    loss = bench.state(winner, len(winner.to_bytes()))
    progress("statement", 1, 1)
    result = Distilled(winner, loss, tried, time.monotonic() - begun, folder)
    if folder is not None:
        _write(result, folder, scenario, chosen, seed)
    return result


def check_out(folder: Path) -> Path:
    """Return the folder to write to; ConfigError when it holds anything but an earlier distillation."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    try:
        agent = json.loads((folder / RUN_FILE).read_bytes())["agent"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}: exists and is no distilled run; name another folder with --out") from error
    if agent not in ("tree", "lookup"):
        raise ConfigError(f"{folder}: holds a run of {agent!r}, which would be lost; name another folder with --out")
    return folder


def _teacher(teacher: Controller | Path | str, scenario: Scenario) -> tuple[Controller, str]:
    """Return the controller and the name of the agent that trained it ("" for none)."""
    if not isinstance(teacher, Path | str):
        return teacher, ""
    controller, place = make_controller(str(teacher), scenario), Path(teacher) / RUN_FILE
    try:
        return controller, str(json.loads(place.read_bytes())["agent"])
    except (OSError, ValueError, KeyError, TypeError):
        return controller, ""


def _write(result: Distilled, folder: Path, scenario: Scenario, settings: Distilling, seed: int) -> None:
    """Write the run's folder."""
    run = Run(scenario, settings.form, settings, folder, seed)
    run.prepare()
    point = Validator(scenario, settings.selection_episodes)(result.policy)
    run.add(point, result.policy.save, result.seconds, point.reward)
    run.stage(TEXT_FILE, result.policy.describe().encode())
    run.stage(C_FILE, result.policy.to_c().encode())
    sizes = [
        {"limit": c.limit, "cells": c.policy.size, "criterion": c.criterion, "reward": c.reward} for c in result.tried
    ]
    run.write(0, result.seconds, {"teacher": result.loss.teacher, "loss": result.loss.to_dict(), "sizes": sizes})
