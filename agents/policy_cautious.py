"""Several value networks as one careful policy: it leaves its anchor only for what its members agree to be better.

Members that differ by their training seed agree where the training frames said much, and differ where they said
little. Each says how much better a decision is than the *anchor*, the static decision that earned most on the train
split; a decision counts for the mean of these advantages less ``caution`` times their spread, the anchor for zero. With
a caution of zero this is the mean of the values (bagging: Breiman, Machine Learning 24, 1996); the more caution, the
nearer to the anchor. A lower confidence bound over an ensemble (An et al., Uncertainty-Based Offline Reinforcement
Learning with Diversified Q-Ensemble, NeurIPS 2021), taken against a baseline (Laroche et al., Safe Policy Improvement
with Baseline Bootstrapping, ICML 2019).

``policy.npz`` of schema ``adaptsplit.cautious/1`` holds ``w0, b0, w1, b1, ...`` as a plain network does, with the
members (M) as an axis more: (M, inputs, outputs) and (M, outputs), float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit import observation as obs
from adaptsplit.agents.base import Kind
from adaptsplit.agents.policy import ACTIVATIONS, Activation, Floats32, PolicyNet, check_net
from adaptsplit.agents.policy_file import Arrays, common_meta, space_of, write_policy
from adaptsplit.config import Config, parse
from adaptsplit.controller import Decisions, Observations, State, Stateless
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import AdaptsplitError, ConfigError, DataError

SCHEMA = "adaptsplit.cautious/1"
MAX_MEMBERS = 64
MAX_LAYERS = 16


class CautiousMeta(Config):
    """What the file says about itself; ``anchor`` is a row of the space's table."""

    schema_: Literal["adaptsplit.cautious/1"] = Field(alias="schema")
    agent: str
    activation: Activation
    anchor: Annotated[int, Field(ge=0)]
    caution: Annotated[float, Field(ge=0.0, le=1e6)]
    observation: str
    space: dict[str, Any]


class CautiousController(Stateless):
    """Takes the decision of the largest careful advantage. Deterministic.

    ``nets`` are M value networks (head "flat") of the same layer sizes; ``anchor`` is a row of the space's table.
    ConfigError for others.
    """

    kind: Kind = "learned"

    def __init__(
        self, name: str, space: DecisionSpace, nets: tuple[PolicyNet, ...], anchor: int, caution: float
    ) -> None:
        _check(nets, space, anchor, name)
        self.name, self.space, self.nets = name, space, nets
        self.anchor, self.caution = anchor, caution
        self._table, self._apply = space.table, ACTIVATIONS[nets[0].activation]
        columns = zip(*(net.layers for net in nets), strict=True)
        self._layers = [
            (np.stack([w for w, _ in column]), np.stack([b for _, b in column])[:, None]) for column in columns
        ]

    def advantages(self, observation: Observations) -> Floats32:
        """Return (M, n, K): by how much each member thinks each decision of the table better than the anchor."""
        value = np.asarray(observation, dtype=np.float32)
        for i, (weight, bias) in enumerate(self._layers):
            value = value @ weight + bias
            if i + 1 < len(self._layers):
                self._apply(value, out=value)
        return np.asarray(value - value[..., self.anchor, None])

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        """Map (n, D) observations to (n, 3) decisions of the table."""
        advantage = self.advantages(observation)
        mean = advantage.mean(axis=0)
        careful = mean - np.float32(self.caution) * np.sqrt(np.square(advantage - mean).mean(axis=0))
        return np.asarray(self._table[careful.argmax(axis=1)]), state

    def with_caution(self, caution: float) -> CautiousController:
        """Return the same members and anchor with another caution."""
        return CautiousController(self.name, self.space, self.nets, self.anchor, caution)

    def save(self, path: Path) -> None:
        """Write the policy file."""
        meta = common_meta(SCHEMA, self.name, self.space)
        meta |= {"activation": self.nets[0].activation, "anchor": self.anchor, "caution": self.caution}
        arrays = {}
        for i, (weight, bias) in enumerate(self._layers):
            arrays[f"w{i}"], arrays[f"b{i}"] = weight, bias[:, 0]
        write_policy(path, meta, arrays)


def _check(nets: tuple[PolicyNet, ...], space: DecisionSpace, anchor: int, where: str) -> None:
    forms = {(net.activation, net.head, tuple(weight.shape for weight, _ in net.layers)) for net in nets}
    if len(forms) != 1 or not 1 <= len(nets) <= MAX_MEMBERS:
        raise ConfigError(
            f"{where}: {len(nets)} networks of {len(forms)} forms; expected 1 to {MAX_MEMBERS} runs of one agent with "
            "the same net_arch"
        )
    if nets[0].head != "flat":
        raise ConfigError(
            f"{where}: networks that choose knob by knob; a cautious ensemble needs values of whole decisions: runs of "
            "dqn or qr-dqn"
        )
    if not anchor < len(space.table):
        raise ConfigError(f"{where}: anchor {anchor}; the space has {len(space.table)} decisions")
    for net in nets:
        check_net(net, space, where, obs.SIZE)


def parse_cautious(meta: dict[str, Any], arrays: Arrays, where: str, name: str | None) -> CautiousController:
    """Build the controller from a file's parts; DataError for anything else."""
    try:
        said = parse(CautiousMeta, meta, where)
        nets = _members(arrays, said.activation, where)
        return CautiousController(name or said.agent, space_of(meta, where), nets, said.anchor, said.caution)
    except DataError:
        raise
    except AdaptsplitError as error:
        raise DataError(f"{where}: not a policy of ours ({error}); make it again") from error


def _members(arrays: Arrays, activation: Activation, where: str) -> tuple[PolicyNet, ...]:
    layers: list[tuple[NDArray[Any], NDArray[Any]]] = []
    while f"w{len(layers)}" in arrays and len(layers) < MAX_LAYERS:
        weight, bias = arrays.pop(f"w{len(layers)}"), arrays.pop(f"b{len(layers)}", None)
        fits = bias is not None and weight.ndim == 3 and bias.ndim == 2 and weight.dtype == bias.dtype == np.float32
        if bias is None or not fits or bias.shape != (weight.shape[0], weight.shape[2]) or not weight.size:
            raise DataError(f"{where}: layer {len(layers)} is no float32 (members, inputs, outputs); make it again")
        layers.append((weight, bias))
    if arrays or not layers or len({len(weight) for weight, _ in layers}) != 1:
        raise DataError(f"{where}: layers and arrays do not fit ({sorted(arrays)[:3]}); make it again")
    return tuple(
        PolicyNet(
            tuple((np.ascontiguousarray(w[m]), np.ascontiguousarray(b[m])) for w, b in layers), activation, "flat"
        )
        for m in range(min(len(layers[0][0]), MAX_MEMBERS + 1))
    )
