"""Imitation of the informed oracle: which decisions a record stands for, and a policy that starts well."""

from __future__ import annotations

import numpy as np
import pytest

from adaptsplit import observation as obs
from adaptsplit import outcome
from adaptsplit.agents import PolicyController, make_controller
from adaptsplit.agents.hyperparameters import load_parameters
from adaptsplit.agents.imitation import clone, demonstrations, equivalent, imitate
from adaptsplit.agents.oracle import plan
from adaptsplit.agents.validation import Validator
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.envs import build_world, episode_seeds, run_episodes
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import Scenario, load_scenario

SPACE = DecisionSpace(
    (BranchSpec("stem", "split", ("a", "b")), BranchSpec("local", "local")), (0.0, 0.8, 0.9, 1.01), (1.0,) * 4
)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


def record(branch: int, rate: int, threshold: float, confidence: float, sent: int) -> outcome.Outcomes:
    records = outcome.empty(1)
    records["branch"], records["rate"], records["threshold"], records["patience"] = branch, rate, threshold, 1.0
    records["exit_confidence"], records["sent_bytes"] = confidence, sent
    return records


def test_an_exit_stands_for_every_threshold_up_to_its_confidence() -> None:
    branch, rate, rule = equivalent(SPACE, record(0, 0, 0.0, 0.85, 0))
    assert branch.tolist() == [[True, False]]
    assert rate.tolist() == [[True, True]]
    assert rule.tolist() == [[True, True, False, False]]


def test_sending_stands_for_its_rate_and_every_threshold_above_the_confidence() -> None:
    _, rate, rule = equivalent(SPACE, record(0, 1, 1.01, 0.85, 500))
    assert rate.tolist() == [[False, True]]
    assert rule.tolist() == [[False, False, True, True]]


def test_a_branch_that_answers_alone_has_no_rule() -> None:
    branch, rate, rule = equivalent(SPACE, record(1, 0, 0.0, 0.0, 0))
    assert branch.tolist() == [[False, True]]
    assert rate.all()
    assert rule.all()


def test_demonstrations_play_the_plan_again(scenario: Scenario) -> None:
    world, seeds = build_world(scenario, "train"), episode_seeds(4, 3, "train")
    planned = plan(world, world, scenario.space, seeds, "oracle-informed")
    seen, records = demonstrations(world, scenario.space, seeds, planned)
    decided = planned[planned["branch"] >= 0]
    assert len(seen) == len(records) == len(decided)
    assert seen.shape[1] == obs.SIZE
    order = np.lexsort((records["frame"], records["env"]))
    np.testing.assert_array_equal(records["frame"][order], decided["frame"])


def test_clone_learns_a_rule_it_can_see() -> None:
    rng = np.random.default_rng(0)
    seen = rng.random((4000, obs.SIZE), dtype=np.float32)
    right = np.zeros((4000, 3), dtype=np.bool_)
    right[np.arange(4000), (seen[:, 0] > 0.5).astype(int)] = True
    right[:, 2] = seen[:, 1] > 0.9  # a third output is as good there
    net = clone(seen, [right], load_parameters("ppo"), 0, 60)  # type: ignore[arg-type]
    value = seen
    for i, (weight, bias) in enumerate(net.layers):
        value = value @ weight + bias
        value = np.tanh(value) if i + 1 < len(net.layers) else value
    assert right[np.arange(4000), value.argmax(axis=1)].mean() > 0.97


def test_the_imitation_is_far_above_chance(scenario: Scenario) -> None:
    net = imitate(scenario, load_parameters("ppo"), episodes=12, epochs=20)
    validate = Validator(scenario, 24)
    imitation = validate(PolicyController("imitation", scenario.space, net))
    world, seeds = build_world(scenario, "validation"), episode_seeds(0, 24, "validation")
    chance = scenario.objective.reward(run_episodes(world, make_controller("random", scenario), seeds)).mean()
    assert imitation.reward > chance + 0.005
    assert not imitation.collapsed


def test_only_plain_actors_can_start_so(scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match="train ppo or a2c"):
        imitate(scenario, load_parameters("dqn"))
