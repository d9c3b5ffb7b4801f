"""The decision service: what travels, batches, silence, and a device that takes advice while it is fresh."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cases import CODECS, SPACE
from numpy.typing import NDArray
from test_live import bundle as tiny_bundle  # a fixture: the tiny model with its bundle

from adaptsplit import observation as obs
from adaptsplit.agents.base import ControllerContext
from adaptsplit.agents.policy import PolicyController, PolicyNet
from adaptsplit.agents.static import InterleavedController, StaticController
from adaptsplit.bundle import Bundle
from adaptsplit.controller import Decisions, Observations, State, Stateless
from adaptsplit.decision import BranchSpec, Decision, DecisionSpace
from adaptsplit.device_bridge.advice import AdvicePart, AdvisedController, Desk, advised_in
from adaptsplit.device_bridge.advice_messages import (
    MAX_BYTES,
    SCHEMA,
    Advice,
    ObservationMessage,
    parse_advice,
    parse_observation,
    space_id,
)
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.decision_service import DecisionServer
from adaptsplit.device_bridge.decision_session import DecisionSession
from adaptsplit.device_bridge.device import DeviceOptions, run_device
from adaptsplit.device_bridge.edge import EdgeServer
from adaptsplit.device_bridge.edge_tail import open_tails
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.parts import QuietPart
from adaptsplit.device_bridge.topics import DeviceTopics, every_device
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import ConfigError, MessageError
from adaptsplit.guard import GuardedController, guard_learned

bundle = tiny_bundle
SESSION = bytes(range(16))
DECISIONS = space_id(SPACE)
ROW = np.linspace(0, 1, obs.SIZE, dtype=np.float32)
LOCAL, STEM = Decision(3, 0, 0), Decision(0, 1, 1)


def asked(sequence: int = 1, values: NDArray[np.float32] = ROW, **change: Any) -> bytes:
    return replace(ObservationMessage(SESSION, sequence, SCHEMA, DECISIONS, values), **change).to_bytes()


def topic(device: str, leaf: str = "observe") -> str:
    return DeviceTopics("default", device).leaf(leaf)


class Sharpness(Stateless):
    """Decides by one field: local above a half, else the stem; notes the sizes of its batches."""

    name = "sharpness"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        self.sizes.append(len(observation))
        local = obs.physical(observation, "sharpness") > 0.5
        return np.where(local[:, None], [[3, 0, 0]], [[0, 1, 1]]), state


class Counting:
    """Has a state: how often it was asked in this session; the rate that it chooses says so."""

    name, learns = "counting", False

    def init(self, n: int, rng: np.random.Generator) -> State:
        return 0

    def act(self, observation: Observations, state: State) -> tuple[Decisions, State]:
        return np.array([[0, min(state, 2), 1]] * len(observation)), state + 1

    def learn(self, outcomes: Any, state: State) -> State:
        return state


# ---- what travels --------------------------------------------------------------------------------------------------


def test_golden_bytes() -> None:
    """Written out by hand from the layout in ``advice_messages``; only the checksum is computed."""
    import zlib

    values = np.array([0.0, 0.5, 1.0], dtype=np.float32)
    head = "41560101" + SESSION.hex() + "00000007" + "a" * 16 + "b" * 16 + "0003" + "000000003f0000003f800000"
    wire = bytes.fromhex(head)
    message = ObservationMessage(SESSION, 7, bytes.fromhex("a" * 16), bytes.fromhex("b" * 16), values)
    assert message.to_bytes() == wire + zlib.crc32(wire).to_bytes(4, "big")
    wire = bytes.fromhex("41560102" + SESSION.hex() + "00000007" + "03020100" + "000007d0")
    advice = Advice(SESSION, 7, 3, 2, 1, 0.002)
    assert advice.to_bytes() == wire + zlib.crc32(wire).to_bytes(4, "big")
    assert parse_advice(advice.to_bytes()) == advice
    found = parse_observation(message.to_bytes())
    assert (found.session, found.sequence, found.values.tolist()) == (SESSION, 7, [0.0, 0.5, 1.0])


def test_an_observation_is_within_200_bytes() -> None:
    assert len(asked()) == MAX_BYTES == 186


def test_ten_thousand_mutations_give_an_error_or_a_message() -> None:
    rng = np.random.default_rng(7)
    wires = [(asked(), parse_observation), (Advice(SESSION, 7, 3, 2, 1, 0.002).to_bytes(), parse_advice)]
    refused = 0
    for k in range(10_000):
        wire, parse = wires[k % 2]
        data = bytearray(wire)
        at = int(rng.integers(len(data)))
        if k % 3 == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif k % 3 == 1:
            del data[at:]
        else:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        try:
            assert parse(bytes(data)).to_bytes() == bytes(data)
        except MessageError:
            refused += 1
    assert refused == 10_000


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (asked(values=np.array([np.nan], np.float32)), "not finite"),
        (asked(values=np.array([np.inf], np.float32)), "not finite"),
        (Advice(SESSION, 1, 0, 0, 0, 0.0).to_bytes(), "expected b'AV"),
        (b"", "0 bytes"),
        (bytes(5000), "5000 bytes"),
    ],
)
def test_bad_observations_are_refused(wire: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        parse_observation(wire)


def test_what_does_not_fit_is_not_sent() -> None:
    for bad in (Advice(SESSION, 1, 256, 0, 0, 0.0), Advice(b"x", 1, 0, 0, 0, 0.0), Advice(SESSION, -1, 0, 0, 0, 0.0)):
        with pytest.raises(MessageError):
            bad.to_bytes()


def test_a_space_is_named_by_everything_that_its_indices_mean() -> None:
    others = [
        DecisionSpace(SPACE.branches, (0.0, 0.5)),
        DecisionSpace((BranchSpec("stem", "split", CODECS[:1]), *SPACE.branches[1:])),
        DecisionSpace(SPACE.branches[:-1]),
    ]
    assert len({space_id(space) for space in (SPACE, *others)}) == 4


# ---- the service's session -----------------------------------------------------------------------------------------


def test_many_devices_are_decided_for_in_one_batch() -> None:
    controller = Sharpness()
    service = DecisionSession("default", controller, SPACE, window_s=0.002)
    assert service.due() == math.inf
    for i in range(40):
        row = ROW.copy()
        row[obs.index("sharpness")] = i % 2
        service.received(topic(f"d{i}"), asked(100 + i, row), 1.0 + i * 1e-5)
    assert service.due() == pytest.approx(1.002)
    replies = service.decide(1.003)
    assert controller.sizes == [40]
    assert [reply.topic for reply in replies] == [topic(f"d{i}", "advice") for i in range(40)]
    for i, reply in enumerate(replies):
        advice = parse_advice(reply.payload)
        assert (advice.session, advice.sequence) == (SESSION, 100 + i)
        assert (advice.branch, advice.rate, advice.threshold) == ((3, 0, 0) if i % 2 else (0, 1, 1))
        assert advice.residence_s == pytest.approx(0.003 - i * 1e-5, abs=2e-6)
    assert service.due() == math.inf
    assert service.decide(2.0) == []


def test_the_newest_observation_of_a_device_counts() -> None:
    service = DecisionSession("default", Sharpness(), SPACE)
    for sequence in (1, 2, 3):
        service.received(topic("d"), asked(sequence), 1.0 + sequence * 1e-4)
    (reply,) = service.decide(1.01)
    assert parse_advice(reply.payload).sequence == 3
    assert service.counts["superseded"] == 2
    assert service.due() == math.inf


def test_a_controller_with_a_state_keeps_one_for_each_session_of_each_device() -> None:
    service = DecisionSession("default", Counting(), SPACE)
    rates: dict[str, list[int]] = {"a": [], "b": []}
    for step, (device, session) in enumerate((("a", SESSION), ("a", SESSION), ("b", SESSION), ("a", bytes(16)))):
        service.received(topic(device), asked(step, session=session), float(step))
        rates[device] += [parse_advice(reply.payload).rate for reply in service.decide(step + 0.1)]
    assert rates == {"a": [0, 1, 0], "b": [0]}


def test_another_space_is_another_services_business() -> None:
    service = DecisionSession("default", Sharpness(), SPACE)
    service.received(topic("d"), asked(decisions=bytes(8)), 1.0)
    service.received(topic("d"), asked(schema=bytes(8)), 1.0)
    service.received(topic("d"), asked(values=ROW[:-1]), 1.0)
    assert dict(service.counts) == {"other_space": 3}


def test_garbage_is_counted_and_the_others_are_answered() -> None:
    service = DecisionSession("default", Sharpness(), SPACE)
    for where, payload in ((topic("d"), b"garbage"), ("nonsense", asked()), (topic("d", "up"), asked())):
        service.received(where, payload, 1.0)
    service.received(topic("e"), asked(), 1.0)
    assert len(service.decide(1.1)) == 1
    assert service.counts["malformed"] == 3


@pytest.mark.parametrize("answer", [[[9, 0, 0]], [[0, 0, -1]], [[0, 0]], "nonsense", None])
def test_a_controller_that_fails_is_silence(answer: Any) -> None:
    controller = Sharpness()
    controller.act = lambda observation, state: (answer, state)  # type: ignore[method-assign]
    service = DecisionSession("default", controller, SPACE)
    service.received(topic("d"), asked(), 1.0)
    assert service.decide(1.1) == []
    assert service.counts["failed"] == 1


def test_learners_are_refused() -> None:
    learner = Counting()
    learner.learns = True
    with pytest.raises(ConfigError, match="hears of no outcomes"):
        DecisionSession("default", learner, SPACE)


# ---- the device's side ---------------------------------------------------------------------------------------------


def advised(clock: list[float], max_age_s: float = 0.5) -> tuple[AdvisedController, list[bytes]]:
    """A device with the rule "local", asking into a list, on a clock that the test moves."""
    sent: list[bytes] = []
    rule = StaticController(SPACE, LOCAL)
    controller = AdvisedController("service", rule, Desk(SPACE, max_age_s), clock=lambda: clock[0])
    controller.publish = sent.append
    return controller, sent


def answer(wire: bytes, decision: Decision = STEM) -> bytes:
    message = parse_observation(wire)
    chosen = (decision.branch, decision.rate, decision.threshold)
    return Advice(message.session, message.sequence, *chosen, 0.001).to_bytes()


def choose(controller: AdvisedController) -> list[int]:
    return [int(i) for i in controller.act(ROW[None], None)[0][0]]


def test_advice_is_taken_while_fresh_and_silence_is_the_rules_business() -> None:
    clock = [10.0]
    controller, sent = advised(clock)
    assert choose(controller) == [3, 0, 0], "nobody has answered yet"
    controller.desk.heard(answer(sent[0]))
    clock[0] = 10.1
    assert choose(controller) == [0, 1, 1]
    clock[0] = 10.5
    assert choose(controller) == [0, 1, 1], "the advice of 10.0 is 0.5 s old"
    clock[0] = 10.51
    assert choose(controller) == [3, 0, 0]
    assert len(sent) == 4, "every frame asks"
    assert controller.desk.counts == {"asked": 4, "heard": 1, "own": 2, "advised": 2}


def test_age_counts_from_the_observation_not_from_the_answer() -> None:
    clock = [10.0]
    controller, sent = advised(clock)
    choose(controller)
    clock[0] = 10.6
    controller.desk.heard(answer(sent[0]))
    assert choose(controller) == [3, 0, 0]


def test_old_repeated_foreign_and_illegal_advice_changes_nothing() -> None:
    clock = [10.0]
    controller, sent = advised(clock)
    for clock[0] in (10.0, 10.1):
        choose(controller)
    controller.desk.heard(answer(sent[1], Decision(1, 0, 1)))
    controller.desk.heard(answer(sent[0], STEM))  # overtaken on the way
    controller.desk.heard(answer(sent[1], STEM))  # repeated
    controller.desk.heard(Advice(bytes(16), 2, 0, 0, 0, 0.0).to_bytes())
    controller.desk.heard(Advice(parse_observation(sent[0]).session, 2, 9, 0, 0, 0.0).to_bytes())
    controller.desk.heard(b"garbage")
    assert choose(controller) == [1, 0, 1]
    assert controller.desk.counts["unasked"] == 1
    assert controller.desk.counts["malformed"] == 3


def test_unanswered_questions_are_bounded() -> None:
    desk = Desk(SPACE)
    for i in range(1000):
        desk.ask(ROW, float(i))
    assert len(desk._asked) == 64


def test_in_the_simulator_it_is_its_rule() -> None:
    controller = AdvisedController("service", StaticController(SPACE, LOCAL), Desk(SPACE))
    rows, _ = controller.act(np.repeat(ROW[None], 5, axis=0), controller.init(5, np.random.default_rng(0)))
    assert rows.tolist() == [[3, 0, 0]] * 5


def test_a_rule_that_learns_is_refused() -> None:
    learner = Counting()
    learner.learns = True
    with pytest.raises(ConfigError, match="rule for silence must be fixed"):
        AdvisedController("service", learner, Desk(SPACE))


def test_advised_controllers_are_found_wherever_they_are() -> None:
    clock = [0.0]
    one, two = advised(clock)[0], advised(clock)[0]
    plain = StaticController(SPACE, LOCAL)
    guarded = guard_learned(two, SPACE, ControllerContext(fps=10, deadline_s=0.25))
    assert isinstance(guarded, GuardedController), "what comes over a network is guarded as what is learned"
    assert list(advised_in(InterleavedController([plain, one, guarded]))) == [one, two]
    assert list(advised_in(plain)) == []


# ---- live ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy() -> PolicyController:
    """A policy of random weights, as a device or a service would run it."""
    rng = np.random.default_rng(0)
    sizes = (obs.SIZE, 32, len(SPACE.table))
    layers = tuple((rng.normal(0, 1, (a, b)).astype(np.float32), np.zeros(b, np.float32)) for a, b in pairwise(sizes))
    return PolicyController("random weights", SPACE, PolicyNet(layers, "tanh", "flat"))


def test_fifty_devices_are_advised_over_a_broker(policy: PolicyController) -> None:
    """The advice for each observation is what the policy says on the device; batches form; all are answered."""
    rng = np.random.default_rng(3)
    rows = rng.random((50, obs.SIZE), dtype=np.float32)
    heard: dict[str, list[int]] = {}

    def listen(where: str, payload: bytes) -> None:
        advice = parse_advice(payload)
        heard[where.split("/")[3]] = [advice.branch, advice.rate, advice.threshold]

    with EmbeddedBroker() as broker:
        address = BrokerAddress.parse(broker.url)
        with DecisionServer(policy, SPACE, address, window_s=0.02) as server:
            server.wait_connected(10.0)
            fleet = MqttTransport(address, "fleet", [every_device("default", "advice")], listen)
            fleet.wait_connected(10.0)
            for i, row in enumerate(rows):
                fleet.publish(topic(f"d{i}"), asked(i, row))
            until = time.monotonic() + 5.0
            while len(heard) < 50 and time.monotonic() < until:
                time.sleep(0.01)
            fleet.close()
    alone = {f"d{i}": policy.act(row[None], None)[0][0].tolist() for i, row in enumerate(rows)}
    assert heard == alone
    counts = server.summary()
    assert counts["advised"] == 50
    assert counts["largest"] > 5
    assert len({tuple(row) for row in alone.values()}) > 3, "the policy does tell observations apart"


class Agent:
    """What ``AdvicePart`` needs of a device agent."""

    def __init__(self, controller: Any, transport: MqttTransport) -> None:
        self.decider = self
        self.parts = (controller,)
        self.counts: Counter[str] = Counter()
        self.link = self
        self._transport = transport

    def publish(self, leaf: str, payload: bytes, *, qos: int) -> bool:
        return self._transport.publish(topic("d", leaf), payload, qos=qos)


def test_a_device_is_advised_and_falls_back_when_the_service_dies() -> None:
    """10 ms per frame: advice within a few frames; the service ends; 0.1 s later the rule decides every frame."""
    with EmbeddedBroker() as broker:
        address = BrokerAddress.parse(broker.url)
        controller = AdvisedController("service", StaticController(SPACE, LOCAL), Desk(SPACE, max_age_s=0.1))
        part = AdvicePart()
        link = MqttTransport(address, "d", [topic("d", "advice")], lambda t, p: part.message("advice", p, 0.0))
        link.wait_connected(10.0)
        agent: Any = Agent(controller, link)
        part.started(agent)
        with DecisionServer(StaticController(SPACE, STEM), SPACE, address) as server:
            server.wait_connected(10.0)
            while_alive = fly(controller, 60)
        after = fly(controller, 40)
        part.tick(0.0)
        link.close()
    assert while_alive[10:] == [[0, 1, 1]] * 50
    assert after[-25:] == [[3, 0, 0]] * 25
    assert agent.counts["advice_asked"] == 100
    assert agent.counts["advice_advised"] + agent.counts["advice_own"] == 100


def fly(controller: AdvisedController, frames: int) -> list[list[int]]:
    found = []
    for _ in range(frames):
        found.append(choose(controller))
        time.sleep(0.01)
    return found


class Ending(QuietPart):
    """Ends a service 2.5 s after frame 0."""

    name = "ending"

    def __init__(self, service: DecisionServer) -> None:
        self._end: threading.Thread | None = threading.Thread(target=service.close)

    def tick(self, now: float) -> None:
        if now >= 2.5 and self._end is not None:
            self._end.start()
            self._end = None


def test_a_real_device_is_advised_and_survives_the_services_end(bundle: Bundle) -> None:
    """Service: send the stem's features. Device's own rule: the local model. The service ends in the middle."""
    with EmbeddedBroker() as broker:
        address = BrokerAddress.parse(broker.url)
        with EdgeServer(open_tails([bundle.path]), address) as edge:
            edge.wait_connected(10.0)
            service = DecisionServer(bundle.controller, bundle.space, address)
            service.wait_connected(10.0)
            options = DeviceOptions(broker.url, pace="native", drain_s=1.0)
            device = ("flight", ["service:static:local/0/0"], options)
            summary, log = run_device(bundle, *device, count=100, parts=[Ending(service)])
    rows = log.outcomes()["service:static:local/0/0"]
    assert rows["frame"].tolist() == list(range(100))
    decided = rows[np.isfinite(rows["decided_s"])]
    stem = decided["branch"] == 0
    assert stem.sum() > 10
    assert not stem[-20:].any(), "the last second is the rule's"
    assert np.isin(decided["branch"], (0, 2)).all()
    assert summary["device"]["advice_advised"] >= stem.sum() - 1
    assert summary["device"]["advice_asked"] == len(decided)
    assert summary["controller"].get("recoveries", 0) == 0
    assert service.summary()["advised"] > 10


def test_the_command_line_says_what_is_wrong(bundle: Bundle) -> None:
    module = "adaptsplit.device_bridge.decision_service"
    command = [sys.executable, "-m", module, "--bundle", str(bundle.path), "--controller"]
    for name, says in (("nobody", "unknown controller 'nobody'"), ("bandit", "bandit")):
        done = subprocess.run([*command, name], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done
        assert says in done.stderr
        assert "Traceback" not in done.stderr
