"""A learned policy as plain NumPy: the weights of a small network in ``policy.npz``, and argmax.

A device needs neither torch nor stable-baselines3 nor pickle to run it. The file holds ``w0, b0, w1, b1, ...``
(float32, each ``w`` of shape (inputs, outputs)) and ``meta``, a JSON text: schema, activation, action head, observation
hash, decision space.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit import observation as obs
from adaptsplit.agents.base import Kind
from adaptsplit.config import Config, parse
from adaptsplit.controller import Decisions, Observations, State, Stateless
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import NPZ_FAULTS, AdaptsplitError, DataError

MAX_POLICY_BYTES = 16 << 20
MAX_LAYERS = 16

Head = Literal["flat", "multi"]
Activation = Literal["tanh", "relu"]
Floats32 = NDArray[np.float32]


class PolicyMeta(Config):
    """What ``policy.npz`` says about itself.

    ``head`` "flat": one output per row of the space's table; "multi": B + R + T outputs, an argmax of each.
    """

    schema_: Literal["adaptsplit.policy/1"] = Field(alias="schema")
    agent: str
    head: Head
    activation: Activation
    observation: str
    space: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PolicyNet:
    """Weights and biases of a multilayer perceptron, and what its outputs mean."""

    layers: tuple[tuple[Floats32, Floats32], ...]
    activation: Activation
    head: Head


class PolicyController(Stateless):
    """Chooses the decision of the largest output of a network. Deterministic; n = 1 runs in preallocated buffers.

    The buffers make one object unfit for use by several threads at once.
    """

    kind: Kind = "learned"

    def __init__(self, name: str, space: DecisionSpace, net: PolicyNet) -> None:
        _check_net(net, space, name)
        self.name, self.space, self.net = name, space, net
        self._table = space.table
        self._bounds = np.cumsum((0, *space.shape)).tolist()
        every = np.stack(np.unravel_index(np.arange(np.prod(space.shape)), space.shape), axis=1)
        self._canonical = space.canonical(every).reshape(*space.shape, 1, 3)
        self._apply: Callable[..., Any] = np.tanh if net.activation == "tanh" else _relu
        self._buffers = [np.zeros(len(bias), dtype=np.float32) for _, bias in net.layers]

    def outputs(self, observation: Observations) -> Floats32:
        """Return (n, outputs) of the network for (n, D) observations."""
        value = np.asarray(observation, dtype=np.float32)
        for i, (weight, bias) in enumerate(self.net.layers):
            value = value @ weight + bias
            if i + 1 < len(self.net.layers):
                value = self._apply(value)
        return value

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions of the table."""
        if len(observation) == 1:
            return self._decide_one(self._forward_one(observation[0])), state
        output = self.outputs(observation)
        if self.net.head == "flat":
            return self._table[output.argmax(axis=1)], state
        b, r, t = (output[:, low:high].argmax(axis=1) for low, high in pairwise(self._bounds))
        return self._canonical[b, r, t, 0], state

    def _forward_one(self, row: Floats32) -> Floats32:
        value = row
        last = len(self._buffers) - 1
        for i, (weight, bias) in enumerate(self.net.layers):
            out = self._buffers[i]
            np.dot(value, weight, out=out)
            np.add(out, bias, out=out)
            if i != last:
                self._apply(out, out=out)
            value = out
        return value

    def _decide_one(self, output: Floats32) -> Decisions:
        if self.net.head == "flat":
            best = int(output.argmax())
            return self._table[best : best + 1]
        b, r, t = (int(output[low:high].argmax()) for low, high in pairwise(self._bounds))
        row: Decisions = self._canonical[b, r, t]
        return row


def _relu(value: Floats32, out: Floats32 | None = None) -> Floats32:
    return np.maximum(value, np.float32(0.0), out=out)


def _check_net(net: PolicyNet, space: DecisionSpace, where: str) -> None:
    """DataError unless the layers fit each other, the observation and the space."""
    wanted = len(space.table) if net.head == "flat" else sum(space.shape)
    sizes = [obs.SIZE, *(weight.shape[1] for weight, _ in net.layers)]
    fits = all(
        weight.shape == (before, after) and bias.shape == (after,)
        for (weight, bias), before, after in zip(net.layers, sizes, sizes[1:], strict=False)
    )
    if not net.layers or not fits or sizes[-1] != wanted:
        raise DataError(
            f"policy {where!r}: layer sizes {sizes}; expected {obs.SIZE} inputs and {wanted} outputs; train it again"
        )
    if not all(np.isfinite(array).all() for layer in net.layers for array in layer):
        raise DataError(f"policy {where!r}: weights that are not finite numbers; train it again")


def save_policy(path: Path, agent: str, space: DecisionSpace, net: PolicyNet) -> None:
    """Write ``policy.npz``: weights as float32 and the description as JSON."""
    meta = {
        "schema": "adaptsplit.policy/1",
        "agent": agent,
        "head": net.head,
        "activation": net.activation,
        "observation": obs.schema_hash(),
        "space": space.to_dict(),
    }
    arrays: dict[str, NDArray[Any]] = {"meta": np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)}
    for i, (weight, bias) in enumerate(net.layers):
        arrays[f"w{i}"] = np.ascontiguousarray(weight, dtype=np.float32)
        arrays[f"b{i}"] = np.ascontiguousarray(bias, dtype=np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    path.write_bytes(buffer.getvalue())


def load_policy(path: Path, name: str | None = None) -> PolicyController:
    """Read ``policy.npz``; DataError says what is wrong with it. Nothing in the file is executed."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_POLICY_BYTES else b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); train or export the policy again") from error
    return parse_policy(data, str(path), name)


def parse_policy(data: bytes, where: str, name: str | None = None) -> PolicyController:
    """Build the controller from the bytes of a ``policy.npz``; ``where`` is named in errors."""
    arrays = _read_arrays(data, where)
    try:
        text = json.loads(arrays.pop("meta").tobytes().decode())
        meta = parse(PolicyMeta, text, where)
        space = DecisionSpace.from_dict(meta.space)
        count = len(arrays) // 2
        layers = tuple((arrays.pop(f"w{i}"), arrays.pop(f"b{i}")) for i in range(count))
    except (KeyError, ValueError, TypeError, AttributeError, AdaptsplitError) as error:
        raise DataError(f"{where}: not a policy of ours ({error}); train or export it again") from error
    if arrays or not 0 < count <= MAX_LAYERS or not all(_is_layer(*layer) for layer in layers):
        raise DataError(f"{where}: arrays that are not layers of a network; train or export it again")
    if meta.observation != obs.schema_hash():
        raise DataError(
            f"{where}: made for observation {meta.observation}, this version has {obs.schema_hash()}; train it again"
        )
    return PolicyController(name or meta.agent, space, PolicyNet(layers, meta.activation, meta.head))


def _is_layer(weight: NDArray[Any], bias: NDArray[Any]) -> bool:
    return weight.dtype == bias.dtype == np.float32 and weight.ndim == 2 and bias.ndim == 1


def _read_arrays(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz, none larger than the cap allows, without pickle."""
    if not 0 < len(data) <= MAX_POLICY_BYTES:
        raise DataError(f"{where}: {len(data)} bytes; a policy has 1 to {MAX_POLICY_BYTES}; train or export it again")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            sizes: Sequence[int] = [entry.file_size for entry in archive.infolist()]
        if len(sizes) > 2 * MAX_LAYERS + 1 or sum(sizes) > MAX_POLICY_BYTES:
            raise ValueError(f"{len(sizes)} arrays of {sum(sizes)} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except NPZ_FAULTS as error:
        raise DataError(f"{where}: not a policy file ({error}); train or export it again") from error
