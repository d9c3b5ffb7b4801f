"""Signatures of bundles: an Ed25519 signature (RFC 8032) over a short canonical statement.

``signature.json`` stands beside ``manifest.json`` and holds the statement, the id of the key, and the signature::

    {"schema": "adaptsplit.signature/1", "key": "<16 hex digits>", "signature": "<128 hex digits>",
     "statement": {"manifest": "<SHA-256 of manifest.json>", "name": ..., "version": 1763700000, "issued": ...,
                   "not_after": ..., "observation": ..., "decisions": ...}}

The manifest lists the SHA-256 of every other file, so the statement covers the whole bundle. It is signed in one form
only: a fixed prefix and the JSON text with sorted keys, without spaces, in ASCII; it holds no fractions, so there is
one way to write it. Whoever has not checked the signature reads nothing but this file, and at most 8 KiB of it.

A device refuses with a ``Refusal`` code. It remembers the highest version that it took (``Trust.memory``): an older
bundle with a good signature is a rollback, another bundle under the same version a replay.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from adaptsplit import observation as obs
from adaptsplit.config import Config, parse, printable, refuse_constant
from adaptsplit.errors import AdaptsplitError, BundleError
from adaptsplit.files import write_whole

if TYPE_CHECKING:
    from adaptsplit.signing_keys import PrivateKey, PublicKey

SIGNATURE_FILE = "signature.json"
MAX_SIGNATURE_BYTES = 8 << 10
MAX_MEMORY_BYTES = 4 << 10
CONTEXT = b"adaptsplit bundle statement 1\n"  # no signature made for anything else can pass as one of a bundle
CLOCK_TOLERANCE_S = 60  # of the wall clocks of the signing machine and of the device; an assumption
MAX_TIME = 1 << 40  # s since 1970; keeps every number exact in any JSON reader
VERSION_PATTERN = r"^[0-9]{1,6}(\.[0-9]{1,6}){0,3}$"


class Refusal(StrEnum):
    """Why a bundle is not taken."""

    UNSIGNED = "unsigned"
    MALFORMED = "malformed"  # too large, no JSON, unknown or missing keys
    KEY = "unknown-key"  # signed by a key that is not trusted here
    SIGNATURE = "bad-signature"
    CHANGED = "changed"  # a file is not what the manifest, or the manifest is not what the statement says
    OBSERVATION = "wrong-observation"
    DECISIONS = "wrong-decisions"
    EXPIRED = "expired"
    EARLY = "not-yet-valid"
    ROLLBACK = "rollback"
    REPLAY = "version-reused"
    MEMORY = "memory-damaged"  # the file of the highest version cannot be read or written
    LIBRARY = "library-too-old"  # signed for a newer adaptsplit than this one


class RefusedBundle(BundleError):
    """A bundle that is not taken; ``code`` says why, and stands in brackets before the message."""

    def __init__(self, code: Refusal, message: str) -> None:
        super().__init__(f"[{code}] {message}")
        self.code = code


def _printable_only(text: str) -> str:
    if not text.isprintable():
        raise ValueError("characters that a terminal would not show")
    return text


PrintableOnly = Annotated[str, AfterValidator(_printable_only)]
"""Text of a signed document, refused where a terminal would not show all of it: with a cursor's movements in it, one
version could show another."""


class Statement(Config):
    """What is signed. Times are whole seconds since 1970-01-01 UTC.

    min_library: the oldest adaptsplit that may run it, such as ``0.2``; absent where any may.
    """

    manifest: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: PrintableOnly = Field(min_length=1, max_length=200)
    version: int = Field(ge=1, le=MAX_TIME, strict=True)
    issued: int = Field(ge=0, le=MAX_TIME, strict=True)
    not_after: int = Field(ge=0, le=MAX_TIME, strict=True)
    observation: str = Field(pattern=r"^[0-9a-f]{16}$")
    decisions: str = Field(pattern=r"^[0-9a-f]{16}$")
    min_library: str | None = Field(default=None, pattern=VERSION_PATTERN)

    def to_bytes(self) -> bytes:
        """Return the one form that is signed; what is absent stands not in it."""
        return CONTEXT + canonical(self.content())

    def content(self) -> dict[str, Any]:
        """Return what stands in a signature file."""
        return self.model_dump(exclude_none=True)


class SignatureFile(Config):
    """The content of ``signature.json``."""

    schema_: Literal["adaptsplit.signature/1"] = Field(alias="schema")
    key: str = Field(pattern=r"^[0-9a-f]{16}$")
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")
    statement: Statement


class Memory(Config):
    """The highest version that was ever taken, and the digest of its manifest."""

    schema_: Literal["adaptsplit.trust-memory/1"] = Field(alias="schema")
    version: int = Field(ge=1, le=MAX_TIME, strict=True)
    manifest: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class Trust:
    """What a device takes: bundles signed by one of ``keys`` and not older than what it took before.

    memory: file of the highest version taken, written by ``remember``; None remembers nothing, so an old bundle that
    has not expired is taken again. decisions: the only ``decisions_hash`` that is taken; None takes any. clock: seconds
    since 1970.
    """

    keys: tuple[PublicKey, ...]
    memory: Path | None = None
    decisions: str | None = None
    clock: Callable[[], float] = time.time

    def check(self, data: bytes, where: str, *, at_rest: bool = False) -> SignatureFile:
        """Return the verified content of a signature file; RefusedBundle otherwise. The bundle itself is not read.

        Args:
            data: at most ``MAX_SIGNATURE_BYTES`` bytes of ``signature.json`` (or of a message that carries it).
            where: named in errors.
            at_rest: for what was taken before and stands on the device's own disk: neither its times nor its version
                are looked at, so that a device starts again after its policy's signature has run out.
        """
        signed = parse_signature(data, where)
        self._check_signature(signed, where)
        self._check_content(signed.statement, where)
        if not at_rest:
            self._check_times(signed.statement, where)
            self._check_version(signed.statement, where)
        return signed

    def remember(self, statement: Statement) -> None:
        """Keep the version, once the whole bundle has been verified; an atomic write, never a lower version."""
        if self.memory is None:
            return
        known = self._known(str(self.memory))
        if known is not None and known.version >= statement.version:
            return
        content = {
            "schema": "adaptsplit.trust-memory/1",
            "version": statement.version,
            "manifest": statement.manifest,
        }
        try:
            write_whole(self.memory, json.dumps(content).encode() + b"\n", durable=True)
        except OSError as error:
            raise RefusedBundle(
                Refusal.MEMORY,
                f"{self.memory}: cannot be written ({error.strerror}); name a file on a disk that lasts",
            ) from error

    def _check_signature(self, signed: SignatureFile, where: str) -> None:
        from adaptsplit.signing_keys import key_id, verifies  # here: a device that trusts no key does without

        matching = [key for key in self.keys if key_id(key) == signed.key]
        if not matching:
            known = ", ".join(key_id(key) for key in self.keys) or "none"
            raise RefusedBundle(
                Refusal.KEY, f"{where}: signed by key {signed.key}; trusted here: {known}. Trust its key, or sign again"
            )
        if not verifies(matching[0], bytes.fromhex(signed.signature), signed.statement.to_bytes()):
            raise RefusedBundle(
                Refusal.SIGNATURE, f"{where}: not what key {signed.key} signed; get the bundle from its source again"
            )

    def _check_content(self, statement: Statement, where: str) -> None:
        if statement.observation != obs.schema_hash():
            raise RefusedBundle(
                Refusal.OBSERVATION,
                f"{where}: for observation {statement.observation}, this version has {obs.schema_hash()}; "
                "install the same version here, or export and sign again",
            )
        if self.decisions is not None and statement.decisions != self.decisions:
            raise RefusedBundle(
                Refusal.DECISIONS,
                f"{where}: for decisions {statement.decisions}, expected {self.decisions}; export it for this device",
            )
        if not new_enough(statement.min_library, library_version()):
            raise RefusedBundle(
                Refusal.LIBRARY,
                f"{where}: needs adaptsplit {statement.min_library} or later, this is {library_version()}; upgrade it",
            )

    def _check_times(self, statement: Statement, where: str) -> None:
        now = int(self.clock())
        if now > statement.not_after + CLOCK_TOLERANCE_S:
            raise RefusedBundle(
                Refusal.EXPIRED, f"{where}: expired {now - statement.not_after} s ago; sign it again or set the clock"
            )
        if now < statement.issued - CLOCK_TOLERANCE_S:
            raise RefusedBundle(
                Refusal.EARLY,
                f"{where}: signed {statement.issued - now} s in the future; set the clock of this machine",
            )

    def _check_version(self, statement: Statement, where: str) -> None:
        known = self._known(where)
        if known is None or statement.version > known.version:
            return
        if statement.version < known.version:
            raise RefusedBundle(
                Refusal.ROLLBACK,
                f"{where}: version {statement.version}, but version {known.version} was taken before; sign a newer one",
            )
        if statement.manifest != known.manifest:
            raise RefusedBundle(
                Refusal.REPLAY,
                f"{where}: version {statement.version} was taken before with other content; sign with a new version",
            )

    def _known(self, where: str) -> Memory | None:
        """Read the memory; None before the first bundle. A damaged one is no reason to forget: RefusedBundle."""
        if self.memory is None:
            return None
        try:
            data = read_capped(self.memory, MAX_MEMORY_BYTES)
            return parse(Memory, _json_object(data), str(self.memory))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, AdaptsplitError) as error:
            raise RefusedBundle(
                Refusal.MEMORY,
                f"{self.memory}: unreadable ({_line(error)}) while checking {where}; restore it, or remove it to start "
                "anew after checking the bundle by hand",
            ) from error


def sign_statement(statement: Statement, key: PrivateKey) -> bytes:
    """Return the content of ``signature.json``."""
    from adaptsplit.signing_keys import key_id

    content = {
        "schema": "adaptsplit.signature/1",
        "key": key_id(key.public_key()),
        "signature": key.sign(statement.to_bytes()).hex(),
        "statement": statement.content(),
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def parse_signature(data: bytes, where: str) -> SignatureFile:
    """Parse a signature file, without checking it; RefusedBundle ``malformed`` for anything else."""
    if len(data) > MAX_SIGNATURE_BYTES:
        raise RefusedBundle(Refusal.MALFORMED, f"{where}: {len(data)} bytes; at most {MAX_SIGNATURE_BYTES} are read")
    try:
        return parse(SignatureFile, _json_object(data), where)
    except (ValueError, RecursionError, AdaptsplitError) as error:
        raise RefusedBundle(Refusal.MALFORMED, f"{where}: {_line(error)}; sign the bundle again") from error


def library_version() -> str:
    """Return the version of the installed adaptsplit, "unknown" where it is not installed."""
    try:
        return version("adaptsplit")
    except PackageNotFoundError:
        return "unknown"


def new_enough(wanted: str | None, found: str) -> bool:
    """Whether the version ``found`` is at least ``wanted``; one that cannot be told is not. Only numbers count."""
    if wanted is None:
        return True
    number = re.match(VERSION_PATTERN.rstrip("$"), found)
    return number is not None and _numbers(found[: number.end()]) >= _numbers(wanted)


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(".")]
    return numbers + [0] * (4 - len(numbers))


def decisions_hash(space: dict[str, Any]) -> str:
    """Return 16 hex digits of a decision space in the form of ``DecisionSpace.to_dict``."""
    return hashlib.sha256(canonical(space)).hexdigest()[:16]


def canonical(value: Any) -> bytes:
    """Return JSON with sorted keys, no spaces, ASCII only; ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def read_capped(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes; OSError, or ValueError when it is larger. Never reads more."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"more than {limit} bytes")
    return data


def _json_object(data: bytes) -> dict[str, Any]:
    value = json.loads(data, parse_constant=refuse_constant, object_pairs_hook=refuse_twins)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that stands twice: readers differ in which one they take."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _line(error: BaseException) -> str:
    return printable(" ".join(str(error).split())[:300])
