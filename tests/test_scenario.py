"""Scenarios: strict files, errors that name the cure, splits that share nothing."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.scenario import SPLITS, load_scenario, scenario_names


def _document(name: str = "flight-lte") -> dict[str, Any]:
    return load_scenario(name).file.model_dump(mode="json", exclude_none=True)


@pytest.mark.parametrize("name", scenario_names())
def test_shipped_scenarios_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(_document(name)), encoding="utf-8")
    assert load_scenario(path).file == load_scenario(name).file


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"objective\.qualty: unknown key; did you mean 'quality'"):
        load_scenario({**_document(), "objective": {"qualty": 1.0}})


def test_every_fault_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        load_scenario({**_document(), "fps": -1, "windw": 3, "deadline_s": "soon"})
    text = str(caught.value)
    assert "3 fault(s)" in text
    assert "window" in text
    assert "deadline_s" in text


def test_unknown_scenario_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'flight-lte'"):
        load_scenario("flight-lt")


def test_missing_profile_names_the_command() -> None:
    scenario = load_scenario({**_document(), "profile": "nowhere"})
    with pytest.raises(ConfigError, match="adaptsplit profile MODEL"):
        scenario.profile("train")


def test_missing_data_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADAPTSPLIT_DATA", raising=False)
    with pytest.raises(ConfigError, match="ADAPTSPLIT_DATA"):
        load_scenario("eurosat-uplinks").links("train")
    with pytest.raises(ConfigError, match="not found"):
        load_scenario("eurosat-uplinks", tmp_path / "absent")


def test_frames_of_the_splits_are_disjoint_by_hash() -> None:
    scenario = load_scenario("flight-lte")
    hashes = {split: {row.tobytes() for row in scenario.profile(split).image_hash} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not hashes[one] & hashes[other]
        assert len(hashes[one]) == len(scenario.profile(one).image_hash)


def test_links_of_the_splits_are_disjoint_by_hash() -> None:
    scenario = load_scenario("flight-lte")
    digests = {split: {trace.digest() for trace in scenario.links(split)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not digests[one] & digests[other]


def test_recorded_links_of_the_splits_are_disjoint(shared_data: Path) -> None:
    scenario = load_scenario("eurosat-uplinks", shared_data)
    digests = {split: {trace.digest() for trace in scenario.links(split)} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not digests[one] & digests[other]
    files = {spec.path for split in ("train", "validation") for spec in getattr(scenario.file.links, split)}
    recorded = {spec.path for spec in scenario.file.links.test} & files
    assert recorded == {"net_starlink_autobahn/throughput.zip"}, "only the two Starlink drives share a file"
