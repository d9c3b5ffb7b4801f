"""The guard: whatever a learned policy does, the decision is legal and in time, and every switch is an event."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.extra import numpy as arrays

from adaptsplit import observation as obs
from adaptsplit import outcome
from adaptsplit.agents import InterleavedController, PolicyController, PolicyNet, RandomController, StaticController
from adaptsplit.agents.base import ControllerContext
from adaptsplit.agents.build import context_of
from adaptsplit.controller import Stateless
from adaptsplit.decision import BranchSpec, Decision, DecisionSpace
from adaptsplit.device_bridge.decider import Decider
from adaptsplit.errors import ConfigError
from adaptsplit.guard import GuardedController, GuardLimits, GuardState, Reason, events_of, guard_learned
from adaptsplit.guard_monitors import safe_decision
from adaptsplit.guard_range import EVERYWHERE, RangeRecorder, TrainedRange, measure_range, range_of, union
from adaptsplit.guard_time import CallError, Overrun, TimeBox
from adaptsplit.scenario import Scenario, load_scenario
from adaptsplit.testing import check_controller

SPACE = DecisionSpace(
    (
        BranchSpec("stem", "split", ("a", "b")),
        BranchSpec("mid", "split", ("a",)),
        BranchSpec("raw", "offload", ("a", "b"), exit="stem"),
        BranchSpec("full", "local"),
        BranchSpec("skip", "skip"),
    )
)
CONTEXT = ControllerContext(fps=10, deadline_s=0.25)
CHOICE = (1, 0, 3)  # what a well-behaved policy decides here
SAFE = (0, 0, 0)  # stem, always exit
LEGAL = {tuple(row) for row in SPACE.table.tolist()}
INLINE = GuardLimits(inline=True)


class Scripted(Stateless):
    """A learned policy whose answers are a function of nothing but the number of the call."""

    kind = "learned"
    name = "scripted"

    def __init__(self, answer: Callable[[int], Any] = lambda call: np.array([CHOICE])) -> None:
        self.answer, self.calls = answer, 0

    def act(self, observation: Any, state: Any) -> Any:
        self.calls += 1
        return self.answer(self.calls - 1), state


def raises(error: BaseException) -> Callable[[int], Any]:
    def answer(call: int) -> Any:
        raise error

    return answer


def frame(k: int, n: int = 1, **fields: float) -> Any:
    """Observations (n, D) that differ from frame to frame, all in the middle of their bounds but ``fields``."""
    x = np.full((n, obs.SIZE), 0.5, dtype=np.float32)
    x[:, obs.index("sharpness")] = 0.3 + 0.4 * ((k * 7) % 100) / 100
    for name, value in fields.items():
        x[:, obs.index(name)] = value
    return x


def guarded(policy: Any, limits: GuardLimits = INLINE, **options: Any) -> GuardedController:
    return GuardedController(policy, SPACE, CONTEXT, limits=limits, **options)


def play(guard: GuardedController, frames: list[Any]) -> tuple[list[tuple[int, ...]], list[Any], GuardState]:
    """Return the decisions of row 0, all events, and the last state."""
    state = guard.init(len(frames[0]), np.random.default_rng(0))
    decisions, events = [], []
    for x in frames:
        chosen, state = guard.act(x, state)
        assert {tuple(row) for row in chosen.tolist()} <= LEGAL
        decisions.append(tuple(chosen[0].tolist()))
        events += state.events
    return decisions, events, state


# ---- whatever the policy does ----

WRONG: dict[str, tuple[Callable[[int], Any], Reason]] = {
    "nan": (lambda call: np.full((1, 3), np.nan), Reason.ILLEGAL),
    "whole floats": (lambda call: np.array([[1.0, 0.0, 3.0]]), Reason.ILLEGAL),
    "bool": (lambda call: np.ones((1, 3), dtype=bool), Reason.ILLEGAL),
    "none": (lambda call: None, Reason.ILLEGAL),
    "text": (lambda call: "stem/0/0.8", Reason.ILLEGAL),
    "ragged": (lambda call: [[1, 2], [3]], Reason.FAILED),
    "one row too many": (lambda call: np.array([CHOICE, CHOICE]), Reason.ILLEGAL),
    "flat": (lambda call: np.array(CHOICE), Reason.ILLEGAL),
    "four columns": (lambda call: np.array([[*CHOICE, 0]]), Reason.ILLEGAL),
    "empty": (lambda call: np.zeros((0, 3), dtype=np.int64), Reason.ILLEGAL),
    "negative": (lambda call: np.array([[1, 0, -1]]), Reason.ILLEGAL),
    "beyond": (lambda call: np.array([[5, 0, 0]]), Reason.ILLEGAL),
    "beyond any integer": (lambda call: np.array([[2**64 - 1, 0, 0]], dtype=np.uint64), Reason.ILLEGAL),
    "objects": (lambda call: np.array([[object()] * 3]), Reason.ILLEGAL),
    "raises": (raises(ZeroDivisionError("by zero")), Reason.FAILED),
    "exits": (raises(SystemExit(3)), Reason.FAILED),
    "interrupts": (raises(KeyboardInterrupt()), Reason.FAILED),
    "no memory": (raises(MemoryError()), Reason.FAILED),
}


@pytest.mark.parametrize("case", WRONG)
def test_no_answer_of_a_policy_reaches_the_device_unless_it_is_legal(case: str) -> None:
    answer, reason = WRONG[case]
    guard = guarded(Scripted(answer), GuardLimits())
    decisions, events, _ = play(guard, [frame(k) for k in range(30)])
    assert set(decisions) == {SAFE}
    assert [(event.decided, event.to, event.reason) for event in events] == [(0, "recovery", reason)]
    assert "\n" not in events[0].detail


ANSWERS = some.one_of(
    arrays.arrays(
        some.sampled_from([np.int64, np.int8, np.uint64, np.float32, np.float64, np.bool_, np.complex64]),
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    arrays.arrays(np.int64, (2, 3), elements=some.integers(-1, 8)),
    some.lists(some.lists(some.integers(), max_size=4), max_size=3),
    some.text(max_size=5),
    some.binary(max_size=5),
    some.none(),
)


@settings(max_examples=300, deadline=None)
@given(answers=some.lists(ANSWERS, min_size=1, max_size=6), n=some.sampled_from([1, 2]))
def test_any_answers_give_legal_decisions(answers: list[Any], n: int) -> None:
    guard = guarded(Scripted(lambda call: answers[call % len(answers)]), GuardLimits(inline=True, dwell_s=0.1))
    play(guard, [frame(k, n) for k in range(12)])


@settings(max_examples=300, deadline=None)
@given(
    x=arrays.arrays(np.float32, (2, obs.SIZE), elements=some.floats(width=32)),
    wrong=some.sampled_from([None, "text", np.zeros(3), np.zeros((2, 3)), np.zeros((2, obs.SIZE), dtype=int)]),
)
def test_any_observations_give_legal_decisions(x: Any, wrong: Any) -> None:
    _, _, state = play(guarded(RandomController(SPACE)), [x, frame(0, 2), x, x])
    guard = guarded(RandomController(SPACE))
    chosen, after = guard.act(wrong, state)
    assert [tuple(row) for row in chosen.tolist()] == [SAFE, SAFE]
    assert {REASON_AT[code] for code in after.reason} == {Reason.INPUT}


REASON_AT = tuple(Reason)


def test_a_policy_gets_a_copy_and_cannot_change_what_the_device_keeps() -> None:
    class Scribbler(Scripted):
        def act(self, observation: Any, state: Any) -> Any:
            observation[:] = np.nan
            return super().act(observation, state)

    x = frame(0)
    before = x.copy()
    decisions, events, _ = play(guarded(Scribbler(), GuardLimits()), [x])
    assert np.array_equal(x, before)
    assert (decisions, events) == ([CHOICE], [])


# ---- in time ----


def threads() -> int:
    return sum(thread.name == "adaptsplit-guard" for thread in threading.enumerate())


def settled(count: int, within_s: float = 3.0) -> bool:
    """Whether the number of guard threads comes down to ``count``."""
    until = time.monotonic() + within_s
    while threads() > count and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    return threads() <= count


def test_a_policy_that_sleeps_costs_one_budget_and_one_thread() -> None:
    assert settled(0)
    guard = guarded(Scripted(lambda call: time.sleep(1.0)), GuardLimits(budget_s=0.02, dwell_s=0.1, max_dwell_s=0.1))
    state = guard.init(1, np.random.default_rng(0))
    took = []
    for k in range(40):  # with a dwell of one decision, the sleeping policy is asked for each of them
        begun = time.perf_counter()
        chosen, state = guard.act(frame(k), state)
        took.append(time.perf_counter() - begun)
        assert tuple(chosen[0]) == SAFE
        assert threads() <= 1
    assert REASON_AT[state.reason[0]] is Reason.LATE
    assert max(took) < 0.02 + 0.1  # the budget, and what a busy machine adds
    assert np.median(took) < 0.005  # while it sleeps, nobody waits for it again
    guard.close()
    assert settled(0)


def test_a_policy_that_loops_is_stopped() -> None:
    def loop(call: int) -> Any:
        while call == 0:
            pass
        return np.array([CHOICE])

    guard = guarded(Scripted(loop), GuardLimits(budget_s=0.05, dwell_s=0.3))
    state = guard.init(1, np.random.default_rng(0))
    _, state = guard.act(frame(0), state)
    assert (state.events[0].reason, state.events[0].detail) == (Reason.LATE, "no answer within 50 ms")
    assert settled(0), "the loop goes on"
    for k in range(1, 4):
        chosen, state = guard.act(frame(k), state)
    assert tuple(chosen[0]) == CHOICE  # on its own again, with a new thread
    assert state.events[0].to == "learned"


def test_time_boxes_return_values_errors_and_threads() -> None:
    box: TimeBox[int] = TimeBox(5.0)
    assert box.call(lambda: 7) == 7
    first = [thread for thread in threading.enumerate() if thread.name == "adaptsplit-guard"]
    with pytest.raises(CallError, match="ValueError: no such thing") as error:
        box.call(lambda: int(raises(ValueError("no such thing\nmore"))(0)))
    assert (error.value.kind, error.value.__cause__) == ("ValueError", None)
    assert [thread for thread in threading.enumerate() if thread.name == "adaptsplit-guard"] == first
    del box, error
    assert settled(0), "the thread outlives its box"


def test_an_unprintable_error_is_one_too() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(CallError, match=r"^Unprintable$"):
        TimeBox[None](5.0).call(lambda: raises(Unprintable())(0))


def test_a_box_is_busy_until_its_late_call_has_ended() -> None:
    free = threading.Event()
    box: TimeBox[object] = TimeBox(0.02)
    with pytest.raises(Overrun, match="within 20 ms"):
        box.call(lambda: free.wait(5.0))
    assert box.busy
    with pytest.raises(Overrun, match="still running"):
        box.call(lambda: 1)
    free.set()
    assert settled(0)
    assert not box.busy
    assert box.call(lambda: 2) == 2


@pytest.mark.parametrize(("fps", "deadline_s", "budget_s"), [(10, 0.25, 0.025), (2, 0.1, 0.025), (50, 1.0, 0.005)])
def test_the_budget_is_a_quarter_of_deadline_or_period(fps: float, deadline_s: float, budget_s: float) -> None:
    context = ControllerContext(fps=fps, deadline_s=deadline_s)
    assert GuardedController(Scripted(), SPACE, context).budget_s == pytest.approx(budget_s)
    assert GuardedController(Scripted(), SPACE, context, limits=GuardLimits(budget_s=0.5)).budget_s == 0.5


# ---- the latch ----


def test_a_fault_holds_for_the_dwell_time_and_the_next_one_soon_after_for_twice() -> None:
    """By hand at 10 frames per second, dwell 1 s: 10 decisions, then 20, and 10 again after 40 well ones."""
    faults = {3, 13, 80}  # decisions; the policy is asked at 13 again, fails, and is asked next at 33
    now = [0]
    guard = guarded(Scripted(lambda call: None if now[0] in faults else np.array([CHOICE])))
    state = guard.init(1, np.random.default_rng(0))
    recovered, switches = [], []
    for now[0] in range(100):
        chosen, state = guard.act(frame(now[0]), state)
        recovered += [now[0]] if tuple(chosen[0]) == SAFE else []
        switches += [(event.decided, event.to) for event in state.events]
    assert recovered == [*range(3, 33), *range(80, 90)]
    assert switches == [(3, "recovery"), (33, "learned"), (80, "recovery"), (90, "learned")]


def test_the_dwell_time_grows_no_further_than_its_limit() -> None:
    policy = Scripted(lambda call: None)
    play(guarded(policy, GuardLimits(inline=True, dwell_s=1, max_dwell_s=4)), [frame(k) for k in range(200)])
    assert policy.calls == 7  # at 0, 10, 30, 70, 110, 150 and 190
    policy = Scripted(lambda call: None)
    play(guarded(policy, GuardLimits(inline=True, dwell_s=0, max_dwell_s=0)), [frame(k) for k in range(20)])
    assert policy.calls == 20


def test_rows_are_latched_one_by_one() -> None:
    guard = guarded(Scripted(lambda call: np.repeat([CHOICE], 4, axis=0)))
    state = guard.init(4, np.random.default_rng(0))
    x = frame(0, 4)
    x[2, 7] = np.nan
    chosen, state = guard.act(x, state)
    assert [tuple(row) for row in chosen.tolist()] == [CHOICE, CHOICE, SAFE, CHOICE]
    assert [(event.row, event.reason, event.detail) for event in state.events] == [
        (2, Reason.INPUT, "signal_known not finite")
    ]


# ---- the monitors ----

BOX = TrainedRange(low=(0.2,) * obs.SIZE, high=(0.8,) * obs.SIZE, count=9)
INPUTS: dict[str, tuple[dict[str, float], Reason | None, str]] = {
    "well": ({}, None, ""),
    "nan": ({"rtt": np.nan}, Reason.INPUT, "rtt not finite"),
    "inf": ({"rtt": np.inf, "load": -np.inf}, Reason.INPUT, "rtt, load not finite"),
    "just inside the margin": ({"rtt": 0.899}, None, ""),
    "beyond the margin": ({"rtt": 0.95}, Reason.RANGE, "rtt 0.950, trained 0.200..0.800"),
    "below": ({"backlog": 0.0, "rtt": 0.95}, Reason.RANGE, "backlog 0.000, trained 0.200..0.800"),
    "silence": ({"heard_age": 1.0}, Reason.STALE, "nothing heard; heard_age 1.000"),
    "nan and silence": ({"heard_age": 1.0, "rtt": np.nan}, Reason.INPUT, "rtt not finite"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_are_judged(case: str) -> None:
    fields, reason, detail = INPUTS[case]
    decisions, events, _ = play(guarded(Scripted(), trained=BOX), [frame(0, **fields)])
    assert decisions == [CHOICE if reason is None else SAFE]
    assert [(event.reason, event.detail) for event in events] == ([] if reason is None else [(reason, detail)])


def test_a_battery_below_the_floor_stays_with_the_recovery_until_it_has_risen() -> None:
    guard = guarded(Scripted(), GuardLimits(inline=True, dwell_s=0))
    levels = [0.08, 0.069, 0.08, 0.089, 0.091, 0.08]  # floor 0.07, rise 0.02
    decisions, events, _ = play(guard, [frame(k, battery=v, battery_known=1.0) for k, v in enumerate(levels)])
    assert decisions == [CHOICE, SAFE, SAFE, SAFE, CHOICE, CHOICE]
    assert events[0].detail == "battery 0.069, floor 0.07"
    assert play(guard, [frame(0, battery=0.0, battery_known=0.0)])[0] == [CHOICE]  # unknown is not empty


def test_equal_observations_in_a_row_are_frozen() -> None:
    decisions, events, _ = play(guarded(Scripted()), [frame(1)] * 6)
    assert decisions == [CHOICE] * 4 + [SAFE] * 2
    assert [(event.decided, event.reason) for event in events] == [(4, Reason.STALE)]
    assert play(guarded(Scripted()), [frame(k // 4) for k in range(40)])[1] == []


TIMES = np.array([0.03, 0.06, 0.03, 0.3, 0.0])  # s: stem, mid, raw, full, skip


def test_an_answer_that_cannot_come_by_the_deadline_is_not_begun() -> None:
    full = Scripted(lambda call: np.array([[3, 0, 0]]))
    decisions, events, _ = play(guarded(full, answer_s=TIMES), [frame(0, frame_wait=0.0)])
    assert (decisions, events[0].reason) == ([SAFE], Reason.SLOW)
    assert events[0].detail == "predicted beyond the deadline of 0.25 s"
    # mid takes 60 ms: in time after waiting 0.15 s, not after 0.20 s; after 0.24 s nothing is, and nothing is changed
    waits = {0.15: CHOICE, 0.20: SAFE, 0.24: CHOICE}
    for wait_s, expected in waits.items():
        assert play(guarded(Scripted(), answer_s=TIMES), [frame(0, frame_wait=wait_s / 0.5)])[0] == [expected], wait_s
    with pytest.raises(ConfigError, match="one time per branch"):
        guarded(full, answer_s=np.zeros(2))


def test_the_last_resort_needs_no_link_and_is_the_fastest() -> None:
    assert safe_decision(SPACE) == Decision(0, 0, 0)
    assert safe_decision(SPACE, np.array([0.05, 0.02, 0.0, 0.3, 0.0])) == Decision(1, 0, 0)
    assert safe_decision(SPACE, np.array([0.05, 0.02, 0.0, 0.01, 0.0])) == Decision(3, 0, 0)
    only = DecisionSpace((BranchSpec("stem", "split", ("a",)),), thresholds=(0.5, 0.9))
    assert safe_decision(only, np.array([0.05])) == Decision(0, 0, 0)


# ---- the recovery ----


class Hysteresis(Scripted):
    """A recovery with a decision of its own."""

    kind = "rule"
    name = "hysteresis"

    def act(self, observation: Any, state: Any) -> Any:
        assert np.isfinite(observation).all()
        return np.repeat([[1, 0, 0]], len(observation), axis=0), state


def test_a_rule_recovers_where_the_input_can_be_trusted_and_the_fixed_decision_where_not() -> None:
    guard = guarded(Scripted(lambda call: None), recovery=Hysteresis())
    assert play(guard, [frame(0), frame(1, rtt=np.nan), frame(2)])[0] == [(1, 0, 0), SAFE, (1, 0, 0)]


def test_a_recovery_is_verified() -> None:
    with pytest.raises(ConfigError, match=r"recovery 'scripted' breaks the contract.*nothing"):
        guarded(Scripted(), recovery=Scripted(raises(ValueError("nothing"))))
    with pytest.raises(ConfigError, match="index outside"):
        guarded(Scripted(), recovery=Scripted(lambda call: np.full((64, 3), 9)))
    learner = Hysteresis()
    learner.learns = True
    with pytest.raises(ConfigError, match="learns; a recovery must be fixed"):
        guarded(Scripted(), recovery=learner)


def test_a_recovery_that_fails_after_all_leaves_the_fixed_decision() -> None:
    class Turning(Hysteresis):
        broken = False

        def act(self, observation: Any, state: Any) -> Any:
            return (None, state) if self.broken else super().act(observation, state)

    rule = Turning()
    guard = guarded(Scripted(lambda call: None), recovery=rule)
    rule.broken = True
    assert play(guard, [frame(0)])[0] == [SAFE]


# ---- learning ----


class Learner:
    """Counts what it learned in its state; decides the mid branch after the first outcome."""

    kind, name, learns = "learned", "learner", True

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def init(self, n: int, rng: Any) -> Any:
        return 0

    def act(self, observation: Any, state: Any) -> Any:
        return np.repeat([CHOICE if state else (0, 1, 3)], len(observation), axis=0), state

    def learn(self, outcomes: Any, state: Any) -> Any:
        if self.fails:
            raise ValueError("cannot learn this")
        return state + len(outcomes)


def test_outcomes_are_learned_before_the_next_decision_and_kept_while_latched() -> None:
    guard = guarded(Learner())
    state = guard.init(1, np.random.default_rng(0))
    chosen, state = guard.act(frame(0), state)
    assert tuple(chosen[0]) == (0, 1, 3)
    chosen, state = guard.act(frame(1), guard.learn(outcome.empty(2), state))
    assert (tuple(chosen[0]), state.learned, state.pending) == (CHOICE, 2, ())
    for k in range(2, 12):
        _, state = guard.act(frame(k, rtt=np.nan if k == 2 else 0.5), guard.learn(outcome.empty(1), state))
    assert (state.learned, len(state.pending)) == (2, 10)
    for k in range(12, 300):
        _, state = guard.act(frame(k, rtt=np.nan), guard.learn(outcome.empty(1), state))
    assert len(state.pending) == 64
    assert guarded(Scripted()).learn(outcome.empty(1), state) is state


def test_a_failure_to_learn_is_a_failure() -> None:
    guard = guarded(Learner(fails=True))
    state = guard.learn(outcome.empty(1), guard.init(1, np.random.default_rng(0)))
    chosen, state = guard.act(frame(0), state)
    assert tuple(chosen[0]) == SAFE
    assert state.events[0].detail == "ValueError: cannot learn this"


def test_a_policy_that_cannot_start_never_decides() -> None:
    class Stillborn(Scripted):
        def init(self, n: int, rng: Any) -> Any:
            raise OSError("no weights")

    for limits in (INLINE, GuardLimits()):
        policy = Stillborn()
        decisions, events, _ = play(guarded(policy, limits), [frame(k) for k in range(50)])
        assert (set(decisions), policy.calls) == ({SAFE}, 0)
        assert [(event.reason, event.detail) for event in events] == [(Reason.FAILED, "OSError: no weights")]


# ---- when nothing is wrong ----


@pytest.mark.parametrize("limits", [INLINE, GuardLimits(budget_s=5.0)], ids=["inline", "thread"])
def test_a_guard_changes_nothing_while_nothing_is_wrong(limits: GuardLimits) -> None:
    bare, inside = RandomController(SPACE), guarded(RandomController(SPACE), limits)
    one, other = bare.init(5, np.random.default_rng(7)), inside.init(5, np.random.default_rng(7))
    for k in range(50):
        x = frame(k, 5)
        expected, one = bare.act(x, one)
        chosen, other = inside.act(x, other)
        assert np.array_equal(SPACE.canonical(expected), chosen)
        assert other.events == ()


@pytest.mark.parametrize("policy", [Scripted(), RandomController(SPACE), Learner()])
def test_a_guarded_controller_keeps_the_contract(policy: Any) -> None:
    guard = guarded(policy)
    check_controller(guard, SPACE)
    assert (guard.name, guard.kind, guard.learns) == (policy.name, policy.kind, policy.learns)


def test_only_what_is_learned_is_guarded() -> None:
    rule, policy, learner = StaticController(SPACE, Decision(0, 0, 0)), Scripted(), Learner()
    assert guard_learned(rule, SPACE, CONTEXT) is rule
    both = guard_learned(InterleavedController([rule, policy, learner], 2), SPACE, CONTEXT, trained=BOX)
    assert isinstance(both, InterleavedController)
    assert [type(part) for part in both.parts] == [StaticController, GuardedController, GuardedController]
    assert (both.block, both.name) == (2, "static:stem/0/0,scripted,learner")


def test_events_of_an_interleaved_controller_are_those_of_its_turn() -> None:
    both = guard_learned(InterleavedController([Scripted(lambda call: None), Learner()], 1), SPACE, CONTEXT)
    assert isinstance(both, InterleavedController)
    _, state = both.act(frame(0), both.init(1, np.random.default_rng(0)))
    assert [event.reason for event in events_of(state, 0)] == [Reason.ILLEGAL]
    assert events_of(state, 1) == events_of(state) == events_of(None) == ()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"dwell_s": 2, "max_dwell_s": 1}, "below dwell_s"),
        ({"budget_s": 0}, "greater than 0"),
        ({"dwel_s": 1}, "dwel_s"),
    ],
)
def test_wrong_limits_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GuardLimits(**values)


# ---- on the device ----


def test_a_device_is_told_of_every_switch() -> None:
    guard = guarded(Scripted(lambda call: None if call == 2 else np.array([CHOICE])))
    decider = Decider(guard, SPACE, 0)
    decided = [decider.decide(frame(k)[0]) for k in range(20)]
    assert [decision == Decision(*SAFE) for decision, _ in decided] == [2 <= k < 12 for k in range(20)]
    assert {name for _, name in decided} == {"scripted"}
    assert [(event.decided, event.to) for event in decider.take_switches()] == [(2, "recovery"), (12, "learned")]
    assert decider.take_switches() == []
    assert dict(decider.counts) == {"guard_illegal-decision": 1, "guard_returns": 1}


# ---- the trained range ----


def test_a_range_is_the_box_around_what_was_seen() -> None:
    rows = np.full((3, obs.SIZE), 0.5)
    rows[:, 0], rows[:, 1] = (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)
    box = range_of(rows)
    assert (box.low[:3], box.high[:3], box.count) == ((0.1, 0.7, 0.5), (0.3, 0.9, 0.5), 3)
    beyond = box.exceedance(np.array([[0.0, 1.0, *[0.5] * (obs.SIZE - 2)]]))
    assert beyond[0, :3].tolist() == pytest.approx([0.1, 0.1, 0.0])
    both = union(box, EVERYWHERE)
    assert (both.low, both.high, both.count) == (EVERYWHERE.low, EVERYWHERE.high, 4)


@pytest.mark.parametrize("rows", [np.zeros((0, obs.SIZE)), np.full((1, obs.SIZE), np.nan), np.full((1, obs.SIZE), 1.1)])
def test_a_range_of_nothing_is_refused(rows: Any) -> None:
    with pytest.raises(ConfigError, match=r"every value in 0\.\.1"):
        range_of(rows)
    with pytest.raises(ConfigError, match="no observation"):
        RangeRecorder(Scripted()).range()
    with pytest.raises(ValueError, match=r"goodput: low 0\.5, high 0\.2"):
        TrainedRange(low=(0.5,) * obs.SIZE, high=(0.2,) * obs.SIZE, count=1)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("flight-lte")


@pytest.fixture(scope="module")
def policy(scenario: Scenario) -> PolicyController:
    rng = np.random.default_rng(1)
    shapes = ((obs.SIZE, 32), (32, len(scenario.space.table)))
    layers = tuple((rng.normal(0, 0.5, s).astype(np.float32), np.zeros(s[1], dtype=np.float32)) for s in shapes)
    return PolicyController("p", scenario.space, PolicyNet(layers, "tanh", "flat"))


def test_in_the_simulator_a_guard_with_the_measured_range_changes_no_record(
    scenario: Scenario, policy: PolicyController
) -> None:
    envs = pytest.importorskip("adaptsplit.envs")
    trained = measure_range(policy, scenario, episodes=16)
    assert trained.count > 16 * scenario.frames_per_episode
    assert trained.low[obs.index("battery")] > 0.0
    world, seeds = envs.build_world(scenario, "train"), envs.episode_seeds(0, 8, "train")
    inside = GuardedController(policy, scenario.space, context_of(scenario), trained=trained, limits=INLINE)
    one, other = (envs.run_episodes(world, controller, seeds) for controller in (policy, inside))
    assert one.tobytes() == other.tobytes()
    dark = GuardedController(
        policy, scenario.space, context_of(scenario), trained=trained, limits=GuardLimits(inline=True, margin=0)
    )
    _, state = dark.act(np.zeros((1, obs.SIZE), dtype=np.float32), dark.init(1, np.random.default_rng(0)))
    assert state.events[0].reason is Reason.RANGE
