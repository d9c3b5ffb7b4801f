"""Readers of recorded links: one registry, detection by content, and what the readers share.

Adding a format: one file that registers a reader, and one import in ``adaptsplit/links/__init__.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.trace import MAX_SAMPLES, Array, LinkTrace
from adaptsplit.registry import Registry

MAX_FILE_BYTES = 64 << 20
HEAD_BYTES = 4096
DEFAULT_RTT_S = 0.05


class ReadFunction(Protocol):
    """What a reader does: a file in, its traces out; LinkError says file, place and cure."""

    def __call__(
        self, path: Path, *, dt_s: float | None = None, rtt_s: float = DEFAULT_RTT_S, family: str | None = None
    ) -> list[LinkTrace]:
        """Read ``path``; ``dt_s`` None takes the format's own; ``rtt_s`` serves where none is recorded."""


@dataclass(frozen=True, slots=True)
class LinkReader:
    """One format: ``read`` it, and ``score`` the head of a file from 0 (not this format) to 1 (surely this one)."""

    name: str
    description: str
    read: ReadFunction
    score: Callable[[bytes], float]

    def __call__(
        self, path: Path, *, dt_s: float | None = None, rtt_s: float = DEFAULT_RTT_S, family: str | None = None
    ) -> list[LinkTrace]:
        """Read ``path``; see ``ReadFunction``."""
        return self.read(path, dt_s=dt_s, rtt_s=rtt_s, family=family)


link_readers: Registry[LinkReader] = Registry("link reader")


def read_links(
    path: Path | str,
    reader: str | None = None,
    *,
    dt_s: float | None = None,
    rtt_s: float = DEFAULT_RTT_S,
    family: str | None = None,
) -> list[LinkTrace]:
    """Read every trace of a file.

    Args:
        path: the file.
        reader: a name of ``link_readers``; None finds the format by the file's content, never by its name.
        dt_s: sample length, s; None takes the format's own.
        rtt_s: round-trip time where the file holds none, s.
        family: the family of the traces; None takes the format's own.

    Raises:
        LinkError: the file cannot be read, or its content cannot be used.
        UnknownNameError: ``reader`` is not a known name.
    """
    path = Path(path)
    if dt_s is not None and not (math.isfinite(dt_s) and 0.001 <= dt_s <= 3600):
        raise LinkError(f"{path}: sample length {dt_s!r} s, expected 0.001 to 3600 s")
    chosen = link_readers.get(reader) if reader is not None else detect(path)
    return chosen(path, dt_s=dt_s, rtt_s=rtt_s, family=family)


def detect(path: Path) -> LinkReader:
    """Return the reader whose format the first bytes of ``path`` show; LinkError names the formats known."""
    head = read_bytes(path)[:HEAD_BYTES]
    entries = [link_readers.get(name) for name in link_readers.names()]
    best = max(entries, key=lambda entry: entry.score(head))
    if best.score(head) > 0:
        return best
    known = "; ".join(f"{entry.name} ({entry.description})" for entry in entries)
    raise LinkError(f"{path}: the content is none of the known link formats. Known: {known}. Cure: convert it to csv")


def read_bytes(path: Path) -> bytes:
    """Return a file's content, at most 64 MiB of it; LinkError for what cannot be read, is empty or too big."""
    try:
        if not path.is_file():
            raise LinkError(f"{path}: no such file; give the path of a link recording")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise LinkError(f"{path}: {size} bytes, at most {MAX_FILE_BYTES} are read; cut the recording into parts")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise LinkError(f"{path}: cannot be read ({error}); give the path of a readable file") from error
    if not data.strip():
        raise LinkError(f"{path}: the file is empty; expected a link recording")
    return data


def fail(path: Path, line: int, found: object, expected: str) -> NoReturn:
    """Raise the LinkError of a faulty line (counted from 1)."""
    text = repr(found)
    raise LinkError(f"{path}, line {line}: found {text[:57] + '...' if len(text) > 60 else text}, expected {expected}")


def hold(path: Path, start_s: Array, end_s: float, values: Array, dt_s: float) -> Array:
    """Average a piecewise constant signal over uniform samples of ``dt_s``; totals (bits) are kept.

    Args:
        path: named in errors.
        start_s: (M,) strictly increasing times at which each value begins, s.
        end_s: the end of the last value, s.
        values: (M,) the values.
        dt_s: sample length of the result, s.

    Returns:
        (H,) the mean over each sample; the last sample reaches ``end_s`` or beyond, where the last value holds on.
    """
    span = end_s - float(start_s[0])
    samples = max(1, math.ceil(round(span / dt_s, 6)))
    if samples > MAX_SAMPLES:
        raise LinkError(
            f"{path}: {span:g} s in samples of {dt_s:g} s are {samples} samples, at most {MAX_SAMPLES}; "
            "look for a wrong timestamp, or choose a longer sample"
        )
    edges = np.append(start_s - start_s[0], max(span, samples * dt_s))
    total = np.concatenate(([0.0], np.cumsum(values * np.diff(edges))))
    grid = np.minimum(np.arange(samples + 1) * dt_s, edges[-1])
    mean = np.diff(np.interp(grid, edges, total)) / dt_s
    # The differences of a long sum leave dust; it must neither turn an outage into a crawl nor leave the range.
    mean[np.abs(mean) < 1e-9 * float(np.abs(values).max(initial=0.0))] = 0.0
    bounded: Array = np.clip(mean, values.min(), values.max())
    return bounded
