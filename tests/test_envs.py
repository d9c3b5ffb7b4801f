"""The simulator: single equals row of batch, one outcome per frame, no leak from the future, common random numbers.

Every test runs on the plain ``flight-lte`` and on ``everything``: all that a scenario can switch on, at once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import adaptsplit.envs
from adaptsplit import estimators as est
from adaptsplit import observation
from adaptsplit.agents.static import StaticController
from adaptsplit.decision import Decision
from adaptsplit.envs import Simulator, build_world, episode_seeds, run_episodes
from adaptsplit.envs.layout import DONE, HEAD_ACK, SLOT_USED, TAIL, THROTTLE, TRACKER
from adaptsplit.envs.link import finish
from adaptsplit.envs.link_table import build_table
from adaptsplit.envs.packed import pack
from adaptsplit.links import LinkClock
from adaptsplit.outcome import Path
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


def test_estimators_are_the_same_compiled_and_plain(scenario: Scenario, world: adaptsplit.envs.World) -> None:
    """The observation that compiled code made equals the one that plain Python makes of the same tracker, the one after
    the last frame included."""
    rng, n = np.random.default_rng(5), 16
    simulator = Simulator(world, n)
    simulator.reset(episode_seeds(9, n, "train"))
    raw, out = np.zeros(observation.SIZE), np.zeros(observation.SIZE, dtype=np.float32)
    compared = 0
    while not simulator.done.all():
        running = ~simulator.done
        simulator.step(_random_decisions(rng, scenario.space.shape, n))
        for i in np.flatnonzero(running & (simulator.done | (rng.random(n) < 0.3))):
            s, seen = simulator.states[i], simulator.observations[i]
            wait = float(observation.physical(seen, "frame_wait"))
            sharp, moved = (float(observation.physical(seen, name)) for name in ("sharpness", "difference"))
            observation.observe(s[TRACKER:], float(simulator.now[i]), wait, s[SLOT_USED], sharp, moved, raw)
            observation.normalise(raw, out)
            np.testing.assert_allclose(out, seen, atol=1e-6)
            compared += 1
    assert compared > 1000


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
