"""The live A/B comparison: pairing by block, intervals, and the page; with logs made by hand and one real flight."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adaptsplit.bundle import Bundle, export_bundle
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.evaluation.live import compare_live
from adaptsplit.evaluation.live_ab import METRICS, Flown, LiveAb, compare_cells, live_ab, rotated
from adaptsplit.evaluation.report_live import ab_page, ab_rows, write_ab_page
from adaptsplit.outcome import Outcomes, empty
from adaptsplit.outcome import Path as Route
from adaptsplit.recorded_run import RecordedRun
from adaptsplit.scenario import load_scenario

NAMES = ("learned", "static:a", "static:b")
BLOCK, BLOCKS = 5, 6


def flight(link: str, turn: int, gain: dict[str, float], seed: int) -> Flown:
    """A flight in which quality is what scene and link allow in each block, plus each controller's own gain."""
    rng = np.random.default_rng(seed)
    scene = rng.uniform(0.3, 0.6, BLOCKS)
    order = rotated(NAMES, turn)
    records = empty(BLOCK * BLOCKS)
    records["frame"] = np.arange(len(records))
    records["branch"], records["path"] = 0, Route.EXIT
    own = [order[k // BLOCK % len(order)] for k in range(len(records))]
    records["quality"] = [scene[k // BLOCK] + gain[own[k]] for k in range(len(records))]
    records["answer_latency_s"] = 0.1
    records["sent_bytes"] = [100 if name == "learned" else 200 for name in own]
    return Flown(link, 0, RecordedRun({}, records, tuple(own), tuple({} for _ in own)))


def square(gains: dict[str, dict[str, float]]) -> LiveAb:
    """The scenes of a link are the same in its three flights, as they are live."""
    flights = [flight(link, turn, gain, seed) for seed, (link, gain) in enumerate(gains.items()) for turn in range(3)]
    return compare_cells(flights, NAMES, BLOCK, lambda records: records["quality"].astype(np.float64))


def test_pairing_by_block_takes_scene_and_link_out_of_the_difference() -> None:
    """Scenes differ by 0.3, controllers by 0.02: exactly that comes out, with an interval of no width per link."""
    gains = {"learned": 0.02, "static:a": 0.0, "static:b": 0.01}
    found = square({"x": gains, "y": gains})
    assert found.cells.shape == (len(METRICS), 3, 2 * BLOCKS)
    assert not np.isnan(found.cells).any(), "every controller decided once in every cell"
    for other, expected in ((1, 0.02), (2, 0.01)):
        for link in (None, "x", "y"):
            one = found.difference("quality", other, link)
            assert (one.value, one.low, one.high) == pytest.approx((expected,) * 3, abs=1e-6)
    assert found.means("bytes").tolist() == [100.0, 200.0, 200.0]
    assert found.difference("bytes", 1).value == -100.0


def test_links_that_disagree_make_the_interval_over_all_links_wide() -> None:
    gain = {link: {"learned": g, "static:a": 0.0, "static:b": 0.0} for link, g in (("x", 0.1), ("y", -0.1), ("z", 0.0))}
    found = square(gain)
    for link, low, high in (("x", 0.099, 0.101), ("y", -0.101, -0.099)):
        one = found.difference("quality", 1, link)
        assert low < one.low <= one.high < high
    over_all = found.difference("quality", 1)
    assert over_all.low < -0.05
    assert over_all.high > 0.05


def test_a_log_of_other_controllers_is_refused() -> None:
    stranger = flight("x", 0, dict.fromkeys(NAMES, 0.0), 0)
    with pytest.raises(DataError, match="flight on x: frames of static:b, not of this comparison"):
        compare_cells([stranger], NAMES[:2], BLOCK, lambda records: records["quality"])


def test_the_page_and_the_document_hold_every_difference(tmp_path: Path) -> None:
    found = square({"x": dict.fromkeys(NAMES, 0.0), "<y>": dict.fromkeys(NAMES, 0.1)})
    document = found.document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert set(document["differences"]) == {"all", "x", "<y>"}
    assert document["differences"]["all"]["static:a"]["bytes"] == pytest.approx([-100.0] * 3)
    assert len(ab_rows(found)) == 3 * 3
    outcomes: dict[str, Outcomes] = {name: flight("x", 0, dict.fromkeys(NAMES, 0.0), 0).run.records for name in NAMES}
    live = compare_live(outcomes, outcomes)
    page = ab_page(found, live, "a title")
    assert "learned less static:a" in page
    assert "&lt;y&gt;" in page
    assert "<y>" not in page
    assert write_ab_page(found, live, "a title", tmp_path / "live.html").read_text() == page


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle("deadline", load_scenario("flight-lte"), tmp_path_factory.mktemp("ab") / "bundle")


def test_what_cannot_be_flown_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    scenario = load_scenario("flight-lte")
    with pytest.raises(ConfigError, match="two or more, each once"):
        live_ab(bundle, scenario, "test", [0], ["bundle"], tmp_path)
    with pytest.raises(ConfigError, match="has traces 0 to 19"):
        live_ab(bundle, scenario, "test", [0, 20], ["bundle", "edge-only"], tmp_path)


@pytest.mark.slow
def test_a_real_square_of_two_controllers(bundle: Bundle, tmp_path: Path) -> None:
    """Two flights of two seconds: twenty frames each, in blocks of five, with three real processes."""
    scenario = load_scenario("flight-lte")
    short = load_scenario({**scenario.file.model_dump(mode="json"), "episode_s": 2.0})
    found, live = live_ab(bundle, short, "test", [3], ["bundle", "static:shallow/0/0"], tmp_path, block=5)
    assert found.controllers == ("deadline", "static:shallow/0/0")
    assert found.frames == 40
    assert found.cells.shape[2] == 4
    assert not np.isnan(found.cells[METRICS.index("reward")]).any()
    assert found.means("bytes")[1] == 0.0, "a threshold of 0 always ends on the device"
    assert live.frames == {"deadline": 20, "static:shallow/0/0": 20}
