"""Validation while training: the deterministic policy on the validation split, always the same episodes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptsplit.controller import Controller
from adaptsplit.envs import build_world, episode_seeds, run_episodes
from adaptsplit.outcome import Outcomes, Path

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

COLLAPSED_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class ValidationPoint:
    """One validation: means per frame after ``steps`` frames of training.

    ``top`` is the most frequent decision and ``top_share`` its share of the decided frames, ``distinct`` how many
    decisions were used, ``entropy`` that of their distribution in nats.
    """

    steps: int
    reward: float
    quality: float
    miss_ratio: float
    top: str
    top_share: float
    distinct: int
    entropy: float

    @property
    def collapsed(self) -> bool:
        """True when nearly every frame gets the same decision: no better than a static one."""
        return self.top_share > COLLAPSED_SHARE

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return asdict(self)


class Validator:
    """Runs controllers over fixed episodes of one split."""

    def __init__(self, scenario: Scenario, episodes: int, seed: int = 0, split: str = "validation") -> None:
        self._scenario = scenario
        self._world = build_world(scenario, split)
        self._seeds = episode_seeds(seed, episodes, split)

    def __call__(self, controller: Controller, steps: int = 0) -> ValidationPoint:
        """Return the means of one controller."""
        outcomes = run_episodes(self._world, controller, self._seeds, batch=len(self._seeds))
        return self._summarise(outcomes, steps)

    def _summarise(self, outcomes: Outcomes, steps: int) -> ValidationPoint:
        decided = outcomes[outcomes["branch"] >= 0]
        keys = np.stack([decided["branch"], decided["rate"], decided["threshold"]], axis=-1, dtype=np.float64)
        used, counts = np.unique(keys, axis=0, return_counts=True)
        share = counts / max(counts.sum(), 1)
        branch, rate, threshold = used[int(counts.argmax())]
        name = self._scenario.space.branches[int(branch)].name
        return ValidationPoint(
            steps=steps,
            reward=float(self._scenario.objective.reward(outcomes).mean()),
            quality=float(outcomes["quality"].mean()),
            miss_ratio=float((outcomes["path"] == Path.MISS).mean()),
            top=f"{name}/{int(rate)}/{threshold:g}",
            top_share=float(share.max()),
            distinct=len(used),
            entropy=max(0.0, float(-(share * np.log(share)).sum())),
        )
