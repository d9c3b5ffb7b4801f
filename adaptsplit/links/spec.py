"""Links as a scenario file names them: generated ones by seed, recorded ones by path below the data directory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from adaptsplit.config import Config
from adaptsplit.errors import ConfigError, LinkError
from adaptsplit.links.generators import link_generators
from adaptsplit.links.readers import read_links
from adaptsplit.links.trace import LinkTrace

_RANGE = re.compile(r"(\d{1,6})-(\d{1,6})")


class GenerateLink(Config):
    """``{kind: generate, generator: lte-drone, seeds: [1, 2, 3], duration_s: 300, family: lte}``: one trace per seed.

    ``seeds`` may hold ranges such as ``"1-40"``. ``parameters`` are those of the generator; what is left out has the
    generator's default.
    """

    kind: Literal["generate"]
    generator: str
    seeds: tuple[int | str, ...] = Field(min_length=1, max_length=10_000)
    duration_s: float = Field(gt=0, le=86_400)
    family: str = Field(min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if sum(len(_expand(item)) for item in seeds) > 10_000:
            raise ValueError("more than 10000 seeds; name fewer")
        return seeds

    def build(self, data: Path | None) -> list[LinkTrace]:
        """Return one trace per seed; ``data`` is not needed."""
        make = link_generators.get(self.generator)
        return [
            replace(make(seed, self.duration_s, self.parameters), family=self.family)
            for item in self.seeds
            for seed in _expand(item)
        ]


class FileLink(Config):
    """``{kind: file, path: net_mahimahi/traces/X.up, family: lte, rtt_ms: 60, end_s: 800}``: recorded traces.

    path: below the data directory, or absolute. reader: a name, or left out to detect the format by content.
    rtt_ms: round-trip time where the file has none. dt_ms: sample length. select: which traces of the file, as
    indices and ranges such as ``[3, "10-19"]``; all when left out. start_s, end_s: a part of each. scale: a factor on
    capacity.
    """

    kind: Literal["file"]
    path: str = Field(min_length=1)
    family: str = Field(min_length=1)
    reader: str | None = None
    rtt_ms: float = Field(default=50.0, ge=0, le=600_000)
    dt_ms: float | None = Field(default=None, ge=1)
    select: tuple[int | str, ...] | None = None
    start_s: float = Field(default=0.0, ge=0)
    end_s: float | None = Field(default=None, gt=0)
    scale: float = Field(default=1.0, gt=0)

    @field_validator("select")
    @classmethod
    def _indices(cls, select: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
        for item in select or ():
            _expand(item)
        return select

    def build(self, data: Path | None) -> list[LinkTrace]:
        """Read, select, cut and scale."""
        path = self._locate(data)
        dt_s = None if self.dt_ms is None else self.dt_ms / 1000
        traces = read_links(path, self.reader, dt_s=dt_s, rtt_s=self.rtt_ms / 1000, family=self.family)
        return [self._shape(trace) for trace in self._selected(traces)]

    def _locate(self, data: Path | None) -> Path:
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

    def _selected(self, traces: list[LinkTrace]) -> list[LinkTrace]:
        if self.select is None:
            return traces
        wanted = [index for item in self.select for index in _expand(item)]
        beyond = [index for index in wanted if index >= len(traces)]
        if beyond:
            raise ConfigError(f"link {self.path!r}: select {beyond[0]}, expected 0 to {len(traces) - 1}")
        return [traces[index] for index in wanted]

    def _shape(self, trace: LinkTrace) -> LinkTrace:
        if self.start_s > 0 or self.end_s is not None:
            trace = trace.slice(self.start_s, trace.duration_s if self.end_s is None else self.end_s)
        return trace if self.scale == 1 else trace.scaled(self.scale)


LinkSpec = Annotated[GenerateLink | FileLink, Field(discriminator="kind")]


def build_links(specs: Sequence[GenerateLink | FileLink], data: Path | None) -> list[LinkTrace]:
    """Build every trace that ``specs`` name.

    Args:
        specs: parsed link entries of a scenario (``LinkSpec`` is the type for a Config field).
        data: directory that relative paths of recordings start from; None where none is known.

    Raises:
        ConfigError: the data directory or a file is missing, a name or a parameter is wrong, nothing is left.
        LinkError: a recording that cannot be used, or the same trace twice.
    """
    traces = [trace for spec in specs for trace in spec.build(data)]
    if not traces:
        raise ConfigError("no link is named; give at least one entry with kind generate or file")
    return _told_apart(traces)


def _told_apart(traces: list[LinkTrace]) -> list[LinkTrace]:
    """The same traces with names that differ; the same trace twice is an error."""
    seen: set[tuple[str, str]] = set()
    uses: Counter[str] = Counter()
    result = []
    for trace in traces:
        key = (trace.name, trace.digest())
        if key in seen:
            raise LinkError(f"link {trace.name} occurs twice in one list; leave one of them out")
        seen.add(key)
        uses[trace.name] += 1
        result.append(trace if uses[trace.name] == 1 else replace(trace, name=f"{trace.name} ({uses[trace.name]})"))
    return result


def _expand(item: int | str) -> range:
    if isinstance(item, int):
        if item < 0:
            raise ValueError(f"index {item}, expected at least 0")
        return range(item, item + 1)
    match = _RANGE.fullmatch(item)
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(f"{item!r}, expected an index or a range such as '10-19'")
    return range(int(match[1]), int(match[2]) + 1)
