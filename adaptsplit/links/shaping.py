"""Options that every link entry of a scenario takes: where a recording lies, and what is done to a trace."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import Field, field_validator

from adaptsplit.config import Config
from adaptsplit.errors import ConfigError
from adaptsplit.links.compose import inject_outages, jittered, rtt_from
from adaptsplit.links.readers import read_recordings
from adaptsplit.links.recording import Recording
from adaptsplit.links.trace import LinkTrace

_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")
T = TypeVar("T")


class Recorded(Config):
    """``{path: net_cicv5g_rtt/data/x.txt, reader: cicv5g, select: [0]}``: recordings of a file.

    path: below the data directory, or absolute. reader: a name, or left out to detect the format by content. dt_ms:
    sample length, the format's own when left out. select: which recordings of the file, as indices and ranges such
    as ``[3, "10-19"]``; all when left out.
    """

    path: str = Field(min_length=1)
    reader: str | None = None
    dt_ms: float | None = Field(default=None, ge=1)
    select: tuple[int | str, ...] | None = None

    @field_validator("select")
    @classmethod
    def _indices(cls, select: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
        for item in select or ():
            expand(item)
        return select

    @property
    def dt_s(self) -> float | None:
        """Sample length, s, or None for the format's own."""
        return None if self.dt_ms is None else self.dt_ms / 1000

    def read(self, data: Path | None) -> list[Recording]:
        """Return the recordings selected; ConfigError or LinkError says what is missing or wrong."""
        return self.selected(read_recordings(self.locate(data), self.reader, dt_s=self.dt_s))

    def locate(self, data: Path | None) -> Path:
        """Return the file's path; ConfigError names every way to say where the data directory is."""
        if Path(self.path).is_absolute():
            return Path(self.path)
        if ".." in PurePosixPath(self.path).parts:
            raise ConfigError(f"link {self.path!r}: '..' leads out of the data directory; give a path below it")
        cure = "name it with --data DIR, the key `data:` of the scenario, or the variable ADAPTSPLIT_DATA"
        if data is None:
            raise ConfigError(f"link {self.path!r} lies in the data directory, and none is known; {cure}")
        if not data.is_dir():
            raise ConfigError(f"link {self.path!r}: the data directory {data} does not exist; {cure}")
        if not (data / self.path).is_file():
            raise ConfigError(f"link {self.path!r}: not found in the data directory {data}; mend the path, or {cure}")
        return data / self.path

    def selected(self, found: list[T]) -> list[T]:
        """Return the items that ``select`` names, in its order."""
        if self.select is None:
            return found
        wanted = [index for item in self.select for index in expand(item)]
        beyond = [index for index in wanted if index >= len(found)]
        if beyond:
            raise ConfigError(f"link {self.path!r}: select {beyond[0]}, expected 0 to {len(found) - 1}")
        return [found[index] for index in wanted]


class Outages(Config):
    """Outages that come on average after ``every_s`` s with a link and last ``mean_s`` s (see ``inject_outages``)."""

    every_s: float = Field(ge=0.001, le=1e7)
    mean_s: float = Field(ge=0.001, le=1e7)
    seed: int = Field(ge=0)


class Jitter(Config):
    """Variation within the samples of a coarse trace (see ``jittered``)."""

    dt_ms: float = Field(ge=1)
    cv: float = Field(gt=0, le=3)
    correlation_s: float = Field(ge=0, le=86_400)
    seed: int = Field(ge=0)


class Shaped(Config):
    """What is done to every trace of an entry, in this order: scale, rtt_from, outages, jitter.

    scale: a factor on capacity. rtt_from: the round-trip times of another recording; with several, the k-th trace
    takes the k-th of them, from the first again after the last. outages, jitter: random, from their seed and the
    trace's name, so that the traces of one entry differ.
    """

    scale: float = Field(default=1.0, gt=0)
    rtt_from: Recorded | None = None
    outages: Outages | None = None
    jitter: Jitter | None = None

    def shaped(self, traces: list[LinkTrace], data: Path | None) -> list[LinkTrace]:
        """Return ``traces`` as this entry wants them."""
        others = self.rtt_from.read(data) if self.rtt_from is not None else []
        return [self._one(trace, others[k % len(others)] if others else None) for k, trace in enumerate(traces)]

    def _one(self, trace: LinkTrace, other: Recording | None) -> LinkTrace:
        trace = trace if self.scale == 1 else trace.scaled(self.scale)
        if other is not None:
            trace = rtt_from(trace, other)
        if self.outages is not None:
            p = self.outages
            trace = inject_outages(trace, p.every_s, p.mean_s, named_seed(p.seed, trace.name))
        if self.jitter is not None:
            q = self.jitter
            trace = jittered(trace, q.dt_ms / 1000, q.cv, q.correlation_s, named_seed(q.seed, trace.name))
        return trace


def named_seed(seed: int, name: str) -> int:
    """Return a seed, 48 bits, that depends on ``seed`` and ``name`` and on nothing else.

    >>> named_seed(1, "a") != named_seed(1, "b") != named_seed(2, "b")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "big")


def expand(item: int | str) -> range:
    """Return the indices of ``3`` or ``"10-19"``; ValueError for anything else."""
    if isinstance(item, int):
        if item < 0:
            raise ValueError(f"index {item}, expected at least 0")
        return range(item, item + 1)
    match = _RANGE.fullmatch(item)
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(f"{item!r}, expected an index or a range such as '10-19'")
    return range(int(match[1]), int(match[2]) + 1)
