"""Device and edge sessions under an injected clock: each rule, storms of faults, equality with the simulator."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.decision import BranchSpec, Decision, DecisionSpace
from adaptsplit.device_bridge.actions import Action, Beat, Decide, Encode, Look, Run, Send, SessionConfig, Settled
from adaptsplit.device_bridge.device_link import Edges, EdgeSeen
from adaptsplit.device_bridge.edge_session import MAX_PER_DEVICE, EdgeSession, Job, Reply, TailAnswer, Work
from adaptsplit.device_bridge.flight import Energy, Prediction
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Heartbeat, Result, Status, parse_message
from adaptsplit.device_bridge.session import DeviceSession
from adaptsplit.device_bridge.topics import DeviceTopics, edge_connection
from adaptsplit.device_bridge.transport import MemoryHub, MemoryTransport, Will
from adaptsplit.links import LinkClock, LinkTrace
from adaptsplit.observation import physical
from adaptsplit.outcome import OUTCOME, Outcomes, Path

if TYPE_CHECKING:
    from adaptsplit.envs.world import World

Seen = dict[int, NDArray[np.float32]]
SESSION = bytes(range(16))
SPACE = DecisionSpace(
    (
        BranchSpec("stem", "split", ("q2c-zstd", "q8t-zstd")),
        BranchSpec("deep", "split", ("q3t-zstd",)),
        BranchSpec("offload", "offload", ("webp-10", "jpeg-75"), exit="deep"),
        BranchSpec("local", "local"),
    ),
    (0.0, 0.6, 1.01),
)
SEND, EXIT_HERE, LOCAL = Decision(0, 1, 2), Decision(0, 0, 0), Decision(3, 0, 0)
WIDE = DecisionSpace(  # with both optional parts; the decisions above keep branch, rate and threshold
    (*SPACE.branches, BranchSpec("skip", "skip")), (0.0, 0.6, 1.01, 1.01), (1.0, 0.8, 0.8, 1.0)
)
HASTY = replace(WIDE, patience=(1.0, 0.3, 0.3, 1.0))
SEND_SHORT, SEND_LONG, SKIP = Decision(0, 1, 2), Decision(0, 1, 3), Decision(4, 0, 0)
CONFIG = SessionConfig(SESSION, SPACE, fps=10.0, deadline_s=0.25, frames=20)
WIDE_CONFIG = replace(CONFIG, space=WIDE, retention=0.9)
TOPICS = DeviceTopics("default", "d")
ANSWER = TailAnswer(b"\1" * 16, 0.9)


def steady(bps: float, rtt_s: float) -> LinkTrace:
    return LinkTrace("steady", "demo", 0.1, np.full(10, bps), np.full(10, rtt_s), np.zeros(10))


@dataclass
class Bench:
    """A device and an edge on a link, all in simulated time. Stage times in s; one prediction per frame and side."""

    config: SessionConfig = CONFIG
    trace: LinkTrace = field(default_factory=lambda: steady(2e6, 0.04))
    offset_s: float = 0.0
    signal_s: float = 0.001
    head_s: Callable[[Decision], float] = lambda decision: 0.02
    encode_s: Callable[[Decision], float] = lambda decision: 0.005
    tail_s: Callable[[int], float] = lambda branch: 0.01
    decide: Callable[[int], Decision] = lambda frame: SEND
    payload: Callable[[int, Decision], int] = lambda frame, decision: 2000
    confidence: Callable[[int, Decision], float] = lambda frame, decision: 0.5
    signals: Callable[[int], tuple[float, float]] = lambda frame: (0.1, 0.1)
    quality: Callable[[int, bool], float] = lambda frame, remote: 0.5
    grade: Callable[[int, Prediction], float] | None = None
    exit_answer: Callable[[int, Decision], Prediction] = lambda frame, decision: np.zeros(16, np.uint8)
    tail_answer: Callable[[FrameMessage], TailAnswer] = lambda message: ANSWER
    deliver: Callable[[object, float], bool] = lambda message, now: True

    def __post_init__(self) -> None:
        grade = self.grade or (lambda frame, p: self.quality(frame, bool(p[0])))
        self.device = DeviceSession(self.config, grade)
        self.edge = EdgeSession("default", len(self.config.space.branches))
        self.clock = LinkClock(self.trace, self.offset_s)
        self.records: list[Outcomes] = []
        self.observations: dict[int, NDArray[np.float32]] = {}
        self.sent: list[FrameMessage] = []
        self.messages_down: list[object] = []
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._link_free = self._last_up = self._last_down = self._last_beat = 0.0

    def at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def run(self, until: float = math.inf) -> Bench:
        """Run to the end of the session, or to a time."""
        while not self.device.done:
            planned = self.device.next_wakeup()
            coming = self._events[0][0] if self._events else math.inf
            if min(planned, coming) > until:
                self.now = until
                return self
            if coming <= planned:
                self.now, _, event = heapq.heappop(self._events)
                event()
            else:
                self.now = max(planned, self.now)
                self.do(self.device.tick(self.now))
        return self

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Look():
                    self.at(self.now + self.signal_s, lambda a=action: self.looked(a))
                case Decide():
                    self.observations[action.frame] = action.observation
                    self.do(self.device.decided(action.frame, self.decide(action.frame), self.now))
                case Run():
                    self.at(self.now + self.head_s(action.decision), lambda a=action: self.ran(a))
                case Encode():
                    self.at(self.now + self.encode_s(action.decision), lambda a=action: self.encoded(a))
                case Send():
                    self.send(action.message)
                case Beat():
                    end = self.clock.finish(self.now, 8.0 * est.HEARTBEAT_BYTES)
                    self._last_beat = max(end + self.clock.rtt(self.now), self._last_beat)
                    self.at(self._last_beat, lambda a=action: self.give(replace(a.message, reply=True)))
                case Settled():
                    self.records.append(action.outcome)

    def looked(self, action: Look) -> None:
        self.do(self.device.looked(action.frame, *self.signals(action.frame), self.now))

    def ran(self, action: Run) -> None:
        confidence = self.confidence(action.frame, action.decision)
        answer = self.exit_answer(action.frame, action.decision)
        self.do(self.device.ran(action.frame, answer, confidence, self.now))

    def encoded(self, action: Encode) -> None:
        self.do(self.device.encoded(action.frame, bytes(self.payload(action.frame, action.decision)), self.now))

    def send(self, message: FrameMessage) -> None:
        self.sent.append(message)
        wire = len(message.container) + est.OVERHEAD_BYTES
        self._link_free = self.clock.finish(max(self.now, self._link_free), 8.0 * wire)
        self._last_up = max(self._link_free + 0.5 * self.clock.rtt(self._link_free), self._last_up)
        if self.deliver(message, self.now):
            self.at(self._last_up, lambda: self.at_edge(message))

    def at_edge(self, message: FrameMessage) -> None:
        self.do_edge(self.edge.received(TOPICS.leaf("up"), message.to_bytes(), self.now))

    def do_edge(self, actions: list[Reply | Work]) -> None:
        for action in actions:
            if isinstance(action, Work):
                job = action.job
                tail_s = self.tail_s(job.message.branch)
                self.at(self.now + tail_s, lambda j=job: self.worked(j))
            else:
                message = parse_message(action.payload)
                self._last_down = max(self.now + 0.5 * self.clock.rtt(self.now), self._last_down)
                if self.deliver(message, self.now):
                    self.at(self._last_down, lambda m=message: self.give(m))

    def worked(self, job: Job) -> None:
        self.do_edge(self.edge.worked(job, self.tail_answer(job.message), self.now))

    def give(self, message: object) -> None:
        self.messages_down.append(message)
        self.do(self.device.received(message, self.now))  # type: ignore[arg-type]

    def log(self) -> Outcomes:
        """All records in the order of frames; fails unless there is exactly one for each."""
        rows = np.concatenate([np.zeros(0, OUTCOME), *self.records])
        rows = rows[np.argsort(rows["frame"], kind="stable")]
        assert rows["frame"].tolist() == list(range(self.config.frames or 0))
        return rows

    def paths(self) -> Counter[str]:
        return Counter(Path(p).name for p in self.log()["path"])


# ---- the rules, one by one ----------------------------------------------------------------------------------------


def test_on_a_good_link_every_frame_is_answered_remotely() -> None:
    bench = Bench().run()
    log = bench.log()
    assert bench.paths() == {"REMOTE": 20}
    service = 8 * (2000 + est.OVERHEAD_BYTES) / 2e6
    assert log["answer_latency_s"] == pytest.approx(0.026 + service + 0.04 + 0.01, abs=1e-6)
    assert log["sent_bytes"].tolist() == [2000] * 20
    assert bench.device.tracker[est.GOODPUT] == pytest.approx(2e6, rel=0.05)
    assert bench.device.tracker[est.SERVER_S] == pytest.approx(0.01, abs=1e-5)


def test_exits_and_local_answers_need_no_link() -> None:
    bench = Bench(decide=lambda frame: EXIT_HERE if frame % 2 else LOCAL).run()
    assert bench.paths() == {"EXIT": 10, "LOCAL": 10}
    assert not bench.sent
    assert bench.log()["switched"].tolist() == [0] + [1] * 19
    assert np.isnan(bench.log()["remote_latency_s"]).all()


def test_the_exit_answers_above_its_threshold_only() -> None:
    bench = Bench(decide=lambda f: Decision(0, 0, 1), confidence=lambda f, d: 0.6 if f < 5 else 0.59).run()
    assert [Path(p).name for p in bench.log()["path"]] == ["EXIT"] * 5 + ["REMOTE"] * 15


def test_at_most_window_messages_are_unacknowledged() -> None:
    bench = Bench(trace=steady(6e4, 0.04))
    unacked: list[int] = []
    bench.deliver = lambda message, now: unacked.append(bench.device.link_state().unacked) or True
    bench.run()
    assert max(unacked) <= CONFIG.window
    assert len(bench.sent) < 20


def test_the_slot_keeps_the_newest_frame_and_the_older_answers_at_once() -> None:
    """Nothing is acknowledged: two in the window, one in the slot, each later frame drives out the one before."""
    session = DeviceSession(CONFIG, lambda frame, p: 1.0)
    session.tracker[est.GOODPUT] = 1e8
    hand_over(session, 0, 0.03)
    assert isinstance(hand_over(session, 1, 0.13)[0], Send)
    assert hand_over(session, 2, 0.23) == []
    session.tracker[est.LAST_ACK_AT] = 0.3
    passed = [a for a in hand_over(session, 3, 0.33) if isinstance(a, Settled)]
    assert [(a.frame, Path(a.outcome["path"][0]).name) for a in passed] == [(2, "FALLBACK_PASSED")]
    assert passed[0].outcome["answer_latency_s"][0] == pytest.approx(0.13)


def hand_over(session: DeviceSession, frame: int, now: float, decision: Decision = SEND) -> list[Action]:
    session.tick(frame / 10)
    session.looked(frame, 0.1, 0.1, now)
    session.decided(frame, decision, now)
    session.ran(frame, np.zeros(16, np.uint8), 0.4, now)
    return session.encoded(frame, bytes(500), now)


def test_when_the_window_opens_the_slot_is_sent_if_it_can_make_its_deadline() -> None:
    for goodput, expected in ((1e8, Send), (1e4, Settled)):
        session = DeviceSession(CONFIG, lambda frame, p: 1.0)
        session.tracker[est.GOODPUT] = 1e8
        for frame, now in ((0, 0.01), (1, 0.11), (2, 0.21)):
            hand_over(session, frame, now)
        session.tracker[est.LAST_ACK_AT] = 0.2199 + session.tracker[est.RTT_BASE]  # served in no time
        session.tracker[est.RTT_BASE] = session.tracker[est.GOODPUT_AT] = 0.0
        session.tracker[est.GOODPUT] = goodput
        actions = session.received(Ack(SESSION, 0, 0), 0.22)
        assert isinstance(actions[0], expected), goodput


def test_overtaken_frames_are_misses() -> None:
    bench = Bench(head_s=lambda decision: 0.13, decide=lambda frame: EXIT_HERE).run()
    log = bench.log()
    missed = log["frame"][log["path"] == Path.MISS].tolist()
    assert missed
    assert bench.device.counts["overtaken"] == len(missed)
    assert np.isnan(log["decided_s"][missed]).all()
    assert (log["quality"][missed] == 0).all()
    taken = log[log["path"] == Path.EXIT]
    wait = taken["decided_s"] - taken["arrived_s"]
    assert (wait < 0.1 + 1e-9).all()


def test_a_late_exit_is_a_miss() -> None:
    bench = Bench(head_s=lambda decision: 0.3, decide=lambda frame: EXIT_HERE, config=replace(CONFIG, frames=1)).run()
    assert bench.paths() == {"MISS": 1}


def test_an_encoding_that_ends_too_late_leaves_the_exits_answer_at_the_deadline() -> None:
    bench = Bench(encode_s=lambda decision: 0.4, config=replace(CONFIG, frames=1)).run()
    assert bench.paths() == {"FALLBACK_PASSED": 1}
    assert float(bench.log()["answer_latency_s"][0]) == pytest.approx(CONFIG.deadline_s)


def test_the_exit_answers_at_the_deadline_and_a_late_result_is_waste() -> None:
    bench = Bench(tail_s=lambda branch: 0.3, config=replace(CONFIG, frames=1)).run()
    row = bench.log()[0]
    assert Path(row["path"]) is Path.FALLBACK_LATE
    assert row["answer_latency_s"] == pytest.approx(0.25)
    assert row["remote_latency_s"] == pytest.approx(0.026 + 8 * 2096 / 2e6 + 0.04 + 0.3, abs=1e-6)
    assert row["agreement"] == 0.0
    assert bench.device.counts["late_result"] == 1
    assert bench.device.tracker[est.FALLBACK_RATE] > 0


def test_a_result_that_never_comes_ends_in_a_record_too() -> None:
    bench = Bench(deliver=lambda message, now: not isinstance(message, Result)).run()
    assert bench.paths() == {"FALLBACK_LATE": 20}
    assert np.isinf(bench.log()["remote_latency_s"]).all()
    assert bench.device.counts["never_answered"] == 20


def test_lost_messages_leave_the_window_again() -> None:
    config = replace(CONFIG, frames=60, lost_after_s=1.0, silent_beats=1000)
    bench = Bench(config=config, deliver=lambda m, now: not (isinstance(m, FrameMessage) and now < 1.0)).run()
    assert bench.device.counts["unacknowledged_lost"] == 2
    assert bench.paths()["REMOTE"] >= 35
    assert bench.device.tracker[est.UNACKED_COUNT] == 0
    assert bench.device.tracker[est.UNACKED_BYTES] == 0


def test_answered_heartbeats_show_that_unacknowledged_messages_are_lost() -> None:
    bench = Bench(
        config=replace(CONFIG, frames=60), deliver=lambda m, now: not (isinstance(m, FrameMessage) and now < 1)
    )
    bench.run()
    log = bench.log()
    assert bench.device.counts["unacknowledged_lost"] == 2
    first = log["frame"][log["path"] == Path.REMOTE].min()
    assert 30 <= first <= 35


def test_on_a_slow_link_answered_heartbeats_prove_nothing() -> None:
    """A frame that takes longer than a second is not lost while acknowledgements still come."""
    bench = Bench(config=replace(CONFIG, frames=80), trace=steady(2e4, 0.04), payload=lambda frame, decision: 6000)
    bench.run()
    assert bench.device.counts["unacknowledged_lost"] == 0
    assert bench.device.counts["stale_ack"] == 0


def test_an_acknowledgement_out_of_order_gives_up_what_stood_before_it() -> None:
    session = DeviceSession(CONFIG, lambda frame, p: 1.0)
    session.tracker[est.GOODPUT] = 1e8
    hand_over(session, 0, 0.02)
    hand_over(session, 1, 0.12)
    session.received(Ack(SESSION, 1, 1), 0.2)
    assert session.counts["skipped_ack"] == 1
    assert session.link_state().unacked == 0
    assert session.tracker[est.UNACKED_BYTES] == 0


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (Ack(bytes(16), 0, 0), "foreign_session"),
        (Result(bytes(16), 0, 0, 0.1, 0.0, 0.5, Status.DONE, b"1" * 16), "foreign_session"),
        (Ack(SESSION, 9, 0), "stale_ack"),
        (Ack(SESSION, 0, 3), "stale_ack"),
        (Result(SESSION, 9, 0, 0.1, 0.0, 0.5, Status.DONE, b"1" * 16), "stale_result"),
        (Result(SESSION, 0, 3, 0.1, 0.0, 0.5, Status.DONE, b"1" * 16), "stale_result"),
        (Heartbeat(SESSION, 77, 0, reply=True), "stale_heartbeat"),
        (Heartbeat(SESSION, 0, 0), "unexpected_message"),
        (FrameMessage(SESSION, 0, 0, 0, 0, 0, 0, bytes(20)), "unexpected_message"),
    ],
)
def test_what_is_not_for_this_session_changes_nothing(
    message: Ack | Result | Heartbeat | FrameMessage, count: str
) -> None:
    session = DeviceSession(CONFIG, lambda frame, p: 1.0)
    hand_over(session, 0, 0.05)
    before = session.tracker.copy()
    assert session.received(message, 0.1) == []
    assert session.counts[count] == 1
    assert np.array_equal(session.tracker, before, equal_nan=True)


def test_repeated_acknowledgements_and_results_count_once() -> None:
    bench = Bench(config=replace(CONFIG, frames=3)).run()
    for message in list(bench.messages_down):
        bench.give(message)
    assert bench.paths() == {"REMOTE": 3}
    assert bench.device.counts["stale_ack"] == bench.device.counts["stale_result"] == 3


@pytest.mark.parametrize("result", [(Status.DROPPED, b""), (Status.REFUSED, b""), (Status.DONE, b"12")])
def test_a_frame_that_the_edge_refuses_falls_back(result: tuple[Status, bytes]) -> None:
    session = DeviceSession(CONFIG, lambda frame, p: 0.25)
    hand_over(session, 0, 0.05)
    assert session.received(Result(SESSION, 0, 0, 0.1, 0.0, 0.0, *result), 0.1) == []
    row = next(a.outcome[0] for a in session.tick(0.26) if isinstance(a, Settled))
    assert Path(row["path"]) is Path.FALLBACK_LATE
    assert row["quality"] == 0.25
    assert np.isinf(row["remote_latency_s"])


def test_without_a_connection_the_exits_answer_and_nothing_is_sent() -> None:
    bench = Bench()
    bench.at(0.45, lambda: bench.do(bench.device.link_changed(False, bench.now)))
    bench.at(1.05, lambda: bench.do(bench.device.link_changed(True, bench.now)))
    bench.run()
    paths = [Path(p).name for p in bench.log()["path"]]
    assert paths[:4] == ["REMOTE"] * 4
    assert paths[5:] == ["FALLBACK_PASSED"] * 6 + ["REMOTE"] * 9
    assert [m.frame for m in bench.sent] == [0, 1, 2, 3, 4, *range(11, 20)]


def test_an_edge_that_is_offline_is_not_sent_to() -> None:
    bench = Bench()
    bench.do(bench.device.edge_changed(False, 0.0))
    bench.at(1.0, lambda: bench.do(bench.device.edge_changed(True, bench.now)))
    bench.run()
    assert bench.paths() == {"FALLBACK_PASSED": 10, "REMOTE": 10}
    assert bench.sent[0].frame == 10


def test_a_failed_stage_costs_one_frame() -> None:
    session = DeviceSession(CONFIG, lambda frame, p: 1.0)
    session.tick(0.0)
    row = next(a.outcome[0] for a in session.failed(0, 0.05) if isinstance(a, Settled))
    assert Path(row["path"]) is Path.MISS
    assert any(isinstance(a, Look) for a in session.tick(0.1))


def test_finish_closes_every_frame() -> None:
    for end in (0.0, 0.01, 0.33, 0.36, 0.39, 1.234):
        bench = Bench(tail_s=lambda branch: 0.2).run(until=end)
        bench.do(bench.device.finish(end))
        frames = sorted(int(r["frame"][0]) for r in bench.records)
        assert frames == list(range(len(frames)))
        assert len(frames) >= math.floor(end * 10) + (1 if end * 10 % 1 else 0)


def as_decision(row: NDArray[np.int64]) -> Decision:
    return Decision(*(int(v) for v in row))


@pytest.mark.parametrize("space", [SPACE, WIDE], ids=["plain", "skip and patience"])
def test_one_record_per_frame_under_random_faults(space: DecisionSpace) -> None:
    """Messages vanish, repeat and arrive out of place; connections come and go; every frame ends exactly once."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        bench = Bench(
            config=replace(CONFIG, space=space, frames=50, lost_after_s=float(rng.uniform(0.2, 2)), give_up_s=1.0),
            trace=steady(float(10 ** rng.uniform(4.5, 6.5)), 0.05),
            head_s=lambda decision, r=rng: float(r.uniform(0.01, 0.2)),
            decide=lambda frame, r=rng: as_decision(space.table[r.integers(len(space.table))]),
            confidence=lambda frame, decision, r=rng: float(r.random()),
        )

        def chaos(message: object, now: float, r: np.random.Generator = rng, b: Bench = bench) -> bool:
            for _ in range(int(r.integers(0, 2))):
                b.at(now + float(r.uniform(0, 1)), lambda: isinstance(message, Ack | Result) and b.give(message))
            return bool(r.random() > 0.3)

        bench.deliver = chaos
        for _ in range(4):
            when, up = float(rng.uniform(0, 5)), bool(rng.random() < 0.5)
            bench.at(when, lambda u=up, b=bench: b.do(b.device.link_changed(u, b.now)))
            bench.at(when + 0.1, lambda u=up, b=bench: b.do(b.device.edge_changed(u, b.now)))
        bench.run()
        log = bench.log()
        answered = log["path"] != Path.MISS
        assert (log["answer_latency_s"][answered] <= CONFIG.deadline_s + 1e-6).all()
        assert (np.isnan(log["patience"]) == (log["branch"] < 0)).all()
        assert bench.device.tracker[est.UNACKED_COUNT] == bench.device.link_state().unacked
        assert sum(v for k, v in bench.device.counts.items() if k.startswith("path_")) == 50


# ---- the edge -----------------------------------------------------------------------------------------------------


def frame(sequence: int, budget_us: int = 200_000, branch: int = 0, session: bytes = SESSION) -> bytes:
    return FrameMessage(session, sequence, sequence, branch, 0, 0, budget_us, bytes(100)).to_bytes()


def replies(actions: list[Reply | Work]) -> list[object]:
    return [parse_message(a.payload) for a in actions if isinstance(a, Reply)]


def test_the_edge_acknowledges_queues_and_reports_its_times() -> None:
    edge = EdgeSession("default", 4)
    first = edge.received(TOPICS.leaf("up"), frame(0), 1.0)
    assert isinstance(replies(first)[0], Ack)
    work = next(a for a in first if isinstance(a, Work))
    second = edge.received(TOPICS.leaf("up"), frame(1), 1.01)
    assert len(second) == 1
    done = edge.worked(work.job, TailAnswer(b"1" * 16, 0.8), 1.05)
    result = replies(done)[0]
    assert isinstance(result, Result)
    assert (result.residence_s, result.queue_s) == pytest.approx((0.05, 0.0))
    following = next(a for a in done if isinstance(a, Work))
    late = replies(edge.worked(following.job, TailAnswer(b"1" * 16, 0.8), 1.08))[0]
    assert isinstance(late, Result)
    assert (late.residence_s, late.queue_s) == pytest.approx((0.07, 0.04))


def test_the_edge_drops_what_cannot_make_its_deadline() -> None:
    edge = EdgeSession("default", 4)
    work = next(a for a in edge.received(TOPICS.leaf("up"), frame(0), 1.0) if isinstance(a, Work))
    edge.received(TOPICS.leaf("up"), frame(1, budget_us=50_000), 1.0)
    edge.received(TOPICS.leaf("up"), frame(2, budget_us=500_000), 1.0)
    done = edge.worked(work.job, TailAnswer(b"1" * 16, 0.8), 1.1)
    statuses = [(r.frame, r.status) for r in replies(done) if isinstance(r, Result)]
    assert statuses == [(0, Status.DONE), (1, Status.DROPPED)]
    assert next(a for a in done if isinstance(a, Work)).job.message.frame == 2
    assert edge.counts["dropped_late"] == 1


def test_the_edges_queue_is_bounded() -> None:
    edge = EdgeSession("default", 4, max_queue=3)
    outs = [edge.received(TOPICS.leaf("up"), frame(i), 1.0) for i in range(6)]
    assert edge.waiting == 3
    assert edge.counts["dropped_full"] == 2
    assert [len(replies(out)) for out in outs] == [1, 1, 1, 1, 2, 2]


def test_one_device_cannot_fill_the_queue_of_the_others() -> None:
    edge = EdgeSession("default", 4)
    for i in range(40):
        edge.received(TOPICS.leaf("up"), frame(i), 1.0)
    assert edge.waiting == MAX_PER_DEVICE
    edge.received(DeviceTopics("default", "e").leaf("up"), frame(0, session=bytes(16)), 1.0)
    assert edge.waiting == MAX_PER_DEVICE + 1
    big = FrameMessage(SESSION, 0, 0, 0, 0, 0, 10**6, bytes(8_000_000)).to_bytes()
    for name in "abcdef":
        edge.received(DeviceTopics("default", name).leaf("up"), big, 1.0)
    assert edge.waiting == MAX_PER_DEVICE + 1 + 4


def test_repeated_frames_are_acknowledged_and_not_run_again() -> None:
    edge = EdgeSession("default", 4)
    edge.received(TOPICS.leaf("up"), frame(3), 1.0)
    again = edge.received(TOPICS.leaf("up"), frame(3), 1.0)
    assert len(replies(again)) == 1
    assert edge.counts["repeated"] == 1
    reborn = edge.received(TOPICS.leaf("up"), frame(0, session=bytes(16)), 1.0)
    assert len(reborn) == 1
    assert edge.waiting == 1


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (TOPICS.leaf("up"), b"garbage"),
        (TOPICS.leaf("up"), frame(0, branch=9)),
        (TOPICS.leaf("up"), Ack(SESSION, 0, 0).to_bytes()),
        (TOPICS.leaf("heartbeat"), frame(0)),
        (TOPICS.leaf("heartbeat"), Heartbeat(SESSION, 0, 0, reply=True).to_bytes()),
        (TOPICS.leaf("other"), frame(0)),
        ("adaptsplit/v1/default/_edge/up", frame(0)),
        ("nonsense", frame(0)),
    ],
)
def test_the_edge_counts_garbage_and_goes_on(topic: str, payload: bytes) -> None:
    edge = EdgeSession("default", 4)
    assert edge.received(topic, payload, 1.0) == []
    assert edge.counts["malformed"] == 1
    assert edge.received(TOPICS.leaf("up"), frame(0), 1.0)


# ---- presence of edges, and sessions over a broker in memory --------------------------------------------------------


def test_only_the_will_of_the_present_life_counts() -> None:
    edges = Edges()
    assert edges.seen(EdgeSeen("e", "life-1", "ONLINE")) == (True, False)
    assert edges.seen(EdgeSeen("e", "life-2", "ONLINE")) == (True, True)
    assert edges.seen(EdgeSeen("e", "life-1", "CONNECTION_BROKEN")) == (False, False)
    assert edges.online
    assert edges.seen(EdgeSeen("e", "life-2", "CONNECTION_BROKEN")) == (True, False)
    assert not edges.online
    for i in range(1000):
        edges.seen(EdgeSeen(f"e{i}", "x", "ONLINE"))
    edges.clear()
    assert not edges.online


def test_sessions_over_a_broker_in_memory_survive_the_edges_death() -> None:
    """The edge breaks off at 1.02 s (its will is published) and a new one comes at 2 s; no frame is without an end."""
    hub, topics = MemoryHub(delay_s=0.02), TOPICS
    device = DeviceSession(replace(CONFIG, frames=40), lambda frame, p: 1.0)
    bench = Bench()
    bench.device, bench.config = device, device.config
    here = edge_connection("default", "edge-1")

    def heard(topic: str, payload: bytes) -> None:
        bench.now = hub.now
        if topic == here:
            bench.do(device.edge_changed(payload == b"ONLINE", hub.now))
        else:
            bench.do(device.received(parse_message(payload), hub.now))

    client = hub.connect([topics.leaf("down"), here], heard)
    bench.send = lambda message: client.publish(topics.leaf("up"), message.to_bytes()) and None

    def new_edge() -> MemoryTransport:
        session = EdgeSession("default", 4)

        def obey(actions: list[Reply | Work]) -> None:
            for action in actions:
                if isinstance(action, Reply):
                    transport.publish(action.topic, action.payload)
                else:
                    obey(session.worked(action.job, ANSWER, hub.now))

        transport = hub.connect(
            [topics.leaf("up")], lambda t, p: obey(session.received(t, p, hub.now)), Will(here, b"BROKEN")
        )
        transport.publish(here, b"ONLINE", retain=True)
        return transport

    first = new_edge()
    bench.at(1.02, first.break_off)
    bench.at(2.0, lambda: new_edge() and None)
    for step in range(6000):
        hub.run_until(step / 1000)
        bench.run(until=step / 1000)
    paths = [Path(p).name for p in bench.log()["path"]]
    assert paths[:10] == ["REMOTE"] * 10
    assert paths[11:20] == ["FALLBACK_PASSED"] * 9
    assert paths[20:] == ["REMOTE"] * 20


# ---- frames that are skipped, and the answer that is held ------------------------------------------------------------


def skipping(pattern: str, **changes: object) -> Bench:
    """A bench whose frames follow a pattern: e exit, l local, s send (patience 1), h send (patience 0.8), - skip."""
    choice = {"e": EXIT_HERE, "l": LOCAL, "s": SEND_LONG, "h": SEND_SHORT, "-": SKIP}
    config = replace(WIDE_CONFIG, frames=len(pattern))
    return Bench(config, decide=lambda frame: choice[pattern[frame]], **changes)  # type: ignore[arg-type]


def test_a_skipped_frame_is_answered_at_once_with_the_held_answer() -> None:
    """The held answer keeps 0.9 of its confidence per frame; only the content signals run and cost energy."""
    bench = skipping("e--", confidence=lambda frame, d: 0.8)
    bench.device = DeviceSession(
        replace(bench.config, energy=Energy(compute_w=3.0)), lambda frame, p: (0.7, 0.6, 0.5)[frame]
    )
    log = bench.run().log()
    assert [Path(p).name for p in log["path"]] == ["EXIT", "STALE", "STALE"]
    assert log["confidence"] == pytest.approx([0.8, 0.72, 0.648])
    assert log["quality"] == pytest.approx([0.7, 0.6, 0.5])  # the same answer, graded on each frame
    assert log["answer_latency_s"] == pytest.approx([0.021, 0.001, 0.001])
    assert log["compute_j"] == pytest.approx([0.063, 0.003, 0.003])
    assert log["known_s"] == pytest.approx([0.021, 0.101, 0.201])
    assert log["branch"].tolist() == [0, 4, 4]
    assert log["exit_confidence"].tolist()[1:] == [0.0, 0.0]
    assert np.isnan(log["agreement"]).all()
    assert np.isnan(log["remote_latency_s"]).all()
    assert bench.device.counts["path_stale"] == 2


def test_a_skip_is_no_switch_and_leaves_the_last_branch() -> None:
    log = skipping("e-e-l-e").run().log()
    assert log["switched"].tolist() == [0, 0, 0, 0, 1, 0, 1]


def test_a_skip_without_a_held_answer_is_a_miss() -> None:
    bench = skipping("-e-").run()
    assert [Path(p).name for p in bench.log()["path"]] == ["MISS", "EXIT", "STALE"]
    assert bench.device.tracker[est.MISS_RATE] == pytest.approx(0.1 * 0.9 * 0.9)


def test_a_skip_after_the_deadline_is_a_miss() -> None:
    bench = skipping("e-")
    bench.signals = lambda frame: setattr(bench, "signal_s", 0.3) or (0.1, 0.1)
    assert [Path(p).name for p in bench.run().log()["path"]] == ["EXIT", "MISS"]


def test_the_answer_of_the_newest_frame_is_held_also_when_it_came_too_late() -> None:
    """Frame 0 is sent: its exit answers at 0.25 s; its result (confidence 0.9) comes at 0.374 s and replaces that.

    Frames 1 and 2 (skipped at 0.1 and 0.2 s) find nothing, frame 3 the exit's answer, and
    frame 4 the result, three and four frames old.
    """
    bench = skipping("s-----", tail_s=lambda branch: 0.3, quality=lambda frame, remote: 0.9 if remote else 0.4)
    log = bench.run().log()
    paths = [Path(p).name for p in log["path"]]
    assert paths == ["FALLBACK_LATE", "MISS", "MISS", "STALE", "STALE", "STALE"]
    assert log["confidence"][3:] == pytest.approx([0.5 * 0.9**3, 0.9 * 0.9**4, 0.9 * 0.9**5])
    assert log["quality"][3:] == pytest.approx([0.4, 0.9, 0.9])


def test_a_late_result_does_not_replace_the_answer_of_a_newer_frame() -> None:
    bench = skipping("se----", tail_s=lambda branch: 0.3, quality=lambda frame, remote: 0.9 if remote else 0.4)
    log = bench.run().log()
    assert bench.device.counts["late_result"] == 1
    assert log["quality"][2:].tolist() == pytest.approx([0.4] * 4)
    assert bench.device.tracker[est.HELD_AT] == pytest.approx(0.1)


def test_a_frame_that_was_passed_over_leaves_its_exits_answer() -> None:
    bench = skipping("s-")
    bench.do(bench.device.link_changed(False, 0.0))
    assert [Path(p).name for p in bench.run().log()["path"]] == ["FALLBACK_PASSED", "STALE"]


def test_what_is_held_is_observed() -> None:
    bench = skipping("e--", confidence=lambda frame, d: 0.8).run()
    seen = np.array([bench.observations[frame] for frame in range(3)])
    assert physical(seen, "held_age").tolist() == pytest.approx([2.0, 0.1, 0.2], abs=1e-6)
    assert physical(seen, "held_confidence").tolist() == pytest.approx([0.0, 0.8, 0.8], abs=1e-6)
    assert physical(seen, "last_branch").tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-6)


# ---- patience -----------------------------------------------------------------------------------------------------


def test_the_exit_answers_when_patience_ends_and_the_result_is_waste() -> None:
    """Patience 0.8 of 0.25 s: the result at 0.234 s is in time for a patience of 1, and late for this one."""
    for letter, path, latency in (("h", Path.FALLBACK_LATE, 0.2), ("s", Path.REMOTE, 0.234384)):
        bench = skipping(letter, tail_s=lambda branch: 0.16).run()
        row = bench.log()[0]
        assert Path(row["path"]) is path
        assert row["answer_latency_s"] == pytest.approx(latency, abs=1e-6)
        assert row["remote_latency_s"] == pytest.approx(0.234384, abs=1e-6)
        assert row["patience"] == pytest.approx(0.8 if letter == "h" else 1.0)
        assert bench.device.counts["late_result"] == (letter == "h")


def test_patience_never_ends_before_the_exit_has_run_nor_after_the_deadline() -> None:
    """The head ends at 0.221 s, after the patience (0.2 s): the exit answers as soon as it can."""
    bench = skipping("h", head_s=lambda decision: 0.22, encode_s=lambda decision: 0.01).run()
    assert bench.paths() == {"FALLBACK_PASSED": 1}
    assert float(bench.log()["answer_latency_s"][0]) == pytest.approx(0.221)
    late = skipping("h", head_s=lambda decision: 0.26).run()
    assert late.paths() == {"MISS": 1}


def test_the_slot_is_given_up_when_patience_ends() -> None:
    """No acknowledgement comes: frames 0 and 1 fill the window; frame 2 waits in the slot, frame 3 drives it out."""
    assert slot_end("sshe") == ("FALLBACK_PASSED", pytest.approx(0.2))
    assert slot_end("ssse") == ("FALLBACK_PASSED", pytest.approx(0.25))
    assert slot_end("sssse") == ("FALLBACK_PASSED", pytest.approx(0.126, abs=1e-3))


def slot_end(pattern: str) -> tuple[str, float]:
    """How frame 2 of a pattern ends when nothing is ever acknowledged."""
    bench = skipping(pattern, deliver=lambda message, now: False)
    bench.device.tracker[est.GOODPUT] = 1e8
    row = bench.run().log()[2]
    return Path(row["path"]).name, float(row["answer_latency_s"])


def test_the_sender_asks_for_a_result_within_the_patience() -> None:
    """Behind another message, a result is predicted 0.2 to 0.25 s after the frame's arrival: in time for patience 1."""
    for decision, goes in ((SEND_SHORT, False), (SEND_LONG, True)):
        session = DeviceSession(WIDE_CONFIG, lambda frame, p: 1.0)
        hand_over(session, 0, 0.03)
        session.tracker[est.RTT] = 0.08
        assert 0.3 < est.predicted_result_s(session.tracker, 0.13, 500 + est.OVERHEAD_BYTES) < 0.35
        assert isinstance(hand_over(session, 1, 0.13, decision)[0], Send) is goes


def test_a_short_patience_ends_before_a_long_one_that_began_earlier() -> None:
    bench = skipping("sh-", deliver=lambda message, now: not isinstance(message, Result))
    bench.device = DeviceSession(replace(bench.config, space=HASTY), lambda frame, p: 1.0)
    bench.confidence = lambda frame, d: (0.5, 0.6)[frame]
    row = bench.run().log()[2]
    assert Path(row["path"]) is Path.STALE  # at 0.2 s frame 1 has been answered (0.175 s), frame 0 not yet (0.25 s)
    assert row["confidence"] == pytest.approx(0.6 * 0.9)


def test_lost_results_are_known_when_patience_ends() -> None:
    bench = skipping("h", deliver=lambda message, now: not isinstance(message, Result)).run()
    assert bench.log()["known_s"].tolist() == pytest.approx([0.2])


# ---- the same rules as the simulator ------------------------------------------------------------------------------


CELLS, CLASSES, FIRST_ROW = 16, 4, 5


def profile_world(seed: int, trace: LinkTrace, frames: int, rows: int, window: int, space: DecisionSpace) -> World:
    """A simulator world with constant stage times, and random answers whose qualities and agreements follow."""
    from adaptsplit.envs.exogenous import NOTHING, Board, Server, Thermal
    from adaptsplit.envs.link_table import build_table
    from adaptsplit.envs.world import UNLABELLED, Answers, Constants, Stages, Weights, World
    from adaptsplit.envs.world import Outcomes as Measured

    rng = np.random.default_rng(seed)
    b, r, _ = space.shape

    def table(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (rng.random((rows + 1, *shape)) * scale).astype(np.float32)

    truth = rng.integers(CLASSES, size=(rows + 1, CELLS)).astype(np.uint8)
    truth[:, ::5] = UNLABELLED
    given = rng.integers(CLASSES, size=(rows + 1, b, r + 1, CELLS)).astype(np.uint8)
    labelled = truth[:, None, None] != UNLABELLED
    quality = ((given == truth[:, None, None]) & labelled).sum(axis=-1) / labelled.sum(axis=-1)
    agreement = (given[:, :, :r] == given[:, space.exit_branches, r][:, :, None]).mean(axis=-1)
    payload = np.round(400 + table(b, r, scale=6000.0))
    exits, tails = quality[:, :, r].astype(np.float32), quality[:, :, :r].astype(np.float32)
    measured = Measured(exits, table(b), tails, table(b, r), agreement.astype(np.float32), payload, table(), table())
    head = np.repeat(rng.uniform(0.01, 0.12, (b, 1)), 2, axis=1)
    encode = np.repeat(rng.uniform(0.001, 0.02, (b, r, 1)), 2, axis=2)
    tail = np.tile(rng.uniform(0.005, 0.06, (b, 1, 1)), (1, r, 2))
    numbers = dict(fps=10.0, deadline_s=0.25, window=float(window), fifo=0.0, frames=frames, decision_s=0.0)
    powers = dict(compute_w=3.0, base_w=0.0, radio_w=1.0, radio_w_per_bps=1e-7, battery_j=1e9)
    priors = dict(prior_bps=1e6, prior_rtt_s=0.05, prior_server_s=0.02, retention=RETENTION)
    kinds = ("split", "offload", "local", "skip")
    return World(
        measured,
        Answers(given, truth, labelled=True),
        Stages(head, encode, tail, np.full(2, SIGNAL_S)),
        build_table([trace]),
        Server(NOTHING, NOTHING, NOTHING, 1.0, 0.0, 1.0),
        Board(NOTHING, 1.0, Thermal(0.0, 25.0, 0.0, 1.0, 1e3, 1.0, 1e3, 1.0, 0.0, 1.0), False, NOTHING, NOTHING),
        Constants(**numbers, **powers, **priors),
        Weights(1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        np.array([kinds.index(branch.kind) for branch in space.branches]),
        space.rates_per_branch,
        space.exit_branches,
        np.array(space.thresholds),
        np.array(space.patience),
        space.grid,
        np.array([0]),
        np.array([rows]),
    )


def wild_trace(seed: int) -> LinkTrace:
    """Capacity that jumps between an outage and 5 Mbit/s.

    The round trip is constant: services end on the edges of samples, where rounding would choose its sample.
    """
    rng = np.random.default_rng(seed)
    capacity = 10 ** rng.uniform(4.7, 6.7, 300) * (rng.random(300) > 0.15)
    return LinkTrace("wild", "demo", 0.2, capacity, np.full(300, rng.uniform(0.02, 0.12)), np.zeros(300))


RETENTION = 0.93
SIGNAL_S = 0.004  # much happens in it: what is seen is what was known before, on both sides
EXACT = ("path", "branch", "rate", "switched", "sent_bytes")
CLOSE = (
    "decided_s",
    "threshold",
    "patience",
    "quality",
    "confidence",
    "exit_confidence",
    "agreement",
    "answer_latency_s",
    "remote_latency_s",
    "compute_j",
)


def simulated(world: World, decisions: NDArray[np.int64], seed: int, offset_s: float) -> tuple[Outcomes, Seen]:
    """Records (F,) and the observation of each decided frame, as the compiled simulator has them."""
    from adaptsplit.envs.simulator import Simulator, Stretch

    simulator = Simulator(world, 1, keep_all=True)
    simulator.reset(np.array([seed], dtype=np.uint64))
    observations = {0: simulator.place(Stretch(0, offset_s, 0, FIRST_ROW))[0].copy()}
    while not simulator.done[0]:
        at = int(simulator.frame[0])
        observations[at] = simulator.observations[0].copy()
        simulator.step(decisions[at : at + 1])
    return simulator.outcomes()[0], observations


def flown(world: World, decisions: NDArray[np.int64], trace: LinkTrace, offset_s: float, space: DecisionSpace) -> Bench:
    """Device and edge on the same world, with the answers that the simulator replays."""
    o, given, truth = world.outcomes, world.answers.given, world.answers.truth
    stages, exits, rates = world.stages, space.exit_branches, space.shape[1]
    c = world.constants
    choice = lambda frame: as_decision(decisions[frame])  # noqa: E731
    row = lambda frame: (FIRST_ROW + frame) % (len(truth) - 1)  # noqa: E731

    def grade(frame: int, prediction: Prediction) -> float:
        known = truth[row(frame)] != 255
        return float(np.mean(prediction[known] == truth[row(frame)][known]))

    def tail_answer(m: FrameMessage) -> TailAnswer:
        at = row(m.frame), m.branch, m.rate
        return TailAnswer(given[at].tobytes(), float(o.tail_confidence[at]))

    never = dict(lost_after_s=1e6, give_up_s=1e6, silent_beats=1_000_000)
    priors = dict(prior_bps=c.prior_bps, prior_rtt_s=c.prior_rtt_s, prior_server_s=c.prior_server_s)
    sizes = dict(space=space, frames=len(decisions), window=int(c.window), retention=c.retention)
    bench = Bench(
        replace(CONFIG, **sizes, **never, **priors, energy=Energy(compute_w=c.compute_w)),  # type: ignore[arg-type]
        trace,
        offset_s,
        signal_s=SIGNAL_S,
        head_s=lambda d: float(stages.head[exits[d.branch], 0]),
        encode_s=lambda d: float(stages.encode[d.branch, d.rate, 0]),
        tail_s=lambda branch: float(stages.tail[branch, 0, 0]),
        decide=choice,
        payload=lambda frame, d: int(o.payload[row(frame), d.branch, d.rate]),
        confidence=lambda frame, d: float(o.exit_confidence[row(frame), exits[d.branch]]),
        signals=lambda frame: (float(o.sharpness[row(frame)]), float(o.difference[row(frame)])),
        grade=grade,
        exit_answer=lambda frame, d: given[row(frame), exits[d.branch], rates],
        tail_answer=tail_answer,
    )
    bench.edge = EdgeSession("default", len(space.branches), max_queue=1000)
    bench.device.telemetry(0.8, math.nan, math.nan, math.nan)
    return bench.run()


@pytest.mark.parametrize("space", [SPACE, WIDE], ids=["plain", "skip and patience"])
@pytest.mark.parametrize("seed", range(6))
def test_the_session_and_the_simulator_settle_every_frame_alike(seed: int, space: DecisionSpace) -> None:
    """Random decisions on a wild link: the same records and the same observations as the compiled simulator."""
    pytest.importorskip("numba")
    settle_alike(seed, space)


def test_session_and_simulator_agree_where_a_short_patience_overtakes_a_long_one() -> None:
    pytest.importorskip("numba")
    for seed in (0, 2, 3, 6):
        settle_alike(seed, HASTY)


def settle_alike(seed: int, space: DecisionSpace) -> None:
    """Fail unless the session's records and observations on random decisions are those of the simulator."""
    frames, rows, window, trace, offset_s = 150, 40, 1 + seed % 3, wild_trace(seed), 3.7
    world = profile_world(seed, trace, frames, rows, window, space)
    rng = np.random.default_rng(seed)
    decisions = space.table[rng.integers(len(space.table), size=frames)]
    skipped = rng.random(frames) < 0.3
    if space is not SPACE:
        decisions[skipped] = (SKIP.branch, SKIP.rate, SKIP.threshold)
    expected, observations = simulated(world, decisions, seed, offset_s)
    bench = flown(world, decisions, trace, offset_s, space)
    log = bench.log()
    for name in EXACT:
        assert np.array_equal(log[name], expected[name]), name
    for name in CLOSE:
        assert log[name] == pytest.approx(expected[name], abs=2e-5, nan_ok=True), name
    decided = log["branch"] >= 0
    assert log["known_s"][decided] == pytest.approx(np.minimum(expected["known_s"][decided], 1e9), abs=2e-5)
    assert set(bench.observations) == set(observations)
    for frame_number, observation in observations.items():
        assert bench.observations[frame_number] == pytest.approx(observation, abs=1e-4), frame_number
    if space is not SPACE:
        assert {Path.STALE, Path.REMOTE, Path.FALLBACK_LATE} <= {Path(p) for p in log["path"]}
