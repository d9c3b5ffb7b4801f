"""How much one peer may ask for: a token bucket for each, in bounded memory.

A bucket holds ``burst`` messages and is filled at ``rate_hz``. A peer that sends more loses what is above, and no other
peer loses anything. Time is the caller's own monotonic clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from adaptsplit.estimators import HEARTBEAT_PERIOD_S

MAX_PEERS = 4096  # beyond it the peer that was silent for longest is forgotten, and begins anew with a full bucket
BURST_S = 2.0  # what a link that stood still may bring at once: a device's window and its heartbeats are far less
TOLD_HZ, TOLD_BURST = 0.2, 10.0
MARGIN = 2.0  # over what a device sends by its bundle; an assumption


class RateLimit:
    """One bucket for each peer. For one thread, or under the caller's lock: two may lose a message's count.

    >>> limit = RateLimit(rate_hz=1.0, burst=2.0)
    >>> [limit.allows("a", 0.0) for _ in range(3)], limit.allows("b", 0.0), limit.allows("a", 1.0)
    ([True, True, False], True, True)
    """

    def __init__(self, rate_hz: float, burst: float, max_peers: int = MAX_PEERS) -> None:
        self.rate_hz, self.burst = rate_hz, burst
        self._max_peers = max_peers
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allows(self, peer: str, now: float) -> bool:
        """Whether ``peer`` may send one more message at ``now``, s; if so, it is counted."""
        left, at = self._buckets.pop(peer, (self.burst, now))
        left = min(left + max(now - at, 0.0) * self.rate_hz, self.burst)
        allowed = left >= 1.0
        self._buckets[peer] = (left - 1.0 if allowed else left), max(now, at)
        if len(self._buckets) > self._max_peers:
            self._buckets.popitem(last=False)
        return allowed


def for_screens() -> RateLimit:
    """Return the limit of lines of one kind on standard error: what flaps must not fill the journal."""
    return RateLimit(TOLD_HZ, TOLD_BURST)


def limit_for(fps: float) -> RateLimit | None:
    """Return the limit of an edge server for devices that send at most ``fps`` frames/s, and their heartbeats.

    None, no limit, for a rate that is not finite.
    """
    if not math.isfinite(fps):
        return None
    rate_hz = MARGIN * (fps + 1.0 / HEARTBEAT_PERIOD_S)
    return RateLimit(rate_hz, BURST_S * rate_hz)
