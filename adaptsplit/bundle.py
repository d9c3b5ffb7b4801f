"""The deployable artefact: one folder with policy, decision space, profile summary, model and a manifest with hashes.

``export_bundle`` writes it on the workstation, ``load_bundle`` reads it on a device and on the edge with the base
install alone. Nothing in a bundle is executed or unpickled: JSON, ``.npz`` arrays and ONNX graphs. Any missing, extra
or changed file is a BundleError before anything is used; with a ``Trust`` so is a bundle without a good signature.

    bundle/manifest.json      schema, controller, decision space, context, stage times, summary, {file: sha256, bytes}
    bundle/signature.json     who signed which manifest, its version and expiry (``adaptsplit keys sign``)
    bundle/policy.npz         the learned policy, if there is one
    bundle/model/             model.json, heads, decoders, trunk, tail
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.base import ControllerContext
from adaptsplit.agents.build import POLICY_FILE, build_controller, context_of, kind_of, make_controller
from adaptsplit.agents.policy import MAX_POLICY_BYTES, parse_policy
from adaptsplit.agents.static import InterleavedController
from adaptsplit.bundle_files import (
    EXPORT_AGAIN,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MODEL_FOLDER,
    check_files,
    check_signature,
    entry,
    listed,
    read_checked,
    read_file,
)
from adaptsplit.bundle_manifest import Manifest, StageTimes, parse_manifest, stage_times
from adaptsplit.bundle_selftest import golden_episode
from adaptsplit.controller import Controller
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import AdaptsplitError, ConfigError
from adaptsplit.guard_range import EVERYWHERE, TrainedRange
from adaptsplit.profiles import ProfileSummary
from adaptsplit.runtime.folder import MODEL_FILE, ModelFolder
from adaptsplit.signing import (
    SIGNATURE_FILE,
    Refusal,
    RefusedBundle,
    SignatureFile,
    Statement,
    Trust,
    decisions_hash,
    library_version,
)

if TYPE_CHECKING:
    from adaptsplit.guard_monitors import GuardLimits
    from adaptsplit.scenario import Scenario

__all__ = [
    "MANIFEST_FILE",
    "MODEL_FOLDER",
    "Bundle",
    "Manifest",
    "StageTimes",
    "export_bundle",
    "load_bundle",
]

_UNFIT = (AdaptsplitError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, RecursionError)
SLOW_LEVEL = 0.95  # quantile of the stage times that the guard predicts answers with; an assumption


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle. ``digest`` (SHA-256 of the manifest, which lists all hashes) identifies it.

    ``signed`` is the verified statement of a trusted key; None where no trust was asked for.
    """

    path: Path
    manifest: Manifest
    digest: str
    space: DecisionSpace
    summary: ProfileSummary
    stages: StageTimes
    controller: Controller
    signed: Statement | None = None

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

    @property
    def assurance(self) -> str:
        """Say in words what is known of its origin."""
        if self.signed is not None:
            until = datetime.fromtimestamp(self.signed.not_after, UTC).date().isoformat()
            return f"signed by a trusted key, version {self.signed.version}, until {until}"
        if (self.path / SIGNATURE_FILE).exists():
            return "signed, but the signature was not checked: no key is trusted here"
        return "not signed: its files are whole, but anyone may have made it"

    @property
    def answer_s(self) -> NDArray[np.float64]:
        """(B,) time until the device's own answer on each branch, s: decision, content signal, head and exit."""
        before = self.context.decision_s + self.stages.signal(SLOW_LEVEL)
        return np.array([before + self.stages.head(b, SLOW_LEVEL) for b in range(len(self.space.branches))])

    def build(
        self, names: Sequence[str], block: int, *, guard: bool = False, limits: GuardLimits | None = None
    ) -> Controller:
        """Return the controller for ``--controller``: names of agents, ``bundle`` for the bundle's own.

        Several run interleaved in blocks of ``block`` frames. With ``guard`` everything learned runs inside a
        ``GuardedController``, as it must on a device.
        """
        parts = [
            self.controller
            if name == "bundle"
            else build_controller(name, self.space, self.summary, self.manifest.context)
            for name in names
        ]
        if guard:
            parts = [self._guarded(part, limits) for part in parts]
        return parts[0] if len(parts) == 1 else InterleavedController(parts, block)

    def _guarded(self, controller: Controller, limits: GuardLimits | None) -> Controller:
        from adaptsplit.guard import guard_learned

        trained = self.manifest.trained if controller is self.controller else None
        return guard_learned(
            controller,
            self.space,
            self.context,
            answer_s=self.answer_s,
            trained=trained or EVERYWHERE,
            limits=limits,
        )


def load_bundle(path: str | Path, trusted: Trust | None = None, *, at_rest: bool = False) -> Bundle:
    """Read and verify a bundle; BundleError names the file at fault and the cure. Nothing is executed.

    With ``trusted`` its signature is checked before anything else is read, and its version is remembered once all of it
    was found good; RefusedBundle has the reason's code. Without, an unsigned bundle is taken (``Bundle.assurance``
    says so): hashes find damage, not a stranger. ``at_rest`` is for a bundle that was taken before (``Trust.check``):
    its times and its version are not looked at, and nothing is remembered.
    """
    folder = Path(path)
    signed = None if trusted is None else check_signature(folder, trusted, at_rest=at_rest)
    data = read_file(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if signed is not None and digest != signed.statement.manifest:
        raise RefusedBundle(
            Refusal.CHANGED, f"{folder / MANIFEST_FILE}: not the manifest that was signed; copy the whole folder again"
        )
    manifest = parse_manifest(data, folder / MANIFEST_FILE)
    check_files(folder, manifest.files)
    _check_schemas(manifest, signed, folder / MANIFEST_FILE)
    bundle = _build(folder, manifest, digest)
    if trusted is None or signed is None:
        return bundle
    if not at_rest:
        trusted.remember(signed.statement)
    return replace(bundle, signed=signed.statement)


def export_bundle(
    controller: str, scenario: Scenario, out: str | Path, *, trained: TrainedRange | None = None
) -> Bundle:
    """Write the bundle of a controller (a name, or a run's folder) for a scenario; return it, loaded and verified.

    ConfigError when ``out`` is a folder with other things in it; an older bundle there is replaced.
    ``trained`` is the range of observations of a learned controller's training (``measure_range``), for the guard.
    """
    folder = Path(out)
    if folder.exists() and not (folder / MANIFEST_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is no bundle; name another folder with --out")
    built = make_controller(controller, scenario)
    draft = folder.with_name(f"{folder.name}.draft-{os.getpid()}")
    try:
        _write(draft, controller, built, scenario, trained)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return load_bundle(folder)


def _write(folder: Path, source: str, controller: Controller, scenario: Scenario, trained: TrainedRange | None) -> None:
    kind = kind_of(controller)
    if kind not in ("static", "random", "rule", "learned"):
        raise ConfigError(f"controller {source!r} ({kind}) cannot be deployed; export one static, rule or learned one")
    model = ModelFolder.open(scenario.model_path)
    (folder / MODEL_FOLDER).mkdir(parents=True)
    for name in (MODEL_FILE, *model.card.files):
        shutil.copyfile(model.path / name, folder / MODEL_FOLDER / name)
    if callable(save := getattr(controller, "save", None)):
        save(folder / POLICY_FILE)
        source = POLICY_FILE
    summary = scenario.summary().to_dict()
    if source != POLICY_FILE:  # as the device will build it: from the summary's rounded numbers
        controller = build_controller(source, scenario.space, ProfileSummary.from_dict(summary), context_of(scenario))
    golden = golden_episode(controller, scenario.space, kind)
    manifest = {
        "schema": "adaptsplit.bundle/1",
        "name": f"{scenario.name}-{controller.name}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "library": library_version(),
        "scenario": scenario.name,
        "device": scenario.compute.name,
        "frames": scenario.frames,
        "observation": obs.schema_hash(),
        "space": scenario.space.to_dict(),
        "controller": {"kind": kind, "name": controller.name, "source": source},
        "context": context_of(scenario).model_dump(),
        "classes": list(model.card.classes),
        "stages": _scaled_stages(scenario),
        "summary": summary,
        "trained": None if trained is None else trained.model_dump(),
        "selftest": None if golden is None else golden.model_dump(),
        "files": {name: entry(folder / name) for name in listed(folder)},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _scaled_stages(scenario: Scenario) -> dict[str, Any]:
    """Stage quantiles of the training profile, scaled to the scenario's device."""
    profile, networks, codecs = scenario.profile("train"), scenario.stage_scale, scenario.codec_scale
    arrays = (("head_s", profile.head_s, networks), ("encode_s", profile.encode_s, codecs))
    scaled = (*arrays, ("signal_s", profile.signal_s, codecs))
    return {name: (np.asarray(array, dtype=np.float64) * scale).tolist() for name, array, scale in scaled}


def _check_schemas(manifest: Manifest, signed: SignatureFile | None, where: Path) -> None:
    """Compare the observation with ours, and what was signed with what the manifest says."""
    if manifest.observation != obs.schema_hash():
        raise RefusedBundle(
            Refusal.OBSERVATION,
            f"{where}: made by adaptsplit {manifest.library} for observation {manifest.observation}; "
            f"this version has {obs.schema_hash()}: install the same version here, or export the bundle again",
        )
    if signed is None:
        return
    says, said = signed.statement, decisions_hash(manifest.space)
    if (says.observation, says.decisions) != (manifest.observation, said):
        raise RefusedBundle(
            Refusal.DECISIONS, f"{where}: signed for decisions {says.decisions}, has {said}; sign the bundle again"
        )


def _build(folder: Path, manifest: Manifest, digest: str) -> Bundle:
    try:
        space = DecisionSpace.from_dict(manifest.space)
        summary = ProfileSummary.from_dict(manifest.summary)
        controller = _controller(folder, manifest, space, summary)
        stages = stage_times(manifest.stages, space)
    except RefusedBundle:
        raise
    except _UNFIT as error:
        raise RefusedBundle(Refusal.MALFORMED, f"{folder / MANIFEST_FILE}: {error}; {EXPORT_AGAIN}") from error
    return Bundle(folder, manifest, digest, space, summary, stages, controller)


def _controller(folder: Path, manifest: Manifest, space: DecisionSpace, summary: ProfileSummary) -> Controller:
    source = manifest.controller
    if source.kind != "learned":
        return build_controller(source.source, space, summary, manifest.context)
    if source.source not in manifest.files:
        raise ConfigError(f"its policy {source.source!r} is not a file of the bundle")
    where = folder / source.source
    expected = manifest.files[source.source]
    if expected.bytes > MAX_POLICY_BYTES:
        raise ConfigError(f"{where.name}: {expected.bytes} bytes; a policy has at most {MAX_POLICY_BYTES}")
    policy = parse_policy(read_checked(where, expected), str(where), source.name)
    if policy.space != space:
        raise ConfigError(f"{where.name} is a policy for another decision space")
    return policy
