"""The device agent: frames in, decisions, messages, outcomes out. ``python -m adaptsplit.device_bridge.device``.

Three kinds of threads meet in one inbox: the network's (messages, connections), the worker's (stages done), the clock.
The main loop hands every event with its time to the pure ``DeviceSession`` and does what that returns.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import queue
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from adaptsplit.bundle import Bundle, load_bundle
from adaptsplit.device_bridge.camera import Camera, flight_order
from adaptsplit.device_bridge.control import Birth, Connection, Data, Event, State, build_control, parse_control
from adaptsplit.device_bridge.decider import Decider
from adaptsplit.device_bridge.flight import Energy, Prediction
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.device_bridge.messages import Message, parse_message
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.process import announce, new_session, run_main
from adaptsplit.device_bridge.session import (
    Action,
    Beat,
    Decide,
    DeviceSession,
    Encode,
    Look,
    Observation,
    Run,
    Send,
    SessionConfig,
    Settled,
)
from adaptsplit.device_bridge.telemetry import Telemetry
from adaptsplit.device_bridge.topics import DeviceTopics, edge_of
from adaptsplit.device_bridge.transport import BrokerAddress, Will
from adaptsplit.device_bridge.worker import Done, Encoded, Failed, Looked, Pacer, Ran, Worker
from adaptsplit.errors import ConfigError, MessageError, RunError
from adaptsplit.frames import open_frames
from adaptsplit.observation import schema_hash
from adaptsplit.runtime import DeviceRuntime, ModelFolder

log = logging.getLogger("adaptsplit.device")

SEND_BUFFER_BYTES = 16 * 1024
MAX_INBOX = 4096
PACES = ("profile", "native")


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How a device runs. ``state_s`` is the period of the state topic (0: off)."""

    broker: str = "mqtt://127.0.0.1:1883"
    fleet: str = "default"
    device: str = "device-1"
    pace: str = "profile"
    seed: int = 0
    state_s: float = 5.0
    edge_wait_s: float = 10.0
    drain_s: float = 10.0
    log: Path | None = None
    observations: bool = False


@dataclass(frozen=True, slots=True)
class _Linked:
    plane: str
    up: bool


@dataclass(frozen=True, slots=True)
class _EdgeState:
    edge: str
    session: str
    state: str


Incoming: TypeAlias = Message | Done | _Linked | _EdgeState


class DeviceAgent:
    """One device for one run; a context manager (entering connects and warms up)."""

    def __init__(
        self,
        bundle: Bundle,
        camera: Camera,
        controllers: Sequence[str],
        options: DeviceOptions,
        *,
        block: int = 50,
        telemetry: Telemetry | None = None,
    ) -> None:
        if options.pace not in PACES:
            raise ConfigError(f"pace {options.pace!r}; expected one of {', '.join(PACES)}")
        self.options = options
        self.bundle = bundle
        self.camera = camera
        self.counts: Counter[str] = Counter()
        self.decider = Decider(bundle.build(list(controllers), block), bundle.space, options.seed)
        self._telemetry = telemetry or Telemetry()
        self._topics = DeviceTopics(options.fleet, options.device)
        self._inbox: queue.Queue[tuple[Incoming, float]] = queue.Queue(MAX_INBOX)
        self._id = new_session()
        self._sequence = 0
        self._edges: dict[str, tuple[str, str]] = {}
        self._owner: dict[int, tuple[str, Observation]] = {}
        self._last_owner = self.decider.names[0]
        self._last_decision = ""
        self._t0 = math.inf
        self._next_state = 0.0
        context = bundle.context
        stages = bundle.stages if options.pace == "profile" else None
        pacer = Pacer(stages, bundle.space, context.decision_s, options.seed)
        runtime = DeviceRuntime(ModelFolder.open(bundle.model_path))
        self._worker = Worker(runtime, bundle.space, camera, pacer, self._post)
        self.session = DeviceSession(self._config(), self._grade)
        self.log = LiveLog(options.log, options.observations)

    def _config(self) -> SessionConfig:
        c = self.bundle.context
        return SessionConfig(
            session=self._id,
            space=self.bundle.space,
            fps=c.fps,
            deadline_s=c.deadline_s,
            window=c.window,
            frames=len(self.camera.order),
            prior_bps=c.goodput_bps,
            prior_rtt_s=c.rtt_s,
            prior_server_s=c.server_s,
            energy=Energy(c.compute_w, c.radio_w, c.radio_j_per_bit),
        )

    def __enter__(self) -> DeviceAgent:
        broker, topics = BrokerAddress.parse(self.options.broker), self._topics
        unique = f"{self.options.device}-{self._id.hex()[:8]}"
        self._data = MqttTransport(
            broker,
            f"{unique}-data",
            [topics.leaf("down")],
            self._on_message,
            lambda up: self._post(_Linked("data", up), time.monotonic()),
            send_buffer=SEND_BUFFER_BYTES,
        )
        self._control = MqttTransport(
            broker,
            f"{unique}-control",
            [topics.leaf("heartbeat/reply"), topics.edges],
            self._on_message,
            self._on_control_link,
            will=Will(topics.leaf("connection"), self._envelope(Connection(state="CONNECTION_BROKEN"))),
            qos=1,
        )
        self._worker.__enter__()
        self._prepare()
        return self

    def _prepare(self) -> None:
        """Warm up, connect, and wait for an edge server (for a while: the device can do without)."""
        self._worker.warm_up()
        self.camera.wait_ready()
        self._data.wait_connected(15.0)
        self._control.wait_connected(15.0)
        until = time.monotonic() + self.options.edge_wait_s
        while self.session.edge_online is None and time.monotonic() < until:
            self._drain(0.05, before_start=True)

    def __exit__(self, *exception: object) -> None:
        self._worker.__exit__()
        self._control.publish(
            self._topics.leaf("connection"), self._envelope(Connection(state="OFFLINE")), qos=1, retain=True
        )
        self._data.close()
        self._control.close()
        self.log.__exit__()

    # ---- the loop ----

    def run(self, start_at: float | None = None) -> dict[str, Any]:
        """Run every frame, from monotonic time ``start_at`` on; return the summary."""
        self._t0 = time.monotonic() + 0.05 if start_at is None else start_at
        last = self._t0 + (len(self.camera.order) + 1) / self.bundle.context.fps
        try:
            while not self.session.done and time.monotonic() < last + self.options.drain_s:
                now = time.monotonic()
                planned = min(self.session.next_wakeup(), 1e9) + self._t0
                self._drain(min(max(planned - now, 0.0), 0.25))
                self._tick()
        finally:
            self._do(self.session.finish(time.monotonic() - self._t0))
        return self.summary()

    def _tick(self) -> None:
        now = time.monotonic() - self._t0
        if now < 0.0:
            return
        self.session.telemetry(*self._telemetry.read(now))
        self._do(self.session.tick(now))
        if self.options.state_s and now >= self._next_state:
            self._next_state = now + self.options.state_s
            self._control.publish_latest(self._topics.leaf("state"), self._envelope(self._state()))

    def _drain(self, timeout_s: float, *, before_start: bool = False) -> None:
        """Wait for an event at most this long, then take all that have come."""
        try:
            event, at = self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
            while True:
                if not before_start or isinstance(event, _Linked | _EdgeState):
                    self._take(event, max(at - self._t0, 0.0) if math.isfinite(self._t0) else 0.0)
                event, at = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _take(self, event: Incoming, now: float) -> None:
        session = self.session
        if isinstance(event, Looked):
            self._do(session.looked(event.frame, event.sharpness, event.difference, now))
        elif isinstance(event, Ran):
            self._do(session.ran(event.frame, event.prediction, event.confidence, now))
        elif isinstance(event, Encoded):
            self._do(session.encoded(event.frame, event.container, now))
        elif isinstance(event, Failed):
            self._do(session.failed(event.frame, now))
        elif isinstance(event, _Linked):
            self._link(event, now)
        elif isinstance(event, _EdgeState):
            self._edge(event, now)
        else:
            self._do(session.received(event, now))

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Look | Run | Encode):
                self._worker.put(action, self._t0 + self._taken_up() if isinstance(action, Look) else 0.0)
            elif isinstance(action, Decide):
                self._decide(action)
            elif isinstance(action, Send):
                payload = action.message.to_bytes()
                self.counts["sent_wire_bytes"] += len(payload)
                if not self._data.publish(self._topics.leaf("up"), payload):
                    self.counts["publish_failed"] += 1
            elif isinstance(action, Beat):
                self._control.publish_latest(self._topics.leaf("heartbeat"), action.message.to_bytes())
            else:
                self._settled(action)

    def _taken_up(self) -> float:
        at_work = self.session.taken_up_at
        return time.monotonic() - self._t0 if math.isnan(at_work) else at_work

    def _decide(self, action: Decide) -> None:
        decision, name = self.decider.decide(action.observation)
        self._owner[action.frame] = name, action.observation
        self._last_decision = self.bundle.space.name((decision.branch, decision.rate, decision.threshold))
        self._do(self.session.decided(action.frame, decision, time.monotonic() - self._t0))

    def _settled(self, action: Settled) -> None:
        """Log a record; a frame that nobody decided on belongs to the controller that decided before."""
        outcome = action.outcome
        if math.isnan(float(outcome["decided_s"][0])):
            name, observation = self._owner_before(action.frame), None
        else:
            name, observation = self._owner.get(action.frame, (self._last_owner, None))
        self._last_owner = name
        self._telemetry.spend(float(outcome["compute_j"][0] + outcome["radio_j"][0]))
        self.decider.outcome(outcome)
        self.log.add(name, outcome, None if observation is None else [float(v) for v in observation])

    def _owner_before(self, frame: int) -> str:
        decided = [number for number in self._owner if number < frame]
        return self._owner[max(decided)][0] if decided else self.decider.names[0]

    def _grade(self, frame: int, prediction: Prediction) -> float:
        labels = self.camera.labels(frame)
        if labels is None or labels.shape != prediction.shape or not (known := labels >= 0).any():
            return math.nan
        return float(np.mean(prediction[known] == labels[known]))

    # ---- connections ----

    def _post(self, event: Incoming, at: float) -> None:
        try:
            self._inbox.put_nowait((event, at))
        except queue.Full:
            if not isinstance(event, Looked | Ran | Encoded | Failed | _Linked):
                self.counts["inbox_full"] += 1
                return
            self._inbox.put((event, at))

    def _on_message(self, topic: str, payload: bytes) -> None:
        at = time.monotonic()
        try:
            self._post(self._parse(topic, payload), at)
        except MessageError as error:
            self.counts["malformed"] += 1
            log.info("%s: %s", topic, error)

    def _parse(self, topic: str, payload: bytes) -> Incoming:
        if topic in (self._topics.leaf("down"), self._topics.leaf("heartbeat/reply")):
            return parse_message(payload)
        edge = edge_of(topic, self.options.fleet)
        envelope, content = parse_control(payload)
        if not isinstance(content, Connection):
            raise MessageError(f"{envelope.schema_} on a connection topic")
        return _EdgeState(edge, envelope.session, content.state)

    def _on_control_link(self, up: bool) -> None:
        if up:
            for leaf, content in (("connection", Connection(state="ONLINE")), ("birth", self._birth())):
                self._control.publish(self._topics.leaf(leaf), self._envelope(content), qos=1, retain=True)
        self._post(_Linked("control", up), time.monotonic())

    def _link(self, event: _Linked, now: float) -> None:
        self.counts[f"{event.plane}_{'up' if event.up else 'down'}"] += 1
        if event.plane == "data":
            self._do(self.session.link_changed(event.up, now))
        elif not event.up:
            self._edges.clear()
            self.session.edge_online = None
        self._event("link", f"{event.plane} {'up' if event.up else 'down'}")

    def _edge(self, event: _EdgeState, now: float) -> None:
        """Follow the edges' connection topics; a last will counts only if it is of the life that is ONLINE."""
        alive = self._edges.get(event.edge, (event.session, ""))[0]
        if event.state == "CONNECTION_BROKEN" and alive != event.session:
            self.counts["stale_will"] += 1
            return
        self._edges[event.edge] = event.session, event.state
        online = any(state == "ONLINE" for _, state in self._edges.values())
        if online != self.session.edge_online:
            self._event("edge", "online" if online else "offline")
        self._do(self.session.edge_changed(online, now))

    # ---- control messages ----

    def _envelope(self, data: Data) -> bytes:
        self._sequence += 1
        now = time.time(), time.monotonic()
        return build_control(data, seq=self._sequence, session=self._id, ts_ms=int(now[0] * 1e3), mono_ms=now[1] * 1e3)

    def _event(self, kind: str, detail: str) -> None:
        self._control.publish(self._topics.leaf("event"), self._envelope(Event(kind=kind, detail=detail)), qos=1)

    def _birth(self) -> Birth:
        bundle, context = self.bundle, self.bundle.context
        return Birth(
            library=bundle.manifest.library,
            bundle=bundle.digest,
            controllers=self.decider.names[:64],
            observation=schema_hash(),
            branches=[branch.name for branch in bundle.space.branches],
            classes=list(bundle.classes),
            fps=context.fps,
            deadline_s=context.deadline_s,
            window=context.window,
        )

    def _state(self) -> State:
        link = self.session.link_state()
        paths = {key[5:]: count for key, count in self.session.counts.items() if key.startswith("path_")}
        return State(
            frame=link.frame,
            controller=self._last_owner,
            decision=self._last_decision,
            goodput_bps=link.goodput_bps,
            rtt_s=link.rtt_s,
            unacked=link.unacked,
            edge=link.edge,
            paths=paths,
        )

    def summary(self) -> dict[str, Any]:
        """Return what happened, as plain numbers."""
        return {
            "role": "device",
            "frames": sum(len(rows) for rows in self.log.outcomes().values()),
            "session": dict(self.session.counts),
            "device": dict(self.counts),
            "pace": dict(self._worker.pacer.counts),
            "controller": {**self.decider.counts, "slowest_ms": self.decider.slowest_s * 1e3},
            "transport": {"data": dict(self._data.counts), "control": dict(self._control.counts)},
        }


Barrier = Callable[[], float | None]


def run_device(
    bundle: Bundle,
    frames: str,
    controllers: Sequence[str],
    options: DeviceOptions,
    *,
    split: str = "test",
    data: Path | None = None,
    frames_seed: int = 0,
    first: int = 0,
    count: int = 300,
    block: int = 50,
    telemetry: Telemetry | None = None,
    barrier: Barrier = lambda: None,
) -> tuple[dict[str, Any], LiveLog]:
    """Run a device over ``count`` frames of a source; ``barrier`` is called when it is ready and may set the start."""
    source = open_frames(frames, split=split, seed=frames_seed, data=data)
    order = flight_order(source, first, count)
    with (
        Camera(source, order) as camera,
        DeviceAgent(bundle, camera, controllers, options, block=block, telemetry=telemetry) as agent,
    ):
        return agent.run(barrier()), agent.log


def _barrier_by_pipe() -> float:
    """Tell the parent that we are ready, and read from it when to start."""
    announce({"ready": True, "role": "device"})
    line = sys.stdin.readline()
    if not line:
        raise RunError("the parent process ended before the start")
    return float(json.loads(line)["start"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adaptsplit device", description="run a device of a bundle")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--broker", default="mqtt://127.0.0.1:1883")
    parser.add_argument("--frames", default="flight")
    parser.add_argument("--split", default="test")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames-seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--controller", default="bundle", help="one or more, with commas between: interleaved")
    parser.add_argument("--block", type=int, default=50)
    parser.add_argument("--pace", choices=PACES, default="profile")
    parser.add_argument("--id", default="device-1")
    parser.add_argument("--fleet", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--observations", action="store_true")
    parser.add_argument("--state-s", type=float, default=5.0)
    parser.add_argument("--telemetry", type=Path, help="JSON file of a modelled battery and signal")
    parser.add_argument("--barrier", action="store_true", help="wait for the start time on standard input")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; prints the summary as one JSON line at its end."""
    o = _parser().parse_args(arguments)

    def body() -> None:
        options = DeviceOptions(
            o.broker, o.fleet, o.id, o.pace, o.seed, o.state_s, log=o.log, observations=o.observations
        )
        summary, _ = run_device(
            load_bundle(o.bundle),
            o.frames,
            [name.strip() for name in o.controller.split(",")],
            options,
            split=o.split,
            data=o.data,
            frames_seed=o.frames_seed,
            first=o.first,
            count=o.count,
            block=o.block,
            telemetry=None if o.telemetry is None else Telemetry.load(o.telemetry),
            barrier=_barrier_by_pipe if o.barrier else lambda: None,
        )
        print(json.dumps(summary), flush=True)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
