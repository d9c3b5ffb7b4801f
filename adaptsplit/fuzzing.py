"""Deterministic mutations of valid documents, for tests of decoders: bytes, JSON or YAML text, npz, sealed messages.

A mutator takes the generator and gives bytes. Damage of single bytes finds faults of framing; everything behind a
checksum or a parser is reached only by a document that is whole and says something wrong, so JSON values are swapped as
values, arrays of an npz as arrays, and checksums are made right again.
"""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Mutator = Callable[[random.Random], bytes]

VALUES: tuple[bytes, ...] = (
    *(b"null", b"true", b'""', b"[]", b"{}", b"0", b"-1", b"-0.0", b"0.5", b"1e308", b"-1e308", b"1e-320", b"1e999"),
    *(b"NaN", b"Infinity", b"-Infinity", b"9" * 19, b"9" * 400, b"9" * 5000, b"18446744073709551616", b"255", b"65536"),
    *(b'"x"', b'"\\ud800"', b'"\\u001b[31m"', b'"\\u0000"', '"\U0001f681\u2028"'.encode(), b'"' + b"x" * 3000 + b'"'),
    *(b"[" * 300 + b"]" * 300, b'{"a":' * 300 + b"1" + b"}" * 300, b"[" * 2000, b"[0,[1,[2]]]", b'{"a":1,"a":2}'),
    *(b'{"\\u001b[2J":1}', b"[" + b"0," * 500 + b"0]", b"1.5", b"2", b"1", b'"1"', b'["x"]', b'{"x":{}}', b"\xff"),
)
"""Texts that stand for a value where another was expected."""

YAML_VALUES: tuple[bytes, ...] = (
    *(
        b'!!int ""',
        b'!!float "_"',
        b"!!bool x",
        b"!!timestamp x",
        b"!!binary x",
        b"!!set {a}",
        b"!!omap [a]",
        b"2001-99-01",
    ),
    *(
        b"0x" + b"f" * 5000,
        b"1:" * 300 + b"1",
        b".nan",
        b"-.inf",
        b"0b_",
        b"&a [*a]",
        b"*b",
        b"{<<: [1]}",
        b"{<<: {a: 1}}",
    ),
    *(
        b"0001-01-01 00:00:00 +23:00",
        b"? [a]",
        b"!!python/name:os.system",
        b'"\\e[31m"',
        b"|\n x",
        b"~",
        b"yes",
        b"\t",
        b"%",
    ),
)
WORDS: tuple[bytes, ...] = (
    b"\0",
    b"\xff",
    b"\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\x1b",
    b"\xed\xa0\x80",
    b"PK\1\2",
)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[\[\]{}]')
_YAML_TOKEN = re.compile(rb"(?<=[:\-,\[] )[^\s,\]]+|\w+(?=:)")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with one to three faults: bits flipped, bytes cut, taken out, repeated, replaced, put in."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, length, kind = rng.randrange(len(data) + 1), rng.randint(1, 24), rng.randrange(7)
        if kind <= 1 and at < len(data):
            data = data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
        elif kind == 2:
            data = data[:at]
        elif kind == 3:
            data = data[:at] + data[at + length :]
        elif kind == 4:
            data = data[: at + length] + data[at:]
        elif kind == 5:
            data = data[:at] + rng.randbytes(length) + data[at + length :]
        else:
            data = data[:at] + rng.choice(WORDS) + data[at:]
    return data


def bytes_of(data: bytes) -> Mutator:
    """Return a mutator of any bytes."""
    return lambda rng: damaged(data, rng)


def json_of(text: bytes) -> Mutator:
    """Return a mutator of a JSON text: mostly values replaced, taken out or exchanged, sometimes bytes damaged."""
    return _text_of(text, json_spans(text), VALUES)


def yaml_of(text: bytes, values: Sequence[bytes] = VALUES + YAML_VALUES) -> Mutator:
    """Return a mutator of a YAML text in block style: its plain values and keys replaced or exchanged."""
    return _text_of(text, [match.span() for match in _YAML_TOKEN.finditer(text)], values)


def json_spans(text: bytes) -> list[tuple[int, int]]:
    """Return (start, end) of every value and key in a valid JSON text, containers included."""
    spans, open_at = [], []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in (b"[", b"{"):
            open_at.append(match.start())
        elif token in (b"]", b"}"):
            spans.append((open_at.pop(), match.end()))
        else:
            spans.append(match.span())
    return spans


def _text_of(text: bytes, spans: Sequence[tuple[int, int]], values: Sequence[bytes]) -> Mutator:
    def mutate(rng: random.Random) -> bytes:
        kind = rng.randrange(8)
        if kind == 0:
            return damaged(text, rng)
        (start, end), (low, high) = rng.choice(spans), rng.choice(spans)
        value = text[low:high] if kind == 1 else b"" if kind == 2 else rng.choice(values)
        changed = text[:start] + value + text[end:]
        return damaged(changed, rng) if kind == 3 else changed

    return mutate


def sealed_of(body: bytes, seal: Callable[[bytes], bytes], tail: bytes = b"") -> Mutator:
    """Return a mutator of ``body`` whose result is sealed again by ``seal`` and followed by ``tail``, mostly."""

    def mutate(rng: random.Random) -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return damaged(seal(body) + tail, rng)
        return seal(damaged(body, rng)) + (damaged(tail, rng) if kind == 1 else tail)

    return mutate


def npz_of(arrays: Mapping[str, NDArray[np.generic]]) -> Mutator:
    """Return a mutator of an .npz: ``meta`` as JSON, the arrays' types, shapes and numbers, members, bytes."""
    members = {f"{key}.npy": npy_bytes(array) for key, array in arrays.items()}
    meta = json_of(arrays["meta"].tobytes())
    whole = zip_bytes(members)

    def mutate(rng: random.Random) -> bytes:
        kind, victim = rng.randrange(8), rng.choice(list(members))
        if kind == 0:
            return damaged(whole, rng)
        changed = dict(members)
        if kind <= 3:
            changed["meta.npy"] = npy_bytes(np.frombuffer(meta(rng), np.uint8))
        elif kind <= 5:
            changed[victim] = npy_bytes(other_array(arrays[victim.removesuffix(".npy")], rng))
        elif kind == 6:
            changed[victim] = damaged(members[victim], rng)
        else:
            changed[rng.choice(("x.npy", "meta", "\x1b.npy", *members))] = changed.pop(victim)
        return zip_bytes(changed, rng.choice((0,) * 60 + (8, 8, 12, 14)))

    return mutate


def other_array(array: NDArray[np.generic], rng: random.Random) -> NDArray[np.generic]:
    """Return an array with another type, shape or number in it."""
    kind = rng.randrange(7)
    if kind == 0:
        with np.errstate(all="ignore"):
            return array.astype(rng.choice(("f8", "f4", "f2", ">f4", "i2", "i8", "u1", "?", "c8", "S3", "U2")))
    if kind == 1:
        return array[: rng.randrange(len(array) + 1)] if array.ndim else array.reshape(1)
    if kind == 2:
        return np.asarray(array[None] if rng.random() < 0.5 else array.ravel())
    if kind == 3:
        return np.zeros(rng.choice(((), (0,), (0, 3), (1, 1), (2, 3, 4), (1,) * 30, (70000,))), array.dtype)
    if kind == 4:
        return np.concatenate([array, array]) if array.ndim else array
    out = array.copy()
    if out.size and out.dtype.kind in "fiu":
        numbers = (0, 1, -1, 2, 127) if out.dtype.kind != "f" else (np.nan, np.inf, -1.0, 0.0, 1e30, 1e-30, 2.0)
        out.reshape(-1)[rng.randrange(out.size)] = np.asarray(rng.choice(numbers)).astype(out.dtype)
    return out


def npy_bytes(array: NDArray[np.generic]) -> bytes:
    """Return the .npy form of an array."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def zip_bytes(members: Mapping[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip of members, packed by 0 nothing, 8 deflate, 12 bzip2 or 14 LZMA."""
    if packing == zipfile.ZIP_STORED:
        return _stored(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as packed:
        for name, content in members.items():
            packed.writestr(zipfile.ZipInfo(name), content, packing)
    return buffer.getvalue()


def _stored(members: Mapping[str, bytes]) -> bytes:
    """Return a zip of plain members (APPNOTE.TXT 4.3.7, 4.3.12, 4.3.16), ten times as fast as ``zipfile``."""
    files, entries = b"", b""
    for name, content in members.items():
        size, label = len(content), name.encode()
        head = struct.pack("<5H3I2H", 20, 0, 0, 0, 33, zlib.crc32(content), size, size, len(label), 0)
        entries += b"PK\1\2\x14\0" + head + struct.pack("<3H2I", 0, 0, 0, 0, len(files)) + label
        files += b"PK\3\4" + head + label + content
    count = len(members)
    return files + entries + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(entries), len(files), 0)


def npy_claiming(shape: str, dtype: str = "<f4") -> bytes:
    """Return a .npy of 16 bytes whose header claims any shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(16)
