"""NaviSplit's gate: an auxiliary agent that chooses the branch over a frozen task policy.

After NaviSplit (WoWMoM 2024, arXiv 2406.13086) and the authors' public code, from which the pattern is: the gate's
continuous output u becomes the branch c = clip(int((c_max + 1) u), 0, c_max), where a larger c costs more; it sees the
task's observation, the task's action scaled to 0..1, and its own last value. Here the task policy is a controller that
fixes exit rule and rate. The gate's reward weights per branch were not obtained, and in the paper the gate sees no
channel; ours sees the whole observation. Hence the name, ``navisplit-style``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit import observation as obs
from adaptsplit.agents.base import Kind
from adaptsplit.agents.policy import Activation, Head, Layers, PolicyController, PolicyNet, layer_arrays, take_layers
from adaptsplit.agents.policy_file import Arrays, common_meta, space_of, write_policy
from adaptsplit.agents.static import StaticController
from adaptsplit.config import Config, parse
from adaptsplit.controller import Controller, Decisions, Observations, State
from adaptsplit.decision import Decision, DecisionSpace
from adaptsplit.errors import AdaptsplitError, ConfigError, DataError
from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.profiles import ProfileSummary

SCHEMA = "adaptsplit.gate/1"
INPUTS = obs.SIZE + 4  # observation, three scaled indices of the task's decision, the gate's last value
TASK = "task_"

Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class GateState:
    """State of the task policy, and the gate's last value (n,), 0 at the start."""

    task: State
    last: Floats32


class Branching:
    """From the gate's value to a decision: ``order`` (B,) are branch indices from the cheapest to the dearest."""

    def __init__(self, space: DecisionSpace, order: Ints) -> None:
        if sorted(order.tolist()) != list(range(len(space.branches))):
            raise DataError(f"gate: order {order.tolist()}; expected each of {len(space.branches)} branches once")
        self.space, self.order = space, order

    def inputs(self, observation: Observations, task: Decisions, last: Floats32) -> Floats32:
        """Return (n, D + 4) what the gate sees."""
        scale = np.maximum(np.array(self.space.shape) - 1, 1).astype(np.float32)
        return np.concatenate([observation, task / scale, last[:, None]], axis=1, dtype=np.float32)

    def decide(self, value: Floats32, task: Decisions) -> Decisions:
        """Return (n, 3): the task's decision on the branch that each value (n,) in 0..1 stands for."""
        highest = len(self.order) - 1
        level = np.clip(((highest + 1) * value).astype(np.int64), 0, highest)
        chosen = np.array(task, dtype=np.int64, copy=True)
        chosen[:, 0] = self.order[level]
        return self.space.canonical(chosen)


def cheapest_first(space: DecisionSpace, summary: ProfileSummary) -> Ints:
    """Return (B,) branches by mean payload, the shorter head first among equals; those that send nothing come first."""
    payload = np.array([np.mean(summary.payload_bytes[b][: space.rates_per_branch[b]]) for b in range(space.shape[0])])
    payload = np.where(space.answers_alone, 0.0, payload)
    return np.lexsort((np.asarray(summary.head_s)[space.exit_branches], payload))


class GateController:
    """A frozen task policy and the gate's network (relu, one output through tanh to 0..1)."""

    kind: Kind = "learned"
    learns = False

    def __init__(self, name: str, task: Controller, branching: Branching, layers: Layers) -> None:
        self.name, self.task, self.branching, self.layers = name, task, branching, layers
        self.space = branching.space
        _check_layers(name, layers)
        if task.learns:
            raise ConfigError(f"gate over {task.name!r}, which learns; the task policy must be frozen")

    def init(self, n: int, rng: np.random.Generator) -> GateState:
        """Return the task's state and gates that have not moved."""
        return GateState(self.task.init(n, rng), np.zeros(n, dtype=np.float32))

    def value(self, inputs: Floats32) -> Floats32:
        """Return (n,) in 0..1 of (n, D + 4) inputs."""
        x = inputs
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight + bias, np.float32(0.0))
        weight, bias = self.layers[-1]
        return np.asarray((np.tanh(x @ weight + bias)[:, 0] + 1.0) / 2.0, dtype=np.float32)

    def act(self, observation: Observations, state: GateState) -> tuple[Decisions, GateState]:
        """Let the task policy decide, and the gate replace the branch; (n, 3)."""
        task, after = self.task.act(observation, state.task)
        value = self.value(self.branching.inputs(observation, task, state.last))
        return self.branching.decide(value, task), GateState(after, value)

    def learn(self, outcomes: Outcomes, state: GateState) -> GateState:
        """Learn nothing."""
        return state

    def save(self, path: Path) -> None:
        """Write the policy file; ConfigError for a task policy that no file can hold (a rule)."""
        meta = common_meta(SCHEMA, self.name, self.space) | {"order": self.branching.order.tolist()}
        arrays = layer_arrays(self.layers)
        task = self.task
        if isinstance(task, StaticController):
            d = task.decision
            meta |= {"task": self.space.name((d.branch, d.rate, d.threshold))}
        elif isinstance(task, PolicyController):
            meta |= {"task": task.name, "head": task.net.head, "activation": task.net.activation}
            arrays |= {f"{TASK}{key}": array for key, array in layer_arrays(task.net.layers).items()}
        else:
            raise ConfigError(f"gate over {task.name!r}: a file holds a static decision or a trained network, no rule")
        write_policy(path, meta, arrays)


def _check_layers(name: str, layers: Layers) -> None:
    """DataError unless the layers lead from the inputs to one output."""
    sizes = [INPUTS, *(weight.shape[1] for weight, _ in layers)]
    pairs = zip(layers, sizes, sizes[1:], strict=False)
    fits = all(weight.shape == (a, b) and bias.shape == (b,) for (weight, bias), a, b in pairs)
    if not layers or not fits or sizes[-1] != 1:
        raise DataError(f"gate {name!r}: layer sizes {sizes}; expected {INPUTS} inputs, 1 output; train it again")
    if not all(np.isfinite(array).all() for layer in layers for array in layer):
        raise DataError(f"gate {name!r}: weights that are not finite numbers; train it again")


class GateMeta(Config):
    """What the file says about itself; ``task`` is a static decision, or the name of the network that it holds."""

    schema_: Literal["adaptsplit.gate/1"] = Field(alias="schema")
    agent: str
    observation: str
    space: dict[str, Any]
    order: tuple[int, ...]
    task: str
    head: Head | None = None
    activation: Activation | None = None


def parse_gate(meta: dict[str, Any], arrays: Arrays, where: str, name: str | None) -> GateController:
    """Build the controller of a gate's file; DataError for anything that does not fit together."""
    try:
        said = parse(GateMeta, meta, where)
        space = space_of(meta, where)
        layers = take_layers({key: array for key, array in arrays.items() if not key.startswith(TASK)}, where)
        task = _task(said, space, arrays, where)
        branching = Branching(space, np.array(said.order, dtype=np.int64))
        return GateController(name or said.agent, task, branching, layers)
    except DataError:
        raise
    except (ValueError, TypeError, ArithmeticError, AdaptsplitError) as error:
        raise DataError(f"{where}: not a gate of ours ({error}); train it again") from error


def _task(said: GateMeta, space: DecisionSpace, arrays: Arrays, where: str) -> Controller:
    if said.head is None or said.activation is None:
        decision: Decision = space.parse(said.task)
        return StaticController(space, decision)
    own = {key.removeprefix(TASK): array for key, array in arrays.items() if key.startswith(TASK)}
    return PolicyController(said.task, space, PolicyNet(take_layers(own, where), said.activation, said.head))
