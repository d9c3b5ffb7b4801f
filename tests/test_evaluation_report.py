"""Evaluation: the document of results, the report and the terminal tables, from outcomes made by hand."""

from __future__ import annotations

import builtins
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.errors import DataError, MissingExtraError
from adaptsplit.evaluation import results as doc
from adaptsplit.evaluation.analysis import Results, Scored, Setting, analyse
from adaptsplit.evaluation.console import console_table, live_table
from adaptsplit.evaluation.documents import write_document
from adaptsplit.evaluation.headline import champion, headline
from adaptsplit.evaluation.live import compare_live
from adaptsplit.evaluation.metrics import episode_table
from adaptsplit.evaluation.report import render_report, write_report
from adaptsplit.evaluation.timeline import Timeline, capacity_during, choose_episode
from adaptsplit.links import LinkTrace
from adaptsplit.objective import Objective
from adaptsplit.outcome import OUTCOME, Outcomes, Path

SPACE = DecisionSpace((BranchSpec("stem", "split", ("a", "b")), BranchSpec("local", "local")), (0.0, 0.8, 1.01))
EPISODES, FRAMES = 12, 50
STATICS = [f"static:{SPACE.name(row)}" for row in SPACE.table]


def outcomes_of(quality: float, seed: int) -> Outcomes:
    """Remote, exit, late and missed frames with a mean quality near ``quality``."""
    rng = np.random.default_rng(seed)
    records = np.zeros((EPISODES, FRAMES), dtype=OUTCOME)
    draw = rng.random(records.shape)
    choice = [Path.REMOTE, Path.EXIT, Path.FALLBACK_LATE, Path.MISS]
    records["path"] = np.select([draw < 0.6, draw < 0.9, draw < 0.97], choice[:3], choice[3])
    sent = (records["path"] == Path.REMOTE) | (records["path"] == Path.FALLBACK_LATE)
    shared = np.random.default_rng(99).normal(0, 0.02, (EPISODES, 1))
    records["quality"] = np.clip(quality + shared + rng.normal(0, 0.01, records.shape), 0, 1)
    records["frame"] = np.arange(FRAMES)
    records["arrived_s"] = np.arange(FRAMES) / 5
    records["threshold"], records["patience"] = 0.8, 1.0
    records["sent_bytes"] = np.where(sent, 1500, 0)
    records["answer_latency_s"] = np.where(records["path"] == Path.MISS, np.nan, 0.05 + 0.15 * draw)
    records["remote_latency_s"] = np.where(sent, 0.1 + 0.2 * draw, np.nan)
    records["agreement"] = np.where(sent, 0.9, np.nan)
    return records


def scored(name: str, kind: Any, *qualities: float) -> Scored:
    objective = Objective(bytes_per_kib=0.01)
    runs = [outcomes_of(quality, hash_of(name) + i) for i, quality in enumerate(qualities)]
    return Scored(name, kind, tuple(episode_table(run, objective.reward(run), SPACE) for run in runs))


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def setting() -> Setting:
    each = np.arange(EPISODES)
    return Setting(
        scenario="by-hand",
        seed=0,
        split="test",
        frames_per_episode=FRAMES,
        fps=5.0,
        deadline_s=0.25,
        objective=Objective(bytes_per_kib=0.01).model_dump(),
        space=SPACE.to_dict(),
        recording=np.array([f"r{i % 4}" for i in each]),
        segment=each // 4,
        family=np.array(["lte", "starlink"])[each % 2],
        description="made <by> hand",
        hashes={"profile test": "ab" * 32},
    )


def knobs() -> doc.Knobs:
    worth = doc.Estimate(value=0.02, low=0.01, high=0.03)
    found = tuple(
        doc.Knob(knob=knob, best_value="x", frozen_reward=0.8, worth=worth, by_value={"x": 0.8, "y": 0.7})
        for knob in ("branch", "rate", "threshold")
    )
    return doc.Knobs(oracle="oracle-informed", episodes=4, all_knobs_reward=0.82, knobs=found)


@pytest.fixture(scope="module")
def results() -> Results:
    """The static grid, a rule, a learned controller of three runs, two oracles."""
    everyone = [scored(name, "static", 0.7 + 0.01 * i) for i, name in enumerate(STATICS)]
    everyone += [scored("deadline", "rule", 0.78), scored("ppo", "learned", 0.84, 0.85, 0.86)]
    everyone += [scored("oracle-informed", "oracle", 0.9), scored("oracle-informed-0", "oracle", 0.88)]
    document = analyse(everyone, setting(), STATICS[0], knobs=knobs())
    first = {"ppo": outcomes_of(0.85, 1)[0], document.best_static.hindsight: outcomes_of(0.76, 2)[0]}
    times = np.arange(0, FRAMES / 5, 0.1)
    timeline = Timeline("r1", "lte", 1, times, 1e6 * (2 + np.sin(times)), first)
    return Results(document, tuple(everyone), timeline)


def test_document_names_the_best_static_twice_and_closes_the_gap(results: Results) -> None:
    document = results.document
    assert document.best_static.hindsight == STATICS[-1]
    assert document.best_static.chosen_on_train == STATICS[0]
    ppo = document.controller("ppo")
    expected = (0.85 - 0.76) / (0.90 - 0.76)
    assert ppo.number("gap_closed") == pytest.approx(expected, abs=0.05)
    assert ppo.number("gap_closed_0") == pytest.approx((0.85 - 0.76) / (0.88 - 0.76), abs=0.05)
    assert ppo.runs == 3
    difference = ppo.paired["hindsight"].difference["quality"]
    assert difference.value == pytest.approx(0.09, abs=0.01)
    assert (difference.low or 0) > 0
    assert ppo.number("regret") == pytest.approx(0.05, abs=0.01)
    assert set(document.families) == {"lte", "starlink"}
    assert document.families["lte"].episodes == EPISODES // 2


def test_intervals_hold_their_values(results: Results) -> None:
    for row in results.document.controllers:
        for name, value in row.metrics.items():
            if not isinstance(value, dict) and value is not None:
                low, high = row.bounds(name)
                assert low is None or high is None or low - 1e-9 <= value <= high + 1e-9, (row.name, name)


def test_results_json_is_valid_and_comes_back(results: Results, tmp_path: FilePath) -> None:
    path = tmp_path / "deep" / "results.json"
    write_document(results.document, path)
    value = json.loads(path.read_text())
    assert value["schema"] == "adaptsplit.results/1"
    metrics = next(row for row in value["controllers"] if row["name"] == "ppo")["metrics"]
    for key in ("reward", "quality", "miss_ratio", "fallback_ratio", "energy_mj", "bytes", "offload_ratio"):
        assert isinstance(metrics[key], float), key
    assert set(metrics["answer_latency_ms"]) == {"p50", "p95", "p99"}
    assert doc.read_results(path) == results.document


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v.update(schema="other/1"), "schema"),
        (lambda v: v.update(surprise=1), "surprise"),
        (lambda v: v["controllers"][0]["metrics"].pop("reward"), "reward"),
        (lambda v: v["best_static"].update(hindsight="nobody"), "nobody"),
        (lambda v: v["controllers"].append(v["controllers"][0]), "each name once"),
    ],
)
def test_broken_results_are_refused(results: Results, tmp_path: FilePath, change: Any, match: str) -> None:
    value = json.loads(results.document.to_json())
    change(value)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=match):
        doc.read_results(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_text_that_is_no_results(tmp_path: FilePath, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"results\.json"):
        doc.read_results(path)


def test_headline_says_what_was_found(results: Results) -> None:
    found = champion(results.document)
    assert found is not None
    assert found.name == "ppo"
    text = headline(results.document)
    assert text.startswith("ppo earns")
    assert f"more than the best of {len(STATICS)} static decisions" in text


def test_headline_does_not_flatter() -> None:
    everyone = [scored(name, "static", 0.8) for name in STATICS] + [scored("deadline", "rule", 0.6)]
    document = analyse(everyone, setting(), STATICS[0])
    assert "less than the best" in headline(document)
    assert "closes" not in headline(document)
    assert document.controller("deadline").number("gap_closed") is None


def test_gap_is_undefined_where_the_oracle_gains_nothing() -> None:
    everyone = [scored(name, "static", 0.8) for name in STATICS]
    best = max(everyone, key=lambda item: item.reward)
    everyone += [Scored("oracle-informed", "oracle", best.tables), scored("deadline", "rule", 0.81)]
    document = analyse(everyone, setting(), STATICS[0])
    assert document.controller("deadline").metrics["gap_closed"] is None
    assert not document.gap["oracle-informed"].defined
    assert "cannot be told apart" in render_report(Results(document, tuple(everyone)))


def comparison() -> Any:
    simulated = {"ppo": outcomes_of(0.85, 1), STATICS[0]: outcomes_of(0.7, 2)}
    live = {"ppo": outcomes_of(0.84, 3)[0], STATICS[0]: outcomes_of(0.6, 4)[0]}
    return compare_live(simulated, live, note="same trace")


def test_report_is_complete_and_self_contained(results: Results, tmp_path: FilePath) -> None:
    path = write_report(results, tmp_path / "out" / "report.html", live=comparison())
    page = path.read_text()
    for row in ("deadline", "ppo", "oracle-informed", "oracle-informed-0"):
        assert row in page
    assert re.search(r"https?:|//[a-z]|<script|<link|@import|url\((?!#)", page) is None
    assert page.count("<svg") == 13
    assert "made &lt;by&gt; hand" in page
    assert "Simulated against live" in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert len(page) < 3_000_000


def test_report_ids_do_not_leak_external_references(results: Results) -> None:
    page = render_report(results)
    ids = set(re.findall(r'id="([^"]+)"', page))
    for target in re.findall(r'(?:xlink:href|clip-path)="(?:url\()?#([^")]+)', page):
        assert target in ids


def test_report_without_matplotlib_names_the_extra(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"adaptsplit\[report\]"):
        render_report(results)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_console_table_fits(results: Results, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(console_table(results.document, width))
    text = console.export_text()
    assert "…" not in text
    for name in ("best static, hindsight", "deadline", "ppo x3", "oracle-informed-0"):
        assert name in text


def test_live_comparison_judges_by_the_promised_tolerance() -> None:
    live = comparison()
    verdicts = {(row.controller, row.column.name): row.verdict for row in live.rows}
    assert verdicts["ppo", "quality"] == "within"
    assert verdicts[STATICS[0], "quality"] == "outside"
    assert verdicts["ppo", "miss"] == "unknown"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(live_table(live))
    assert "…" not in console.export_text()
    with pytest.raises(DataError, match="same names"):
        compare_live({"a": outcomes_of(0.5, 0)}, {"b": outcomes_of(0.5, 0)})


def test_live_without_labels_is_unknown_not_wrong() -> None:
    unlabelled = outcomes_of(0.5, 0)
    unlabelled["quality"] = np.nan
    row = compare_live({"a": outcomes_of(0.5, 0)}, {"a": unlabelled}).rows[0]
    assert np.isnan(row.live)
    assert row.verdict == "unknown"


def test_values_of_another_number_of_episodes_are_refused() -> None:
    other = scored("deadline", "rule", 0.5)
    short = Setting(**{f: getattr(setting(), f) for f in Setting.__slots__} | {"recording": np.array(["a"])})
    with pytest.raises(DataError, match="one per episode"):
        analyse([other], short, "x")
    with pytest.raises(DataError, match="was not evaluated"):
        analyse([other], setting(), "static:nobody/0/0")


def test_capacity_is_looped_and_the_typical_episode_is_chosen() -> None:
    flat = np.full(4, 0.05)
    trace = LinkTrace("t", "lte", 0.5, np.array([1e6, 2e6, 3e6, 4e6]), flat, 0 * flat)
    times, capacity = capacity_during(trace, 1.5, 1.0)
    assert times.tolist() == [0.0, 0.5]
    assert capacity.tolist() == [4e6, 1e6]
    steady = LinkTrace("s", "lte", 0.5, np.full(4, 1e6), flat, 0 * flat)
    info = np.array([("s", 0.0), ("t", 0.0), ("t", 0.0)], dtype=[("recording", "U8"), ("offset_s", "f8")])
    gain = np.array([0.3, 0.9, 0.2])
    assert choose_episode(gain, info, {"t": trace, "s": steady}, 2.0) == 2
