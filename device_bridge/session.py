"""The device's session: a pure state machine of events with their time, which returns what is to be done.

    frames (by the clock) -> Look -> looked() -> Decide -> decided() -> Run -> ran() -> Encode -> encoded() -> Send
                                                           (skip: answered at once, with the answer that is held)
    messages from the edge -> received();  the clock -> tick();  connections -> link_changed(), edge_changed()

Times are seconds since frame 0 on the device's monotonic clock; frame k arrives at k / fps. The rules are those of the
simulator (``docs/simulator.md``): the device takes the freshest frame when it is free, overtaken frames are misses; at
most ``window`` messages are unacknowledged and one frame waits in the slot; when the window opens it is sent if its
predicted result comes within the frame's patience, else its exit answers; when the patience ends (at the latest at the
deadline, but never before the exit has run) the exit answers for whatever has not come back. The answer of the newest
frame that has one is held; a skipped frame is answered with it. Every frame ends in exactly one ``Settled`` action.
``may_send`` and the tracker are ``adaptsplit.estimators``, the very functions that the simulator compiles; a test runs
both on the same world and compares every record.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.decision import Decision
from adaptsplit.device_bridge.actions import (
    Action,
    Beat,
    Decide,
    Encode,
    Grader,
    LinkState,
    Look,
    Run,
    SessionConfig,
)
from adaptsplit.device_bridge.flight import Flight, Prediction
from adaptsplit.device_bridge.ledger import Ledger
from adaptsplit.device_bridge.messages import Ack, Heartbeat, Message, Result
from adaptsplit.device_bridge.sender import Sender
from adaptsplit.observation import observation_row
from adaptsplit.outcome import Path

KEPT_BEATS = 32


class DeviceSession:
    """See the module's text. Every method takes the time of its event and returns the actions to be done, in order."""

    def __init__(self, config: SessionConfig, grade: Grader) -> None:
        self.config = config
        self._ledger = Ledger(config, grade)
        self._sender = Sender(self._ledger)
        self._frame = 0  # the frame at hand, or the next one
        self._end: float = math.inf if config.frames is None else config.frames  # the first frame that is not taken up
        self._at_work: Flight | None = None
        self._known = self.tracker, 0.0  # the tracker, and whether a frame waited, when the frame at work was taken up
        self._last_branch = -1
        self._beats: OrderedDict[int, float] = OrderedDict()
        self._beat_sequence = 0
        self._next_beat = 0.0

    # ---- what the agent may ask ----

    @property
    def tracker(self) -> NDArray[np.float64]:
        """What the device knows of its link (``adaptsplit.estimators``)."""
        return self._ledger.tracker

    @property
    def counts(self) -> Counter[str]:
        """What has happened, by name."""
        return self._ledger.counts

    @property
    def edge_online(self) -> bool | None:
        """Whether an edge server is there (None: unknown, taken for yes)."""
        return self._sender.edge_online

    @property
    def done(self) -> bool:
        """Whether every frame has ended in its record."""
        return self._ended() and self._at_work is None and self._sender.idle

    @property
    def waiting(self) -> bool:
        """Whether a frame waits for the window to open."""
        return self._sender.slot is not None

    @property
    def taken_up_at(self) -> float:
        """When the frame at work was taken up (NaN: none is)."""
        return math.nan if self._at_work is None else self._at_work.decided

    def link_state(self) -> LinkState:
        """Return what the device believes of its link."""
        x, online = self.tracker, self._sender.edge_online
        edge: Literal["online", "offline", "unknown"]
        edge = "unknown" if online is None else "online" if online else "offline"
        return LinkState(self._frame, float(x[est.GOODPUT]), float(x[est.RTT]), len(self._sender.unacked), edge)

    def next_wakeup(self) -> float:
        """Return when ``tick`` has something to do next."""
        frame = self._frame / self.config.fps if self._at_work is None and not self._ended() else math.inf
        return min(self._next_beat, self._sender.next_wakeup(), frame)

    def telemetry(self, battery: float, load: float, temperature: float, signal: float) -> None:
        """Set what the device measures of itself (fraction, 0..1, degrees Celsius, dBm; NaN: unknown)."""
        x = self.tracker
        x[est.BATTERY], x[est.LOAD], x[est.TEMPERATURE], x[est.SIGNAL] = battery, load, temperature, signal

    # ---- events of the clock and of the connections ----

    def tick(self, now: float) -> list[Action]:
        """Ends of patience, lost messages, heartbeats, and the next frame when the device is free."""
        self._sender.tick(now)
        if now >= self._next_beat:
            self._beat(now)
        if self._at_work is None and not self._ended() and now >= self._frame / self.config.fps:
            self._take_up(now)
        return self._ledger.flush()

    def link_changed(self, up: bool, now: float) -> list[Action]:
        """The data connection came or went; what was under way on it is lost."""
        self._sender.link_up = up
        self._sender.abandon(now)
        return self._ledger.flush()

    def edge_changed(self, online: bool | None, now: float) -> list[Action]:
        """The edge server came or went (None: no longer known); what it had not answered when it went is lost."""
        if online != self._sender.edge_online:
            if online is not None:
                self.counts["edge_online" if online else "edge_offline"] += 1
            self._sender.edge_online = online
            if online is False:
                self._sender.abandon(now)
        return self._ledger.flush()

    def drain(self) -> None:
        """Take up no further frame; ``done`` once the one at work and those under way have ended."""
        self._end = min(self._end, self._frame + (self._at_work is not None))

    def finish(self, now: float) -> list[Action]:
        """End the session: whatever has arrived and is still open gets its record."""
        if self._at_work is not None:
            self._fail(self._at_work, now)
        while not self._ended() and self.config.frames is not None and self._frame / self.config.fps <= now:
            self._ledger.miss(self._frame, now)
            self._frame += 1
        self._sender.finish(now)
        return self._ledger.flush()

    # ---- events of the device's own work ----

    def looked(self, frame: int, sharpness: float, difference: float, now: float) -> list[Action]:
        """The content signals of the frame at work are known: ask for a decision.

        The controller sees what was known when the frame was taken up, as in the simulator that trained it. A policy
        that stands near a tie is tipped by the 1 to 3 ms that the signals take.
        """
        flight = self._working(frame)
        tracker, waiting = self._known
        flight.looked_at, flight.signal_dbm = now, float(tracker[est.SIGNAL])
        wait = flight.decided - flight.arrived
        out = observation_row(tracker, flight.decided, wait, waiting, sharpness, difference)
        self._ledger.actions.append(Decide(frame, out))
        return self._ledger.flush()

    def decided(self, frame: int, decision: Decision, now: float) -> list[Action]:
        """The controller has decided; ``decision`` must be canonical. A skipped frame ends here."""
        flight, space = self._working(frame), self.config.space
        rule = space.thresholds[decision.threshold], space.patience[decision.threshold]
        flight.decide(decision, *rule, self.config.deadline_s)
        sizes = space.shape[0] - 1, space.shape[1] - 1
        scaled = decision.branch / max(sizes[0], 1), decision.rate / max(sizes[1], 1)
        sent = self.tracker[est.LAST_SENT]
        est.on_decision(self.tracker, *scaled, min(flight.threshold, 1.0))
        self.tracker[est.LAST_SENT] = sent
        if space.branches[decision.branch].kind == "skip":
            self._skip(flight, now)
        else:
            flight.switched = self._last_branch not in (-1, decision.branch)
            self._last_branch = decision.branch
            self._ledger.actions.append(Run(frame, decision))
        return self._ledger.flush()

    def ran(self, frame: int, prediction: Prediction, confidence: float, now: float) -> list[Action]:
        """The exit (or the local model) has answered."""
        flight = self._working(frame)
        assert flight.decision is not None
        flight.exit_prediction, flight.exit_confidence, flight.exit_at = prediction, confidence, now
        est.on_exit(self.tracker, confidence)
        local = self.config.space.branches[flight.decision.branch].kind == "local"
        if local or (flight.threshold <= 1.0 and confidence >= flight.threshold):
            flight.free_at = now
            self._ledger.settle_exit(flight, Path.LOCAL if local else Path.EXIT, now)
            self._ledger.emit(flight, now)
            self._freed(now)
        else:
            self._ledger.actions.append(Encode(frame, flight.decision))
        return self._ledger.flush()

    def encoded(self, frame: int, container: bytes, now: float) -> list[Action]:
        """The container is ready: hand it to the sender; the device is free."""
        flight = self._working(frame)
        flight.container, flight.free_at = container, now
        flight.wire_bytes = len(container) + est.OVERHEAD_BYTES
        self._sender.hand_over(flight, now)
        self._freed(now)
        return self._ledger.flush()

    def failed(self, frame: int, now: float) -> list[Action]:
        """A stage of the device's own work failed: the exit answers if it had run, else the frame is a miss."""
        self.counts["stage_failed"] += 1
        self._fail(self._working(frame), now)
        return self._ledger.flush()

    # ---- messages from the edge ----

    def received(self, message: Message, now: float) -> list[Action]:
        """A message came from the edge; what is not for this session, repeated or unknown is counted and ignored."""
        if message.session != self.config.session:
            self.counts["foreign_session"] += 1
        elif isinstance(message, Ack):
            self._sender.acknowledged(message, now)
        elif isinstance(message, Result):
            self._sender.answered(message, now)
        elif isinstance(message, Heartbeat) and message.reply:
            self._beaten(message, now)
        else:
            self.counts["unexpected_message"] += 1
        return self._ledger.flush()

    def _beaten(self, beat: Heartbeat, now: float) -> None:
        sent_at = self._beats.get(beat.sequence)
        if sent_at is None:
            self.counts["stale_heartbeat"] += 1
            return
        while next(iter(self._beats)) != beat.sequence:
            self._beats.popitem(last=False)
        del self._beats[beat.sequence]
        est.on_heartbeat(self.tracker, now, sent_at)
        self._sender.beat_answered(sent_at, now)

    def _beat(self, now: float) -> None:
        beat = Heartbeat(self.config.session, self._beat_sequence, max(round(now * 1e6), 0))
        self._beats[beat.sequence] = now
        if len(self._beats) > KEPT_BEATS:
            self._beats.popitem(last=False)
        self._beat_sequence += 1
        self._next_beat = est.HEARTBEAT_PERIOD_S * (math.floor(now / est.HEARTBEAT_PERIOD_S + 1e-9) + 1)
        self._ledger.actions.append(Beat(beat))

    # ---- the device ----

    def _ended(self) -> bool:
        return self._frame >= self._end

    def _take_up(self, now: float) -> None:
        arrived = self._frame / self.config.fps
        self._at_work = Flight(self._frame, arrived, arrived + self.config.deadline_s, decided=now)
        self._known = self.tracker.copy(), float(self._sender.slot is not None)
        self.tracker[est.LAST_SENT] = 0.0  # what is sent from now on is sent after this decision's moment
        self._ledger.actions.append(Look(self._frame))

    def _working(self, frame: int) -> Flight:
        if self._at_work is None or self._at_work.frame != frame:
            raise ValueError(f"frame {frame} is not at work")
        return self._at_work

    def _skip(self, flight: Flight, now: float) -> None:
        """Answer with what is held; nothing but the content signals has run, and the branch that ran last stays."""
        flight.free_at = now
        self._ledger.settle_stale(flight, now)
        self._ledger.emit(flight, now)
        self._freed(now)

    def _fail(self, flight: Flight, now: float) -> None:
        flight.free_at = now
        if math.isfinite(flight.exit_at):
            self._ledger.settle_exit(flight, Path.FALLBACK_PASSED, min(now, flight.wait_until))
        else:
            self._ledger.settle_miss(flight)
        self._ledger.emit(flight, now)
        self._freed(now)

    def _freed(self, free: float) -> None:
        """Go to the freshest frame; what was overtaken or has waited past its deadline is a miss."""
        self._at_work = None
        c, frame = self.config, self._frame
        freshest = max(frame + 1, int(min(math.floor(free * c.fps + 1e-9), self._end)))
        if freshest < self._end and free - freshest / c.fps > c.deadline_s:
            freshest += 1
        for skipped in range(frame + 1, freshest):
            self.counts["overtaken"] += 1
            self._ledger.miss(skipped, free)
        self._frame = freshest
