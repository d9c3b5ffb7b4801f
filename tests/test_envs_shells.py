"""The environments over the simulator: Gymnasium's and SB3's checkers, restarts, and what learners are told when.

Every test runs on the plain ``flight-lte`` and on ``everything``: all that a scenario can switch on, at once.
"""

from __future__ import annotations

import warnings
from pathlib import Path as FilePath
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_sb3

import adaptsplit.envs
from adaptsplit import observation
from adaptsplit.controller import Stateless
from adaptsplit.envs import build_world, episode_seeds, run_episodes
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.outcome import Outcomes
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]
EVERYTHING = FilePath(__file__).with_name("everything.yaml")


@pytest.fixture(scope="module", params=["flight-lte", EVERYTHING], ids=["flight-lte", "everything"])
def scenario(request: pytest.FixtureRequest) -> Scenario:
    return load_scenario(request.param)


@pytest.fixture(scope="module")
def world(scenario: Scenario) -> adaptsplit.envs.World:
    return build_world(scenario, "train")


def _random_decisions(rng: np.random.Generator, shape: tuple[int, ...], n: int) -> Array:
    return np.stack([rng.integers(0, size, n) for size in shape], axis=1)


@pytest.mark.parametrize("actions", ["multi", "flat"])
def test_checkers_pass(scenario: Scenario, actions: str) -> None:
    env = gym.make("adaptsplit/Split-v0", scenario=scenario, split="train", actions=actions)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)
    check_sb3(env.unwrapped, warn=True)


def test_vector_env_follows_the_single_one(scenario: Scenario) -> None:
    vec = gym.make_vec("adaptsplit/Split-v0", 3, vectorization_mode="vector_entry_point", scenario=scenario)
    env = gym.make("adaptsplit/Split-v0", scenario=scenario)
    first, info = vec.reset(seed=5)
    alone, _ = env.reset(options={"episode_seed": int(info["episode_seed"][1])})
    assert np.array_equal(first[1], alone)
    rng = np.random.default_rng(1)
    for _ in range(50):
        taken = _random_decisions(rng, scenario.space.shape, 3)
        many, rewards, _, _, _ = vec.step(taken)
        one, reward, _, _, _ = env.step(taken[1])
        assert np.array_equal(many[1], one)
        assert rewards[1] == reward


def test_vector_env_restarts_in_the_same_step(scenario: Scenario) -> None:
    vec = gym.make_vec("adaptsplit/Split-v0", 2, vectorization_mode="vector_entry_point", scenario=scenario)
    vec.reset(seed=0)
    for _ in range(scenario.frames_per_episode + 1):
        _, _, _, truncated, infos = vec.step(np.zeros((2, 3), dtype=np.int64))
        if truncated.any():
            assert infos["final_obs"][0] is not None
            break
    else:
        pytest.fail("no episode ended")
    assert not vec.unwrapped.simulator.done.any()  # type: ignore[attr-defined]


def test_sb3_shell_reports_episodes(scenario: Scenario) -> None:
    env = SplitVecEnv(scenario, 4, seed=3)
    env.reset()
    total = np.zeros(4)
    for _ in range(scenario.frames_per_episode + 1):
        _, rewards, done, infos = env.step(np.zeros(4, dtype=np.int64))
        total += rewards
        if done.any():
            break
    row = int(np.flatnonzero(done)[0])
    assert infos[row]["episode"]["r"] == pytest.approx(total[row], rel=1e-5)
    assert infos[row]["terminal_observation"].shape == (observation.SIZE,)


def test_terms_of_a_step_add_up_to_its_reward(scenario: Scenario) -> None:
    """Where exactly one frame was settled in the step, the named terms of its record are the step's reward."""
    env = gym.make("adaptsplit/Split-v0", scenario=scenario)
    env.reset(seed=4)
    env.action_space.seed(4)
    frame, compared, waiting = 0, 0, False
    for _ in range(200):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        if info["settled"] and not waiting and info["frame"] == frame + 1:
            assert sum(info["terms"].values()) == pytest.approx(reward, abs=1e-6)
            compared += 1
        frame, waiting = info["frame"], not info["settled"]
        if terminated or truncated:
            break
    assert compared > 50


class _Recorder(Stateless):
    """Checks at every call that what it is taught is known by now, and taught once."""

    name, learns = "recorder", True

    def __init__(self, decision: Array) -> None:
        self.decision, self.now, self.seen = decision, np.zeros(0), set[tuple[int, int]]()
        self.known_late = 0

    def act(self, seen: Array, state: Any) -> tuple[Array, Any]:
        return np.tile(self.decision, (len(seen), 1)), state

    def learn(self, outcomes: Outcomes, state: Any) -> Any:
        for record in outcomes:
            key = int(record["env"]), int(record["frame"])
            assert key not in self.seen
            self.seen.add(key)
            self.known_late += record["known_s"] > record["arrived_s"] + 0.2
        return state


def test_learn_never_sees_an_outcome_before_it_would_have_arrived(
    scenario: Scenario, world: adaptsplit.envs.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptsplit.envs import runner

    original = runner.Delivery.known

    def checked(self: runner.Delivery) -> Array:
        known = original(self)
        rows = np.nonzero(known)[0]
        assert (self._simulator.logs["known_s"][known] <= self._simulator.now[rows]).all()
        return known

    monkeypatch.setattr(runner.Delivery, "known", checked)
    recorder = _Recorder(np.array(scenario.space.table[-2]))
    outcomes = run_episodes(world, recorder, episode_seeds(0, 8, "train"))
    assert len(recorder.seen) > 0.9 * outcomes.size
    assert recorder.known_late > 0


def test_expected_rewards_keep_the_mean_and_lose_the_labels(scenario: Scenario) -> None:
    plain, expected = (SplitVecEnv(scenario, 2, expected=on).simulator.world for on in (False, True))
    for name in ("exit_quality", "tail_quality"):
        told, hidden = getattr(plain.outcomes, name)[:-1], getattr(expected.outcomes, name)[:-1]
        np.testing.assert_allclose(hidden.mean(axis=0), told.mean(axis=0), atol=4e-3)  # clipped to 0..1
        assert hidden.var() < 0.8 * told.var()
    np.testing.assert_array_equal(plain.outcomes.payload, expected.outcomes.payload)
    assert plain.answers.labelled
    assert not expected.answers.labelled


def test_a_label_free_scenario_has_nothing_to_expect(scenario: Scenario) -> None:
    free = load_scenario({**scenario.file.model_dump(), "label_free": True})
    world = SplitVecEnv(free, 2, expected=True).simulator.world
    np.testing.assert_array_equal(world.outcomes.exit_quality, world.outcomes.exit_confidence)
