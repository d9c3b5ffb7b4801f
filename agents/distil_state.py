"""What a distilled policy costs: its loss against the teacher and the best static decision, its size and its time.

Letters: E episodes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.distil_costs import Floats, table_rows, visit
from adaptsplit.agents.policy_cells import CellPolicy
from adaptsplit.agents.policy_tree import TreeController
from adaptsplit.controller import Controller, Observations
from adaptsplit.envs import World, build_world, episode_info, episode_seeds, run_episodes
from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.grid import static_rewards

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

REPEATS = 5
DECISIONS = 1000


@dataclass(frozen=True, slots=True)
class Loss:
    """The statement of a distillation, on validation episodes that selected nothing.

    Rewards are means per frame. ``to_teacher`` and ``to_static`` are the paired differences student - other with their
    95 % intervals (bootstrap over recordings, minutes and episodes); the static decision is the best in hindsight on
    the same episodes, the harder reference. ``kept`` is the share of the teacher's gain over it that the student keeps,
    None where the teacher gains nothing. ``agreement`` is the share of the frames on the student's path in which the
    teacher would have decided the same. ``cells`` are leaves or table cells, ``comparisons`` the longest path of a tree
    (of a table: edges of all fields). ``file_bytes`` is the size of ``policy.npz``, ``array_bytes`` of its arrays;
    times in microseconds per decision of one frame, on this machine.
    """

    episodes: int
    reward: float
    teacher: str
    teacher_reward: float
    static: str
    static_reward: float
    to_teacher: stats.Interval
    to_static: stats.Interval
    kept: float | None
    agreement: float
    cells: int
    comparisons: int
    array_bytes: int
    file_bytes: int
    decision_us: float
    teacher_us: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return asdict(self)


class Bench:
    """Validation episodes of a scenario, with what teacher and static decisions reach on them."""

    def __init__(self, scenario: Scenario, teacher: Controller, episodes: int, seed: int) -> None:
        self.scenario, self.teacher = scenario, teacher
        self.world: World = build_world(scenario, "validation")
        self.seeds: NDArray[np.uint64] = episode_seeds(seed, episodes, "validation")
        info = episode_info(self.world, self.seeds, scenario.links("validation"))
        self._resamples = stats.resample([info["recording"], info["segment"]], seed=seed)
        self.taught = self.rewards(teacher)
        self.static_name, self.static = self._best_static()

    def rewards(self, controller: Controller) -> Floats:
        """Return the (E,) mean reward per frame of each episode."""
        outcomes = run_episodes(self.world, controller, self.seeds)
        return np.asarray(self.scenario.objective.reward(outcomes).mean(axis=1), dtype=np.float64)

    def _best_static(self) -> tuple[str, Floats]:
        space = self.scenario.space
        rewards = static_rewards(self.world, space, self.scenario.objective, self.seeds)
        best = int(rewards.mean(axis=1).argmax())
        return space.name(space.table[best]), rewards[best]

    def state(self, student: CellPolicy, file_bytes: int) -> Loss:
        """Return the loss of a student."""
        reward, gain = self.rewards(student), float(self.taught.mean() - self.static.mean())
        observations, agreement = self._compare(student)
        return Loss(
            episodes=len(self.seeds),
            reward=float(reward.mean()),
            teacher=self.teacher.name,
            teacher_reward=float(self.taught.mean()),
            static=self.static_name,
            static_reward=float(self.static.mean()),
            to_teacher=stats.paired(reward, self.taught, self._resamples),
            to_static=stats.paired(reward, self.static, self._resamples),
            kept=float(reward.mean() - self.static.mean()) / gain if gain > 0 else None,
            agreement=agreement,
            cells=student.size,
            comparisons=comparisons(student),
            array_bytes=sum(array.nbytes for array in student.arrays().values()),
            file_bytes=file_bytes,
            decision_us=decision_us(student, observations),
            teacher_us=decision_us(self.teacher, observations),
        )

    def _compare(self, student: CellPolicy) -> tuple[Observations, float]:
        """Return observations of the student's path, and the share of them on which the teacher agrees."""
        space = self.scenario.space
        met = visit(self.world, space, self.teacher, student, self.seeds, 64 * len(self.seeds))
        own = table_rows(space, student.act(met.observations, None)[0])
        return met.observations, float((own == met.taught).mean())


def comparisons(policy: CellPolicy) -> int:
    """Return how many comparisons a decision takes at most."""
    if isinstance(policy, TreeController):
        return policy.tree.depth
    return sum(math.ceil(math.log2(n + 1)) for n in (len(own) for own in getattr(policy, "edges", ())))


def decision_us(
    controller: Controller, observations: Observations, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return microseconds per decision on one observation at a time: the median of some repeats."""
    rows = [observations[i : i + 1] for i in np.arange(DECISIONS) % len(observations)]
    state, taken = controller.init(1, np.random.default_rng(0)), []
    for _ in range(REPEATS):
        begun = clock()
        for row in rows:
            _, state = controller.act(row, state)
        taken.append(clock() - begun)
    return 1e6 * median(taken) / len(rows)
