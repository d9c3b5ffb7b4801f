"""Training of learned controllers with Stable-Baselines3: ``adaptsplit train``.

A run's folder holds ``policy.npz`` (the policy that was best on the validation split, plain weights), ``run.json``
(what made it, and the validation curve), ``training.jsonl`` (one line per validation) and ``checkpoint.pt`` (the last
weights and optimiser state, tensors only, for ``resume``).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from adaptsplit import observation as obs
from adaptsplit.agents.build import POLICY_FILE
from adaptsplit.agents.hyperparameters import Parameters, PpoParameters, load_parameters
from adaptsplit.agents.policy import PolicyController, PolicyNet, save_policy
from adaptsplit.agents.progress import TrainingProgress
from adaptsplit.agents.sb3 import export_net, load_checkpoint, make_model, save_checkpoint
from adaptsplit.agents.validation import ValidationPoint, Validator
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

SCHEMA = "adaptsplit.run/1"
RUN_FILE = "run.json"
LOG_FILE = "training.jsonl"
CHECKPOINT_FILE = "checkpoint.pt"
VALIDATIONS = 25
VALIDATION_EPISODES = 128


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run came to: its folder, the best validation point and the whole curve."""

    folder: Path
    agent: str
    steps: int
    seconds: float
    best: ValidationPoint
    curve: tuple[ValidationPoint, ...]
    warnings: tuple[str, ...]


class _Watch(BaseCallback):
    """Validates at regular intervals, keeps the best policy, and writes the log."""

    def __init__(self, run: _Run, validator: Validator, progress: TrainingProgress, interval: int) -> None:
        super().__init__()
        self._run, self._validator, self._progress, self._interval = run, validator, progress, interval
        self._next = 0
        self._reward = 0.0
        self._started = time.monotonic()

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self._interval

    def _on_step(self) -> bool:
        reward = float(np.mean(self.training_env.get_attr("simulator", [0])[0].rewards))  # as earned, not centred
        self._reward = reward if self._reward == 0.0 else 0.98 * self._reward + 0.02 * reward
        if self.num_timesteps >= self._next:
            self._next += self._interval
            self.validate()
        if self.n_calls % 16 == 0:
            self._progress.advance(self.num_timesteps, self._reward)
        return True

    def validate(self) -> None:
        """Run the policy as it is now on the validation episodes."""
        net = export_net(self.model, self._run.parameters)
        point = self._validator(PolicyController(self._run.agent, self._run.scenario.space, net), self.num_timesteps)
        self._run.add(point, net, time.monotonic() - self._started, self._reward)
        self._progress.validated(point, self._run.best.reward)
        if self.logger is not None:
            self.logger.record("validation/reward", point.reward)


class _Run:
    """The run's folder while it is written."""

    def __init__(self, scenario: Scenario, agent: str, parameters: Parameters, folder: Path, seed: int) -> None:
        self.scenario, self.agent, self.parameters, self.folder, self.seed = scenario, agent, parameters, folder, seed
        self.curve: list[ValidationPoint] = []
        self.warnings: list[str] = []
        self.seconds_before = 0.0

    @property
    def best(self) -> ValidationPoint:
        """The point of the largest validation reward so far."""
        return max(self.curve, key=lambda point: point.reward)

    def add(self, point: ValidationPoint, net: PolicyNet, seconds: float, reward: float) -> None:
        """Record a validation; keep the policy when it is the best one."""
        self.curve.append(point)
        if self.best is point:
            save_policy(self.folder / POLICY_FILE, self.agent, self.scenario.space, net)
        line = {**point.to_dict(), "seconds": round(self.seconds_before + seconds, 2), "training_reward": reward}
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def warn_of_collapse(self, bar: TrainingProgress) -> None:
        """Warn when the last policy takes nearly one decision only."""
        last = self.curve[-1]
        if last.collapsed:
            self.warnings.append(
                f"the policy has collapsed to one decision ({last.top} on {last.top_share:.0%} of the frames), no "
                "better than that static one; train longer, or with a larger ent_coef; if the informed oracle gains "
                "nothing over the best static decision either, adapting cannot pay in this scenario"
            )
            bar.warn(self.warnings[-1])

    def write(self, model: BaseAlgorithm, seconds: float) -> None:
        """Write checkpoint and ``run.json``."""
        checkpoint = save_checkpoint(model, self.folder / CHECKPOINT_FILE)
        value = {
            "schema": SCHEMA,
            "agent": self.agent,
            "scenario": self.scenario.name,
            "seed": self.seed,
            "steps": model.num_timesteps,
            "seconds": round(self.seconds_before + seconds, 2),
            "space": self.scenario.space.to_dict(),
            "observation": obs.schema_hash(),
            "hyperparameters": self.parameters.model_dump(mode="json"),
            "best": self.best.to_dict(),
            "validation": [point.to_dict() for point in self.curve],
            "warnings": self.warnings,
            "checkpoint_sha256": checkpoint,
            "versions": {name: version(name) for name in ("stable-baselines3", "torch", "numpy", "gymnasium")},
        }
        (self.folder / RUN_FILE).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def train(
    scenario: Scenario,
    agent: str = "ppo",
    out: Path | str = "run",
    steps: int | None = None,
    envs: int | None = None,
    seed: int = 0,
    *,
    progress: bool = True,
    resume: bool = False,
    parameters: Parameters | None = None,
    validations: int = VALIDATIONS,
    validation_episodes: int = VALIDATION_EPISODES,
    tensorboard: Path | None = None,
    threads: int = 1,
) -> TrainResult:
    """Train ``agent`` on the train split; keep the policy that is best on the validation split.

    ``steps`` (frames over all devices), ``envs`` (parallel devices) and ``parameters`` default to
    ``hyperparameters.yaml``. ``resume`` goes on to ``steps`` in all from the folder's own checkpoint (replay memory is
    not kept). ``threads`` of torch: two are faster on a quiet machine, and several times slower on a busy one.

    UnknownNameError for an agent that cannot be trained, ConfigError for a folder in use, DataError for a checkpoint
    that is not this run's.
    """
    chosen = parameters or load_parameters(agent)
    changes = {key: value for key, value in (("steps", steps), ("envs", envs)) if value is not None}
    chosen = type(chosen).model_validate({**chosen.model_dump(), **changes})
    run = _Run(scenario, agent, chosen, Path(out), seed)
    _prepare_folder(run.folder, resume)
    actions = chosen.actions if isinstance(chosen, PpoParameters) else "flat"
    env = SplitVecEnv(scenario, chosen.envs, split="train", seed=seed, actions=actions, centred=True)
    model = make_model(chosen, env, seed, tensorboard)
    if resume:
        _restore(run, model)
    validator = Validator(scenario, validation_episodes)
    started = time.monotonic()
    with TrainingProgress(agent, chosen.steps, model.num_timesteps, shown=progress) as bar:
        watch = _Watch(run, validator, bar, max(chosen.steps // validations, chosen.envs))
        _learn(model, watch, chosen.steps, threads)
        run.warn_of_collapse(bar)
    seconds = time.monotonic() - started
    run.write(model, seconds)
    return TrainResult(run.folder, agent, model.num_timesteps, seconds, run.best, tuple(run.curve), tuple(run.warnings))


def _learn(model: BaseAlgorithm, watch: _Watch, steps: int, threads: int) -> None:
    """Train up to ``steps`` frames in all, and validate once more at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left = steps - model.num_timesteps
        if left > 0:
            model.learn(left, callback=watch, reset_num_timesteps=model.num_timesteps == 0)
            watch.validate()
    finally:
        torch.set_num_threads(before)


def _prepare_folder(folder: Path, resume: bool) -> None:
    if resume and not (folder / RUN_FILE).is_file():
        raise ConfigError(f"{folder}: holds no {RUN_FILE} to resume; train without --resume first")
    if not resume:
        if folder.exists() and not (folder / RUN_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: exists and is no run; name another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RUN_FILE, LOG_FILE, POLICY_FILE, CHECKPOINT_FILE):
            (folder / name).unlink(missing_ok=True)


def _restore(run: _Run, model: BaseAlgorithm) -> None:
    """Load the folder's checkpoint and curve; they must be those of the same agent, scenario and space."""
    where = run.folder / RUN_FILE
    try:
        value: dict[str, Any] = json.loads(where.read_bytes())
        same = (run.agent, run.scenario.name, run.scenario.space.to_dict(), obs.schema_hash())
        found = (value["agent"], value["scenario"], value["space"], value["observation"])
        curve = [ValidationPoint(**point) for point in value["validation"]]
        sha256, run.seconds_before = str(value["checkpoint_sha256"]), float(value["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a run of ours ({error!r}); train anew without --resume") from error
    if same != found:
        raise ConfigError(
            f"{where}: a run of {found[0]!r} on {found[1]!r} with another space; train anew, or elsewhere"
        )
    load_checkpoint(model, run.folder / CHECKPOINT_FILE, sha256)
    run.curve = curve
