"""What a session keeps of frames: the tracker, the counts, the actions to be done, how a frame is settled, and the
answer that is held for frames to come."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.device_bridge.actions import Action, Grader, SessionConfig, Settled
from adaptsplit.device_bridge.flight import Flight, Prediction
from adaptsplit.outcome import Path


class Ledger:
    """Shared by the parts of a session. A frame is settled (its answer is fixed) once, and emitted (recorded) once."""

    def __init__(self, config: SessionConfig, grade: Grader) -> None:
        self.config = config
        self.grade = grade
        self.tracker: NDArray[np.float64] = np.zeros(est.TRACKER_SIZE)
        est.start(self.tracker, config.prior_bps, config.prior_rtt_s, config.prior_server_s)
        self.counts: Counter[str] = Counter()
        self.actions: list[Action] = []
        self._held: Prediction | None = None

    def settle_exit(self, flight: Flight, path: Path, answered: float) -> None:
        """The exit's answer counts, and is held, unless it (or the moment of answering) is late."""
        at = max(answered, flight.exit_at)
        if at > flight.deadline:
            self.settle_miss(flight)
            return
        flight.settle(path, at, self.grade(flight.frame, flight.exit_prediction), flight.exit_confidence)
        self.hold(flight, flight.exit_prediction, flight.exit_confidence)
        fallback = path in (Path.FALLBACK_LATE, Path.FALLBACK_PASSED)
        est.on_settled(self.tracker, 0.0, 1.0 if fallback else 0.0)

    def hold(self, flight: Flight, prediction: Prediction, confidence: float) -> None:
        """Hold an answer for frames to come, unless that of a newer frame is held."""
        if est.on_answer(self.tracker, flight.arrived, confidence):
            self._held = prediction

    def settle_stale(self, flight: Flight, answered: float) -> None:
        """The held answer counts, graded on this frame; a miss when none is held, or after the deadline."""
        if self._held is None or answered > flight.deadline:
            self.settle_miss(flight)
            return
        x = self.tracker
        age_frames = (flight.arrived - float(x[est.HELD_AT])) * self.config.fps
        confidence = float(x[est.HELD_CONFIDENCE]) * self.config.retention**age_frames
        flight.settle(Path.STALE, answered, self.grade(flight.frame, self._held), confidence)
        est.on_settled(x, 0.0, 0.0)

    def settle_miss(self, flight: Flight) -> None:
        """No answer by the scenario's deadline."""
        flight.miss()
        est.on_settled(self.tracker, 1.0, 0.0)

    def miss(self, frame: int, now: float) -> None:
        """Settle and emit a frame that the device never looked at."""
        arrived = frame / self.config.fps
        flight = Flight(frame, arrived, arrived + self.config.deadline_s)
        self.settle_miss(flight)
        self.emit(flight, now)

    def emit(self, flight: Flight, now: float) -> None:
        """Record how a settled frame ended."""
        assert flight.path is not None
        flight.known = max(flight.wait_until, flight.decided) if flight.lost else now
        self.counts[f"path_{flight.path.name.lower()}"] += 1
        outcome = flight.record(self.config.energy, float(self.tracker[est.GOODPUT]))
        self.actions.append(Settled(flight.frame, outcome, flight.times()))

    def flush(self) -> list[Action]:
        """Return the actions collected since the last call."""
        actions, self.actions = self.actions, []
        return actions
