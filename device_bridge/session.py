"""The device's session: a pure state machine of events with their time, which returns what is to be done.

    frames (by the clock) -> Look -> looked() -> Decide -> decided() -> Run -> ran() -> Encode -> encoded() -> Send
    messages from the edge -> received();  the clock -> tick();  connections -> link_changed(), edge_changed()

Times are seconds since frame 0 on the device's monotonic clock; frame k arrives at k / fps. The rules are those of the
simulator (``docs/simulator.md``): the device takes the freshest frame when it is free, overtaken frames are misses; at
most ``window`` messages are unacknowledged and one frame waits in the slot; when the window opens it is sent if its
predicted result meets the deadline, else its exit answers; at the deadline the exit answers for whatever has not come
back. Every frame ends in exactly one ``Settled`` action. ``may_send`` and the tracker are ``adaptsplit.estimators``,
the very functions that the simulator compiles.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.decision import Decision, DecisionSpace
from adaptsplit.device_bridge.flight import NO_ENERGY, Energy, Flight, Prediction
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Heartbeat, Message, Result, Status
from adaptsplit.observation import SIZE, normalise, observe
from adaptsplit.outcome import Outcomes, Path

Observation = NDArray[np.float32]
Grader = Callable[[int, Prediction], float]


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Constants of a session. ``frames`` None runs until ``finish``; the three priors hold before anything was heard.

    A message unacknowledged for ``lost_after_s`` no longer counts against the window; a result may come until
    ``give_up_s`` after the deadline, then it counts as never.
    """

    session: bytes
    space: DecisionSpace
    fps: float
    deadline_s: float
    window: int = 2
    frames: int | None = None
    prior_bps: float = 1e6
    prior_rtt_s: float = 0.05
    prior_server_s: float = 0.02
    energy: Energy = NO_ENERGY
    lost_after_s: float = 10.0
    give_up_s: float = 10.0


@dataclass(frozen=True, slots=True)
class LinkState:
    """What the device believes of its link; ``edge`` is online, offline or unknown."""

    frame: int
    goodput_bps: float
    rtt_s: float
    unacked: int
    edge: Literal["online", "offline", "unknown"]


@dataclass(frozen=True, slots=True)
class Look:
    """Compute the content signals of a frame, then call ``looked``."""

    frame: int


@dataclass(frozen=True, slots=True)
class Decide:
    """Ask the controller, then call ``decided``. ``observation`` is (D,) float32."""

    frame: int
    observation: Observation


@dataclass(frozen=True, slots=True)
class Run:
    """Run head and exit (or the full model of a local branch), then call ``ran``."""

    frame: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode the features or the image, then call ``encoded``."""

    frame: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Send:
    """Publish on the data plane."""

    message: FrameMessage


@dataclass(frozen=True, slots=True)
class Beat:
    """Publish on the control connection."""

    message: Heartbeat


@dataclass(frozen=True, slots=True)
class Settled:
    """A frame has ended; ``outcome`` is one record."""

    frame: int
    outcome: Outcomes


Action: TypeAlias = Look | Decide | Run | Encode | Send | Beat | Settled


class DeviceSession:
    """See the module's text. Every method takes the time of its event and returns the actions to be done, in order."""

    def __init__(self, config: SessionConfig, grade: Grader) -> None:
        self.config = config
        self.tracker: NDArray[np.float64] = np.zeros(est.TRACKER_SIZE)
        est.start(self.tracker, config.prior_bps, config.prior_rtt_s, config.prior_server_s)
        self.counts: Counter[str] = Counter()
        self.link_up = True
        self.edge_online: bool | None = None
        self._grade = grade
        self._actions: list[Action] = []
        self._frame = 0  # the frame at hand, or the next one
        self._at_work: Flight | None = None
        self._slot: Flight | None = None
        self._unacked: OrderedDict[int, Flight] = OrderedDict()
        self._awaiting: OrderedDict[int, Flight] = OrderedDict()
        self._sequence = 0
        self._beats: OrderedDict[int, float] = OrderedDict()
        self._beat_sequence = 0
        self._next_beat = 0.0
        self._last_branch = -1

    # ---- what the agent may ask ----

    @property
    def done(self) -> bool:
        """Whether every frame has ended in its record."""
        last = self.config.frames is not None and self._frame >= self.config.frames
        return last and self._at_work is None and self._slot is None and not self._awaiting

    @property
    def reachable(self) -> bool:
        """Whether a message has any chance of being answered."""
        return self.link_up and self.edge_online is not False

    @property
    def taken_up_at(self) -> float:
        """When the frame at work was taken up (NaN: none is)."""
        return math.nan if self._at_work is None else self._at_work.decided

    def link_state(self) -> LinkState:
        """Return what the device believes of its link."""
        x = self.tracker
        edge: Literal["online", "offline", "unknown"]
        edge = "unknown" if self.edge_online is None else "online" if self.edge_online else "offline"
        return LinkState(self._frame, float(x[est.GOODPUT]), float(x[est.RTT]), len(self._unacked), edge)

    def next_wakeup(self) -> float:
        """Return when ``tick`` has something to do next (infinity: nothing is planned)."""
        times = [self._next_beat]
        if self._slot is not None:
            times.append(self._slot.deadline)
        times += [self._due(flight) for flight in self._awaiting.values()]
        times += [flight.sent_at + self.config.lost_after_s for flight in self._unacked.values()]
        if self._at_work is None and not self._ended():
            times.append(self._frame / self.config.fps)
        return min(times)

    def telemetry(self, battery: float, load: float, temperature: float, signal: float) -> None:
        """Set what the device measures of itself (fraction, 0..1, degrees Celsius, dBm; NaN: unknown)."""
        x = self.tracker
        x[est.BATTERY], x[est.LOAD], x[est.TEMPERATURE], x[est.SIGNAL] = battery, load, temperature, signal

    # ---- events of the clock and of the connections ----

    def tick(self, now: float) -> list[Action]:
        """Deadlines, lost messages, heartbeats, and the next frame when the device is free."""
        if self._slot is not None and self._slot.deadline <= now:
            self._pass_over(self._slot.deadline)
        for flight in list(self._awaiting.values()):
            self._expire(flight, now)
        for flight in list(self._unacked.values()):
            if flight.sent_at + self.config.lost_after_s <= now:
                self.counts["unacknowledged_lost"] += 1
                self._forget(flight, now)
        if now >= self._next_beat:
            self._beat(now)
        if self._at_work is None and not self._ended() and now >= self._frame / self.config.fps:
            self._take_up(now)
        return self._flush()

    def link_changed(self, up: bool, now: float) -> list[Action]:
        """The data connection came or went; what was under way on it is lost."""
        self.link_up = up
        self._abandon(now)
        return self._flush()

    def edge_changed(self, online: bool, now: float) -> list[Action]:
        """The edge server came or went; what it had not answered is lost."""
        if online != self.edge_online:
            self.counts["edge_online" if online else "edge_offline"] += 1
            self.edge_online = online
            if not online:
                self._abandon(now)
        return self._flush()

    def finish(self, now: float) -> list[Action]:
        """End the session: whatever is still open gets its record (a frame at work is a miss)."""
        if self._at_work is not None:
            self._fail(self._at_work, now)
        while not self._ended() and self._frame / self.config.fps <= now and self.config.frames is not None:
            arrived = self._frame / self.config.fps
            self._miss(Flight(self._frame, arrived, arrived + self.config.deadline_s), now)
            self._frame += 1
        if self._slot is not None:
            self._pass_over(now)
        for flight in list(self._awaiting.values()):
            flight.lost = True
            self._expire(flight, max(now, flight.deadline))
        return self._flush()

    # ---- events of the device's own work ----

    def looked(self, frame: int, sharpness: float, difference: float, now: float) -> list[Action]:
        """The content signals of the frame at work are known: ask for a decision."""
        flight = self._working(frame)
        raw, out = np.zeros(SIZE), np.zeros(SIZE, dtype=np.float32)
        wait, waiting = flight.decided - flight.arrived, float(self._slot is not None)
        observe(self.tracker, now, wait, waiting, sharpness, difference, raw)
        normalise(raw, out)
        self._actions.append(Decide(frame, out))
        return self._flush()

    def decided(self, frame: int, decision: Decision, now: float) -> list[Action]:
        """The controller has decided; ``decision`` must be canonical."""
        flight, space = self._working(frame), self.config.space
        flight.decision, flight.threshold = decision, space.thresholds[decision.threshold]
        flight.switched = self._last_branch not in (-1, decision.branch)
        self._last_branch = decision.branch
        sizes = space.shape[0] - 1, space.shape[1] - 1
        scaled = decision.branch / max(sizes[0], 1), decision.rate / max(sizes[1], 1)
        est.on_decision(self.tracker, *scaled, min(flight.threshold, 1.0))
        self._actions.append(Run(frame, decision))
        return self._flush()

    def ran(self, frame: int, prediction: Prediction, confidence: float, now: float) -> list[Action]:
        """The exit (or the local model) has answered."""
        flight = self._working(frame)
        assert flight.decision is not None
        flight.exit_prediction, flight.exit_confidence, flight.exit_at = prediction, confidence, now
        est.on_exit(self.tracker, confidence)
        local = self.config.space.branches[flight.decision.branch].kind == "local"
        if local or (flight.threshold <= 1.0 and confidence >= flight.threshold):
            flight.free_at = now
            self._settle_exit(flight, Path.LOCAL if local else Path.EXIT, now)
            self._emit(flight, now)
            self._freed(now)
        else:
            self._actions.append(Encode(frame, flight.decision))
        return self._flush()

    def encoded(self, frame: int, container: bytes, now: float) -> list[Action]:
        """The container is ready: hand it to the sender; the device is free."""
        flight = self._working(frame)
        flight.container, flight.free_at = container, now
        flight.wire_bytes = len(container) + est.OVERHEAD_BYTES
        if self._slot is not None:
            self._pass_over(now)
        self._slot = flight
        if now > flight.deadline:
            self._pass_over(now)
        else:
            self._serve_slot(now)
        self._freed(now)
        return self._flush()

    def failed(self, frame: int, now: float) -> list[Action]:
        """A stage of the device's own work failed: the exit answers if it had run, else the frame is a miss."""
        self.counts["stage_failed"] += 1
        self._fail(self._working(frame), now)
        return self._flush()

    # ---- messages from the edge ----

    def received(self, message: Message, now: float) -> list[Action]:
        """A message came from the edge; what is not for this session, repeated or unknown is counted and ignored."""
        if message.session != self.config.session:
            self.counts["foreign_session"] += 1
        elif isinstance(message, Ack):
            self._acknowledged(message, now)
        elif isinstance(message, Result):
            self._answered(message, now)
        elif isinstance(message, Heartbeat) and message.reply:
            self._beaten(message, now)
        else:
            self.counts["unexpected_message"] += 1
        return self._flush()

    def _acknowledged(self, ack: Ack, now: float) -> None:
        flight = self._unacked.get(ack.sequence)
        if flight is None or flight.frame != ack.frame:
            self.counts["stale_ack"] += 1
            return
        while next(iter(self._unacked)) != ack.sequence:  # TCP keeps order: what stands before it never arrived
            self.counts["skipped_ack"] += 1
            self._forget(next(iter(self._unacked.values())), now)
        x = self.tracker
        begin = max(flight.sent_at, x[est.LAST_ACK_AT] - x[est.RTT_BASE])
        flight.service_s = max(now - x[est.RTT_BASE] - begin, 8.0 * flight.wire_bytes / est.MAX_GOODPUT)
        del self._unacked[ack.sequence]
        est.on_ack(x, now, flight.sent_at, flight.wire_bytes, self._oldest_sent(now))
        self._serve_slot(now)

    def _answered(self, result: Result, now: float) -> None:
        flight = self._awaiting.get(result.sequence)
        if flight is None or flight.frame != result.frame:
            self.counts["stale_result"] += 1
            return
        if flight.sequence in self._unacked:  # its acknowledgement was lost
            self._forget(flight, now)
        if result.status != Status.DONE or len(result.prediction) != len(flight.exit_prediction):
            self.counts[f"result_{result.status.name.lower()}" if result.status else "result_misfit"] += 1
            self.tracker[est.HEARD_AT] = now
            flight.lost = True
            self._expire(flight, now)
            return
        prediction = np.frombuffer(result.prediction, dtype=np.uint8)
        flight.agreement = float(np.mean(prediction == flight.exit_prediction))
        flight.result_at = now
        est.on_result(self.tracker, now, flight.agreement, result.residence_s, result.queue_s)
        if now > flight.deadline:
            self._expire(flight, now)
            self.counts["late_result"] += 1
        elif not flight.settled:
            flight.settle(Path.REMOTE, now, self._grade(flight.frame, prediction), result.confidence)
            est.on_settled(self.tracker, 0.0, 0.0)
        del self._awaiting[flight.sequence]
        self._emit(flight, now)

    def _beaten(self, beat: Heartbeat, now: float) -> None:
        sent_at = self._beats.get(beat.sequence)
        if sent_at is None:
            self.counts["stale_heartbeat"] += 1
            return
        while next(iter(self._beats)) != beat.sequence:
            self._beats.popitem(last=False)
        del self._beats[beat.sequence]
        est.on_heartbeat(self.tracker, now, sent_at)

    # ---- the device ----

    def _ended(self) -> bool:
        return self.config.frames is not None and self._frame >= self.config.frames

    def _take_up(self, now: float) -> None:
        arrived = self._frame / self.config.fps
        flight = Flight(self._frame, arrived, arrived + self.config.deadline_s)
        flight.decided = now
        self._at_work = flight
        self._actions.append(Look(flight.frame))

    def _working(self, frame: int) -> Flight:
        if self._at_work is None or self._at_work.frame != frame:
            raise ValueError(f"frame {frame} is not at work")
        return self._at_work

    def _freed(self, free: float) -> None:
        """Go to the freshest frame; what was overtaken or has waited past its deadline is a miss."""
        self._at_work = None
        c, frame = self.config, self._frame
        end = math.inf if c.frames is None else c.frames
        freshest = max(frame + 1, int(min(math.floor(free * c.fps + 1e-9), end)))
        if freshest < end and free - freshest / c.fps > c.deadline_s:
            freshest += 1
        for skipped in range(frame + 1, freshest):
            arrived = skipped / c.fps
            self.counts["overtaken"] += 1
            self._miss(Flight(skipped, arrived, arrived + c.deadline_s), free)
        self._frame = freshest

    def _fail(self, flight: Flight, now: float) -> None:
        flight.free_at = now
        if math.isfinite(flight.exit_at):
            self._settle_exit(flight, Path.FALLBACK_PASSED, now)
        else:
            self._settle_miss(flight)
        self._emit(flight, now)
        self._freed(now)

    def _miss(self, flight: Flight, now: float) -> None:
        if math.isnan(flight.free_at):
            flight.free_at = now
        self._settle_miss(flight)
        self._emit(flight, now)

    def _settle_miss(self, flight: Flight) -> None:
        flight.miss()
        est.on_settled(self.tracker, 1.0, 0.0)

    def _settle_exit(self, flight: Flight, path: Path, answered: float) -> None:
        """The exit's answer counts, unless it (or the moment of answering) is late."""
        if max(answered, flight.exit_at) > flight.deadline:
            self._settle_miss(flight)
            return
        flight.settle(path, answered, self._grade(flight.frame, flight.exit_prediction), flight.exit_confidence)
        fallback = path in (Path.FALLBACK_LATE, Path.FALLBACK_PASSED)
        est.on_settled(self.tracker, 0.0, 1.0 if fallback else 0.0)

    # ---- the sender ----

    def _serve_slot(self, now: float) -> None:
        """Send the frame in the slot, or pass it over, if the window is open."""
        flight = self._slot
        if flight is None or (self.reachable and len(self._unacked) >= self.config.window):
            return
        if self.reachable and est.may_send(self.tracker, now, flight.wire_bytes, flight.deadline):
            self._slot = None
            self._send(flight, now)
        else:
            self._pass_over(now)

    def _send(self, flight: Flight, now: float) -> None:
        assert flight.decision is not None
        flight.sequence, flight.sent_at = self._sequence, now
        self._sequence += 1
        budget = max(round((flight.deadline - now) * 1e6), 0)
        head = (self.config.session, flight.sequence, flight.frame, flight.decision.branch, flight.decision.rate)
        est.on_sent(self.tracker, now, flight.wire_bytes)
        self.tracker[est.LAST_SENT] = 1.0
        self._unacked[flight.sequence] = self._awaiting[flight.sequence] = flight
        self._actions.append(Send(FrameMessage(*head, max(round(now * 1e6), 0), budget, flight.container)))

    def _pass_over(self, now: float) -> None:
        """The frame in the slot will not be sent: its exit answers at once."""
        flight, self._slot = self._slot, None
        assert flight is not None
        self._settle_exit(flight, Path.FALLBACK_PASSED, now)
        self._emit(flight, now)

    def _forget(self, flight: Flight, now: float) -> None:
        """Take an unacknowledged message out of the window without a sample."""
        if self._unacked.pop(flight.sequence, None) is None:
            return
        x = self.tracker
        x[est.UNACKED_COUNT] = max(x[est.UNACKED_COUNT] - 1.0, 0.0)
        x[est.UNACKED_BYTES] = max(x[est.UNACKED_BYTES] - flight.wire_bytes, 0.0)
        x[est.OLDEST_SENT_AT] = self._oldest_sent(now)
        self._serve_slot(now)

    def _oldest_sent(self, now: float) -> float:
        return next(iter(self._unacked.values())).sent_at if self._unacked else now

    def _abandon(self, now: float) -> None:
        """Nothing that is under way will be answered: empty the window; the exits answer at the deadlines."""
        if self._slot is not None and not self.reachable:
            self._pass_over(now)
        for flight in list(self._unacked.values()):
            self._forget(flight, now)
        for flight in list(self._awaiting.values()):
            flight.lost = True
            self._expire(flight, now)

    def _due(self, flight: Flight) -> float:
        """When something happens to a frame whose result is awaited: its deadline, then the end of patience."""
        return flight.deadline if not flight.settled else flight.deadline + self.config.give_up_s

    def _expire(self, flight: Flight, now: float) -> None:
        """Fallback at the deadline; the record follows when the result is known to be lost or patience ends."""
        if not flight.settled and now >= flight.deadline:
            self._settle_exit(flight, Path.FALLBACK_LATE, flight.deadline)
        given_up = flight.lost or now >= flight.deadline + self.config.give_up_s
        if flight.settled and given_up and flight.result_at == math.inf:
            self.counts["never_answered"] += 1
            del self._awaiting[flight.sequence]
            self._emit(flight, now)

    # ---- heartbeats and records ----

    def _beat(self, now: float) -> None:
        beat = Heartbeat(self.config.session, self._beat_sequence, max(round(now * 1e6), 0))
        self._beats[beat.sequence] = now
        while len(self._beats) > 32:
            self._beats.popitem(last=False)
        self._beat_sequence += 1
        self._next_beat += est.HEARTBEAT_PERIOD_S * max(1, math.ceil((now - self._next_beat) / est.HEARTBEAT_PERIOD_S))
        self._actions.append(Beat(beat))

    def _emit(self, flight: Flight, now: float) -> None:
        flight.known = now if not flight.lost else max(flight.deadline, flight.decided)
        assert flight.path is not None
        self.counts[f"path_{flight.path.name.lower()}"] += 1
        outcome = flight.record(self.config.energy, float(self.tracker[est.GOODPUT]))
        self._actions.append(Settled(flight.frame, outcome))

    def _flush(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
