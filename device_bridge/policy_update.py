"""What travels in a policy update: the part of a bundle that changes when a policy is trained anew.

An update is the bundle's manifest and then its files outside of ``model/``, one after another in the order of their
names, without any framing: the signed statement holds the SHA-256 of the manifest, and the manifest size and SHA-256 of
every file. The networks stay on the device; the manifest names theirs too, so an update for others is found out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptsplit.bundle import MANIFEST_FILE, MODEL_FOLDER, Bundle
from adaptsplit.bundle_files import MAX_MANIFEST_BYTES, read_file
from adaptsplit.bundle_manifest import FileEntry, Manifest, parse_manifest
from adaptsplit.device_bridge.control import PolicyDesired
from adaptsplit.device_bridge.policy_reasons import Reason, RefusedUpdate
from adaptsplit.errors import ConfigError
from adaptsplit.signing import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, Statement, parse_signature, read_capped

MAX_UPDATE_BYTES = 8 << 20  # policies were measured at 24 KiB to 1.2 MB
CHUNK_BYTES = 16 << 10  # so that a heartbeat waits 0.13 s at most behind one, at 1 Mbit/s
_MODEL = f"{MODEL_FOLDER}/"


@dataclass(frozen=True, slots=True)
class Update:
    """A whole update: ``signature`` and ``manifest`` are files' contents, ``files`` those that are no networks."""

    signature: bytes
    manifest: bytes
    files: Mapping[str, bytes]

    @property
    def slot(self) -> str:
        """SHA-256 of the signature, which identifies it: the same policy signed anew is another update."""
        return hashlib.sha256(self.signature).hexdigest()

    @property
    def parsed(self) -> Manifest:
        """The manifest's content; RefusedBundle for one that is malformed."""
        return parse_manifest(self.manifest, Path(MANIFEST_FILE))

    def to_bytes(self) -> bytes:
        """Return what is sent in chunks."""
        return self.manifest + b"".join(self.files[name] for name in sorted(self.files))

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Update:
        """Return the update that brings a signed bundle's policy; ConfigError says what is in the way."""
        where = bundle.path / SIGNATURE_FILE
        try:
            signature = read_capped(where, MAX_SIGNATURE_BYTES)
        except FileNotFoundError as error:
            raise ConfigError(f"{bundle.path} is not signed; {_sign(bundle)}") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where}: {error}; {_sign(bundle)}") from error
        if parse_signature(signature, str(where)).statement.manifest != bundle.digest:
            raise ConfigError(f"{where}: of another bundle, or of this one before it was changed; {_sign(bundle)}")
        manifest = read_file(bundle.path / MANIFEST_FILE, MAX_MANIFEST_BYTES)
        names = changing(bundle.manifest.files)
        files = {name: read_file(bundle.path / name, entry.bytes) for name, entry in names.items()}
        return cls(signature, manifest, files)


def _sign(bundle: Bundle) -> str:
    return f"sign it: adaptsplit keys sign {bundle.path} --key NAME.key"


def changing(files: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """Return the entries that travel, in the order of their names."""
    return {name: files[name] for name in sorted(files) if not name.startswith(_MODEL)}


def networks(files: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """Return the entries that stay."""
    return {name: entry for name, entry in files.items() if name.startswith(_MODEL)}


def check_size(desired: PolicyDesired) -> None:
    """RefusedUpdate for an update that is larger than any is, before any of it is fetched."""
    if desired.size > MAX_UPDATE_BYTES or desired.manifest_bytes > min(MAX_MANIFEST_BYTES, desired.size):
        raise RefusedUpdate(
            Reason.TOO_LARGE,
            f"update of {desired.size} bytes, {desired.manifest_bytes} of them manifest; at most {MAX_UPDATE_BYTES}",
        )


def split_update(data: bytes, desired: PolicyDesired, statement: Statement, signature: bytes) -> Update:
    """Take an update's bytes apart and check every hash down from the signed statement; RefusedUpdate otherwise."""
    if len(data) != desired.size or hashlib.sha256(data).hexdigest() != desired.sha256:
        raise RefusedUpdate(Reason.BAD_HASH, "what came is not what was announced")
    manifest, rest = data[: desired.manifest_bytes], data[desired.manifest_bytes :]
    if hashlib.sha256(manifest).hexdigest() != statement.manifest:
        raise RefusedUpdate(Reason.BAD_HASH, "not the manifest that was signed")
    entries = changing(Update(signature, manifest, {}).parsed.files)
    if sum(entry.bytes for entry in entries.values()) != len(rest):
        raise RefusedUpdate(Reason.BAD_HASH, f"{len(rest)} bytes of files; the manifest says otherwise")
    files, at = {}, 0
    for name, entry in entries.items():
        files[name] = rest[at : at + entry.bytes]
        at += entry.bytes
        if hashlib.sha256(files[name]).hexdigest() != entry.sha256:
            raise RefusedUpdate(Reason.BAD_HASH, f"{name}: not what the manifest says")
    return Update(signature, manifest, files)


def check_fits(update: Manifest, running: Bundle) -> None:
    """RefusedUpdate unless a policy can take the place of the running one without a restart.

    Networks, classes, decisions, frame rate, deadline and window must be the same; prior estimates, power and stage
    times may differ, and count from the next start on.
    """
    if networks(update.files) != networks(running.manifest.files):
        raise RefusedUpdate(Reason.WRONG_MODEL, f"made for other networks than those of {running.manifest.name!r}")
    if update.space != running.manifest.space:
        raise RefusedUpdate(Reason.WRONG_SCHEMA, "for other decisions")
    for what in ("fps", "deadline_s", "window"):
        found, here = getattr(update.context, what), getattr(running.context, what)
        if found != here:
            raise RefusedUpdate(Reason.WRONG_SCHEMA, f"for {what} {found:g}; this device runs with {here:g}")
    if update.classes != running.classes:
        raise RefusedUpdate(Reason.WRONG_SCHEMA, "for other classes")
