"""What a session keeps of frames: the tracker, the counts, the actions to be done, and how a frame is settled."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from adaptsplit import estimators as est
from adaptsplit.device_bridge.actions import Action, Grader, SessionConfig, Settled
from adaptsplit.device_bridge.flight import Flight
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

    def settle_exit(self, flight: Flight, path: Path, answered: float) -> None:
        """The exit's answer counts, unless it (or the moment of answering) is late."""
        if max(answered, flight.exit_at) > flight.deadline:
            self.settle_miss(flight)
            return
        flight.settle(path, answered, self.grade(flight.frame, flight.exit_prediction), flight.exit_confidence)
        fallback = path in (Path.FALLBACK_LATE, Path.FALLBACK_PASSED)
        est.on_settled(self.tracker, 0.0, 1.0 if fallback else 0.0)

    def settle_miss(self, flight: Flight) -> None:
        """No answer by the deadline."""
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
        flight.known = max(flight.deadline, flight.decided) if flight.lost else now
        self.counts[f"path_{flight.path.name.lower()}"] += 1
        outcome = flight.record(self.config.energy, float(self.tracker[est.GOODPUT]))
        self.actions.append(Settled(flight.frame, outcome))

    def flush(self) -> list[Action]:
        """Return the actions collected since the last call."""
        actions, self.actions = self.actions, []
        return actions
