"""Learning algorithms of stable-baselines3 and sb3-contrib over the vector environment, as one table.

``ALGORITHMS`` says for each record of parameters who builds the model, who exports its policy as plain weights, and who
puts plain weights into it before training. What needs sb3-contrib is imported at its first use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from adaptsplit.agents import sb3_export as export
from adaptsplit.agents.hyperparameters import (
    A2cParameters,
    DqnParameters,
    MaskablePpoParameters,
    Parameters,
    PpoParameters,
    QrDqnParameters,
    RecurrentPpoParameters,
)
from adaptsplit.agents.policy import PolicyController, PolicyNet
from adaptsplit.agents.policy_recurrent import RecurrentNet, RecurrentPolicyController
from adaptsplit.agents.sb3_build import RowwiseDQN
from adaptsplit.agents.sb3_checkpoint import load_checkpoint, save_checkpoint
from adaptsplit.decision import DecisionSpace

__all__ = [
    "ALGORITHMS",
    "Net",
    "RowwiseDQN",
    "controller_of",
    "export_net",
    "export_policy",
    "load_checkpoint",
    "make_model",
    "save_checkpoint",
    "start_from",
]

Net = PolicyNet | RecurrentNet
Builder = Callable[[Any, VecEnv, int, str | None], BaseAlgorithm]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How a model is built (``"module:function"``), exported, and started from plain weights."""

    build: str
    export: Callable[[BaseAlgorithm, Any], Net]
    start: Callable[[BaseAlgorithm, PolicyNet], None]


_BUILD, _EXTRA = "adaptsplit.agents.sb3_build", "adaptsplit.agents.sb3_extra"
ALGORITHMS: dict[type[Parameters], Algorithm] = {
    PpoParameters: Algorithm(f"{_BUILD}:build_ppo", export.export_actor, export.start_actor),
    A2cParameters: Algorithm(f"{_BUILD}:build_a2c", export.export_actor, export.start_actor),
    DqnParameters: Algorithm(f"{_BUILD}:build_dqn", export.export_q, export.start_q),
    QrDqnParameters: Algorithm(f"{_EXTRA}:build_qr_dqn", export.export_quantiles, export.start_quantiles),
    MaskablePpoParameters: Algorithm(f"{_EXTRA}:build_maskable_ppo", export.export_masked, export.start_masked),
    RecurrentPpoParameters: Algorithm(f"{_EXTRA}:build_recurrent_ppo", export.export_recurrent, export.start_recurrent),
}


def make_model(parameters: Parameters, env: VecEnv, seed: int, tensorboard: Path | None = None) -> BaseAlgorithm:
    """Return an untrained model on the CPU; MissingExtraError when its package is not installed.

    For maskable-ppo the environment must name its decision space (attribute ``decisions``, as ``SplitVecEnv`` does).
    """
    module, _, function = ALGORITHMS[type(parameters)].build.partition(":")
    build: Builder = getattr(importlib.import_module(module), function)
    return build(parameters, env, seed, None if tensorboard is None else str(tensorboard))


def export_policy(model: BaseAlgorithm, parameters: Parameters) -> Net:
    """Return the weights that decide, as NumPy arrays."""
    return ALGORITHMS[type(parameters)].export(model, parameters)


def export_net(model: BaseAlgorithm, parameters: Parameters) -> PolicyNet:
    """Return the weights that decide, of an algorithm whose policy has no memory."""
    return cast("PolicyNet", export_policy(model, parameters))


def start_from(model: BaseAlgorithm, parameters: Parameters, net: PolicyNet) -> None:
    """Put the weights of a policy into an untrained model; ConfigError when they do not fit."""
    ALGORITHMS[type(parameters)].start(model, net)


def controller_of(agent: str, space: DecisionSpace, net: Net) -> PolicyController | RecurrentPolicyController:
    """Return the controller of exported weights."""
    if isinstance(net, RecurrentNet):
        return RecurrentPolicyController(agent, space, net)
    return PolicyController(agent, space, net)
