"""Checkpoints of a model: tensors, numbers and text only; nothing is unpickled.

Kept are weights, optimiser state, frames trained, the random generators (torch, NumPy, Python, action space) and how
many episodes each row of the environment has begun. Not kept are the episodes under way, which start anew, and a replay
memory, which is filled again before learning goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from adaptsplit.agents.sb3_build import RowwiseExploration
from adaptsplit.errors import DataError
from adaptsplit.files import write_whole


def checkpoint_bytes(model: BaseAlgorithm) -> bytes:
    """Return the content of a checkpoint."""
    buffer = io.BytesIO()
    counters = {"updates": int(getattr(model, "_n_updates", 0)), "episodes": int(model._episode_num)}
    kept = {"steps": model.num_timesteps, "parameters": model.get_parameters(), "random": _generators(model)}
    torch.save(kept | {"counters": counters}, buffer)
    return buffer.getvalue()


def save_checkpoint(model: BaseAlgorithm, path: Path) -> str:
    """Write a checkpoint beside ``path`` and put it in its place; return its SHA-256."""
    data = checkpoint_bytes(model)
    write_whole(path, data)
    return hashlib.sha256(data).hexdigest()


def load_checkpoint(model: BaseAlgorithm, path: Path, sha256: str) -> None:
    """Restore what ``save_checkpoint`` wrote; DataError unless the hash is the run's own and it fits the model."""
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
        _restore(model, saved)
    except Exception as error:
        raise DataError(
            f"{path}: does not fit this agent ({error}); train anew without --resume, or with the same hyperparameters"
        ) from error


def _restore(model: BaseAlgorithm, saved: dict[str, Any]) -> None:
    model.num_timesteps = int(saved["steps"])
    counters = saved.get("counters", {})
    model._n_updates, model._episode_num = int(counters.get("updates", 0)), int(counters.get("episodes", 0))
    if "random" in saved:
        _set_generators(model, saved["random"])
    if isinstance(model, OffPolicyAlgorithm) and isinstance(model, RowwiseExploration):
        model.refill()


def _generators(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the state of every random generator that training draws from."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    counts = _episode_counts(model.get_env())
    return {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": [int(position), int(has_gauss), float(gauss)],
        "python": json.dumps(random.getstate()),
        "actions": json.dumps(model.action_space.np_random.bit_generator.state, default=_plain),
        "episodes": None if counts is None else torch.from_numpy(counts.copy()),
    }


def _set_generators(model: BaseAlgorithm, saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    position, has_gauss, gauss = saved["numpy_rest"]
    np.random.set_state(("MT19937", saved["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, state, following = json.loads(saved["python"])
    random.setstate((version, tuple(state), following))
    model.action_space.np_random.bit_generator.state = json.loads(saved["actions"])
    counts = _episode_counts(model.get_env())
    if counts is not None and saved["episodes"] is not None:
        counts[:] = saved["episodes"].numpy()


def _episode_counts(env: VecEnv | None) -> Any:
    """Return the array (n,) of episodes begun by each row, None for an environment that has none of its own."""
    try:
        return None if env is None else env.get_attr("_episodes", [0])[0].count
    except AttributeError:
        return None


def _plain(value: Any) -> Any:
    return value.tolist()
