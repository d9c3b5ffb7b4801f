"""Training of learned controllers with Stable-Baselines3: ``adaptsplit train``.

A run's folder (``run_folder``) holds ``policy.npz`` (the policy that was best on the validation split, plain weights),
``run.json`` (what made it, and the validation curve), ``training.jsonl`` (one line per validation) and
``checkpoint.pt`` (written at every validation, for ``resume``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from adaptsplit.agents.collapse import CollapseWatch
from adaptsplit.agents.hyperparameters import Parameters, actions_of, load_parameters, record_of
from adaptsplit.agents.interrupt import StopRequest
from adaptsplit.agents.policy import PolicyNet
from adaptsplit.agents.progress import TrainingProgress
from adaptsplit.agents.run_folder import CHECKPOINT_FILE, Run, read_run
from adaptsplit.agents.sb3 import export_policy, load_checkpoint, make_model, start_from
from adaptsplit.agents.training_watch import Watch, Watched
from adaptsplit.agents.validation import ValidationPoint, Validator
from adaptsplit.config import parse
from adaptsplit.controller import Controller
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

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


@dataclass(frozen=True, slots=True)
class Hooks:
    """What other parts put in the place of our own.

    ``env`` (scenario, parameters, seed) instead of ``SplitVecEnv`` on the scenario; ``callbacks`` beside ours, called
    before it; ``export`` of the model; ``validate`` (controller, frames trained); ``start``: the weights of the actor,
    or of the Q network and its target, before training (layers of the same shapes, ConfigError else).
    """

    env: Callable[[Scenario, Parameters, int], VecEnv] | None = None
    callbacks: tuple[BaseCallback, ...] = ()
    export: Callable[[BaseAlgorithm, Parameters], PolicyNet] | None = None
    validate: Callable[[Controller, int], ValidationPoint] | None = None
    start: PolicyNet | None = None


NO_HOOKS = Hooks()


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
    hooks: Hooks = NO_HOOKS,
) -> TrainResult:
    """Train ``agent`` on the train split; keep the policy that is best on the validation split.

    ``steps`` (frames over all devices), ``envs`` (parallel devices) and ``parameters`` default to
    ``hyperparameters.yaml``. ``tensorboard`` is a folder for its event files. ``threads`` of torch: two are faster on a
    quiet machine, and several times slower on a busy one.

    ``resume`` goes on to ``steps`` in all from the folder's own checkpoint, with the run's own seed, and with its own
    hyperparameters when none are given. At most one interval between two validations is lost, however the run ended.
    Episodes under way start anew; a replay memory is filled again, by the policy as it is, before learning goes on.

    SIGINT and SIGTERM end it in good order: what was trained is kept, then KeyboardInterrupt says how to go on.
    UnknownNameError for an agent that cannot be trained, ConfigError for a folder in use, DataError for a checkpoint
    that is not this run's.
    """
    folder = Path(out)
    chosen = _chosen(agent, folder, resume, parameters, {"steps": steps, "envs": envs})
    run = Run(scenario, agent, chosen, folder, int(read_run(folder)["seed"]) if resume else seed)
    model = _model(run, chosen, hooks, tensorboard, resume)
    with (
        StopRequest() as stop,
        TrainingProgress(agent, chosen.steps, model.num_timesteps, shown=progress) as bar,
    ):
        export = hooks.export or export_policy
        validate = hooks.validate or Validator(scenario, validation_episodes)
        interval = max(chosen.steps // validations, model.n_envs)
        watch = Watch(
            Watched(run, chosen, export, validate, bar, CollapseWatch(chosen.steps, run.warnings), stop, interval)
        )
        _learn(model, watch, chosen.steps, threads, hooks.callbacks)
    if stop.asked is not None:
        _interrupted(run, model, chosen.steps, stop.asked)
    return TrainResult(
        folder, agent, model.num_timesteps, watch.seconds, run.best, tuple(run.curve), tuple(run.warnings)
    )


def own_parameters(agent: str, folder: Path) -> Parameters:
    """Return the hyperparameters of a run's folder; ConfigError when there is no run, or none of this agent."""
    value = read_run(folder)
    if value["agent"] != agent:
        raise ConfigError(f"{folder}: a run of {value['agent']!r}; resume it with --agent {value['agent']}")
    return parse(record_of(agent), value["hyperparameters"], f"{folder}: hyperparameters")


def _chosen(
    agent: str, folder: Path, resume: bool, parameters: Parameters | None, changes: dict[str, int | None]
) -> Parameters:
    """Return the parameters: those given, else the run's own when it is resumed, else the shipped ones."""
    record_of(agent)
    chosen = parameters or (own_parameters(agent, folder) if resume else load_parameters(agent))
    given = {key: value for key, value in changes.items() if value is not None}
    return parse(type(chosen), {**chosen.model_dump(), **given}, f"agent {agent!r}")


def _model(run: Run, p: Parameters, hooks: Hooks, tensorboard: Path | None, resume: bool) -> BaseAlgorithm:
    """Return the model to go on with, and the folder ready for it."""
    if resume:
        run.restore()
    env = (hooks.env or _split_env)(run.scenario, p, run.seed)
    model = make_model(p, env, run.seed)
    if hooks.start is not None:
        start_from(model, p, hooks.start)
    if not resume:
        run.prepare()
    elif CHECKPOINT_FILE in run.hashes:
        load_checkpoint(model, run.folder / CHECKPOINT_FILE, run.hashes[CHECKPOINT_FILE])
    if tensorboard is not None:
        _log_to(model, tensorboard)
    return model


def _split_env(scenario: Scenario, p: Parameters, seed: int) -> VecEnv:
    return SplitVecEnv(scenario, p.envs, seed=seed, actions=actions_of(p), centred=True, expected=True)


def _log_to(model: BaseAlgorithm, folder: Path) -> None:
    """Have the model's scalars and ours written as TensorBoard events."""
    if find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", "train")
    model.set_logger(configure(str(folder), ["tensorboard"]))


def _learn(model: BaseAlgorithm, watch: Watch, steps: int, threads: int, callbacks: tuple[BaseCallback, ...]) -> None:
    """Train up to ``steps`` frames in all and leave everything written."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if model.num_timesteps < steps:
            watch.begin(model)
            left, fresh = steps - model.num_timesteps, model.num_timesteps == 0
            model.learn(left, callback=[*callbacks, watch], reset_num_timesteps=fresh)
            watch.finish()
            model.logger.close()
    finally:
        torch.set_num_threads(before)


def _interrupted(run: Run, model: BaseAlgorithm, steps: int, signal: str) -> NoReturn:
    raise KeyboardInterrupt(
        f"{signal}: stopped at {model.num_timesteps} of {steps} frames; all of them are kept in {run.folder}: go on "
        "with the same command and --resume"
    )
