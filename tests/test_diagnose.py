"""A whole diagnosis of the embedded scenario: what must hold between its numbers, and what is written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from adaptsplit.errors import ConfigError, DataError
from adaptsplit.evaluation.diagnose import Diagnosed, diagnose, rule_names, settings_of, write_diagnosis
from adaptsplit.evaluation.diagnose_document import Diagnosis, read_diagnosis
from adaptsplit.evaluation.diagnose_hash import content_hash, scenario_hash
from adaptsplit.evaluation.diagnose_text import markdown, sections, terminal
from adaptsplit.evaluation.sensitivity import under
from adaptsplit.objective import Objective
from adaptsplit.scenario import Scenario, load_scenario

EPISODES = 4


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


@pytest.fixture(scope="module")
def stages() -> dict[str, tuple[int, int]]:
    return {}


@pytest.fixture(scope="module")
def found(scenario: Scenario, stages: dict[str, tuple[int, int]]) -> Diagnosed:
    def progress(stage: str, done: int, total: int) -> None:
        assert done > stages.get(stage, (0, 0))[0]
        stages[stage] = (done, total)

    return diagnose(scenario, episodes=EPISODES, quick=True, progress=progress)


@pytest.fixture
def document(found: Diagnosed) -> Diagnosis:
    return found.document


def reward(document: Diagnosis, name: str) -> float:
    return document.standing(name).reward.value or 0.0


def test_every_stage_of_the_progress_reaches_its_end(found: Diagnosed, stages: dict[str, tuple[int, int]]) -> None:
    assert len(stages) == 10
    assert all(done == total for done, total in stages.values())


def test_knowledge_orders_the_standings(document: Diagnosis) -> None:
    statics = reward(document, "best static")
    assert reward(document, "bound") >= reward(document, "oracle-clairvoyant") > reward(document, "oracle-informed")
    assert reward(document, "oracle-informed") > statics >= reward(document, "chosen on train")
    assert document.standing("best static").difference.value == 0.0
    assert document.standing("oracle-informed-0.5").episodes == 3


def test_differences_are_those_of_the_rewards(document: Diagnosis) -> None:
    for row in document.standings:
        if row.episodes == EPISODES:
            assert row.difference.value == pytest.approx(
                (row.reward.value or 0.0) - reward(document, "best static"), abs=1e-9
            )


def test_the_rules_are_all_there(document: Diagnosis, scenario: Scenario) -> None:
    assert {"deadline", "threshold"} <= set(rule_names(scenario))
    assert {row.name for row in document.standings if row.role == "rule"} == set(rule_names(scenario))


def test_an_oracle_uses_many_decisions_and_a_few_cover_most(document: Diagnosis) -> None:
    for use in document.uses:
        assert 5 < use.distinct < 60
        assert 1 <= use.covering_90 < use.distinct
        assert next(iter(use.shares.items())) == (use.top, use.top_share)
        assert list(use.shares.values()) == sorted(use.shares.values(), reverse=True)


def test_the_branch_is_the_knob_that_matters_here(document: Diagnosis) -> None:
    worth = {knob.knob: knob.worth.value or 0.0 for knob in document.knobs}
    assert set(worth) == {"branch", "rate", "exit rule"}
    assert worth["branch"] > 0.003
    assert worth["branch"] > worth["rate"]


def test_energy_binds_the_embedded_scenario(document: Diagnosis) -> None:
    relaxed = {item.constraint: item for item in document.relaxations}
    physics = {"capacity", "round trip", "compute time", "server", "deadline"}
    assert set(relaxed) == physics | {"energy", "bytes"}
    assert document.relaxations[0].constraint == document.binding == "energy"
    assert relaxed["energy"].paid == pytest.approx(0.3 * 0.13, abs=0.3 * 0.06)
    assert relaxed["energy"].changed > relaxed["server"].changed
    assert all(relaxed[name].paid is None for name in physics)


def test_every_group_of_the_observation_was_tried(document: Diagnosis) -> None:
    assert {group.group for group in document.fitted.groups} >= {"link", "queue", "server", "device", "content"}
    moving = {group.group for group in document.fitted.groups if group.moves}
    assert {"link", "queue", "content", "history"} <= moving
    assert 1000 < document.fitted.states < 2500


def test_weights_are_halved_and_doubled(document: Diagnosis) -> None:
    tried = [(change.weight, change.factor) for change in document.sensitivity]
    assert tried == [("as it is", 1.0)] + [
        (name, factor) for name in ("quality", "energy_per_j", "bytes_per_kib") for factor in (0.5, 2.0)
    ]
    assert document.sensitivity[0].ranking[0] == "oracle-informed-0"
    # Half the price of everything else is the same objective as twice the quality, up to its unit.
    assert document.sensitivity[1].best_static != document.sensitivity[2].best_static


def test_cautions_name_their_numbers(document: Diagnosis) -> None:
    texts = [item.text for item in document.cautions]
    assert "modelled links: all 3 entries are generated" in texts
    assert any("threshold 0.7 always fires (share 1 of 1200)" in text for text in texts)
    assert not any(item.kind in ("battery", "published", "link") for item in document.cautions)


def test_it_is_written_and_read_back(found: Diagnosed, scenario: Scenario, tmp_path: Path) -> None:
    written = write_diagnosis(found, scenario, tmp_path)
    assert [path.name for path in written] == ["diagnosis.json", "diagnosis.md", "timeline.png"]
    assert read_diagnosis(tmp_path / "diagnosis.json") == found.document
    assert (tmp_path / "timeline.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (tmp_path / "diagnosis.md").read_text(encoding="utf-8")
    assert f"**Adapting pays: {found.document.verdict}**" in page
    assert "(timeline.png)" in page


@pytest.mark.parametrize("content", ["{", "[]", "{}", None])
def test_a_broken_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "diagnosis.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"diagnosis\.json"):
        read_diagnosis(path)


def test_terminal_and_markdown_hold_the_same_tables(document: Diagnosis) -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(terminal(document))
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert lines[2 if "adapting" in lines[2] else 1].startswith("adapting pays: ")
    page = markdown(document)
    for section in sections(document):
        assert section.title in out.getvalue()
        assert f"## {section.title}" in page
        assert all(len(row) == len(section.headings) for row in section.rows)


def test_no_number_is_outside_json(document: Diagnosis) -> None:
    json.loads(document.to_json(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(("episodes", "seed"), [(1, 0), (20_000, 0), (4, -1)])
def test_arguments_that_cannot_be_used(scenario: Scenario, episodes: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="expected 2 to"):
        diagnose(scenario, episodes=episodes, seed=seed)


def test_the_hash_follows_scenario_split_and_settings(scenario: Scenario, document: Diagnosis) -> None:
    settings = settings_of(EPISODES, True, 0)
    assert document.hash == content_hash(scenario, "validation", settings)
    other = under(scenario, Objective(energy_per_j=0.4))
    hashes = {
        document.hash,
        content_hash(scenario, "train", settings),
        content_hash(scenario, "validation", settings_of(EPISODES + 1, True, 0)),
        content_hash(other, "validation", settings),
    }
    assert len(hashes) == 4
    assert scenario_hash(other) != document.scenario_hash == scenario_hash(scenario)
