"""The trial of a policy: exchange between two frames, what counts as worse, and the order of a roll-out."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import SPACE
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import NOW, announce, chunk_of, chunks_in, envelope, trust_in, two_versions, update_of

from adaptsplit import observation as obs
from adaptsplit.agents.base import ControllerContext
from adaptsplit.agents.static import InterleavedController, StaticController
from adaptsplit.decision import Decision
from adaptsplit.device_bridge.control import Birth, PolicyReported
from adaptsplit.device_bridge.decider import Decider
from adaptsplit.device_bridge.policy_canary import Canary, CanaryLimits, Window
from adaptsplit.device_bridge.policy_part import MAX_JOBS, PolicyPart
from adaptsplit.device_bridge.policy_reasons import Reason
from adaptsplit.device_bridge.policy_rollout import FINAL, Announce, Rollout, SendChunk
from adaptsplit.device_bridge.policy_state import Rates
from adaptsplit.device_bridge.policy_store import PolicyStore
from adaptsplit.guard import GuardedController
from adaptsplit.outcome import Path as Route
from adaptsplit.outcome import empty
from adaptsplit.signing_keys import PrivateKey

CONTEXT = ControllerContext(fps=10.0, deadline_s=0.2)


def seen(count: int) -> list[Any]:
    return list(np.random.default_rng(5).random((count, obs.SIZE), dtype=np.float32))


def static(branch: int) -> StaticController:
    return StaticController(SPACE, Decision(branch, 0, 0))


class Learner(StaticController):
    """Counts what it was told; fails when it is told to."""

    learns = True
    fails = False

    def init(self, n: int, rng: np.random.Generator) -> int:
        """Nothing learned."""
        return 0

    def act(self, observation: Any, state: int) -> tuple[Any, int]:
        """Decide, or fail."""
        if self.fails:
            raise ValueError("boom")
        return super().act(observation, None)[0], state

    def learn(self, outcomes: Any, state: int) -> int:
        """Count."""
        return state + len(outcomes)


# ---- the exchange ----


def test_an_exchange_takes_hold_at_the_next_decision_and_back() -> None:
    one, other = static(0), static(3)
    decider = Decider(one, SPACE, 0)
    rows = seen(3)
    assert decider.decide(rows[0])[0].branch == 0
    before = decider.exchange(one, other, None)
    assert before is not None
    assert (before.policy, decider.names) == (one, [other.name])
    assert decider.decide(rows[1])[0].branch == 3
    assert decider.exchange(one, other, None) is None  # no longer there
    assert decider.exchange(other, before.policy, before.state) is not None
    assert decider.decide(rows[2])[0].branch == 0
    assert [row is kept for row, kept in zip(rows, decider.recent, strict=True)] == [True] * 3


def test_of_interleaved_controllers_only_the_bundles_is_exchanged() -> None:
    one, rule, other = Learner(SPACE, Decision(0, 0, 0)), Learner(SPACE, Decision(1, 0, 0)), static(3)
    decider = Decider(InterleavedController([one, rule], 2), SPACE, 0)
    rows = seen(10)
    decider.outcome(empty(1))
    taken = [decider.decide(row)[0].branch for row in rows[:3]]
    decider.exchange(one, other, None)
    taken += [decider.decide(row)[0].branch for row in rows[3:]]
    assert taken == [0, 0, 1, 1, 3, 3, 1, 1, 3, 3]
    assert decider._state.states[1] == 1  # what the other one learned stays


def test_what_one_policy_learned_is_kept_apart_from_the_other(tmp_path: Path) -> None:
    old, new = Learner(SPACE, Decision(0, 0, 0)), Learner(SPACE, Decision(1, 0, 0))
    decider = Decider(old, SPACE, 0, tmp_path / "old")
    decider.outcome(empty(4))
    decider.decide(seen(1)[0])
    before = decider.exchange(old, new, new.init(1, np.random.default_rng(0)), tmp_path / "new")
    assert before is not None
    decider.outcome(empty(7))
    decider.decide(seen(1)[0])
    assert decider._state == 7
    decider.exchange(new, before.policy, before.state, before.keep)
    assert decider._state == 4
    decider.outcome(empty(1))
    decider.close()
    restarted = [Decider(make, SPACE, 0, tmp_path / name) for make, name in ((old, "old"), (new, "new"))]
    assert [one._state for one in restarted] == [5, 7]


def test_only_what_a_policy_can_be_blamed_for_is_a_verdict_against_it() -> None:
    policy = Learner(SPACE, Decision(0, 0, 0))
    guarded = GuardedController(policy, SPACE, CONTEXT)
    decider = Decider(guarded, SPACE, 0)
    rows = seen(40)
    decider.decide(rows[0])
    decider.decide(np.full(obs.SIZE, np.nan, np.float32))  # a sensor's fault
    for row in rows[1:21]:
        decider.decide(row)
    innocent = decider.take_verdicts()
    assert not any(verdict.trip or verdict.recovered for verdict in innocent)
    assert decider.counts["guard_bad-input"] == 1
    policy.fails = True
    for row in rows[21:24]:
        decider.decide(row)
    verdicts = decider.take_verdicts()
    assert [(verdict.trip, verdict.recovered) for verdict in verdicts] == [(True, True), (False, True), (False, True)]
    assert all(verdict.controller is guarded for verdict in verdicts)


# ---- the canary ----

LIMITS = CanaryLimits(frames=100, trips=0.02, recovered=0.10, misses=0.05)


def test_a_window_gives_the_rates_of_the_newest_frames() -> None:
    window = Window(10)
    assert window.rates() == Rates()
    for n in range(30):
        window.decided(n % 10 == 0, n % 2 == 0)
        window.ended(n >= 25)
    assert window.rates() == Rates(trips=0.1, recovered=0.5, misses=0.5)


@pytest.mark.parametrize(
    ("trips", "recovered", "misses", "reason"),
    [
        (2, 10, 5, None),
        (3, 0, 0, Reason.GUARD_TRIPS),
        (0, 11, 0, Reason.GUARD_TRIPS),
        (0, 0, 6, Reason.MISSES),
    ],
)
def test_worse_by_more_than_the_margin_is_worse(trips: int, recovered: int, misses: int, reason: Reason | None) -> None:
    canary = Canary(Rates(), LIMITS)
    for n in range(100):
        canary.decided(n < trips, n < recovered)
        canary.ended(n < misses)
    worse = canary.worse()
    assert (None if worse is None else worse[0]) is reason
    assert canary.passed


def test_what_was_bad_before_is_not_held_against_the_new_policy() -> None:
    canary = Canary(Rates(recovered=0.5, misses=0.3), LIMITS)
    for n in range(100):
        canary.decided(False, n % 2 == 0)
        canary.ended(n % 10 < 3)
    assert canary.worse() is None


@given(
    frames=st.integers(1, 60),
    before=st.floats(0, 1),
    events=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=60, max_size=60),
)
@settings(max_examples=50, deadline=None)
def test_a_verdict_comes_within_the_window_and_never_changes(
    frames: int, before: float, events: list[tuple[bool, bool, bool]]
) -> None:
    """Told early or at the end, a policy is worse exactly if its counts over the whole trial are above the limit."""
    limits = CanaryLimits(frames=frames)
    canary = Canary(Rates(recovered=before), limits)
    verdicts = []
    for trip, recovered, miss in events[:frames]:
        canary.decided(trip, recovered)
        canary.ended(miss)
        verdicts.append(canary.worse() is not None)
    assert canary.passed
    assert verdicts == sorted(verdicts)
    trips, recoveries, misses = (sum(event[i] for event in events[:frames]) for i in range(3))
    allowed = (limits.trips, before + limits.recovered, limits.misses)
    counts = zip((trips, recoveries, misses), allowed, strict=True)
    assert verdicts[-1] == any(count > share * frames + 1e-9 for count, share in counts)


# ---- the roll-out ----


def reported(job: str, status: str, **more: Any) -> PolicyReported:
    return PolicyReported.model_validate({"job": job, "version": 2, "status": status, **more})


def test_a_few_devices_go_first_and_the_rest_follows_when_they_kept_it() -> None:
    rollout = Rollout("a" * 32, 5, ["x", "y", "z"], canaries=1)
    assert rollout.start() == [Announce("x")]
    assert rollout.heard("y", reported("a" * 32, "SUCCEEDED")) == []  # not its turn
    assert rollout.heard("x", reported("b" * 32, "FAILED")) == []  # of another job
    assert rollout.heard("stranger", reported("a" * 32, "FAILED")) == []
    asks = reported("a" * 32, "IN_PROGRESS", stage="download", missing=[0, 4, 5])
    assert rollout.heard("x", asks) == [SendChunk("x", 0), SendChunk("x", 4)]
    assert not rollout.done
    assert rollout.heard("x", reported("a" * 32, "SUCCEEDED")) == [Announce("y"), Announce("z")]
    for device in ("y", "z"):
        assert rollout.heard(device, reported("a" * 32, "SUCCEEDED")) == []
    assert rollout.done
    assert rollout.succeeded


@pytest.mark.parametrize("status", [status for status in FINAL if status != "SUCCEEDED"])
def test_what_the_first_device_did_not_keep_goes_no_further(status: str) -> None:
    rollout = Rollout("a" * 32, 5, ["x", "y"], canaries=1)
    rollout.start()
    assert rollout.heard("x", reported("a" * 32, status, reason="SELF_TEST")) == []
    assert rollout.done
    assert not rollout.succeeded
    assert [state.status for state in rollout.states.values()] == [status, "WAITING"]
    assert rollout.heard("x", reported("a" * 32, "SUCCEEDED")) == []  # what has ended has ended


def test_without_canaries_all_go_at_once() -> None:
    assert Rollout("a" * 32, 1, ["x", "y"]).start() == [Announce("x"), Announce("y")]


# ---- the part, on the main loop ----


class Link:
    """What the part needs of a device's link."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.births: list[Birth] = []

    def tell(self, leaf: str, content: Any, **how: Any) -> bool:
        """Keep it."""
        self.told.append(content)
        return True

    def event(self, kind: str, detail: str) -> None:
        """Keep it."""
        self.told.append((kind, detail))

    def rebirth(self, birth: Birth) -> bool:
        """Keep it."""
        self.births.append(birth)
        return True


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, key: PrivateKey) -> Path:
    return two_versions(tmp_path_factory.mktemp("made"), key)


def board(part: PolicyPart, bundle: Any) -> Any:
    """Return what stands for an agent that runs ``bundle``."""
    decider = Decider(bundle.build(["bundle"], 1, guard=True), bundle.space, 0)
    options = SimpleNamespace(guard=True, seed=0)
    agent = SimpleNamespace(decider=decider, bundle=bundle, link=Link(), options=options, last_decided=-1)
    part.started(agent)  # type: ignore[arg-type]
    return agent


def until(part: PolicyPart, agent: Any, true: Callable[[], bool]) -> None:
    """Tick, deciding nothing, until something is true."""
    end = time.monotonic() + 20.0
    while not true() and time.monotonic() < end:
        part.tick(0.0)
        time.sleep(0.005)
    assert true(), agent.link.told


def statuses(agent: Any) -> list[str]:
    return [told.stage or told.status for told in agent.link.told if isinstance(told, PolicyReported)]


def send(part: PolicyPart, agent: Any, folder: Path) -> None:
    """Send an update and wait until it decides."""
    update, sha = update_of(folder), announce(update_of(folder)).sha256
    part.message("policy/desired", envelope(announce(update)), 0.0)
    for number in range(chunks_in(update)):
        part.message(f"policy/chunk/{sha}/{number}", chunk_of(update, number), 0.0)
    until(part, agent, lambda: agent.decider.counts["exchanges"] == 1)


def fly(part: PolicyPart, agent: Any, count: int, *, miss: bool = False) -> None:
    for row in seen(count):
        agent.last_decided += 1
        agent.decider.decide(row)
        outcome = empty(1)
        outcome["frame"], outcome["path"] = agent.last_decided, Route.MISS if miss else Route.REMOTE
        part.settled(agent.decider.names[0], outcome)
        part.tick(0.0)


TRIAL = CanaryLimits(frames=20, trips=1.0, recovered=1.0, misses=0.2)  # here time is not what is tested


def test_a_policy_that_misses_frames_is_taken_back_in_the_same_turn_of_the_loop(
    made: Path, key: PrivateKey, tmp_path: Path
) -> None:
    store = PolicyStore(tmp_path / "p", trust_in(key, NOW))
    opened = store.open(made / "v1")
    part = PolicyPart(store, opened, TRIAL)
    agent = board(part, opened.bundle)
    fly(part, agent, 30)
    send(part, agent, made / "v2")
    late = empty(1)
    late["frame"], late["path"] = agent.last_decided, Route.MISS
    part.settled(agent.decider.names[0], late)  # a frame of the policy before is not held against this one
    fly(part, agent, 4, miss=True)
    assert (agent.decider.names, agent.decider.counts["exchanges"]) == (["ppo-2"], 1)
    fly(part, agent, 1, miss=True)
    assert (agent.decider.names, agent.decider.counts["exchanges"]) == (["ppo-1"], 2)
    assert agent.bundle is opened.bundle
    until(part, agent, lambda: "ROLLED_BACK" in statuses(agent))
    assert agent.link.told[-1].reason == Reason.MISSES
    assert [birth.controllers for birth in agent.link.births] == [["ppo-2"], ["ppo-1"]]
    part.close()
    assert store.state.refused == 2


@pytest.mark.parametrize("good", [True, False])
def test_a_trial_goes_on_after_a_restart(good: bool, made: Path, key: PrivateKey, tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "p", trust_in(key, NOW))
    opened = store.open(made / "v1")
    part = PolicyPart(store, opened, TRIAL)
    agent = board(part, opened.bundle)
    send(part, agent, made / "v2")
    fly(part, agent, 3)
    part.close()

    store = PolicyStore(tmp_path / "p", trust_in(key, NOW))
    opened = store.open(made / "v1")
    assert opened.fallback is not None
    part = PolicyPart(store, opened, TRIAL)
    agent = board(part, opened.bundle)
    assert agent.decider.names == ["ppo-2"]
    fly(part, agent, 20, miss=not good)
    until(part, agent, lambda: bool({"SUCCEEDED", "ROLLED_BACK"} & set(statuses(agent))))
    assert statuses(agent)[-1] == ("SUCCEEDED" if good else "ROLLED_BACK")
    assert agent.decider.names == ["ppo-2" if good else "ppo-1"]
    part.close()
    opened = store.open(made / "v1")
    store.close()
    assert opened.bundle.controller.name == ("ppo-2" if good else "ppo-1")


def test_a_flood_of_messages_is_dropped_and_the_main_loop_never_waits(
    made: Path, key: PrivateKey, tmp_path: Path
) -> None:
    store = PolicyStore(tmp_path / "p", trust_in(key, NOW))
    opened = store.open(made / "v1")
    part = PolicyPart(store, opened, TRIAL)
    agent = board(part, opened.bundle)
    slowest = 0.0
    for n in range(2000):
        begun = time.perf_counter()
        part.message("policy/chunk/x/1" if n % 2 else "policy/desired", bytes(50_000), 0.0)
        slowest = max(slowest, time.perf_counter() - begun)
        assert part._jobs.qsize() <= MAX_JOBS
    assert slowest < 0.25  # a busy machine; it is microseconds
    until(part, agent, lambda: "REJECTED" in statuses(agent))
    part.close()
