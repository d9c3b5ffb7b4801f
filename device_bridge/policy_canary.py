"""Whether a policy on trial does worse than the one before: a decision within one window of frames, often sooner.

What is held against each other, per frame: how often the guard took over, how many decisions were the recovery's, and
how many frames had no answer in time. Only what a policy can be blamed for counts as the guard's (``decider.BLAMED``).
The link is not the same before and after, so each has a margin; a false alarm costs an update, not the flight.
"""

from __future__ import annotations

from collections import deque

from pydantic import Field

from adaptsplit.config import Config
from adaptsplit.device_bridge.policy_reasons import Reason
from adaptsplit.device_bridge.policy_state import Rates


class CanaryLimits(Config):
    """How long a trial is, and what is worse. All values are assumptions of ours.

    frames: decided frames of a trial, and of the window before it. Worse is more than before by ``trips`` guard trips
    per frame, by ``recovered`` of the decisions, or by ``misses`` of the frames. With these values one trip, after
    which the recovery decides for a second, is borne up to 40 frames/s.
    """

    frames: int = Field(default=200, ge=1, le=100_000)
    trips: float = Field(default=0.01, ge=0, le=1)
    recovered: float = Field(default=0.20, ge=0, le=1)
    misses: float = Field(default=0.10, ge=0, le=1)


class Window:
    """The newest frames under one policy: what ``Rates`` a trial is held against."""

    def __init__(self, frames: int) -> None:
        self._verdicts: deque[tuple[bool, bool]] = deque(maxlen=frames)
        self._misses: deque[bool] = deque(maxlen=frames)

    def decided(self, trip: bool, recovered: bool) -> None:
        """A decision was made."""
        self._verdicts.append((trip, recovered))

    def ended(self, miss: bool) -> None:
        """A frame ended."""
        self._misses.append(miss)

    def rates(self) -> Rates:
        """Return the shares so far; 0 where nothing has happened."""
        count = max(len(self._verdicts), 1)
        return Rates(
            trips=sum(trip for trip, _ in self._verdicts) / count,
            recovered=sum(recovered for _, recovered in self._verdicts) / count,
            misses=sum(self._misses) / max(len(self._misses), 1),
        )


class Canary:
    """A trial. ``verdict`` tells as soon as it is certain."""

    def __init__(self, before: Rates, limits: CanaryLimits) -> None:
        self.before, self.limits = before, limits
        self._decided = self._ended = self._trips = self._recovered = self._misses = 0

    def decided(self, trip: bool, recovered: bool) -> None:
        """The policy on trial has decided, or the recovery in its place."""
        self._decided += 1
        self._trips += trip
        self._recovered += recovered

    def ended(self, miss: bool) -> None:
        """A frame of the policy on trial ended."""
        self._ended += 1
        self._misses += miss

    @property
    def progress(self) -> float:
        """Part of the trial that is over."""
        return min(min(self._decided, self._ended) / self.limits.frames, 1.0)

    @property
    def passed(self) -> bool:
        """Whether the whole trial is over; ask ``worse`` first."""
        return self.progress >= 1.0

    def worse(self) -> tuple[Reason, str] | None:
        """Return why the policy is worse, as soon as no further frame of the trial could change that."""
        frames, before = self.limits.frames, self.before
        for reason, what, count, allowed in (
            (Reason.GUARD_TRIPS, "guard trips", self._trips, before.trips + self.limits.trips),
            (
                Reason.GUARD_TRIPS,
                "decisions of the recovery",
                self._recovered,
                before.recovered + self.limits.recovered,
            ),
            (Reason.MISSES, "frames without an answer", self._misses, before.misses + self.limits.misses),
        ):
            if count > allowed * frames + 1e-9:
                seen = f"{count} {what} in {self._decided} decisions"
                return reason, f"{seen}; {allowed:.3f} per frame are allowed in a trial of {frames}"
        return None
