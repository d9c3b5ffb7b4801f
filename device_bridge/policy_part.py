"""Policy updates as a part of the device agent: hears announcements and chunks, and watches over a policy on trial.

Everything slow runs on a thread of its own (``policy_updater``). The main loop exchanges controllers between two
frames, counts what the guard says, and takes a policy that does worse back in the same turn of the loop.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adaptsplit import observation as obs
from adaptsplit.bundle import Bundle
from adaptsplit.controller import Controller, Observations
from adaptsplit.device_bridge.control import PolicyReported
from adaptsplit.device_bridge.decider import Exchanged, runs
from adaptsplit.device_bridge.describe import describe
from adaptsplit.device_bridge.parts import QuietPart
from adaptsplit.device_bridge.policy_canary import Canary, CanaryLimits, Window
from adaptsplit.device_bridge.policy_reasons import Reason
from adaptsplit.device_bridge.policy_state import Rates
from adaptsplit.device_bridge.policy_store import Opened, PolicyStore
from adaptsplit.device_bridge.policy_updater import Candidate, PolicyUpdater
from adaptsplit.device_bridge.topics import CHUNK, DESIRED, REPORTED
from adaptsplit.outcome import Outcomes
from adaptsplit.outcome import Path as Route

if TYPE_CHECKING:
    from adaptsplit.device_bridge.agent import DeviceAgent

log = logging.getLogger("adaptsplit.device")

MAX_JOBS = 32  # messages that wait for the thread: more are dropped, and asked for again
TICK_S = 0.5
PROGRESS_S = 2.0
CLOSE_S = 5.0

Job = Callable[[float], None]


class PolicyPart(QuietPart):
    """Takes policy updates; ``opened`` is what the store gave at the start, and the agent runs its ``bundle``.

    ``keep`` is the folder in which the factory bundle's controller keeps what it learned; each other has one inside it.
    """

    name = "policy"
    leaves: tuple[str, ...] = (DESIRED, f"{CHUNK}/+/+")

    def __init__(
        self, store: PolicyStore, opened: Opened, limits: CanaryLimits | None = None, keep: Path | None = None
    ) -> None:
        self._store, self._limits, self._keep = store, limits or CanaryLimits(), keep
        self._updater = PolicyUpdater(store, self, opened.bundle)
        self._opened = opened
        self._controller: Controller = opened.bundle.controller
        self._agent: DeviceAgent | None = None
        self._window = Window(self._limits.frames)
        self._rates = Rates()
        self._canary: Canary | None = None
        self._former: tuple[Bundle, Exchanged] | None = None
        self._since = -1
        self._told = 0.0
        self._out: queue.SimpleQueue[PolicyReported] = queue.SimpleQueue()
        self._candidates: queue.SimpleQueue[Candidate] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="adaptsplit-policy", daemon=True)

    # ---- the part, on the main loop ----

    def started(self, agent: DeviceAgent) -> None:
        """Begin; a policy that was on trial when the process ended is on trial again."""
        self._agent = agent
        trial = self._store.state.trial
        if trial is not None and self._opened.fallback is not None:
            former = self.prepare(self._opened.fallback)
            keep = self._folder(self._opened.fallback)
            self._former = self._opened.fallback, Exchanged(former.controller, former.state, keep)
            self._canary = Canary(trial.before, self._limits)
        self._thread.start()
        self._post(self._updater.linked)

    def linked(self, up: bool, now: float) -> None:
        """Tell the broker, which may have been started anew, where things stand."""
        if up and self._agent is not None:
            self._post(self._updater.linked)

    def message(self, leaf: str, payload: bytes, now: float) -> None:
        """Hand an announcement or a chunk to the thread."""
        if leaf == DESIRED:
            self._post(lambda at: self._updater.desired(payload, at))
            return
        digest, _, number = leaf.removeprefix(f"{CHUNK}/").partition("/")
        if number.isascii() and number.isdigit() and len(number) <= 6:
            self._post(lambda at: self._updater.chunk(digest, int(number), payload, at))

    def tick(self, now: float) -> None:
        """Publish reports, take up a candidate, judge the one on trial."""
        assert self._agent is not None
        self._watch()
        while not self._candidates.empty():
            self._exchange(self._candidates.get())
        self._judge()
        while not self._out.empty():
            self._publish(self._out.get())

    def settled(self, controller: str, outcome: Outcomes) -> None:
        """Count a frame that ended, if the bundle's controller decided it."""
        if controller != self._controller.name or int(outcome["frame"][0]) <= self._since:
            return
        (self._canary or self._window).ended(bool(outcome["path"][0] == Route.MISS))

    def close(self) -> None:
        """End the thread; a trial goes on at the next start."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._store.park()
        while not self._out.empty():
            self._publish(self._out.get())
        self._store.close()

    # ---- the trial ----

    def _watch(self) -> None:
        """Count the guard's verdicts on the bundle's controller, before a trial and in it."""
        assert self._agent is not None
        target = self._canary or self._window
        for verdict in self._agent.decider.take_verdicts():
            if runs(verdict.controller, self._controller):
                target.decided(verdict.trip, verdict.recovered)
        self._rates = self._window.rates() if self._canary is None else self._rates

    def _exchange(self, candidate: Candidate) -> None:
        """Let a candidate decide from the next frame on."""
        agent = self._agent
        assert agent is not None
        old = agent.bundle
        keep = self._folder(candidate.bundle)
        former = agent.decider.exchange(self._controller, candidate.controller, candidate.state, keep)
        if former is None:  # a command has let another controller decide
            prepared = self.prepare(old)
            former = Exchanged(prepared.controller, prepared.state, self._folder(old))
        self._former = old, former
        self._take(candidate.bundle)
        before = self._store.state.trial
        self._canary = Canary(Rates() if before is None else before.before, self._limits)

    def _judge(self) -> None:
        canary = self._canary
        if canary is None:
            return
        worse = canary.worse()
        if worse is not None:
            self._revert(*worse)
        elif canary.passed:
            self._end(None, "")
        elif time.monotonic() >= self._told + PROGRESS_S:
            self._told = time.monotonic()
            self._post(lambda at: self._updater.progress(canary.progress))

    def _revert(self, reason: Reason, detail: str) -> None:
        """Let the policy before decide again, in this turn of the loop; the disk follows on the thread."""
        agent = self._agent
        assert agent is not None
        if self._former is not None:
            bundle, former = self._former
            agent.decider.exchange(self._controller, former.policy, former.state, former.keep)
            self._take(bundle)
        self._end(reason, detail)

    def _end(self, reason: Reason | None, detail: str) -> None:
        self._canary, self._former, self._window = None, None, Window(self._limits.frames)
        self._jobs.put(lambda at: self._updater.judged(reason, detail, at))

    def _take(self, bundle: Bundle) -> None:
        agent = self._agent
        assert agent is not None
        agent.bundle, self._controller, self._since = bundle, bundle.controller, agent.last_decided
        agent.link.rebirth(describe(bundle, agent.decider.names))

    def _folder(self, bundle: Bundle) -> Path | None:
        return learner_folder(self._keep, self._store, bundle)

    def _publish(self, reported: PolicyReported) -> None:
        assert self._agent is not None
        if reported.status not in ("QUEUED", "IN_PROGRESS"):
            what = f"version {reported.version}: {reported.status} {reported.reason} {reported.detail}"
            log.warning("policy %s", what)
            self._agent.link.event("policy", what.strip())
        self._agent.link.tell(REPORTED, reported, retain=True)

    # ---- the host, on the thread ----

    def say(self, reported: PolicyReported) -> None:
        """Leave a report for the main loop, which publishes it."""
        self._out.put(reported)

    def prepare(self, bundle: Bundle) -> Candidate:
        """Build a bundle's controller as the agent did, and its state for one row."""
        assert self._agent is not None
        options = self._agent.options
        controller = bundle.build(["bundle"], 1, guard=options.guard)
        return Candidate(bundle, controller, controller.init(1, np.random.default_rng(options.seed)))

    def ready(self, candidate: Candidate) -> None:
        """Leave a candidate for the main loop."""
        self._candidates.put(candidate)

    def recent(self) -> Observations:
        """Return what the device has observed of late."""
        assert self._agent is not None
        seen = list(self._agent.decider.recent)
        return np.array(seen, np.float32).reshape(len(seen), obs.SIZE)

    def before(self) -> Rates:
        """Return how the policy that decides has done of late."""
        return self._rates

    # ---- the thread ----

    def _post(self, job: Job) -> None:
        if self._jobs.qsize() < MAX_JOBS:
            self._jobs.put(job)

    def _work(self) -> None:
        """Do one job after another; whatever one raises, the next follows."""
        while True:
            try:
                job: Job | None = self._jobs.get(timeout=TICK_S)
            except queue.Empty:
                job = self._updater.tick
            if job is None:
                return
            try:
                job(time.monotonic())
            except Exception:
                log.exception("a policy update failed; the policy that decides goes on")


def learner_folder(base: Path | None, store: PolicyStore, bundle: Bundle) -> Path | None:
    """Return where a bundle's learner keeps what it learned: the factory bundle's ``base`` itself, others inside it."""
    if base is None or bundle.path.parent != store.slots.folder:
        return base
    return base / bundle.digest[:16]
