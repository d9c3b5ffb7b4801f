"""Training: a short real run of each agent, exported weights that decide as Stable-Baselines3 does, safe resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from adaptsplit import observation as obs
from adaptsplit.agents import PolicyController, make_controller
from adaptsplit.agents.hyperparameters import Linear, Parameters, PpoParameters, load_parameters, schedule
from adaptsplit.agents.sb3 import RowwiseDQN, export_net, load_checkpoint, make_model, save_checkpoint
from adaptsplit.agents.training import TrainResult, train
from adaptsplit.agents.validation import Validator
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import ConfigError, DataError, UnknownNameError
from adaptsplit.scenario import Scenario, load_scenario


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


def small(agent: str, actions: str = "flat") -> Parameters:
    """The shipped parameters, cut down to a second of training."""
    parameters = load_parameters(agent)
    changes = {"steps": 6000, "envs": 16, "batch_size": 256, "net_arch": [16]}
    if agent == "ppo":
        changes |= {"actions": actions}
    else:
        changes |= {"learning_starts": 500, "buffer_size": 8000, "gradient_steps": 1}
    return type(parameters).model_validate(parameters.model_dump() | changes)


def model_of(parameters: Parameters, scenario: Scenario, seed: int = 0) -> BaseAlgorithm:
    actions = parameters.actions if isinstance(parameters, PpoParameters) else "flat"
    return make_model(parameters, SplitVecEnv(scenario, parameters.envs, seed=seed, actions=actions), seed)


def quick(scenario: Scenario, agent: str, out: Path, *, resume: bool = False, steps: int | None = None) -> TrainResult:
    return train(
        scenario,
        agent,
        out,
        steps,
        progress=False,
        resume=resume,
        parameters=small(agent),
        validations=3,
        validation_episodes=4,
    )


@pytest.fixture(scope="module")
def run(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return quick(scenario, "ppo", tmp_path_factory.mktemp("runs") / "ppo")


def decide(model: BaseAlgorithm, batch: NDArray[np.float32]) -> NDArray[np.int64]:
    """The library's own deterministic decision; of DQN with its target network, which is the one that is exported."""
    if isinstance(model, RowwiseDQN):
        return model.q_net_target._predict(torch.from_numpy(batch)).numpy()
    return model.predict(batch, deterministic=True)[0]


@pytest.mark.parametrize(("agent", "actions"), [("ppo", "flat"), ("ppo", "multi"), ("dqn", "flat")])
def test_exported_weights_decide_as_the_library_does(agent: str, actions: str, scenario: Scenario) -> None:
    parameters = small(agent, actions)
    model = model_of(parameters, scenario)
    model.learn(2000)
    batch = np.random.default_rng(0).random((1500, obs.SIZE), dtype=np.float32)
    taken = decide(model, batch)
    wanted = scenario.space.table[taken] if taken.ndim == 1 else scenario.space.canonical(taken)
    controller = PolicyController(agent, scenario.space, export_net(model, parameters))
    assert np.array_equal(controller.act(batch, None)[0], wanted)
    alone = np.concatenate([controller.act(batch[i : i + 1], None)[0] for i in range(len(batch))])
    assert np.array_equal(alone, wanted)


def test_epsilon_is_drawn_for_each_row(scenario: Scenario) -> None:
    model = model_of(small("dqn"), scenario)
    assert isinstance(model, RowwiseDQN)
    model.exploration_rate = 0.25
    batch = np.random.default_rng(0).random((4000, obs.SIZE), dtype=np.float32)
    greedy, _ = model.predict(batch, deterministic=True)
    taken, _ = model.predict(batch)
    random = 0.25 * (1 - 1 / len(scenario.space.table))
    assert np.mean(taken != greedy) == pytest.approx(random, abs=0.03)


def test_a_run_leaves_policy_curve_and_log(run: TrainResult, scenario: Scenario) -> None:
    value = json.loads((run.folder / "run.json").read_text())
    assert value["schema"] == "adaptsplit.run/1"
    assert (value["agent"], value["scenario"], value["steps"]) == ("ppo", scenario.name, run.steps)
    assert run.steps >= 6000
    lines = [json.loads(line) for line in (run.folder / "training.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in lines] == [point["reward"] for point in value["validation"]]
    assert value["best"]["reward"] == max(line["reward"] for line in lines) == run.best.reward


def test_the_kept_policy_is_the_best_on_validation(run: TrainResult, scenario: Scenario) -> None:
    again = Validator(scenario, 4)(make_controller(str(run.folder), scenario))
    assert again.reward == pytest.approx(run.best.reward, abs=1e-12)


def test_the_same_seed_trains_the_same_policy(run: TrainResult, scenario: Scenario, tmp_path: Path) -> None:
    again = quick(scenario, "ppo", tmp_path / "again")
    assert [point.reward for point in again.curve] == [point.reward for point in run.curve]


def test_resume_goes_on_from_the_checkpoint(scenario: Scenario, tmp_path: Path) -> None:
    first = quick(scenario, "dqn", tmp_path / "r", steps=3000)
    longer = quick(scenario, "dqn", tmp_path / "r", resume=True, steps=6000)
    assert longer.steps >= 6000
    assert longer.curve[: len(first.curve)] == first.curve
    assert longer.curve[len(first.curve)].steps > first.steps


def test_a_checkpoint_restores_every_weight_and_only_its_own_bytes(scenario: Scenario, tmp_path: Path) -> None:
    parameters = small("ppo")
    trained, fresh = model_of(parameters, scenario), model_of(parameters, scenario, seed=5)
    trained.learn(1000)
    sha256 = save_checkpoint(trained, tmp_path / "c.pt")
    load_checkpoint(fresh, tmp_path / "c.pt", sha256)
    assert fresh.num_timesteps == trained.num_timesteps
    for one, other in zip(trained.policy.parameters(), fresh.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    data = bytearray((tmp_path / "c.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "c.pt").write_bytes(bytes(data))
    with pytest.raises(DataError, match="SHA-256"):
        load_checkpoint(fresh, tmp_path / "c.pt", sha256)


def test_what_cannot_be_trained_or_resumed(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ppo'"):
        train(scenario, "pppo", tmp_path / "x", progress=False)
    with pytest.raises(ConfigError, match="to resume"):
        train(scenario, "ppo", tmp_path / "x", progress=False, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="no run"):
        train(scenario, "ppo", tmp_path / "mine", progress=False)


def test_hyperparameters_are_strict(tmp_path: Path) -> None:
    bad = tmp_path / "h.yaml"
    bad.write_text("ppo: {gama: 0.9}\n")
    with pytest.raises(ConfigError, match="did you mean 'gamma'"):
        load_parameters("ppo", bad)
    with pytest.raises(UnknownNameError, match="section"):
        load_parameters("dqn", bad)


def test_schedules_go_in_a_straight_line() -> None:
    rate = schedule(Linear(linear=(1.0, 0.2)))
    assert callable(rate)
    assert [rate(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([1.0, 0.6, 0.2])
    assert schedule(0.3) == 0.3
