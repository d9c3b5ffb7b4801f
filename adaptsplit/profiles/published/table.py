"""The YAML form of a split table from the literature: what was measured, where it stands, and what is modelled."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from adaptsplit.config import Config, parse, read_yaml
from adaptsplit.profiles.arrays import MAX_STAGE_S
from adaptsplit.profiles.published.modelling import exit_model, server_seconds

MAX_CUTS = 60
MAX_CODECS = 16
MAX_CLASSES = 100_000
MAX_SECONDS = MAX_STAGE_S / 2
"""A stage time may double by its spread and must still fit a profile."""

Fact = Literal[
    "device_s",
    "server_s",
    "bytes",
    "quality",
    "accuracy",
    "local_s",
    "input_bytes",
    "macs",
    "spread",
    "codec_s",
    "exits",
]
FACTS: tuple[str, ...] = get_args(Fact)

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Text = Annotated[str, Field(min_length=1, max_length=400)]
Reason = Annotated[str, Field(min_length=1, max_length=2000)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Share = Annotated[float, Field(ge=0, le=1)]
Bytes = Annotated[int, Field(gt=0, le=2**24)]
Macs = Annotated[int, Field(ge=0, le=10**15)]
Rate = Annotated[float, Field(ge=1e3, le=1e18)]


class Codec(Config):
    """One way to send the features of a cut: container bytes, coding seconds, quality (null: the whole network's)."""

    name: Name
    bytes: Bytes
    quality: Share | None = None
    encode_s: Seconds = 0.0
    decode_s: Seconds = 0.0


class Exit(Config):
    """An early exit on the device at its published rule.

    ``share`` of all samples leave there or before, ``overall`` is the accuracy of the whole scheme at that rule.
    ``accuracy`` (of those that leave) and ``accuracy_below`` (of the exit on the others) are modelled where null.
    ``confidence`` is the level of our scale that stands for the published rule.
    """

    rule: Text
    share: Annotated[float, Field(gt=0, lt=1)]
    overall: Share
    confidence: Annotated[float, Field(gt=0, lt=1)]
    accuracy: Share | None = None
    accuracy_below: Share | None = None


class Cut(Config):
    """One cut point: device and server seconds per image, codecs (strongest compression first), at most one exit.

    A null ``server_s`` is modelled as ``macs_after`` / the server's rate.
    """

    name: Name
    device_s: Seconds
    server_s: Seconds | None = None
    macs_after: Macs | None = None
    codecs: Annotated[tuple[Codec, ...], Field(min_length=1, max_length=MAX_CODECS)]
    exit: Exit | None = None

    @model_validator(mode="after")
    def _check(self) -> Cut:
        if self.server_s is None and self.macs_after is None:
            raise ValueError(f"cut {self.name!r} has neither server_s nor macs_after; give one of them")
        _check_unique("codec", (codec.name for codec in self.codecs))
        return self


class Machine(Config):
    """A device or server as its source names it; ``macs_per_s`` models what was not measured on it."""

    name: Text
    macs_per_s: Rate | None = None


class Claim(Config):
    """What the source itself calls best: ``uplink_bps`` null means that the network costs nothing."""

    objective: Literal["latency", "throughput"]
    uplink_bps: Annotated[float, Field(gt=0)] | None
    among: Literal["cuts", "all"]
    best: Name
    source: Text


class PublishedTable(Config):
    """A published split table. Seconds are per image. ``sources`` and ``modelled`` together explain every fact.

    ``accuracy`` is the quality of the whole network in the sense of ``quality_means``; ``spread`` the relative
    half-width of every stage time; ``input_bytes`` what sending the input costs. A fact that is modelled only in part
    (the server time of some cuts) stands in both mappings.
    """

    schema_: Literal["adaptsplit.published/1"] = Field(alias="schema")
    name: Name
    network: Text
    quality_means: Text
    classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)]
    device: Machine
    server: Machine
    macs_full: Annotated[int, Field(gt=0, le=10**15)]
    accuracy: Share
    local_s: Annotated[float, Field(ge=1e-9, le=MAX_SECONDS)]
    input_bytes: Bytes
    spread: Annotated[float, Field(ge=0, lt=1)]
    cuts: Annotated[tuple[Cut, ...], Field(min_length=1, max_length=MAX_CUTS)]
    claims: tuple[Claim, ...] = ()
    sources: dict[Fact, Reason]
    modelled: dict[Fact, Reason]

    @model_validator(mode="after")
    def _check(self) -> PublishedTable:
        _check_unique("cut", ("input", "local", "skip", *(cut.name for cut in self.cuts)))
        self._check_explained()
        if self.server.macs_per_s is None:
            raise ValueError("server.macs_per_s is needed to model the offloaded input; give it")
        places = {"input", "local", *(cut.name for cut in self.cuts)}
        for claim in self.claims:
            if claim.best not in places:
                raise ValueError(f"claim: best {claim.best!r} is no cut of this table")
        for cut in self.cuts:
            _check_exit(cut, self.accuracy, self.classes)
        self._check_server()
        return self

    def _check_server(self) -> None:
        for cut in (None, *self.cuts):
            seconds = server_seconds(self, cut) + (max(codec.decode_s for codec in cut.codecs) if cut else 0.0)
            if seconds > MAX_SECONDS:
                place = cut.name if cut else "input"
                raise ValueError(
                    f"{place}: {seconds:.4g} s on the server; at most {MAX_SECONDS:g}: check server.macs_per_s"
                )

    def _check_explained(self) -> None:
        absent = set()
        if not any(cut.exit for cut in self.cuts):
            absent.add("exits")
        if not any(codec.encode_s + codec.decode_s for cut in self.cuts for codec in cut.codecs):
            absent.add("codec_s")
        wanted = [fact for fact in FACTS if fact not in absent]
        missing = [fact for fact in wanted if fact not in self.sources and fact not in self.modelled]
        if missing:
            raise ValueError(f"{', '.join(missing)}: neither in sources nor in modelled; say where each comes from")
        if "server_s" not in self.modelled and any(cut.server_s is None for cut in self.cuts):
            raise ValueError("server_s is null in some cuts; say under modelled how it is filled")
        if "exits" not in self.modelled and any(cut.exit and cut.exit.accuracy is None for cut in self.cuts):
            raise ValueError("an exit's accuracy is null; say under modelled: exits how it is filled")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table's content, independent of its YAML layout."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()


def load_table(path: Path | str) -> PublishedTable:
    """Read a table from a YAML file; ConfigError lists every fault with its place."""
    return parse(PublishedTable, read_yaml(Path(path)), str(path))


def _check_unique(kind: str, names: Iterable[str]) -> None:
    counts = Counter(names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{kind} name {twice[0]!r} is taken twice (input, local and skip are reserved); rename one")


def _check_exit(cut: Cut, accuracy: float, classes: int) -> None:
    """The published numbers must be possible together, and the confidence scale must lie between the accuracies."""
    if cut.exit is None:
        return
    model, place = exit_model(cut.exit, classes), f"cut {cut.name!r}: exit"
    if not 0 <= model.rest <= 1:
        raise ValueError(f"{place}: overall {cut.exit.overall} is impossible with share and accuracy; check them")
    if not max(model.below, 1 / max(classes, 3)) < cut.exit.confidence <= model.above:
        raise ValueError(
            f"{place}: confidence {cut.exit.confidence} must lie above {model.below:.4f}, the exit's accuracy on the "
            f"samples that stay, and not above {model.above:.4f}, that on those that leave; choose another level"
        )
    for codec in cut.codecs:
        leaving = (codec.quality if codec.quality is not None else accuracy) - (1 - cut.exit.share) * model.rest
        if not -1e-9 <= leaving <= cut.exit.share + 1e-9:
            raise ValueError(f"{place}: codec {codec.name!r} has a quality that overall and share make impossible")
