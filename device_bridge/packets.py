"""MQTT control packets as bytes, as far as this package handles them itself (MQTT 3.1.1, sections 2.2 and 3.3).

A packet is its type and flags (1 byte), the length of what follows (1 to 4 bytes, 7 bits each), and that body.
"""

from __future__ import annotations

PUBLISH = 0x30  # at QoS 0, neither retained nor repeated
MAX_PACKET_BYTES = 16 << 20  # twice the largest message of ours: more is a peer gone wrong


def remaining_length(size: int) -> bytes:
    """Return a length as MQTT writes it (section 2.2.3).

    >>> remaining_length(321).hex()
    'c102'
    """
    if size < 0x80:
        return bytes((size,))
    if size < 0x4000:
        return bytes((size & 0x7F | 0x80, size >> 7))
    return bytes((size & 0x7F | 0x80,)) + remaining_length(size >> 7)


def packet(kind: int, body: bytes) -> bytes:
    """Return a packet of this type and flags."""
    return bytes((kind,)) + remaining_length(len(body)) + body


def text(value: str) -> bytes:
    """Return a string as MQTT writes it."""
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def publish_packet(topic: str, payload: bytes) -> bytes:
    """Return a PUBLISH at QoS 0."""
    return packet(PUBLISH, text(topic) + payload)


def body_of(data: bytes, at: int) -> tuple[int, int]:
    """Return where the body of the packet at ``at`` begins and ends; an end beyond the data: it has not all come.

    OSError for a length that is none, or beyond any of ours.

    >>> body_of(packet(PUBLISH, bytes(200)), 0)
    (3, 203)
    """
    length = shift = 0
    for body in range(at + 2, at + 6):
        if body > len(data):
            return at, len(data) + 1
        byte = data[body - 1]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            if length > MAX_PACKET_BYTES:
                raise OSError(f"the broker sends a packet of {length} bytes; at most {MAX_PACKET_BYTES} are taken")
            return body, body + length
        shift += 7
    raise OSError("the broker sends a packet whose length is malformed")
