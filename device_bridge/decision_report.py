"""The ``decision`` topic: once a second, what was decided and what became of it; never a message per frame."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from adaptsplit.device_bridge.control import DecisionCounts
from adaptsplit.device_bridge.parts import QuietPart
from adaptsplit.outcome import Outcomes, Path

if TYPE_CHECKING:
    from adaptsplit.device_bridge.agent import DeviceAgent

MAX_NAMES = 63


class DecisionReport(QuietPart):
    """Counts the frames that end, and publishes the counts every ``period_s``, latest only.

    What cannot leave stays in the counts, so that the messages that do leave sum up to all frames.
    """

    name = "decisions"

    def __init__(self, period_s: float = 1.0) -> None:
        self.period_s = period_s
        self._agent: DeviceAgent | None = None
        self._next = period_s
        self._clear()

    def _clear(self) -> None:
        self._range: tuple[int, int] | None = None
        self._decisions: Counter[str] = Counter()
        self._paths: Counter[str] = Counter()
        self._controllers: Counter[str] = Counter()

    def started(self, agent: DeviceAgent) -> None:
        """Take the agent whose frames are counted."""
        self._agent = agent

    def settled(self, controller: str, outcome: Outcomes) -> None:
        """Count a frame."""
        frame = int(outcome["frame"][0])
        first, last = self._range or (frame, frame)
        self._range = min(first, frame), max(last, frame)
        self._decisions[self._named(outcome[0])] += 1
        self._paths[Path(outcome["path"][0]).name.lower()] += 1
        self._controllers[controller] += 1

    def tick(self, now: float) -> None:
        """Publish when it is time."""
        if now >= self._next:
            self._next = now + self.period_s
            self._publish()

    def close(self) -> None:
        """Publish what is left."""
        self._publish()

    def _publish(self) -> None:
        if self._agent is None or self._range is None:
            return
        counts = DecisionCounts(
            frames=sum(self._paths.values()),
            first=self._range[0],
            last=self._range[1],
            decisions=_largest(self._decisions),
            paths=dict(self._paths),
            controllers=_largest(self._controllers),
        )
        if self._agent.link.latest("decision", counts):
            self._clear()

    def _named(self, outcome: np.void) -> str:
        """``branch/rate/threshold[@patience]``, ``none`` for a frame that nobody decided on."""
        assert self._agent is not None
        branch = int(outcome["branch"])
        if branch < 0:
            return "none"
        patience = float(outcome["patience"])
        rule = f"{float(outcome['threshold']):.4g}" + (f"@{patience:.4g}" if patience < 1.0 else "")
        return f"{self._agent.bundle.space.branches[branch].name}/{int(outcome['rate'])}/{rule}"


def _largest(counts: Counter[str]) -> dict[str, int]:
    kept = dict(counts.most_common(MAX_NAMES))
    other = sum(counts.values()) - sum(kept.values())
    return kept | ({"other": other} if other else {})
