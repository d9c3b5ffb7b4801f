"""Ablations and anatomy of the league: folding is exact, what is removed is removed, links have known drops."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptsplit.agents import make_controller
from adaptsplit.agents.policy import PolicyController, PolicyNet
from adaptsplit.config import read_yaml
from adaptsplit.envs import build_world, episode_info, episode_seeds, run_episodes
from adaptsplit.envs.sb3 import SplitVecEnv
from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.evaluation.knobs import KNOBS, frozen_table
from adaptsplit.evaluation.league_ablation import Removal, evaluate_ablations, loss, removals, run_folder
from adaptsplit.evaluation.league_ablation_train import AblatedVecEnv, fold, parts_of, train_ablated
from adaptsplit.evaluation.league_anatomy import (
    below_quarter,
    decisions_of,
    goodput_seen,
    link_events,
    since_change,
)
from adaptsplit.evaluation.league_episodes import from_scored
from adaptsplit.evaluation.league_rank import BEST_STATIC, Contest
from adaptsplit.evaluation.statistics import resample
from adaptsplit.links import LinkTrace
from adaptsplit.observation import NAMES, SIZE
from adaptsplit.scenario import Scenario, load_scenario

AT = "static:shallow/1/0.9"


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    value = read_yaml(Path(str(resources.files("adaptsplit.scenarios"))) / "flight-lte.yaml")
    return load_scenario(value | {"name": "short", "episode_s": 6})


def small(outputs: int, seed: int = 0) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    shapes = ((SIZE, 16), (16, outputs))
    return tuple((rng.normal(size=s).astype(np.float32), rng.normal(size=s[1]).astype(np.float32)) for s in shapes)


def observations(count: int = 400) -> np.ndarray:
    return np.random.default_rng(5).random((count, SIZE)).astype(np.float32)


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("head", ["flat", "multi"])
def test_folding_a_frozen_knob_decides_as_in_training(scenario: Scenario, knob: str, head: str) -> None:
    space, parts = scenario.space, parts_of(scenario.space, Removal("knob", knob, AT))
    env = AblatedVecEnv(SplitVecEnv(scenario, 1, actions=head), parts)  # type: ignore[arg-type]
    outputs = int(env.action_space.n) if head == "flat" else int(sum(env.action_space.nvec))  # type: ignore[attr-defined]
    trained = PolicyNet(small(outputs), "tanh", head)  # type: ignore[arg-type]
    folded = PolicyController("folded", space, fold(trained, space, parts))
    seen = observations()
    logits = np.tanh(seen @ trained.layers[0][0] + trained.layers[0][1]) @ trained.layers[1][0] + trained.layers[1][1]
    if head == "flat":
        wanted = frozen_table(space, knob, parts.frozen[1])[logits.argmax(axis=1)]  # type: ignore[arg-type, index]
    else:
        ends = np.cumsum((0, *env.action_space.nvec))  # type: ignore[attr-defined]
        wanted = np.stack([logits[:, ends[i] : ends[i + 1]].argmax(axis=1) for i in range(3)], axis=1)
        wanted[:, parts.frozen[0]] = parts.frozen[1]  # type: ignore[index]
        wanted = space.canonical(wanted)
    np.testing.assert_array_equal(folded.act(seen, None)[0], wanted)


def test_a_folded_policy_does_not_see_what_was_removed(scenario: Scenario) -> None:
    parts = parts_of(scenario.space, Removal("group", "link"))
    assert {NAMES[i] for i in parts.columns} >= {"goodput", "rtt", "signal"}
    net = PolicyNet(small(sum(scenario.space.shape)), "tanh", "multi")
    folded = PolicyController("folded", scenario.space, fold(net, scenario.space, parts))
    whole = PolicyController("whole", scenario.space, net)
    seen, blind = observations(), observations()
    blind[:, parts.columns] = 0.0
    np.testing.assert_array_equal(folded.act(seen, None)[0], whole.act(blind, None)[0])
    assert (folded.act(seen, None)[0] != whole.act(seen, None)[0]).any()


@pytest.mark.parametrize("actions", ["flat", "multi"])
def test_the_environment_offers_only_what_is_left(scenario: Scenario, actions: Any) -> None:
    parts = parts_of(scenario.space, Removal("knob", "rate", AT))
    env = AblatedVecEnv(SplitVecEnv(scenario, 4, actions=actions), parts)
    env.reset()
    rng = np.random.default_rng(0)
    assert parts.table is not None
    left = {tuple(row) for row in parts.table.tolist()}
    for _ in range(20):
        drawn = [env.action_space.sample() for _ in range(4)]
        env.step(np.array(drawn) if actions == "multi" else rng.integers(len(parts.table), size=4))
    logs = env.get_attr("simulator")[0].logs
    decided = logs[logs["branch"] >= 0]
    thresholds = np.array(scenario.space.thresholds)
    for record in decided:
        rule = int(np.argmin(np.abs(thresholds - record["threshold"])))
        assert (int(record["branch"]), int(record["rate"]), rule) in left


def test_the_environment_hides_a_group(scenario: Scenario) -> None:
    parts = parts_of(scenario.space, Removal("group", "content"))
    env = AblatedVecEnv(SplitVecEnv(scenario, 2, actions="flat"), parts)
    seen = [env.reset(), *(env.step(np.zeros(2, dtype=int))[0] for _ in range(5))]
    assert all((np.asarray(each)[:, parts.columns] == 0).all() for each in seen)
    assert any((np.asarray(each) > 0).any() for each in seen)


def test_every_group_and_knob_is_taken_away_once() -> None:
    found = removals(AT)
    assert [item.folder for item in found][-3:] == ["frozen-branch", "frozen-rate", "frozen-threshold"]
    assert len({item.folder for item in found}) == len(found) == 9


def test_training_keeps_what_is_left_and_is_evaluated_like_any_run(scenario: Scenario, tmp_path: Path) -> None:
    for seed in (0, 1):
        place = run_folder(tmp_path, "short", "ppo", Removal("knob", "branch", AT), seed)
        train_ablated(scenario, "ppo", place, seed, frozen="branch", at=AT, steps=1000)
    world, seeds = build_world(scenario, "test"), episode_seeds(0, 4, "test")
    outcomes = run_episodes(world, make_controller(str(place), scenario), seeds)
    used = set(np.unique(outcomes["branch"])) - {-1}
    assert used <= {[b.name for b in scenario.space.branches].index("shallow")}
    found = evaluate_ablations(scenario, a_contest(scenario, seeds), "random", tmp_path, seeds, "test", 0)
    assert found is None  # no runs of that agent
    found = evaluate_ablations(scenario, a_contest(scenario, seeds, "ppo"), "ppo", tmp_path, seeds, "test", 0)
    assert found is not None
    (row,) = found.rows
    assert (row.removed, row.value, row.runs) == ("branch", "shallow", 2)
    assert row.loss.value == pytest.approx(found.reward - row.reward)


def a_contest(scenario: Scenario, seeds: Any, name: str = "random") -> Contest:
    """A contest of one static decision and of a random controller under ``name``."""
    from adaptsplit.evaluation.analysis import Scored
    from adaptsplit.evaluation.metrics import episode_table

    world = build_world(scenario, "test")
    scored = []
    for player, kind, source in ((AT, "static", AT), (name, "learned", "random")):
        outcomes = run_episodes(world, make_controller(source, scenario), seeds)
        table = episode_table(outcomes, scenario.objective.reward(outcomes), scenario.space)
        scored.append(Scored(player, kind, (table,)))  # type: ignore[arg-type]
    info = episode_info(world, seeds, scenario.links("test"))
    return Contest("short", from_scored(scored, info), {BEST_STATIC: AT}, {name: "learned"})


def test_loss_pairs_equal_numbers_of_runs() -> None:
    full, rest = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.5, 1.5], [2.5, 3.5]])
    resamples = resample([np.array(["a", "b"]), np.array([0, 0])])
    found = loss(full, rest, resamples)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert loss(full, rest[0], resamples).value == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"without": "lnk"}, "did you mean 'link'"),
        ({"frozen": "rates", "at": AT}, "did you mean 'rate'"),
        ({"frozen": "rate"}, "the decision it is frozen at"),
        ({"without": "link", "frozen": "rate", "at": AT}, "or a knob to freeze"),
    ],
)
def test_what_cannot_be_removed_is_named(
    scenario: Scenario, tmp_path: Path, options: dict[str, str], match: str
) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=match):
        train_ablated(scenario, "ppo", tmp_path / "run", 0, **options)  # type: ignore[arg-type]


def test_an_agent_with_memory_cannot_be_folded(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use one of ppo"):
        train_ablated(scenario, "recurrent-ppo", tmp_path / "run", 0, without="link")


def trace(capacity: list[float], dt_s: float = 0.5) -> LinkTrace:
    flat = np.full(len(capacity), 0.05)
    return LinkTrace("t", "lte", dt_s, np.array(capacity), flat, 0 * flat)


def test_drops_and_returns_lie_where_the_capacity_says() -> None:
    link = trace([8e6] * 10 + [1e6] * 6 + [8e6] * 4)  # low from 5 s to 8 s, median 8 Mbit/s
    below, bin_s = below_quarter(link)
    assert bin_s == 0.5
    assert np.flatnonzero(below).tolist() == [10, 11, 12, 13, 14, 15]
    state, since = since_change(below, bin_s, np.array([4.9, 5.1, 7.4, 8.2, 0.0]))
    assert state.tolist() == [False, True, True, False, False]
    assert since == pytest.approx([6.9, 0.1, 2.4, 0.2, 2.0])  # the loop: 8 to 10 s, then 0 s on
    info = np.array([("t", 4.0)], dtype=[("recording", "U8"), ("offset_s", "f8")])
    masks = link_events([link], info, np.array([[0.5, 1.5, 3.5, 4.5, 9.0]]))
    assert masks["drop"].tolist() == [[False, True, False, False, False]]
    assert masks["return"].tolist() == [[False, False, False, True, False]]


def test_a_steady_link_never_drops() -> None:
    below, bin_s = below_quarter(trace([1e6] * 8))
    assert not below.any()
    assert np.isinf(since_change(below, bin_s, np.array([0.0, 3.0]))[1]).all()


def test_playing_decisions_again_gives_the_same_frames(scenario: Scenario) -> None:
    world, seeds = build_world(scenario, "test"), episode_seeds(1, 3, "test")
    outcomes = run_episodes(world, make_controller("random", scenario), seeds, seed=1)
    taken = decisions_of(outcomes, scenario.space)
    decided = outcomes["branch"] >= 0
    np.testing.assert_array_equal(taken[..., 0][decided], outcomes["branch"][decided])
    thresholds = np.array(scenario.space.thresholds, dtype=np.float32)
    np.testing.assert_array_equal(thresholds[taken[..., 2][decided]], outcomes["threshold"][decided])
    goodput = goodput_seen(world, scenario.space, seeds, outcomes)
    assert np.array_equal(np.isfinite(goodput), decided)
    assert 1e4 <= np.nanmin(goodput) < np.nanmax(goodput) <= 1.001e8
