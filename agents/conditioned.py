"""A policy that is conditioned on its objective: ``conditioned.npz``, and the plain policy at any weights.

The network's first layer takes the observation and the scaled weights (``adaptsplit.agents.conditions``). On a device
the weights are constants: their part of the first layer is added to its bias, which leaves an ordinary ``policy.npz``
that costs nothing more. After Abels et al. (2019), "Dynamic weights in multi-objective deep reinforcement learning".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from adaptsplit import observation as obs
from adaptsplit.agents.conditions import Condition, check_conditions, inputs_of, relative
from adaptsplit.agents.policy import (
    Activation,
    Head,
    PolicyController,
    PolicyNet,
    layer_arrays,
    save_policy,
    take_layers,
)
from adaptsplit.agents.policy_file import MAX_POLICY_BYTES, common_meta, read_policy, space_of, write_policy
from adaptsplit.config import Config, parse
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.objective import WEIGHTS, Objective

SCHEMA = "adaptsplit.conditioned/1"
CONDITIONED_FILE = "conditioned.npz"
POLICY_FILE = "policy.npz"
RETARGET_FILE = "retarget.json"
SAME = 1e-9  # weights that the policy was not conditioned on must be those of its training


class ConditionedMeta(Config):
    """What ``conditioned.npz`` says about itself; ``objective`` is that of the scenario it was trained on."""

    schema_: Literal["adaptsplit.conditioned/1"] = Field(alias="schema")
    agent: str
    head: Head
    activation: Activation
    observation: str
    space: dict[str, Any]
    conditions: tuple[Condition, ...]
    objective: Objective


@dataclass(frozen=True, slots=True)
class ConditionedNet:
    """A network over (D + C,) inputs: the observation, then one input for each of the C conditions."""

    net: PolicyNet
    conditions: tuple[Condition, ...]
    objective: Objective

    def at(self, objective: Objective) -> PolicyNet:
        """Return the policy for one objective: the weights' inputs are folded into the first bias.

        ConfigError for a weight outside its range, or for another value of a weight that is no input.
        """
        self._check(objective)
        (weight, bias), *rest = self.net.layers
        inputs = inputs_of(self.conditions, objective)
        folded = np.asarray(bias + inputs @ weight[obs.SIZE :], dtype=np.float32)
        first = (np.ascontiguousarray(weight[: obs.SIZE]), folded)
        return PolicyNet((first, *rest), self.net.activation, self.net.head)

    def _check(self, objective: Objective) -> None:
        named = {condition.weight for condition in self.conditions}
        wanted, trained = relative(objective), relative(self.objective)
        for name in wanted:
            if name not in named and abs(wanted[name] - trained[name]) > SAME * (1 + trained[name]):
                raise ConfigError(
                    f"{name}={wanted[name]:g} (at quality weight 1): the policy was trained at {trained[name]:g} and "
                    f"is conditioned on {', '.join(sorted(named))} only; keep {name}, or train with a condition on it"
                )


@dataclass(frozen=True, slots=True)
class ConditionedPolicy:
    """A conditioned network with what is needed to use it: the agent's name and the decision space."""

    agent: str
    space: DecisionSpace
    net: ConditionedNet

    def controller(self, objective: Objective, name: str | None = None) -> PolicyController:
        """Return the plain policy at an objective; ConfigError as ``ConditionedNet.at``."""
        return PolicyController(name or self.agent, self.space, self.net.at(objective))


def save_conditioned(path: Path, policy: ConditionedPolicy) -> None:
    """Write ``conditioned.npz``: ``w0, b0, w1, ...`` in float32 and the description as JSON; no pickled objects."""
    net = policy.net.net
    meta = {
        **common_meta(SCHEMA, policy.agent, policy.space),
        "head": net.head,
        "activation": net.activation,
        "conditions": [condition.model_dump() for condition in policy.net.conditions],
        "objective": policy.net.objective.model_dump(),
    }
    write_policy(path, meta, layer_arrays(net.layers))


def load_conditioned(path: Path) -> ConditionedPolicy:
    """Read ``conditioned.npz``; DataError says what is wrong with it. Nothing in the file is executed."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_POLICY_BYTES else b""
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); only a run that was trained with conditions holds one"
        ) from error
    meta, arrays = read_policy(data, str(path))
    try:
        known = parse(ConditionedMeta, meta, str(path))
        conditions = check_conditions(known.conditions)
        net = PolicyNet(take_layers(arrays, str(path)), known.activation, known.head)
        found, wanted = net.layers[0][0].shape[0], obs.SIZE + len(conditions)
        if found != wanted:
            raise DataError(f"{path}: its network takes {found} inputs, expected {wanted}; train it again")
        policy = ConditionedPolicy(
            known.agent, space_of(meta, str(path)), ConditionedNet(net, conditions, known.objective)
        )
        policy.controller(known.objective)
    except ConfigError as error:
        raise DataError(f"{path}: not a conditioned policy of ours ({error}); train it again") from error
    return policy


def retarget(
    run: Path, out: Path, objective: Objective | None = None, changes: Mapping[str, float] | None = None
) -> Objective:
    """Write to ``out`` the policy of a conditioned run at other weights; return the objective that it is for.

    ``objective`` (None: that of training) is changed by ``changes``. ``out`` gets ``policy.npz``, a copy of
    ``conditioned.npz`` and ``retarget.json``. DataError for a run that has none, ConfigError for weights that do not
    fit, or a folder that holds something else.
    """
    source = run / CONDITIONED_FILE
    policy = load_conditioned(source)
    base = objective or policy.net.objective
    wanted = with_weights(base, changes or {})
    net = policy.net.at(wanted)
    _prepare(out)
    save_policy(out / POLICY_FILE, policy.agent, policy.space, net)
    data = source.read_bytes()
    (out / CONDITIONED_FILE).write_bytes(data)
    written = {
        "schema": "adaptsplit.retarget/1",
        "source": str(run),
        "conditioned_sha256": hashlib.sha256(data).hexdigest(),
        "objective": wanted.model_dump(),
    }
    (out / RETARGET_FILE).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return wanted


def with_weights(objective: Objective, changes: Mapping[str, float]) -> Objective:
    """Return an objective with weights replaced; ConfigError for an unknown name or a negative value."""
    for name in changes:
        if name not in WEIGHTS:
            raise ConfigError(f"weight {name!r}: expected one of {', '.join(WEIGHTS)}")
    family = {} if not changes else {"family": None}
    return parse(Objective, {**objective.model_dump(), **family, **changes}, "objective")


def _prepare(out: Path) -> None:
    """Make the folder; it may hold an earlier retargeting, nothing else."""
    if out.exists() and not (out / RETARGET_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is no retargeted policy; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
