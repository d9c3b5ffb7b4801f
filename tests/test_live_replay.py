"""A live log as a link, and the replay of a run in the simulator: what goes in comes out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from replay_cases import STATIC, as_live, log_of_link, trace, written
from typer.testing import CliRunner

from adaptsplit import cli_fidelity
from adaptsplit.bundle import Bundle, export_bundle
from adaptsplit.envs import build_world
from adaptsplit.errors import DataError, LinkError, RunError
from adaptsplit.evaluation.fidelity import FLIGHT_FILE
from adaptsplit.evaluation.live import REPLAY_COLUMNS
from adaptsplit.evaluation.replay import prepare, stage_rows
from adaptsplit.evaluation.sim_to_live import ALL, NOT_MODELLED, find_run, run_fidelity, sim_to_live
from adaptsplit.links import LinkClock, read_links, read_recordings
from adaptsplit.recorded_run import read_run
from adaptsplit.scenario import Scenario, load_scenario

# ---- the link -----------------------------------------------------------------------------------------------------


def test_a_steady_link_is_found_again(tmp_path: Path) -> None:
    """1 Mbit/s and 60 ms: 300 and 900 bytes take 2.4 and 7.2 ms, so the two can be told apart exactly."""
    made = trace(np.full(200, 1e6), np.full(200, 0.06))
    (found,) = read_links(written(tmp_path / "log", log_of_link(made, 20.0)))
    assert found.capacity_bps == pytest.approx(np.full(len(found), 1e6), rel=0.01)
    assert found.rtt_s == pytest.approx(np.full(len(found), 0.06), abs=5e-4)
    assert found.duration_s == pytest.approx(20.0, abs=0.2)
    assert "live log" in found.provenance[0]


def test_a_changing_link_gives_every_message_its_own_delay_again(tmp_path: Path) -> None:
    """Capacity and round trip both wander; what each message took is what it takes on the link that was found."""
    rng = np.random.default_rng(3)
    rates = np.exp(rng.normal(0, 0.3, 30)).repeat(10) * 2e6
    made = trace(rates, rng.uniform(0.04, 0.12, 30).repeat(10))
    rows = log_of_link(made, 30.0)
    (found,) = read_links(written(tmp_path / "log", rows))
    clock = LinkClock(found)
    messages = [row["times"] for row in rows if "times" in row]
    again = [clock.finish(m["sent_s"], 8.0 * m["wire_bytes"]) + clock.rtt(m["sent_s"] + 0.004) for m in messages]
    error = np.array(again) - [m["acked_s"] for m in messages]
    assert np.median(np.abs(error)) < 0.002
    assert np.quantile(np.abs(error), 0.9) < 0.03
    assert np.exp(np.mean(np.log(found.capacity_bps))) == pytest.approx(np.exp(np.mean(np.log(rates))), rel=0.25)


def test_an_outage_and_a_dead_edge_are_zero_capacity(tmp_path: Path) -> None:
    """Nothing passes from 5 to 7 s: one message is served after it. From 12 to 14.5 s nothing is ever acknowledged."""
    capacity = np.full(200, 1e6)
    capacity[50:70] = 0.0
    rows = log_of_link(trace(capacity, np.full(200, 0.06)), 20.0)
    rows = [row for row in rows if not 5.05 < row.get("times", {}).get("sent_s", 0.0) < 7.0]  # the window was closed
    for row in rows:
        if 12.0 < row.get("times", {}).get("sent_s", 0.0) < 14.5:
            del row["times"]["acked_s"]
    rows = [row for row in rows if row.get("event") != "beat" or not 12.0 <= row["sent_s"] < 14.5]
    (found,) = read_links(written(tmp_path / "log", rows))
    silent = np.flatnonzero(found.capacity_bps == 0.0) * found.dt_s
    first, second = silent[silent < 10.0], silent[silent > 10.0]
    assert (first[0], first[-1]) == pytest.approx((5.0, 7.0), abs=0.15)
    assert (second[0], second[-1]) == pytest.approx((12.0, 14.5), abs=0.2)


def test_messages_that_queued_tell_the_capacity_by_their_distance(tmp_path: Path) -> None:
    """All of one size, and more than the link carries: only the distance of their acknowledgements tells the rate."""
    made = trace(np.full(300, 6e4), np.full(300, 0.05))
    (found,) = read_links(written(tmp_path / "log", log_of_link(made, 10.0, sizes=(800,))))
    assert np.median(found.capacity_bps) == pytest.approx(6e4, rel=0.05)


def test_signal_is_kept_and_what_is_no_log_is_refused(tmp_path: Path) -> None:
    rows = log_of_link(trace(np.full(50, 1e6), np.full(50, 0.06)), 5.0)
    for row in rows:
        if "times" in row:
            row["times"]["signal_dbm"] = -80.0 if row["arrived_s"] < 2.0 else -100.0
    rows = [row for row in rows if not 2.95 < row.get("arrived_s", 0.0) < 3.95]  # a second of silence: 16 samples
    (found,) = read_recordings(written(tmp_path / "log", rows))
    signal = found.columns["signal_dbm"]
    assert signal[0] == -80.0
    assert signal[-1] == -100.0
    assert 14 <= found.filled <= 18
    wrong: list[Any] = [{"event": "run"}, 3]
    cases: tuple[tuple[list[Any], str], ...] = ((rows[:1], "0 messages, 0 answered"), (wrong, "line 2: found '3"))
    for kept, message in cases:
        with pytest.raises(LinkError, match=message):
            read_links(written(tmp_path / "log", kept))
    broken: list[dict[str, Any]] = [{"event": "run"}, {"event": "beat", "sent_s": 2.0, "heard_s": 1.0}]
    with pytest.raises(LinkError, match=r"line 2: found 1\.0 as 'heard_s', expected a number, 2 to"):
        read_links(written(tmp_path / "log", broken))


# ---- the replay ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


@pytest.fixture(scope="module")
def bundle(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle("deadline", scenario, tmp_path_factory.mktemp("replay") / "bundle")


def test_a_simulated_run_written_as_a_log_comes_out_as_it_went_in(
    scenario: Scenario, bundle: Bundle, tmp_path: Path
) -> None:
    """The whole chain against the truth: link, frames, battery, controllers, blocks and comparison."""
    found = sim_to_live(as_live(scenario, bundle, tmp_path / "run"), bundle, scenario, repeats=8)
    rows = {(row.controller, row.column.name): row for row in found.anew.rows}
    assert found.anew.controllers == ("deadline", STATIC, ALL)
    assert found.anew.frames[ALL] == 300
    assert abs(rows[ALL, "quality"].difference) < 0.02
    assert abs(rows[ALL, "answer p50"].relative) < 0.10
    assert abs(rows[ALL, "bytes"].relative) < 0.03
    assert abs(rows[ALL, "energy"].relative) < 0.05
    repeated = {(row.controller, row.column.name): row for row in found.repeated.rows}
    assert abs(repeated[STATIC, "bytes"].relative) < 0.03
    document = found.document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert len(document["rows"]) == 3 * (len(REPLAY_COLUMNS) - 1)
    assert document["not_modelled"] == list(NOT_MODELLED)


def test_the_command_says_outside_by_its_exit_code(scenario: Scenario, bundle: Bundle, tmp_path: Path) -> None:
    """A log whose frames are said to have been 30 % larger than the model sends: outside, and the words say why."""
    log = as_live(scenario, bundle, tmp_path / "run")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        line.update({"sent_bytes": int(1.3 * line["sent_bytes"])} if line.get("sent_bytes") else {})
    written(log, lines)
    app = typer.Typer()
    app.command()(cli_fidelity.fidelity)
    arguments = [str(tmp_path / "run"), "--bundle", str(bundle.path), "--repeats", "2"]
    said = CliRunner().invoke(app, [*arguments, "--json"])
    assert said.exit_code == 1
    document = json.loads(said.stdout)
    assert not document["inside"]
    assert any(
        "all controllers, bytes" in line and "link or stages differ" in line for line in document["explanations"]
    )
    text = CliRunner().invoke(app, arguments)
    assert text.exit_code == 1
    assert "outside a tolerance" in text.stdout
    assert "slow start" in text.stdout
    assert "Retransmission time-outs" in text.stdout


def test_runs_are_found_by_log_by_folder_and_by_what_fly_wrote(bundle: Bundle, tmp_path: Path) -> None:
    live = tmp_path / "demo" / "live"
    live.mkdir(parents=True)
    with pytest.raises(RunError, match=r"no live log .*live\.jsonl.*adaptsplit fly"):
        find_run(tmp_path / "demo", None, None, None)
    (live / "live.jsonl").write_text("")
    with pytest.raises(RunError, match="--bundle DIR"):
        find_run(live, None, None, None)
    said = {"scenario": "flight-3g", "split": "validation", "bundle": str(bundle.path), "offset_s": "0.0"}
    (live / FLIGHT_FILE).write_text(json.dumps(said))
    for run in (tmp_path / "demo", live, live / "live.jsonl"):
        assert find_run(run, None, None, None) == (live / "live.jsonl", bundle.path, "flight-3g", "validation")
    assert find_run(live, bundle.path, "flight-lte", "test")[2:] == ("flight-lte", "test")
    (live / FLIGHT_FILE).write_text("[]")
    with pytest.raises(DataError, match="expected an object, found list"):
        find_run(live, None, None, None)


def test_a_log_that_is_not_of_this_bundle_or_not_whole_is_refused(
    scenario: Scenario, bundle: Bundle, tmp_path: Path
) -> None:
    log = as_live(scenario, bundle, tmp_path / "run")
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0].replace('"deadline"', '"dqn-0"'), *lines[1:]]))
    with pytest.raises(DataError, match=r"flown with controller 'dqn-0', but .* holds 'deadline'"):
        run_fidelity(log, bundle.path)
    log.write_text("\n".join(line for line in lines if '"frame": 0,' not in line or '"event"' in line))
    with pytest.raises(DataError, match="only the log of a whole run"):
        run_fidelity(log, bundle.path)
    log.write_text(lines[0])
    with pytest.raises(DataError, match="no frame was decided on"):
        run_fidelity(log, bundle.path)


def test_measured_stage_times_take_the_place_of_modelled_ones_where_there_are_enough(
    scenario: Scenario, bundle: Bundle, tmp_path: Path
) -> None:
    log = as_live(scenario, bundle, tmp_path / "run")
    run, world = read_run(log), build_world(scenario, "test")
    rows = stage_rows(run, world.stages, 0.0005)
    assert rows.measured["signal"] == 1
    assert rows.stages.signal == pytest.approx(np.full(world.stages.signal.shape, 0.0015), abs=1e-6)
    used = {(int(r["branch"]), int(r["rate"])) for r in run.records if r["branch"] >= 0}
    counts = {b: sum(r["branch"] == b for r in run.records) for b, _ in used}
    assert rows.measured["head"] == sum(count >= 20 for count in counts.values()) > 0
    unused = sorted(set(range(len(bundle.space.branches))) - {b for b, count in counts.items() if count >= 20})
    assert np.array_equal(rows.stages.head[unused], world.stages.head[unused])
    assert rows.stages.head.shape == world.stages.head.shape
    assert prepare(log, scenario, "test").world.constants.frames == 300
