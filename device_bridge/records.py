"""Who decided on which frame, and the log that is written when a frame has ended."""

from __future__ import annotations

from adaptsplit.device_bridge.actions import Observation, Settled
from adaptsplit.device_bridge.livelog import LiveLog

KEPT_OWNERS = 4096  # frames whose controller is remembered: far more than can be open at a time


class Records:
    """Puts each ended frame into the log, with the controller that it belongs to and what that one saw."""

    def __init__(self, log: LiveLog, first: str) -> None:
        self.last_owner = first
        self._log = log
        self._owner: dict[int, str] = {}
        self._observed: dict[int, Observation] = {}

    def decided(self, frame: int, controller: str, observation: Observation) -> None:
        """Note a decision; ``observation`` is (D,)."""
        self._owner[frame], self._observed[frame] = controller, observation

    def settled(self, action: Settled) -> str:
        """Log a record and return whose it is: a frame that nobody decided on belongs to who decided before."""
        name = self._owner.setdefault(action.frame, self._owner.get(action.frame - 1, self.last_owner))
        self._owner.pop(action.frame - KEPT_OWNERS, None)
        self.last_owner = name
        observation = self._observed.pop(action.frame, None)
        self._log.add(name, action.outcome, None if observation is None else observation.tolist(), action.times)
        return name
