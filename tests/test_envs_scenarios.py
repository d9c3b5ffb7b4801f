"""Every shipped scenario, and scenarios drawn at random, keep the invariants of an episode under random decisions.

At least ten million random decisions over the shipped scenarios: ``DECISIONS`` in each.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray

import adaptsplit.envs  # noqa: F401  (registers the environments)
from adaptsplit import observation
from adaptsplit.envs import Simulator, World, build_world, episode_seeds
from adaptsplit.envs.layout import DONE, FRAME, HEAD_ACK, NOW, TAIL
from adaptsplit.errors import ConfigError
from adaptsplit.outcome import Outcomes, Path
from adaptsplit.scenario import Scenario, load_scenario, scenario_names

Array = NDArray[Any]

ROWS = 2048
DECISIONS = 10_000_000 // len(scenario_names()) + 1
NEEDS_RECORDINGS = {name for name in scenario_names() if "path" in load_scenario(name).file.model_dump_json()}


@pytest.fixture(scope="module", params=scenario_names())
def scenario(request: pytest.FixtureRequest) -> Scenario:
    """Each shipped scenario; skipped where its recordings or its profile are not on this machine."""
    name = str(request.param)
    data = request.getfixturevalue("shared_data") if name in NEEDS_RECORDINGS else None
    loaded = load_scenario(name, data)
    try:
        loaded.profile("train")
    except ConfigError as error:
        pytest.skip(str(error))
    return loaded


def check_running(scenario: Scenario, simulator: Simulator) -> None:
    """What holds after every step: finite observations inside the box, the window, time and frames in step."""
    seen = simulator.observations
    assert seen.min() >= 0.0  # fails for NaN as well
    assert seen.max() <= 1.0
    assert np.isfinite(simulator.rewards).all()
    states = simulator.states[~simulator.done]
    if len(states) == 0:
        return
    unacknowledged = states[:, TAIL] - states[:, HEAD_ACK]
    assert unacknowledged.min() >= 0
    assert unacknowledged.max() <= scenario.window
    late = states[:, NOW] - states[:, FRAME] / scenario.fps
    assert late.min() >= -1e-9
    assert late.max() <= scenario.deadline_s + 1e-9


def check_ended(scenario: Scenario, log: Outcomes, total: Array) -> None:
    """What holds at the end: one outcome for every frame, sane numbers in it, rewards that add up."""
    frames = np.arange(scenario.frames_per_episode)
    assert np.array_equal(log["frame"], np.broadcast_to(frames, log.shape))
    assert (log["path"] <= max(Path)).all()
    missed, latency = log["path"] == Path.MISS, log["answer_latency_s"]
    assert np.array_equal(np.isnan(latency), missed)
    assert latency[~missed].min(initial=0.0) >= 0
    assert latency[~missed].max(initial=0.0) <= scenario.deadline_s * (1 + 1e-6)
    for field in ("quality", "confidence", "exit_confidence"):
        assert log[field].min() >= 0
        assert log[field].max() <= 1
    assert (log["quality"][missed] == 0).all()
    for field in ("compute_j", "radio_j", "sent_bytes"):
        assert log[field].min() >= 0
        assert (log[field][log["branch"] < 0] == 0).all()
    sent = log["sent_bytes"] > 0
    assert np.isin(log["path"][sent], (Path.REMOTE, Path.FALLBACK_LATE, Path.MISS)).all()
    assert (log["remote_latency_s"][sent] > 0).all()
    assert (log["known_s"] >= log["arrived_s"]).all()
    assert (log["decided_s"][:, 0] == 0).all()
    np.testing.assert_allclose(scenario.objective.reward(log).sum(axis=1), total, atol=1e-3)


def test_random_decisions_keep_the_invariants(scenario: Scenario) -> None:
    world = build_world(scenario, "train")
    simulator, rng, taken = Simulator(world, ROWS, keep_all=True), np.random.default_rng(0), 0
    for round_ in range(100):
        simulator.reset(episode_seeds(round_, ROWS, "train"))
        total = np.zeros(ROWS)
        while not simulator.done.all():
            taken += int((~simulator.done).sum())
            _, rewards, _ = simulator.step_codes(rng.integers(0, len(world.grid), ROWS))
            total += rewards
            check_running(scenario, simulator)
        check_ended(scenario, simulator.outcomes(), total)
        if taken >= DECISIONS:
            return
    pytest.fail(f"only {taken} decisions in 100 rounds")


@pytest.mark.parametrize("actions", ["multi", "flat"])
def test_gymnasium_contract(scenario: Scenario, actions: str) -> None:
    env = gym.make("adaptsplit/Split-v0", scenario=scenario, split="validation", actions=actions)
    check_env(env.unwrapped, skip_render_check=True)
    first, info = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    named, _ = env.reset(options={"episode_seed": info["episode_seed"]})
    assert np.array_equal(first, again)
    assert np.array_equal(first, named)
    env.action_space.seed(0)
    for _ in range(scenario.frames_per_episode + 1):
        seen, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(seen)
        assert isinstance(reward, float)
        assert info["path"] in Path.__members__
        if terminated or truncated:
            return
    pytest.fail("the episode did not end after its last frame")


def _links(draw: some.DrawFn) -> list[dict[str, Any]]:
    """A constant link or one with outages, of any capacity, round trip and loss."""
    rate = 10 ** draw(some.floats(3.5, 8))
    rtt, loss = draw(some.floats(0, 0.5)), draw(some.sampled_from([0.0, 0.1, 0.9]))
    steady = {"generator": "constant", "parameters": {"capacity_bps": rate, "rtt_s": rtt, "loss": loss}}
    broken = {"good_bps": rate, "bad_bps": draw(some.sampled_from([0.0, 3e3])), "rtt_bad_s": rtt, "loss_bad": loss}
    on_and_off = {"generator": "gilbert-elliott", "parameters": {**broken, "mean_good_s": 1.0, "mean_bad_s": 0.7}}
    chosen = draw(some.sampled_from([steady, on_and_off]))
    return [{**chosen, "kind": "generate", "seeds": [1, 2], "duration_s": 20, "family": "drawn"}]


def _device(draw: some.DrawFn) -> dict[str, Any]:
    busy = {"idle_load": draw(some.floats(0, 0.5)), "busy_load": draw(some.floats(0.5, 1.0))}
    thermal = draw(some.booleans())
    return {
        "compute": draw(some.sampled_from(["raspberry-pi-4b", "raspberry-pi-3b-plus"])),
        "radio": draw(some.sampled_from(["lte", "wifi", "5g"])),
        "battery_wh": draw(some.sampled_from([0.002, 0.02, 50.0])),
        "decision_s": draw(some.sampled_from([0.0, 0.0002, 0.02])),
        "load": draw(some.sampled_from([None, {**busy, "mean_idle_s": 1.0, "mean_busy_s": 0.5}])),
        "thermal": thermal,
        "ambient_c": draw(some.floats(-40, 59)) if thermal else None,
        "dvfs": draw(some.booleans()),
    }


def _server(draw: some.DrawFn) -> dict[str, Any] | None:
    if not draw(some.booleans()):
        return None
    level = {"utilisation": draw(some.floats(0, 0.9)), "mean_s": 1.0}
    window = draw(some.sampled_from([0.0, 0.02, 0.1]))
    marginal = draw(some.floats(0, 1))
    return {"utilisation": [level], "job_s": 0.01, "batch_window_s": window, "batch_marginal": marginal}


@some.composite
def scenarios(draw: some.DrawFn) -> Scenario:
    """Any valid scenario over the embedded profile with episodes of 40 frames."""
    fps = draw(some.sampled_from([0.5, 3.0, 10.0, 30.0, 240.0]))
    thresholds = sorted(draw(some.sets(some.sampled_from([0.0, 0.3, 0.8, 0.95, 1.01]), min_size=1)))
    share = some.floats(0, 1)
    keys = ("quality", "energy_per_j", "bytes_per_kib", "switch", "miss", "latency_per_s")
    return load_scenario(
        {
            "name": "drawn",
            "description": "Drawn at random.",
            "profile": "flight",
            "frames": "flight",
            "fps": fps,
            "deadline_s": draw(some.floats(0.005, 2.0)),
            "episode_s": 40 / fps,
            "window": draw(some.integers(1, 8)),
            "sender": draw(some.sampled_from(["latest", "fifo"])),
            "label_free": draw(some.booleans()),
            "thresholds": thresholds,
            "patience": sorted(draw(some.sets(some.sampled_from([0.05, 0.5, 0.7, 1.0]), min_size=1))),
            "skip": draw(some.booleans()),
            "device": _device(draw),
            "server": _server(draw),
            "priors": {"goodput_bps": 1.5e6, "rtt_s": 0.07, "server_s": 0.01},
            "objective": {key: draw(share) for key in keys},
            "links": {split: _links(draw) for split in ("train", "validation", "test")},
        }
    )


def _played(world: World, seeds: Array, decisions: Array, keep_all: bool) -> tuple[Simulator, Array, list[Array]]:
    """Play (steps, n, 3) decisions; return the simulator, the summed rewards and every observation."""
    simulator = Simulator(world, len(seeds), keep_all=keep_all)
    seen, total = [simulator.reset(seeds).copy()], np.zeros(len(seeds))
    for taken in decisions:
        observations, rewards, _ = simulator.step(taken)
        seen.append(observations.copy())
        total += rewards
    return simulator, total, seen


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(scenario=scenarios(), seed=some.integers(0, 2**32 - 1))
def test_any_scenario_keeps_the_invariants(scenario: Scenario, seed: int) -> None:
    """Invariants at every step; a single row, without the whole log, gives the batch's row bit for bit."""
    world, n, rng = build_world(scenario, "train"), 5, np.random.default_rng(seed)
    seeds = episode_seeds(seed, n, "train")
    decisions = np.stack([rng.integers(0, size, (40, n)) for size in scenario.space.shape], axis=2)
    simulator = Simulator(world, n, keep_all=True)
    simulator.reset(seeds)
    total = np.zeros(n)
    for taken in decisions:
        total += simulator.step(taken)[1]
        check_running(scenario, simulator)
    assert simulator.done.all()
    check_ended(scenario, simulator.outcomes(), total)
    _, batch_total, batch_seen = _played(world, seeds, decisions, keep_all=True)
    single, single_total, single_seen = _played(world, seeds[3:4], decisions[:, 3:4], keep_all=False)
    assert batch_total[3] == single_total[0] == total[3]
    assert all(np.array_equal(many[3], one[0]) for many, one in zip(batch_seen, single_seen, strict=True))
    assert single.states[0].tobytes() == simulator.states[3].tobytes()
    assert single.states[0, DONE] == 1.0
    assert len(single_seen[0][0]) == observation.SIZE
