"""RLlib's PPO on the registered environment ``adaptsplit/Split-v0``, then its policy on the validation split.

RLlib pins an older Gymnasium than the one adaptsplit is tested with (ray 2.60 wants gymnasium 1.2.2, our
constraints.txt has 1.4.0), so it gets an environment of its own, without that file::

    python3 -m venv rllib-env
    rllib-env/bin/pip install -e '.[train]' 'ray[rllib]'
    rllib-env/bin/python examples/rllib_train.py --scenario flight-lte --iterations 10

Tested with Python 3.11, ray 2.60.0, gymnasium 1.2.2, torch 2.15.0, numpy 2.4.6.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo import PPOConfig

from adaptsplit.agents.validation import Validator
from adaptsplit.controller import Stateless
from adaptsplit.decision import DecisionSpace
from adaptsplit.scenario import load_scenario

ENVIRONMENT = "adaptsplit.envs:adaptsplit/Split-v0"  # MODULE:ID, so that every worker imports the module first


class RllibController(Stateless):
    """RLlib's policy as one of our controllers: the most likely value of each knob."""

    name = "rllib-ppo"

    def __init__(self, module: Any, space: DecisionSpace) -> None:
        self._module, self._space = module, space

    def act(self, observation: NDArray[np.float32], state: None) -> tuple[NDArray[np.int64], None]:
        """Return (n, 3) decisions for (n, D) observations."""
        with torch.no_grad():
            answer = self._module.forward_inference({"obs": torch.from_numpy(observation)})
        logits = answer["action_dist_inputs"].numpy()
        parts = np.split(logits, np.cumsum(self._space.shape)[:-1], axis=1)
        chosen = np.stack([part.argmax(axis=1) for part in parts], axis=1)
        return np.asarray(self._space.canonical(chosen), dtype=np.int64), None


def main() -> None:
    """Train for some iterations; print the validation reward after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="flight-lte")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--runners", type=int, default=0, help="processes that collect; 0: this one")
    parser.add_argument("--envs", type=int, default=16, help="environments per runner")
    arguments = parser.parse_args()
    scenario = load_scenario(arguments.scenario)
    config = (
        PPOConfig()
        .environment(ENVIRONMENT, env_config={"scenario": arguments.scenario})
        .env_runners(num_env_runners=arguments.runners, num_envs_per_env_runner=arguments.envs)
        .training(gamma=0.8, lambda_=0.9, lr=1e-3, train_batch_size_per_learner=8192, minibatch_size=2048, num_epochs=4)
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh"})
        .debugging(seed=0)
    )
    ray.init(include_dashboard=False, log_to_driver=False)
    algorithm = config.build_algo()
    validate = Validator(scenario, 64)
    try:
        for i in range(arguments.iterations):
            result = algorithm.train()
            point = validate(RllibController(algorithm.get_module(), scenario.space))
            frames = int(result["num_env_steps_sampled_lifetime"])
            print(
                f"{i + 1:>3} {frames:>8} frames  validation {point.reward:.4f}  top {point.top} {point.top_share:.0%}"
            )
    finally:
        algorithm.stop()
        ray.shutdown()


if __name__ == "__main__":
    main()
