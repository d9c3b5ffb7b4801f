"""What travels between a device and a decision service: two fixed binary layouts, strictly parsed (big endian)::

    offset  bytes  field
    0       2      magic b"AV"
    2       1      version, 1
    3       1      type: 1 observation (device to service), 2 advice (service to device)
    4       16     session: the device's session id
    20      4      sequence: counts the observations of a session; advice names the one that it answers

    observation 24  schema 8 bytes, decisions 8 bytes, count u16, float32 each, crc u32
    advice      24  branch u8, rate u8, threshold u8, zero u8, residence u32 (us), crc u32

``schema`` is ``observation.schema_hash``, ``decisions`` names the decision space (``space_id``): a service answers only
what it understands. The CRC-32 covers everything before it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import MessageError
from adaptsplit.signing import canonical

MAGIC, VERSION = b"AV", 1
OBSERVATION, ADVICE = 1, 2
_HEAD = struct.Struct(">2sBB16sI")
_OBSERVATION = struct.Struct(">8s8sH")
_ADVICE = struct.Struct(">BBBBI")
_CRC = struct.Struct(">I")
MAX_BYTES = _HEAD.size + _OBSERVATION.size + 4 * obs.SIZE + _CRC.size
_MAX_U32 = (1 << 32) - 1

SCHEMA = bytes.fromhex(obs.schema_hash())


def space_id(space: DecisionSpace) -> bytes:
    """Return 8 bytes that change with anything that the indices of a decision mean."""
    return hashlib.sha256(canonical(space.to_dict())).digest()[:8]


@dataclass(frozen=True, slots=True)
class ObservationMessage:
    """Device to service: what a controller sees, (D,) float32 in 0..1 (``adaptsplit.observation``)."""

    session: bytes
    sequence: int
    schema: bytes
    decisions: bytes
    values: NDArray[np.float32]

    def to_bytes(self) -> bytes:
        """Return the wire form; MessageError when a field does not fit."""
        values = np.ascontiguousarray(self.values, dtype=">f4")
        body = _pack(_OBSERVATION, self.schema, self.decisions, values.size) + values.tobytes()
        return _sealed(_head(OBSERVATION, self.session, self.sequence) + body)


@dataclass(frozen=True, slots=True)
class Advice:
    """Service to device: the decision for the observation ``sequence``; ``residence_s`` is the service's own time."""

    session: bytes
    sequence: int
    branch: int
    rate: int
    threshold: int
    residence_s: float

    def to_bytes(self) -> bytes:
        """Return the wire form; MessageError when a field does not fit."""
        residence = min(max(round(self.residence_s * 1e6), 0), _MAX_U32)
        body = _pack(_ADVICE, self.branch, self.rate, self.threshold, 0, residence)
        return _sealed(_head(ADVICE, self.session, self.sequence) + body)


def parse_observation(data: bytes) -> ObservationMessage:
    """Parse an observation; MessageError for anything else, and for values that are not finite."""
    session, sequence = _parse_head(data, OBSERVATION)
    start = _HEAD.size + _OBSERVATION.size
    if len(data) < start:
        raise MessageError(f"observation of {len(data)} bytes: truncated")
    schema, decisions, count = _OBSERVATION.unpack_from(data, _HEAD.size)
    _check(data, start + 4 * count)
    values = np.frombuffer(data, dtype=">f4", count=count, offset=start).astype(np.float32)
    if not np.isfinite(values).all():
        raise MessageError("observation with values that are not finite")
    return ObservationMessage(session, sequence, schema, decisions, values)


def parse_advice(data: bytes) -> Advice:
    """Parse an advice; MessageError for anything else."""
    session, sequence = _parse_head(data, ADVICE)
    _check(data, _HEAD.size + _ADVICE.size)
    branch, rate, threshold, zero, residence = _ADVICE.unpack_from(data, _HEAD.size)
    if zero:
        raise MessageError(f"reserved field is {zero}, expected 0")
    return Advice(session, sequence, branch, rate, threshold, residence / 1e6)


def _parse_head(data: bytes, kind: int) -> tuple[bytes, int]:
    if not _HEAD.size + _CRC.size <= len(data) <= MAX_BYTES:
        raise MessageError(f"{len(data)} bytes; such a message has {_HEAD.size + _CRC.size} to {MAX_BYTES}")
    magic, version, found, session, sequence = _HEAD.unpack_from(data)
    if (magic, version, found) != (MAGIC, VERSION, kind):
        raise MessageError(f"starts with {bytes(data[:4])!r}, expected {MAGIC + bytes((VERSION, kind))!r}")
    return session, sequence


def _check(data: bytes, end: int) -> None:
    if len(data) != end + _CRC.size:
        raise MessageError(f"{len(data)} bytes, expected {end + _CRC.size}")
    if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
        raise MessageError("checksum does not hold: damaged, or not a message of ours")


def _head(kind: int, session: bytes, sequence: int) -> bytes:
    if len(session) != 16:
        raise MessageError(f"session id of {len(session)} bytes, expected 16")
    return _pack(_HEAD, MAGIC, VERSION, kind, session, sequence)


def _pack(layout: struct.Struct, *values: bytes | int) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise MessageError(f"field outside its range ({error})") from error


def _sealed(body: bytes) -> bytes:
    return body + _CRC.pack(zlib.crc32(body))
