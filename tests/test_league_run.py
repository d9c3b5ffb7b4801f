"""A tiny league for real: who plays, resuming, skipping, training what is missing, pages, command."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner

from adaptsplit.agents.policy import PolicyNet, save_policy
from adaptsplit.cli_league import league as league_command
from adaptsplit.config import read_yaml
from adaptsplit.errors import ConfigError, DataError, UnknownNameError
from adaptsplit.evaluation import (
    league_contest,
    league_markdown,
    league_navibound,
    league_report,
    league_text,
)
from adaptsplit.evaluation.documents import write_document
from adaptsplit.evaluation.evaluate import evaluate
from adaptsplit.evaluation.league import Options, diagnosis, run_league
from adaptsplit.evaluation.league_contest import Plan
from adaptsplit.evaluation.league_document import League, read_league
from adaptsplit.evaluation.league_entrants import line_up, trained
from adaptsplit.evaluation.league_rank import BEST_STATIC, TRAIN_STATIC
from adaptsplit.evaluation.league_train import Training, state_of, train_missing
from adaptsplit.observation import SIZE
from adaptsplit.scenario import Scenario, load_scenario

pytestmark = pytest.mark.timeout(300)

AGENTS = ("random", "deadline", "neurosurgeon", "ucb1")
PLAN = Plan(episodes=4, seed=3, anatomy_episodes=2)


def short(name: str, **changes: Any) -> Scenario:
    value = read_yaml(Path(str(resources.files("adaptsplit.scenarios"))) / "flight-lte.yaml")
    return load_scenario(value | {"name": name, "episode_s": 6} | changes)


def put_policy(scenario: Scenario, folder: Path, seed: int) -> None:
    """A random network as a trained run."""
    rng = np.random.default_rng(seed)
    width = len(scenario.space.table)
    layer = (rng.normal(size=(SIZE, width)).astype(np.float32), np.zeros(width, dtype=np.float32))
    folder.mkdir(parents=True, exist_ok=True)
    save_policy(folder / "policy.npz", "ppo", scenario.space, PolicyNet((layer,), "tanh", "flat"))


@pytest.fixture(scope="module")
def scenarios() -> list[Scenario]:
    lost = {"profile": "nowhere/profile"}
    return [short("one"), short("two", deadline_s=0.2), short("lost", **lost)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, scenarios: list[Scenario]) -> Path:
    place = tmp_path_factory.mktemp("league")
    for name, seed in (("one", 0), ("one", 1), ("two", 0)):
        put_policy(scenarios[0], place / "runs" / name / "ppo" / str(seed), seed)
    return place


def hold(folder: Path, scenarios: list[Scenario], **changes: Any) -> tuple[League, list[str]]:
    told: list[str] = []
    options: dict[str, Any] = {"out": folder / "out", "runs": folder / "runs", "agents": AGENTS, "plan": PLAN} | changes
    return run_league(scenarios, Options(**options), tell=told.append), told


@pytest.fixture(scope="module", autouse=True)
def no_reports() -> Iterator[None]:
    """Each scenario's own report is tested elsewhere, and takes longer than its evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adaptsplit.evaluation.report.write_report", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def held(folder: Path, scenarios: list[Scenario]) -> tuple[League, list[str]]:
    return hold(folder, scenarios)


def test_a_tiny_league_has_everybody(held: tuple[League, list[str]]) -> None:
    league, told = held
    assert [entry.name for entry in league.scenarios] == ["one", "two"]
    players = {*AGENTS, "ppo", BEST_STATIC, TRAIN_STATIC, "oracle-informed", "oracle-informed-0"}
    assert set(league.scenarios[0].cells) == players
    groups = {row.controller: row.group for row in league.standings["all"]}
    assert [groups[name] for name in (*AGENTS, "ppo")] == ["random", "rule", "published", "bandit", "learned"]
    assert {row.controller: row.runs for row in league.standings["all"]}["ppo"] == 1
    assert league.scenarios[0].roles.learned == "ppo"
    assert len(league.duels) == 4
    assert told[0].startswith("one: evaluated")


def test_its_numbers_are_those_of_the_evaluation(held: tuple[League, list[str]], scenarios: list[Scenario]) -> None:
    entry = held[0].entry("one")
    document = evaluate(scenarios[0], ["deadline"], episodes=4, seed=3, knob_episodes=0).document
    assert entry.roles.best_static == document.best_static.hindsight
    assert entry.cells["deadline"].reward == pytest.approx(document.controller("deadline").number("reward"), abs=1e-6)
    paired = document.controller("deadline").paired["hindsight"].difference["reward"].value
    assert entry.cells["deadline"].difference.value == pytest.approx(paired, abs=1e-6)


def test_a_scenario_without_data_is_skipped_with_its_reason(held: tuple[League, list[str]]) -> None:
    league, told = held
    (skipped,) = league.skipped
    assert skipped.name == "lost"
    assert "nowhere/profile" in skipped.reason
    assert any(line.startswith("lost: skipped") for line in told)


def test_an_equal_league_evaluates_nothing_again(
    held: tuple[League, list[str]],
    folder: Path,
    scenarios: list[Scenario],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(folder, tmp_path / "copy")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(league_contest, "evaluate", refuse)
    again, told = hold(tmp_path / "copy", scenarios)
    assert told[:2] == ["one: unchanged", "two: unchanged"]
    assert again.standings == held[0].standings
    with pytest.raises(AssertionError, match="evaluated again"):
        hold(tmp_path / "copy", scenarios, plan=Plan(episodes=5, seed=3))


def test_the_key_changes_with_all_that_the_numbers_depend_on(
    held: tuple[League, list[str]], folder: Path, scenarios: list[Scenario], tmp_path: Path
) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs")

    def key(scenario: Scenario = scenarios[0], agents: tuple[str, ...] = AGENTS, plan: Plan = PLAN) -> str:
        return league_contest.key_of(scenario, line_up(scenario, agents, tmp_path / "runs", None), plan)

    first = key()
    known = league_contest.read_contest(folder / "out" / "one")
    assert known is not None
    assert first == known.key == key()
    others = [key(short("one", fps=9)), key(agents=AGENTS[:2]), key(plan=Plan(episodes=4, seed=4, anatomy_episodes=2))]
    put_policy(scenarios[0], tmp_path / "runs" / "one" / "ppo" / "1", seed=9)
    assert len({first, key(), *others}) == 5


def test_a_half_written_scenario_counts_as_absent(held: tuple[League, list[str]], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "out" / "one", tmp_path / "one")
    assert league_contest.read_contest(tmp_path / "one") is not None
    (tmp_path / "one" / "contest.json").write_text("{", encoding="utf-8")
    assert league_contest.read_contest(tmp_path / "one") is None
    (tmp_path / "one" / "contest.json").unlink()
    assert league_contest.read_contest(tmp_path / "one") is None


def test_the_document_comes_back(held: tuple[League, list[str]], tmp_path: Path) -> None:
    path = tmp_path / "league.json"
    write_document(held[0], path)
    assert read_league(path) == held[0]
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"headlin": 1}))
    with pytest.raises(DataError, match="did you mean 'headline'"):
        read_league(path)
    with pytest.raises(DataError, match="make it with adaptsplit league"):
        read_league(tmp_path / "none.json")


def test_anatomy_shares_sum_to_one(held: tuple[League, list[str]]) -> None:
    for part in held[0].anatomy:
        assert [row.role for row in part.rows] == ["best static", "published", "bandit", "learned", "oracle"]
        conditions = [row.conditions[name] for row in part.rows for name in ("low", "middle", "high")]
        assert any(condition.frames for condition in conditions)
        for condition in conditions:
            for shares in condition.shares.values():
                assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)


def test_pages_hold_the_numbers_and_no_address(held: tuple[League, list[str]], tmp_path: Path) -> None:
    league = held[0]
    page = league_report.render_page(league)
    for word in (
        "Standings",
        "Who chooses what",
        "lost: skipped",
        "<svg",
        "deadline",
        league_text.headline(league)[:40],
    ):
        assert word in page
    assert "<script" not in page
    assert "http" not in page
    written = league_markdown.write_page(league, tmp_path)
    assert {path.name for path in written} >= {"league.md", "league-ranks.png", "league-anatomy.png"}
    text = (tmp_path / "league.md").read_text()
    assert "| deadline | rule |" in text
    assert str(Path.cwd()) not in text
    with pytest.raises(ConfigError, match="no such folder"):
        league_markdown.write_page(league, tmp_path / "none")


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits_the_terminal(held: tuple[League, list[str]], width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(league_text.console_table(held[0], width))
    text = console.export_text()
    assert "deadline" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_controllers_that_cannot_play_are_left_out_with_their_reason(scenarios: list[Scenario]) -> None:
    found = line_up(scenarios[0], ("temporal-decisions-style", "deadline"), None, None)
    assert [entrant.name for entrant in found.entrants] == ["deadline"]
    assert "skip branch" in found.left_out["temporal-decisions-style"]
    assert found.oracles == ("oracle-informed", "oracle-informed-0")


def test_every_registered_controller_has_a_group(scenarios: list[Scenario]) -> None:
    found = line_up(scenarios[0], None, None, None)
    assert {"random", "rule", "published", "bandit"} == set(found.groups.values())
    assert (found.groups["probing"], found.groups["linear-ts"]) == ("rule", "bandit")
    assert found.groups["robust-mpc"] == "published"


def test_trained_agents_are_found_by_scenario_and_seed(folder: Path) -> None:
    found = trained(folder / "runs", "one", None)
    assert {name: [place.name for place in places] for name, places in found.items()} == {"ppo": ["0", "1"]}
    assert trained(folder / "runs", "one", ("dqn",)) == {}
    assert trained(folder / "runs", "nowhere", None) == {}


def test_missing_runs_are_trained_begun_ones_resumed_and_failures_told(
    scenarios: list[Scenario], tmp_path: Path
) -> None:
    asked: list[tuple[str, int, bool]] = []

    def trainer(scenario: Scenario, agent: str, place: Path, seed: int, resume: bool) -> None:
        asked.append((agent, seed, resume))
        if seed == 2:
            raise ConfigError("out of luck")
        put_policy(scenario, place, seed)
        write_run(place, complete=True)

    begun = tmp_path / "one" / "ppo" / "1"
    begun.mkdir(parents=True)
    write_run(begun, complete=False)
    told: list[str] = []
    failed = train_missing(scenarios[0], tmp_path, Training(("ppo",), seeds=3), told.append, trainer)
    assert asked == [("ppo", 0, False), ("ppo", 1, True), ("ppo", 2, False)]
    assert [(item.name, item.reason) for item in failed] == [("one/ppo/2", "out of luck")]
    train_missing(scenarios[0], tmp_path, Training(("ppo",), seeds=2), told.append, trainer)
    assert len(asked) == 3


def write_run(place: Path, *, complete: bool) -> None:
    value: dict[str, Any] = dict.fromkeys(("agent", "scenario", "space", "observation", "hyperparameters"), "x")
    value |= {"schema": "adaptsplit.run/1", "validation": [], "seconds": 1, "steps": 1, "seed": 0, "warnings": []}
    (place / "run.json").write_text(json.dumps(value | {"complete": complete}))
    assert state_of(place) == ("begun" if not complete else "done")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"training": Training(), "runs": None}, "--runs DIR"),
        ({"ablate": ("three",)}, "name it in --scenarios"),
        ({"plan": Plan(episodes=1)}, "expected 2 to"),
        ({"agents": ("deadlin",)}, "did you mean 'deadline'"),
    ],
)
def test_bad_options_name_the_cure(
    scenarios: list[Scenario], tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=match):
        hold(tmp_path, scenarios[:1], **changes)


def test_a_league_of_nothing_says_why(scenarios: list[Scenario], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scenario can be played here; scenario 'lost'"):
        hold(tmp_path, scenarios[2:])


def test_a_changed_scenario_has_no_diagnosis(scenarios: list[Scenario]) -> None:
    assert diagnosis(scenarios[0]) is None
    assert diagnosis(load_scenario("flight-lte")) == "yes"
    assert diagnosis(short("flight-lte", fps=9)) is None


def test_bytes_can_fall_as_far_as_the_oracle_says(
    scenarios: list[Scenario], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, decision = Plan(episodes=2, anatomy_episodes=2), "static:stem/1/1.01"
    found = league_navibound.bounds(scenarios[0], decision, plan, "key", tmp_path)
    assert [each.oracle for each in found] == ["oracle-informed-0", "oracle-informed"]
    for each in found:
        assert each.bytes_saved is not None
        assert each.bytes_saved.value == pytest.approx(1 - each.bytes / each.reference_bytes)
        low, high = league_navibound.PRICES
        assert low <= each.bytes_per_kib < high
    assert found[1].quality_difference.value >= 0  # type: ignore[operator]
    monkeypatch.setattr(league_navibound.oracles, "plan", None)
    assert league_navibound.bounds(scenarios[0], decision, plan, "key", tmp_path) == found
    with pytest.raises(TypeError):
        league_navibound.bounds(scenarios[0], decision, plan, "another key", tmp_path)


def test_the_byte_oracle_pays_for_nothing_else(scenarios: list[Scenario]) -> None:
    changed = league_navibound.priced(scenarios[0], 0.1)
    assert changed.objective.weights() == (1.0, 0.0, 0.1 / 1024, 0.0, 0.0, 0.0)
    assert changed.name == "one"


def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(league_command)
    return app


def test_the_command_prints_one_document(scenarios: list[Scenario], tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump(scenarios[0].file.model_dump(mode="json", exclude_none=True)))
    arguments = ["--scenarios", str(file), "--agents", "random", "--out", str(tmp_path / "out"), "--episodes", "2"]
    done = CliRunner().invoke(command(), [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["schema"] == "adaptsplit.league/1"
    assert "one: evaluated" in done.stderr
    assert (tmp_path / "out" / "league.html").is_file()
    assert read_league(tmp_path / "out" / "league.json").headline is None
    assert "no trained agent" in league_text.headline(read_league(tmp_path / "out" / "league.json"))


def test_writing_the_page_needs_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command(), ["--out", "x", "--write"])
    assert isinstance(done.exception, ConfigError)
    assert "needs a folder docs/" in str(done.exception)
