"""A device's policies on its disk: whatever happens to the process, the next start has a verified one.

    DIR/state.json      which slot decides, which one before it, and which is on trial: replaced atomically, synced
    DIR/highest.json    the highest version that was ever tried (``Trust.memory``): lower ones are refused for good
    DIR/slots/SLOT/   whole bundles (``policy_slots``)

At every start the first of these that is whole, signed by a trusted key, and fits this library decides: the policy on
trial (unless the process has died with it ``MAX_ATTEMPTS`` times), the current one, the one before it, and the
*factory* bundle that the device was started with. A factory bundle of a higher version than the current policy wins: it
was put there later. What stands on the disk was taken before, so neither its expiry nor its version is looked at again;
both are for what comes over the air. On the very first start the factory bundle is checked for both.
"""

from __future__ import annotations

import fcntl
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from adaptsplit.bundle import Bundle, load_bundle
from adaptsplit.config import parse_json
from adaptsplit.device_bridge.policy_reasons import Reason, RefusedUpdate
from adaptsplit.device_bridge.policy_slots import Slots
from adaptsplit.device_bridge.policy_state import Rates, Result, Slot, StoreState, Trial
from adaptsplit.device_bridge.policy_update import Update
from adaptsplit.errors import BundleError, ConfigError
from adaptsplit.files import write_whole
from adaptsplit.signing import SignatureFile, Trust, decisions_hash, read_capped

log = logging.getLogger("adaptsplit.device")

MAX_ATTEMPTS = 2  # processes that a policy on trial may take with it
MAX_STATE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Opened:
    """What a start came to: ``bundle`` decides; ``fallback`` is set while it is on trial."""

    bundle: Bundle
    fallback: Bundle | None = None


class PolicyStore:
    """One device's policies; one process at a time (ConfigError). Not for several threads at once."""

    def __init__(self, folder: Path, trust: Trust) -> None:
        self.folder = folder
        self.slots = Slots(folder / "slots")
        self._trust = trust
        self._state = StoreState()
        self._base: Bundle | None = None
        self._lock: IO[str] | None = None
        self._dirty = False

    # ---- the start ----

    def open(self, factory: Path) -> Opened:
        """Return the bundle to run. RefusedBundle only where neither the factory bundle nor any other is good."""
        self._prepare()
        try:
            known, damaged = self._read_state()
            first = known is None and not damaged and not self._highest.exists()
            self._state = known or StoreState()
            opened = self._choose(factory, first)
        except BaseException:
            self.close()
            raise
        self._base = opened.fallback or opened.bundle
        self.slots.sweep(self._kept())
        return opened

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def state(self) -> StoreState:
        """What is on the disk."""
        return self._state

    @property
    def base(self) -> Bundle:
        """The bundle that decides, or would if nothing were on trial."""
        assert self._base is not None, "open the store first"
        return self._base

    @property
    def _highest(self) -> Path:
        return self.folder / "highest.json"

    def _prepare(self) -> None:
        """Make and lock the folder. One that is there and cannot be written (a full disk) stops no start."""
        try:
            self.slots.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for draft in self.folder.glob("*.draft-*"):
                draft.unlink(missing_ok=True)
        except BlockingIOError as error:
            self.close()
            raise ConfigError(f"{self.folder}: in use by another device; give each its own --policies") from error
        except OSError as error:
            if not self.folder.is_dir():
                raise ConfigError(f"{self.folder}: {error.strerror}; name a folder with --policies") from error
            log.error("%s: cannot be written (%s); no update will be taken", self.folder, error.strerror)

    def _read_state(self) -> tuple[StoreState | None, bool]:
        """Return (state, False), (None, False) where there is none yet, or (None, True) for a damaged one."""
        where = self.folder / "state.json"
        try:
            data = read_capped(where, MAX_STATE_BYTES)
            return parse_json(StoreState, data, str(where), "the factory bundle decides", ConfigError), False
        except FileNotFoundError:
            return None, False
        except (OSError, ValueError, ConfigError) as error:
            log.error("%s: damaged (%s); the factory bundle decides", where, error)
            return None, True

    def _choose(self, factory: Path, first: bool) -> Opened:
        kept = self._settled(factory, first)
        trial = self._state.trial
        if trial is None:
            return Opened(kept)
        if trial.attempts >= MAX_ATTEMPTS:
            self.roll_back(Reason.BOOT, f"the process ended {trial.attempts} times while it was on trial")
            return Opened(kept)
        counted = trial.model_copy(update={"attempts": trial.attempts + 1})
        if not self._write(self._state.model_copy(update={"trial": counted})):
            return Opened(kept)  # an attempt that cannot be counted is not made
        bundle = self._load(trial.slot)
        if bundle is None or version_of(bundle) <= version_of(kept):
            self.roll_back(Reason.STORE, "damaged on the disk" if bundle is None else "the factory bundle is newer")
            return Opened(kept)
        return Opened(bundle, kept)

    def _settled(self, path: Path, first: bool) -> Bundle:
        """Return what decides where nothing is on trial, and note it. RefusedBundle where nothing is any good."""
        current = self._load(self._state.current) or self._load(self._state.previous)
        try:
            factory = load_bundle(path, self._trust, at_rest=not first)
        except BundleError as error:
            if current is None:
                raise
            log.error("factory bundle: %s", error)
        else:
            if current is None or version_of(factory) > version_of(current):
                current = factory
                self._note_version(factory)
        found = None if current.path == path else current.path.name
        if first or found != self._state.current:
            self._write(self._state.model_copy(update={"current": found, "previous": None}))
        return current

    def _note_version(self, factory: Bundle) -> None:
        try:
            self._remember(factory)
        except BundleError as error:
            log.error("%s; no update will be taken", error)

    def _load(self, slot: Slot | None) -> Bundle | None:
        """Return a slot's bundle if it is whole and signed; no fault of a slot may stop a start."""
        if slot is None:
            return None
        try:
            bundle = load_bundle(self.slots.path(slot), self._trust, at_rest=True)
        except Exception as error:
            log.error("policy %s: %s", slot[:12], error)
            return None
        return bundle

    # ---- an update ----

    def check(self, signature: bytes) -> SignatureFile:
        """Verify what announces an update; RefusedBundle or RefusedUpdate with the reason. Nothing is written."""
        decisions = decisions_hash(self.base.manifest.space)
        signed = replace(self._trust, memory=self._highest, decisions=decisions).check(signature, "policy/desired")
        version = signed.statement.version
        if version <= max(version_of(self.base), self._state.refused):
            known = "was rolled back before" if version == self._state.refused else "is not newer than what decides"
            raise RefusedUpdate(Reason.NOT_NEWER, f"version {version} {known}; sign it with a higher version")
        return signed

    def stage(self, update: Update) -> Bundle:
        """Put an update on the disk and load it, verified from there; RefusedBundle, RefusedUpdate or OSError."""
        place = self.slots.write(update, self.base)
        try:
            return load_bundle(place, self._trust, at_rest=True)
        except BundleError:
            self.slots.sweep(self._kept())
            raise

    def begin(self, bundle: Bundle, job: str, before: Rates) -> None:
        """Put a staged bundle on trial: from now on it starts with the device, and its version counts as tried.

        OSError or RefusedBundle where the disk does not take that; then nothing is on trial.
        """
        self._remember(bundle)
        trial = Trial(slot=bundle.path.name, job=job, version=version_of(bundle), attempts=1, before=before)
        self._write_through(self._state.model_copy(update={"trial": trial}))

    def commit(self, bundle: Bundle) -> Result:
        """Make the policy on trial the current one."""
        trial = self._on_trial()
        result = Result(job=trial.job, version=trial.version, status="SUCCEEDED")
        changes = {"current": trial.slot, "previous": self._state.current, "trial": None, "last": result}
        self._write(self._state.model_copy(update=changes))
        self._base = bundle
        self.slots.sweep(self._kept())
        return result

    def roll_back(self, reason: Reason, detail: str) -> Result:
        """End the trial; what decided before decides again, and this version never comes back."""
        trial = self._on_trial()
        result = Result(job=trial.job, version=trial.version, status="ROLLED_BACK", reason=reason, detail=detail[:1000])
        self._write(self._state.model_copy(update={"trial": None, "refused": trial.version, "last": result}))
        self.slots.sweep(self._kept())
        return result

    def park(self) -> None:
        """The process ends in good order during a trial: that is not held against the policy."""
        trial = self._state.trial
        if trial is not None:
            kept = trial.model_copy(update={"attempts": max(trial.attempts - 1, 0)})
            self._write(self._state.model_copy(update={"trial": kept}))

    def discard(self, result: Result) -> None:
        """Drop what was staged; remember how a job ended that never came to a trial."""
        self._write(self._state.model_copy(update={"last": result}))
        self.slots.sweep(self._kept())

    def _on_trial(self) -> Trial:
        assert self._state.trial is not None, "nothing is on trial"
        return self._state.trial

    def _kept(self) -> set[str]:
        trial = self._state.trial
        slots = (self._state.current, self._state.previous, trial and trial.slot)
        return {slot for slot in slots if slot}

    def _remember(self, bundle: Bundle) -> None:
        assert bundle.signed is not None, "a store's bundles are loaded with a trust"
        replace(self._trust, memory=self._highest).remember(bundle.signed)

    def flush(self) -> None:
        """Try again what could not be written."""
        if self._dirty:
            self._write(self._state)

    def _write(self, state: StoreState) -> bool:
        """Write the state; where the disk does not take it, it stands in memory, and ``flush`` tries again."""
        self._state = state
        try:
            self._write_through(state)
        except OSError as error:
            log.error("%s: cannot be written (%s)", self.folder, error.strerror)
            self._dirty = True
        return not self._dirty

    def _write_through(self, state: StoreState) -> None:
        document: dict[str, Any] = state.model_dump(by_alias=True)
        write_whole(self.folder / "state.json", json.dumps(document, indent=1).encode() + b"\n", durable=True)
        self._state, self._dirty = state, False


def version_of(bundle: Bundle) -> int:
    """Return the signed version of a bundle; 0 where it is not signed."""
    return 0 if bundle.signed is None else bundle.signed.version
