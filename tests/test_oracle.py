"""Oracles: the relaxed bound holds, the clairvoyant beats every static decision, knowledge orders them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit.agents.oracle import bound, candidates_of, oracle_names, plan
from adaptsplit.agents.static import static_grid
from adaptsplit.envs import World, build_world, episode_seeds, run_episodes
from adaptsplit.envs.expected import expected_world
from adaptsplit.errors import UnknownNameError
from adaptsplit.scenario import Scenario, load_scenario

EPISODES = 12


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


@pytest.fixture(scope="module")
def worlds(scenario: Scenario) -> tuple[World, World]:
    return build_world(scenario, "validation"), build_world(scenario, "train")


@pytest.fixture(scope="module")
def rewards(scenario: Scenario, worlds: tuple[World, World]) -> dict[str, NDArray[Any]]:
    """Mean reward per episode of every oracle, the relaxed bound and the whole static grid (best first)."""
    world, train = worlds
    seeds = episode_seeds(5, EPISODES, "validation")
    grid = [run_episodes(world, controller, seeds) for controller in static_grid(scenario.space)]
    score = scenario.objective.reward
    static = np.array([score(outcomes).mean(axis=1) for outcomes in grid])
    rival = grid[int(static.mean(axis=1).argmax())]
    found = {"static": static, "bound": bound(world, scenario.space, seeds)}
    for name in oracle_names():
        outcomes = plan(world, train, scenario.space, seeds, name, rivals=[rival])
        found[name] = score(outcomes).mean(axis=1)
    return found


def test_relaxed_bound_is_above_everything(rewards: dict[str, NDArray[Any]]) -> None:
    assert (rewards["bound"] >= rewards["oracle-clairvoyant"] - 1e-6).all()
    assert (rewards["bound"] >= rewards["static"].max(axis=0) - 1e-6).all()


def test_clairvoyant_is_above_every_static_decision_on_every_episode(rewards: dict[str, NDArray[Any]]) -> None:
    assert (rewards["oracle-clairvoyant"] >= rewards["static"].max(axis=0) - 1e-6).all()


def test_more_knowledge_is_worth_more(rewards: dict[str, NDArray[Any]]) -> None:
    means = {name: float(values.mean()) for name, values in rewards.items() if name.startswith("oracle")}
    assert means["oracle-clairvoyant"] > means["oracle-informed"] > rewards["static"].mean(axis=1).max()
    assert means["oracle-informed"] >= means["oracle-informed-0"] - 0.003


def test_expectations_use_no_labels_of_the_planned_split(worlds: tuple[World, World]) -> None:
    """Alter every true quality of the split that is planned on: what the informed oracle expects does not change."""
    world, train = worlds
    o = world.outcomes
    altered = world._replace(outcomes=o._replace(exit_quality=1 - o.exit_quality, tail_quality=1 - o.tail_quality))
    expected, same = expected_world(world, train).outcomes, expected_world(altered, train).outcomes
    assert np.array_equal(expected.exit_quality, same.exit_quality)
    assert np.array_equal(expected.tail_quality, same.tail_quality)
    assert abs(float(expected.tail_quality[-1, 0, 0] - o.tail_quality[-1, 0, 0])) < 0.1


def test_informed_zero_does_not_see_the_future(scenario: Scenario, worlds: tuple[World, World]) -> None:
    """Alter the link after a moment: what informed(0) did up to then stays the same."""
    from adaptsplit.envs.link_table import build_table

    world, train = worlds
    seeds, moment = episode_seeds(8, 3, "validation"), 15.0
    before = plan(world, train, scenario.space, seeds, "oracle-informed-0")
    traces = list(scenario.links("validation"))
    states = [_start(world, seed) for seed in seeds]
    for link, offset in states:
        trace = traces[link]
        at = (np.arange(len(trace.capacity_bps)) * trace.dt_s - offset) % (len(trace.capacity_bps) * trace.dt_s)
        capacity = np.where((at > moment) & (at < 70), 20_000.0, trace.capacity_bps)
        altered = list(traces)
        altered[link] = type(trace)(
            trace.name, trace.family, trace.dt_s, capacity, trace.rtt_s, trace.loss, None, ("altered",)
        )
        changed = world._replace(links=build_table(altered))
        after = plan(changed, train, scenario.space, seeds, "oracle-informed-0")
        row = states.index((link, offset))
        early = before[row]["decided_s"] < moment - 0.5
        assert np.array_equal(before[row][early]["branch"], after[row][early]["branch"])
        assert np.array_equal(before[row][early]["rate"], after[row][early]["rate"])


def _start(world: World, seed: np.uint64) -> tuple[int, float]:
    from adaptsplit.envs.core import reset_row
    from adaptsplit.envs.layout import LINK, LINK_OFFSET, STATE_SIZE
    from adaptsplit.envs.packed import pack

    state = np.zeros(STATE_SIZE)
    reset_row(pack(world), state, seed)
    return int(state[LINK]), float(state[LINK_OFFSET])


def test_candidates_need_no_thresholds_in_between(scenario: Scenario) -> None:
    values = set(candidates_of(scenario.space)[:, 2])
    assert values <= {0.0, scenario.space.thresholds[-1]}
    frozen = scenario.space.table[:4]
    assert len(candidates_of(scenario.space, frozen)) == 4


def test_unknown_oracle_is_named(scenario: Scenario, worlds: tuple[World, World]) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'oracle-informed'"):
        plan(*worlds, scenario.space, episode_seeds(0, 1, "test"), "oracle-informd")
