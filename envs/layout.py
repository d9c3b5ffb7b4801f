"""Layout of the simulator's state: one contiguous float64 row per environment.

The physical state (what is) comes first, the tracker (what the device knows, ``adaptsplit.estimators``) after it.
Integers are stored as floats; they stay far below 2**53. In flight are at most ``RING`` messages; each stream of
events (acknowledgement, result, settlement) is a counter into the ring, so an entry is free once all three have
passed it. When the ring is empty the counters start again at 0, so that a batch keeps few cache lines warm.
"""

from __future__ import annotations

from adaptsplit import estimators

(
    LINK,  # index of the trace
    LINK_OFFSET,  # s, where in the trace the episode starts
    ROW_FIRST,  # first profile row of the flight
    ROW_COUNT,  # rows of the flight (looped)
    ROW_OFFSET,
    FRAME,  # index of the frame at hand
    NOW,  # s, when the decision on it is taken
    LINK_FREE,  # s, when the link has served everything handed to it
    LAST_ARRIVAL,
    LAST_ACK,
    LAST_RESULT,
    SERVER_AT,  # s, when our last job reached the server
    SERVER_WORK,  # s of work before the server just after it
    SERVER_OFFSET,  # s, where in the server's trace the episode starts
    BEAT_SENT,  # s, the oldest heartbeat without a reply
    BEAT_REPLY,
    BATTERY_J,
    LAST_BRANCH,
    REWARD,  # of the frames settled since the last step
    DONE,
    TERMINATED,
    HEAD_ACK,
    HEAD_RESULT,
    HEAD_SETTLE,
    TAIL,
    NEXT_ACK,  # s, when the oldest of each stream happens
    NEXT_RESULT,
    NEXT_SETTLE,
    NEXT_EXPIRY,  # s, until when the frame in the slot can use a result
    NEXT_EVENT,  # s, no event happens before; 0 when not known
    SLOT_USED,
    SLOT_FRAME,
    SLOT_BRANCH,
    SLOT_RATE,
    SLOT_EXIT_AT,
    HELD_ROW,  # the answer that is held: profile row (-1: none), branch, and rate (R: the exit's)
    HELD_BRANCH,
    HELD_RATE,
    LOAD_OFFSET,  # s, where in the trace of the board's other load the episode starts
    TEMPERATURE_C,
    THROTTLE,  # level 0, 1, 2
    CLOCK,  # relative to the full clock
) = range(42)
RING_START = 42

RING = 16
(
    SENT_AT,
    WIRE,
    ACK_AT,
    RESULT_AT,
    AGREE,
    SERVER,
    QUEUE,
    SETTLE_AT,
    SETTLE_MISS,
    SETTLE_FALLBACK,
    OF_FRAME,
    OF_BRANCH,
    OF_RATE,
    CONFIDENCE,
) = range(14)
ENTRY = 14

TRACKER = RING_START + RING * ENTRY
STATE_SIZE = TRACKER + estimators.TRACKER_SIZE
