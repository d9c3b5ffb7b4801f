"""What an online learner is given and keeps: parameters, deployment, lessons, state.

Letters: n rows, d features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from adaptsplit.agents.bandits_arms import Floats, Ints
from adaptsplit.agents.base import RewardWeights
from adaptsplit.config import Config


class OnlineParameters(Config):
    """How the learner learns; rewards in the objective's unit, lengths in outcomes (frames).

    ``tau``: reward per unit of the policy's output; ``trust``: the prior's standard deviations are divided by it;
    ``noise``: standard deviation of a frame's reward; ``memory``: outcomes after which a lesson keeps 1/e of its weight
    when nothing bears on it (where much does, the last few hundred count); ``epsilon``: how much predicted reward an
    exploring decision may cost; ``share``: of the frames may explore, at most; ``caution`` and ``least``: another
    decision replaces the policy's when it is better by ``caution`` standard deviations and ``least`` of reward;
    ``probe_s``: a small message when the goodput sample is that old, s (0: never).
    """

    tau: float = Field(default=0.006, gt=0)
    trust: float = Field(default=1.0, gt=0)
    noise: float = Field(default=0.05, gt=0)
    memory: float = Field(default=100_000.0, ge=1)
    epsilon: float = Field(default=0.01, ge=0)
    share: float = Field(default=0.05, ge=0, le=1)
    caution: float = Field(default=1.0, ge=0)
    least: float = Field(default=0.003, ge=0)
    probe_s: float = Field(default=3.0, ge=0, le=50)


@dataclass(frozen=True, slots=True)
class Decided:
    """Decisions of n rows whose outcomes are to come: ``arm`` (n,) places in the table, -1 once the outcome has come;
    ``x`` (n, d) features; ``margin`` (n,) what the policy held against them (0 for its own decision).
    """

    arm: Ints
    x: Floats
    margin: Floats


@dataclass(frozen=True, slots=True)
class OnlineState:
    """What n rows have learned: ``theta`` (n, d) and its covariance (n, d, d), in prior standard deviations.

    ``waiting``: the last decisions, oldest first, at most 32; ``fresh``: whether one was made since the last ``learn``.
    ``budget`` (n,) explorations that are allowed now, ``since`` (n,) frames since the last probe. ``taught`` (n,)
    outcomes learned; ``explored`` (n,) and ``probed`` (n,) frames.
    """

    theta: Floats
    covariance: Floats
    waiting: tuple[Decided, ...]
    fresh: bool
    budget: Floats
    since: Floats
    taught: Ints
    explored: Ints
    probed: Ints


@dataclass(frozen=True, slots=True)
class Lessons:
    """What has been learned before, of one device: ``theta`` (d,), ``covariance`` (d, d), ``taught`` outcomes."""

    theta: Floats
    covariance: Floats
    taught: int

    @classmethod
    def none(cls, size: int) -> Lessons:
        """Return the prior."""
        return cls(np.zeros(size), np.eye(size), 0)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the learner needs of the scenario: the objective's weights, frames/s, and the probe (place in the table)."""

    weights: RewardWeights
    fps: float
    probe: int
