"""Layout of the simulator's state: one contiguous float64 row per environment.

The physical state (what is) comes first, the tracker (what the device knows, ``adaptsplit.estimators``) after it.
Integers are stored as floats; they stay far below 2**53. In flight are at most ``RING`` messages; each stream of
events (acknowledgement, result, settlement) is a counter into the ring, so an entry is free once all three have
passed it.
"""

from __future__ import annotations

from adaptsplit import estimators

LINK = 0  # index of the trace
LINK_OFFSET = 1  # s, where in the trace the episode starts
ROW_FIRST = 2  # first profile row of the flight
ROW_COUNT = 3  # rows of the flight (looped)
ROW_OFFSET = 4
FRAME = 5  # index of the frame at hand
NOW = 6  # s, when the decision on it is taken
LINK_FREE = 7  # s, when the link has served everything handed to it
LAST_ARRIVAL = 8
LAST_ACK = 9
LAST_RESULT = 10
SERVER_FREE = 11
BEAT_SENT = 12  # s, the oldest heartbeat without a reply
BEAT_REPLY = 13
BATTERY_J = 14
LAST_BRANCH = 15
REWARD = 16  # of the frames settled since the last step
DONE = 17
TERMINATED = 18
HEAD_ACK = 19
HEAD_RESULT = 20
HEAD_SETTLE = 21
TAIL = 22
SLOT_USED = 23
SLOT_FRAME = 24
SLOT_BRANCH = 25
SLOT_RATE = 26
SLOT_EXIT_AT = 27
RING_START = 28

RING = 16
SENT_AT, WIRE, ACK_AT, RESULT_AT, AGREE, SERVER, QUEUE, SETTLE_AT, SETTLE_MISS, SETTLE_FALLBACK = range(10)
ENTRY = 10

TRACKER = RING_START + RING * ENTRY
STATE_SIZE = TRACKER + estimators.TRACKER_SIZE
