"""Signing a bundle (verify it, state what it is, write ``signature.json`` into it), and whom a device trusts."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptsplit.bundle import load_bundle
from adaptsplit.errors import ConfigError
from adaptsplit.files import write_whole
from adaptsplit.signing import (
    MAX_TIME,
    SIGNATURE_FILE,
    VERSION_PATTERN,
    Statement,
    Trust,
    decisions_hash,
    sign_statement,
)

if TYPE_CHECKING:
    from adaptsplit.signing_keys import PrivateKey

VALID_S = 30 * 86400  # how long a signature holds unless told otherwise; an assumption


def sign_bundle(
    path: str | Path,
    key: PrivateKey,
    *,
    number: int | None = None,
    valid_s: int = VALID_S,
    now: float | None = None,
    min_library: str | None = None,
) -> Statement:
    """Verify a bundle, sign it, and write ``signature.json`` into it; return what was signed.

    ``number`` is its version; devices take it only if it is higher than what they took before. By default the time of
    signing (s since 1970), which only grows. It holds for ``valid_s`` seconds from ``now``. ``min_library`` is the
    oldest adaptsplit that may run it.
    """
    bundle = load_bundle(path)
    issued = int(time.time() if now is None else now)
    if not 0 < valid_s <= MAX_TIME - issued or not (number is None or 0 < number <= MAX_TIME):
        raise ConfigError(f"version {number}, valid for {valid_s} s; expected whole numbers above 0 and below 2**40")
    if min_library is not None and not re.match(VERSION_PATTERN, min_library):
        raise ConfigError(f"oldest library {min_library!r}; expected up to four numbers with dots between, as 0.2.1")
    statement = Statement(
        manifest=bundle.digest,
        name=bundle.manifest.name,
        version=issued if number is None else number,
        issued=issued,
        not_after=issued + valid_s,
        observation=bundle.manifest.observation,
        decisions=decisions_hash(bundle.manifest.space),
        min_library=min_library,
    )
    try:
        write_whole(bundle.path / SIGNATURE_FILE, sign_statement(statement, key), durable=True)
    except OSError as error:
        raise ConfigError(f"{bundle.path}: cannot be written ({error.strerror}); copy the bundle elsewhere") from error
    return statement


def trust_of(keys: Sequence[Path] | None, memory: Path | None) -> Trust | None:
    """Return what ``--trust`` and ``--trust-memory`` say; None without a key. ConfigError for a file that is no key."""
    if not keys:
        if memory is not None:
            raise ConfigError("--trust-memory without --trust; name a public key with --trust")
        return None
    from adaptsplit.signing_keys import load_public

    place = memory or Path.home() / ".adaptsplit" / "trust.json"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{place.parent}: cannot be made ({error.strerror}); name a file with --trust-memory"
        ) from error
    return Trust(tuple(load_public(key) for key in keys), place)
