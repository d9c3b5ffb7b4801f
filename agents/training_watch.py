"""What happens while a stable-baselines3 model learns: validation, checkpoints, log, progress, a request to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from adaptsplit.agents.collapse import CollapseWatch
from adaptsplit.agents.hyperparameters import Parameters
from adaptsplit.agents.interrupt import StopRequest
from adaptsplit.agents.progress import TrainingProgress
from adaptsplit.agents.run_folder import CHECKPOINT_FILE, Run
from adaptsplit.agents.sb3 import Net, controller_of
from adaptsplit.agents.sb3_checkpoint import checkpoint_bytes
from adaptsplit.agents.validation import ValidationPoint
from adaptsplit.controller import Controller

SHOW_EVERY = 16  # calls between two updates of the bar
MEMORY = 0.98  # of the running mean of the training reward


@dataclass(frozen=True, slots=True)
class Watched:
    """What a watch works on. ``interval`` in frames; ``validate`` maps (controller, frames trained) to a point."""

    run: Run
    parameters: Parameters
    export: Callable[[BaseAlgorithm, Parameters], Net]
    validate: Callable[[Controller, int], ValidationPoint]
    progress: TrainingProgress
    collapse: CollapseWatch
    stop: StopRequest
    interval: int


class Watch(BaseCallback):
    """Validates at regular intervals, keeps the best policy, and writes log and checkpoint."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self._with = watched
        self._next = 0
        self._reward: float | None = None
        self._started = time.monotonic()
        self._earns = False

    @property
    def seconds(self) -> float:
        """Time since the watch was made."""
        return time.monotonic() - self._started

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self._with.interval
        self._earns = bool(self.training_env.has_attr("simulator"))

    def _on_step(self) -> bool:
        self._follow_reward()
        if self._with.stop.asked is not None:
            return False
        if self.num_timesteps >= self._next:
            self._next += self._with.interval
            self.validate()
        if self.n_calls % SHOW_EVERY == 0:
            self._with.progress.advance(self.num_timesteps, self._reward or 0.0)
        return True

    def _follow_reward(self) -> None:
        """Update the mean reward per frame: as earned, not centred, where the environment tells."""
        earned = self.training_env.get_attr("simulator", [0])[0].rewards if self._earns else self.locals["rewards"]
        reward = float(np.mean(earned))
        self._reward = reward if self._reward is None else MEMORY * self._reward + (1.0 - MEMORY) * reward

    def validate(self) -> None:
        """Run the policy as it is now on the validation episodes, then write everything that a resumption needs."""
        w, run = self._with, self._with.run
        net = w.export(self.model, w.parameters)
        controller = controller_of(run.agent, run.scenario.space, net)
        point = w.validate(controller, self.num_timesteps)
        warning = w.collapse(point)
        run.add(point, controller, self.seconds, self._reward or 0.0, warning)
        self.write()
        w.progress.validated(point, run.best.reward, collapsed=w.collapse.collapsed)
        if warning is not None:
            w.progress.warn(warning)
        self._log(point, warning)

    def begin(self, model: BaseAlgorithm) -> None:
        """Write what a resumption needs, should the process die before the first validation."""
        self.model = model
        self.write()

    def finish(self) -> None:
        """Validate the last policy; when asked to stop, only keep what there is."""
        if self._with.stop.asked is None:
            self.validate()
        else:
            self.write()

    def write(self) -> None:
        """Write checkpoint and ``run.json``."""
        self._with.run.stage(CHECKPOINT_FILE, checkpoint_bytes(self.model))
        self._with.run.write(self.model.num_timesteps, self.seconds)

    def _log(self, point: ValidationPoint, warning: str | None) -> None:
        for name in ("reward", "quality", "miss_ratio", "distinct", "entropy", "top_share"):
            self.logger.record(f"validation/{name}", float(getattr(point, name)))
        self.logger.record("validation/collapsed", float(self._with.collapse.collapsed))
        self.logger.record("validation/seconds", self._with.run.seconds_before + self.seconds)
        if warning is not None:
            self.logger.record("warning", warning, exclude="stdout")
        self.logger.dump(self.num_timesteps)
