"""A cautious ensemble leaves its anchor only where its members agree; known by hand on networks of one layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cases import SPACE
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents import PolicyController, PolicyNet, make_controller
from adaptsplit.agents.best_static import best_static
from adaptsplit.agents.cautious import CAUTIONS, cautious, one_standard_error
from adaptsplit.agents.ensemble import ENSEMBLE_FILE, merge
from adaptsplit.agents.policy import load_policy, parse_policy, save_policy
from adaptsplit.agents.policy_cautious import CautiousController
from adaptsplit.agents.policy_file import read_policy, write_policy
from adaptsplit.agents.validation import Validator
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.scenario import Scenario, load_scenario

ROWS = len(SPACE.table)


def constant(values: NDArray[np.float32], head: str = "flat") -> PolicyNet:
    """Return a network whose outputs are ``values`` whatever it sees."""
    weight = np.zeros((obs.SIZE, len(values)), dtype=np.float32)
    return PolicyNet(((weight, values.astype(np.float32)),), "relu", head)  # type: ignore[arg-type]


def members(*advantages: float) -> tuple[PolicyNet, ...]:
    """Return networks that value row 1 by so much more than the anchor, row 0, and everything else by 1 less."""
    nets = []
    for advantage in advantages:
        values = np.full(ROWS, 4.0, dtype=np.float32)
        values[:2] = 5.0, 5.0 + advantage
        nets.append(constant(values))
    return tuple(nets)


def decide(controller: CautiousController) -> list[int]:
    seen = np.zeros((1, obs.SIZE), dtype=np.float32)
    row: list[int] = controller.act(seen, None)[0][0].tolist()
    return row


@pytest.mark.parametrize(
    ("caution", "row"),
    [(0.0, 1), (0.99, 1), (1.01, 0), (1000.0, 0)],
)
def test_the_anchor_is_left_for_a_mean_above_caution_times_spread(caution: float, row: int) -> None:
    nets = members(0.0, 0.4)  # mean 0.2, standard deviation 0.2
    assert decide(CautiousController("c", SPACE, nets, 0, caution)) == SPACE.table[row].tolist()


def test_members_that_agree_leave_it_however_cautious() -> None:
    assert decide(CautiousController("c", SPACE, members(0.2, 0.2, 0.2), 0, 1000.0)) == SPACE.table[1].tolist()


def random_nets(count: int, width: int = 12) -> tuple[PolicyNet, ...]:
    nets = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        sizes = ((obs.SIZE, width), (width, width), (width, ROWS))
        layers = tuple(
            (rng.normal(size=size).astype(np.float32), rng.normal(size=size[1]).astype(np.float32)) for size in sizes
        )
        nets.append(PolicyNet(layers, "relu", "flat"))
    return tuple(nets)


def test_without_caution_it_is_the_mean_of_the_values() -> None:
    nets = random_nets(3)
    seen = np.random.default_rng(5).random((200, obs.SIZE), dtype=np.float32)
    plain = PolicyController("mean", SPACE, merge(nets)).act(seen, None)[0]
    np.testing.assert_array_equal(CautiousController("c", SPACE, nets, 3, 0.0).act(seen, None)[0], plain)


def test_a_row_decides_as_in_a_batch_and_after_a_round_trip(tmp_path: Path) -> None:
    controller = CautiousController("c", SPACE, random_nets(4), 2, 0.7)
    controller.save(tmp_path / "policy.npz")
    loaded = load_policy(tmp_path / "policy.npz")
    assert isinstance(loaded, CautiousController)
    assert (loaded.anchor, loaded.caution, loaded.name) == (2, 0.7, "c")
    seen = np.random.default_rng(6).random((50, obs.SIZE), dtype=np.float32)
    batch = controller.act(seen, None)[0]
    single = np.concatenate([loaded.act(seen[i : i + 1], None)[0] for i in range(50)])
    np.testing.assert_array_equal(single, batch)
    assert len(np.unique(batch, axis=0)) > 1


def test_more_caution_stays_with_the_anchor_more_often() -> None:
    nets, seen = random_nets(5), np.random.default_rng(7).random((400, obs.SIZE), dtype=np.float32)
    anchor = SPACE.table[4]
    shares = [
        (CautiousController("c", SPACE, nets, 4, caution).act(seen, None)[0] == anchor).all(axis=1).mean()
        for caution in (0.0, 0.5, 1.0, 2.0, 4.0)
    ]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0]


def test_networks_that_do_not_fit_are_refused() -> None:
    nets = random_nets(2)
    with pytest.raises(ConfigError, match="knob by knob"):
        CautiousController("c", SPACE, (constant(np.zeros(sum(SPACE.shape), dtype=np.float32), "multi"),), 0, 1.0)
    with pytest.raises(ConfigError, match="2 forms"):
        CautiousController("c", SPACE, (nets[0], random_nets(1, 8)[0]), 0, 1.0)
    with pytest.raises(ConfigError, match=f"anchor {ROWS}"):
        CautiousController("c", SPACE, nets, ROWS, 1.0)
    with pytest.raises(ConfigError, match="0 networks"):
        CautiousController("c", SPACE, (), 0, 1.0)


@pytest.mark.parametrize("fault", ["anchor", "caution", "missing", "members", "shape", "more", "nan"])
def test_damaged_files_are_refused(tmp_path: Path, fault: str) -> None:
    CautiousController("c", SPACE, random_nets(2), 0, 1.0).save(tmp_path / "p.npz")
    meta, arrays = read_policy((tmp_path / "p.npz").read_bytes(), "p")
    if fault == "anchor":
        meta["anchor"] = ROWS
    elif fault == "caution":
        meta["caution"] = -1.0
    elif fault == "missing":
        del arrays["b1"]
    elif fault == "members":
        arrays["w1"], arrays["b1"] = arrays["w1"][:1], arrays["b1"][:1]
    elif fault == "shape":
        arrays["w2"] = arrays["w2"][:, :, 0]
    elif fault == "more":
        arrays["extra"] = np.zeros(3)
    else:
        arrays["w0"][0, 0, 0] = np.nan
    write_policy(tmp_path / "p.npz", meta, arrays)
    with pytest.raises(DataError, match=r"p\.npz|'c'"):
        parse_policy((tmp_path / "p.npz").read_bytes(), "p.npz")


def test_one_standard_error_takes_the_last_row_that_cannot_be_told_from_the_best() -> None:
    rng = np.random.default_rng(0)
    best = rng.normal(size=400)
    near, far = best - 0.01 + rng.normal(scale=0.3, size=400), best - 0.2 + rng.normal(scale=0.3, size=400)
    assert one_standard_error(np.stack([best, near - near.mean() + best.mean() - 0.01, far])) == 1
    assert one_standard_error(np.stack([far, near, best])) == 2
    assert one_standard_error(np.stack([best, best, best])) == 2


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("control-steady")


def test_best_static_is_the_best_of_the_table_on_the_train_split(scenario: Scenario) -> None:
    validator = Validator(scenario, 4, split="train")
    earned = [
        validator(make_controller(f"static:{scenario.space.name(row)}", scenario)).reward
        for row in scenario.space.table
    ]
    assert earned[best_static(scenario, 4)] == pytest.approx(max(earned), abs=1e-9)


def test_a_folder_of_runs_becomes_a_cautious_run(scenario: Scenario, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for seed in range(2):
        rows = len(scenario.space.table)
        weight = rng.normal(size=(obs.SIZE, rows)).astype(np.float32)
        net = PolicyNet(((weight, np.zeros(rows, dtype=np.float32)),), "relu", "flat")
        (tmp_path / "dqn" / str(seed)).mkdir(parents=True)
        save_policy(tmp_path / "dqn" / str(seed) / "policy.npz", "dqn", scenario.space, net)
    choice = cautious([tmp_path / "dqn"], scenario, tmp_path / "all", "all")
    assert choice.caution == CAUTIONS[-1]  # networks that were never trained are worth nothing: the anchor stays
    assert choice.rewards[-1] == max(choice.rewards) > choice.rewards[0]
    loaded = make_controller(str(tmp_path / "all"), scenario)
    anchor = make_controller(f"static:{choice.anchor}", scenario)
    validator = Validator(scenario, 8)
    assert validator(loaded).reward == pytest.approx(validator(anchor).reward, abs=1e-3)
    assert json.loads((tmp_path / "all" / ENSEMBLE_FILE).read_text())["choice"]["caution"] == choice.caution
    with pytest.raises(ConfigError, match="another decision space"):
        cautious([tmp_path / "dqn"], load_scenario("flight-deadline"), tmp_path / "other", "other")
