"""The deployable artefact: one folder with policy, decision space, profile summary, model and a manifest with hashes.

``export_bundle`` writes it on the workstation, ``load_bundle`` reads it on a device and on the edge with the base
install alone. Nothing in a bundle is executed or unpickled: JSON, ``.npz`` arrays and ONNX graphs. Any missing, extra
or changed file is a BundleError before anything is used.

    bundle/manifest.json      schema, controller, decision space, context, stage times, summary, {file: sha256, bytes}
    bundle/policy.npz         the learned policy, if there is one
    bundle/model/             model.json, heads, decoders, trunk, tail
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit import observation as obs
from adaptsplit.agents.base import ControllerContext
from adaptsplit.agents.build import POLICY_FILE, build_controller, context_of, kind_of, make_controller
from adaptsplit.agents.policy import MAX_POLICY_BYTES, PolicyController, parse_policy, save_policy
from adaptsplit.agents.static import InterleavedController
from adaptsplit.config import Config, parse
from adaptsplit.controller import Controller
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import AdaptsplitError, BundleError, ConfigError
from adaptsplit.profiles import ProfileSummary
from adaptsplit.runtime.folder import MODEL_FILE, ModelFolder

if TYPE_CHECKING:
    from adaptsplit.scenario import Scenario

MANIFEST_FILE = "manifest.json"
MODEL_FOLDER = "model"
MAX_MANIFEST_BYTES = 8 << 20
MAX_FILE_BYTES = 256 << 20
MAX_FILES = 256
EXPORT_AGAIN = "export the bundle again, or copy the whole folder again"

RelativeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*){0,3}$")]


class FileEntry(Config):
    """What a file of the bundle must be."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class ControllerEntry(Config):
    """The controller: ``source`` is the name it is built from, or ``policy.npz`` for a learned one."""

    kind: Literal["static", "random", "rule", "learned"]
    name: str = Field(min_length=1, max_length=200)
    source: str = Field(min_length=1, max_length=200)


class StageEntry(Config):
    """Stage times on the named device as quantiles, s: nested lists of (B, Q), (B, R, Q) and (Q,)."""

    head_s: list[list[float]]
    encode_s: list[list[list[float]]]
    signal_s: list[float]


class Manifest(Config):
    """The content of ``manifest.json``."""

    schema_: Literal["adaptsplit.bundle/1"] = Field(alias="schema")
    name: str
    created: str
    library: str
    scenario: str
    device: str
    frames: str
    observation: str
    space: dict[str, Any]
    controller: ControllerEntry
    context: ControllerContext
    classes: tuple[str, ...]
    stages: StageEntry
    summary: dict[str, Any]
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


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle. ``digest`` (SHA-256 of the manifest, which lists all hashes) identifies it."""

    path: Path
    manifest: Manifest
    digest: str
    space: DecisionSpace
    summary: ProfileSummary
    stages: StageTimes
    controller: Controller

    @property
    def context(self) -> ControllerContext:
        """Constants of the scenario that it was made for."""
        return self.manifest.context

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.manifest.classes

    @property
    def model_path(self) -> Path:
        """The model folder."""
        return self.path / MODEL_FOLDER

    def build(self, names: Sequence[str], block: int) -> Controller:
        """Return the controller for ``--controller``: names of agents, ``bundle`` for the bundle's own.

        Several run interleaved in blocks of ``block`` frames.
        """
        parts = [
            self.controller
            if name == "bundle"
            else build_controller(name, self.space, self.summary, self.manifest.context)
            for name in names
        ]
        return parts[0] if len(parts) == 1 else InterleavedController(parts, block)


def _at(levels: NDArray[np.float64], u: float) -> float:
    return float(np.interp(u, (np.arange(len(levels)) + 0.5) / len(levels), levels))


def load_bundle(path: str | Path) -> Bundle:
    """Read and verify a bundle; BundleError names the file at fault and the cure. Nothing is executed."""
    folder = Path(path)
    data = _read(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest = _manifest(data, folder / MANIFEST_FILE)
    _check_files(folder, manifest)
    if manifest.observation != obs.schema_hash():
        raise BundleError(
            f"{folder / MANIFEST_FILE}: made by adaptsplit {manifest.library} for observation {manifest.observation}; "
            f"this version has {obs.schema_hash()}: install the same version here, or export the bundle again"
        )
    try:
        space = DecisionSpace.from_dict(manifest.space)
        summary = ProfileSummary.from_dict(manifest.summary)
        controller = _controller(folder, manifest, space, summary)
        stages = _stage_times(manifest.stages, space)
    except (AdaptsplitError, ValueError, IndexError) as error:
        raise BundleError(f"{folder / MANIFEST_FILE}: {error}; {EXPORT_AGAIN}") from error
    return Bundle(folder, manifest, hashlib.sha256(data).hexdigest(), space, summary, stages, controller)


def export_bundle(controller: str, scenario: Scenario, out: str | Path) -> Bundle:
    """Write the bundle of a controller (a name, or a run's folder) for a scenario; return it, loaded and verified.

    ConfigError when ``out`` is a folder with other things in it; an older bundle there is replaced.
    """
    folder = Path(out)
    if folder.exists() and not (folder / MANIFEST_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is no bundle; name another folder with --out")
    built = make_controller(controller, scenario)
    draft = folder.with_name(f"{folder.name}.draft-{os.getpid()}")
    try:
        _write(draft, controller, built, scenario)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return load_bundle(folder)


def _write(folder: Path, source: str, controller: Controller, scenario: Scenario) -> None:
    kind = kind_of(controller)
    if kind not in ("static", "random", "rule", "learned"):
        raise ConfigError(f"controller {source!r} ({kind}) cannot be deployed; export one static, rule or learned one")
    model = ModelFolder.open(scenario.model_path)
    (folder / MODEL_FOLDER).mkdir(parents=True)
    for name in (MODEL_FILE, *model.card.files):
        shutil.copyfile(model.path / name, folder / MODEL_FOLDER / name)
    if isinstance(controller, PolicyController):
        save_policy(folder / POLICY_FILE, controller.name, controller.space, controller.net)
        source = POLICY_FILE
    manifest = {
        "schema": "adaptsplit.bundle/1",
        "name": f"{scenario.name}-{controller.name}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "library": _library_version(),
        "scenario": scenario.name,
        "device": scenario.compute.name,
        "frames": scenario.frames,
        "observation": obs.schema_hash(),
        "space": scenario.space.to_dict(),
        "controller": {"kind": kind, "name": controller.name, "source": source},
        "context": context_of(scenario).model_dump(),
        "classes": list(model.card.classes),
        "stages": _scaled_stages(scenario),
        "summary": scenario.summary().to_dict(),
        "files": {name: _entry(folder / name) for name in _listed(folder)},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _scaled_stages(scenario: Scenario) -> dict[str, Any]:
    """Stage quantiles of the training profile, scaled to the scenario's device."""
    profile, networks, codecs = scenario.profile("train"), scenario.stage_scale, scenario.codec_scale
    arrays = (("head_s", profile.head_s, networks), ("encode_s", profile.encode_s, codecs))
    scaled = (*arrays, ("signal_s", profile.signal_s, codecs))
    return {name: (np.asarray(array, dtype=np.float64) * scale).tolist() for name, array, scale in scaled}


def _library_version() -> str:
    try:
        return version("adaptsplit")
    except PackageNotFoundError:
        return "unknown"


def _entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _listed(folder: Path) -> list[str]:
    return sorted(name for name in _walk(folder) if name != MANIFEST_FILE)


def _walk(folder: Path) -> Iterator[str]:
    """Yield the relative name of every file; BundleError for anything that is neither a file nor a folder."""
    for entry in sorted(os.scandir(folder), key=lambda item: item.name):
        if entry.is_dir(follow_symlinks=False):
            yield from (f"{entry.name}/{inner}" for inner in _walk(Path(entry.path)))
        elif entry.is_file(follow_symlinks=False):
            yield entry.name
        else:
            raise BundleError(f"{entry.path}: a link or special file; a bundle holds plain files only: {EXPORT_AGAIN}")


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise BundleError(f"{path}: {path.stat().st_size} bytes; at most {limit} are read: {EXPORT_AGAIN}")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror}); give the folder that `adaptsplit export` wrote"
        ) from error


def _manifest(data: bytes, path: Path) -> Manifest:
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}); {EXPORT_AGAIN}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(value).__name__}; {EXPORT_AGAIN}")
    try:
        return parse(Manifest, value, str(path))
    except ConfigError as error:
        raise BundleError(f"{error}\n{EXPORT_AGAIN}") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the folder with the manifest: every file, its size and its hash."""
    found = set(_listed(folder))
    missing, extra = sorted(set(manifest.files) - found), sorted(found - set(manifest.files))
    if missing:
        raise BundleError(f"{folder / missing[0]}: missing; {EXPORT_AGAIN}")
    if extra:
        raise BundleError(f"{folder / extra[0]}: not listed in {MANIFEST_FILE}; remove it, or {EXPORT_AGAIN}")
    for name, entry in manifest.files.items():
        data = _read(folder / name, MAX_FILE_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        if len(data) != entry.bytes or digest != entry.sha256:
            raise BundleError(
                f"{folder / name}: {len(data)} bytes, SHA-256 {digest[:12]}..., but {MANIFEST_FILE} says "
                f"{entry.bytes} bytes, {entry.sha256[:12]}...; the file is damaged or was changed: {EXPORT_AGAIN}"
            )
    if f"{MODEL_FOLDER}/{MODEL_FILE}" not in manifest.files:
        raise BundleError(f"{folder / MANIFEST_FILE}: lists no {MODEL_FOLDER}/{MODEL_FILE}; {EXPORT_AGAIN}")


def _controller(folder: Path, manifest: Manifest, space: DecisionSpace, summary: ProfileSummary) -> Controller:
    entry = manifest.controller
    if entry.kind != "learned":
        return build_controller(entry.source, space, summary, manifest.context)
    if entry.source not in manifest.files:
        raise BundleError(f"its policy {entry.source!r} is not a file of the bundle")
    where = folder / entry.source
    policy = parse_policy(_read(where, MAX_POLICY_BYTES), str(where), entry.name)
    if policy.space != space:
        raise BundleError(f"{where.name} is a policy for another decision space")
    return policy


def _stage_times(entry: StageEntry, space: DecisionSpace) -> StageTimes:
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
