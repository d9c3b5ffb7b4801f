"""What a device can know about its link: estimators and the sender's rule, written once.

Every function is a pure scalar function over one *tracker*: a float64 vector of ``TRACKER_SIZE`` numbers, indexed by
the constants below. The live device calls them as plain Python; the simulator compiles the very same functions
(``adaptsplit.envs.compiled``), so both hold the same numbers; a test compares them.

Only what has *arrived* enters: an acknowledgement or a result with the time at which it came. Times are seconds on the
device's own monotonic clock; rates are bit/s.

Goodput is the harmonic mean (exponentially forgetting) of one sample per acknowledgement. The link serves messages one
after the other, so a message's service starts when it was sent or when its predecessor had been served, whichever is
later; with ``rtt`` the round trip of an almost empty message (from heartbeats)::

    service = (ack - rtt) - max(sent, previous_ack - rtt)          sample = 8 * bytes / service
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

Tracker = NDArray[Any]

GOODPUT = 0  # bit/s, harmonic mean; the prior until the first sample
GOODPUT_AT = 1  # when the last sample came; -inf before
GOODPUT_SPREAD = 2  # forgetting mean of |ln(sample / estimate)|
RTT = 3  # s, of an almost empty message, forgetting mean
RTT_BASE = 4  # s, slowly rising minimum
HEARD_AT = 5  # when anything last came from the edge
LAST_ACK_AT = 6
UNACKED_COUNT = 7
UNACKED_BYTES = 8  # on the wire, overhead included
OLDEST_SENT_AT = 9  # when the oldest unacknowledged message was sent
SERVER_S = 10  # residence on the server (queue and service) as last reported
SERVER_QUEUE_S = 11
AGREEMENT = 12  # forgetting mean of the fraction of cells on which exit and tail agree
EXIT_CONFIDENCE = 13  # of the last frame
EXIT_CONFIDENCE_MEAN = 14
LAST_BRANCH = 15  # index / (B - 1)
LAST_RATE = 16  # index / (R - 1)
LAST_THRESHOLD = 17  # value, at most 1
LAST_SENT = 18  # 1 when the last decided frame was handed to the link
MISS_RATE = 19  # forgetting mean over frames
FALLBACK_RATE = 20
BATTERY = 21  # fraction; NaN when unknown
LOAD = 22  # of the device, 0..1; NaN when unknown
TEMPERATURE = 23  # degrees Celsius; NaN when unknown
SIGNAL = 24  # dBm; NaN when unknown
HELD_AT = 25  # when the frame whose answer is held was taken; -inf before the first answer
HELD_CONFIDENCE = 26  # of that answer
TRACKER_SIZE = 27

OVERHEAD_BYTES = 96  # wire bytes of one data message beside its payload: frame header, MQTT header and topic
HEARTBEAT_BYTES = 96
HEARTBEAT_PERIOD_S = 1.0

MIN_GOODPUT = 1e3
MAX_GOODPUT = 1e9
GAIN_GOODPUT = 0.4
GAIN_RTT = 0.3
GAIN_SLOW = 0.1


def start(x: Tracker, prior_bps: float, prior_rtt_s: float, prior_server_s: float) -> None:
    """Set ``x`` to what is known before anything was heard: the priors of the profile and the link family."""
    for i in range(TRACKER_SIZE):
        x[i] = 0.0
    x[GOODPUT] = prior_bps
    x[GOODPUT_AT] = -math.inf
    x[RTT] = prior_rtt_s
    x[RTT_BASE] = prior_rtt_s
    x[HEARD_AT] = 0.0
    x[LAST_ACK_AT] = -math.inf
    x[OLDEST_SENT_AT] = 0.0
    x[SERVER_S] = prior_server_s
    x[AGREEMENT] = 0.8
    x[EXIT_CONFIDENCE] = 0.8
    x[EXIT_CONFIDENCE_MEAN] = 0.8
    x[BATTERY] = math.nan
    x[LOAD] = math.nan
    x[TEMPERATURE] = math.nan
    x[SIGNAL] = math.nan
    x[HELD_AT] = -math.inf


def on_sent(x: Tracker, now: float, wire_bytes: float) -> None:
    """A message of ``wire_bytes`` was handed to the link."""
    if x[UNACKED_COUNT] == 0.0:
        x[OLDEST_SENT_AT] = now
    x[UNACKED_COUNT] += 1.0
    x[UNACKED_BYTES] += wire_bytes


def on_ack(x: Tracker, now: float, sent_at: float, wire_bytes: float, next_sent_at: float) -> None:
    """The oldest unacknowledged message was acknowledged; ``next_sent_at`` is the send time of the one after it."""
    begin = max(sent_at, x[LAST_ACK_AT] - x[RTT_BASE])
    service = max(now - x[RTT_BASE] - begin, 8.0 * wire_bytes / MAX_GOODPUT)
    sample = max(8.0 * wire_bytes / service, MIN_GOODPUT)
    if x[GOODPUT_AT] == -math.inf:
        x[GOODPUT] = sample
    else:
        error = abs(math.log(sample / x[GOODPUT]))
        x[GOODPUT_SPREAD] += GAIN_SLOW * (error - x[GOODPUT_SPREAD])
        x[GOODPUT] = 1.0 / ((1.0 - GAIN_GOODPUT) / x[GOODPUT] + GAIN_GOODPUT / sample)
    x[GOODPUT_AT] = now
    x[HEARD_AT] = now
    x[LAST_ACK_AT] = now
    x[UNACKED_COUNT] = max(x[UNACKED_COUNT] - 1.0, 0.0)
    x[UNACKED_BYTES] = max(x[UNACKED_BYTES] - wire_bytes, 0.0)
    x[OLDEST_SENT_AT] = next_sent_at


def on_heartbeat(x: Tracker, now: float, sent_at: float) -> None:
    """A heartbeat's reply came: a sample of the round trip."""
    sample = max(now - sent_at, 1e-4)
    x[RTT] += GAIN_RTT * (sample - x[RTT])
    x[RTT_BASE] = min(sample, x[RTT_BASE] + GAIN_SLOW * (sample - x[RTT_BASE]))
    x[HEARD_AT] = now


def on_result(x: Tracker, now: float, agreement: float, server_s: float, queue_s: float) -> None:
    """A result came: agreement of exit and tail on its frame, and the server's report of residence and queue."""
    x[AGREEMENT] += GAIN_SLOW * (agreement - x[AGREEMENT])
    x[SERVER_S] = server_s
    x[SERVER_QUEUE_S] = queue_s
    x[HEARD_AT] = now


def on_answer(x: Tracker, taken_at: float, confidence: float) -> bool:
    """An answer for the frame taken at ``taken_at`` is there; return whether it is held from now on (none is newer)."""
    if taken_at < x[HELD_AT]:
        return False
    x[HELD_AT] = taken_at
    x[HELD_CONFIDENCE] = confidence
    return True


def on_exit(x: Tracker, confidence: float) -> None:
    """The exit of the frame at hand answered with this confidence."""
    x[EXIT_CONFIDENCE] = confidence
    x[EXIT_CONFIDENCE_MEAN] += GAIN_RTT * (confidence - x[EXIT_CONFIDENCE_MEAN])


def on_decision(x: Tracker, branch: float, rate: float, threshold: float) -> None:
    """A decision was taken: branch and rate as index / (size - 1) (0 for size 1), the threshold's value, at most 1."""
    x[LAST_BRANCH] = branch
    x[LAST_RATE] = rate
    x[LAST_THRESHOLD] = threshold
    x[LAST_SENT] = 0.0


def on_settled(x: Tracker, miss: float, fallback: float) -> None:
    """The device learns how a frame ended (1.0 or 0.0 each)."""
    x[MISS_RATE] += GAIN_SLOW * (miss - x[MISS_RATE])
    x[FALLBACK_RATE] += GAIN_SLOW * (fallback - x[FALLBACK_RATE])


def service_elapsed_s(x: Tracker, now: float) -> float:
    """How long the link has been serving what is unacknowledged (0 when nothing is)."""
    if x[UNACKED_COUNT] == 0.0:
        return 0.0
    return float(max(now - max(x[OLDEST_SENT_AT], x[LAST_ACK_AT] - x[RTT_BASE]) - x[RTT_BASE], 0.0))


def overdue_s(x: Tracker, now: float) -> float:
    """How long the unacknowledged bytes are overdue at the estimated goodput."""
    return float(max(service_elapsed_s(x, now) - 8.0 * x[UNACKED_BYTES] / x[GOODPUT], 0.0))


def backlog_s(x: Tracker, now: float) -> float:
    """Estimated time until the link has served what is unacknowledged.

    Up to the expected time this is what is left of it; when the bytes are overdue, they are expected to stay away for
    as long again (an outage that has lasted longer lasts longer).
    """
    if x[UNACKED_COUNT] == 0.0:
        return 0.0
    return float(abs(8.0 * x[UNACKED_BYTES] / x[GOODPUT] - service_elapsed_s(x, now)))


def goodput_now(x: Tracker, now: float) -> float:
    """The goodput estimate, bounded by what silence proves: less than all unacknowledged bytes in the time elapsed."""
    elapsed = service_elapsed_s(x, now)
    if elapsed <= 0.0:
        return float(x[GOODPUT])
    return float(max(min(x[GOODPUT], 8.0 * x[UNACKED_BYTES] / elapsed), MIN_GOODPUT))


def predicted_result_s(x: Tracker, now: float, wire_bytes: float) -> float:
    """When the result of a message handed over ``now`` is expected back."""
    return float(now + backlog_s(x, now) + 8.0 * wire_bytes / goodput_now(x, now) + x[RTT] + x[SERVER_S])


def may_send(x: Tracker, now: float, wire_bytes: float, deadline_at: float) -> bool:
    """Tell whether a frame should be sent when the window is open.

    Behind other messages only when its predicted result meets the deadline; on an idle link always, because it delays
    nobody and is the only probe of the link's capacity.
    """
    return bool(x[UNACKED_COUNT] == 0.0 or predicted_result_s(x, now, wire_bytes) <= deadline_at)
