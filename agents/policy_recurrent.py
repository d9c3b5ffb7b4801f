"""A learned policy that remembers: an LSTM cell before a small network, in plain NumPy, from ``policy.npz``.

The file's arrays are ``lstm_w`` (D + H, 4 H), ``lstm_b`` (4 H,) and the layers ``w0, b0, ...`` of the network after it;
D inputs (the observation), H hidden units. The columns are the gates input, forget, cell, output (Hochreiter and
Schmidhuber, 1997, with the forget gate of Gers et al., 2000; the order is torch's).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from adaptsplit import observation as obs
from adaptsplit.agents.base import Kind
from adaptsplit.agents.policy import (
    Activation,
    Chooser,
    Floats32,
    Head,
    PolicyNet,
    check_net,
    forward,
    layer_arrays,
    take_layers,
)
from adaptsplit.agents.policy_file import Arrays, common_meta, space_of, write_policy
from adaptsplit.config import Config
from adaptsplit.config import parse as parse_config
from adaptsplit.controller import Decisions, Observations, State
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import AdaptsplitError, DataError
from adaptsplit.outcome import Outcomes

SCHEMA = "adaptsplit.recurrent/1"
MAX_HIDDEN = 256


class RecurrentMeta(Config):
    """What the file of a recurrent policy says about itself; head and activation are those of ``PolicyMeta``."""

    schema_: Literal["adaptsplit.recurrent/1"] = Field(alias="schema")
    agent: str
    head: Head
    activation: Activation
    observation: str
    space: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RecurrentNet:
    """One LSTM cell, weight (D + H, 4 H) and bias (4 H,), and the network that reads its H outputs."""

    weight: Floats32
    bias: Floats32
    actor: PolicyNet

    @property
    def hidden(self) -> int:
        """Number H of hidden units."""
        return len(self.bias) // 4


@dataclass(frozen=True, slots=True)
class Memory:
    """State of n rows: output and cell of the LSTM, (n, H) each; never written to once made."""

    output: Floats32
    cell: Floats32


class RecurrentPolicyController:
    """Chooses the decision of the largest output; its memory is the state, zero when an episode starts."""

    kind: Kind = "learned"
    learns = False

    def __init__(self, name: str, space: DecisionSpace, net: RecurrentNet) -> None:
        _check(net, space, name)
        self.name, self.space, self.net = name, space, net
        self._choose = Chooser(space, net.actor.head)

    def init(self, n: int, rng: np.random.Generator) -> Memory:
        """Return the empty memory of ``n`` rows."""
        return Memory(*(np.zeros((n, self.net.hidden), dtype=np.float32) for _ in range(2)))

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions of the table, and the memory after them."""
        memory = step(self.net, np.asarray(observation, dtype=np.float32), state)
        return self._choose.many(forward(self.net.actor, memory.output)), memory

    def learn(self, outcomes: Outcomes, state: State) -> State:
        """Learn nothing."""
        return state

    def save(self, path: Path) -> None:
        """Write the policy file."""
        save_recurrent(path, self.name, self.space, self.net)


def step(net: RecurrentNet, observation: Floats32, memory: Memory) -> Memory:
    """Return the memory of n rows after one observation each (n, D)."""
    gates = np.concatenate([observation, memory.output], axis=1) @ net.weight + net.bias
    h = net.hidden
    admit, keep, release = (_sigmoid(gates[:, i * h : (i + 1) * h]) for i in (0, 1, 3))
    cell = keep * memory.cell + admit * np.tanh(gates[:, 2 * h : 3 * h])
    return Memory(release * np.tanh(cell), cell)


def _sigmoid(value: Floats32) -> Floats32:
    half = np.float32(0.5)
    return np.asarray(half + half * np.tanh(half * value), dtype=np.float32)


def _check(net: RecurrentNet, space: DecisionSpace, where: str) -> None:
    """DataError unless cell and network fit each other, the observation and the space."""
    h = net.hidden
    fits = 0 < h <= MAX_HIDDEN and net.bias.shape == (4 * h,) and net.weight.shape == (obs.SIZE + h, 4 * h)
    if not fits or net.weight.dtype != np.float32 or net.bias.dtype != np.float32:
        raise DataError(
            f"policy {where!r}: LSTM arrays {net.weight.shape} and {net.bias.shape}; expected ({obs.SIZE} + H, 4 H) "
            f"and (4 H,) of float32, H at most {MAX_HIDDEN}; train it again"
        )
    if not (np.isfinite(net.weight).all() and np.isfinite(net.bias).all()):
        raise DataError(f"policy {where!r}: weights that are not finite numbers; train it again")
    check_net(net.actor, space, where, h)


def save_recurrent(path: Path, agent: str, space: DecisionSpace, net: RecurrentNet) -> None:
    """Write ``policy.npz`` of a recurrent policy."""
    meta = common_meta(SCHEMA, agent, space) | {"head": net.actor.head, "activation": net.actor.activation}
    write_policy(path, meta, {"lstm_w": net.weight, "lstm_b": net.bias, **layer_arrays(net.actor.layers)})


def parse(meta: dict[str, Any], arrays: Arrays, where: str, name: str | None) -> RecurrentPolicyController:
    """Build the controller of a recurrent policy's file; DataError for anything else."""
    try:
        said = parse_config(RecurrentMeta, meta, where)
    except AdaptsplitError as error:
        raise DataError(f"{where}: not a policy of ours ({error}); train or export it again") from error
    if not {"lstm_w", "lstm_b"} <= set(arrays) or arrays["lstm_b"].ndim != 1:
        raise DataError(f"{where}: holds no LSTM; train or export it again")
    rest = {key: array for key, array in arrays.items() if not key.startswith("lstm_")}
    actor = PolicyNet(take_layers(rest, where), said.activation, said.head)
    net = RecurrentNet(arrays["lstm_w"], arrays["lstm_b"], actor)
    return RecurrentPolicyController(name or said.agent, space_of(meta, where), net)
