"""Episodes worked out by hand: the sender, patience, the answer that is held, and what a frame costs.

Every stage time is a round number: head 10 ms, encoding 10 ms, tail 10 ms, no time for decision and signals. The link
carries 1 Mbit/s with a round trip of 40 ms, a message has 10 000 bytes on the wire. So a frame that is sent at once is
served 80 ms after its encoding, and its result is there 150 ms after its arrival.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.envs import Simulator, World, build_world, episode_seeds
from adaptsplit.envs.layout import BATTERY_J, ROW_COUNT, ROW_FIRST, ROW_OFFSET, TRACKER
from adaptsplit.envs.simulator import Stretch
from adaptsplit.outcome import Outcomes, Path
from adaptsplit.profiles import Profile
from adaptsplit.scenario import Scenario, load_scenario

Array = NDArray[Any]
Take = tuple[int, int, int]  # branch, rate, exit rule

STEM, LOCAL, SKIP = 0, 5, 6
EXIT, HASTY, PATIENT = 0, 1, 2  # exit at once; wait for half of the deadline; for all of it
SENT, RUSHED, EXITS, SKIPPED = (STEM, 0, PATIENT), (STEM, 0, HASTY), (STEM, 0, EXIT), (SKIP, 0, 0)
WIRE_BYTES = 10_000.0


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    steady = {"kind": "generate", "generator": "constant", "duration_s": 60, "family": "steady"}
    steady["parameters"] = {"capacity_bps": 1e6, "rtt_s": 0.04}
    document = load_scenario("flight-lte").file.model_dump(mode="json", exclude_none=True)
    document |= {"thresholds": [0.0, 1.01], "patience": [0.5, 1.0], "skip": True}
    document["device"]["decision_s"] = 0.0
    document["links"] = {split: [{**steady, "seeds": [i]}] for i, split in enumerate(("train", "validation", "test"))}
    return load_scenario(document)


@pytest.fixture(scope="module")
def world(scenario: Scenario) -> World:
    return timed(build_world(scenario, "train"))


@pytest.fixture(scope="module")
def profile(scenario: Scenario) -> Profile:
    return scenario.profile("train")


def timed(world: World, head_s: float = 0.01) -> World:
    """The world with round stage times and messages of 10 000 bytes."""
    s, o = world.stages, world.outcomes
    stages = s._replace(
        head=np.full_like(s.head, head_s),
        encode=np.full_like(s.encode, 0.01),
        tail=np.full_like(s.tail, 0.01),
        signal=np.zeros_like(s.signal),
    )
    return world._replace(
        stages=stages, outcomes=o._replace(payload=np.full_like(o.payload, WIRE_BYTES - est.OVERHEAD_BYTES))
    )


def play(world: World, taken: list[Take]) -> Outcomes:
    """Records of the flight's first frames: the device is quick enough to decide on every one."""
    world = world._replace(constants=world.constants._replace(frames=len(taken)))
    simulator = Simulator(world, 1, keep_all=True)
    simulator.reset(episode_seeds(0, 1, "train"))
    simulator.place(Stretch(link=0, offset_s=0.0, flight=0, first_frame=0))
    for decision in taken:
        assert not simulator.done[0]
        simulator.step(np.array([decision]))
    assert simulator.done[0]
    records: Outcomes = simulator.outcomes()[0]
    return records


def ends(records: Outcomes) -> list[tuple[str, float]]:
    """Path and answer latency (ms) of each frame."""
    return [(Path(int(r["path"])).name, round(1e3 * float(r["answer_latency_s"]), 3)) for r in records]


def test_frame_on_an_idle_link(scenario: Scenario, world: World, profile: Profile) -> None:
    (record,) = play(world, [SENT])
    assert ends(record[None]) == [("REMOTE", 150.0)]
    assert record["quality"] == profile.tail_quality()[0, STEM, 0]
    assert record["confidence"] == profile.tail_confidence[0, STEM, 0]
    assert record["exit_confidence"] == profile.exit_confidence[0, STEM]
    assert record["compute_j"] == pytest.approx(scenario.compute_w * 0.020)
    expected = scenario.radio_w * 0.080 + scenario.radio_j_per_bit * 8 * WIRE_BYTES
    assert record["radio_j"] == pytest.approx(expected)
    assert record["sent_bytes"] == WIRE_BYTES - est.OVERHEAD_BYTES
    assert record["known_s"] == pytest.approx(0.150)


@pytest.mark.parametrize(
    ("head_ms", "rule", "path", "latency_ms"),
    [
        (10, PATIENT, "REMOTE", 150.0),
        (10, HASTY, "FALLBACK_LATE", 125.0),  # half of 250 ms, and the result comes after 150
        (60, HASTY, "FALLBACK_LATE", 125.0),
        (60, PATIENT, "REMOTE", 200.0),
        (120, PATIENT, "FALLBACK_LATE", 250.0),  # the result comes after 260 ms
        (120, HASTY, "FALLBACK_PASSED", 125.0),  # encoded 130 ms after arrival: patience has ended, nothing is sent
        (200, HASTY, "FALLBACK_PASSED", 200.0),  # the exit itself is later than the patience
        (245, PATIENT, "FALLBACK_PASSED", 250.0),
        (245, EXIT, "EXIT", 245.0),
        (260, EXIT, "MISS", float("nan")),
        (260, PATIENT, "MISS", float("nan")),
    ],
)
def test_patience(world: World, profile: Profile, head_ms: float, rule: int, path: str, latency_ms: float) -> None:
    (record,) = play(timed(world, head_ms / 1e3), [(STEM, 0, rule)])
    assert ends(record[None])[0][0] == path
    assert record["answer_latency_s"] == pytest.approx(latency_ms / 1e3, nan_ok=True)
    remote, exits = profile.tail_quality()[0, STEM, 0], profile.exit_quality()[0, STEM]
    assert record["quality"] == {"REMOTE": remote, "MISS": 0.0}.get(path, exits)
    assert (record["sent_bytes"] > 0) == (path in ("REMOTE", "FALLBACK_LATE"))
    if path == "FALLBACK_LATE":
        assert record["remote_latency_s"] == pytest.approx(0.140 + head_ms / 1e3)


def test_slot_waits_for_the_window(world: World) -> None:
    """Window 1: the first frame is acknowledged at 140 ms; the second, encoded at 120, waits, then takes 130 ms."""
    narrow = world._replace(constants=world.constants._replace(window=1.0))
    assert ends(play(narrow, [SENT, SENT])) == [("REMOTE", 150.0), ("REMOTE", 170.0)]
    assert ends(play(world, [SENT, SENT])) == [("REMOTE", 150.0), ("REMOTE", 150.0)]


def test_newer_frame_takes_the_slot(world: World) -> None:
    """Messages that take 300 ms: the slot's frame is passed over when the next one is encoded, 120 ms after arrival."""
    narrow = world._replace(constants=world.constants._replace(window=1.0))
    o = world.outcomes
    large = narrow._replace(outcomes=o._replace(payload=np.full_like(o.payload, 37_500.0 - est.OVERHEAD_BYTES)))
    records = play(large, [SENT, SENT, SENT])
    assert ends(records) == [("FALLBACK_LATE", 250.0), ("FALLBACK_PASSED", 120.0), ("FALLBACK_LATE", 250.0)]
    # Acknowledged at 20 + 300 + 40 ms; then the third is sent, on an idle link always: 360 + 300 + 50 - 200.
    assert list(records["remote_latency_s"]) == pytest.approx([0.370, float("nan"), 0.510], nan_ok=True)
    assert list(records["sent_bytes"] > 0) == [True, False, True]


def test_sender_passes_over_what_would_be_late(world: World) -> None:
    """Window 2: behind a message of 300 ms no other can meet the deadline; with ``fifo`` it is sent all the same."""
    o = world.outcomes
    large = world._replace(outcomes=o._replace(payload=np.full_like(o.payload, 37_500.0 - est.OVERHEAD_BYTES)))
    assert ends(play(large, [SENT, SENT]))[1] == ("FALLBACK_PASSED", 20.0)
    plain = large._replace(constants=large.constants._replace(fifo=1.0))
    records = play(plain, [SENT, SENT])
    assert ends(records)[1] == ("FALLBACK_LATE", 250.0)
    assert records["remote_latency_s"][1] == pytest.approx(0.320 + 0.300 + 0.050 - 0.100)


HELD = [
    SENT,  # 0: result at 150 ms
    SKIPPED,  # 1, at 100 ms: nothing is held yet
    SKIPPED,  # 2: the result of 0
    EXITS,  # 3
    SKIPPED,  # 4: the exit of 3
    RUSHED,  # 5: its exit answers at 625 ms, its result comes at 650
    SKIPPED,  # 6, at 600 ms: still the exit of 3
    SKIPPED,  # 7: the late result of 5 replaced its exit
    SENT,  # 8: result at 950 ms
    EXITS,  # 9: its exit at 910 ms
    SKIPPED,  # 10: the exit of 9, since the result of 8 is of an older frame
    (LOCAL, 0, 0),  # 11
    SKIPPED,  # 12: the full model's answer of 11
]
REUSED = {2: (0, "tail"), 4: (3, "exit"), 6: (3, "exit"), 7: (5, "tail"), 10: (9, "exit"), 12: (11, "local")}


def test_answer_that_is_held(scenario: Scenario, world: World, profile: Profile) -> None:
    records, retention = play(world, HELD), profile.retention()
    paths = [name for name, _ in ends(records)]
    others = ["REMOTE", "MISS", "EXIT", "FALLBACK_LATE", "REMOTE", "EXIT", "LOCAL"]
    assert [path for k, path in enumerate(paths) if k not in REUSED] == others
    for k, (source, kind) in REUSED.items():
        assert paths[k] == "STALE"
        branch = LOCAL if kind == "local" else STEM
        tail = kind == "tail"
        answer = profile.tail_prediction[source, STEM, 0] if tail else profile.exit_prediction[source, branch]
        confidence = profile.tail_confidence[source, STEM, 0] if tail else profile.exit_confidence[source, branch]
        assert records["quality"][k] == pytest.approx((answer == profile.labels[k]).mean())
        assert records["confidence"][k] == pytest.approx(confidence * retention ** (k - source))
        assert records["answer_latency_s"][k] == 0.0
        assert records["sent_bytes"][k] == records["compute_j"][k] == records["switched"][k] == 0


def test_held_answer_decays_where_there_are_no_labels(world: World, profile: Profile) -> None:
    unlabelled = world._replace(answers=world.answers._replace(labelled=False))
    records, retention = play(unlabelled, HELD), profile.retention()
    assert records["quality"][2] == pytest.approx(profile.tail_quality()[0, STEM, 0] * retention**2)
    assert records["quality"][6] == pytest.approx(profile.exit_quality()[3, STEM] * retention**3)


def test_missed_answer_is_not_held(world: World) -> None:
    """The exit of frame 0 is late (260 ms), so the next frame that is looked at finds nothing to use again."""
    slow = timed(world, 0.26)
    slow = slow._replace(constants=slow.constants._replace(frames=4))
    simulator = Simulator(slow, 1, keep_all=True)
    simulator.reset(episode_seeds(0, 1, "train"))
    while not simulator.done[0]:
        simulator.step(np.array([EXITS if simulator.frame[0] == 0 else SKIPPED]))
    records = simulator.outcomes()[0]
    assert (records["path"] == Path.MISS).all()
    assert list(records["branch"]) == [STEM, -1, SKIP, SKIP]  # frame 1 was overtaken; frame 2 is 60 ms old


def _answers(profile: Profile, record: Any, row: int) -> list[tuple[float, int, Array]]:
    """When which answer (cells) of a frame becomes one that can be held: (time, frame, answer)."""
    branch, rate, path = int(record["branch"]), int(record["rate"]), Path(int(record["path"]))
    found = []
    if path in (Path.EXIT, Path.LOCAL, Path.FALLBACK_PASSED):
        found.append((float(record["known_s"]), profile.exit_prediction[row, branch]))
    if path is Path.FALLBACK_LATE:
        found.append((float(record["arrived_s"] + record["answer_latency_s"]), profile.exit_prediction[row, branch]))
    if np.isfinite(record["remote_latency_s"]):
        at = float(record["arrived_s"] + record["remote_latency_s"])
        found.append((at, profile.tail_prediction[row, branch, rate]))
    return [(time, int(record["frame"]), answer) for time, answer in found]


def test_stale_quality_against_the_labels() -> None:
    """Random decisions: from the records alone, plain Python finds the answer that was held and its right cells."""
    scenario, n = load_scenario("flight-reuse"), 24
    profile, rng = scenario.profile("train"), np.random.default_rng(0)
    simulator = Simulator(build_world(scenario, "train"), n, keep_all=True)
    simulator.reset(episode_seeds(11, n, "train"))
    while not simulator.done.all():
        simulator.step(np.stack([rng.integers(0, size, n) for size in scenario.space.shape], axis=1))
    compared = 0
    for s, records in zip(simulator.states, simulator.outcomes(), strict=True):
        rows = int(s[ROW_FIRST]) + (int(s[ROW_OFFSET]) + np.arange(len(records))) % int(s[ROW_COUNT])
        events = [event for r, row in zip(records, rows, strict=True) for event in _answers(profile, r, int(row))]
        for record, row in zip(records, rows, strict=True):
            if record["path"] != Path.STALE:
                continue
            there = [event for event in events if event[0] <= record["known_s"] + 1e-7]
            newest = max(frame for _, frame, _ in there)
            answer = max((event for event in there if event[1] == newest), key=lambda event: event[0])[2]
            assert record["quality"] == pytest.approx((answer == profile.labels[row]).mean())
            assert newest < record["frame"]
            compared += 1
    assert compared > 300


def test_battery_pays_every_record_and_what_is_always_drawn(scenario: Scenario) -> None:
    """Over a whole episode: battery drop = compute + radio of all records + base power * time, in closed form."""
    rng, n = np.random.default_rng(1), 64
    simulator = Simulator(build_world(scenario, "train"), n, keep_all=True)
    simulator.reset(episode_seeds(3, n, "train"))
    first = simulator.states[:, BATTERY_J].copy()
    while not simulator.done.all():
        simulator.step(np.stack([rng.integers(0, size, n) for size in scenario.space.shape], axis=1))
    log = simulator.outcomes()
    spent = log["compute_j"].sum(axis=1, dtype=np.float64) + log["radio_j"].sum(axis=1, dtype=np.float64)
    assert spent.min() > 1.0
    drop = first - simulator.states[:, BATTERY_J]
    np.testing.assert_allclose(drop, spent + scenario.base_w * simulator.now, rtol=1e-9, atol=1e-4)
    assert (simulator.now >= scenario.episode_s).all()
    reported = simulator.states[:, TRACKER + est.BATTERY]
    assert ((reported > 0.2) & (reported < 1.0)).all()
