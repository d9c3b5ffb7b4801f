"""The sender of a device: a window of unacknowledged messages, one latest-value slot, and results that are awaited."""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np

from adaptsplit import estimators as est
from adaptsplit.device_bridge.actions import Send
from adaptsplit.device_bridge.flight import Flight
from adaptsplit.device_bridge.ledger import Ledger
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Result, Status
from adaptsplit.outcome import Path


class Sender:
    """Sends the newest frame whose predicted result meets its deadline when the window opens; see ``session``."""

    def __init__(self, ledger: Ledger) -> None:
        self.link_up = True
        self.edge_online: bool | None = None
        self.slot: Flight | None = None
        self.unacked: OrderedDict[int, Flight] = OrderedDict()
        self.awaiting: OrderedDict[int, Flight] = OrderedDict()
        self._ledger = ledger
        self._config = ledger.config
        self._tracker = ledger.tracker
        self._sequence = 0
        self._silent_beats = 0

    @property
    def reachable(self) -> bool:
        """Whether a message has any chance of being answered."""
        return self.link_up and self.edge_online is not False

    @property
    def idle(self) -> bool:
        """Whether no frame waits or is under way."""
        return self.slot is None and not self.awaiting

    def next_wakeup(self) -> float:
        """Return when ``tick`` has something to do next (infinity: nothing is planned)."""
        slot = [] if self.slot is None else [self.slot.wait_until]
        due = (self._due(flight) for flight in self.awaiting.values())
        lost = (flight.sent_at + self._config.lost_after_s for flight in self.unacked.values())
        return min((*slot, *due, *lost), default=math.inf)

    # ---- events ----

    def tick(self, now: float) -> None:
        """Ends of patience of what waits or is under way; messages that are lost."""
        if self.slot is not None and self.slot.wait_until <= now:
            self._pass_over(self.slot.wait_until)
        for flight in list(self.awaiting.values()):
            self._expire(flight, now)
        for flight in list(self.unacked.values()):
            if flight.sent_at + self._config.lost_after_s <= now:
                self._lose(flight, now)

    def hand_over(self, flight: Flight, now: float) -> None:
        """Take an encoded frame; an older one in the slot is passed over."""
        if self.slot is not None:
            self._pass_over(now)
        self.slot = flight
        if now > flight.wait_until:
            self._pass_over(now)
        else:
            self._serve_slot(now)

    def acknowledged(self, ack: Ack, now: float) -> None:
        """A message has arrived at the edge: a goodput sample, and the window opens."""
        flight = self.unacked.get(ack.sequence)
        if flight is None or flight.frame != ack.frame:
            self._ledger.counts["stale_ack"] += 1
            return
        while next(iter(self.unacked)) != ack.sequence:  # TCP keeps order: what stands before it never arrived
            self._ledger.counts["skipped_ack"] += 1
            self._forget(next(iter(self.unacked.values())), now)
        x = self._tracker
        flight.service_s, flight.acked_at = self._service_s(flight, now), now
        del self.unacked[ack.sequence]
        self._silent_beats = 0
        est.on_ack(x, now, flight.sent_at, flight.wire_bytes, self._oldest_sent(now))
        self._serve_slot(now)

    def _service_s(self, flight: Flight, now: float) -> float:
        """How long the link served a message, for its energy: as in ``est.on_ack``, but with the mean round trip."""
        x = self._tracker
        begin = max(flight.sent_at, x[est.LAST_ACK_AT] - x[est.RTT])
        return max(float(now - x[est.RTT] - begin), 8.0 * flight.wire_bytes / est.MAX_GOODPUT)

    def answered(self, result: Result, now: float) -> None:
        """A result has come: the answer if it is in time, else only held for frames to come."""
        flight = self.awaiting.get(result.sequence)
        if flight is None or flight.frame != result.frame:
            self._ledger.counts["stale_result"] += 1
            return
        if flight.sequence in self.unacked:  # its acknowledgement was lost
            self._forget(flight, now)
        if result.status != Status.DONE or len(result.prediction) != len(flight.exit_prediction):
            self._ledger.counts[f"result_{result.status.name.lower()}" if result.status else "result_misfit"] += 1
            self._tracker[est.HEARD_AT] = now
            flight.lost = True
            self._expire(flight, now)
            return
        self._accept(flight, result, now)

    def _accept(self, flight: Flight, result: Result, now: float) -> None:
        prediction = np.frombuffer(result.prediction, dtype=np.uint8)
        flight.agreement = float(np.mean(prediction == flight.exit_prediction))
        flight.result_at, flight.lost = now, False
        flight.server_s, flight.queue_s = result.residence_s, result.queue_s
        est.on_result(self._tracker, now, flight.agreement, result.residence_s, result.queue_s)
        if now > flight.wait_until:
            self._expire(flight, now)
            self._ledger.counts["late_result"] += 1
        elif not flight.settled:
            flight.settle(Path.REMOTE, now, self._ledger.grade(flight.frame, prediction), result.confidence)
            est.on_settled(self._tracker, 0.0, 0.0)
        self._ledger.hold(flight, prediction, result.confidence)
        del self.awaiting[flight.sequence]
        self._ledger.emit(flight, now)

    def beat_answered(self, sent_at: float, now: float) -> None:
        """A heartbeat sent at ``sent_at`` was answered: what was sent long before it should be acknowledged."""
        if self.unacked and sent_at > max(self._oldest_sent(now), float(self._tracker[est.LAST_ACK_AT])):
            self._silent_beats += 1
        if self._silent_beats >= self._config.silent_beats:
            self._silent_beats = 0
            for flight in list(self.unacked.values()):
                self._lose(flight, now)

    def abandon(self, now: float) -> None:
        """Nothing that is under way will be answered: empty the window; the exits answer when patience ends."""
        if self.slot is not None and not self.reachable:
            self._pass_over(now)
        for flight in list(self.unacked.values()):
            self._forget(flight, now)
        for flight in list(self.awaiting.values()):
            flight.lost = True
            self._expire(flight, now)

    def finish(self, now: float) -> None:
        """Give everything that is still open its record."""
        if self.slot is not None:
            self._pass_over(now)
        for flight in list(self.awaiting.values()):
            flight.lost = True
            self._expire(flight, max(now, flight.deadline))

    # ---- the slot and the window ----

    def _serve_slot(self, now: float) -> None:
        """Send the frame in the slot, or pass it over, if the window is open."""
        flight = self.slot
        if flight is None or (self.reachable and len(self.unacked) >= self._config.window):
            return
        in_time = now <= flight.wait_until
        if self.reachable and in_time and est.may_send(self._tracker, now, flight.wire_bytes, flight.wait_until):
            self.slot = None
            self._send(flight, now)
        else:
            self._pass_over(now)

    def _send(self, flight: Flight, now: float) -> None:
        """Publish a frame; its budget ends with the deadline, as a result after the patience is still held."""
        assert flight.decision is not None
        flight.sequence, flight.sent_at = self._sequence, now
        self._sequence += 1
        budget = max(round((flight.deadline - now) * 1e6), 0)
        head = (self._config.session, flight.sequence, flight.frame, flight.decision.branch, flight.decision.rate)
        est.on_sent(self._tracker, now, flight.wire_bytes)
        self._tracker[est.LAST_SENT] = 1.0
        self.unacked[flight.sequence] = self.awaiting[flight.sequence] = flight
        message = FrameMessage(*head, max(round(now * 1e6), 0), budget, flight.container, self._config.model)
        self._ledger.actions.append(Send(message))

    def _pass_over(self, now: float) -> None:
        """The frame in the slot will not be sent: its exit answers, at the latest when its patience ends."""
        flight, self.slot = self.slot, None
        assert flight is not None
        self._ledger.settle_exit(flight, Path.FALLBACK_PASSED, min(now, flight.wait_until))
        self._ledger.emit(flight, now)

    def _lose(self, flight: Flight, now: float) -> None:
        self._ledger.counts["unacknowledged_lost"] += 1
        self._forget(flight, now)

    def _forget(self, flight: Flight, now: float) -> None:
        """Take an unacknowledged message out of the window without a sample."""
        if self.unacked.pop(flight.sequence, None) is None:
            return
        x = self._tracker
        x[est.UNACKED_COUNT] = max(x[est.UNACKED_COUNT] - 1.0, 0.0)
        x[est.UNACKED_BYTES] = max(x[est.UNACKED_BYTES] - flight.wire_bytes, 0.0)
        x[est.OLDEST_SENT_AT] = self._oldest_sent(now)
        self._serve_slot(now)

    def _oldest_sent(self, now: float) -> float:
        return next(iter(self.unacked.values())).sent_at if self.unacked else now

    # ---- the end of patience ----

    def _due(self, flight: Flight) -> float:
        """When something happens to a frame whose result is awaited: its exit answers, then the result is given up."""
        return flight.wait_until if not flight.settled else flight.deadline + self._config.give_up_s

    def _expire(self, flight: Flight, now: float) -> None:
        """Fallback when patience ends; the record follows when the result is known to be lost or is given up."""
        if not flight.settled and now >= flight.wait_until:
            self._ledger.settle_exit(flight, Path.FALLBACK_LATE, flight.wait_until)
        given_up = flight.lost or now >= flight.deadline + self._config.give_up_s
        if flight.settled and given_up and flight.result_at == math.inf:
            self._ledger.counts["never_answered"] += 1
            flight.lost = True
            del self.awaiting[flight.sequence]
            self._ledger.emit(flight, now)
