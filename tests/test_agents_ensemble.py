"""Several policies as one: the merged network gives exactly the mean of the members' outputs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from adaptsplit import observation as obs
from adaptsplit.agents import PolicyController, PolicyNet, make_controller
from adaptsplit.agents.ensemble import ENSEMBLE_FILE, ensemble, merge
from adaptsplit.agents.policy import save_policy
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import Scenario, load_scenario


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


def random_net(scenario: Scenario, seed: int, hidden: tuple[int, ...] = (16, 12), head: str = "flat") -> PolicyNet:
    rng = np.random.default_rng(seed)
    outputs = len(scenario.space.table) if head == "flat" else sum(scenario.space.shape)
    sizes = [obs.SIZE, *hidden, outputs]
    layers = tuple(
        (rng.normal(size=(a, b)).astype(np.float32), rng.normal(size=b).astype(np.float32)) for a, b in pairwise(sizes)
    )
    return PolicyNet(layers, "relu", head)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["flat", "multi"])
@pytest.mark.parametrize("hidden", [(), (8,), (16, 12), (8, 8, 8)])
def test_merged_outputs_are_the_mean(scenario: Scenario, hidden: tuple[int, ...], head: str) -> None:
    nets = [random_net(scenario, seed, hidden, head) for seed in range(3)]
    seen = np.random.default_rng(9).random((50, obs.SIZE), dtype=np.float32)
    members = [PolicyController("m", scenario.space, net).outputs(seen) for net in nets]
    merged = PolicyController("all", scenario.space, merge(nets))
    np.testing.assert_allclose(merged.outputs(seen), np.mean(members, axis=0), rtol=1e-4, atol=1e-4)


def test_members_of_different_widths_merge(scenario: Scenario) -> None:
    nets = [random_net(scenario, 0, (8, 4)), random_net(scenario, 1, (6, 10))]
    seen = np.random.default_rng(9).random((20, obs.SIZE), dtype=np.float32)
    expected = np.mean([PolicyController("m", scenario.space, net).outputs(seen) for net in nets], axis=0)
    merged = PolicyController("all", scenario.space, merge(nets))
    np.testing.assert_allclose(merged.outputs(seen), expected, rtol=1e-4, atol=1e-4)


def test_forms_must_agree(scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match="different forms"):
        merge([random_net(scenario, 0, (8,)), random_net(scenario, 0, (8, 8))])
    with pytest.raises(ConfigError, match="at least one"):
        merge([])


def write_runs(scenario: Scenario, folder: Path) -> list[PolicyNet]:
    nets = [random_net(scenario, seed) for seed in range(2)]
    for seed, net in enumerate(nets):
        (folder / str(seed)).mkdir(parents=True)
        save_policy(folder / str(seed) / "policy.npz", "dqn", scenario.space, net)
    return nets


def test_a_folder_of_runs_becomes_one_run(scenario: Scenario, tmp_path: Path) -> None:
    nets = write_runs(scenario, tmp_path / "dqn")
    ensemble([tmp_path / "dqn"], tmp_path / "all")
    loaded = make_controller(str(tmp_path / "all"), scenario)
    assert isinstance(loaded, PolicyController)
    seen = np.random.default_rng(9).random((20, obs.SIZE), dtype=np.float32)
    np.testing.assert_array_equal(
        loaded.act(seen, None)[0], PolicyController("x", scenario.space, merge(nets)).act(seen, None)[0]
    )
    members = json.loads((tmp_path / "all" / ENSEMBLE_FILE).read_text())["members"]
    assert members == [str(tmp_path / "dqn" / "0"), str(tmp_path / "dqn" / "1")]
    ensemble([tmp_path / "dqn" / "0"], tmp_path / "all")  # an ensemble may be made again


def test_faults_are_named(scenario: Scenario, tmp_path: Path) -> None:
    write_runs(scenario, tmp_path / "dqn")
    with pytest.raises(ConfigError, match="no run"):
        ensemble([tmp_path / "nothing"], tmp_path / "all")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="no ensemble"):
        ensemble([tmp_path / "dqn"], tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
