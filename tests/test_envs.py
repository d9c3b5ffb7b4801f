"""The environments: Gymnasium's and SB3's checkers, single equals row of batch, no leak from the future."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_sb3

import adaptsplit.envs
from adaptsplit import estimators as est
from adaptsplit import observation
from adaptsplit.agents.static import StaticController
from adaptsplit.controller import Stateless
from adaptsplit.decision import Decision
from adaptsplit.envs import Simulator, build_world, episode_seeds, run_episodes
from adaptsplit.envs.layout import DONE, HEAD_ACK, TAIL, TRACKER
from adaptsplit.envs.link import finish
from adaptsplit.envs.link_table import build_table
from adaptsplit.envs.packed import pack
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.links import LinkClock
from adaptsplit.outcome import Outcomes, Path
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


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


def test_single_equals_row_of_batch(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    rng, n = np.random.default_rng(0), 37
    seeds = episode_seeds(7, n, "train")
    batch, single = Simulator(world, n), Simulator(world, 1)
    assert np.array_equal(batch.reset(seeds)[20], single.reset(seeds[20:21])[0])
    while not single.done[0]:
        taken = _random_decisions(rng, scenario.space.shape, n)
        many, rewards, _ = batch.step(taken)
        one, reward, _ = single.step(taken[20:21])
        assert np.array_equal(many[20], one[0])
        assert rewards[20] == reward[0]


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


def test_every_frame_has_one_outcome_and_rewards_add_up(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    rng, n = np.random.default_rng(2), 128
    simulator = Simulator(world, n, keep_all=True)
    simulator.reset(episode_seeds(1, n, "train"))
    total = np.zeros(n)
    while not simulator.done.all():
        seen, rewards, _ = simulator.step(_random_decisions(rng, scenario.space.shape, n))
        total += rewards
        assert np.isfinite(seen).all()
        assert seen.min() >= 0
        assert seen.max() <= 1
        running = simulator.states[:, DONE] == 0
        unacknowledged = simulator.states[running, TAIL] - simulator.states[running, HEAD_ACK]
        assert unacknowledged.max(initial=0) <= scenario.window
    log = simulator.outcomes()
    assert np.array_equal(log["frame"], np.broadcast_to(np.arange(log.shape[1]), log.shape))
    assert scenario.objective.reward(log).sum(axis=1) == pytest.approx(total, abs=1e-3)
    assert log["compute_j"].min() >= 0
    assert log["radio_j"].min() >= 0
    answered = log["path"] != Path.MISS
    assert np.nanmax(log["answer_latency_s"][answered]) <= scenario.deadline_s + 1e-6
    assert np.isnan(log["answer_latency_s"][~answered]).all()
    assert (log["quality"][~answered] == 0).all()
    for path in Path:
        assert (log["path"] == path).any(), f"random decisions never led to {path.name}"


def test_observation_does_not_depend_on_the_future(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    """Alter capacity and round trips after a moment: nothing that is seen up to then changes, and later things do."""
    seeds, moment = episode_seeds(3, 1, "train"), 20.0
    simulator = Simulator(world, 1)
    simulator.reset(seeds)
    link, offset = int(simulator.states[0, 0]), float(simulator.states[0, 1])
    traces = list(scenario.links("train"))
    trace = traces[link]
    at = (np.arange(len(trace.capacity_bps)) * trace.dt_s - offset) % (len(trace.capacity_bps) * trace.dt_s)
    later = (at > moment) & (at < scenario.episode_s + 10)
    capacity, rtt = trace.capacity_bps.copy(), trace.rtt_s.copy()
    capacity[later], rtt[later] = capacity[later] * 0.05 + 10.0, rtt[later] * 3
    traces[link] = type(trace)(trace.name, trace.family, trace.dt_s, capacity, rtt, trace.loss, None, ("altered",))
    altered = Simulator(world._replace(links=build_table(traces)), 1)
    altered.reset(seeds)
    rng = np.random.default_rng(0)
    differs = False
    while not simulator.done[0]:
        if simulator.now[0] <= moment:
            assert np.array_equal(simulator.observations[0], altered.observations[0])
        taken = _random_decisions(rng, scenario.space.shape, 1)
        simulator.step(taken)
        altered.step(taken)
        differs |= not np.array_equal(simulator.observations[0], altered.observations[0])
    assert differs


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


def test_estimators_are_the_same_compiled_and_plain(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    """The observation that compiled code made equals the one that plain Python makes of the same tracker."""
    rng = np.random.default_rng(5)
    simulator = Simulator(world, 16)
    simulator.reset(episode_seeds(9, 16, "train"))
    raw, out = np.zeros(observation.SIZE), np.zeros(observation.SIZE, dtype=np.float32)
    for _ in range(100):
        simulator.step(_random_decisions(rng, scenario.space.shape, 16))
        for i in range(16):
            s, seen = simulator.states[i], simulator.observations[i]
            wait = float(observation.physical(seen, "frame_wait"))
            sharp, moved = (float(observation.physical(seen, name)) for name in ("sharpness", "difference"))
            observation.observe(s[TRACKER:], float(simulator.now[i]), wait, s[23], sharp, moved, raw)
            observation.normalise(raw, out)
            np.testing.assert_allclose(out, seen, atol=1e-6)


def test_compiled_link_is_the_clocks_twin(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    traces, rng = scenario.links("train"), np.random.default_rng(0)
    table = pack(world)
    for _ in range(2000):
        i, offset = int(rng.integers(5)), float(rng.uniform(0, 300))
        start, amount = float(rng.uniform(0, 200)), float(10 ** rng.uniform(2, 7.5))
        expected = LinkClock(traces[i], offset).finish(start, amount)
        assert finish(table, i, start + offset, amount, np.inf) - offset == pytest.approx(expected, abs=1e-6)


def test_common_random_numbers(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    """The same decision gives the same record whatever was decided before (an idle link, exits only)."""
    always = StaticController(scenario.space, Decision(*(int(i) for i in scenario.space.table[0])))
    seeds = episode_seeds(4, 6, "train")
    together, alone = run_episodes(world, always, seeds), run_episodes(world, always, seeds[3:4])
    together["env"] = alone["env"] = 0
    assert together[3].tobytes() == alone[0].tobytes()
    again = run_episodes(world, always, seeds, batch=2)
    again["env"] = 0
    assert again.tobytes() == together.tobytes()


def test_goodput_estimate_is_the_capacity_of_a_constant_link() -> None:
    x = np.zeros(est.TRACKER_SIZE)
    est.start(x, 1e6, 0.05, 0.01)
    est.on_heartbeat(x, 0.05, 0.0)
    now, rate, rtt, size = 1.0, 2e6, 0.05, 5000.0
    for _ in range(30):
        first, second = now, now + 0.002
        est.on_sent(x, first, size)
        est.on_sent(x, second, size)
        served = first + 8 * size / rate
        est.on_ack(x, served + rtt, first, size, second)
        est.on_ack(x, served + 8 * size / rate + rtt, second, size, 0.0)
        now += 0.2
    assert x[est.GOODPUT] == pytest.approx(rate, rel=0.02)
    assert x[est.UNACKED_COUNT] == 0


def test_families_are_equally_likely_and_long_recordings_likelier() -> None:
    from adaptsplit.envs.link_table import probabilities
    from adaptsplit.links import LinkTrace

    def trace(family: str, samples: int) -> LinkTrace:
        ones = np.ones(samples)
        return LinkTrace(f"{family}-{samples}", family, 1.0, ones * 1e6, ones * 0.05, ones * 0.0)

    found = probabilities([trace("a", 30), trace("a", 10), trace("b", 500)])
    np.testing.assert_allclose(found, [0.375, 0.125, 0.5])
