"""Hyperparameters of the trainable agents: strict records read from ``hyperparameters.yaml``, schedules included."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from adaptsplit.config import Config, parse, read_yaml
from adaptsplit.errors import UnknownNameError
from adaptsplit.registry import did_you_mean


class Linear(Config):
    """A value that goes in a straight line from the start of training to its end."""

    linear: tuple[float, float]


Schedule = float | Linear
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def schedule(value: Schedule) -> float | Callable[[float], float]:
    """Return what stable-baselines3 takes: a constant, or a function of the progress left (1 to 0)."""
    if not isinstance(value, Linear):
        return value
    start, end = value.linear
    return lambda left: end + (start - end) * left


class Common(Config):
    """What every agent has: frames of training, parallel devices, network, optimiser."""

    steps: Positive
    envs: Positive
    net_arch: tuple[Positive, ...] = Field(max_length=8)
    activation: Literal["tanh", "relu"]
    learning_rate: Schedule
    batch_size: Positive
    gamma: Fraction
    max_grad_norm: float = Field(gt=0)


class PpoParameters(Common):
    """Proximal policy optimisation (Schulman et al., 2017); names as in ``stable_baselines3.PPO``."""

    actions: Literal["flat", "multi"]
    n_steps: Positive
    n_epochs: Positive
    gae_lambda: Fraction
    clip_range: Schedule
    ent_coef: float = Field(ge=0)
    vf_coef: float = Field(ge=0)


class DqnParameters(Common):
    """Deep Q-learning (Mnih et al., 2015); names as in ``stable_baselines3.DQN``. Actions are always flat.

    With a small ``tau`` and an update at every step the target network is a running mean of the learned one.
    """

    buffer_size: Positive
    learning_starts: Positive
    train_freq: Positive
    gradient_steps: Positive
    target_update_interval: Positive
    tau: float = Field(gt=0, le=1)
    n_steps: Positive
    exploration_fraction: Fraction
    exploration_initial_eps: Fraction
    exploration_final_eps: Fraction


Parameters = PpoParameters | DqnParameters
AGENTS: dict[str, type[PpoParameters] | type[DqnParameters]] = {"ppo": PpoParameters, "dqn": DqnParameters}


def load_parameters(agent: str, path: Path | None = None) -> Parameters:
    """Return the parameters of ``agent`` from the shipped file, or from ``path`` of the same form.

    UnknownNameError for an agent that cannot be trained, ConfigError for a wrong key or value.
    """
    if agent not in AGENTS:
        hint = did_you_mean(agent, AGENTS)
        raise UnknownNameError(f"agent {agent!r} cannot be trained{hint} Trainable: {', '.join(AGENTS)}.")
    shipped = Path(str(resources.files("adaptsplit.agents"))) / "hyperparameters.yaml"
    where = path or shipped
    table = read_yaml(where)
    if agent not in table:
        raise UnknownNameError(f"{where}: no section {agent!r}; add it, or leave the file out")
    return parse(AGENTS[agent], table[agent], f"{where}: {agent}")
