"""The data plane's messages: fixed binary headers, strictly parsed.

Every message starts with the same 28 bytes and carries a CRC-32 of its header (big endian throughout)::

    offset  bytes  field
    0       2      magic b"AB"
    2       1      version, 1; frames and results also come in version 2
    3       1      type: 1 frame, 2 acknowledgement, 3 result, 4 heartbeat, 5 heartbeat reply
    4       16     session: the sender's (or, in a reply, the addressee's) session id
    20      4      sequence: counts the messages of one type within a session
    24      4      frame index (0 in heartbeats)

    frame      28  branch u8, rate u8, zero u16, sent u64 (us, device's clock), budget u32 (us), crc u32, container
               (version 2: before the crc 8 bytes that name the model, ``model_id``)
    ack        28  crc u32
    result     28  residence u32 (us), queue u32 (us), confidence f32, status u8, cells u8, prediction u8 each, crc u32
               (version 2: before the crc the server's queue now: jobs u16, wait of a new frame u32 (us))
    heartbeat  28  sent u64 (us, device's clock), crc u32

A frame of version 2 is answered by results of version 2; a frame of version 1 names no model (the edge's first one is
meant) and is answered by results of version 1. ``budget`` is the time from sending to the frame's deadline. No two
clocks are ever compared: the device measures round trips on its own clock, the edge reports durations on its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from adaptsplit.codecs.container import MAX_CONTAINER_BYTES
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import MessageError

MAGIC = b"AB"
VERSION = 1
EXTENDED = 2
MODEL_BYTES = 8
MAX_CELLS = 255
MIN_CONTAINER_BYTES = 10
_MAX_U32 = (1 << 32) - 1

_PREFIX = struct.Struct(">2sBB16sII")
_FRAME = struct.Struct(">BBHQI")
_RESULT = struct.Struct(">IIfBB")
_LOAD = struct.Struct(">HI")
_SENT = struct.Struct(">Q")
_CRC = struct.Struct(">I")

FRAME_HEADER_BYTES = _PREFIX.size + _FRAME.size + _CRC.size
MAX_MESSAGE_BYTES = FRAME_HEADER_BYTES + MODEL_BYTES + MAX_CONTAINER_BYTES


def model_id(digest: str, space: DecisionSpace) -> bytes:
    """Return 8 bytes that name networks (SHA-256 of their ``model.json``, hex) with the branches of a space."""
    branches = [[branch.name, branch.kind, branch.exit] for branch in space.branches]
    return hashlib.sha256(json.dumps([digest, branches]).encode()).digest()[:MODEL_BYTES]


class Kind(IntEnum):
    """Message types on the wire."""

    FRAME = 1
    ACK = 2
    RESULT = 3
    HEARTBEAT = 4
    HEARTBEAT_REPLY = 5


class Status(IntEnum):
    """What the edge did with a frame."""

    DONE = 0
    DROPPED = 1  # it cannot be answered in time, or the queue was full
    REFUSED = 2  # its container or branch could not be used


@dataclass(frozen=True, slots=True)
class FrameMessage:
    """Device to edge: one frame's features or image in the codec's own container.

    ``model`` names the networks that it is for in 8 bytes; empty (version 1) leaves it to the edge.
    """

    session: bytes
    sequence: int
    frame: int
    branch: int
    rate: int
    sent_us: int
    budget_us: int
    container: bytes
    model: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the wire form; MessageError when a field does not fit."""
        body = _pack(_FRAME, self.branch, self.rate, 0, self.sent_us, self.budget_us) + self.model
        if len(self.model) not in (0, MODEL_BYTES):
            raise MessageError(f"model of {len(self.model)} bytes, expected {MODEL_BYTES} or none")
        if not MIN_CONTAINER_BYTES <= len(self.container) <= MAX_CONTAINER_BYTES:
            raise MessageError(f"container of {len(self.container)} bytes, expected 10 to {MAX_CONTAINER_BYTES}")
        version = EXTENDED if self.model else VERSION
        return _sealed(_prefix(Kind.FRAME, self.session, self.sequence, self.frame, version) + body) + self.container


@dataclass(frozen=True, slots=True)
class Ack:
    """Edge to device, on arrival of a frame message."""

    session: bytes
    sequence: int
    frame: int

    def to_bytes(self) -> bytes:
        """Return the wire form; MessageError when a field does not fit."""
        return _sealed(_prefix(Kind.ACK, self.session, self.sequence, self.frame))


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """The edge's queue for one model when a result left: jobs that wait, and how long a new frame would, in s."""

    waiting: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """Edge to device: the tail's answer. Durations in s on the edge's clock: ``residence_s`` includes ``queue_s``.

    ``prediction`` holds one class index per cell (empty unless ``status`` is DONE). ``load`` only in version 2.
    """

    session: bytes
    sequence: int
    frame: int
    residence_s: float
    queue_s: float
    confidence: float
    status: Status
    prediction: bytes
    load: ServerLoad | None = None

    def to_bytes(self) -> bytes:
        """Return the wire form; MessageError when a field does not fit."""
        times = (_microseconds(self.residence_s), _microseconds(self.queue_s))
        body = _pack(_RESULT, *times, self.confidence, self.status, len(self.prediction)) + self.prediction
        if self.load is None:
            return _sealed(_prefix(Kind.RESULT, self.session, self.sequence, self.frame) + body)
        body += _pack(_LOAD, self.load.waiting, _microseconds(self.load.wait_s))
        return _sealed(_prefix(Kind.RESULT, self.session, self.sequence, self.frame, EXTENDED) + body)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Device to edge and, with ``reply`` set, back unchanged: an almost empty message that measures the round trip."""

    session: bytes
    sequence: int
    sent_us: int
    reply: bool = False

    def to_bytes(self) -> bytes:
        """Return the wire form; MessageError when a field does not fit."""
        kind = Kind.HEARTBEAT_REPLY if self.reply else Kind.HEARTBEAT
        return _sealed(_prefix(kind, self.session, self.sequence, 0) + _pack(_SENT, self.sent_us))


Message: TypeAlias = FrameMessage | Ack | Result | Heartbeat


def parse_message(data: bytes) -> Message:
    """Parse one message of the data plane; MessageError says what is wrong with anything that is not ours."""
    if not _PREFIX.size + _CRC.size <= len(data) <= MAX_MESSAGE_BYTES:
        raise MessageError(f"{len(data)} bytes; a message has {_PREFIX.size + _CRC.size} to {MAX_MESSAGE_BYTES}")
    magic, version, kind, session, sequence, frame = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise MessageError(f"starts with {bytes(magic)!r}, expected {MAGIC!r}: not a message of ours")
    extended = version == EXTENDED and kind in (Kind.FRAME, Kind.RESULT)
    if version != VERSION and not extended:
        raise MessageError(
            f"message version {version} of type {kind}; this release reads 1, and 2 of frames and results"
        )
    if kind == Kind.FRAME:
        return _parse_frame(data, session, sequence, frame, MODEL_BYTES if extended else 0)
    if kind == Kind.ACK:
        _check(data, _PREFIX.size, exact=True)
        return Ack(session, sequence, frame)
    if kind == Kind.RESULT:
        return _parse_result(data, session, sequence, frame, _LOAD.size if extended else 0)
    if kind in (Kind.HEARTBEAT, Kind.HEARTBEAT_REPLY):
        return _parse_heartbeat(data, kind, session, sequence, frame)
    raise MessageError(f"message type {kind}; expected 1 to {len(Kind)}")


def _parse_frame(data: bytes, session: bytes, sequence: int, frame: int, extra: int) -> FrameMessage:
    end = _PREFIX.size + _FRAME.size + extra
    _check(data, end, exact=False)
    branch, rate, zero, sent_us, budget_us = _FRAME.unpack_from(data, _PREFIX.size)
    if zero:
        raise MessageError(f"reserved field is {zero}, expected 0")
    container = bytes(data[end + _CRC.size :])
    if len(container) < MIN_CONTAINER_BYTES:
        raise MessageError(f"container of {len(container)} bytes; at least {MIN_CONTAINER_BYTES}: truncated")
    model = bytes(data[end - extra : end])
    return FrameMessage(session, sequence, frame, branch, rate, sent_us, budget_us, container, model)


def _parse_result(data: bytes, session: bytes, sequence: int, frame: int, extra: int) -> Result:
    if len(data) < _PREFIX.size + _RESULT.size + extra + _CRC.size:
        raise MessageError(f"result of {len(data)} bytes: truncated")
    residence, queue, confidence, status, cells = _RESULT.unpack_from(data, _PREFIX.size)
    end = _PREFIX.size + _RESULT.size + cells
    _check(data, end + extra, exact=True)
    if status not in tuple(Status) or not (math.isfinite(confidence) and 0.0 <= confidence <= 1.0):
        raise MessageError(f"result with status {status} and confidence {confidence}; expected 0..2 and 0..1")
    if (status == Status.DONE) != (cells > 0) or queue > residence:
        raise MessageError(f"result with status {status}, {cells} cells, queue {queue} us of {residence} us")
    prediction = bytes(data[end - cells : end])
    load = None
    if extra:
        waiting, wait_us = _LOAD.unpack_from(data, end)
        load = ServerLoad(waiting, wait_us / 1e6)
    times = residence / 1e6, queue / 1e6
    return Result(session, sequence, frame, *times, confidence, Status(status), prediction, load)


def _parse_heartbeat(data: bytes, kind: int, session: bytes, sequence: int, frame: int) -> Heartbeat:
    _check(data, _PREFIX.size + _SENT.size, exact=True)
    if frame:
        raise MessageError(f"heartbeat with frame {frame}, expected 0")
    return Heartbeat(session, sequence, _SENT.unpack_from(data, _PREFIX.size)[0], kind == Kind.HEARTBEAT_REPLY)


def _check(data: bytes, end: int, *, exact: bool) -> None:
    """Check length and the CRC at ``end`` over everything before it."""
    if len(data) < end + _CRC.size or (exact and len(data) != end + _CRC.size):
        raise MessageError(f"{len(data)} bytes, expected {'' if exact else 'at least '}{end + _CRC.size}")
    if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        raise MessageError("header checksum does not hold: damaged, or not a message of ours")


def _prefix(kind: Kind, session: bytes, sequence: int, frame: int, version: int = VERSION) -> bytes:
    if len(session) != 16:
        raise MessageError(f"session id of {len(session)} bytes, expected 16")
    return _pack(_PREFIX, MAGIC, version, kind, session, sequence, frame)


def _pack(layout: struct.Struct, *values: bytes | float) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise MessageError(f"field outside its range ({error})") from error


def _sealed(header: bytes) -> bytes:
    return header + _CRC.pack(zlib.crc32(header))


def _microseconds(seconds: float) -> int:
    value = round(seconds * 1e6)
    return value if 0 <= value <= _MAX_U32 else 0 if value < 0 else _MAX_U32
