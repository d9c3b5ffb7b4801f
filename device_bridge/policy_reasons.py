"""Why a policy update is not taken, or not kept: the codes of ``policy/reported``, and the error that carries one."""

from __future__ import annotations

import errno
from enum import StrEnum

from adaptsplit.config import printable
from adaptsplit.errors import BundleError
from adaptsplit.signing import Refusal, RefusedBundle


class Reason(StrEnum):
    """Codes of REJECTED, FAILED and ROLLED_BACK."""

    BAD_SIGNATURE = "BAD_SIGNATURE"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    EXPIRED = "EXPIRED"
    NOT_YET_VALID = "NOT_YET_VALID"
    NOT_NEWER = "NOT_NEWER"  # replay or rollback: this version, or a higher one, was tried before
    WRONG_SCHEMA = "WRONG_SCHEMA"  # observation or decisions, or frame rate, deadline, window, classes
    WRONG_MODEL = "WRONG_MODEL"  # for other networks than those that run here
    TOO_LARGE = "TOO_LARGE"
    BAD_HASH = "BAD_HASH"
    MALFORMED = "MALFORMED"
    SELF_TEST = "SELF_TEST"
    GUARD_TRIPS = "GUARD_TRIPS"  # the guard took over more often than before
    MISSES = "MISSES"  # more frames without an answer than before
    BOOT = "BOOT"  # the process died while the policy was on trial, as often as is allowed
    LIBRARY_TOO_OLD = "LIBRARY_TOO_OLD"
    DISK_FULL = "DISK_FULL"
    STORE = "STORE"  # the folder of the policies cannot be read or written
    NOT_ENABLED = "NOT_ENABLED"  # the device was started without --trust and --policies
    INTERNAL = "INTERNAL"


class RefusedUpdate(BundleError):
    """A policy update that is not taken; ``reason`` is its code."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(printable(" ".join(message.split()))[:1000])
        self.reason = reason


_OF_REFUSAL = {
    Refusal.UNSIGNED: Reason.BAD_SIGNATURE,
    Refusal.MALFORMED: Reason.MALFORMED,
    Refusal.KEY: Reason.UNKNOWN_KEY,
    Refusal.SIGNATURE: Reason.BAD_SIGNATURE,
    Refusal.CHANGED: Reason.BAD_HASH,
    Refusal.OBSERVATION: Reason.WRONG_SCHEMA,
    Refusal.DECISIONS: Reason.WRONG_SCHEMA,
    Refusal.EXPIRED: Reason.EXPIRED,
    Refusal.EARLY: Reason.NOT_YET_VALID,
    Refusal.ROLLBACK: Reason.NOT_NEWER,
    Refusal.REPLAY: Reason.NOT_NEWER,
    Refusal.MEMORY: Reason.STORE,
    Refusal.LIBRARY: Reason.LIBRARY_TOO_OLD,
}


def as_refused(error: Exception) -> RefusedUpdate:
    """Return what a fault of the update's way to the disk is called."""
    if isinstance(error, RefusedUpdate):
        return error
    if isinstance(error, RefusedBundle):
        return RefusedUpdate(_OF_REFUSAL[error.code], str(error))
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return RefusedUpdate(Reason.DISK_FULL if full else Reason.STORE, f"cannot be written: {error.strerror}")
    return RefusedUpdate(Reason.INTERNAL, f"{type(error).__name__}: {error}")
