"""The board, its radio and the server in the simulator, against a plain loop over the formulas that they state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit import observation
from adaptsplit.devices import radio_presets
from adaptsplit.devices.processes import active_power_factor, clock_after, speed, temperature_after, throttle_after
from adaptsplit.devices.server import backlog_at
from adaptsplit.envs import Simulator, World, build_world, episode_seeds
from adaptsplit.envs.layout import (
    BATTERY_J,
    CLOCK,
    LINK_OFFSET,
    LOAD_OFFSET,
    SERVER_OFFSET,
    TEMPERATURE_C,
    THROTTLE,
)
from adaptsplit.envs.link_table import build_table
from adaptsplit.links import LinkTrace
from adaptsplit.outcome import Outcomes, Path
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]

ENCODE_S, TAIL_S, WIRE_BYTES = 0.01, 0.01, 10_000.0  # 80 ms on the link of 1 Mbit/s
CAPACITY_BPS, RTT_S = 1e6, 0.04
EXIT, SENT = np.array([[0, 0, 0]]), np.array([[0, 0, 1]])


def scenario_of(server: dict[str, Any] | None = None, **device: Any) -> Scenario:
    """``flight-lte`` on a Pi 4B and a constant link, with what is named."""
    steady = {"kind": "generate", "generator": "constant", "duration_s": 60, "family": "steady"}
    steady["parameters"] = {"capacity_bps": CAPACITY_BPS, "rtt_s": RTT_S}
    document = load_scenario("flight-lte").file.model_dump(mode="json", exclude_none=True)
    document |= {"thresholds": [0.0, 1.01], "sender": "fifo", "server": server}
    document["device"] |= {"compute": "raspberry-pi-4b", "decision_s": 0.0, **device}
    document["links"] = {split: [{**steady, "seeds": [i]}] for i, split in enumerate(("train", "validation", "test"))}
    return load_scenario(document)


def timed(world: World, head_s: float) -> World:
    """The world with constant stage times and messages of 10 000 bytes."""
    s, o = world.stages, world.outcomes
    stages = s._replace(
        head=np.full_like(s.head, head_s),
        encode=np.full_like(s.encode, ENCODE_S),
        tail=np.full_like(s.tail, TAIL_S),
        signal=np.zeros_like(s.signal),
    )
    payload = np.full_like(o.payload, WIRE_BYTES - est.OVERHEAD_BYTES)
    return world._replace(stages=stages, outcomes=o._replace(payload=payload))


def fly(world: World, decision: Array, seed: int) -> tuple[Simulator, Outcomes]:
    """One episode of one decision."""
    simulator = Simulator(world, 1, keep_all=True)
    simulator.reset(episode_seeds(seed, 1, "train"))
    while not simulator.done[0]:
        simulator.step(decision)
    return simulator, simulator.outcomes()[0]


def background(world: World, offset: float, until_s: float) -> list[tuple[float, float, float]]:
    """Jobs of others as (time in the episode, work, number): the jumps of the repeated trace after ``offset``."""
    server = world.server
    work, jobs = np.diff(server.work_s), np.diff(server.jobs)
    found = []
    for step in np.flatnonzero(work > 0):
        time = (step + 1) * server.dt_s - offset
        period = len(work) * server.dt_s
        time += period * np.ceil(max(1e-12 - time, 0.0) / period)
        if time < until_s:
            found.append((float(time), float(work[step]), float(jobs[step])))
    return sorted(found)


def done_at(world: World, offset: float, arrivals: Array) -> Array:
    """When each of our jobs is done, by serving everybody's jobs in their order."""
    server, results = world.server, list[float]()
    others = background(world, offset, float(arrivals[-1]) + 1.0)
    free, before = backlog_at(server.backlog_s, server.dt_s, offset), -1.0
    for arrival in arrivals:
        window = server.batch_window_s
        release = arrival if window == 0 else (np.floor((arrival + offset) / window) + 1) * window - offset
        company = 0.0
        while others and others[0][0] <= release + 1e-9:
            time, work, count = others.pop(0)
            free = max(free, time) + work
            company = count if window > 0 and abs(time - release) < 1e-6 else 0.0
        company += 1.0 if window > 0 and release == before else 0.0
        free, before = max(free, release) + TAIL_S * (server.batch_marginal if company else 1.0), release
        results.append(free)
    return np.array(results)


@pytest.mark.parametrize("batch_window_s", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_server_waits_are_those_of_one_queue_of_all_jobs(batch_window_s: float, seed: int) -> None:
    """Our jobs reach the server every 100 ms; between them others' do, and all are served first come, first served.

    In windows of 20 ms ours meet others' jobs only, in windows of 300 ms each other too.
    """
    levels = [{"utilisation": 0.2, "mean_s": 2.0}, {"utilisation": 0.95, "mean_s": 2.0}]
    spec = {"utilisation": levels, "job_s": 0.02, "batch_window_s": batch_window_s, "batch_marginal": 0.5}
    scenario = scenario_of(spec)
    world = timed(build_world(scenario, "train"), 0.01)
    simulator, records = fly(world, SENT, seed)
    frames = np.arange(len(records)) / scenario.fps
    arrivals = frames + 0.01 + ENCODE_S + 8 * WIRE_BYTES / CAPACITY_BPS + RTT_S / 2
    expected = done_at(world, float(simulator.states[0, SERVER_OFFSET]), arrivals)
    found = records["arrived_s"] + records["remote_latency_s"] - RTT_S / 2
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.max(expected - arrivals - TAIL_S) > 0.1


@pytest.mark.parametrize("dvfs", [False, True])
@pytest.mark.parametrize("load", [0.0, 0.3])
def test_heat_and_clock_follow_their_formulas(dvfs: bool, load: float) -> None:
    """A board that runs an exit on each frame, and perhaps other work beside it: temperature, throttle level, clock,
    times and energy in a loop."""
    steady = {"idle_load": load, "busy_load": load, "mean_idle_s": 5, "mean_busy_s": 5}
    scenario = scenario_of(thermal=True, dvfs=dvfs, load=steady)
    world = timed(build_world(scenario, "train"), 0.06)
    # At full clock it would settle at 25 + 20 * (1.6 + 0.6 * 3.4) = 98 degC; the soft limit's clock is still too hot.
    heat = world.device.thermal._replace(
        tau_s=3.0, k_per_w=20.0, soft_c=75.0, hard_c=80.0, hysteresis_k=4.0, hard_speed=0.25
    )
    world = world._replace(device=world.device._replace(thermal=heat))
    simulator = Simulator(world, 1, keep_all=True)
    simulator.reset(episode_seeds(1, 1, "train"))
    state, log = simulator.states[0], simulator.logs[0]
    state[TEMPERATURE_C], state[THROTTLE] = heat.ambient_c, 0.0
    levels = set()
    while not simulator.done[0]:
        frame, began = int(simulator.frame[0]), float(simulator.now[0])
        temperature, level, clock = (float(state[i]) for i in (TEMPERATURE_C, THROTTLE, CLOCK))
        levels.add(level)
        running = min(clock, {0.0: 1.0, 1.0: heat.soft_speed, 2.0: heat.hard_speed}[level])
        busy = 0.06 / speed(clock, level, heat.soft_speed, heat.hard_speed, load)
        full = scenario.compute_w * active_power_factor(running)
        energy = full * (1 - load) * busy
        simulator.step(EXIT)
        passed = float(simulator.now[0]) - began
        assert log["compute_j"][frame] == pytest.approx(energy, rel=1e-6)
        on_time = began + busy - frame / scenario.fps <= scenario.deadline_s
        assert log["path"][frame] == (Path.EXIT if on_time else Path.MISS)
        if on_time:
            assert log["answer_latency_s"][frame] == pytest.approx(began + busy - frame / scenario.fps, abs=1e-6)
        power = heat.idle_w + energy / passed + full * load
        after = temperature_after(temperature, heat.ambient_c, heat.k_per_w, heat.tau_s, power, passed)
        assert state[TEMPERATURE_C] == pytest.approx(after, abs=1e-4)
        assert state[THROTTLE] == throttle_after(level, state[TEMPERATURE_C], 75.0, 80.0, 4.0)
        utilisation = (min(busy / passed, 1.0) * (1 - load) + load) * running
        assert state[CLOCK] == pytest.approx(clock_after(utilisation, heat.minimum_clock))
    assert levels == {0.0, 1.0, 2.0}
    seen = float(observation.physical(simulator.observations[0], "temperature"))
    assert 40.0 < seen < 100.0


def test_board_never_draws_more_than_its_active_power() -> None:
    """A board that is kept busy by other work and by us all the time settles at its active power, and not above."""
    load = {"idle_load": 0.6, "busy_load": 0.6, "mean_idle_s": 5, "mean_busy_s": 5}
    world = timed(build_world(scenario_of(thermal=True, load=load), "train"), 0.06)  # 150 ms at a load of 0.6
    heat = world.device.thermal._replace(tau_s=2.0, soft_c=200.0, hard_c=200.0)
    world = world._replace(device=world.device._replace(thermal=heat))
    simulator, log = fly(world, EXIT, 3)
    busy = (log["answer_latency_s"] > 0).mean() * 0.15 / 0.1
    assert busy == pytest.approx(1.0, abs=0.02)
    settled = heat.ambient_c + heat.k_per_w * (heat.idle_w + world.constants.compute_w)
    assert simulator.states[0, TEMPERATURE_C] == pytest.approx(settled, rel=0.02)
    assert simulator.states[0, TEMPERATURE_C] <= settled


def test_board_starts_between_idle_and_full_power() -> None:
    world = build_world(scenario_of(thermal=True, dvfs=True), "train")
    simulator = Simulator(world, 2000)
    simulator.reset(episode_seeds(5, 2000, "train"))
    heat, start = world.device.thermal, simulator.states[:, TEMPERATURE_C]
    low = heat.ambient_c + heat.k_per_w * heat.idle_w
    high = low + heat.k_per_w * world.constants.compute_w
    assert low <= start.min() < low + 0.1
    assert high - 0.1 < start.max() <= high
    assert start.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    assert (simulator.states[:, CLOCK] == heat.minimum_clock).all()


def test_other_load_stretches_our_stages() -> None:
    """Load L at the decision: our 30 ms take 30 / (1 - L), and our share of the board is 1 - L, so their energy is that
    of 30 ms; the observation shows the load of the moment."""
    scenario = scenario_of(load={"idle_load": 0.1, "busy_load": 0.7, "mean_idle_s": 2, "mean_busy_s": 1})
    world = timed(build_world(scenario, "train"), 0.03)
    simulator = Simulator(world, 1, keep_all=True)
    seen = simulator.reset(episode_seeds(2, 1, "train"))
    load, offset, loads = world.device.load, float(simulator.states[0, LOAD_OFFSET]), []
    while not simulator.done[0]:
        assert float(observation.physical(seen[0], "load_known")) == 1.0
        loads.append(float(observation.physical(seen[0], "load")))
        seen, _, _ = simulator.step(EXIT)
    log = simulator.logs[0]
    step = ((log["decided_s"] + offset) / world.device.load_dt_s).astype(int) % len(load)
    assert loads == pytest.approx(load[step], abs=1e-6)
    assert set(np.round(loads, 6)) == {0.1, 0.7}
    np.testing.assert_allclose(log["answer_latency_s"], 0.03 / (1 - load[step]), rtol=1e-6)
    np.testing.assert_allclose(log["compute_j"], scenario.compute_w * 0.03, rtol=1e-6)


def test_unreported_telemetry_is_flagged() -> None:
    world = build_world(scenario_of(), "train")
    seen = Simulator(world, 4).reset(episode_seeds(0, 4, "train"))
    for name in ("load_known", "temperature_known", "signal_known"):
        assert (observation.physical(seen, name) == 0).all()
    assert (observation.physical(seen, "battery_known") == 1).all()


def test_energy_of_a_bit_depends_on_the_signal() -> None:
    """A link whose signal goes from -110 to -80 dBm: the price is that of the signal when the message has been served,
    beside beta above the connected state for its airtime; the observation shows the signal of the moment."""
    scenario = scenario_of(radio="5g")
    radio, flat = radio_presets.get("5g"), np.ones(300)
    signal = np.linspace(-110.0, -80.0, 300)
    trace = LinkTrace("ramp", "demo", 0.1, CAPACITY_BPS * flat, RTT_S * flat, 0 * flat, signal)
    world = timed(build_world(scenario, "train"), 0.01)._replace(links=build_table([trace]))
    simulator, log = fly(world, SENT, 0)
    airtime = 8 * WIRE_BYTES / CAPACITY_BPS
    served = log["arrived_s"] + 0.01 + ENCODE_S + airtime + simulator.states[0, LINK_OFFSET]
    at = (served / 0.1 + 1e-9).astype(int) % 300
    expected = [radio.transmit_energy_j(WIRE_BYTES, airtime, float(dbm)) - radio.tail_w * airtime for dbm in signal[at]]
    np.testing.assert_allclose(log["radio_j"], expected, rtol=1e-5)
    assert max(expected) > 1.002 * min(expected)
    shown = float(observation.physical(simulator.observations[0], "signal"))
    assert -110.0 <= shown <= -80.0


def test_empty_battery_ends_the_episode() -> None:
    """A battery that lasts 10 s at the base power alone: the frames to come are misses, each with its record."""
    scenario = scenario_of(battery_wh=1.0)
    world = timed(build_world(scenario, "train"), 0.01)
    simulator = Simulator(world, 1, keep_all=True)
    simulator.reset(episode_seeds(0, 1, "train"))
    simulator.states[0, BATTERY_J] = 10.0 * scenario.base_w
    decisions = 0
    while not simulator.done[0]:
        simulator.step(EXIT)
        decisions += 1
    drawn = scenario.base_w + scenario.fps * scenario.compute_w * 0.01
    assert decisions == int(np.ceil(10.0 * scenario.base_w / drawn * scenario.fps - 1e-9))
    assert simulator.terminated[0]
    assert simulator.states[0, BATTERY_J] <= 0
    log = simulator.logs[0]
    assert (log["frame"] == np.arange(scenario.frames_per_episode)).all()
    assert (log["path"][:decisions] == Path.EXIT).all()
    assert (log["path"][decisions:] == Path.MISS).all()
    assert (log["branch"][decisions:] == -1).all()
