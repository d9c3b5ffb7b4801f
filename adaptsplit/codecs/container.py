"""The versioned container around every payload that crosses the link.

    offset  bytes  field
    0       2      magic b"AS"
    2       1      version, 1
    3       1      codec (``kind``: which codec made it)
    4       1      form (how the codec stored the payload; the quality of an image codec)
    5       1..3   each of the shape's dimensions and then the payload's length, as canonical LEB128 numbers
    ..      n      payload
    end     4      CRC-32 of everything before it, big endian

A message's size is ``len(container)``: 13 bytes round a bottleneck's payload. The parser accepts exactly what
``build_container`` writes: anything truncated, extended, flipped or oversized is a CodecError, before any large work.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from adaptsplit.errors import CodecError

MAGIC = b"AS"
VERSION = 1
MAX_CONTAINER_BYTES = 1 << 23
MAX_VALUES = 1 << 22
MAX_PIXELS = 1 << 23
FIRST_IMAGE_KIND = 0x20

_FIXED = 5
_CRC = 4


@dataclass(frozen=True, slots=True)
class Container:
    """A parsed container: ``shape`` is (C, H, W) of features or (H, W) of an RGB image, ``payload`` still encoded."""

    kind: int
    form: int
    shape: tuple[int, ...]
    payload: bytes


def build_container(kind: int, form: int, shape: tuple[int, ...], payload: bytes) -> bytes:
    """Return the container's bytes; CodecError when shape or payload exceed the caps."""
    _check_shape(kind, shape)
    numbers = b"".join(_leb128(number) for number in (*shape, len(payload)))
    body = MAGIC + bytes((VERSION, kind, form)) + numbers + payload
    if len(body) + _CRC > MAX_CONTAINER_BYTES:
        raise CodecError(f"container of {len(body) + _CRC} bytes; at most {MAX_CONTAINER_BYTES}: compress more")
    return body + zlib.crc32(body).to_bytes(_CRC, "big")


def parse_container(data: bytes) -> Container:
    """Parse and check a container (magic, version, length, checksum, shape caps); CodecError says what is wrong."""
    if not _FIXED + _CRC < len(data) <= MAX_CONTAINER_BYTES:
        raise CodecError(f"{len(data)} bytes; a container has {_FIXED + _CRC + 1} to {MAX_CONTAINER_BYTES}")
    if data[:2] != MAGIC:
        raise CodecError(f"starts with {bytes(data[:2])!r}, expected {MAGIC!r}: not a container of ours")
    if data[2] != VERSION:
        raise CodecError(f"container version {data[2]}, this release reads {VERSION}; update the older side")
    body, checksum = data[:-_CRC], int.from_bytes(data[-_CRC:], "big")
    if zlib.crc32(body) != checksum:
        raise CodecError(f"checksum {zlib.crc32(body):08x}, the container says {checksum:08x}: damaged on the way")
    return _parse_body(bytes(body))


def _parse_body(body: bytes) -> Container:
    kind, form = body[3], body[4]
    numbers: list[int] = []
    offset = _FIXED
    for _ in range(_dimensions(kind) + 1):
        number, offset = _read_leb128(body, offset)
        numbers.append(number)
    shape, length = tuple(numbers[:-1]), numbers[-1]
    _check_shape(kind, shape)
    if len(body) - offset != length:
        raise CodecError(f"payload of {len(body) - offset} bytes, the header says {length}: truncated or extended")
    return Container(kind, form, shape, body[offset:])


def _dimensions(kind: int) -> int:
    return 2 if kind >= FIRST_IMAGE_KIND else 3


def _check_shape(kind: int, shape: tuple[int, ...]) -> None:
    cap = MAX_PIXELS if kind >= FIRST_IMAGE_KIND else MAX_VALUES
    values = 1
    for size in shape:
        values *= size
    if len(shape) != _dimensions(kind) or not 0 < values <= cap:
        raise CodecError(f"shape {shape}: expected {_dimensions(kind)} dimensions with 1 to {cap} values in all")


def _leb128(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_leb128(data: bytes, offset: int) -> tuple[int, int]:
    number = 0
    for i in range(4):
        if offset + i >= len(data):
            raise CodecError("header ends early: truncated")
        byte = data[offset + i]
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if byte == 0 and i:
                raise CodecError("header number is not canonical: not written by us")
            return number, offset + i + 1
    raise CodecError("header number above 2**28: not written by us")
