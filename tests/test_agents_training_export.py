"""Exported weights decide as the library's own model does, for every algorithm; starting weights are taken over."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from adaptsplit import observation as obs
from adaptsplit.agents import PolicyController, load_policy
from adaptsplit.agents.hyperparameters import Parameters, actions_of, load_parameters
from adaptsplit.agents.policy import PolicyNet
from adaptsplit.agents.policy_file import common_meta, write_policy
from adaptsplit.agents.policy_recurrent import RecurrentNet, RecurrentPolicyController, save_recurrent
from adaptsplit.agents.sb3 import RowwiseDQN, controller_of, export_net, export_policy, make_model, start_from
from adaptsplit.agents.sb3_extra import MaskedActions
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.scenario import Scenario, load_scenario
from adaptsplit.testing import check_controller

BATCH = np.random.default_rng(0).random((1500, obs.SIZE), dtype=np.float32)
FEEDFORWARD = [
    ("ppo", "flat"),
    ("ppo", "multi"),
    ("a2c", "flat"),
    ("a2c", "multi"),
    ("maskable-ppo", "flat"),
    ("maskable-ppo", "multi"),
    ("dqn", "flat"),
    ("qr-dqn", "flat"),
]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


def small(agent: str, actions: str = "flat", **changes: Any) -> Parameters:
    parameters = load_parameters(agent)
    cut: dict[str, Any] = {"envs": 16, "net_arch": [16]} | changes
    if "actions" in type(parameters).model_fields:
        cut["actions"] = actions
    for key, value in (("batch_size", 128), ("learning_starts", 300), ("buffer_size", 4000), ("lstm_hidden_size", 12)):
        if key in type(parameters).model_fields:
            cut[key] = value
    return type(parameters).model_validate(parameters.model_dump() | cut)


def shaken(parameters: Parameters, scenario: Scenario) -> BaseAlgorithm:
    """A model after a little learning, its weights shaken up so that it uses many decisions."""
    env = SplitVecEnv(scenario, parameters.envs, seed=0, actions=actions_of(parameters))
    model = make_model(parameters, env, 0).learn(parameters.envs * 32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.policy.parameters():
            weights.add_(torch.randn(weights.shape, generator=generator))
    return model


def decide(model: BaseAlgorithm, agent: str, batch: NDArray[np.float32]) -> NDArray[np.int64]:
    """The library's own deterministic actions; of Q-learners with the target network, which is what is exported."""
    policy: Any = model.policy
    with torch.no_grad():
        if agent == "dqn":
            return np.asarray(policy.q_net_target._predict(torch.from_numpy(batch)).numpy())
        if agent == "qr-dqn":
            return np.asarray(policy.quantile_net_target._predict(torch.from_numpy(batch)).numpy())
    if agent == "maskable-ppo":
        env = model.get_env()
        assert env is not None
        masks = np.repeat(env.env_method("action_masks", indices=[0]), len(batch), axis=0)
        return np.asarray(policy.predict(batch, deterministic=True, action_masks=masks)[0])
    return np.asarray(model.predict(batch, deterministic=True)[0])


def decisions(space: DecisionSpace, agent: str, taken: NDArray[np.int64]) -> NDArray[np.int64]:
    if taken.ndim == 2:
        return space.canonical(taken)
    return space.grid[taken] if agent == "maskable-ppo" else space.table[taken]


@pytest.mark.parametrize(("agent", "actions"), FEEDFORWARD)
def test_exported_weights_decide_as_the_library_does(agent: str, actions: str, scenario: Scenario) -> None:
    parameters = small(agent, actions)
    model = shaken(parameters, scenario)
    wanted = decisions(scenario.space, agent, decide(model, agent, BATCH))
    controller = PolicyController(agent, scenario.space, export_net(model, parameters))
    assert len(np.unique(wanted, axis=0)) > 2, "a test that a constant policy would pass"
    assert np.array_equal(controller.act(BATCH, None)[0], wanted)
    alone = np.concatenate([controller.act(BATCH[i : i + 1], None)[0] for i in range(300)])
    assert np.array_equal(alone, wanted[:300])


def test_the_mean_over_quantiles_is_folded_exactly(scenario: Scenario) -> None:
    parameters = small("qr-dqn")
    model = shaken(parameters, scenario)
    policy: Any = model.policy
    with torch.no_grad():
        wanted = policy.quantile_net_target(torch.from_numpy(BATCH)).mean(dim=1).numpy()
    controller = PolicyController("q", scenario.space, export_net(model, parameters))
    np.testing.assert_allclose(controller.outputs(BATCH), wanted, rtol=1e-4, atol=1e-5)


def test_the_mask_of_multi_actions_forbids_what_no_decision_uses() -> None:
    """A space of branches that answer alone has one rate and one exit rule in use."""
    alone = DecisionSpace((BranchSpec("full", "local"), BranchSpec("skip", "skip")), (0.0, 0.5))

    shell: Any = SimpleNamespace(
        num_envs=2,
        observation_space=spaces.Box(0, 1, (3,)),
        action_space=spaces.MultiDiscrete(alone.shape),
        get_attr=lambda name, indices=None: [None, None],
    )
    masked = MaskedActions(shell, alone)
    assert [mask.tolist() for mask in masked.env_method("action_masks")] == [[True, True, True, True, False]] * 2
    assert masked.has_attr("action_masks")


def test_masked_training_takes_distinct_decisions_only(scenario: Scenario) -> None:
    """The grid holds duplicates; sampled actions must all be among those of the table."""
    parameters = small("maskable-ppo", "flat")
    env = SplitVecEnv(scenario, parameters.envs, seed=0)
    model = make_model(parameters, env, 0).learn(600)
    taken = np.asarray(model.rollout_buffer.actions).astype(int).ravel()  # type: ignore[attr-defined]
    valid = scenario.space.masks()[1]
    assert valid.sum() < valid.size
    assert valid[taken].all()
    assert len(np.unique(taken)) > 50


@pytest.mark.parametrize("actions", ["flat", "multi"])
def test_a_recurrent_policy_follows_the_library_through_an_episode(actions: str, scenario: Scenario) -> None:
    parameters = small("recurrent-ppo", actions)
    model = shaken(parameters, scenario)
    controller = controller_of("r", scenario.space, export_policy(model, parameters))
    env = SplitVecEnv(scenario, 16, split="validation", seed=3, actions=actions)  # type: ignore[arg-type]
    observation, state = np.asarray(env.reset()), controller.init(16, np.random.default_rng(0))
    memory: Any = None
    starts, different = np.ones(16, dtype=bool), set()
    for _ in range(120):
        taken, memory = model.predict(observation, memory, starts, deterministic=True)
        decided, state = controller.act(observation, state)
        assert np.array_equal(decided, decisions(scenario.space, "recurrent-ppo", taken))
        different |= {tuple(row) for row in decided.tolist()}
        answer, _, done, _ = env.step(taken)
        observation, starts = np.asarray(answer), np.zeros(16, dtype=bool)
        assert not done.any(), "the episode is shorter than the test"
    np.testing.assert_allclose(state.output, memory[0][0], atol=1e-5)
    assert len(different) > 2


def lstm(space: DecisionSpace, hidden: int = 8, seed: int = 0) -> RecurrentNet:
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(0, 2, (obs.SIZE + hidden, 4 * hidden)), rng.normal(0, 1, 4 * hidden)
    last = rng.normal(0, 1, (hidden, len(space.table))).astype(np.float32), np.zeros(len(space.table), np.float32)
    return RecurrentNet(weight.astype(np.float32), bias.astype(np.float32), PolicyNet((last,), "tanh", "flat"))


SPACE = DecisionSpace((BranchSpec("stem", "split", ("a", "b")), BranchSpec("deep", "split", ("a", "b"))))


def test_a_recurrent_policy_keeps_the_contract_and_survives_saving(tmp_path: Path) -> None:
    policy = RecurrentPolicyController("r", SPACE, lstm(SPACE))
    check_controller(policy, SPACE)
    policy.save(tmp_path / "policy.npz")
    loaded = load_policy(tmp_path / "policy.npz", "again")
    assert isinstance(loaded, RecurrentPolicyController)
    assert (loaded.name, loaded.space, loaded.kind) == ("again", SPACE, "learned")
    one, other = (c.init(len(BATCH), np.random.default_rng(0)) for c in (policy, loaded))
    for batch in (BATCH, BATCH[::-1]):
        first, one = policy.act(batch, one)
        second, other = loaded.act(batch, other)
        assert np.array_equal(first, second)


def test_memory_matters_and_rows_do_not_touch_each_other() -> None:
    policy = RecurrentPolicyController("r", SPACE, lstm(SPACE))
    empty = policy.init(100, np.random.default_rng(0))
    _, after = policy.act(BATCH[:100], empty)
    assert not empty.output.any(), "a state was written to"
    fresh = policy.act(BATCH[100:200], empty)[0]
    assert (policy.act(BATCH[100:200], after)[0] != fresh).any()
    alone = type(after)(after.output[7:8], after.cell[7:8])
    assert np.array_equal(policy.act(BATCH[107:108], alone)[0], policy.act(BATCH[100:200], after)[0][7:8])


def test_damaged_recurrent_policies_are_refused(tmp_path: Path) -> None:
    path, net = tmp_path / "p.npz", lstm(SPACE)
    good = common_meta("adaptsplit.recurrent/1", "r", SPACE) | {"head": "flat", "activation": "tanh"}
    weight, bias = net.actor.layers[0]
    arrays: dict[str, Any] = {"lstm_w": net.weight, "lstm_b": net.bias, "w0": weight, "b0": bias}
    for change, match in [
        ({"lstm_w": net.weight[1:]}, "LSTM arrays"),
        ({"lstm_w": net.weight.astype(np.float64)}, "LSTM arrays"),
        ({"lstm_b": net.bias * np.nan}, "finite"),
        ({"lstm_b": net.bias[None]}, "no LSTM"),
        ({"w0": weight[:-1]}, "layer sizes"),
        ({"w9": weight}, "not layers"),
    ]:
        write_policy(path, good, arrays | change)
        with pytest.raises(DataError, match=match):
            load_policy(path)
    for meta, match in [
        (good | {"schema": "adaptsplit.recurent/1"}, "did you mean 'adaptsplit.recurrent/1'"),
        (good | {"head": "three"}, "head"),
        (good | {"observation": "0"}, "made for observation"),
        (good | {"space": {}}, "not a policy of ours"),
        (
            good | {"space": SPACE.to_dict() | {"thresholds": list(range(40000)), "patience": [1.0] * 40000}},
            "more than",
        ),
    ]:
        write_policy(path, meta, arrays)
        with pytest.raises(DataError, match=match):
            load_policy(path)
    save_recurrent(path, "r", SPACE, net)
    assert load_policy(path).name == "r"


@pytest.mark.parametrize(("agent", "actions"), FEEDFORWARD)
def test_training_starts_from_given_weights(agent: str, actions: str, scenario: Scenario) -> None:
    """What is put in comes out again: export after start gives the same decisions, before any learning."""
    parameters = small(agent, actions)
    env = SplitVecEnv(scenario, parameters.envs, seed=0, actions=actions_of(parameters))
    rng = np.random.default_rng(1)
    sizes = [obs.SIZE, 16, len(scenario.space.table) if actions == "flat" else sum(scenario.space.shape)]
    layers = tuple(
        (rng.normal(0, 1, (a, b)).astype(np.float32), rng.normal(0, 1, b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    )
    net = PolicyNet(layers, parameters.activation, "flat" if actions == "flat" else "multi")
    model = make_model(parameters, env, 0)
    start_from(model, parameters, net)
    wanted = PolicyController("w", scenario.space, net).act(BATCH, None)[0]
    found = PolicyController("f", scenario.space, export_net(model, parameters)).act(BATCH, None)[0]
    assert np.array_equal(found, wanted)
    assert np.array_equal(decisions(scenario.space, agent, decide(model, agent, BATCH)), wanted)
    with pytest.raises(ConfigError, match="layers of shapes"):
        start_from(model, parameters, PolicyNet((*layers[:1], *layers), net.activation, net.head))
    with pytest.raises(ConfigError, match="actions"):
        start_from(model, parameters, PolicyNet(layers, net.activation, "multi" if actions == "flat" else "flat"))


def test_a_recurrent_agent_starts_from_nothing(scenario: Scenario) -> None:
    parameters = small("recurrent-ppo")
    model = make_model(parameters, SplitVecEnv(scenario, 4, seed=0), 0)
    with pytest.raises(ConfigError, match="without memory"):
        start_from(model, parameters, PolicyNet((), "tanh", "flat"))


@pytest.mark.parametrize("agent", ["dqn", "qr-dqn"])
def test_epsilon_is_drawn_for_each_row(agent: str, scenario: Scenario) -> None:
    parameters = small(agent)
    model: Any = make_model(parameters, SplitVecEnv(scenario, parameters.envs, seed=0), 0)
    assert isinstance(model, RowwiseDQN) == (agent == "dqn")
    model.exploration_rate = 0.25
    batch = np.random.default_rng(0).random((4000, obs.SIZE), dtype=np.float32)
    greedy, _ = model.predict(batch, deterministic=True)
    taken, _ = model.predict(batch)
    random = 0.25 * (1 - 1 / len(scenario.space.table))
    assert np.mean(taken != greedy) == pytest.approx(random, abs=0.03)
