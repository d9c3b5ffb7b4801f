"""Readers of recorded links: one registry, and detection by content.

Adding a format: one file that registers a reader, and one import in ``adaptsplit/links/__init__.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from adaptsplit.errors import LinkError
from adaptsplit.links.container import Table, read_bytes, unpack
from adaptsplit.links.recording import DEFAULT_RTT_S, Recording
from adaptsplit.links.trace import LinkTrace
from adaptsplit.registry import Registry

HEAD_BYTES = 4096


class UnsuitableError(LinkError):
    """A table of the right format that is no measurement of the link; one among others is left out and counted."""


class ReadFunction(Protocol):
    """What a reader does: a table in, its recordings out; LinkError says file, place and cure."""

    def __call__(self, table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
        """Read ``table``; ``dt_s`` None takes the format's own sample length, ``family`` None its own family."""


@dataclass(frozen=True, slots=True)
class LinkReader:
    """One format: ``read`` it, and ``score`` the head of a table from 0 (not this format) to 1 (surely this one)."""

    name: str
    description: str
    read: ReadFunction
    score: Callable[[bytes], float]


link_readers: Registry[LinkReader] = Registry("link reader")


def read_recordings(
    path: Path | str, reader: str | None = None, *, dt_s: float | None = None, family: str | None = None
) -> list[Recording]:
    """Read every recording of a file.

    Args:
        path: the file; a zip or gzip is unpacked in memory and each table in it read.
        reader: a name of ``link_readers``; None finds the format by the file's content, never by its name.
        dt_s: sample length, s; None takes the format's own.
        family: the family of the recordings; None takes the format's own.

    Raises:
        LinkError: the file cannot be read, or its content cannot be used.
        UnknownNameError: ``reader`` is not a known name.
    """
    return parse_recordings(path, read_bytes(Path(path)), reader, dt_s=dt_s, family=family)


def parse_recordings(
    path: Path | str,
    data: bytes,
    reader: str | None = None,
    *,
    dt_s: float | None = None,
    family: str | None = None,
) -> list[Recording]:
    """Read every recording of ``data``, a file's content that is at hand already; ``path`` only names it."""
    if dt_s is not None and not (math.isfinite(dt_s) and 0.001 <= dt_s <= 3600):
        raise LinkError(f"{path}: sample length {dt_s!r} s, expected 0.001 to 3600 s")
    chosen = None if reader is None else link_readers.get(reader)
    tables = unpack(Path(path), data)
    return _read_tables(tables, detect(tables[0]) if chosen is None else chosen, dt_s, family)


def _read_tables(tables: list[Table], reader: LinkReader, dt_s: float | None, family: str | None) -> list[Recording]:
    recordings: list[Recording] = []
    left_out: list[UnsuitableError] = []
    for table in tables:
        try:
            recordings += reader.read(table, dt_s=dt_s, family=family)
        except UnsuitableError as error:
            left_out.append(error)
    if left_out and not recordings:
        raise left_out[0]
    if not left_out:
        return recordings
    note = f"{len(left_out)} of {len(tables)} tables of the file left out: no measurement of the link"
    return [replace(recording, provenance=(*recording.provenance, note)) for recording in recordings]


def read_links(
    path: Path | str,
    reader: str | None = None,
    *,
    dt_s: float | None = None,
    rtt_s: float = DEFAULT_RTT_S,
    family: str | None = None,
) -> list[LinkTrace]:
    """Read every link trace of a file.

    Args:
        path: the file; a zip or gzip is unpacked in memory and each table in it read.
        reader: a name of ``link_readers``; None finds the format by the file's content, never by its name.
        dt_s: sample length, s; None takes the format's own.
        rtt_s: round-trip time where the file holds none, s.
        family: the family of the traces; None takes the format's own.

    Raises:
        LinkError: the file cannot be read, its content cannot be used, or it holds no capacity.
        UnknownNameError: ``reader`` is not a known name.
    """
    return [recording.trace(rtt_s) for recording in read_recordings(path, reader, dt_s=dt_s, family=family)]


def detect(table: Table) -> LinkReader:
    """Return the reader whose format the first bytes of ``table`` show; LinkError names the formats known."""
    head = table.data[:HEAD_BYTES]
    entries = [link_readers.get(name) for name in link_readers.names()]
    scores = [entry.score(head) for entry in entries]
    best = max(scores, default=0.0)
    if best > 0:
        return entries[scores.index(best)]
    known = "; ".join(f"{entry.name} ({entry.description})" for entry in entries)
    raise LinkError(
        f"{table.place}: the content is none of the known link formats. Known: {known}. Cure: convert it to csv"
    )


def first_line(head: bytes) -> bytes:
    """Return the first line of a table's head, without a byte order mark, in lower case."""
    return head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].strip().lower()
