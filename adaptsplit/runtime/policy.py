"""Learned policies as plain numpy: a multi-layer perceptron in an ``.npz`` file, read without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adaptsplit.errors import ModelError

FloatArray = npt.NDArray[np.float32]
Weights = tuple[tuple[FloatArray, FloatArray], ...]
MAX_POLICY_BYTES = 64 << 20
MAX_LAYERS = 16


def _relu(x: FloatArray) -> FloatArray:
    result: FloatArray = np.maximum(x, np.float32(0))
    return result


def _tanh(x: FloatArray) -> FloatArray:
    result: FloatArray = np.tanh(x)
    return result


ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {"relu": _relu, "tanh": _tanh}


def mlp(weights: Weights, x: FloatArray, activation: str = "tanh") -> FloatArray:
    """Map ``x`` (n, D) through layers ``(w (in, out), b (out,))``; no activation after the last one: (n, out)."""
    act = ACTIVATIONS[activation]
    for w, b in weights[:-1]:
        x = act(x @ w + b)
    w, b = weights[-1]
    result: FloatArray = x @ w + b
    return result


@dataclass(frozen=True, slots=True)
class PolicyNetwork:
    """A policy or value network: observation (n, D) float32 -> logits or Q values (n, A)."""

    weights: Weights
    activation: str

    def __post_init__(self) -> None:
        fault = _fault(self.weights, self.activation)
        if fault:
            raise ModelError(f"policy network: {fault}")

    def __call__(self, observation: FloatArray) -> FloatArray:
        """Return the outputs (n, A) for observations (n, D)."""
        if observation.ndim != 2 or observation.shape[1] != self.inputs:
            raise ModelError(f"observation of shape {observation.shape}; the policy takes (n, {self.inputs})")
        return mlp(self.weights, np.asarray(observation, np.float32), self.activation)

    @property
    def inputs(self) -> int:
        """Number of observation features D."""
        return int(self.weights[0][0].shape[0])

    @property
    def outputs(self) -> int:
        """Number of outputs A."""
        return int(self.weights[-1][0].shape[1])

    def save(self, path: Path) -> None:
        """Write ``w0, b0, w1, b1, ...`` and ``activation`` to an ``.npz`` file."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"activation": np.array(self.activation)}
        for i, (w, b) in enumerate(self.weights):
            arrays[f"w{i}"], arrays[f"b{i}"] = w, b
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: Path) -> PolicyNetwork:
        """Read a file that :meth:`save` wrote; ModelError for anything else. Nothing is unpickled."""
        try:
            if path.stat().st_size > MAX_POLICY_BYTES:
                raise ModelError(f"{path}: {path.stat().st_size} bytes; a policy has at most {MAX_POLICY_BYTES}")
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ModelError(f"{path}: not a policy file of ours ({error}); export the policy again") from error
        layers = sum(name.startswith("w") for name in arrays)
        names = {f"{kind}{i}" for i in range(layers) for kind in "wb"} | {"activation"}
        if set(arrays) != names:
            raise ModelError(f"{path}: holds {sorted(arrays)}, expected w0, b0, ... and activation; export it again")
        weights = tuple((_floats(arrays[f"w{i}"]), _floats(arrays[f"b{i}"])) for i in range(layers))
        return PolicyNetwork(weights, str(arrays["activation"]))


def _floats(array: npt.NDArray[np.generic]) -> FloatArray:
    if array.dtype.kind != "f":
        raise ModelError(f"policy network: weights of type {array.dtype}; expected floating point")
    return np.ascontiguousarray(array, np.float32)


def _fault(weights: Weights, activation: str) -> str:
    if activation not in ACTIVATIONS:
        return f"activation {activation!r}; known are {', '.join(ACTIVATIONS)}"
    if not 1 <= len(weights) <= MAX_LAYERS:
        return f"{len(weights)} layers; 1 to {MAX_LAYERS} are allowed"
    width = weights[0][0].shape[0] if weights[0][0].ndim == 2 else -1
    for i, (w, b) in enumerate(weights):
        if w.ndim != 2 or b.shape != w.shape[1:] or w.shape[0] != width:
            return f"layer {i} has shapes {w.shape} and {b.shape}, which do not follow a width of {width}"
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            return f"layer {i} holds values that are not finite"
        width = w.shape[1]
    return ""
