"""Models of stable-baselines3 over the vector environment: PPO, A2C, DQN."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from adaptsplit.agents.hyperparameters import (
    A2cParameters,
    Common,
    DqnParameters,
    OffPolicy,
    OnPolicy,
    PpoParameters,
    schedule,
)
from adaptsplit.errors import MissingExtraError

try:
    import torch
    from stable_baselines3 import A2C, DQN, PPO
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise MissingExtraError("stable-baselines3", "train") from error

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


class RowwiseExploration(OffPolicyAlgorithm):
    """A Q-learner whose epsilon is drawn for each row of the vector environment, not once for all of them.

    ``resumed``: its replay memory was lost. Nothing is learned until it holds ``learning_starts`` samples again, which
    come from the policy as it is, not from random decisions.
    """

    exploration_rate: float
    resumed = False

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

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        return super()._sample_action(0 if self.resumed else learning_starts, action_noise, n_envs)

    def refill(self) -> None:
        """Have the empty replay memory filled before learning goes on."""
        self.resumed = True
        self.learning_starts += self.num_timesteps


class RowwiseDQN(RowwiseExploration, DQN):
    """DQN with exploration row by row."""


def policy_arguments(p: Common) -> dict[str, Any]:
    """Return network and activation."""
    return {"net_arch": list(p.net_arch), "activation_fn": ACTIVATIONS[p.activation]}


def on_policy_arguments(p: OnPolicy) -> dict[str, Any]:
    """Return what all actor-critic algorithms take."""
    return {
        "learning_rate": schedule(p.learning_rate),
        "n_steps": p.n_steps,
        "gamma": p.gamma,
        "gae_lambda": p.gae_lambda,
        "ent_coef": p.ent_coef,
        "vf_coef": p.vf_coef,
        "max_grad_norm": p.max_grad_norm,
        "policy_kwargs": policy_arguments(p),
        "device": "cpu",
    }


def ppo_arguments(p: PpoParameters, envs: int) -> dict[str, Any]:
    """Return what PPO and its relatives take."""
    return on_policy_arguments(p) | {
        "batch_size": min(p.batch_size, p.n_steps * envs),
        "n_epochs": p.n_epochs,
        "clip_range": schedule(p.clip_range),
    }


def off_policy_arguments(p: OffPolicy, envs: int) -> dict[str, Any]:
    """Return what DQN and its relatives take."""
    same = ("buffer_size", "learning_starts", "batch_size", "gamma", "train_freq", "gradient_steps", "n_steps", "tau")
    exploration = ("exploration_fraction", "exploration_initial_eps", "exploration_final_eps", "max_grad_norm")
    return {key: getattr(p, key) for key in (*same, *exploration)} | {
        "learning_rate": schedule(p.learning_rate),
        "target_update_interval": max(p.target_update_interval, envs),
        "policy_kwargs": policy_arguments(p),
        "device": "cpu",
    }


def build_ppo(p: PpoParameters, env: VecEnv, seed: int, tensorboard: str | None) -> BaseAlgorithm:
    """Return an untrained PPO."""
    return PPO("MlpPolicy", env, seed=seed, tensorboard_log=tensorboard, **ppo_arguments(p, env.num_envs))


def build_a2c(p: A2cParameters, env: VecEnv, seed: int, tensorboard: str | None) -> BaseAlgorithm:
    """Return an untrained A2C."""
    return A2C(
        "MlpPolicy",
        env,
        seed=seed,
        tensorboard_log=tensorboard,
        use_rms_prop=p.use_rms_prop,
        rms_prop_eps=p.rms_prop_eps,
        normalize_advantage=p.normalize_advantage,
        **on_policy_arguments(p),
    )


def build_dqn(p: DqnParameters, env: VecEnv, seed: int, tensorboard: str | None) -> BaseAlgorithm:
    """Return an untrained DQN."""
    return RowwiseDQN("MlpPolicy", env, seed=seed, tensorboard_log=tensorboard, **off_policy_arguments(p, env.num_envs))
