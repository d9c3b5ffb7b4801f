"""A learned policy as plain NumPy: the weights of a small network in ``policy.npz``, and argmax.

A device needs neither torch nor stable-baselines3 nor pickle to run it. The file (``policy_file``) holds ``w0, b0, w1,
b1, ...`` (float32, each ``w`` of shape (inputs, outputs)) and in ``meta`` activation and action head. ``load_policy``
and ``parse_policy`` read every kind of policy file: ``PARSERS`` names who builds which.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit import observation as obs
from adaptsplit.agents.base import Kind
from adaptsplit.agents.policy_file import (
    MAX_POLICY_BYTES,
    Arrays,
    common_meta,
    read_policy,
    space_of,
    write_policy,
)
from adaptsplit.config import Config, parse
from adaptsplit.controller import Controller, Decisions, Observations, State, Stateless
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import AdaptsplitError, DataError
from adaptsplit.registry import did_you_mean

__all__ = [
    "MAX_POLICY_BYTES",
    "PARSERS",
    "Policy",
    "PolicyController",
    "PolicyMeta",
    "PolicyNet",
    "load_policy",
    "parse_policy",
    "save_policy",
    "write_policy",
]

MAX_LAYERS = 16
SCHEMA = "adaptsplit.policy/1"

Head = Literal["flat", "multi"]
Activation = Literal["tanh", "relu"]
Floats32 = NDArray[np.float32]
Layers = tuple[tuple[Floats32, Floats32], ...]


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

    layers: Layers
    activation: Activation
    head: Head


class Chooser:
    """Turns the outputs of a network into decisions of a space."""

    def __init__(self, space: DecisionSpace, head: Head) -> None:
        self._flat, self._table = head == "flat", space.table
        self._bounds = np.cumsum((0, *space.shape)).tolist()
        self._canonical = space.grid.reshape(*space.shape, 1, 3)

    def many(self, output: Floats32) -> Decisions:
        """Return (n, 3) decisions for (n, outputs)."""
        if self._flat:
            return np.asarray(self._table[output.argmax(axis=1)])
        b, r, t = (output[:, low:high].argmax(axis=1) for low, high in pairwise(self._bounds))
        return np.asarray(self._canonical[b, r, t, 0])

    def one(self, output: Floats32) -> Decisions:
        """Return (1, 3) decisions for (outputs,)."""
        if self._flat:
            best = int(output.argmax())
            found: Decisions = self._table[best : best + 1]
            return found
        b, r, t = (int(output[low:high].argmax()) for low, high in pairwise(self._bounds))
        row: Decisions = self._canonical[b, r, t]
        return row


class PolicyController(Stateless):
    """Chooses the decision of the largest output of a network. Deterministic; n = 1 runs in preallocated buffers.

    The buffers make one object unfit for use by several threads at once.
    """

    kind: Kind = "learned"

    def __init__(self, name: str, space: DecisionSpace, net: PolicyNet) -> None:
        check_net(net, space, name, obs.SIZE)
        self.name, self.space, self.net = name, space, net
        self._choose = Chooser(space, net.head)
        self._apply = ACTIVATIONS[net.activation]
        self._buffers = [np.zeros(len(bias), dtype=np.float32) for _, bias in net.layers]

    def outputs(self, observation: Observations) -> Floats32:
        """Return (n, outputs) of the network for (n, D) observations."""
        return forward(self.net, np.asarray(observation, dtype=np.float32))

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions of the table."""
        if len(observation) == 1:
            return self._choose.one(self._forward_one(observation[0])), state
        return self._choose.many(self.outputs(observation)), state

    def save(self, path: Path) -> None:
        """Write the policy file."""
        save_policy(path, self.name, self.space, self.net)

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


def _relu(value: Floats32, out: Floats32 | None = None) -> Floats32:
    return np.maximum(value, np.float32(0.0), out=out)


ACTIVATIONS: dict[Activation, Callable[..., Any]] = {"tanh": np.tanh, "relu": _relu}


def forward(net: PolicyNet, value: Floats32) -> Floats32:
    """Return (n, outputs) of a network for (n, inputs)."""
    for i, (weight, bias) in enumerate(net.layers):
        value = value @ weight + bias
        if i + 1 < len(net.layers):
            value = ACTIVATIONS[net.activation](value)
    return value


def check_net(net: PolicyNet, space: DecisionSpace, where: str, inputs: int) -> None:
    """DataError unless the layers fit each other, the ``inputs`` and the space, and all weights are finite."""
    wanted = len(space.table) if net.head == "flat" else sum(space.shape)
    sizes = [inputs, *(weight.shape[1] for weight, _ in net.layers)]
    fits = all(
        weight.shape == (before, after) and bias.shape == (after,)
        for (weight, bias), before, after in zip(net.layers, sizes, sizes[1:], strict=False)
    )
    if not net.layers or not fits or sizes[-1] != wanted:
        raise DataError(
            f"policy {where!r}: layer sizes {sizes}; expected {inputs} inputs and {wanted} outputs; train it again"
        )
    if not all(np.isfinite(array).all() for layer in net.layers for array in layer):
        raise DataError(f"policy {where!r}: weights that are not finite numbers; train it again")


def save_policy(path: Path, agent: str, space: DecisionSpace, net: PolicyNet) -> None:
    """Write ``policy.npz``: weights as float32 and the description as JSON."""
    meta = common_meta(SCHEMA, agent, space) | {"head": net.head, "activation": net.activation}
    write_policy(path, meta, layer_arrays(net.layers))


class Policy(Controller, Protocol):
    """A controller that was read from a policy file: it knows the decision space that it was made for."""

    space: DecisionSpace


Parser = Callable[[dict[str, Any], Arrays, str, str | None], Policy]


def load_policy(path: Path, name: str | None = None) -> Policy:
    """Read a policy file of any kind; DataError says what is wrong with it. Nothing in the file is executed."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_POLICY_BYTES else b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); train or export the policy again") from error
    return parse_policy(data, str(path), name)


def parse_policy(data: bytes, where: str, name: str | None = None) -> Policy:
    """Build the controller from the bytes of a policy file of any kind; ``where`` is named in errors."""
    meta, arrays = read_policy(data, where)
    space_of(meta, where)
    schema = str(meta.get("schema"))[:100]
    if schema not in PARSERS:
        raise DataError(
            f"{where}: not a policy of ours: schema {schema!r}{did_you_mean(schema, PARSERS)} Known: "
            f"{', '.join(PARSERS)}. Train or export it again, or install the version that made it"
        )
    return _parser(schema)(meta, arrays, where, name)


def _parser(schema: str) -> Parser:
    """Return the parser of a schema; its module is imported at the first use."""
    module, _, attribute = PARSERS[schema].partition(":")
    found: Parser = getattr(importlib.import_module(module), attribute)
    return found


def parse_net(meta: dict[str, Any], arrays: Arrays, where: str, name: str | None) -> PolicyController:
    """Build the controller of a multilayer perceptron; DataError for anything else."""
    try:
        said = parse(PolicyMeta, meta, where)
    except AdaptsplitError as error:
        raise DataError(f"{where}: not a policy of ours ({error}); train or export it again") from error
    layers = take_layers(arrays, where)
    space = space_of(meta, where)
    return PolicyController(name or said.agent, space, PolicyNet(layers, said.activation, said.head))


PARSERS = {
    SCHEMA: "adaptsplit.agents.policy:parse_net",
    "adaptsplit.recurrent/1": "adaptsplit.agents.policy_recurrent:parse",
    "adaptsplit.tree/1": "adaptsplit.agents.policy_tree:parse",
    "adaptsplit.lookup/1": "adaptsplit.agents.policy_lookup:parse",
    "adaptsplit.online/1": "adaptsplit.agents.online_file:parse_online",
    "adaptsplit.gate/1": "adaptsplit.agents.gate:parse_gate",
    "adaptsplit.cautious/1": "adaptsplit.agents.policy_cautious:parse_cautious",
}
"""Who builds the controller of which schema: ``parse(meta, arrays, where, name)``, which raises DataError."""


def layer_arrays(layers: Layers) -> Arrays:
    """Return the arrays ``w0, b0, w1, b1, ...`` of layers."""
    pairs = [(f"{kind}{i}", array) for i, layer in enumerate(layers) for kind, array in zip("wb", layer, strict=True)]
    return {key: np.ascontiguousarray(array, dtype=np.float32) for key, array in pairs}


def take_layers(arrays: Mapping[str, NDArray[Any]], where: str) -> Layers:
    """Return the layers that ``layer_arrays`` wrote; DataError when anything else is among the arrays."""
    count = len(arrays) // 2
    wanted = {f"{kind}{i}" for i in range(count) for kind in "wb"}
    if set(arrays) != wanted or not 0 < count <= MAX_LAYERS:
        raise DataError(f"{where}: arrays that are not layers of a network; train or export it again")
    layers = tuple((arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(count))
    if not all(_is_layer(*layer) for layer in layers):
        raise DataError(f"{where}: arrays that are not layers of a network; train or export it again")
    return layers


def _is_layer(weight: NDArray[Any], bias: NDArray[Any]) -> bool:
    return weight.dtype == bias.dtype == np.float32 and weight.ndim == 2 and bias.ndim == 1
