"""Evaluation on the real simulator: the embedded scenario, short episodes."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from adaptsplit.agents import make_controller
from adaptsplit.config import read_yaml
from adaptsplit.envs import build_world, episode_seeds, run_episodes
from adaptsplit.errors import AdaptsplitError
from adaptsplit.evaluation import grid
from adaptsplit.evaluation.analysis import Results
from adaptsplit.evaluation.entrants import Entrant
from adaptsplit.evaluation.evaluate import evaluate
from adaptsplit.evaluation.grid import run_static
from adaptsplit.evaluation.results import read_results
from adaptsplit.scenario import Scenario, load_scenario

EPISODES = 4
AGENTS = ("static", "random", "deadline", "oracle-informed", "oracle-informed-0", "oracle-clairvoyant")


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """The embedded scenario with episodes of ten seconds."""
    value = read_yaml(Path(str(resources.files("adaptsplit.scenarios"))) / "flight-lte.yaml")
    return load_scenario(value | {"episode_s": 10})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def results(scenario: Scenario, folder: Path) -> Results:
    rule = make_controller("threshold", scenario)
    pooled = Entrant("pooled", "learned", (make_controller("deadline", scenario), make_controller("random", scenario)))
    return evaluate(scenario, [*AGENTS, rule, pooled], episodes=EPISODES, seed=3, out=folder, knob_episodes=1)


def test_everybody_is_there(results: Results, scenario: Scenario) -> None:
    names = {row.name for row in results.document.controllers}
    assert {f"static:{scenario.space.name(row)}" for row in scenario.space.table} <= names
    assert {"random", "deadline", "threshold", "pooled", *AGENTS[3:]} <= names
    kinds = {row.name: row.kind for row in results.document.controllers}
    assert (kinds["deadline"], kinds["random"], kinds["pooled"]) == ("rule", "rule", "learned")
    assert results.document.controller("pooled").runs == 2


def test_files_hold_the_same(results: Results, folder: Path) -> None:
    assert read_results(folder / "results.json") == results.document
    assert "oracle-clairvoyant" in (folder / "report.html").read_text()
    hashes = json.loads((folder / "results.json").read_text())["hashes"]
    assert {"scenario", "profile train", "profile test", "links train", "links test"} <= set(hashes)


def test_best_static_in_hindsight_is_the_best(results: Results) -> None:
    rewards = {row.name: row.number("reward") or 0.0 for row in results.document.of_kind("static")}
    assert results.document.best_static.hindsight == max(rewards, key=lambda name: rewards[name])


def test_clairvoyant_is_never_below_what_it_was_shown(results: Results) -> None:
    oracle = results.find("oracle-clairvoyant").values("reward")
    for name in ("deadline", "threshold", "random", results.document.best_static.hindsight):
        assert np.all(oracle >= results.find(name).values("reward") - 1e-6), name


def test_batched_grid_equals_one_controller_alone(scenario: Scenario) -> None:
    world, seeds = build_world(scenario, "test"), episode_seeds(3, 2, "test")
    rows = scenario.space.table[[3, 20]]
    batched = run_static(world, rows, seeds)
    for row, found in zip(rows, batched, strict=True):
        alone = run_episodes(world, make_controller(f"static:{scenario.space.name(row)}", scenario), seeds)
        for field in ("path", "quality", "sent_bytes", "answer_latency_s"):
            np.testing.assert_array_equal(found[field], alone[field])


def test_rewards_of_all_static_decisions_are_those_of_each_alone(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, seeds = build_world(scenario, "test"), episode_seeds(3, 2, "test")
    monkeypatch.setattr(grid, "BATCH", 10)  # five decisions at a time: the last block is not full
    assert len(scenario.space.table) % 5
    rewards = grid.static_rewards(world, scenario.space, scenario.objective, seeds)
    assert rewards.shape == (len(scenario.space.table), 2)
    for k in (0, 4, 5, len(rewards) - 1):
        alone = run_static(world, scenario.space.table[k : k + 1], seeds)[0]
        np.testing.assert_allclose(rewards[k], scenario.objective.reward(alone).mean(axis=1), rtol=1e-12)


def test_knobs_and_timeline(results: Results, scenario: Scenario) -> None:
    knobs = results.document.knobs
    assert knobs is not None
    assert [knob.knob for knob in knobs.knobs] == ["branch", "rate", "threshold"]
    assert [len(knob.by_value) for knob in knobs.knobs] == list(scenario.space.shape)
    timeline = results.timeline
    assert timeline is not None
    assert len(timeline.outcomes) == 2
    assert all(len(outcomes) == scenario.frames_per_episode for outcomes in timeline.outcomes.values())


def test_same_seed_same_numbers(results: Results, scenario: Scenario) -> None:
    again = evaluate(scenario, ["deadline"], episodes=EPISODES, seed=3, knob_episodes=0).document
    assert again.controller("deadline").metrics["reward"] == results.document.controller("deadline").metrics["reward"]
    assert again.best_static == results.document.best_static
    other = evaluate(scenario, ["deadline"], episodes=EPISODES, seed=4, knob_episodes=0).document
    assert other.controller("deadline").metrics["reward"] != again.controller("deadline").metrics["reward"]


@pytest.mark.parametrize(
    ("agents", "options", "match"),
    [
        (["deadlin"], {}, "did you mean 'deadline'"),
        (["oracle-informd"], {}, "did you mean 'oracle-informed'"),
        (["static:nobody/0/0"], {}, "unknown branch"),
        (["deadline", "deadline"], {}, "named twice"),
        (["deadline"], {"episodes": 0}, "0 episodes"),
        (["deadline"], {"split": "tset"}, "did you mean 'test'"),
    ],
)
def test_bad_arguments_name_the_cure(
    scenario: Scenario, agents: list[str], options: dict[str, object], match: str
) -> None:
    with pytest.raises(AdaptsplitError, match=match):
        evaluate(scenario, agents, **options)  # type: ignore[arg-type]
