"""The parts of a diagnosis, each held against what is known by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit.decision import BranchSpec, DecisionSpace, exit_rules
from adaptsplit.envs import World, build_world, episode_seeds
from adaptsplit.evaluation import diagnose_checks as checks
from adaptsplit.evaluation import diagnose_relax as relax
from adaptsplit.evaluation.diagnose_bench import Bench, run_statics
from adaptsplit.evaluation.diagnose_document import Relaxation, Standing
from adaptsplit.evaluation.diagnose_fitted import FittedController, MaskedController, Rollouts, field_groups, roll_out
from adaptsplit.evaluation.diagnose_use import decisions_of, frozen_tables, oracle_rows, use_of
from adaptsplit.evaluation.grid import run_static
from adaptsplit.evaluation.metrics import episode_table
from adaptsplit.evaluation.results import Estimate
from adaptsplit.evaluation.sensitivity import changes, ranking, under
from adaptsplit.objective import Objective
from adaptsplit.observation import FIELDS, index
from adaptsplit.outcome import Outcomes, Path, empty
from adaptsplit.scenario import Scenario, load_scenario

SPACE = DecisionSpace(
    (
        BranchSpec("stem", "split", ("a", "b")),
        BranchSpec("deep", "split", ("a", "b")),
        BranchSpec("local", "local"),
        BranchSpec("skip", "skip"),
    ),
    *exit_rules((0.0, 0.8, 1.01), (0.5, 1.0)),
)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


@pytest.fixture(scope="module")
def world(scenario: Scenario) -> World:
    return build_world(scenario, "validation")


def taken(*names: str) -> Outcomes:
    """Records of the named decisions, one episode; "drop" for a dropped frame."""
    records = empty(len(names))
    for record, name in zip(records, names, strict=True):
        if name != "drop":
            decision = SPACE.parse(name)
            record["branch"], record["rate"] = decision.branch, decision.rate
            record["threshold"] = SPACE.thresholds[decision.threshold]
            record["patience"] = SPACE.patience[decision.threshold]
    return records[None]


def test_decisions_are_read_back_from_records() -> None:
    names = ("stem/1/0.8@0.5", "deep/0/1.01", "local/0/0", "skip/0/0", "stem/0/0", "drop")
    found = decisions_of(taken(*names), SPACE)[0]
    assert [SPACE.name(row) for row in found[:-1]] == list(names[:-1])
    assert found[-1].tolist() == [-1, -1, -1]


def test_use_counts_decided_frames() -> None:
    use = use_of("x", taken(*["stem/0/0"] * 17, "deep/1/1.01", "deep/1/1.01", "skip/0/0", "drop"), SPACE)
    assert (use.distinct, use.top, use.covering_90) == (3, "stem/0/0", 2)
    assert use.shares == pytest.approx({"stem/0/0": 0.85, "deep/1/1.01": 0.1, "skip/0/0": 0.05})
    assert use_of("x", taken("drop"), SPACE).top == "none"


def test_frozen_tables_hold_one_value_of_each_knob() -> None:
    tables = dict(frozen_tables(SPACE))
    assert set(tables) == {"branch", "rate", "exit rule", "skip", "patience"}
    assert [value for value, _ in tables["branch"]] == ["stem", "deep", "local", "skip"]
    for value, rows in tables["patience"]:
        names = [SPACE.name(row) for row in rows]
        assert {"stem/0/0", "skip/0/0", "local/0/0"} <= set(names)
        assert all(name.endswith("@0.5") == (value == "0.5") for name in names if "1.01" in name)
    ((_, never),) = tables["skip"]
    assert {SPACE.name(row) for row in oracle_rows(SPACE)} - {SPACE.name(row) for row in never} == {"skip/0/0"}


def test_a_space_without_skip_and_patience_has_three_knobs(scenario: Scenario) -> None:
    assert [knob for knob, _ in frozen_tables(scenario.space)] == ["branch", "rate", "exit rule"]


def played(world: World, scenario: Scenario, name: str) -> Outcomes:
    decision = scenario.space.parse(name)
    row = np.array([[decision.branch, decision.rate, decision.threshold]])
    return run_static(world, row, episode_seeds(0, 4, "validation"))[0]


def test_unlimited_capacity_delivers_everything_after_half_a_round_trip(world: World, scenario: Scenario) -> None:
    free = relax.unlimited_capacity(world)
    links = free.links
    for first, count, dt in zip(links.first, links.samples, links.dt_s, strict=True):
        part = links.table[first : first + count + 1]
        np.testing.assert_allclose(np.diff(part[:, 0]), relax.FAST_BPS * dt)
        np.testing.assert_allclose(part[-1, 5], count * dt)
    before, after = (played(each, scenario, "deep/1/1.01") for each in (world, free))
    assert np.nanmax(after["remote_latency_s"]) < np.nanmax(before["remote_latency_s"])
    assert (after["sent_bytes"] > 0).mean() > (before["sent_bytes"] > 0).mean()
    untouched = build_world(scenario, "validation").links.table
    np.testing.assert_array_equal(world.links.table, untouched)


def test_no_round_trip_saves_the_round_trip(world: World, scenario: Scenario) -> None:
    constant = world.links.table.copy()
    constant[:, 1:4] = [2e6, 0.06, 0.0]
    constant[:, 0] = np.concatenate([np.arange(n + 1) * dt * 2e6 for n, dt in zip(*_sizes(world), strict=True)])
    steady = world._replace(links=world.links._replace(table=constant))
    before, after = (played(each, scenario, "stem/0/1.01") for each in (steady, relax.no_round_trip(steady)))
    both = (before["sent_bytes"] > 0) & (after["sent_bytes"] > 0)
    saved = (before["remote_latency_s"] - after["remote_latency_s"])[both]
    np.testing.assert_allclose(np.median(saved), 0.06, atol=1e-3)


def _sizes(world: World) -> tuple[NDArray[Any], NDArray[Any]]:
    return world.links.samples, world.links.dt_s


def test_an_instant_board_takes_the_same_energy_and_no_time(world: World, scenario: Scenario) -> None:
    before, after = (played(each, scenario, "deep/0/0") for each in (world, relax.instant_board(world)))
    np.testing.assert_allclose(after["compute_j"].mean(), before["compute_j"].mean(), rtol=1e-3)
    assert np.nanmax(after["answer_latency_s"]) < 1e-5 < np.nanmin(before["answer_latency_s"])


def test_an_instant_server_saves_the_tail(world: World, scenario: Scenario) -> None:
    before, after = (played(each, scenario, "stem/0/1.01") for each in (world, relax.instant_server(world)))
    both = (before["sent_bytes"] > 0) & (after["sent_bytes"] > 0) & np.isfinite(before["remote_latency_s"])
    saved = np.median((before["remote_latency_s"] - after["remote_latency_s"])[both])
    assert saved == pytest.approx(float(np.median(world.stages.tail[0, 0])), rel=0.2)


def test_a_longer_deadline_turns_late_answers_into_answers(world: World, scenario: Scenario) -> None:
    before, after = (played(each, scenario, "offload/4/1.01") for each in (world, relax.longer_deadline(world)))
    assert (after["path"] == 3).mean() > (before["path"] == 3).mean()
    assert np.nanmax(before["answer_latency_s"]) <= 0.25 + 1e-6 < np.nanmax(after["answer_latency_s"]) <= 0.5 + 1e-6


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high)


def test_the_largest_gain_that_is_told_apart_binds() -> None:
    def item(name: str, value: float, low: float) -> Relaxation:
        worth = estimate(value, low, value + 1)
        return Relaxation(constraint=name, meaning="", worth=worth, paid=None, changed=0.0)

    assert relax.binding([item("noise", 0.5, -0.1), item("capacity", 0.02, 0.01), item("server", 0.01, 0.005)]) == (
        "capacity"
    )
    assert relax.binding([item("noise", 0.5, -0.1)]) is None


def standings(now: float, informed: float, rule: float, fitted: float, half: float = 0.004) -> dict[str, Standing]:
    rows = {"oracle-informed-0": ("oracle", now), "oracle-informed": ("oracle", informed)}
    found: dict[str, Any] = rows | {"deadline": ("rule", rule), "fitted": ("fitted", fitted)}
    return {
        name: Standing(
            name=name,
            role=role,
            episodes=9,
            reward=estimate(0.9 + value, 0.9, 1.0),
            difference=estimate(value, value - half, value + half),
        )
        for name, (role, value) in found.items()
    }


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            (0.012, 0.02, 0.006, 0.0),
            "yes (+0.0120 [+0.0080, +0.0160] for informed(0); deadline +0.0060 [+0.0020, +0.0100])",
        ),
        ((0.012, 0.02, 0.0, 0.005), "yes (+0.0120 [+0.0080, +0.0160] for informed(0); fitted +0.0050"),
        ((0.040, 0.05, 0.0, -0.001), "unclear (+0.0400 [+0.0360, +0.0440] for informed(0); deadline +0.0000"),
        ((-0.005, -0.003, -0.006, -0.004), "no (at most +0.0010: informed(inf) -0.0030"),
        ((-0.005, -0.009, -0.006, 0.0), "unclear (-0.0050"),
        ((0.002, 0.006, 0.008, 0.0), "unclear (+0.0020"),
    ],
)
def test_verdict(values: tuple[float, ...], text: str) -> None:
    pays, found = checks.verdict(standings(*values))
    assert found.startswith(text)
    assert found.startswith(pays)


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ((0.012, 0.02, 0.006, 0.0), []),
        ((0.040, 0.05, 0.0, -0.001), ["reach"]),
        ((-0.005, -0.003, -0.006, -0.004), ["margin", "margin"]),
        ((-0.005, -0.009, -0.006, -0.008), ["margin", "margin", "oracle", "fitted"]),
    ],
)
def test_cautions_about_the_margin(values: tuple[float, ...], kinds: list[str]) -> None:
    found = checks.margin_cautions(standings(*values))
    assert [item.kind for item in found] == kinds
    assert all("0.00" in item.text for item in found)


def test_a_fit_that_only_remembers_frames_is_shrunk() -> None:
    """Advantages that belong to frames, not to observations: folds of frames show that nothing carries over."""
    rng = np.random.default_rng(1)
    frames = rng.random((40, len(FIELDS))).astype(np.float32)
    noise, which = rng.normal(0.0, 0.3, 40), np.repeat(np.arange(40), 25)
    first = noise[which] - noise.mean() + 0.02
    data = Rollouts(frames[which], np.column_stack([first, -first]), np.array([[0, 0, 0], [1, 0, 0]]), which % 5)
    spread = FittedController(data, np.arange(len(FIELDS))).predict(frames)[:, 0].std()
    same = FittedController(replace(data, folds=rng.integers(5, size=1000)), np.arange(len(FIELDS)))
    assert spread < 0.5 * same.predict(frames)[:, 0].std()


def test_thresholds_outside_the_confidences_are_named(scenario: Scenario) -> None:
    profile = scenario.profile("validation")
    b = [branch.name for branch in profile.branches].index("deep")
    low, high = float(profile.exit_confidence[:, b].min()), float(profile.exit_confidence[:, b].max())
    space = DecisionSpace(profile.branches, (low - 0.01, (low + high) / 2, min(high + 1e-4, 1.0)))
    texts = [item.text for item in checks.threshold_cautions(profile, space) if "deep" in item.text]
    never = [text for text in texts if "never fires (share 0 of 1200)" in text]
    assert len([text for text in texts if "always fires (share 1 of 1200)" in text]) == 1
    assert len(never) == (1 if high < 1.0 else 0)


def test_sufficiency_of_links_that_can_be_computed_by_hand(world: World, scenario: Scenario) -> None:
    """A trace that serves for 3 s of every 4 and then stands still: what fits within 0.1 s, fits in 2.9 of 4 s."""
    dt, count = 0.05, 80
    table = np.zeros((count + 1, 6))
    table[:60, 1] = 1e6
    table[1:, 0] = np.cumsum(table[:-1, 1]) * dt
    links = world.links._replace(
        first=np.array([0]), samples=np.array([count]), share=np.ones(1), dt_s=np.array([dt]), table=table
    )
    here = world._replace(links=links)
    assert checks._delivered(here, 0, 0.1, 1e5 - 1) == pytest.approx(12 / 16)  # moments every 0.25 s
    assert checks._delivered(here, 0, 0.1, 1e5 + 1) == 0.0
    assert checks._delivered(here, 0, 1.25, 1.0) == 1.0
    found = checks.sufficiency(here, scenario.space)
    assert found is not None
    assert found.hardest_share <= found.easiest_share <= 0.8
    assert checks.link_cautions(found) == []


@pytest.mark.parametrize(("easiest", "hardest", "words"), [(1.0, 0.995, "always suffices"), (0.005, 0.0, "never")])
def test_link_that_never_matters(easiest: float, hardest: float, words: str) -> None:
    found = checks.Sufficiency(easiest="stem/a", easiest_share=easiest, hardest="deep/b", hardest_share=hardest)
    (caution,) = checks.link_cautions(found)
    assert words in caution.text
    assert "%" in caution.text


def small_world(world: World, tail: list[list[float]], payload: list[list[float]], head: list[float]) -> World:
    """A world of stem and deep with two rates each, local and skip, in which only what is compared is set."""
    quality = np.zeros((3, 4, 2))
    quality[:, :2] = tail
    sizes = np.zeros((3, 4, 2))
    sizes[:, :2] = payload
    exits = np.tile([0.5, 0.5, 0.99, 0.0], (3, 1))
    outcomes = world.outcomes._replace(tail_quality=quality, payload=sizes, exit_quality=exits)
    stages = world.stages._replace(
        head=np.tile(np.array(head)[:, None], (1, 4)), encode=np.zeros((4, 2, 4)), tail=np.zeros((4, 2, 4))
    )
    return world._replace(
        outcomes=outcomes, stages=stages, exit_branch=np.arange(4), rates=np.array([2, 2, 1, 1]), kind=np.arange(4)
    )


def test_a_dominated_branch_and_a_dominated_codec_are_named(world: World) -> None:
    here = small_world(world, [[0.8, 0.7], [0.7, 0.75]], [[100, 200], [100, 100]], [0.01, 0.02, 0.2, 0.0])
    used = np.array([list(vars_of("stem/0/1.01")), list(vars_of("local/0/0"))])
    texts = [item.text for item in checks.dominated_cautions(here, SPACE, used)]
    assert texts == [
        "branch stem: codec b is used by no oracle (0 frames) and dominated",
        "branch deep: no oracle uses it, and stem is no worse in quality, bytes and time",
    ]


def test_what_is_used_or_best_in_something_is_not_dominated(world: World) -> None:
    used = np.array([list(vars_of("stem/0/1.01"))])
    fast = small_world(world, [[0.8, 0.9], [0.7, 0.7]], [[100, 200], [100, 200]], [0.01, 0.005, 0.2, 0.0])
    assert [item.text for item in checks.dominated_cautions(fast, SPACE, used)] == [
        "branch deep: codec b is used by no oracle (0 frames) and dominated"
    ]
    same = small_world(world, [[0.8, 0.8], [0.8, 0.8]], [[100, 50], [100, 50]], [0.01, 0.01, 0.2, 0.0])
    used = np.array([list(vars_of(name)) for name in ("stem/0/1.01", "deep/0/1.01", "deep/1/0.8")])
    assert not [item for item in checks.dominated_cautions(same, SPACE, used) if "deep" in item.text]


def vars_of(name: str) -> tuple[int, int, int]:
    decision = SPACE.parse(name)
    return decision.branch, decision.rate, decision.threshold


def test_a_battery_that_ends_every_episode(world: World, scenario: Scenario) -> None:
    seeds, row = episode_seeds(0, 8, "validation"), scenario.space.table[0]
    assert checks.battery_cautions(world, seeds, row) == []
    empty_soon = world._replace(constants=world.constants._replace(battery_j=1000.0))
    (caution,) = checks.battery_cautions(empty_soon, seeds, row)
    assert "the battery ends 100% of the episodes" in caution.text


def test_static_rewards_under_any_weights_are_those_of_the_outcomes(scenario: Scenario) -> None:
    bench = Bench(scenario, "validation", 0, 3)
    statics = run_statics(bench, bench.world, bench.seeds, "grid")
    objective = Objective(energy_per_j=0.7, bytes_per_kib=0.01, switch=0.02, miss=0.3, latency_per_s=0.2)
    rewards = statics.rewards(objective)
    assert rewards.shape == (len(scenario.space.table), 3)
    for row in (0, 40, 131):
        outcomes = run_static(bench.world, scenario.space.table[row : row + 1], bench.seeds)[0]
        np.testing.assert_allclose(rewards[row], bench.reward(outcomes, objective), atol=1e-9)


def test_weights_to_try() -> None:
    assert changes(Objective()) == []
    tried = changes(Objective(miss=0.1))
    assert tried == [("quality", 0.5), ("quality", 2.0), ("miss", 0.5), ("miss", 2.0)]
    assert ranking({"a": np.array([1.0, 0.0]), "b": np.array([0.6, 0.6])}) == ("b", "a")


def test_under_another_objective_nothing_else_changes(scenario: Scenario) -> None:
    other = under(scenario, Objective(miss=1.0))
    assert other.objective.miss == 1.0
    assert other.file.model_copy(update={"objective": scenario.objective}) == scenario.file


def hand_made(field: str) -> Rollouts:
    """Two decisions; the first is better by 0.1 exactly when ``field`` is above one half."""
    rng = np.random.default_rng(0)
    observations = rng.random((2000, len(FIELDS))).astype(np.float32)
    first = np.where(observations[:, index(field)] > 0.5, 0.05, -0.05)
    folds = np.arange(2000) % 5
    return Rollouts(observations, np.column_stack([first, -first]), np.array([[0, 0, 0], [1, 0, 0]]), folds)


def test_the_fitted_controller_learns_what_it_can_see() -> None:
    data = hand_made("goodput")
    wanted = (data.advantages[:, 0] < 0).astype(int)
    link = field_groups()["link"]
    full = FittedController(data, np.arange(len(FIELDS)))
    assert (full.act(data.observations, None)[0][:, 0] == wanted).mean() > 0.95
    blind = FittedController(data, np.setdiff1d(np.arange(len(FIELDS)), link))
    assert (blind.act(data.observations, None)[0][:, 0] == wanted).mean() < 0.62
    masked = MaskedController(full, link, data.observations[:, link].mean(axis=0))
    assert (masked.act(data.observations, None)[0][:, 0] == wanted).mean() < 0.62


def test_groups_cover_every_field_once() -> None:
    columns = np.concatenate(list(field_groups().values()))
    assert sorted(columns.tolist()) == list(range(len(FIELDS)))


def test_rollouts_favour_what_is_better_in_the_mean(scenario: Scenario) -> None:
    train = build_world(scenario, "train")
    rows = np.array([list(_triple(scenario, name)) for name in ("shallow/0/0.95", "offload/4/1.01", "deep/0/0")])
    data = roll_out(train, rows, episode_seeds(0, 24, "train"), 300)
    assert data.observations.shape == (len(data.advantages), len(FIELDS))
    assert 150 < len(data.advantages) < 450
    np.testing.assert_allclose(data.advantages.sum(axis=1), 0.0, atol=1e-9)
    static = run_static(train, rows, episode_seeds(0, 24, "train"))
    truth = scenario.objective.reward(static).mean(axis=(1, 2))
    assert int(data.advantages.mean(axis=0).argmax()) == int(truth.argmax())
    assert int(data.advantages.mean(axis=0).argmin()) == int(truth.argmin())


def _triple(scenario: Scenario, name: str) -> tuple[int, int, int]:
    decision = scenario.space.parse(name)
    return decision.branch, decision.rate, decision.threshold


def test_stale_answers_are_counted_and_shown_where_there_are_any() -> None:
    outcomes = np.repeat(taken("stem/0/0", "skip/0/0", "skip/0/0", "local/0/0"), 2, axis=0)
    outcomes["path"] = [[Path.EXIT, Path.STALE, Path.MISS, Path.LOCAL], [Path.EXIT] * 4]
    table = episode_table(outcomes, np.zeros((2, 4)), SPACE)
    assert table.means["stale_ratio"].tolist() == [0.25, 0.0]
    assert table.means["fallback_ratio"].tolist() == [0.0, 0.0]
    assert table.shares["path"]["stale"] == 0.125
