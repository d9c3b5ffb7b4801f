"""Hyperparameters of the trainable agents: strict records read from ``hyperparameters.yaml``, schedules included.

The keys are those of stable-baselines3 and sb3-contrib. The first line of each record's docstring is what the command
line says of the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from adaptsplit import yaml_text
from adaptsplit.config import Config, parse, read_yaml
from adaptsplit.errors import ConfigError, UnknownNameError
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
    gamma: Fraction
    max_grad_norm: float = Field(gt=0)


class OnPolicy(Common):
    """What the actor-critic agents share; ``actions`` "flat" chooses a decision at once, "multi" knob by knob."""

    actions: Literal["flat", "multi"]
    n_steps: Positive
    gae_lambda: Fraction
    ent_coef: float = Field(ge=0)
    vf_coef: float = Field(ge=0)


class PpoParameters(OnPolicy):
    """Proximal policy optimisation (Schulman et al., 2017).

    Names as in ``stable_baselines3.PPO``.
    """

    batch_size: Positive
    n_epochs: Positive
    clip_range: Schedule


class A2cParameters(OnPolicy):
    """Advantage actor-critic, synchronous (Mnih et al., 2016).

    Names as in ``stable_baselines3.A2C``.
    """

    use_rms_prop: bool
    rms_prop_eps: float = Field(gt=0)
    normalize_advantage: bool


class MaskablePpoParameters(PpoParameters):
    """PPO over the full grid of decisions, duplicates masked (Huang and Ontanon, 2022).

    Names as in ``sb3_contrib.MaskablePPO``. The mask is constant here: with "flat" actions it is PPO over the table of
    distinct decisions, with other initial weights.
    """


class RecurrentPpoParameters(PpoParameters):
    """PPO with an LSTM before the actor: it remembers what estimates forget.

    Names as in ``sb3_contrib.RecurrentPPO``. Without ``enable_critic_lstm`` only the actor has an LSTM.
    """

    lstm_hidden_size: Annotated[int, Field(ge=1, le=256)]
    enable_critic_lstm: bool


class OffPolicy(Common):
    """What the agents with a replay memory share. Actions are always flat.

    With a small ``tau`` and an update at every step the target network is a running mean of the learned one.
    """

    batch_size: Positive
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


class DqnParameters(OffPolicy):
    """Deep Q-learning (Mnih et al., 2015).

    Names as in ``stable_baselines3.DQN``.
    """


class QrDqnParameters(OffPolicy):
    """Deep Q-learning of quantiles of the return (Dabney et al., 2018).

    Names as in ``sb3_contrib.QRDQN``; it decides by the quantiles' mean.
    """

    n_quantiles: Annotated[int, Field(ge=1, le=256)]


Parameters = (
    PpoParameters | A2cParameters | MaskablePpoParameters | RecurrentPpoParameters | DqnParameters | QrDqnParameters
)
AGENTS: dict[str, type[Parameters]] = {
    "ppo": PpoParameters,
    "dqn": DqnParameters,
    "a2c": A2cParameters,
    "qr-dqn": QrDqnParameters,
    "maskable-ppo": MaskablePpoParameters,
    "recurrent-ppo": RecurrentPpoParameters,
}


def actions_of(parameters: Parameters) -> Literal["flat", "multi"]:
    """Return the form of the environment's actions that an agent wants."""
    return parameters.actions if isinstance(parameters, OnPolicy) else "flat"


def agents_help() -> str:
    """Return one line for each agent: its name and what it is."""
    return "\n".join(f"{name}: {(record.__doc__ or '').splitlines()[0]}" for name, record in AGENTS.items())


def record_of(agent: str) -> type[Parameters]:
    """Return the record of an agent's parameters; UnknownNameError for an agent that cannot be trained."""
    if agent not in AGENTS:
        hint = did_you_mean(agent, AGENTS)
        raise UnknownNameError(f"agent {agent!r} cannot be trained{hint} Trainable: {', '.join(AGENTS)}.")
    return AGENTS[agent]


def load_parameters(agent: str, path: Path | None = None) -> Parameters:
    """Return the parameters of ``agent`` from the shipped file, or from ``path`` of the same form.

    UnknownNameError for an agent that cannot be trained, ConfigError for a wrong key or value.
    """
    record = record_of(agent)
    shipped = Path(str(resources.files("adaptsplit.agents"))) / "hyperparameters.yaml"
    where = path or shipped
    table = read_yaml(where)
    if agent not in table:
        raise UnknownNameError(f"{where}: no section {agent!r}; add it, or leave the file out")
    if not isinstance(table[agent], dict):
        raise ConfigError(f"{where}: {agent}: expected a mapping of keys to values, found {table[agent]!r}")
    return parse(record, table[agent], f"{where}: {agent}")


def override(parameters: Parameters, settings: Sequence[str]) -> Parameters:
    """Return the parameters with ``KEY=VALUE`` settings (VALUE in YAML); ConfigError names a wrong key or value."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r}: expected KEY=VALUE, such as gamma=0.9")
        try:
            changes[key.strip()] = yaml_text.read(value.encode())
        except yaml_text.FAULTS as error:
            raise ConfigError(f"--set {setting!r}: the value is not YAML: {' '.join(str(error).split())}") from error
    return parse(type(parameters), {**parameters.model_dump(), **changes}, "--set") if changes else parameters
