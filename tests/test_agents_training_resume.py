"""Runs that are cut off: killed, interrupted, resumed; what is on disk is whole at every moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptsplit.agents import load_policy
from adaptsplit.agents.hyperparameters import Parameters, actions_of, load_parameters
from adaptsplit.agents.run_folder import Run, read_run
from adaptsplit.agents.sb3 import load_checkpoint, make_model, save_checkpoint
from adaptsplit.agents.sb3_build import RowwiseDQN
from adaptsplit.agents.training import Hooks, TrainResult, train
from adaptsplit.agents.validation import ValidationPoint
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.scenario import Scenario, load_scenario

SCRIPT = """
import sys
from adaptsplit.agents.hyperparameters import load_parameters, override
from adaptsplit.agents.training import train
from adaptsplit.scenario import load_scenario
parameters = override(load_parameters("ppo"), ["envs=64", "n_steps=16", "batch_size=512", "n_epochs=2"])
train(load_scenario("flight-lte"), "ppo", sys.argv[1], 2_000_000, progress=False, parameters=parameters,
      validations=1000, validation_episodes=4)
"""


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


def small(agent: str) -> Parameters:
    parameters = load_parameters(agent)
    cut: dict[str, Any] = {"steps": 3000, "envs": 16, "net_arch": [16]}
    for key, value in (("batch_size", 128), ("learning_starts", 500), ("buffer_size", 8000), ("lstm_hidden_size", 8)):
        if key in type(parameters).model_fields:
            cut[key] = value
    return type(parameters).model_validate(parameters.model_dump() | cut)


def quick(scenario: Scenario, agent: str, out: Path, steps: int, **more: Any) -> TrainResult:
    given = {"parameters": small(agent)} | more
    return train(scenario, agent, out, steps, progress=False, validations=3, validation_episodes=4, **given)


@pytest.mark.parametrize("agent", ["dqn", "recurrent-ppo"])
def test_resume_goes_on_from_the_checkpoint(agent: str, scenario: Scenario, tmp_path: Path) -> None:
    first = quick(scenario, agent, tmp_path / "r", 3000, seed=4)
    longer = quick(scenario, agent, tmp_path / "r", 6000, resume=True, parameters=None)
    assert longer.steps >= 6000
    assert longer.curve[: len(first.curve)] == first.curve
    assert longer.curve[len(first.curve)].steps > first.steps
    value = read_run(tmp_path / "r")
    assert value["seed"] == 4, "a resumed run keeps its seed"
    assert value["hyperparameters"] == small(agent).model_dump(mode="json") | {"steps": 6000}
    again = quick(scenario, agent, tmp_path / "r", 6000, resume=True)
    assert again.curve == longer.curve, "a complete run is left as it is"


def test_a_run_of_another_agent_is_not_resumed(scenario: Scenario, tmp_path: Path) -> None:
    quick(scenario, "a2c", tmp_path / "r", 400)
    with pytest.raises(ConfigError, match="a run of 'a2c'"):
        quick(scenario, "ppo", tmp_path / "r", 400, resume=True)


@pytest.mark.timeout(400)
def test_killed_runs_lose_at_most_one_interval(scenario: Scenario, tmp_path: Path) -> None:
    """kill -9 midway; everything on disk is whole, the run goes on and ends where seeds end."""
    folder = tmp_path / "r"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)])
    try:
        seen = _wait_for(folder, process, 3)
    finally:
        process.kill()
        process.wait()
    value = read_run(folder)
    assert not value["complete"]
    assert len(value["validation"]) >= seen
    interval = 2_000 + 64
    logged = [json.loads(line)["steps"] for line in (folder / "training.jsonl").read_text().splitlines()[:-1]]
    assert logged[-1] - value["steps"] <= interval
    load_policy(folder / "policy.npz")
    steps = value["steps"] + 15_000
    resumed = train(scenario, "ppo", folder, steps, progress=False, resume=True, validations=4, validation_episodes=8)
    assert resumed.steps >= steps
    assert [p.to_dict() for p in resumed.curve[: len(value["validation"])]] == value["validation"]
    assert read_run(folder)["complete"]
    whole = [_seed(scenario, tmp_path / str(seed), seed, steps).best.reward for seed in range(2)]
    spread = max(0.01, 3 * float(np.ptp(whole)))
    assert resumed.curve[-1].reward == pytest.approx(np.mean(whole), abs=spread)


def _wait_for(folder: Path, process: subprocess.Popen[bytes], validations: int) -> int:
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        if (folder / "run.json").is_file() and len(read_run(folder)["validation"]) >= validations:
            return validations
        time.sleep(0.02)
    raise AssertionError("the training process made no validations")


def _seed(scenario: Scenario, folder: Path, seed: int, steps: int) -> TrainResult:
    changes = {"envs": 64, "n_steps": 16, "batch_size": 512, "n_epochs": 2}
    parameters = type(load_parameters("ppo")).model_validate(load_parameters("ppo").model_dump() | changes)
    return train(
        scenario,
        "ppo",
        folder,
        steps,
        seed=seed,
        progress=False,
        parameters=parameters,
        validations=4,
        validation_episodes=8,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_everything_and_says_how_to_go_on(
    number: signal.Signals, scenario: Scenario, tmp_path: Path
) -> None:
    before = signal.getsignal(number)

    def validate(controller: Any, steps: int) -> ValidationPoint:
        os.kill(os.getpid(), number)
        return ValidationPoint(steps, 0.5, 0.5, 0.0, "x/0/0", 0.5, 2, 1.0)

    with pytest.raises(KeyboardInterrupt, match=rf"{number.name}: stopped at \d+ of 3000 frames.*--resume"):
        quick(scenario, "a2c", tmp_path / "r", 3000, hooks=Hooks(validate=validate))
    assert signal.getsignal(number) is before
    value = read_run(tmp_path / "r")
    assert (len(value["validation"]), value["complete"]) == (1, False)
    assert 1000 < value["steps"] < 1300
    resumed = quick(scenario, "a2c", tmp_path / "r", 3000, resume=True)
    assert resumed.steps >= 3000
    assert resumed.curve[0].top == "x/0/0"


def test_outside_the_main_thread_training_takes_no_signals(scenario: Scenario, tmp_path: Path) -> None:
    done: list[TrainResult] = []
    thread = threading.Thread(target=lambda: done.append(quick(scenario, "a2c", tmp_path / "r", 400)))
    thread.start()
    thread.join()
    assert done[0].steps >= 400


# The folder


def point(steps: int, reward: float) -> ValidationPoint:
    return ValidationPoint(steps, reward, 0.9, 0.0, "x/0/0", 0.5, 2, 1.0)


def new_run(scenario: Scenario, folder: Path) -> Run:
    return Run(scenario, "mine", small("ppo"), folder, 0)


def saver(text: str) -> Any:
    return lambda path: path.write_text(text)


def test_files_change_together_or_not_at_all(scenario: Scenario, tmp_path: Path) -> None:
    run = new_run(scenario, tmp_path)
    run.prepare()
    run.add(point(10, 0.5), saver("first"), 1.0, 0.4)
    run.stage("checkpoint.pt", b"one")
    run.write(10, 1.0, {"note": "kept"})
    run.add(point(20, 0.7), saver("second"), 2.0, 0.4)
    run.stage("checkpoint.pt", b"two")
    assert (tmp_path / "policy.npz").read_text() == "first", "not before run.json says so"
    after = new_run(scenario, tmp_path)
    assert after.restore()["note"] == "kept"
    assert [p.steps for p in after.curve] == [10]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        ["checkpoint.pt", "policy.npz", "run.json", "training.jsonl"]
    )
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 1


def test_what_was_committed_is_finished_by_the_next_process(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after run.json took its place, before the other files took theirs."""
    run = new_run(scenario, tmp_path)
    run.prepare()
    run.add(point(10, 0.5), saver("first"), 1.0, 0.4)
    run.write(10, 1.0)
    run.add(point(20, 0.7), saver("second"), 2.0, 0.4)
    real = Path.replace

    def dies(self: Path, target: Path) -> Path:
        if ".next" in self.name:
            raise OSError("power cut")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(OSError, match="power cut"):
            run.write(20, 2.0)
    assert (tmp_path / "policy.npz").read_text() == "first"
    after = new_run(scenario, tmp_path)
    after.restore()
    assert [p.steps for p in after.curve] == [10, 20]
    assert (tmp_path / "policy.npz").read_text() == "second"


def test_only_the_best_policy_is_kept(scenario: Scenario, tmp_path: Path) -> None:
    run = new_run(scenario, tmp_path)
    run.prepare()
    for steps, reward in ((10, 0.5), (20, 0.7), (30, 0.6)):
        run.add(point(steps, reward), saver(str(steps)), 1.0, 0.4)
        run.write(steps, 1.0)
    assert (tmp_path / "policy.npz").read_text() == "20"
    assert run.best.steps == read_run(tmp_path)["best"]["steps"] == 20


def test_damaged_run_files_are_refused(scenario: Scenario, tmp_path: Path) -> None:
    run = new_run(scenario, tmp_path)
    run.prepare()
    run.write(0, 0.0)
    good = json.loads((tmp_path / "run.json").read_text())
    for text in ("", "[]", "{}", json.dumps(good | {"validation": [{"steps": 1}]}), json.dumps(good | {"schema": "x"})):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(DataError, match="not a run of ours"):
            new_run(scenario, tmp_path).restore()


def test_the_folder_needs_no_torch() -> None:
    code = "import sys, adaptsplit.agents.run_folder; print({'torch', 'stable_baselines3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# The checkpoint


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_a_checkpoint_restores_weights_and_random_numbers_and_only_its_own_bytes(
    agent: str, scenario: Scenario, tmp_path: Path
) -> None:
    parameters = small(agent)
    models = []
    for seed in (0, 5):
        env = SplitVecEnv(scenario, parameters.envs, seed=0, actions=actions_of(parameters))
        models.append(make_model(parameters, env, seed))
    saved, fresh = models
    saved.learn(1000)
    sha256 = save_checkpoint(saved, tmp_path / "c.pt")
    wanted = torch.rand(3), np.random.random(3), saved.action_space.sample()
    episodes = saved.get_env().get_attr("_episodes")[0].count.copy()  # type: ignore[union-attr]
    load_checkpoint(fresh, tmp_path / "c.pt", sha256)
    assert fresh.num_timesteps == saved.num_timesteps
    for one, other in zip(saved.policy.parameters(), fresh.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.rand(3), wanted[0])
    assert np.array_equal(np.random.random(3), wanted[1])
    assert np.array_equal(fresh.action_space.sample(), wanted[2])
    assert np.array_equal(fresh.get_env().get_attr("_episodes")[0].count, episodes)  # type: ignore[union-attr]
    data = bytearray((tmp_path / "c.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "c.pt").write_bytes(bytes(data))
    with pytest.raises(DataError, match="SHA-256"):
        load_checkpoint(fresh, tmp_path / "c.pt", sha256)


def test_a_lost_replay_memory_is_filled_by_the_policy_before_learning_goes_on(
    scenario: Scenario, tmp_path: Path
) -> None:
    parameters = small("dqn")
    saved, fresh = (make_model(parameters, SplitVecEnv(scenario, 16, seed=0), seed) for seed in (0, 5))
    saved.learn(1000)
    load_checkpoint(fresh, tmp_path / "c.pt", save_checkpoint(saved, tmp_path / "c.pt"))
    assert isinstance(fresh, RowwiseDQN)
    before = [p.clone() for p in fresh.q_net.parameters()]
    updates, greedy = fresh._n_updates, []
    predict = fresh.predict
    fresh.predict = lambda *a, **k: greedy.append(1) or predict(*a, **k)  # type: ignore[method-assign, func-returns-value]
    fresh.learn(480, reset_num_timesteps=False)
    assert len(greedy) == 480 // 16, "the policy acts, not chance"
    assert fresh._n_updates == updates
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.q_net.parameters(), strict=True))
    fresh.learn(160, reset_num_timesteps=False)
    assert fresh._n_updates > updates
