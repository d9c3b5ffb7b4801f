"""Models of sb3-contrib over the vector environment: QR-DQN, MaskablePPO, RecurrentPPO."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from adaptsplit.agents.hyperparameters import MaskablePpoParameters, QrDqnParameters, RecurrentPpoParameters
from adaptsplit.agents.sb3_build import RowwiseExploration, off_policy_arguments, policy_arguments, ppo_arguments
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import MissingExtraError

try:
    from sb3_contrib import QRDQN, MaskablePPO, RecurrentPPO
except ImportError as error:
    raise MissingExtraError("sb3-contrib", "train") from error
from gymnasium import spaces

MASKS = "action_masks"  # the method that sb3-contrib asks an environment for


class RowwiseQRDQN(RowwiseExploration, QRDQN):
    """QR-DQN with exploration row by row."""


class MaskedActions(VecEnvWrapper):
    """An environment whose action space is the full grid of decisions, with a mask of those that differ.

    Over flat actions the space becomes ``Discrete(B * R * T)``, the mask ``DecisionSpace.masks``. Over multi actions it
    stays ``MultiDiscrete([B, R, T])``; masked are indices that no distinct decision has. The mask never changes.
    """

    def __init__(self, env: VecEnv, space: DecisionSpace) -> None:
        valid, ravelled = space.masks()
        flat = isinstance(env.action_space, spaces.Discrete)
        actions = spaces.Discrete(ravelled.size) if flat else env.action_space
        super().__init__(env, action_space=actions)
        self.mask = ravelled if flat else np.concatenate([valid.any(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))])
        codes = np.ravel_multi_index(tuple(space.grid.T), space.shape)
        self._row: NDArray[np.int64] | None = np.searchsorted(space.codes, codes) if flat else None

    def reset(self) -> VecEnvObs:
        """Start the next episode in every row."""
        return self.venv.reset()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take indices into the grid (flat) or three indices per row (multi)."""
        self.venv.step_async(actions if self._row is None else self._row[np.asarray(actions).ravel()])

    def step_wait(self) -> VecEnvStepReturn:
        """Return what the environment answers."""
        return self.venv.step_wait()

    def has_attr(self, attr_name: str) -> bool:
        """Tell that there are masks."""
        return attr_name == MASKS or super().has_attr(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Return the mask once per row, or what the environment answers."""
        if method_name == MASKS:
            return [self.mask] * (self.num_envs if indices is None else np.size(np.asarray(indices)))
        return self.venv.env_method(method_name, *args, indices=indices, **kwargs)


def build_qr_dqn(p: QrDqnParameters, env: VecEnv, seed: int, tensorboard: str | None) -> BaseAlgorithm:
    """Return an untrained QR-DQN."""
    arguments = off_policy_arguments(p, env.num_envs)
    # An epsilon of 0.01 / batch in Adam, as in the paper; sb3-contrib sets it in a dictionary of its own, we in ours.
    arguments["policy_kwargs"] |= {
        "n_quantiles": p.n_quantiles,
        "optimizer_class": torch.optim.Adam,
        "optimizer_kwargs": {"eps": 0.01 / p.batch_size},
    }
    return RowwiseQRDQN("MlpPolicy", env, seed=seed, tensorboard_log=tensorboard, **arguments)


def build_maskable_ppo(p: MaskablePpoParameters, env: VecEnv, seed: int, tensorboard: str | None) -> BaseAlgorithm:
    """Return an untrained MaskablePPO; the environment names its decision space (attribute ``decisions``)."""
    masked = MaskedActions(env, cast("DecisionSpace", env.get_attr("decisions", [0])[0]))
    return MaskablePPO("MlpPolicy", masked, seed=seed, tensorboard_log=tensorboard, **ppo_arguments(p, env.num_envs))


def build_recurrent_ppo(p: RecurrentPpoParameters, env: VecEnv, seed: int, tensorboard: str | None) -> BaseAlgorithm:
    """Return an untrained RecurrentPPO: one LSTM of one layer before the actor, another before the critic or none."""
    arguments = ppo_arguments(p, env.num_envs)
    arguments["policy_kwargs"] = policy_arguments(p) | {
        "lstm_hidden_size": p.lstm_hidden_size,
        "n_lstm_layers": 1,
        "enable_critic_lstm": p.enable_critic_lstm,
    }
    return RecurrentPPO("MlpLstmPolicy", env, seed=seed, tensorboard_log=tensorboard, **arguments)
