"""The replay frame by frame, with the live run's own chance; intervals of the gap; what is said of causes."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replay_cases import STATIC, as_live_exactly, log_of_link, trace

from adaptsplit import estimators as est
from adaptsplit import observation as obs
from adaptsplit.bundle import Bundle, export_bundle
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.envs import build_world
from adaptsplit.errors import DataError
from adaptsplit.evaluation import gap, replay_link
from adaptsplit.evaluation.gap import PIECE_BYTES, block_resamples, piece_size, with_intervals
from adaptsplit.evaluation.live import REPLAY_COLUMNS, Column, LiveRow, compare_live, gap_of
from adaptsplit.evaluation.replay import prepare
from adaptsplit.evaluation.replay_causes import causes_of, otherwise, stalled
from adaptsplit.evaluation.replay_link import with_own_delays
from adaptsplit.evaluation.replay_paired import Player, replay_decisions, replay_paired
from adaptsplit.evaluation.replay_times import as_drawn, frame_times
from adaptsplit.evaluation.sim_to_live import ALL, sim_to_live
from adaptsplit.evaluation.statistics import Interval
from adaptsplit.links import LinkClock, LinkTrace, container
from adaptsplit.links.livelog import DEFAULT_DT_S
from adaptsplit.links.trace import MAX_SAMPLES
from adaptsplit.outcome import Outcomes, empty
from adaptsplit.recorded_run import RecordedRun
from adaptsplit.scenario import Scenario, load_scenario


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


@pytest.fixture(scope="module")
def bundle(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle("deadline", scenario, tmp_path_factory.mktemp("paired") / "bundle")


@pytest.fixture(scope="module")
def log(scenario: Scenario, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    link = scenario.links("test")[3]
    without_loss = replace(link, loss=np.zeros(len(link)))
    return as_live_exactly(scenario, bundle, tmp_path_factory.mktemp("log") / "run", without_loss)


# ---- the whole chain ----------------------------------------------------------------------------------------------


def test_a_run_of_the_simulator_is_decided_again_to_the_byte(scenario: Scenario, bundle: Bundle, log: Path) -> None:
    """Stage times, delays and blocks go through the log and come back: every decision, path and byte is the same."""
    replayed = prepare(log, scenario, "test")
    live, names = replayed.run.records, ["bundle", STATIC]
    played = replay_paired(replayed, bundle, names, 25, 2).outcomes
    assert not otherwise(played[0], live).any()
    for ours in (played[0], played[1], replay_decisions(replayed, 1).outcomes[0]):
        assert np.array_equal(ours["sent_bytes"], live["sent_bytes"])
        assert np.array_equal(ours["path"], live["path"])
        late = np.abs(ours["answer_latency_s"] - live["answer_latency_s"])
        assert np.nanmax(late) < 1e-3
        assert ours["compute_j"] == pytest.approx(live["compute_j"], abs=1e-4)
    assert (live["sent_bytes"] > 0).sum() > 50


def test_the_command_decides_every_promised_number_with_an_interval(
    scenario: Scenario, bundle: Bundle, log: Path
) -> None:
    found = sim_to_live(log, bundle, scenario, repeats=2)
    assert found.inside
    assert [row.column.name for row in found.promised] == ["quality", "answer p50", "answer p95", "bytes"]
    assert all(row.sure and row.controller == ALL for row in found.promised)
    slow = replace(found.drawn, rows=tuple(replace(row, live=1.5 * row.live) for row in found.drawn.rows))
    assert not replace(found, drawn=slow).inside  # what was drawn must hold, too
    assert any("with stage times drawn anew outside" in line for line in replace(found, drawn=slow).explanations())
    (said,) = (line for line in found.verdicts() if line.startswith("bytes"))
    assert said.startswith("bytes: +0.0 % (+0.0 to +0.0), tolerance 1 %: inside; drawn anew ")
    assert "one run from another ±" in said
    assert "all 300 frames were decided as live" in found.explanations()
    assert found.document()["decided_otherwise"] == []
    assert [row.column.name for row in found.foretold] == ["quality", "answer p50", "answer p95"]


# ---- what goes in -------------------------------------------------------------------------------------------------


def test_another_branch_gets_the_time_of_the_same_quantile_and_a_stall_what_is_beyond_it() -> None:
    table = np.array([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])  # levels 1/8, 3/8, 5/8, 7/8
    assert as_drawn(table, (0,), 2.5).tolist() == [2.5, 25.0]
    assert as_drawn(table, (1,), 35.0).tolist() == [3.5, 35.0]
    assert as_drawn(table, (0,), 0.2).tolist() == [0.2, 10.0]
    assert as_drawn(table, (0,), 104.0).tolist() == [104.0, 140.0]
    assert as_drawn(np.array([[0.0, 0.0], [1.0, 3.0]]), (0,), 0.0).tolist() == [0.0, 2.0]  # a row that tells nothing


def one_frame(scenario: Scenario, **changed: float) -> RecordedRun:
    """One frame that branch 1 at rate 0 sent; ``changed`` are its times."""
    record = empty(1)
    record["branch"], record["rate"], record["decided_s"], record["threshold"] = 1, 0, 0.003, 1.01
    times = {"looked_s": 0.005, "exit_s": 0.075, "free_s": 0.079, "server_s": 0.004, "queue_s": 0.001, **changed}
    return RecordedRun({}, record, ("c",), (times,))


def test_times_of_a_frame_are_laid_out_by_stage(scenario: Scenario) -> None:
    world = build_world(scenario, "test")
    times = frame_times(one_frame(scenario), world)
    assert (times.late[0], times.looked[0]) == pytest.approx((0.003, 0.005))
    assert times.head[0, 1] == pytest.approx(0.070)
    assert times.encode[0, 1, 0] == pytest.approx(0.004)
    assert times.tail[0, 1, 0] == pytest.approx(0.003)
    assert not stalled(times, world).any()
    for stage in ({"exit_s": 0.175, "free_s": 0.179}, {"looked_s": 0.045}, {"free_s": 0.2}, {"server_s": 0.05}):
        assert stalled(frame_times(one_frame(scenario, **stage), world), world).all(), stage
    exited = frame_times(RecordedRun({}, empty(1), ("c",), ({},)), world)
    assert np.isnan(exited.looked).all()
    assert np.isnan(exited.head).all()


def test_every_message_and_heartbeat_has_its_own_delay_again(tmp_path: Path) -> None:
    """A guess of the link, wrong in both its numbers: by the simulator's arithmetic the delays are those of the log."""
    rng = np.random.default_rng(5)
    made = trace(np.full(300, 1.5e6), rng.uniform(0.05, 0.11, 30).repeat(10))
    rows = log_of_link(made, 30.0)
    for row in rows:
        row.get("times", {})["server_s"] = 0.004
    times = [row["times"] for row in rows if "times" in row]
    records = empty(len(times))
    records["arrived_s"] = [row["arrived_s"] for row in rows if "times" in row]
    back = [message["acked_s"] + rng.uniform(0.004, 0.030) for message in times]  # results, by a host that dawdles
    records["remote_latency_s"] = back - records["arrived_s"]
    beats = [(row["sent_s"], row["heard_s"]) for row in rows if row.get("event") == "beat"]
    guess = LinkTrace("guess", "demo", 0.001, np.full(30000, 2e6), np.full(30000, 0.03), np.zeros(30000))
    found = with_own_delays(guess, RecordedRun({}, records, (), tuple(times)), beats)
    clock, free, wrong, late = LinkClock(found), 0.0, [], []
    for message, result in zip(times, back, strict=True):
        free = clock.finish(max(message["sent_s"], free), 8.0 * message["wire_bytes"])
        arrival = free + 0.5 * clock.rtt(free)
        done = arrival + message["server_s"]
        wrong.append(abs(arrival + 0.5 * clock.rtt(arrival) - message["acked_s"]))
        late.append(abs(done + 0.5 * clock.rtt(done) - result))
    assert np.mean(np.array(wrong) > 1e-6) < 0.02  # but for those that need a heartbeat's sample
    assert np.mean(np.array(late) > 1e-5) < 0.05  # or another message's
    for sent, heard in beats:
        assert clock.finish(sent, 768.0) + clock.rtt(sent) == pytest.approx(heard, abs=1e-6)


def test_the_replay_takes_frames_up_when_the_device_did(scenario: Scenario, bundle: Bundle, log: Path) -> None:
    """20 ms later all that is known is 20 ms older, unless something came meanwhile; the frame has waited, too."""
    replayed = prepare(log, scenario, "test")
    times = frame_times(replayed.run, replayed.own)
    later = replace(times, looked=times.looked + 0.02, late=times.late + 0.02)
    player, older, came = Player(replayed, times, 0), 0, 0
    late_player = Player(replayed, later, 0)
    while player.frame < 40:
        late_player.simulator.states[:] = player.simulator.states
        a, b = player.observe()[0], late_player.observe()[0]
        assert np.array_equal(player.observe()[0], a)  # to look changes nothing
        wait = [float(obs.physical(seen, "frame_wait")) for seen in (a, b)]
        assert wait[1] - wait[0] == pytest.approx(0.02, abs=1e-6)
        grown = float(obs.physical(b, "heard_age") - obs.physical(a, "heard_age"))
        older, came = older + (abs(grown - 0.02) < 1e-5), came + (grown < 0.02 - 1e-5)
        player.step(np.array([[1, 0, 6]]))
    assert older + came == 40
    assert min(older, came) > 0


# ---- intervals ----------------------------------------------------------------------------------------------------


def test_blocks_of_consecutive_frames_are_drawn_and_wrap_around() -> None:
    drawn = block_resamples(23, 5, 200)
    assert drawn.shape == (200, 23)
    for row in drawn:
        for first in range(0, 23, 5):
            part = row[first : first + 5]
            assert np.array_equal(part, (part[0] + np.arange(len(part))) % 23)
    assert np.array_equal(np.unique(drawn), np.arange(23))
    with pytest.raises(DataError, match="bootstrap of 0 frames"):
        block_resamples(0)


def sent(values: np.ndarray[Any, Any]) -> Outcomes:
    records = empty(len(values))
    records["sent_bytes"] = values
    return records


def rows_of(simulated: Outcomes, live: Outcomes) -> list[LiveRow]:
    columns = [column for column in REPLAY_COLUMNS if column.name == "bytes"]
    return list(compare_live({"c": simulated}, {"c": live}, columns=columns).rows)


def test_the_interval_of_paired_frames_has_the_width_that_theory_says() -> None:
    """Independent differences of deviation 60 B about +3 B in 400 frames of about 1000 B: +0.3 %, half width 0.59 %."""
    rng = np.random.default_rng(1)
    simulated = rng.integers(500, 1500, 400)
    noise = rng.normal(0.0, 60.0, 400)
    live = simulated + np.rint(noise - noise.mean() + 3.0).astype(int)
    (row,) = with_intervals(rows_of(sent(simulated)[None], sent(live)), sent(simulated)[None], sent(live))
    assert row.interval is not None
    assert row.gap == row.interval.value == pytest.approx(0.003, abs=2e-4)
    half = 1.96 * 60.0 / np.sqrt(400) / simulated.mean()
    assert (row.interval.high - row.interval.low) / 2 == pytest.approx(half, rel=0.2)
    (same,) = with_intervals(rows_of(sent(live)[None], sent(live)), sent(live)[None], sent(live))
    assert same.interval == Interval(0.0, 0.0, 0.0)


def test_the_interval_is_the_same_whatever_is_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    simulated, live = sent(rng.integers(0, 1500, 2 * 90)).reshape(2, 90), sent(rng.integers(0, 1500, 90))
    rows = rows_of(simulated, live)
    (whole,) = with_intervals(rows, simulated, live)
    for size in (1, 7, 999):
        monkeypatch.setattr(gap, "PIECE_BYTES", size * 8 * 180)
        assert piece_size(2, 90) == size
        (again,) = with_intervals(rows, simulated, live)
        assert again.interval == whole.interval


def test_the_interval_of_an_hour_takes_less_than_100_mb() -> None:
    """36 000 frames, four repeats: as many resamples at a time as a piece may hold, whatever their number."""
    assert piece_size(4, 36_000) * 8 * 4 * 36_000 <= PIECE_BYTES
    assert piece_size(4, 10_000_000) == 1
    simulated, live = sent(np.arange(4 * 36_000) % 900).reshape(4, -1), sent(np.arange(36_000) % 800)
    rows = rows_of(simulated, live)
    tracemalloc.start()
    try:
        with_intervals(rows, simulated, live, count=200)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6


BYTES = next(column for column in REPLAY_COLUMNS if column.name == "bytes")


@pytest.mark.parametrize(
    ("live", "low", "high", "verdict", "sure"),
    [
        (100.5, 0.001, 0.009, "within", True),
        (100.5, -0.002, 0.012, "within", False),
        (103.0, 0.02, 0.04, "outside", True),
        (103.0, -0.01, 0.04, "outside", False),
        (97.0, -0.05, -0.011, "outside", True),
    ],
)
def test_a_verdict_is_by_the_gap_and_says_when_its_interval_does_not_agree(
    live: float, low: float, high: float, verdict: str, sure: bool
) -> None:
    row = LiveRow("c", BYTES, 100.0, live, interval=Interval(live / 100.0 - 1.0, low, high))
    assert (row.verdict, row.sure) == (verdict, sure)


def test_two_zeros_have_no_gap_and_something_against_nothing_an_unknown_one() -> None:
    assert gap_of(BYTES, 0.0, 0.0) == 0.0
    assert np.isnan(gap_of(BYTES, 0.0, 5.0))
    assert gap_of(Column("quality", "", 3, 0.02), 0.5, 0.75) == 0.25


# ---- causes -------------------------------------------------------------------------------------------------------


def test_causes_name_what_was_decided_otherwise_what_was_seen_and_what_held_the_host_up(
    scenario: Scenario, bundle: Bundle, log: Path
) -> None:
    replayed = prepare(log, scenario, "test")
    world, run = replayed.own, replayed.run
    played = replay_paired(replayed, bundle, ["bundle", STATIC], 25, 1)
    seen = played.observed[40].copy()
    seen[obs.index("battery")] = 0.25
    run = replace(run, observations=tuple(seen if k == 40 else None for k in range(len(run.records))))
    ours = played.outcomes[0].copy()
    ours["rate"][[40, 41]] += 1
    ours["sent_bytes"][40] += 70
    times = frame_times(run, world)
    times.late[7] = 0.2
    found = causes_of(run, world, times, ours, played.observed)
    assert (found.otherwise, found.bytes_of_them, found.stalls, found.overtaken) == ((40, 41), -70, 1, 0)
    text = "\n".join(found.lines())
    assert "2 of 300 frames were decided otherwise than live, the first of them frame 40; live they sent -70 B" in text
    assert "on frame 40 the live controller saw battery 0.25 for 0.79" in text
    assert "the host held up 1 frame by 30 ms and more; 0 were overtaken" in text
    assert found.after_ack_s == pytest.approx(found.server_s, abs=1e-3)
    one = replace(found, otherwise=(40,), stalls=2, overtaken=1)
    assert one.lines()[0].startswith("1 of 300 frames was decided otherwise than live, the first of them frame 40")
    assert "the host held up 2 frames by 30 ms and more; 1 was overtaken" in one.lines()


def test_what_waited_at_the_server_is_not_counted_as_its_work(scenario: Scenario, bundle: Bundle, log: Path) -> None:
    """The log's ``server_s`` is the whole stay; 0.5 s of waiting in it is told by ``queue_s``."""
    replayed = prepare(log, scenario, "test")
    run = replayed.run
    outcomes, times = run.records, frame_times(run, replayed.own)
    plain = causes_of(run, replayed.own, times, outcomes, {})
    waited = tuple(
        {**stamps, "server_s": stamps["server_s"] + 0.5, "queue_s": 0.5} if "server_s" in stamps else stamps
        for stamps in run.times
    )
    found = causes_of(replace(run, times=waited), replayed.own, times, outcomes, {})
    assert plain.server_s > 0.0
    assert found.server_s == pytest.approx(plain.server_s)


# ---- long runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "own_ms", "link_ms"),
    [
        (0.1, 1, 50),
        (0.33, 1, 50),
        (0.34, 5, 50),
        (6.9, 5, 50),
        (7.0, 10, 50),
        (14.0, 20, 50),
        (28.0, 50, 50),
        (70.0, 100, 100),
        (1000.0, 1000, 1000),
        (2777.7, 2000, 2000),
    ],
)
def test_samples_are_as_short_as_a_trace_may_have(hours: float, own_ms: float, link_ms: float) -> None:
    run_s = 3600.0 * hours
    assert 1e3 * replay_link.sample_s(run_s) == pytest.approx(own_ms)
    assert 1e3 * replay_link.sample_s(run_s, DEFAULT_DT_S) == pytest.approx(link_ms)
    assert run_s / replay_link.sample_s(run_s) < MAX_SAMPLES


def test_a_log_of_eight_hours_can_be_replayed(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame each 30 s, a heartbeat each second; and more bytes than are read of other recordings of links."""
    made = trace(np.full(10, 1.5e6), np.full(10, 0.06))
    clock, records = LinkClock(made), empty(960)
    records["frame"] = np.arange(960)
    records["arrived_s"], records["decided_s"] = 30.0 * np.arange(960), 30.0 * np.arange(960)
    records["branch"], records["sent_bytes"] = 1, 800
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 1 << 20)
    with LiveLog(tmp_path / "log") as log:
        log.begin({"controllers": ["c"], "first": 0})
        for second in range(960 * 30):
            sent = float(second)
            log.beat(sent, clock.finish(sent, 8.0 * est.HEARTBEAT_BYTES) + clock.rtt(sent))
        for record in records:
            sent = float(record["arrived_s"]) + 0.1
            acked = clock.finish(sent, 8.0 * 900.0) + clock.rtt(sent)
            times = {"looked_s": sent - 0.08, "exit_s": sent - 0.02, "free_s": sent, "sent_s": sent}
            log.add("c", np.array([record]), None, {**times, "wire_bytes": 900.0, "acked_s": acked})
    assert (tmp_path / "log").stat().st_size > 2 << 20
    replayed = prepare(tmp_path / "log", scenario, "test")
    assert replayed.own.links.dt_s.tolist() == [0.01]
    assert replayed.link.dt_s == DEFAULT_DT_S
    assert replayed.link.duration_s == pytest.approx(960 * 30, abs=31.0)
    assert np.median(replayed.own.links.table[:-1, 2]) == pytest.approx(0.06, abs=0.002)
