"""Between torch and plain weights: the policy of a trained model as NumPy, and weights to start training from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from adaptsplit.agents.hyperparameters import Common, OnPolicy
from adaptsplit.agents.policy import Floats32, Layers, PolicyNet
from adaptsplit.agents.policy_recurrent import RecurrentNet
from adaptsplit.errors import ConfigError

NEVER = -1e9  # the output of an index that the mask forbids: below any that training makes
Linears = list[torch.nn.Linear]


def export_actor(model: BaseAlgorithm, p: OnPolicy) -> PolicyNet:
    """Return the actor up to its logits (PPO, A2C)."""
    return PolicyNet(_arrays(_actor(model)), p.activation, p.actions)


def export_masked(model: BaseAlgorithm, p: OnPolicy) -> PolicyNet:
    """Return the actor with the constant mask folded into its last layer.

    Flat: the columns of the grid that are distinct decisions, in the order of the table. Multi: a forbidden index gets
    no weights and a bias below all others.
    """
    *before, (weight, bias) = _arrays(_actor(model))
    mask = _mask(model)
    if p.actions == "flat":
        last = (np.ascontiguousarray(weight[:, mask]), bias[mask])
    else:
        last = (weight * mask.astype(np.float32), np.where(mask, bias, np.float32(NEVER)))
    return PolicyNet((*before, last), p.activation, p.actions)


def export_recurrent(model: BaseAlgorithm, p: OnPolicy) -> RecurrentNet:
    """Return the actor's LSTM cell (its two biases added up) and the layers after it."""
    lstm = _policy(model).lstm_actor
    weight = np.concatenate([_array(lstm.weight_ih_l0.T), _array(lstm.weight_hh_l0.T)])
    bias = _array(lstm.bias_ih_l0) + _array(lstm.bias_hh_l0)
    return RecurrentNet(weight, bias, export_actor(model, p))


def export_q(model: BaseAlgorithm, p: Common) -> PolicyNet:
    """Return DQN's target network: a running mean of the learned one."""
    return PolicyNet(_arrays(_linears(_policy(model).q_net_target.q_net)), p.activation, "flat")


def export_quantiles(model: BaseAlgorithm, p: Common) -> PolicyNet:
    """Return QR-DQN's target network with the mean over quantiles folded into its last layer (exact: both linear)."""
    net = _policy(model).quantile_net_target
    *before, (weight, bias) = _arrays(_linears(net.quantile_net))
    mean = weight.reshape(len(weight), net.n_quantiles, -1).mean(axis=1), bias.reshape(net.n_quantiles, -1).mean(axis=0)
    return PolicyNet((*before, mean), p.activation, "flat")


def start_actor(model: BaseAlgorithm, net: PolicyNet) -> None:
    """Put the layers of a policy into the actor (PPO, A2C)."""
    _check_head(model, net)
    _copy(net.layers, _actor(model))


def start_masked(model: BaseAlgorithm, net: PolicyNet) -> None:
    """Put the layers of a policy into the actor; a flat one over the table into the grid's columns."""
    _check_head(model, net)
    mask, (*before, (weight, bias)) = _mask(model), net.layers
    if net.head == "flat" and weight.shape[1] == mask.sum():
        wide, shift = np.zeros((len(weight), mask.size), np.float32), np.zeros(mask.size, np.float32)
        wide[:, mask], shift[mask] = weight, bias
        weight, bias = wide, shift
    _copy((*before, (weight, bias)), _actor(model))


def start_q(model: BaseAlgorithm, net: PolicyNet) -> None:
    """Put the layers of a flat policy into the Q network and its target."""
    _check_head(model, net)
    policy = _policy(model)
    for module in (policy.q_net, policy.q_net_target):
        _copy(net.layers, _linears(module.q_net))


def start_quantiles(model: BaseAlgorithm, net: PolicyNet) -> None:
    """Put the layers of a flat policy into the quantile network and its target: all quantiles alike at first."""
    _check_head(model, net)
    *before, (weight, bias) = net.layers
    policy = _policy(model)
    count = int(policy.n_quantiles)
    for module in (policy.quantile_net, policy.quantile_net_target):
        _copy((*before, (np.tile(weight, count), np.tile(bias, count))), _linears(module.quantile_net))


def start_recurrent(model: BaseAlgorithm, net: PolicyNet) -> None:
    """Refuse: a network without memory has no weights for an LSTM."""
    raise ConfigError("recurrent-ppo cannot start from the weights of a policy without memory; start another agent")


def _policy(model: BaseAlgorithm) -> Any:
    return model.policy  # each algorithm's own class, which the base class does not tell


def _actor(model: BaseAlgorithm) -> Linears:
    policy = _policy(model)
    return _linears([*policy.mlp_extractor.policy_net, policy.action_net])


def _linears(modules: Sequence[torch.nn.Module] | torch.nn.Sequential) -> Linears:
    return [module for module in modules if isinstance(module, torch.nn.Linear)]


def _mask(model: BaseAlgorithm) -> NDArray[np.bool_]:
    env = model.get_env()
    assert env is not None, "the model was built without its environment"
    return np.asarray(env.env_method("action_masks", indices=[0])[0])


def _arrays(modules: Linears) -> Layers:
    return tuple((_array(module.weight.T), _array(module.bias)) for module in modules)


def _array(tensor: torch.Tensor) -> Floats32:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32).copy()


def _check_head(model: BaseAlgorithm, net: PolicyNet) -> None:
    wanted = "flat" if isinstance(model.action_space, spaces.Discrete) else "multi"
    if net.head != wanted:
        raise ConfigError(f"start: its actions are {net.head!r}, this agent's {wanted!r}; set the agent's actions so")


def _copy(layers: Layers, modules: Linears) -> None:
    found = [weight.shape for weight, _ in layers]
    wanted = [(module.in_features, module.out_features) for module in modules]
    if found != wanted:
        raise ConfigError(f"start: layers of shapes {found}, this agent has {wanted}; set net_arch to fit")
    with torch.no_grad():
        for (weight, bias), module in zip(layers, modules, strict=True):
            module.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
            module.bias.copy_(torch.from_numpy(np.array(bias)))
