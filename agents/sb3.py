"""Stable-Baselines3 models over the vector environment, and their policies as plain weights."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.hyperparameters import DqnParameters, Parameters, PpoParameters, schedule
from adaptsplit.agents.policy import PolicyNet
from adaptsplit.errors import DataError, MissingExtraError

try:
    import torch
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise MissingExtraError("stable-baselines3", "train") from error

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


class RowwiseDQN(DQN):
    """DQN whose epsilon is drawn for each row of the vector environment, not once for all of them."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], Any]:
        """Return (n,) actions: greedy, or uniformly random in a share ``exploration_rate`` of the rows."""
        action, state = self.policy.predict(observation, state, episode_start, deterministic=True)
        if not deterministic:
            explore = np.random.random(action.shape) < self.exploration_rate
            count = int(cast("Any", self.action_space).n)
            action = np.where(explore, np.random.randint(count, size=action.shape), action)
        return action, state


def make_model(parameters: Parameters, env: VecEnv, seed: int, tensorboard: Path | None = None) -> BaseAlgorithm:
    """Return an untrained model on the CPU."""
    if isinstance(parameters, PpoParameters):
        return _ppo(parameters, env, seed, tensorboard)
    return _dqn(parameters, env, seed, tensorboard)


def _policy_arguments(parameters: Parameters) -> dict[str, Any]:
    return {"net_arch": list(parameters.net_arch), "activation_fn": ACTIVATIONS[parameters.activation]}


def _ppo(p: PpoParameters, env: VecEnv, seed: int, tensorboard: Path | None) -> BaseAlgorithm:
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=schedule(p.learning_rate),
        n_steps=p.n_steps,
        batch_size=min(p.batch_size, p.n_steps * env.num_envs),
        n_epochs=p.n_epochs,
        gamma=p.gamma,
        gae_lambda=p.gae_lambda,
        clip_range=schedule(p.clip_range),
        ent_coef=p.ent_coef,
        vf_coef=p.vf_coef,
        max_grad_norm=p.max_grad_norm,
        policy_kwargs=_policy_arguments(p),
        tensorboard_log=None if tensorboard is None else str(tensorboard),
        seed=seed,
        device="cpu",
    )


def _dqn(p: DqnParameters, env: VecEnv, seed: int, tensorboard: Path | None) -> BaseAlgorithm:
    return RowwiseDQN(
        "MlpPolicy",
        env,
        learning_rate=schedule(p.learning_rate),
        buffer_size=p.buffer_size,
        learning_starts=p.learning_starts,
        batch_size=p.batch_size,
        gamma=p.gamma,
        train_freq=p.train_freq,
        gradient_steps=p.gradient_steps,
        n_steps=p.n_steps,
        target_update_interval=max(p.target_update_interval, env.num_envs),
        tau=p.tau,
        exploration_fraction=p.exploration_fraction,
        exploration_initial_eps=p.exploration_initial_eps,
        exploration_final_eps=p.exploration_final_eps,
        max_grad_norm=p.max_grad_norm,
        policy_kwargs=_policy_arguments(p),
        tensorboard_log=None if tensorboard is None else str(tensorboard),
        seed=seed,
        device="cpu",
    )


def export_net(model: BaseAlgorithm, parameters: Parameters) -> PolicyNet:
    """Return the weights that decide: PPO's actor up to its logits, DQN's target network (a mean of the last ones)."""
    policy: Any = model.policy
    if isinstance(parameters, PpoParameters):
        modules = [*policy.mlp_extractor.policy_net, policy.action_net]
        head = parameters.actions
    else:
        modules, head = list(policy.q_net_target.q_net), "flat"
    linear = [module for module in modules if isinstance(module, torch.nn.Linear)]
    return PolicyNet(tuple((_array(m.weight.T), _array(m.bias)) for m in linear), parameters.activation, head)


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32).copy()


def save_checkpoint(model: BaseAlgorithm, path: Path) -> str:
    """Write weights and optimiser state (tensors, no pickled objects); return the file's SHA-256."""
    buffer = io.BytesIO()
    torch.save({"steps": model.num_timesteps, "parameters": model.get_parameters()}, buffer)
    path.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def load_checkpoint(model: BaseAlgorithm, path: Path, sha256: str) -> None:
    """Restore what ``save_checkpoint`` wrote; DataError unless the hash is the run's own. Nothing is unpickled."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); train anew without --resume") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"{path}: not the checkpoint that run.json names (SHA-256 differs); train anew without --resume"
        )
    try:
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        model.set_parameters(saved["parameters"], exact_match=True, device="cpu")
        model.num_timesteps = int(saved["steps"])
    except Exception as error:
        raise DataError(
            f"{path}: does not fit this agent ({error}); train anew without --resume, or with the same hyperparameters"
        ) from error
