"""The edge server for a fleet: batches by deadline, back-pressure, several models, groups of workers, draining."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_live import BRANCHES, make_model

from adaptsplit.codecs import get_codec
from adaptsplit.decision import BranchSpec, Decision, DecisionSpace
from adaptsplit.device_bridge.actions import SessionConfig
from adaptsplit.device_bridge.batching import MAX_PER_DEVICE, BatchTimes, Job, TailQueue
from adaptsplit.device_bridge.broker import EmbeddedBroker, find_mosquitto
from adaptsplit.device_bridge.control import EdgeState, parse_control
from adaptsplit.device_bridge.edge import EdgeServer
from adaptsplit.device_bridge.edge_link import shared
from adaptsplit.device_bridge.edge_load import LightDevice, fly_all
from adaptsplit.device_bridge.edge_session import EdgeSession, Lane, Reply, TailAnswer, Work
from adaptsplit.device_bridge.edge_tail import Tail
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Result, ServerLoad, Status, model_id, parse_message
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.packets import packet
from adaptsplit.device_bridge.topics import DeviceTopics, edge_connection, topic_matches
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import AdaptsplitError, CodecError, ConfigError, MessageError, RunError
from adaptsplit.runtime import EdgeRuntime, ModelFolder

SESSION = bytes(range(16))
UP = DeviceTopics("default", "d").leaf("up")
A, B = b"model--A", b"model--B"
SPACE = DecisionSpace(BRANCHES)
FEATURES = np.linspace(-1, 1, 5 * 16 * 16, dtype=np.float32).reshape(5, 16, 16)
CONTAINER = get_codec("q8t-zstd").encode(FEATURES)
needs_mosquitto = pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")


def message(
    sequence: int = 0, budget_s: float = 0.2, branch: int = 0, model: bytes = b"", session: bytes = SESSION
) -> FrameMessage:
    return FrameMessage(session, sequence, sequence, branch, 0, 0, round(budget_s * 1e6), CONTAINER, model)


def job(arrived: float, budget_s: float, branch: int = 0, device: str = "d") -> Job:
    return Job(device, message(0, budget_s, branch), arrived)


def known(alone: float = 0.010, more: float = 0.010) -> BatchTimes:
    """A batch of k jobs takes ``alone + (k - 1) * more``, on the branches 0 and 1."""
    times = BatchTimes()
    for branch in (0, 1):
        for k in (1, 2, 4, 8):
            times.note(branch, k, alone + (k - 1) * more)
    return times


# ---- the time model ------------------------------------------------------------------------------------------------


def test_the_time_model_finds_intercept_and_slope_and_forgets() -> None:
    times = BatchTimes(memory=20.0)
    assert times.predict(3) == 0.0
    rng = np.random.default_rng(0)
    for _ in range(300):
        k = int(rng.integers(1, 9))
        times.note(0, k, 0.004 + 0.001 * k)
    assert times.predict(0, 1) == pytest.approx(0.005, rel=1e-3)
    assert times.predict(0, 16) == pytest.approx(0.020, rel=1e-3)
    for _ in range(300):
        k = int(rng.integers(1, 9))
        times.note(0, k, 0.008 + 0.003 * k)
    assert times.predict(0, 4) == pytest.approx(0.020, rel=1e-2)
    assert times.predict(1) == 0.0


def test_one_size_alone_is_taken_for_proportional() -> None:
    times = BatchTimes()
    times.note(0, 2, 0.006)
    assert times.predict(0, 1) == pytest.approx(0.003)
    assert times.predict(0, 8) == pytest.approx(0.024)


# ---- the queue -----------------------------------------------------------------------------------------------------


def test_the_earliest_deadline_goes_first_and_equal_ones_in_order() -> None:
    queue = TailQueue(10, 1 << 20)
    for name, arrived, budget_s in (("a", 0.0, 0.5), ("b", 0.1, 0.1), ("c", 0.2, 0.3), ("d", 0.0, 0.5)):
        queue.push(job(arrived, budget_s, device=name))
    order = []
    while len(queue):
        batch, late = queue.take(0.15)
        assert not late
        order.append(batch[0].device)
        queue.done(0.15)
    assert order == ["b", "a", "c", "d"]


def test_a_batch_holds_one_branch_in_order_of_deadlines_up_to_its_size() -> None:
    queue = TailQueue(20, 1 << 20, max_batch=3)
    for name, budget_s, branch in (("a", 1.0, 1), ("b", 0.4, 0), ("c", 0.9, 0), ("d", 0.5, 1), ("e", 0.6, 0)):
        queue.push(job(0.0, budget_s, branch, name))
    queue.push(job(0.0, 0.7, 0, "f"))
    assert [each.device for each in queue.take(0.0)[0]] == ["b", "e", "f"]
    queue.done(0.0)
    assert [each.device for each in queue.take(0.0)[0]] == ["d", "a"]


def test_a_batch_does_not_grow_beyond_what_its_most_urgent_job_can_bear() -> None:
    """10 ms and 5 ms for each more: at 1.000 a leader due at 1.021 bears three, one due at 1.019 two."""
    for due, size in ((0.021, 3), (0.019, 2), (0.001, 1)):
        queue = TailQueue(20, 1 << 20, max_batch=8, times=known(0.010, 0.005))
        queue.push(job(1.0, due))
        for _ in range(6):
            queue.push(job(1.0, 0.5))
        assert len(queue.take(1.0)[0]) == size


def test_the_wait_is_the_rest_of_the_batch_and_what_is_due_before() -> None:
    """Constant 10 ms per job: 4 ms of the running one are over; two of three that wait are due before the new one."""
    queue = TailQueue(20, 1 << 20, times=known())
    for budget_s in (0.1, 0.2, 0.3, 0.9):
        queue.push(job(0.0, budget_s))
    queue.take(0.0)
    assert queue.wait_s(0.004, deadline=0.35) == pytest.approx(0.006 + 0.020)
    assert queue.wait_s(0.004) == pytest.approx(0.006 + 0.030)
    assert queue.wait_s(0.5) == pytest.approx(0.030), "a batch that overruns is expected to end at any moment"
    assert queue.hopeless(job(0.004, 0.035), 0.004) is False  # only what is due before it counts: 6 + 10 ms
    assert queue.hopeless(job(0.004, 0.015), 0.004) is True


def test_batches_shorten_the_expected_wait() -> None:
    queue = TailQueue(20, 1 << 20, max_batch=4, times=known(0.010, 0.001))
    for _ in range(6):
        queue.push(job(0.0, 0.5))
    assert queue.wait_s(0.0) == pytest.approx(0.013 + 0.011)


def test_nothing_is_hopeless_for_a_free_tail_or_one_never_measured() -> None:
    queue = TailQueue(20, 1 << 20, times=known())
    assert not queue.hopeless(job(0.0, 0.001), 0.0)
    unknown = TailQueue(20, 1 << 20)
    for _ in range(5):
        unknown.push(job(0.0, 0.01))
    assert not unknown.hopeless(job(0.0, 0.001), 0.0)


def test_room_is_bounded_in_jobs_bytes_and_for_each_device() -> None:
    queue = TailQueue(MAX_PER_DEVICE + 1, 1 << 20)
    for _ in range(MAX_PER_DEVICE):
        queue.push(job(0.0, 1.0))
    assert queue.full(job(0.0, 1.0))
    assert not queue.full(job(0.0, 1.0, device="e"))
    queue.push(job(0.0, 1.0, device="e"))
    assert queue.full(job(0.0, 1.0, device="f"))
    assert TailQueue(9, len(CONTAINER) - 1).full(job(0.0, 1.0))


# ---- the session ---------------------------------------------------------------------------------------------------


def lanes(max_batch: int = 1, times: BatchTimes | None = None) -> dict[bytes, Lane]:
    return {model: Lane(3, TailQueue(64, 1 << 20, max_batch, times or BatchTimes())) for model in (A, B)}


def told(actions: Sequence[object]) -> list[object]:
    return [parse_message(action.payload) for action in actions if isinstance(action, Reply)]


def works(actions: Sequence[object]) -> list[Work]:
    return [action for action in actions if isinstance(action, Work)]


def test_frames_go_to_the_model_that_they_name() -> None:
    edge = EdgeSession("default", lanes=lanes())
    assert works(edge.received(UP, message(0, model=B).to_bytes(), 1.0))[0].model == B
    assert works(edge.received(UP, message(1, model=A).to_bytes(), 1.0))[0].model == A, "each model has its own worker"
    assert not works(edge.received(UP, message(2, model=A).to_bytes(), 1.0))
    other = EdgeSession("default", lanes=lanes())
    assert works(other.received(UP, message(0).to_bytes(), 1.0))[0].model == A, "the first one, where none is named"


def test_a_model_that_is_served_elsewhere_gets_no_answer_here() -> None:
    edge = EdgeSession("default", lanes=lanes())
    assert edge.received(UP, message(0, model=b"elsewher").to_bytes(), 1.0) == []
    assert dict(edge.counts) == {"other_model": 1}
    assert edge.idle


def test_results_carry_the_servers_queue_for_those_that_understand_it() -> None:
    edge = EdgeSession("default", lanes=lanes(times=known()))
    first = works(edge.received(UP, message(0, 1.0, model=A).to_bytes(), 0.0))[0]
    for sequence in (1, 2, 3):
        edge.received(UP, message(sequence, 1.0, model=A).to_bytes(), 0.0)
    done = edge.finished(first, [TailAnswer(bytes(16), 0.5)], 0.010)
    (result,) = told(done)
    assert isinstance(result, Result)
    assert result.load is not None
    assert (result.load.waiting, result.load.wait_s) == (3, pytest.approx(0.030, rel=1e-3))
    assert told(edge.received(UP, message(9, 1.0, session=bytes(16)).to_bytes(), 0.02))[0] == Ack(bytes(16), 9, 9)
    second = works(done)[0]
    assert edge.lanes[A].queue.at_work == second.jobs
    plain = EdgeSession("default", 3)
    work = works(plain.received(UP, message(0).to_bytes(), 0.0))[0]
    (answer,) = told(plain.worked(work.job, TailAnswer(bytes(16), 0.5), 0.1))
    assert isinstance(answer, Result)
    assert answer.load is None


def test_what_cannot_be_answered_in_time_is_refused_on_arrival() -> None:
    """10 ms per job: of ten frames with 45 ms each, one runs and three wait; the fifth would end at 50 ms."""
    edge = EdgeSession("default", lanes=lanes(times=known()))
    said: list[object] = []
    for k in range(10):
        topic = DeviceTopics("default", f"d{k}").leaf("up")
        said += told(edge.received(topic, message(0, 0.045, model=A).to_bytes(), 0.0))
    dropped = [m for m in said if isinstance(m, Result)]
    assert len([m for m in said if isinstance(m, Ack)]) == 10
    assert {m.status for m in dropped} == {Status.DROPPED}
    assert (len(dropped), edge.waiting, edge.counts["dropped_hopeless"]) == (6, 3, 6)
    assert dropped[0].load == ServerLoad(3, 0.04)


def test_under_twice_the_load_all_of_the_capacity_goes_into_answers_in_time() -> None:
    """200 jobs/s for a tail of 10 ms and deadlines of 100 ms: about half is answered, none of it late."""
    edge, now, ends, running = EdgeSession("default", lanes=lanes(times=known())), 0.0, math.inf, None
    sent: dict[tuple[str, int], float] = {}
    answered, refused = [], []
    for k in range(2000):
        arrival = k * 0.005
        while ends <= arrival:
            now, done = ends, running
            assert done is not None
            actions = edge.finished(done, [TailAnswer(bytes(16), 0.5)], now)
            device = done.job.device
            answered.append(now - sent[device, done.job.message.frame])
            running = next(iter(works(actions)), None)
            ends = now + 0.010 if running else math.inf
        name = f"d{k % 20}"
        sent[name, k] = arrival
        actions = edge.received(DeviceTopics("default", name).leaf("up"), message(k, 0.1, model=A).to_bytes(), arrival)
        refused += [m for m in told(actions) if isinstance(m, Result)]
        if running is None and works(actions):
            running, ends = works(actions)[0], arrival + 0.010
    assert max(answered) <= 0.1 + 1e-9
    assert len(answered) >= 0.99 * 1000
    assert edge.counts["dropped_late"] == 0
    assert len(answered) + len(refused) + edge.waiting + 1 == 2000


def test_a_bad_frame_in_a_batch_spoils_no_other() -> None:
    edge = EdgeSession("default", lanes=lanes(max_batch=8, times=known(0.01, 0.001)))
    first = works(edge.received(UP, message(0, 1.0, model=A).to_bytes(), 0.0))[0]
    for sequence in (1, 2, 3):
        edge.received(UP, message(sequence, 1.0, model=A).to_bytes(), 0.0)
    batch = works(edge.finished(first, [TailAnswer(bytes(16), 0.5)], 0.01))[0]
    assert len(batch.jobs) == 3
    answers: list[TailAnswer | AdaptsplitError] = [TailAnswer(bytes(16), 0.5), CodecError("bad"), TailAnswer(b"1", 1.0)]
    results = told(edge.finished(batch, answers, 0.03))
    assert [m.status for m in results if isinstance(m, Result)] == [Status.DONE, Status.REFUSED, Status.DONE]
    assert edge.idle


# ---- messages of version 2 -----------------------------------------------------------------------------------------

GOLDEN = {  # written out by hand from the layout in ``messages``; checksums by zlib.crc32
    "frame": "41420201000102030405060708090a0b0c0d0e0f000000070000012c0203000000000000004c4b410002bf206d6f64656c2d2d41",
    "result": "41420203000102030405060708090a0b0c0d0e0f000000070000012c00002ee0000007d03f40000000020809000300007530",
}


def test_golden_bytes_of_version_2() -> None:
    import zlib

    frame = FrameMessage(SESSION, 7, 300, 2, 3, 5_000_001, 180_000, CONTAINER, A)
    result = Result(SESSION, 7, 300, 0.012, 0.002, 0.75, Status.DONE, b"\x08\x09", ServerLoad(3, 0.03))
    for name, wire, tail in (("frame", frame.to_bytes(), CONTAINER), ("result", result.to_bytes(), b"")):
        head = bytes.fromhex(GOLDEN[name])
        assert wire == head + zlib.crc32(head).to_bytes(4, "big") + tail
        assert parse_message(wire) in (frame, result)


def test_only_frames_and_results_have_a_version_2() -> None:
    ack = bytearray(Ack(SESSION, 0, 0).to_bytes())
    ack[2] = 2
    with pytest.raises(MessageError, match="version 2 of type 2"):
        parse_message(bytes(ack))
    with pytest.raises(MessageError, match="model of 3 bytes, expected 8"):
        message(model=b"abc").to_bytes()
    with pytest.raises(MessageError, match="outside its range"):
        Result(SESSION, 0, 0, 0.1, 0.1, 0.0, Status.DROPPED, b"", ServerLoad(1 << 16, 0.0)).to_bytes()


# ---- real networks, alone and in batches ---------------------------------------------------------------------------


def with_free_batch_axis(folder: Path) -> Path:
    """Make the batch axis of a model folder's graphs free, and its final reshape indifferent to it."""
    import hashlib

    card = json.loads((folder / "model.json").read_text())
    for path in folder.glob("*.onnx"):
        graph = onnx.load(str(path))
        for value in (*graph.graph.input, *graph.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "n"
        for tensor in graph.graph.initializer:
            if tensor.name == "shape":
                shape = onnx.numpy_helper.to_array(tensor).copy()
                shape[0] = -1
                tensor.CopyFrom(onnx.numpy_helper.from_array(shape, "shape"))
        onnx.save(graph, str(path))
        card["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def tails(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tail, Tail]:
    """Two models: one of 10 classes and a fixed batch axis, one of 5 whose networks take batches."""
    root = tmp_path_factory.mktemp("tails")
    fixed = make_model(root / "fixed", [f"c{i}" for i in range(10)])
    free = with_free_batch_axis(make_model(root / "free", [f"c{i}" for i in range(5)]))
    one, two = (Tail(SPACE, EdgeRuntime(ModelFolder.open(path))) for path in (fixed, free))
    return one, two


def test_a_batch_gives_what_its_frames_give_alone(tails: tuple[Tail, Tail]) -> None:
    rng = np.random.default_rng(1)
    codec = get_codec("q8t-zstd")
    containers = [codec.encode(rng.normal(0, 1, (5, 16, 16)).astype(np.float32)) for _ in range(5)]
    frames = [FrameMessage(SESSION, i, i, 0, 1, 0, 10**5, each) for i, each in enumerate(containers)]
    for tail in tails:
        together, alone = tail.answers(frames), [tail.answer(frame) for frame in frames]
        assert [each.prediction for each in together] == [each.prediction for each in alone]
        assert [each.confidence for each in together] == pytest.approx([each.confidence for each in alone], abs=3e-4)
    assert len({each.prediction for each in tails[0].answers(frames)}) > 1


def test_what_does_not_fit_is_refused_alone(tails: tuple[Tail, Tail]) -> None:
    other = get_codec("q8t-zstd").encode(np.zeros((3, 8, 8), np.float32))
    image = get_codec("jpeg-75").encode(np.zeros((256, 256, 3), np.uint8))
    bad = [b"AS\x01 garbage garbage", other, image]
    for tail in tails:
        frames = [FrameMessage(SESSION, 0, 0, 0, 1, 0, 10**5, each) for each in (CONTAINER, *bad, CONTAINER)]
        kinds = [isinstance(each, TailAnswer) for each in tail.answers(frames)]
        assert kinds == [True, False, False, False, True]


def test_batches_are_made_only_where_the_networks_take_them(tails: tuple[Tail, Tail]) -> None:
    fixed, free = tails
    assert fixed.lane().queue.max_batch == 1
    assert free.lane().queue.max_batch in (1, 8), "whichever was faster here"
    assert free.lane(4).queue.max_batch == 4
    assert fixed.lane().queue.times.predict(0) > 0.0
    assert fixed.lane().queue.times.predict(1) > 0.0, "the offload branch"
    assert fixed.lane().queue.times.predict(2) == 0.0, "the local branch never comes here"


def test_a_model_is_its_networks_and_branches(tails: tuple[Tail, Tail]) -> None:
    one, two = tails
    assert one.model != two.model
    other = DecisionSpace((BranchSpec("stem", "split", ("q4c-zstd",)), *BRANCHES[1:]), (0.0, 0.9))
    assert model_id("ab", other) == model_id("ab", SPACE), "rates and thresholds are the device's own business"
    assert model_id("ab", DecisionSpace(BRANCHES[:1])) != model_id("ab", SPACE)
    assert model_id("ac", SPACE) != model_id("ab", SPACE)


# ---- over a real broker --------------------------------------------------------------------------------------------


@dataclass
class Slow:
    """A stand-in for a tail that takes a fixed time; its answers name it."""

    model: bytes
    name: int
    seconds: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)

    def answers(self, messages: Sequence[FrameMessage]) -> list[TailAnswer | AdaptsplitError]:
        time.sleep(self.seconds)
        self.seen["frames"] += len(messages)
        return [TailAnswer(bytes([self.name]) * 16, 0.5) for _ in messages]

    def lane(self, max_batch: int | None = None) -> Lane:
        return Lane(3, TailQueue(64, 1 << 20, max_batch or 1))


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


def fleet_of(
    count: int, frames: int, model: bytes = A, fps: float = 10.0, deadline_s: float = 0.3
) -> list[LightDevice]:
    devices = []
    for i in range(count):
        session = i.to_bytes(2, "big") * 8
        config = SessionConfig(session, SPACE, fps, deadline_s, frames=frames)
        shift = i / count / fps
        devices.append(LightDevice(f"light-{i}", config, Decision(0, 1, 3), CONTAINER, model=model, offset_s=shift))
    return devices


def paths(devices: Sequence[LightDevice]) -> Counter[int]:
    return Counter(int(record["path"][0]) for device in devices for record in device.records)


def sent(devices: Sequence[LightDevice]) -> int:
    """How many frames left the devices; on a host that stalls some are overtaken before they are taken up."""
    return sum(int(record["sent_bytes"][0]) > 0 for device in devices for record in device.records)


def every_frame_once(devices: Sequence[LightDevice], frames: int) -> bool:
    return all(sorted(int(r["frame"][0]) for r in d.records) == list(range(frames)) for d in devices)


def test_two_models_answer_side_by_side(broker: EmbeddedBroker, tails: tuple[Tail, Tail]) -> None:
    one, two = tails
    heard: dict[bytes, Result] = {}
    address = BrokerAddress.parse(broker.url)
    with EdgeServer(tails, address) as server:
        server.wait_connected(10.0)

        def listen(topic: str, payload: bytes) -> None:
            if isinstance(result := parse_message(payload), Result):
                heard[result.session] = result

        device = MqttTransport(address, "two", [DeviceTopics("default", "d").leaf("down")], listen)
        device.wait_connected(10.0)
        frames = {model: message(0, model=model, session=model * 2) for model in (one.model, two.model)}
        for frame in frames.values():
            device.publish(UP, frame.to_bytes())
        until = time.monotonic() + 5.0
        while len(heard) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        device.close()
    for tail in tails:
        result = heard[tail.model * 2]
        assert (result.status, result.prediction) == (Status.DONE, tail.answer(frames[tail.model]).prediction)
        assert result.load is not None


@needs_mosquitto
def test_a_group_of_workers_shares_the_devices(broker: EmbeddedBroker) -> None:
    """Two edge servers in one group: every frame is answered by exactly one of them, and both work."""
    address = BrokerAddress.parse(broker.url)
    pair = Slow(A, 1), Slow(A, 2)
    with (
        EdgeServer([pair[0]], address, edge="edge-1", workers="tails") as first,
        EdgeServer([pair[1]], address, edge="edge-2", workers="tails") as second,
    ):
        for server in (first, second):
            server.wait_connected(10.0)
        devices = fleet_of(10, 20, fps=20.0)
        asyncio.run(fly_all(devices, "127.0.0.1", broker.port, 0.3))
        assert every_frame_once(devices, 20)
        frames = sent(devices)
        assert frames > 100
        assert paths(devices)[3] + paths(devices)[4] == frames, (paths(devices), first.summary(), second.summary())
        seen = [slow.seen["frames"] for slow in pair]
        assert sum(seen) == frames, "no frame is worked on twice"
        assert min(seen) > frames / 5
        counts = Counter(first.summary()) + Counter(second.summary())
        assert counts["frames"] == frames
        assert counts["repeated"] == 0


@needs_mosquitto
def test_a_member_of_a_group_leaves_and_nothing_is_lost(broker: EmbeddedBroker) -> None:
    """One of two workers drains and closes in the middle of the run: every frame that was sent is answered."""
    address = BrokerAddress.parse(broker.url)
    drained: list[bool] = []
    with EdgeServer([Slow(A, 1, 0.002)], address, edge="edge-1", workers="tails") as stays:
        leaves = EdgeServer([Slow(A, 2, 0.002)], address, edge="edge-2", workers="tails")
        for server in (stays, leaves):
            server.wait_connected(10.0)

        def leave() -> None:
            drained.append(leaves.drain())
            leaves.close()

        timer = threading.Timer(1.0, leave)
        timer.start()
        devices = fleet_of(10, 40, fps=20.0)
        asyncio.run(fly_all(devices, "127.0.0.1", broker.port, 0.2))
        timer.join()
        assert drained == [True]
        assert every_frame_once(devices, 40)
        frames = sent(devices)
        assert frames > 200
        assert paths(devices)[3] + paths(devices)[4] == frames, (paths(devices), stays.summary(), leaves.summary())
        assert stays.summary()["frames"] + leaves.summary()["frames"] == frames
        assert leaves.summary()["frames"] > 30
        assert leaves.summary()["answered"] == leaves.summary()["frames"]


def test_a_broker_that_shares_nothing_is_named() -> None:
    with EmbeddedBroker(backend="amqtt") as broker:
        server = EdgeServer([Slow(A, 1)], BrokerAddress.parse(broker.url), workers="tails")
        try:
            with pytest.raises(RunError, match=r"\$share.*leave --workers-group out"):
                server.wait_connected(10.0)
        finally:
            server.close()


def test_an_edge_that_drains_finishes_its_queue_and_says_so(broker: EmbeddedBroker) -> None:
    """Six frames wait for a tail of 50 ms: all are answered, then OFFLINE is said, then the connection closes."""
    address, order = BrokerAddress.parse(broker.url), []

    def listen(topic: str, payload: bytes) -> None:
        if topic.endswith("/connection"):
            order.append(json.loads(payload)["data"]["state"])
        elif isinstance(parse_message(payload), Result):
            order.append("result")

    server = EdgeServer([Slow(A, 1, 0.05)], address, edge="edge-9")
    server.wait_connected(10.0)
    topics = [DeviceTopics("default", "d").leaf("down"), edge_connection("default", "edge-9")]
    device = MqttTransport(address, "d", topics, listen)
    device.wait_connected(10.0)
    for sequence in range(6):
        device.publish(UP, message(sequence, 2.0).to_bytes())
    time.sleep(0.05)
    assert server.drain()
    server.close()
    time.sleep(0.1)
    device.close()
    assert order[0] == "ONLINE"
    assert order[1:7] == ["result"] * 6
    assert set(order[7:]) == {"OFFLINE"}
    assert server.summary()["answered"] == 6


def test_an_edge_reports_its_queues(broker: EmbeddedBroker) -> None:
    """Three frames wait behind one of 0.4 s whose time is known from the one before: 1.2 s and what is left of it."""
    address, heard = BrokerAddress.parse(broker.url), []
    where = edge_connection("default", "edge-7").replace("connection", "state")
    with EdgeServer([Slow(A, 1, 0.4)], address, edge="edge-7") as server:
        server.wait_connected(10.0)
        watch = MqttTransport(address, "w", [where], lambda topic, payload: heard.append(parse_control(payload)[1]))
        watch.wait_connected(10.0)
        watch.publish(UP, message(0, 9.0).to_bytes())
        time.sleep(0.6)
        for sequence in range(1, 5):
            watch.publish(UP, message(sequence, 9.0).to_bytes())
        time.sleep(0.1)
        server.report()
        until = time.monotonic() + 3.0
        while not heard and time.monotonic() < until:
            time.sleep(0.01)
        watch.close()
    (state,) = heard
    assert isinstance(state, EdgeState)
    queue = state.queues[A.hex()]
    assert (queue.waiting, queue.max_batch) == (3, 1)
    assert 1.2 <= queue.wait_s <= 1.7
    assert state.counts["frames"] == 5
    assert not state.draining


def test_what_is_known_to_be_short_needs_no_other_thread(broker: EmbeddedBroker) -> None:
    """A tail that was measured at 1 us answers on the network's thread, one that was not on a worker's."""
    threads: list[str] = []

    class Named(Slow):
        def answers(self, messages: Sequence[FrameMessage]) -> list[TailAnswer | AdaptsplitError]:
            threads.append(threading.current_thread().name)
            return super().answers(messages)

    class Quick(Named):
        def lane(self, max_batch: int | None = None) -> Lane:
            times = BatchTimes()
            times.note(0, 1, 1e-6)
            return Lane(3, TailQueue(64, 1 << 20, times=times))

    with EdgeServer([Quick(A, 1), Named(B, 2)], BrokerAddress.parse(broker.url)) as server:
        server.wait_connected(10.0)
        device = MqttTransport(BrokerAddress.parse(broker.url), "q", [], lambda topic, payload: None)
        device.wait_connected(10.0)
        for sequence, model in enumerate((A, B)):
            device.publish(UP, message(sequence, model=model).to_bytes())
            until = time.monotonic() + 3.0
            while len(threads) <= sequence and time.monotonic() < until:
                time.sleep(0.01)
        device.close()
    assert threads[0].startswith("mqtt-edge-1")
    assert not threads[1].startswith("mqtt")


def test_an_edge_needs_a_model_and_a_sound_group_name(broker: EmbeddedBroker) -> None:
    address = BrokerAddress.parse(broker.url)
    with pytest.raises(ConfigError, match="name at least one --bundle"):
        EdgeServer([], address)
    with pytest.raises(ConfigError, match="workers group id 'a/b'"):
        shared("x", "a/b")
    assert topic_matches(shared("a/+/up", "tails"), "a/b/up")
    assert not topic_matches(shared("a/+/up", "tails"), "a/b/down")


def test_the_command_line_takes_several_bundles() -> None:
    command = [
        sys.executable,
        "-m",
        "adaptsplit.device_bridge.edge",
        "--bundle",
        "/nowhere-1",
        "--bundle",
        "/nowhere-2",
    ]
    done = subprocess.run(
        [*command, "--workers-group", "g", "--max-batch", "4"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "/nowhere-1" in done.stderr
    assert "Traceback" not in done.stderr


# ---- the 44 ms stall -----------------------------------------------------------------------------------------------


def nodelay_of(port: int) -> list[int]:
    """TCP_NODELAY of this process's sockets that are connected to ``port``."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            twin = socket.socket(fileno=int(fd.name))
        except OSError:
            continue
        try:
            if twin.family == socket.AF_INET and twin.type & socket.SOCK_STREAM and twin.getpeername()[1] == port:
                found.append(twin.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        except OSError:
            pass
        finally:
            twin.detach()
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_every_socket_of_edge_and_device_has_nodelay(broker: EmbeddedBroker) -> None:
    address = BrokerAddress.parse(broker.url)
    with EdgeServer([Slow(A, 1)], address) as server:
        server.wait_connected(10.0)
        device = MqttTransport(address, "n", [], lambda topic, payload: None)
        device.wait_connected(10.0)
        assert nodelay_of(broker.port) == [1, 1, 1]
        device.close()


@needs_mosquitto
def test_frames_make_no_44_ms_stall(broker: EmbeddedBroker) -> None:
    """Acknowledgement and result are two small messages in a row: with Nagle's algorithm the second waits 40 ms."""
    times, answered = [], threading.Event()

    def listen(topic: str, payload: bytes) -> None:
        if isinstance(parse_message(payload), Result):
            answered.set()

    address = BrokerAddress.parse(broker.url)
    with EdgeServer([Slow(A, 1)], address) as server:
        server.wait_connected(10.0)
        device = MqttTransport(address, "s", [DeviceTopics("default", "d").leaf("down")], listen, qos=1)
        device.wait_connected(10.0)
        for sequence in range(100):
            answered.clear()
            begun = time.perf_counter()
            device.publish(UP, message(sequence).to_bytes(), qos=sequence % 2)
            assert answered.wait(2.0)
            times.append(time.perf_counter() - begun)
        device.close()
    assert np.median(times) < 0.010
    assert np.quantile(times, 0.9) < 0.030, times


def test_packets_are_framed_as_mqtt_writes_them() -> None:
    """Remaining lengths of one, two and three bytes (MQTT 3.1.1, section 2.2.3)."""
    for size, length in ((127, b"\x7f"), (128, b"\x80\x01"), (16_384, b"\x80\x80\x01")):
        assert packet(0x30, bytes(size))[1 : 1 + len(length)] == length
