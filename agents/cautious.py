"""Makes a cautious ensemble (``policy_cautious``) of training runs: finds its anchor and chooses its caution.

The anchor is the static decision that earns most on the train split. The caution is chosen on the validation split by
the rule of one standard error (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3): of all that
cannot be told from the best one, the most cautious, since the frames of the validation split are few as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.best_static import best_static
from adaptsplit.agents.ensemble import plain_policies, write_members
from adaptsplit.agents.policy_cautious import CautiousController
from adaptsplit.envs import build_world, episode_seeds, run_episodes
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import Scenario

CAUTIONS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 1000.0)  # the last is the anchor nearly everywhere
EPISODES = 200
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen: ``rewards`` per frame on the validation split, one for each of ``cautions``."""

    anchor: str
    caution: float
    cautions: tuple[float, ...]
    rewards: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return asdict(self)


def one_standard_error(rewards: Floats) -> int:
    """Return the last row of (C, E) rewards whose mean is within one standard error of the best row's.

    The error is that of the difference, paired by episode.

    >>> one_standard_error(np.array([[1.0, 2.0, 3.0], [1.1, 1.9, 3.0], [0.0, 1.0, 2.0]]))
    1
    """
    behind = rewards[int(rewards.mean(axis=1).argmax())] - rewards
    error = behind.std(axis=1, ddof=1) / np.sqrt(rewards.shape[1])
    return int(np.flatnonzero(behind.mean(axis=1) <= error + 1e-12)[-1])


def choose_caution(
    policy: CautiousController, scenario: Scenario, episodes: int = EPISODES, seed: int = 0
) -> tuple[CautiousController, Choice]:
    """Return the policy with the caution that the validation split asks for, and what was seen there."""
    world, seeds = build_world(scenario, "validation"), episode_seeds(seed, episodes, "validation")
    candidates = [policy.with_caution(caution) for caution in CAUTIONS]
    rewards = np.stack(
        [scenario.objective.reward(run_episodes(world, each, seeds)).mean(axis=1) for each in candidates]
    )
    chosen = candidates[one_standard_error(rewards)]
    anchor = policy.space.name(policy.space.table[policy.anchor])
    means = tuple(float(mean) for mean in rewards.mean(axis=1))
    return chosen, Choice(anchor, chosen.caution, CAUTIONS, means)


def cautious(runs: Sequence[Path | str], scenario: Scenario, out: Path | str, name: str) -> Choice:
    """Merge the value networks of run folders into a cautious ensemble and write the run folder ``out``.

    ConfigError for folders without runs, policies that are no value networks or were made for another space, or when
    ``out`` holds other things; DataError for a damaged policy.
    """
    folders, policies = plain_policies(runs)
    if policies[0].space != scenario.space:
        raise ConfigError(f"{folders[0]}: trained for another decision space than that of {scenario.name!r}")
    nets = tuple(policy.net for policy in policies)
    blank = CautiousController(name, scenario.space, nets, best_static(scenario), 0.0)
    chosen, choice = choose_caution(blank, scenario)
    write_members(chosen, folders, Path(out), {"scenario": scenario.name, "choice": choice.to_dict()})
    return choice
