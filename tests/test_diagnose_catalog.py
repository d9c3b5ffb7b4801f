"""The catalogue of diagnoses: what is listed without running anything, and updating that can be interrupted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from adaptsplit.errors import DataError, RunError
from adaptsplit.evaluation import diagnose_catalog as catalog
from adaptsplit.evaluation.results import Estimate
from adaptsplit.links.spec import FileLink, GenerateLink
from adaptsplit.scenario import Scenario, load_scenario, scenario_names

RECORDED = {"kind": "file", "path": "net/x.up", "family": "lte"}
GENERATED = {"kind": "generate", "generator": "lte-drone", "seeds": [1], "duration_s": 60, "family": "lte"}


def scenario(**changes: Any) -> Scenario:
    raw = yaml.safe_load((Path(load_scenario("flight-lte").base) / "flight-lte.yaml").read_text(encoding="utf-8"))
    return load_scenario(raw | changes)


def fake(each: Scenario) -> Any:
    """What ``entry_of`` reads of a diagnosis."""
    margin = Estimate(value=0.012, low=0.0081234567, high=None)
    document = SimpleNamespace(
        hash=catalog.content_hash(each, "validation", "s"),
        scenario_hash=catalog.scenario_hash(each),
        split="validation",
        episodes=3,
        pays="yes",
        verdict="yes (+0.012)",
        best_static="stem/0/0",
        binding="energy",
        standing=lambda name: SimpleNamespace(difference=margin),
        uses=[SimpleNamespace(oracle="oracle-informed", distinct=7)],
        cautions=[SimpleNamespace(text="modelled links")],
    )
    return SimpleNamespace(document=document)


def update(scenarios: list[Scenario], path: Path | None, diagnose: Any = fake) -> dict[str, str]:
    told: dict[str, str] = {}
    catalog.update(scenarios, path, "validation", "s", diagnose, told.__setitem__)
    return told


def test_entries_are_compact_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "diagnoses.json"
    assert update([scenario()], path) == {"flight-lte": "yes (+0.012)"}
    entry = catalog.read_catalog(path).entries["flight-lte"]
    assert entry.informed_0 == (0.012, 0.008123, 0.0)
    assert (entry.decisions, entry.cautions) == (7, ("modelled links",))
    assert not list(tmp_path.glob("*.part"))


def test_what_has_not_changed_is_skipped_and_what_has_is_made_anew(tmp_path: Path) -> None:
    path, asked = tmp_path / "diagnoses.json", []

    def counting(each: Scenario) -> Any:
        asked.append(each.fps)
        return fake(each)

    assert update([scenario()], path, counting) == {"flight-lte": "yes (+0.012)"}
    assert update([scenario()], path, counting) == {"flight-lte": "unchanged"}
    assert update([scenario(fps=12)], path, counting) == {"flight-lte": "yes (+0.012)"}
    assert asked == [10, 12]


def test_an_interrupted_update_keeps_what_was_done(tmp_path: Path) -> None:
    path = tmp_path / "diagnoses.json"

    def interrupted(each: Scenario) -> Any:
        if each.name == "second":
            raise KeyboardInterrupt
        return fake(each)

    with pytest.raises(KeyboardInterrupt):
        update([scenario(), scenario(name="second")], path, interrupted)
    assert list(catalog.read_catalog(path).entries) == ["flight-lte"]


def test_a_failure_and_missing_data_are_told_and_keep_the_old_entry(tmp_path: Path) -> None:
    path = tmp_path / "diagnoses.json"
    update([scenario()], path)

    def failing(each: Scenario) -> Any:
        raise RunError("no luck")

    links = {split: [RECORDED] for split in ("train", "validation", "test")}
    told = update([scenario(fps=12), scenario(name="far", links=links)], path, failing)
    assert told["flight-lte"] == "failed: no luck"
    assert told["far"].startswith("missing: link 'net/x.up'")
    assert list(catalog.read_catalog(path).entries) == ["flight-lte"]


def test_without_a_path_nothing_is_written_or_skipped(tmp_path: Path) -> None:
    assert update([scenario()], None) == update([scenario()], None) == {"flight-lte": "yes (+0.012)"}
    assert not list(tmp_path.iterdir())


def test_a_listed_scenario_says_what_is_known() -> None:
    known = catalog.Catalog.model_validate({"schema": catalog.SCHEMA})
    bare = catalog.listed(scenario(), known)
    assert (bare.families, bare.links, bare.published, bare.missing, bare.pays) == (
        ("lte",),
        "generated",
        False,
        None,
        None,
    )
    entry = catalog.entry_of(fake(scenario()))
    known = known.model_copy(update={"entries": {"flight-lte": entry}})
    assert catalog.listed(scenario(), known).pays == "yes (+0.012)"
    assert not catalog.listed(scenario(), known).outdated
    assert catalog.listed(scenario(deadline_s=0.3), known).outdated


def test_every_shipped_scenario_can_be_listed() -> None:
    known = catalog.read_catalog()
    found = [catalog.listed(load_scenario(name), known) for name in scenario_names()]
    assert {item.name for item in found} >= {"flight-lte", "eurosat-uplinks"}
    assert all(item.families for item in found)
    assert all(item.links == "recorded" or item.name != "eurosat-uplinks" for item in found)


@pytest.mark.parametrize(
    ("extra", "source"),
    [
        ({}, "generated"),
        ({"rtt_from": {"path": "net/rtt.txt"}}, "recorded"),
        ({"generator": "markov", "parameters": {"fitted_from": {"path": "net/x.up"}, "states": 4}}, "recorded"),
    ],
)
def test_a_generated_link_that_needs_a_recording_is_recorded(extra: dict[str, Any], source: str) -> None:
    spec = GenerateLink.model_validate(GENERATED | extra)
    assert catalog.link_source([spec]) == source
    assert [item.path.startswith("net/") for item in catalog.recordings(spec)] == [True] * (source == "recorded")


def test_generated_and_recorded_links_together_are_mixed() -> None:
    both = [GenerateLink.model_validate(GENERATED), FileLink.model_validate(RECORDED)]
    assert catalog.link_source(both) == "mixed"


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "other"}', '{"schema": "adaptsplit.diagnoses/1", "x": 1}'])
def test_a_broken_catalogue_is_named_with_the_cure(tmp_path: Path, content: str) -> None:
    path = tmp_path / "diagnoses.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"diagnoses\.json"):
        catalog.read_catalog(path)


def test_no_catalogue_is_an_empty_one(tmp_path: Path) -> None:
    assert catalog.read_catalog(tmp_path / "none.json").entries == {}
