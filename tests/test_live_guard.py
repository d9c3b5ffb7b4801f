"""The guard on a device, with learned policies that go wrong: no illegal decision, in time, recovered within a period.

``test_guard.py`` has the guard's parts; here it decides where it does on a device, and a whole device flies with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import SPACE

from adaptsplit import observation as obs
from adaptsplit.agents.base import ControllerContext
from adaptsplit.bundle import Bundle, export_bundle
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.decider import Decider
from adaptsplit.device_bridge.device import run_device
from adaptsplit.device_bridge.device_options import DeviceOptions
from adaptsplit.guard import BUDGET_SHARE, guard_learned
from adaptsplit.guard_monitors import safe_decision
from adaptsplit.outcome import Path as Route
from adaptsplit.scenario import load_scenario

CONTEXT = ControllerContext(fps=10.0, deadline_s=0.25)
PERIOD_S = 1.0 / CONTEXT.fps
COUNT = 2000
Answer = Callable[[np.random.Generator], Any]


def nan(rng: np.random.Generator) -> Any:
    return np.full((1, 3), np.nan)


def raises(rng: np.random.Generator) -> Any:
    raise ZeroDivisionError


def sleeps(rng: np.random.Generator) -> Any:
    time.sleep(1.0)
    return np.zeros((1, 3), np.int64)


def draws(rng: np.random.Generator) -> Any:
    """Anything: of any kind, shape and size, legal one time in several."""
    kind = rng.choice(["int64", "uint8", "float32", "float64", "bool", "int8", "complex64", "object", "U3"])
    shape = [(1, 3), (1, 3), (1, 3), (3,), (2, 3), (1, 4), (), (0, 3), (1, 3, 1)][rng.integers(9)]
    high = [5, 5, 300, 2**40][rng.integers(4)]
    return rng.integers(-2 if high > 5 else 0, high, shape).astype(kind)


WRONG = {"nan": nan, "raises": raises, "sleeps": sleeps, "draws": draws}


class Wrong:
    """A learned policy that goes wrong at every decision from ``first`` on."""

    learns = False
    kind = "learned"

    def __init__(self, name: str, answer: Answer, first: int = 0) -> None:
        self.name, self._answer, self._first, self._asked = name, answer, first, 0

    def init(self, n: int, rng: np.random.Generator) -> Any:
        return np.random.default_rng(1)

    def act(self, observation: Any, state: Any) -> tuple[Any, Any]:
        self._asked += 1
        return (self._answer(state) if self._asked > self._first else np.array([[1, 0, 0]])), state

    def learn(self, outcomes: Any, state: Any) -> Any:
        return state


def observations(count: int) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = np.full(obs.SIZE, 0.5, np.float32)
        x[obs.index("sharpness")] = rng.random()
        yield x


@pytest.mark.parametrize("case", WRONG)
def test_no_illegal_decision_the_deadline_is_met_and_recovery_takes_less_than_a_period(case: str) -> None:
    """NaN, an exception, a second's sleep, and random answers: 2000 decisions of each as fast as they come."""
    policy = Wrong(case, WRONG[case], first=20)
    decider = Decider(guard_learned(policy, SPACE, CONTEXT), SPACE, 0)
    legal, safe = {tuple(row) for row in SPACE.table.tolist()}, safe_decision(SPACE)
    threads = threading.active_count()
    took, switched = [], []
    for number, x in enumerate(observations(COUNT)):
        began = time.perf_counter()
        decision, _ = decider.decide(x)
        took.append(time.perf_counter() - began)
        assert (decision.branch, decision.rate, decision.threshold) in legal
        switches = decider.take_switches()
        if any(switch.to == "recovery" for switch in switches):
            switched.append(took[-1])
            assert decision == safe, "the decision of the frame in which it went wrong is the recovery's already"
        assert number >= 20 or not switches
        assert threading.active_count() <= threads + 1
    assert switched
    assert float(np.median(switched)) <= PERIOD_S
    assert float(np.quantile(took, 0.999)) <= CONTEXT.deadline_s
    assert float(np.median(took)) < BUDGET_SHARE * PERIOD_S
    assert decider.counts["recoveries"] == 0, "the guard decided, and not the last resort behind it"


@pytest.mark.parametrize("period", [1, 7])
def test_inputs_that_flap_do_not_make_the_decisions_flap(period: int) -> None:
    """A battery that is below its floor every second (third, ...) frame: after each fault the recovery stays for its
    dwell time, which doubles, so switches become rarer and rarer."""
    policy = Wrong("good", lambda rng: np.array([[1, 0, 0]]))
    decider = Decider(guard_learned(policy, SPACE, CONTEXT), SPACE, 0)
    switches = []
    for number, x in enumerate(observations(COUNT)):
        x[obs.index("battery_known")], x[obs.index("battery")] = 1.0, 0.02 if number % (2 * period) >= period else 0.9
        decider.decide(x)
        switches += [(number, switch.to) for switch in decider.take_switches()]
    assert [to for _, to in switches] == [("recovery", "learned")[k % 2] for k in range(len(switches))]
    faults = [number for number, to in switches if to == "recovery"]
    assert len(faults) <= 10, "2000 frames are 200 s: dwell times of 1, 2, 4, ... 60 s"
    gaps = np.diff(faults)
    assert (gaps >= 10).all()


def test_after_many_hangs_no_thread_is_left() -> None:
    """Each hang is ended or waited for; there never was more than one, and in the end there is none."""
    before = threading.active_count()

    def loops(rng: np.random.Generator) -> Any:
        while True:
            pass

    for _ in range(5):
        decider = Decider(guard_learned(Wrong("loops", loops), SPACE, CONTEXT), SPACE, 0)
        for x in observations(12):
            decider.decide(x)
        decider._controller.close()  # type: ignore[attr-defined]
    end = time.monotonic() + 10.0
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.02)
    assert threading.active_count() <= before


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle("deadline", load_scenario("flight-lte"), tmp_path_factory.mktemp("guard") / "bundle")


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.mark.parametrize("case", ["sleeps", "draws"])
def test_a_whole_device_answers_every_frame_whatever_its_policy_does(
    case: str, bundle: Bundle, broker: EmbeddedBroker, tmp_path: Path
) -> None:
    """Fifteen frames with nobody at the other end: each has one outcome, and the exit's answer but for a few, which a
    busy machine may overtake."""
    wrong: Any = Wrong(case, WRONG[case])
    options = DeviceOptions(broker.url, device=case, pace="native", edge_wait_s=0.1, drain_s=1.0, state_s=0.0)
    summary, log = run_device(replace(bundle, controller=wrong), "flight", ["bundle"], options, count=15)
    (records,) = log.outcomes().values()
    assert records["frame"].tolist() == list(range(15))
    own = np.isin(records["path"], [Route.EXIT, Route.LOCAL, Route.FALLBACK_PASSED, Route.FALLBACK_LATE])
    assert own.sum() + (records["path"] == Route.MISS).sum() == 15
    assert own.sum() >= 10
    assert summary["controller"].get("recoveries", 0) == 0
    assert sum(count for name, count in summary["controller"].items() if name.startswith("guard_")) >= 1
    table = {tuple(row) for row in bundle.space.table.tolist()}
    for row in records[records["branch"] >= 0]:
        assert any((row["branch"], row["rate"]) == entry[:2] for entry in table)
