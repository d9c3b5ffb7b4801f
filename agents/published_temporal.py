"""Answering from the scene: Temporal Decisions' difference detection, where the decision space has ``skip``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adaptsplit.agents.prediction import DecisionModel, FieldReader
from adaptsplit.agents.published_base import Bools, Floats, Remembering, Setting, published
from adaptsplit.agents.published_parameters import Number
from adaptsplit.controller import Controller, Decisions, Observations
from adaptsplit.errors import ConfigError

NO_ANSWER_S = 2.0  # the observation's bound of held_age, which stands for "no answer is held"


@dataclass(frozen=True, slots=True)
class SceneState:
    """Per row (n,): distance from the scene's first frame (at most), and whether a scene has begun."""

    distance: Floats
    begun: Bools


class TemporalDecisions(Remembering):
    """Reuse the scene's answer until the frame differs too much from the scene's first one.

    After "Temporal Decisions: Leveraging Temporal Correlation for Efficient Decisions in Early Exit Neural Networks",
    2403.07958, difference detection: the distance between this sample and the scene's initial sample; below a threshold
    the label is reused, above it everything runs and a new scene begins. The paper measures the distance between first
    exits' outputs; an observation has no outputs, only the change of the image from frame to frame (a mean absolute
    difference). By the triangle inequality the sum of the changes bounds the distance to the scene's first frame, and
    that sum is used; ``reference=frame`` takes the last change alone, which never notices a slow drift. A frame that is
    not skipped gets the decision of the best expected reward. There is no vote among exits: exit and tail are two.

    Mended: without an answer that is still held nothing is reused.
    """

    def __init__(
        self, model: DecisionModel, threshold: float, *, scene: bool = True, name: str = "temporal-decisions-style"
    ) -> None:
        self.name, self.model, self.threshold, self.scene = name, model, threshold, scene
        table = model.space.table
        skips = np.array([branch.kind == "skip" for branch in model.space.branches])[table[:, 0]]
        self._skip, self._others = table[skips][0], np.flatnonzero(~skips)
        self._read = FieldReader(("difference", "held_age"))

    def init(self, n: int, rng: np.random.Generator) -> SceneState:
        """Start without a scene."""
        return SceneState(np.zeros(n), np.zeros(n, dtype=np.bool_))

    def act(self, observation: Observations, state: SceneState) -> tuple[Decisions, SceneState]:
        """Map (n, D) observations to (n, 3) decisions and the distance after this frame."""
        change, age = self._read(observation)
        distance = state.distance + change if self.scene else change
        reuse = state.begun & (distance < self.threshold) & (age < NO_ANSWER_S - 1e-6)
        best = self._others[self.model.expected(observation)[:, self._others].argmax(axis=1)]
        decision = np.where(reuse[:, None], self._skip, self.model.space.table[best])
        return decision, SceneState(np.where(reuse, distance, 0.0), np.ones_like(reuse))


@published("temporal-decisions-style", {"threshold": Number(0.04, 0.0, 1.0), "reference": ("scene", "frame")})
def _temporal(setting: Setting) -> Controller:
    if not setting.kinds("skip").any() or setting.kinds("skip").all():
        raise ConfigError(
            "controller 'temporal-decisions-style' reuses answers, and this decision space has no skip branch beside "
            "others; name a scenario that has one (such as flight-reuse)"
        )
    parameters = setting.parameters
    scene = parameters.text("reference") == "scene"
    return TemporalDecisions(setting.model, parameters.number("threshold"), scene=scene, name=setting.name)
