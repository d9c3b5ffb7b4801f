"""The device agent: frames in, decisions, messages, outcomes out.

Three kinds of threads meet in one inbox: the network's (messages, connections), the worker's (stages done), the clock.
The main loop hands every event with its time to the pure ``DeviceSession`` and does what that returns.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from adaptsplit.bundle import Bundle
from adaptsplit.device_bridge.actions import (
    Action,
    Beat,
    Decide,
    Encode,
    Look,
    Run,
    Send,
    Settled,
)
from adaptsplit.device_bridge.camera import ShotSource
from adaptsplit.device_bridge.control import State
from adaptsplit.device_bridge.decider import Decider
from adaptsplit.device_bridge.describe import describe, run_header, session_config
from adaptsplit.device_bridge.device_link import DeviceLink, Edges, EdgeSeen, Incoming, Linked, PartMessage, Twin
from adaptsplit.device_bridge.device_options import DeviceOptions
from adaptsplit.device_bridge.flight import Prediction
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.device_bridge.messages import Heartbeat
from adaptsplit.device_bridge.parts import DevicePart, Parts
from adaptsplit.device_bridge.process import new_session
from adaptsplit.device_bridge.rate_limit import for_screens
from adaptsplit.device_bridge.records import Records
from adaptsplit.device_bridge.sensors import as_trained, for_policy
from adaptsplit.device_bridge.session import DeviceSession
from adaptsplit.device_bridge.telemetry import UNKNOWN, Telemetry, TelemetrySource, state_fields
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress, topic_matches
from adaptsplit.device_bridge.worker import Done, Encoded, Failed, Looked, Pacer, Ran, Worker
from adaptsplit.errors import RunError
from adaptsplit.runtime import DeviceRuntime, ModelFolder

log = logging.getLogger("adaptsplit.device")

MAX_INBOX = 4096
START_AFTER_S = 0.05
LONGEST_WAIT_S = 0.25
END_S = 2.0  # how long a device that is stopped waits for the results of what it has sent; as an edge server's drain
STATE_APART_S = 0.1  # AS-030

Inbound: TypeAlias = Incoming | Done


class DeviceAgent:
    """One device for one run; a context manager (entering connects and warms up)."""

    def __init__(
        self,
        bundle: Bundle,
        camera: ShotSource,
        controllers: Sequence[str],
        options: DeviceOptions,
        *,
        block: int = 50,
        telemetry: TelemetrySource | None = None,
        parts: Sequence[DevicePart] = (),
    ) -> None:
        self.options = options
        self.bundle = bundle
        self._block = block
        self.camera = camera
        self.counts: Counter[str] = Counter()
        self._told = for_screens()
        controller = bundle.build(list(controllers), block, guard=options.guard)
        self.decider = Decider(controller, bundle.space, options.seed, options.keep)
        self.log = LiveLog(options.log, options.observations, *options.log_bounds)
        self._records = Records(self.log, self.decider.names[0])
        self.parts = Parts(parts, self.counts)
        self._given = telemetry or Telemetry()
        self.telemetry = for_policy(self._given, bundle.manifest.trained, modelled=options.pace == "profile")
        self.reading = UNKNOWN
        self._broker, self._topics = BrokerAddress.parse(options.broker), DeviceTopics(options.fleet, options.device)
        self._inbox: queue.Queue[tuple[Inbound, float]] = queue.Queue(MAX_INBOX)
        self._id = new_session()
        self.session = DeviceSession(session_config(bundle, self._id, camera.frames), self._grade)
        self._edges = Edges()
        self._link: DeviceLink | None = None
        self._last_decision = ""
        self.last_decided = -1
        self._t0, self._next_state = math.inf, 0.0
        self._stopping = self._draining = False
        self.state_at = -math.inf  # when the last state message left
        stages = bundle.stages if options.pace == "profile" else None
        pacer = Pacer(stages, bundle.space, bundle.context.decision_s, options.seed)
        runtime = DeviceRuntime(ModelFolder.open(bundle.model_path))
        self._worker = Worker(runtime, bundle.space, camera, pacer, self._post)

    def __enter__(self) -> DeviceAgent:
        self._worker.__enter__()
        try:
            self._worker.warm_up()
            self.camera.wait_ready()
            birth = describe(self.bundle, self.decider.names)
            self._link = DeviceLink(self._broker, self._topics, self._id, birth, self._post, self.parts.leaves)
            self._wait_connected(self._link)
            until = time.monotonic() + self.options.edge_wait_s
            while self.session.edge_online is None and time.monotonic() < until:
                self._drain(LONGEST_WAIT_S)
            self.parts.each(lambda part: part.started(self))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.__exit__()
        if self._link is not None:
            self.parts.each(lambda part: part.close())
            self._link.close()
        self.decider.close()
        self.log.__exit__()

    def _wait_connected(self, link: DeviceLink) -> None:
        """Wait for the broker; a service goes on without one, as it would when it went away later."""
        try:
            link.wait_connected(self.options.connect_s)
        except RunError as error:
            if not self.options.service:
                raise
            log.warning("%s; until then this device answers alone", error)

    def stop(self) -> None:
        """End the run soon, from any thread or signal handler: no new frame, END_S at most for those under way."""
        self._stopping = True

    @property
    def link(self) -> DeviceLink:
        """The connections of an entered agent."""
        assert self._link is not None, "enter the agent first"
        return self._link

    # ---- the loop ----

    def run(self, start_at: float | None = None) -> dict[str, Any]:
        """Run every frame, from monotonic time ``start_at`` on; return the summary."""
        self._drain(0.0)
        self._t0 = time.monotonic() + START_AFTER_S if start_at is None else start_at
        frames = math.inf if self.camera.frames is None else self.camera.frames
        until = self._t0 + (frames + 1) / self.bundle.context.fps + self.options.drain_s
        names, pace = self.decider.names, self.options.pace
        self.log.begin(run_header(self.bundle, names, self._block, pace, self.camera, self._given))
        try:
            while not self.session.done and time.monotonic() < until:
                planned = self._t0 + self.session.next_wakeup()
                self._drain(min(max(planned - time.monotonic(), 0.0), LONGEST_WAIT_S))
                self._tick(time.monotonic() - self._t0)
                if self._stopping and not self._draining:
                    until = min(until, self._begin_to_end())
        finally:
            self._do(self.session.finish(time.monotonic() - self._t0))
        return self.summary()

    def _begin_to_end(self) -> float:
        """Take up no more frames, and say so; return until when what is under way may be answered, monotonic s."""
        self._draining = True
        self.session.drain()
        self._next_state = min(self._next_state, self.state_at + STATE_APART_S)
        self._event("draining", f"{self.session.link_state().unacked} messages under way")
        return time.monotonic() + END_S

    def _tick(self, now: float) -> None:
        if now < 0.0:
            return
        self.reading = self.telemetry.read(now)
        self.session.telemetry(*as_trained(self.reading, self.bundle.manifest.trained))
        self._do(self.session.tick(now))
        if self.options.state_s and now >= self._next_state:
            self._next_state = now + self.options.state_s
            if self.link.state(self._state()):
                self.state_at = now
        self.parts.each(lambda part: part.tick(now))

    def _drain(self, timeout_s: float) -> None:
        """Wait for an event at most this long, then take all that have come."""
        try:
            event, at = self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
            while True:
                self._take(event, max(at - self._t0, 0.0))
                event, at = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _take(self, event: Inbound, now: float) -> None:
        session = self.session
        if isinstance(event, Looked):
            self._do(session.looked(event.frame, event.sharpness, event.difference, now))
        elif isinstance(event, Ran):
            self._do(session.ran(event.frame, event.prediction, event.confidence, now))
        elif isinstance(event, Encoded):
            self._do(session.encoded(event.frame, event.container, now))
        elif isinstance(event, Failed):
            self._do(session.failed(event.frame, now))
        elif isinstance(event, Linked):
            self._linked(event, now)
        elif isinstance(event, EdgeSeen):
            self._edge(event, now)
        elif isinstance(event, Twin):
            self.counts["twins"] += 1
            self._event("twin", f"session {event.session} speaks under the same id")
        elif isinstance(event, PartMessage):
            self.parts.each(lambda part: self._to_part(part, event, now))
        elif math.isfinite(self._t0):  # messages from before the start are of no use
            if isinstance(event, Heartbeat) and event.reply and event.session == self._id:
                self.log.beat(event.sent_us * 1e-6, now)
            self._do(session.received(event, now))

    @staticmethod
    def _to_part(part: DevicePart, event: PartMessage, now: float) -> None:
        if any(topic_matches(leaf, event.leaf) for leaf in part.leaves):
            part.message(event.leaf, event.payload, now)

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Look):
                self._worker.put(action, self._t0 + self.session.taken_up_at)
            elif isinstance(action, Run | Encode):
                self._worker.put(action, 0.0)
            elif isinstance(action, Decide):
                self._decide(action)
            elif isinstance(action, Send):
                self.link.send(action.message.to_bytes())
            elif isinstance(action, Beat):
                self.link.beat(action.message.to_bytes())
            else:
                self._settled(action)

    def _decide(self, action: Decide) -> None:
        decision, name = self.decider.decide(action.observation)
        self.last_decided = action.frame
        self._records.decided(action.frame, name, action.observation)
        self._last_decision = self.bundle.space.name((decision.branch, decision.rate, decision.threshold))
        self._do(self.session.decided(action.frame, decision, time.monotonic() - self._t0))
        for switch in self.decider.take_switches():
            self.log.event(action.frame, "guard", f"{name}: {switch.to} ({switch.reason}) {switch.detail}")
            self._event("guard", f"{switch.to} {switch.reason}")

    def _settled(self, action: Settled) -> None:
        outcome = action.outcome
        self.telemetry.spend(float(outcome["compute_j"][0] + outcome["radio_j"][0]))
        self.decider.outcome(outcome)
        name = self._records.settled(action)
        self.parts.each(lambda part: part.settled(name, outcome))

    def _grade(self, frame: int, prediction: Prediction) -> float:
        labels = self.camera.labels(frame)
        if labels is None or labels.shape != prediction.shape or not (known := labels >= 0).any():
            return math.nan
        return float(np.mean(prediction[known] == labels[known]))

    # ---- connections ----

    def _post(self, event: Inbound, at: float) -> None:
        """Put an event into the inbox; messages are dropped (and counted) when it is full, nothing else is."""
        try:
            self._inbox.put_nowait((event, at))
        except queue.Full:
            if isinstance(event, Looked | Ran | Encoded | Failed | Linked):
                self._inbox.put((event, at))
            else:
                self.counts["inbox_full"] += 1

    def _linked(self, event: Linked, now: float) -> None:
        self.counts[f"{event.plane}_{'up' if event.up else 'down'}"] += 1
        if event.plane == "data":
            self._do(self.session.link_changed(event.up, now))
        elif not event.up:
            self._edges.clear()
            self._do(self.session.edge_changed(None, now))
        if event.plane == "control":
            self.parts.each(lambda part: part.linked(event.up, now))
        self._event("link", f"{event.plane} {'up' if event.up else 'down'}")

    def _edge(self, event: EdgeSeen, now: float) -> None:
        counts, new_life = self._edges.seen(event)
        if not counts:
            self.counts["stale_will"] += 1
            return
        if new_life:  # the frames that its former life had not answered are lost
            self._do(self.session.edge_changed(False, now))
        if self._edges.online != self.session.edge_online:
            self._event("edge", "online" if self._edges.online else "offline")
        self._do(self.session.edge_changed(self._edges.online, now))

    def _event(self, kind: str, detail: str) -> None:
        if self._told.allows(kind, time.monotonic()):  # for whoever looks at the screen or the journal
            log.warning("%s %s", kind, detail)
        if self._link is not None:
            self._link.event(kind, detail)

    # ---- reports ----

    def _state(self) -> State:
        link = self.session.link_state()
        paths = {key[5:]: count for key, count in self.session.counts.items() if key.startswith("path_")}
        return State(
            frame=link.frame,
            controller=self._records.last_owner,
            decision=self._last_decision,
            goodput_bps=link.goodput_bps,
            rtt_s=link.rtt_s,
            unacked=link.unacked,
            edge=link.edge,
            paths=paths,
            mode=self.decider.mode,
            edges=self._edges.names,
            draining=self._draining,
            **state_fields(self.reading, self.telemetry.details()),
        )

    def summary(self) -> dict[str, Any]:
        """Return what happened, as plain numbers."""
        return {
            "role": "device",
            "frames": sum(count for name, count in self.session.counts.items() if name.startswith("path_")),
            "session": dict(self.session.counts),
            "device": {**self.counts, **self.link.counts, **({"log_lost": self.log.lost} if self.log.lost else {})},
            "pace": dict(self._worker.pacer.counts),
            "controller": {**self.decider.counts, "slowest_ms": self.decider.slowest_s * 1e3},
            "transport": self.link.transport_counts(),
        }
