"""One frame on its way through the device: what is known of it, and the outcome record that it ends in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import Decision
from adaptsplit.outcome import Outcomes, Path, empty

Prediction = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Energy:
    """Powers that turn times into energy: W above idle, W above the connected state, J per bit beside it."""

    compute_w: float = 0.0
    radio_w: float = 0.0
    radio_j_per_bit: float = 0.0


NO_ENERGY = Energy()


def _no_cells() -> Prediction:
    return np.zeros(0, dtype=np.uint8)


@dataclass(slots=True)
class Flight:
    """A frame that the device has taken up. Times in s since frame 0, NaN while unknown."""

    frame: int
    arrived: float
    deadline: float
    decided: float = math.nan
    looked_at: float = math.nan
    signal_dbm: float = math.nan
    decision: Decision | None = None
    threshold: float = math.nan
    patience: float = math.nan
    patient_until: float = -math.inf
    switched: bool = False
    exit_prediction: Prediction = field(default_factory=_no_cells)
    exit_confidence: float = 0.0
    exit_at: float = math.nan
    free_at: float = math.nan
    container: bytes = b""
    sequence: int = -1
    sent_at: float = math.nan
    acked_at: float = math.nan
    wire_bytes: int = 0
    server_s: float = math.nan
    queue_s: float = math.nan
    service_s: float = math.nan
    lost: bool = False
    path: Path | None = None
    quality: float = 0.0
    confidence: float = 0.0
    agreement: float = math.nan
    answered: float = math.nan
    result_at: float = math.inf
    known: float = math.nan

    @property
    def sent(self) -> bool:
        """Whether it was handed to the link."""
        return self.sequence >= 0

    @property
    def wait_until(self) -> float:
        """When the exit answers for a result that has not come: at the end of the patience, once the exit has run."""
        return min(max(self.patient_until, self.exit_at), self.deadline)

    def decide(self, decision: Decision, threshold: float, patience: float, deadline_s: float) -> None:
        """Take a decision. Patience counts as its record holds it (float32), so that ties fall as in the simulator."""
        self.decision, self.threshold, self.patience = decision, threshold, float(np.float32(patience))
        self.patient_until = self.arrived + self.patience * deadline_s

    @property
    def settled(self) -> bool:
        """Whether its answer (or miss) is fixed."""
        return self.path is not None

    def settle(self, path: Path, answered: float, quality: float, confidence: float) -> None:
        """Fix the answer that counts."""
        self.path, self.answered, self.quality, self.confidence = path, answered, quality, confidence

    def miss(self) -> None:
        """No answer by the scenario's deadline."""
        self.path, self.answered, self.quality, self.confidence = Path.MISS, math.nan, 0.0, 0.0

    def times(self) -> dict[str, float]:
        """Return what is known of when each stage ended (s since frame 0), for the live log; see ``livelog``."""
        known = {"looked_s": self.looked_at, "exit_s": self.exit_at, "free_s": self.free_at}
        known["signal_dbm"] = self.signal_dbm
        if self.sent:
            known |= {"sent_s": self.sent_at, "wire_bytes": float(self.wire_bytes), "acked_s": self.acked_at}
            known |= {"server_s": self.server_s, "queue_s": self.queue_s}
        return {name: value for name, value in known.items() if math.isfinite(value)}

    def record(self, energy: Energy, goodput_bps: float) -> Outcomes:
        """Return the outcome record, an array of one; ``goodput_bps`` serves where no acknowledgement told the time."""
        row = empty(1)
        row["frame"], row["arrived_s"], row["known_s"] = self.frame, self.arrived, self.known
        row["path"], row["quality"], row["confidence"] = self.path, self.quality, self.confidence
        row["answer_latency_s"] = self.answered - self.arrived
        if self.decision is not None:
            row["decided_s"], row["switched"] = self.decided, self.switched
            row["branch"], row["rate"], row["threshold"] = self.decision.branch, self.decision.rate, self.threshold
            row["patience"], row["exit_confidence"] = self.patience, self.exit_confidence
            row["compute_j"] = energy.compute_w * (self.free_at - self.decided)
        if self.sent:
            service = self.service_s if math.isfinite(self.service_s) else 8.0 * self.wire_bytes / goodput_bps
            row["agreement"], row["remote_latency_s"] = self.agreement, self.result_at - self.arrived
            row["sent_bytes"] = len(self.container)
            row["radio_j"] = energy.radio_w * service + energy.radio_j_per_bit * 8.0 * self.wire_bytes
        return row
