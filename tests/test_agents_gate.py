"""NaviSplit's gate and EdgeRL: the paper's discretisation, worlds whose best answer is known, and exported policies."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from adaptsplit import observation as obs
from adaptsplit.agents import PolicyController, PolicyNet, StaticController, make_controller
from adaptsplit.agents.edgerl import (
    NEVER,
    EdgeRLVecEnv,
    EdgeRLWeights,
    dearest_j,
    edgerl_objective,
    export_edgerl,
    fixed_rule,
    state_mask,
    train_edgerl,
)
from adaptsplit.agents.gate import INPUTS, Branching, GateController, cheapest_first, parse_gate
from adaptsplit.agents.gate_training import (
    GateParameters,
    GateVecEnv,
    export_gate,
    make_td3,
    resource_cost,
    static_task,
    train_gate,
)
from adaptsplit.agents.hyperparameters import load_parameters
from adaptsplit.agents.policy import PARSERS, Layers, load_policy
from adaptsplit.agents.policy_file import read_policy
from adaptsplit.agents.published_learned import METHODS, method
from adaptsplit.agents.validation import Validator
from adaptsplit.decision import BranchSpec, Decision, DecisionSpace
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.scenario import Scenario, load_scenario
from adaptsplit.testing import check_controller

Array = NDArray[Any]

CODECS = ("q2c-zstd", "q4c-zstd", "q8c-zstd")
SPACE = DecisionSpace(
    (BranchSpec("deep", "split", CODECS[:2]), BranchSpec("stem", "split", CODECS), BranchSpec("local", "local")),
    (0.0, 0.9, 1.01),
)
ORDER = np.array([2, 0, 1])


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


@pytest.fixture(autouse=True)
def _known_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARSERS, "adaptsplit.gate/1", "adaptsplit.agents.gate:parse_gate")


def layers(seed: int = 0, bias: float = 0.0, sizes: tuple[int, ...] = (INPUTS, 8, 1)) -> Layers:
    rng = np.random.default_rng(seed)
    made = [(rng.normal(size=pair).astype(np.float32), np.zeros(pair[1], dtype=np.float32)) for pair in pairwise(sizes)]
    made[-1][1][:] = bias
    return tuple(made)


def gate(name: str = "stem/2/0.9", **given: Any) -> GateController:
    d = SPACE.parse(name)
    return GateController("g", StaticController(SPACE, d), Branching(SPACE, ORDER), layers(**given))


# ---- the gate -----------------------------------------------------------------------------------------------------


def test_the_value_becomes_a_branch_by_the_papers_rule() -> None:
    """c = clip(int((c_max + 1) u), 0, c_max) with c_max = 2, and the order of the branches from cheap to dear."""
    branching = Branching(SPACE, ORDER)
    value = np.array([0.0, 0.33, 0.34, 0.66, 0.67, 0.99, 1.0], dtype=np.float32)
    task = np.repeat(np.array([[0, 1, 1]]), len(value), axis=0)
    decided = branching.decide(value, task)
    assert decided[:, 0].tolist() == [2, 2, 0, 0, 1, 1, 1]
    assert decided[2].tolist() == [0, 1, 1]  # rate and rule are the task's
    assert decided[0].tolist() == [2, 0, 0]  # local has no rate
    assert task[:, 0].tolist() == [0] * len(value)


def test_a_rate_that_the_branch_lacks_is_its_last() -> None:
    decided = Branching(SPACE, ORDER).decide(np.array([0.5], dtype=np.float32), np.array([[1, 2, 1]]))
    assert decided.tolist() == [[0, 1, 1]]


def test_the_gate_sees_observation_task_and_its_last_value() -> None:
    one = gate()
    rows = np.random.default_rng(0).random((5, obs.SIZE), dtype=np.float32)
    state = one.init(5, np.random.default_rng(0))
    first, state = one.act(rows, state)
    task = np.array([0.5, 1.0, 0.5], dtype=np.float32)  # stem is branch 1 of 0..2, rate 2 of 0..2, rule 1 of 0..2
    by_hand = np.concatenate([rows, np.tile(task, (5, 1)), np.zeros((5, 1), dtype=np.float32)], axis=1)
    (w, b), (v, c) = one.layers
    u = (np.tanh(np.maximum(by_hand @ w + b, 0) @ v + c)[:, 0] + 1) / 2
    assert state.last == pytest.approx(u)
    again = np.concatenate([by_hand[:, :-1], u[:, None]], axis=1)
    _, state = one.act(rows, state)
    assert state.last == pytest.approx((np.tanh(np.maximum(again @ w + b, 0) @ v + c)[:, 0] + 1) / 2, abs=1e-6)
    assert set(first[:, 0]) <= {0, 1, 2}


def test_contract_with_every_kind_of_task(scenario: Scenario) -> None:
    check_controller(gate(), SPACE)
    space = scenario.space
    branching = Branching(space, cheapest_first(space, scenario.summary()))
    for name in ("deadline", "random"):
        check_controller(GateController("g", make_controller(name, scenario), branching, layers()), space)
    with pytest.raises(ConfigError, match="which learns"):
        GateController("g", make_controller("kl-ucb", scenario), branching, layers())


def test_branches_are_ordered_by_what_they_send(scenario: Scenario) -> None:
    space, summary = scenario.space, scenario.summary()
    names = [space.branches[b].name for b in cheapest_first(space, summary)]
    assert names[0] == "local"
    assert names[-1] == "offload"
    cost = resource_cost(scenario, 0.1)
    assert cost.max() == pytest.approx(0.1)
    assert cost[[branch.name for branch in space.branches].index("local")].max() == 0.0


@pytest.mark.parametrize("task", ["static", "network"])
def test_a_gates_file_brings_it_back(task: str, tmp_path: Path) -> None:
    one = gate()
    if task == "network":
        rng = np.random.default_rng(1)
        matrix = rng.normal(size=(obs.SIZE, len(SPACE.table))).astype(np.float32)
        weights = ((matrix, np.zeros(len(SPACE.table), np.float32)),)
        net = PolicyController("p", SPACE, PolicyNet(weights, "relu", "flat"))
        one = GateController("g", net, one.branching, one.layers)
    one.save(tmp_path / "policy.npz")
    again = load_policy(tmp_path / "policy.npz", "x")
    rows = np.random.default_rng(0).random((200, obs.SIZE), dtype=np.float32)
    first, second = (c.act(rows, c.init(200, np.random.default_rng(0)))[0] for c in (one, again))
    assert np.array_equal(first, second)
    assert len(np.unique(first, axis=0)) > 1


def test_damaged_gates_are_refused(tmp_path: Path, scenario: Scenario) -> None:
    gate().save(tmp_path / "policy.npz")
    meta, arrays = read_policy((tmp_path / "policy.npz").read_bytes(), "f")
    for change, message in (
        ({"order": [0, 0, 1]}, "each of 3 branches once"),
        ({"task": "stem/2/0.5"}, "thresholds are"),
        ({"task": "x", "head": "flat", "activation": "tanh"}, "layers"),
        ({"colour": "red"}, "unknown key"),
    ):
        with pytest.raises(DataError, match=message):
            parse_gate(meta | change, dict(arrays), "f", None)
    with pytest.raises(DataError, match="inputs"):
        parse_gate(meta, {**arrays, "w0": arrays["w0"][:-1]}, "f", None)
    with pytest.raises(DataError, match="finite"):
        parse_gate(meta, {**arrays, "w0": arrays["w0"] * np.nan}, "f", None)
    branching = Branching(scenario.space, cheapest_first(scenario.space, scenario.summary()))
    with pytest.raises(ConfigError, match="no rule"):
        GateController("g", make_controller("deadline", scenario), branching, layers()).save(tmp_path / "p.npz")


def contexts(rng: np.random.Generator, n: int) -> Array:
    """Observations in which everything is low, or everything is high."""
    return np.repeat(rng.integers(2, size=(n, 1)), obs.SIZE, axis=1).astype(np.float32)


class TwoBranches(VecEnv):
    """The right branch is 1 where the goodput is high, else 0; it pays 1, the other 0. Episodes of 5 steps."""

    render_mode = None

    def __init__(self, n: int) -> None:
        super().__init__(n, spaces.Box(0.0, 1.0, (obs.SIZE,), dtype=np.float32), spaces.MultiDiscrete([2, 1, 1]))
        self._rng, self._step, self._row = np.random.default_rng(0), 0, contexts(np.random.default_rng(1), n)
        self._taken: Array = np.zeros((n, 3), dtype=np.int64)

    def reset(self) -> VecEnvObs:
        return self._row.copy()

    def step_async(self, actions: Array) -> None:
        self._taken = actions

    def step_wait(self) -> VecEnvStepReturn:
        reward = (self._taken[:, 0] == (self._row[:, 0] > 0.5)).astype(np.float32)
        self._step += 1
        ended = self._row.copy()
        self._row = contexts(self._rng, self.num_envs)
        done = np.full(self.num_envs, self._step % 5 == 0)
        infos: list[dict[str, Any]] = [{"terminal_observation": row} if done[0] else {} for row in ended]
        return self._row.copy(), reward, done, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None: ...

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        return [False] * self.num_envs


TWO = DecisionSpace((BranchSpec("a", "split", CODECS[:1]), BranchSpec("b", "split", CODECS[:1])), (0.9,))


def two_branches(n: int, cost: float = 0.0) -> GateVecEnv:
    task = StaticController(TWO, Decision(0, 0, 0))
    prices = np.array([[0.0], [cost]])
    return GateVecEnv(TwoBranches(n), task, Branching(TWO, np.array([0, 1])), prices)


def test_the_auxiliary_environment_keeps_the_last_value_and_pays_the_penalty() -> None:
    env = two_branches(4, cost=0.25)
    first = np.asarray(env.reset())
    assert first.shape == (4, INPUTS)
    assert first[:, -1].tolist() == [0.0] * 4
    value = np.array([[0.2], [0.9], [0.4], [0.6]], dtype=np.float32)
    right = (value[:, 0] > 0.5) == (first[:, 0] > 0.5)
    second, rewards, _, _ = env.step(value)
    assert np.asarray(second)[:, -1] == pytest.approx(value[:, 0])
    assert rewards == pytest.approx(right - 0.25 * (value[:, 0] > 0.5))
    for _ in range(4):
        last, _, done, infos = env.step(value)
    assert done.all()
    assert np.asarray(last)[:, -1].tolist() == [0.0] * 4
    assert infos[1]["terminal_observation"].shape == (INPUTS,)
    assert infos[1]["terminal_observation"][-1] == pytest.approx(0.9)


def test_the_gate_learns_the_branch_that_is_right_in_each_context_unless_it_is_too_dear() -> None:
    torch.set_num_threads(1)
    rows = contexts(np.random.default_rng(9), 500)
    for cost, wanted in ((0.0, rows[:, 0] > 0.5), (2.0, np.zeros(500, dtype=np.bool_))):
        env = two_branches(32, cost)
        p = GateParameters(learning_starts=1000, gamma=0.0, noise=0.4, gradient_steps=4, batch_size=128)
        model = make_td3(p, env, seed=1)
        model.learn(6000)
        one = GateController("g", env.task, env.branching, export_gate(model))
        chosen, _ = one.act(rows, one.init(500, np.random.default_rng(0)))
        assert np.mean((chosen[:, 0] == 1) == wanted) > 0.95
        inputs = one.branching.inputs(rows, np.zeros((500, 3), dtype=np.int64), np.zeros(500, dtype=np.float32))
        theirs = model.predict(inputs, deterministic=True)[0][:, 0]
        assert one.value(inputs) == pytest.approx(theirs, abs=1e-5)


def test_a_training_leaves_a_run_that_loads_as_a_controller(scenario: Scenario, tmp_path: Path) -> None:
    p = GateParameters(envs=16, learning_starts=200, gradient_steps=1)
    task = "static:stem/1/0.95"
    result = train_gate(
        scenario, tmp_path / "g", 640, 0, False, task=task, parameters=p, validations=2, validation_episodes=2
    )
    value = json.loads((tmp_path / "g" / "run.json").read_text())
    assert (value["schema"], value["agent"], value["task"]) == ("adaptsplit.run/1", "navisplit-style", task)
    loaded = make_controller(str(tmp_path / "g"), scenario)
    assert isinstance(loaded, GateController)
    assert Validator(scenario, 2)(loaded).reward == pytest.approx(result.best.reward, abs=1e-12)
    rules = {name.split("/")[2] for name in [point.top for point in result.curve] if not name.startswith("local")}
    assert rules <= {"0.95"}


def test_the_default_task_is_a_good_static_decision(scenario: Scenario) -> None:
    chosen = static_task(scenario)
    poor = make_controller("static:deep/3/1.01", scenario)
    validator = Validator(scenario, 8)
    assert validator(chosen).reward > validator(poor).reward


# ---- EdgeRL -------------------------------------------------------------------------------------------------------


def test_the_exported_policy_ignores_what_is_not_in_its_state_and_keeps_its_rule(scenario: Scenario) -> None:
    space = scenario.space
    rng = np.random.default_rng(0)
    b, r, t = space.shape
    pairs = ((obs.SIZE, 8), (8, b + r))
    made = [(rng.normal(size=p).astype(np.float32), rng.normal(size=p[1]).astype(np.float32)) for p in pairs]
    net = PolicyNet(tuple(made), "tanh", "multi")
    exported = export_edgerl(net, space)
    assert not exported.layers[0][0][state_mask() == 0.0].any()
    assert exported.layers[-1][0].shape == (8, b + r + t)
    assert (exported.layers[-1][1][-t:] == NEVER).sum() == t - 1
    controller = PolicyController("e", space, exported)
    rows = rng.random((300, obs.SIZE), dtype=np.float32)
    other = np.where(state_mask() > 0, rows, rng.random((300, obs.SIZE), dtype=np.float32))
    first, second = controller.act(rows, None)[0], controller.act(other, None)[0]
    assert np.array_equal(first, second)
    sent = ~space.answers_alone[first[:, 0]]
    assert set(first[sent, 2]) == {fixed_rule(space)}
    assert space.thresholds[fixed_rule(space)] == max(space.thresholds)


def test_the_environment_takes_branch_and_rate_and_shows_the_state_only(scenario: Scenario) -> None:
    env = EdgeRLVecEnv(SplitVecEnv(scenario, 4, actions="multi"), scenario.space)
    assert env.action_space == spaces.MultiDiscrete(list(scenario.space.shape[:2]))
    first = np.asarray(env.reset())
    assert not first[:, state_mask() == 0.0].any()
    after, _, _, _ = env.step(np.zeros((4, 2), dtype=np.int64))
    assert not np.asarray(after)[:, state_mask() == 0.0].any()


def test_the_reward_weighs_accuracy_latency_and_energy(scenario: Scenario) -> None:
    weights = EdgeRLWeights(accuracy=1.0, latency=0.5, energy=0.25)
    objective = edgerl_objective(scenario, weights)
    record: dict[str, Any] = {"quality": 0.9, "compute_j": dearest_j(scenario), "radio_j": 0.0, "sent_bytes": 10**6}
    record |= {"switched": 1, "path": 3, "answer_latency_s": scenario.deadline_s}
    assert sum(objective.terms_of(record).values()) == pytest.approx(0.9 - 0.5 - 0.25)
    missed = record | {"quality": 0.0, "path": 0, "compute_j": 0.0}
    assert sum(objective.terms_of(missed).values()) == pytest.approx(-0.5)


def test_edgerl_trains_into_a_plain_policy(scenario: Scenario, tmp_path: Path) -> None:
    p = load_parameters("a2c")
    small = type(p).model_validate(p.model_dump() | {"envs": 16, "net_arch": [16], "steps": 1000})
    train_edgerl(scenario, tmp_path / "e", progress=False, parameters=small, validations=2, validation_episodes=4)
    loaded = make_controller(str(tmp_path / "e"), scenario)
    assert isinstance(loaded, PolicyController)
    assert not loaded.net.layers[0][0][state_mask() == 0.0].any()
    value = json.loads((tmp_path / "e" / "run.json").read_text())
    assert value["method"] == "edgerl-style"
    assert value["weights"] == EdgeRLWeights().model_dump()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_published_methods_train_by_name(name: str, scenario: Scenario, tmp_path: Path) -> None:
    """What ``adaptsplit train`` prints of a training is there, whatever the method."""
    done = method(name)(scenario, tmp_path / "run", 2000, 0, False)
    assert done.steps >= 2000
    assert done.seconds > 0
    assert math.isfinite(done.best.reward)
    assert isinstance(done.warnings, tuple)
    controller = make_controller(str(tmp_path / "run"), scenario)
    check_controller(controller, scenario.space)
