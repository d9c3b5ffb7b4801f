"""The environments: Gymnasium's and SB3's checkers, single equals row of batch, no leak from the future.

Every test runs on the plain ``flight-lte`` and on ``everything``: all that a scenario can switch on, at once.
"""

from __future__ import annotations

import dataclasses
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
from adaptsplit.envs.layout import DONE, HEAD_ACK, SLOT_USED, TAIL, THROTTLE, TRACKER
from adaptsplit.envs.link import finish
from adaptsplit.envs.link_table import build_table
from adaptsplit.envs.packed import pack
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.links import LinkClock
from adaptsplit.outcome import Outcomes, Path
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]


def _everything() -> dict[str, Any]:
    """Every option at once. The air is 45 degC: at 40 a Pi 4B settles below its soft limit and never throttles."""

    def links(first: int) -> list[dict[str, Any]]:
        far = {"environment": "UMa", "bandwidth_hz": 10e6, "cell_share": 0.03, "antenna_gain_db": -15}
        far["flight"] = {"height_m": 40, "distance_m": [1500, 3500], "random_start": True}
        make = {"kind": "generate", "generator": "air-to-ground", "duration_s": 120, "family": "air"}
        return [{**make, "seeds": [f"{first}-{first + 5}"], "parameters": far}]

    levels = [{"utilisation": 0.2, "mean_s": 3.0}, {"utilisation": 0.85, "mean_s": 2.0}]
    return {
        "name": "everything",
        "description": "Every option at once.",
        "profile": "flight",
        "frames": "flight",
        "fps": 10,
        "deadline_s": 0.25,
        "episode_s": 30,
        "patience": [0.5, 1.0],
        "skip": True,
        "device": {
            "compute": "raspberry-pi-4b",
            "radio": "5g",
            "flight_w": 22,
            "battery_wh": 0.6,  # some episodes end on an empty battery
            "load": {"idle_load": 0.1, "busy_load": 0.6, "mean_idle_s": 4, "mean_busy_s": 4},
            "thermal": True,
            "ambient_c": 45,
            "dvfs": True,
        },
        "server": {"utilisation": levels, "job_s": 0.01, "batch_window_s": 0.02, "batch_marginal": 0.5},
        "priors": {"goodput_bps": 1.5e6, "rtt_s": 0.07, "server_s": 0.01},
        "objective": {
            "quality": 1.0,
            "energy_per_j": 0.3,
            "bytes_per_kib": 0.002,
            "switch": 0.01,
            "miss": 0.1,
            "latency_per_s": 0.2,
        },
        "links": {"train": links(1), "validation": links(101), "test": links(201)},
    }


@pytest.fixture(scope="module", params=["flight-lte", "everything"])
def scenario(request: pytest.FixtureRequest) -> Scenario:
    return load_scenario(_everything() if request.param == "everything" else request.param)


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
    total, throttled = np.zeros(n), 0.0
    while not simulator.done.all():
        seen, rewards, _ = simulator.step(_random_decisions(rng, scenario.space.shape, n))
        throttled = max(throttled, float(simulator.states[:, THROTTLE].max()))
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
    possible = set(Path) if scenario.file.skip else set(Path) - {Path.STALE}
    assert {Path(int(path)) for path in np.unique(log["path"])} == possible
    assert (throttled > 0) == scenario.file.device.thermal
    assert simulator.terminated.any() == (scenario.name == "everything")


def test_threads_do_not_change_results(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    rng, n = np.random.default_rng(3), 4096
    one, two = Simulator(world, n, threads=1), Simulator(world, n, threads=2)
    for simulator in (one, two):
        simulator.reset(episode_seeds(6, n, "train"))
    for _ in range(60):
        taken = _random_decisions(rng, scenario.space.shape, n)
        for single, shared in zip(one.step(taken), two.step(taken), strict=True):
            assert np.array_equal(single, shared)
    assert one.states.tobytes() == two.states.tobytes()
    assert one.logs.tobytes() == two.logs.tobytes()


def test_any_point_of_the_grid_acts_as_its_representative(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    """Row i walks through the whole grid from point i on: as named in one simulator, canonical in the other."""
    space = scenario.space
    every = np.stack([axis.ravel() for axis in np.indices(space.shape)], axis=1)
    n = len(every)
    assert len(space.table) < n
    named, same = Simulator(world, n, keep_all=True), Simulator(world, n, keep_all=True)
    for simulator in (named, same):
        simulator.reset(episode_seeds(2, n, "train"))
    for k in range(40):
        points = (np.arange(n) + 7 * k) % n
        named.step(every[points])
        same.step(space.canonical(every[points]))
    assert named.states.tobytes() == same.states.tobytes()
    assert named.logs.tobytes() == same.logs.tobytes()
    decided = named.logs[named.logs["branch"] >= 0]
    assert (decided["rate"] < space.rates_per_branch[decided["branch"]]).all()


def test_decisions_outside_the_space_are_refused(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    simulator = Simulator(world, 2)
    simulator.reset(episode_seeds(0, 2, "train"))
    before = simulator.states.copy()
    for wrong in ([[0, 0, 0], list(scenario.space.shape)], [[0, 0, -1], [0, 0, 0]], [[0, 0, 0]]):
        with pytest.raises(IndexError, match=r"expected \(2, 3\) indices below"):
            simulator.step(np.array(wrong))
    assert np.array_equal(simulator.states, before, equal_nan=True)


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
    traces[link] = dataclasses.replace(trace, capacity_bps=capacity, rtt_s=rtt)
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
            observation.observe(s[TRACKER:], float(simulator.now[i]), wait, s[SLOT_USED], sharp, moved, raw)
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
