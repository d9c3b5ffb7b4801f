"""What runs beside a device's session: commands, policy updates, metrics. A part can fail; the flight goes on.

Every method of a part is called on the agent's main loop and must return within a millisecond or so: long work belongs
on a thread of the part's own. What a part raises is logged and counted (``part_NAME``), never passed on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from adaptsplit.outcome import Outcomes

if TYPE_CHECKING:
    from adaptsplit.device_bridge.agent import DeviceAgent

log = logging.getLogger("adaptsplit.device")


class DevicePart(Protocol):
    """One part. ``leaves`` are the device's own topics (``cmd/+``, ...) that it hears on the control connection."""

    name: str
    leaves: tuple[str, ...]

    def started(self, agent: DeviceAgent) -> None:
        """The agent is connected, and has not begun its run."""
        ...

    def linked(self, up: bool, now: float) -> None:
        """The control connection came or went; ``now`` is in s since frame 0, as everywhere here."""
        ...

    def message(self, leaf: str, payload: bytes, now: float) -> None:
        """A message came on one of ``leaves``: untrusted bytes."""
        ...

    def tick(self, now: float) -> None:
        """Time has passed; called a few times a second at least."""
        ...

    def settled(self, controller: str, outcome: Outcomes) -> None:
        """A frame has ended; ``outcome`` is one record, ``controller`` who decided."""
        ...

    def close(self) -> None:
        """The agent ends; the connections still stand."""
        ...


class QuietPart:
    """A part that does nothing; the base for those that need a few of the calls."""

    name = "quiet"
    leaves: tuple[str, ...] = ()

    def started(self, agent: DeviceAgent) -> None:
        """Nothing."""

    def linked(self, up: bool, now: float) -> None:
        """Nothing."""

    def message(self, leaf: str, payload: bytes, now: float) -> None:
        """Nothing."""

    def tick(self, now: float) -> None:
        """Nothing."""

    def settled(self, controller: str, outcome: Outcomes) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Parts:
    """All parts of a device, each call inside its own fence."""

    def __init__(self, parts: Sequence[DevicePart], counts: Counter[str]) -> None:
        self._parts = tuple(parts)
        self._counts = counts

    @property
    def leaves(self) -> list[str]:
        """What the control connection must hear for them."""
        return sorted({leaf for part in self._parts for leaf in part.leaves})

    def each(self, call: Callable[[DevicePart], None]) -> None:
        """Do ``call`` with every part; what one raises is logged and counted."""
        for part in self._parts:
            try:
                call(part)
            except Exception:
                log.exception("part %s of the device failed; the flight goes on", part.name)
                self._counts[f"part_{part.name}"] += 1
