"""The league's statistics: ranks, scores, corrections and the NaviSplit headline with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptsplit.errors import DataError
from adaptsplit.evaluation import (
    league_rank,
)
from adaptsplit.evaluation import league_verdicts as verdicts
from adaptsplit.evaluation.league_episodes import Episodes, read_episodes, write_episodes
from adaptsplit.evaluation.league_navisplit import compare, reference, sentence
from adaptsplit.evaluation.league_rank import BEST_STATIC, TRAIN_STATIC, Contest

STATIC = [0.5, 0.5, 0.5, 0.5]
ORACLE = [0.7, 0.6, 0.7, 0.6]  # a gap of 0.15
GOOD = [[0.6, 0.6, 0.6, 0.6], [0.7, 0.5, 0.7, 0.5]]  # two runs, +0.1 each: two thirds of the gap
RULE = [0.5, 0.4, 0.5, 0.4]  # -0.05
TWIN = RULE


def made(rewards: dict[str, Any], kinds: dict[str, str], labels: str = "a") -> Episodes:
    """Episodes of hand-made rewards; bytes are 100 times the reward, quality is the reward itself."""
    rows = [(i, row) for i, values in enumerate(rewards.values()) for row in np.atleast_2d(values)]
    table = np.array([row for _, row in rows], dtype=np.float32)
    metrics = {"reward": table, "quality": table, "bytes": 100 * table, "energy_mj": 0 * table}
    count = table.shape[1]
    recording = np.array([f"{labels}{i}" for i in range(count)])
    owner = np.array([i for i, _ in rows])
    names = tuple(rewards)
    return Episodes(
        names, tuple(kinds[n] for n in names), owner, metrics, recording, np.zeros(count, int), np.full(count, "lte")
    )


def contest(name: str = "one", shift: float = 0.0, labels: str = "a", **changes: Any) -> Contest:
    """A contest of a static decision, a learned agent, a rule and its twin, and both informed oracles."""
    rewards = {"static:x": STATIC, "good": np.array(GOOD) + shift, "rule": RULE, "twin": TWIN}
    rewards |= {"oracle-informed-0": ORACLE, "oracle-informed": np.array(ORACLE) + 0.15}
    kinds = {name: "oracle" if name.startswith("oracle") else "rule" for name in rewards}
    kinds |= {"static:x": "static", "good": "learned"}
    groups = {"good": "learned", "rule": "published", "twin": "rule"}
    groups |= {"oracle-informed-0": "oracle", "oracle-informed": "oracle"}
    values: dict[str, Any] = {"name": name, "episodes": made(rewards, kinds, labels), "groups": groups}
    return Contest(**values | {"statics": {BEST_STATIC: "static:x"}, "learned": "good"} | changes)


def test_normalised_scores_have_the_known_values() -> None:
    found = contest()
    assert found.score("good").value == pytest.approx(2 / 3, abs=1e-6)  # type: ignore[union-attr]
    assert found.score("rule").value == pytest.approx(-1 / 3, abs=1e-6)  # type: ignore[union-attr]
    assert found.score("good", "oracle-informed").value == pytest.approx(1 / 3, abs=1e-6)  # type: ignore[union-attr]
    assert found.difference("good").value == pytest.approx(0.1, abs=1e-6)


def test_pooled_gap_is_a_ratio_of_sums_and_the_score_a_mean_of_ratios() -> None:
    wide = contest("wide", statics={BEST_STATIC: "rule", TRAIN_STATIC: "twin"})  # gap 0.2, gain of good 0.15
    both = [contest(), wide]
    pooled = league_rank.pooled_gap(both, {"one": "good", "wide": "good"})
    assert pooled is not None
    assert pooled.value == pytest.approx((0.1 + 0.15) / (0.15 + 0.2), abs=1e-6)
    assert league_rank.mean_score(both, "good").value == pytest.approx((2 / 3 + 3 / 4) / 2, abs=1e-6)  # type: ignore[union-attr]
    assert pooled.low <= pooled.value <= pooled.high


def test_ranks_share_ties_and_leave_oracles_out() -> None:
    ranks = league_rank.rank_columns(np.array([[3.0, 1.0], [3.0, 2.0], [5.0, 0.0]]))
    assert ranks.tolist() == [[2.5, 2.0], [2.5, 1.0], [1.0, 3.0]]
    found = league_rank.mean_ranks([contest(), contest("worse", shift=-0.5)])
    assert {name: value.value for name, value in found.items()} == {
        BEST_STATIC: (2 + 1) / 2,
        "good": (1 + 4) / 2,
        "rule": (3.5 + 2.5) / 2,
        "twin": (3.5 + 2.5) / 2,
    }


def test_who_missed_a_scenario_is_not_ranked() -> None:
    less = contest("less", groups={"good": "learned", "oracle-informed-0": "oracle"})
    assert set(league_rank.mean_ranks([contest(), less])) == {BEST_STATIC, "good"}
    rows = {row.controller: row for row in verdicts.standings([contest(), less])}
    assert rows["rule"].rank is None
    assert (rows["rule"].scenarios, rows["good"].scenarios) == (1, 2)


def test_probability_of_improvement_counts_ties_as_halves() -> None:
    found = league_rank.mean_wins([contest()], {"one": ("rule", BEST_STATIC)})
    assert found is not None
    assert found.value == 0.25  # two ties of four
    good = league_rank.mean_wins([contest()], {"one": ("good", BEST_STATIC)})
    assert good is not None
    assert good.value == (4 + 2 + 1) / 8  # run one wins all, run two wins two and ties two


def test_profile_is_the_share_of_episodes_at_or_above() -> None:
    found = league_rank.profile([contest()], "oracle-informed-0")
    assert found is not None
    shares = dict(zip(league_rank.TAU, found[0], strict=True))
    assert (shares[0.0], shares[0.625], shares[1.0], shares[1.25], shares[1.5]) == (1.0, 1.0, 0.5, 0.5, 0.0)
    assert all(low <= mid <= high for mid, low, high in zip(*found, strict=True))


def test_holm_on_a_known_example() -> None:
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdicts.holm([0.6, 0.9]) == [1.0, 1.0]
    assert verdicts.holm([]) == []


def test_p_values_of_known_draws() -> None:
    assert verdicts.p_value(np.full(99, 0.1)) == pytest.approx(2 / 100)
    assert verdicts.p_value(np.concatenate([np.full(90, 0.1), np.full(9, -0.1)])) == pytest.approx(2 * 10 / 100)
    assert verdicts.p_value(np.zeros(99)) == 1.0
    assert [verdicts.verdict(*pair) for pair in ((0.1, 0.01), (-0.1, 0.01), (0.1, 0.05))] == ["better", "worse", "same"]


def test_p_values_are_as_frequent_as_they_say_when_nothing_differs() -> None:
    rng = np.random.default_rng(1)
    found = []
    for i in range(200):
        rewards = {"static:x": np.zeros(60), "noise": rng.normal(0, 0.1, 60)}
        episodes = made(rewards, {"static:x": "static", "noise": "rule"})
        one = Contest("n", episodes, {BEST_STATIC: "static:x"}, {"noise": "rule"}, seed=i, resample_count=400)
        found.append(verdicts.p_value(one.draws("noise")))
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.045)


def test_scenarios_on_the_same_recordings_share_their_draws_and_no_training_runs() -> None:
    one, two, other = contest("one"), contest("two"), contest("three", labels="b")
    assert np.array_equal(one.resamples.weights, two.resamples.weights)
    assert not np.array_equal(one.resamples.weights, other.resamples.weights)
    assert not np.array_equal(one.resamples.runs(5), two.resamples.runs(5))


def test_duels_take_the_validation_choice_against_the_best_in_hindsight() -> None:
    both = [contest(), contest("worse", shift=-0.3)]
    static, published = verdicts.duels(both, "static"), verdicts.duels(both, "published")
    assert [(duel.rival, duel.verdict) for duel in static] == [("static:x", "better"), ("static:x", "worse")]
    assert [duel.rival for duel in published] == ["rule", "rule"]
    assert all(duel.p_holm >= duel.p for duel in (*static, *published))
    line = verdicts.headline(both, (*static, *published))
    assert line is not None
    assert (line.at_least_static, line.better_static, line.scenarios) == (1, 1, 2)
    assert verdicts.headline([contest(learned=None)], ()) is None


def test_tallies_count_scenarios() -> None:
    found = verdicts.tally([contest(), contest("worse", shift=-0.3)], "good", BEST_STATIC)
    assert (found.better, found.same, found.worse) == (1, 0, 1)
    against = verdicts.tally([contest()], "rule", verdicts.BEST_PUBLISHED)
    assert (against.better, against.same, against.worse) == (0, 1, 0)  # it is the best published one itself


def test_an_undefined_gap_gives_no_score() -> None:
    flat = contest(statics={BEST_STATIC: "oracle-informed"})
    assert flat.score("good") is None
    assert league_rank.mean_score([flat], "good") is None
    assert league_rank.pooled_gap([flat], {"one": "good"}) is None
    assert league_rank.profile([flat], "good") is None


def test_episodes_come_back_and_damage_is_refused(tmp_path: Path) -> None:
    before, path = contest().episodes, tmp_path / "episodes.npz"
    write_episodes(before, path)
    after = read_episodes(path)
    assert (after.names, after.kinds) == (before.names, before.kinds)
    np.testing.assert_array_equal(after.of("good"), before.of("good"))
    np.testing.assert_allclose(after.of("good"), GOOD, rtol=1e-6)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="not the episodes of a league"):
        read_episodes(path)
    np.savez(path, names=np.array(["a"]))
    with pytest.raises(DataError, match="run adaptsplit league again"):
        read_episodes(path)
    with pytest.raises(DataError, match="known: static:x"):
        before.of("nobody")


def test_episodes_must_fit_their_names() -> None:
    good = contest().episodes
    with pytest.raises(DataError, match="do not fit"):
        Episodes(good.names[:2], good.kinds[:2], good.owner, good.values, good.recording, good.segment, good.family)


def test_navisplit_takes_the_cheapest_static_of_almost_the_best_quality() -> None:
    rewards = {"static:fat": [0.900] * 4, "static:lean": [0.8985] * 4, "static:poor": [0.80] * 4, "ours": [0.9] * 4}
    episodes = made(rewards, {name: "static" for name in rewards} | {"ours": "learned"})
    sent = np.array([[1000.0], [600.0], [10.0], [24.0]], dtype=np.float32) * np.ones((1, 4), dtype=np.float32)
    episodes = Episodes(
        *(episodes.names, episodes.kinds, episodes.owner, episodes.values | {"bytes": sent}),
        *(episodes.recording, episodes.segment, episodes.family),
    )
    assert reference(episodes) == ("static:fat", "static:lean")
    found = compare(Contest("navi", episodes, {BEST_STATIC: "static:fat"}, {"ours": "learned"}))
    (row,) = found.rows
    assert row.bytes_saved is not None
    assert row.bytes_saved.value == pytest.approx(0.96)
    assert row.quality_difference.value == pytest.approx(0.0015, abs=1e-6)
    assert row.reached
    assert "ours sends 96 % less at +0.15 points" in sentence(found)


def test_navisplit_without_any_byte_to_save() -> None:
    silent = contest().episodes
    silent = Episodes(
        *(silent.names, silent.kinds, silent.owner, silent.values | {"bytes": 0 * silent.values["bytes"]}),
        *(silent.recording, silent.segment, silent.family),
    )
    found = compare(contest(episodes=silent))
    assert all(row.bytes_saved is None and not row.reached for row in found.rows)
