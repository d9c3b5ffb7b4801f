"""The content of a bundle's ``manifest.json``, and the stage times in it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit.agents.base import ControllerContext
from adaptsplit.agents.policy_file import space_of
from adaptsplit.bundle_files import EXPORT_AGAIN, MAX_FILE_BYTES, MAX_FILES
from adaptsplit.bundle_selftest import SelfTest
from adaptsplit.config import Config, parse, printable, refuse_constant
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import ConfigError, DataError
from adaptsplit.guard_range import TrainedRange
from adaptsplit.signing import PrintableOnly, Refusal, RefusedBundle, refuse_twins

MAX_VALUES = 1 << 17  # of a manifest; those of the shipped scenarios have about 3,600
_NESTS = (dict, list)
RelativeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*){0,3}$")]


class FileEntry(Config):
    """What a file of the bundle must be."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class ControllerEntry(Config):
    """The controller: ``source`` is the name it is built from, or ``policy.npz`` for a learned one."""

    kind: Literal["static", "random", "rule", "learned"]
    name: PrintableOnly = Field(min_length=1, max_length=200)
    source: PrintableOnly = Field(min_length=1, max_length=200)


class StageEntry(Config):
    """Stage times on the named device as quantiles, s: nested lists of (B, Q), (B, R, Q) and (Q,)."""

    head_s: list[list[float]]
    encode_s: list[list[list[float]]]
    signal_s: list[float]


class Manifest(Config):
    """The content of ``manifest.json``."""

    schema_: Literal["adaptsplit.bundle/1"] = Field(alias="schema")
    name: PrintableOnly
    created: PrintableOnly
    library: PrintableOnly
    scenario: PrintableOnly
    device: PrintableOnly
    frames: PrintableOnly
    observation: str
    space: dict[str, Any]
    controller: ControllerEntry
    context: ControllerContext
    classes: tuple[PrintableOnly, ...]
    stages: StageEntry
    summary: dict[str, Any]
    trained: TrainedRange | None = None
    selftest: SelfTest | None = None
    files: dict[RelativeName, FileEntry] = Field(max_length=MAX_FILES)


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Modelled times of the device's stages, s, as quantiles at the Q levels (i + 1/2) / Q.

    ``head_s`` (B, Q) head and exit, ``encode_s`` (B, R, Q), ``signal_s`` (Q,). The methods interpolate at level ``u``;
    beyond the outer levels the outer quantile holds.
    """

    head_s: NDArray[np.float64]
    encode_s: NDArray[np.float64]
    signal_s: NDArray[np.float64]

    def head(self, branch: int, u: float = 0.5) -> float:
        """Return the time of head and exit of a branch (of ``local``: of the full model)."""
        return _at(self.head_s[branch], u)

    def encode(self, branch: int, rate: int, u: float = 0.5) -> float:
        """Return the time of encoding."""
        return _at(self.encode_s[branch, rate], u)

    def signal(self, u: float = 0.5) -> float:
        """Return the time of the content signal."""
        return _at(self.signal_s, u)


def _at(levels: NDArray[np.float64], u: float) -> float:
    return float(np.interp(u, (np.arange(len(levels)) + 0.5) / len(levels), levels))


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Parse the bytes of a manifest; RefusedBundle ``malformed`` names every fault."""
    try:
        value = json.loads(data, parse_constant=refuse_constant, parse_float=_finite, object_pairs_hook=refuse_twins)
    except (ValueError, RecursionError) as error:
        problem = printable(f"{path}: not valid JSON ({error}); {EXPORT_AGAIN}")
        raise RefusedBundle(Refusal.MALFORMED, problem) from error
    if not isinstance(value, dict):
        raise RefusedBundle(
            Refusal.MALFORMED, f"{path}: expected a JSON object, found {type(value).__name__}; {EXPORT_AGAIN}"
        )
    try:
        _check_values(value, path)
        manifest = parse(Manifest, value, str(path))
        if space_of(value, str(path)).to_dict() != manifest.space:
            raise ConfigError(f"{path}: decision space in another form than we write")
    except (ConfigError, DataError) as error:
        raise RefusedBundle(Refusal.MALFORMED, f"{error}\n{EXPORT_AGAIN}") from error
    return manifest


def _check_values(value: dict[str, Any], path: Path) -> None:
    """ConfigError for a document of too many values: each wrong one costs 600 bytes once it is validated."""
    count, nests = 0, list[Any]((value,))
    while nests and count <= MAX_VALUES:
        nest = nests.pop()
        count += len(nest)
        nests += [part for part in (nest.values() if isinstance(nest, dict) else nest) if isinstance(part, _NESTS)]
    if count > MAX_VALUES:
        raise ConfigError(f"{path}: more than {MAX_VALUES} values")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond the numbers of a double")
    return number


def stage_times(entry: StageEntry, space: DecisionSpace) -> StageTimes:
    """Arrays of the manifest's stage times; ValueError unless they fit the space."""
    head, encode = np.array(entry.head_s, dtype=np.float64), np.array(entry.encode_s, dtype=np.float64)
    signal = np.array(entry.signal_s, dtype=np.float64)
    b, r, _ = space.shape
    levels = len(entry.signal_s)
    if levels < 2 or head.shape != (b, levels) or encode.shape != (b, r, levels):
        raise ValueError(f"stage times of shapes {head.shape}, {encode.shape}, {signal.shape} do not fit {b} x {r}")
    if min(head.min(), encode.min(), signal.min()) < 0.0:
        raise ValueError("a stage time below 0")
    return StageTimes(head, encode, signal)
