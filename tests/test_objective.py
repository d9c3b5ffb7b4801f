"""Objectives: families, overrides, and prices held against what they are derived from."""

from __future__ import annotations

import math
from pathlib import Path as FilePath

import numpy as np
import pytest
import yaml

from adaptsplit.config import parse
from adaptsplit.errors import ConfigError
from adaptsplit.evaluation.metrics import METRICS
from adaptsplit.objective import (
    WEIGHTS,
    Objective,
    bytes_price,
    energy_price,
    families,
    latency_price,
)
from adaptsplit.outcome import Path, empty
from adaptsplit.scenario import ScenarioFile, load_scenario

EXPECTED = {
    "accuracy-under-deadline": {},
    "energy-bound-mission": {"energy_per_j": 0.36},
    "data-capped-link": {"bytes_per_kib": 0.018},
    "fresh-answers": {"latency_per_s": 0.33},
}


def raw_scenario() -> dict[str, object]:
    path = FilePath(load_scenario("flight-lte").base) / "flight-lte.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def objective_of(given: object) -> Objective:
    return parse(ScenarioFile, raw_scenario() | {"objective": given}, "mine.yaml").objective


def test_the_four_families_are_registered() -> None:
    assert families.names() == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_family_is_its_weights_and_says_why(name: str) -> None:
    family, found = families.get(name), objective_of(name)
    plain = dict.fromkeys(WEIGHTS, 0.0) | {"quality": 1.0} | EXPECTED[name]
    assert {weight: getattr(found, weight) for weight in WEIGHTS} == plain
    assert found.family == name
    assert len(family.reason) > 80
    assert len(family.assumed) > 20


def test_what_stands_beside_the_family_replaces_its_weight() -> None:
    found = objective_of({"family": "energy-bound-mission", "energy_per_j": 2.0, "switch": 0.01})
    assert (found.energy_per_j, found.switch, found.quality) == (2.0, 0.01, 1.0)


def test_plain_weights_have_no_family() -> None:
    found = objective_of({"energy_per_j": 0.3})
    assert (found.family, found.quality, found.energy_per_j) == (None, 1.0, 0.3)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_written_out_it_reads_back_the_same(name: str) -> None:
    found = Objective.model_validate({"family": name, "miss": 0.25})
    assert Objective.model_validate(found.model_dump()) == found
    assert Objective.model_validate(found.model_dump(exclude_none=True)) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("fresh-answer", "did you mean 'fresh-answers'"),
        ({"family": "thrift"}, "unknown objective 'thrift'"),
        ({"family": "fresh-answers", "energy_per_jule": 1}, "did you mean 'energy_per_j'"),
        ({"family": "fresh-answers", "latency_per_s": -1}, "greater than or equal to 0"),
        ({"family": 3}, "objective.family"),
        (3, "objective"),
    ],
)
def test_what_cannot_be_used_is_named(given: object, words: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml: ") as caught:
        objective_of(given)
    assert words in str(caught.value)


def test_energy_price_is_the_slope_of_quality_times_time_aloft() -> None:
    quality, fps, base_w, battery_j, small_j = 0.9, 10.0, 25.0, 15048.0, 1e-6

    def worth(q: float, frame_j: float) -> float:
        return q * battery_j / (base_w + fps * frame_j)

    slope_q = (worth(quality + 1e-6, 0.0) - worth(quality, 0.0)) / 1e-6
    slope_e = (worth(quality, small_j) - worth(quality, 0.0)) / small_j
    assert energy_price(quality, fps, base_w) == pytest.approx(-slope_e / slope_q, rel=1e-4)
    assert energy_price(quality, fps, base_w) == pytest.approx(0.36)


def test_bytes_price_makes_an_hour_of_bytes_cost_what_it_costs() -> None:
    usd_per_mib, usd_per_hour, fps, kib = 0.05, 100.0, 10.0, 2.0
    lost = bytes_price(usd_per_mib, usd_per_hour, fps) * kib
    assert lost * usd_per_hour == pytest.approx(3600 * fps * kib / 1024 * usd_per_mib)
    assert bytes_price(usd_per_mib, usd_per_hour, fps) == pytest.approx(0.017578, rel=1e-4)


def test_latency_price_is_the_decay_of_an_answer() -> None:
    price = latency_price(1.0, 0.9672, 10.0)
    assert price == pytest.approx(0.3335, rel=1e-3)
    assert 1.0 - price * 1e-4 == pytest.approx(0.9672 ** (10.0 * 1e-4), abs=1e-8)
    assert latency_price(1.0, 1.0, 10.0) == 0.0


def test_fresh_answers_hold_the_retention_of_the_shipped_world() -> None:
    scenario = load_scenario("flight-lte")
    price = latency_price(1.0, scenario.summary().retention, scenario.fps)
    assert families.get("fresh-answers").weights["latency_per_s"] == pytest.approx(price, abs=0.005)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_prices_of_nonsense_are_refused(value: float) -> None:
    for call in (
        lambda: energy_price(0.9, 10.0, value),
        lambda: bytes_price(value, 100.0, 10.0),
        lambda: latency_price(1.0, value, 10.0),
    ):
        with pytest.raises(ConfigError, match="expected a positive number"):
            call()
    with pytest.raises(ConfigError, match="share"):
        latency_price(1.0, 1.5, 10.0)


def test_terms_sum_to_the_reward_and_agree_with_those_of_one_record() -> None:
    records = empty(3)
    records["path"] = [Path.REMOTE, Path.MISS, Path.STALE]
    records["quality"], records["sent_bytes"] = [0.75, 0.0, 0.5], [2048, 0, 0]
    records["compute_j"], records["radio_j"] = [0.1, 0.0, 0.01], [0.05, 0.0, 0.0]
    records["answer_latency_s"], records["switched"] = [0.2, np.nan, 0.01], [1, 0, 0]
    objective = Objective(energy_per_j=0.4, bytes_per_kib=0.02, switch=0.1, miss=0.5, latency_per_s=0.3)
    expected = [0.75 - 0.06 - 0.04 - 0.1 - 0.06, -0.5, 0.5 - 0.004 - 0.003]
    np.testing.assert_allclose(objective.reward(records), expected, rtol=1e-6)
    for i, record in enumerate(records):
        single = objective.terms_of({name: record[name].item() for name in records.dtype.names or ()})
        assert sum(single.values()) == pytest.approx(expected[i], rel=1e-6)


def test_scaling_one_weight_leaves_the_others() -> None:
    found = Objective(energy_per_j=0.4, bytes_per_kib=0.02).scaled("energy_per_j", 0.5)
    assert (found.energy_per_j, found.bytes_per_kib, found.quality) == (0.2, 0.02, 1.0)
    with pytest.raises(ConfigError, match="expected one of quality"):
        found.scaled("family", 2.0)


def test_stale_answers_are_a_metric_of_their_own() -> None:
    assert "stale_ratio" in {metric.name for metric in METRICS}
