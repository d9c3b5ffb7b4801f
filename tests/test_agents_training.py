"""Training: a short real run of each agent, a run's folder, hyperparameters, collapse, hooks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from adaptsplit import cli_train
from adaptsplit import observation as obs
from adaptsplit.agents import make_controller
from adaptsplit.agents.collapse import CollapseWatch
from adaptsplit.agents.hyperparameters import (
    AGENTS,
    Linear,
    Parameters,
    agents_help,
    load_parameters,
    override,
    schedule,
)
from adaptsplit.agents.policy import PolicyController, PolicyNet
from adaptsplit.agents.training import Hooks, TrainResult, train
from adaptsplit.agents.validation import ValidationPoint, Validator
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import ConfigError, MissingExtraError, UnknownNameError
from adaptsplit.scenario import Scenario, load_scenario

SMALL = {"steps": 3000, "envs": 16, "net_arch": [16]}
BATCHES = {"ppo", "maskable-ppo", "recurrent-ppo"}
Q_LEARNERS = {"dqn", "qr-dqn"}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


def small(agent: str, changes: dict[str, Any] | None = None) -> Parameters:
    """The shipped parameters, cut down to a second of training."""
    parameters = load_parameters(agent)
    cut: dict[str, Any] = dict(SMALL) | (changes or {})
    if agent in BATCHES:
        cut["batch_size"] = 256
    if agent in Q_LEARNERS:
        cut |= {"learning_starts": 500, "buffer_size": 8000, "batch_size": 128}
    if agent == "recurrent-ppo":
        cut["lstm_hidden_size"] = 8
    return type(parameters).model_validate(parameters.model_dump() | cut)


def quick(scenario: Scenario, agent: str, out: Path, hooks: Hooks | None = None, **changes: Any) -> TrainResult:
    parameters = small(agent, changes)
    return train(
        scenario,
        agent,
        out,
        progress=False,
        parameters=parameters,
        validations=3,
        validation_episodes=4,
        hooks=hooks or Hooks(),
    )


@pytest.fixture(scope="module")
def run(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return quick(scenario, "ppo", tmp_path_factory.mktemp("runs") / "ppo")


def test_a_run_leaves_policy_curve_and_log(run: TrainResult, scenario: Scenario) -> None:
    value = json.loads((run.folder / "run.json").read_text())
    assert value["schema"] == "adaptsplit.run/1"
    assert (value["agent"], value["scenario"], value["steps"]) == ("ppo", scenario.name, run.steps)
    assert run.steps >= 3000
    assert value["complete"] is True
    lines = [json.loads(line) for line in (run.folder / "training.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in lines] == [point["reward"] for point in value["validation"]]
    assert value["best"]["reward"] == max(line["reward"] for line in lines) == run.best.reward
    assert sorted(file.name for file in run.folder.iterdir()) == sorted([*value["files"], "run.json", "training.jsonl"])


def test_the_kept_policy_is_the_best_on_validation(run: TrainResult, scenario: Scenario) -> None:
    again = Validator(scenario, 4)(make_controller(str(run.folder), scenario))
    assert again.reward == pytest.approx(run.best.reward, abs=1e-12)


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_the_same_seed_gives_the_same_curve(agent: str, scenario: Scenario, tmp_path: Path) -> None:
    one, other = (quick(scenario, agent, tmp_path / name) for name in ("one", "other"))
    assert [point.to_dict() for point in one.curve] == [point.to_dict() for point in other.curve]
    kept = [(tmp_path / name / "policy.npz").read_bytes() for name in ("one", "other")]
    assert kept[0] == kept[1]
    again = Validator(scenario, 4)(make_controller(str(tmp_path / "one"), scenario))
    assert again.reward == pytest.approx(one.best.reward, abs=1e-12)


def test_another_seed_gives_another_policy(scenario: Scenario, run: TrainResult, tmp_path: Path) -> None:
    train(scenario, "ppo", tmp_path / "r", seed=1, progress=False, parameters=small("ppo"), validation_episodes=2)
    assert (tmp_path / "r" / "policy.npz").read_bytes() != (run.folder / "policy.npz").read_bytes()


def test_what_cannot_be_trained_or_resumed(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ppo'"):
        train(scenario, "pppo", tmp_path / "x", progress=False)
    with pytest.raises(ConfigError, match="to resume"):
        train(scenario, "ppo", tmp_path / "x", progress=False, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ConfigError, match="no run"):
        train(scenario, "ppo", tmp_path / "mine", progress=False)


def test_without_sb3_contrib_the_error_says_what_to_install(scenario: Scenario) -> None:
    code = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from adaptsplit.agents import sb3; from adaptsplit.agents.hyperparameters import load_parameters\n"
        "try: sb3.make_model(load_parameters('qr-dqn'), None, 0)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(MissingExtraError.__name__)
    assert "sb3-contrib" in done.stdout


# Hyperparameters


def test_hyperparameters_are_strict(tmp_path: Path) -> None:
    bad = tmp_path / "h.yaml"
    bad.write_text("ppo: {gama: 0.9}\na2c: 3\n")
    with pytest.raises(ConfigError, match="did you mean 'gamma'"):
        load_parameters("ppo", bad)
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_parameters("a2c", bad)
    with pytest.raises(UnknownNameError, match="section"):
        load_parameters("dqn", bad)


def test_settings_are_typed_by_the_record() -> None:
    shipped = load_parameters("ppo")
    settings = ["gamma=0.5", "net_arch=[8, 4]", "learning_rate={linear: [1e-3, 0]}", "clip_range=0.1", "steps=5"]
    changed = override(shipped, settings)
    assert changed.model_dump() == shipped.model_dump() | {
        "gamma": 0.5,
        "net_arch": (8, 4),
        "learning_rate": {"linear": (0.001, 0.0)},
        "clip_range": 0.1,
        "steps": 5,
    }
    assert override(shipped, []) is shipped


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("gama=0.9", "did you mean 'gamma'"),
        ("gamma=2", "less than or equal to 1"),
        ("gamma", "expected KEY=VALUE"),
        ("net_arch=[1", "not YAML"),
        ("steps=__import__('os')", "valid integer"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        override(load_parameters("ppo"), [setting])


def test_schedules_go_in_a_straight_line() -> None:
    rate = schedule(Linear(linear=(1.0, 0.2)))
    assert callable(rate)
    assert [rate(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([1.0, 0.6, 0.2])
    assert schedule(0.3) == 0.3


def test_the_command_lists_every_agent() -> None:
    text = cli_train.train.__doc__ or ""
    assert all(line in text for line in agents_help().splitlines())
    assert len(agents_help().splitlines()) == len(AGENTS)


# Collapse


def point(steps: int, share: float, entropy: float) -> ValidationPoint:
    return ValidationPoint(steps, 0.9, 0.9, 0.0, "stem/1/0.8", share, 3, entropy)


def test_a_collapse_is_named_once_after_the_warm_up_and_so_is_its_end() -> None:
    watch = CollapseWatch(1000, warm_up=0.3)
    assert watch(point(200, 1.0, 0.0)) is None
    assert not watch.collapsed
    first = watch(point(400, 0.96, 0.3))
    assert first is not None
    assert all(word in first for word in ("collapsed", "400 frames", "stem/1/0.8", "96%", "ent_coef"))
    assert watch(point(500, 0.99, 0.05)) is None
    assert watch(point(600, 0.9, 0.5)) is None, "below the bound, not yet recovered"
    assert "recovered" in (watch(point(700, 0.5, 1.0)) or "")
    again = watch(point(800, 0.7, 0.05))
    assert again is not None, "a low entropy alone is a collapse"
    assert "again at 800" in again
    assert CollapseWatch(1000, [first])(point(900, 0.99, 0.05)) is None, "a resumed run says nothing twice"


def test_a_policy_that_cannot_vary_is_warned_of_in_run_log_and_result(scenario: Scenario, tmp_path: Path) -> None:
    """An entropy price below zero is not allowed, but a net whose outputs ignore the inputs collapses for sure."""

    def constant(model: Any, parameters: Any) -> PolicyNet:
        table = len(scenario.space.table)
        layer = np.zeros((obs.SIZE, table), np.float32), np.eye(table, dtype=np.float32)[3]
        return PolicyNet((layer,), "tanh", "flat")

    result = quick(scenario, "ppo", tmp_path / "r", Hooks(export=constant), actions="flat")
    assert len(result.warnings) == 1
    assert result.curve[-1].top in result.warnings[0]
    assert json.loads((tmp_path / "r" / "run.json").read_text())["warnings"] == list(result.warnings)
    lines = [json.loads(line) for line in (tmp_path / "r" / "training.jsonl").read_text().splitlines()]
    assert [line["warning"] for line in lines if "warning" in line] == list(result.warnings)


# Hooks and TensorBoard


def test_hooks_take_the_place_of_environment_and_validation(scenario: Scenario, tmp_path: Path) -> None:
    made, seen, calls = [], [], []

    def env(given: Scenario, parameters: Parameters, seed: int) -> SplitVecEnv:
        made.append((given.name, parameters.envs, seed))
        return SplitVecEnv(given, parameters.envs, seed=seed, actions="multi")

    def validate(controller: Any, steps: int) -> ValidationPoint:
        seen.append(type(controller).__name__)
        return point(steps, 0.5, 1.0)

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            calls.append(self.num_timesteps)
            return True

    result = quick(scenario, "ppo", tmp_path / "r", Hooks(env=env, validate=validate, callbacks=(Count(),)))
    assert made == [(scenario.name, 16, 0)]
    assert set(seen) == {PolicyController.__name__}
    assert len(calls) == result.steps // 16
    assert {p.top for p in result.curve} == {"stem/1/0.8"}


def test_tensorboard_holds_our_scalars(scenario: Scenario, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = train(
        scenario,
        "a2c",
        tmp_path / "r",
        progress=False,
        parameters=small("a2c"),
        validations=3,
        validation_episodes=4,
        tensorboard=tmp_path / "r" / "tensorboard",
    )
    events = reader.EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    events.Reload()
    wanted = {f"validation/{n}" for n in ("reward", "quality", "miss_ratio", "distinct", "entropy", "top_share")}
    assert wanted | {"validation/seconds"} <= set(events.Tags()["scalars"])
    written = [(event.step, event.value) for event in events.Scalars("validation/reward")]
    assert [step for step, _ in written] == [p.steps for p in result.curve]
    assert [value for _, value in written] == pytest.approx([p.reward for p in result.curve], rel=1e-6)
