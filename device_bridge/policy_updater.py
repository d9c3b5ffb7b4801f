"""One policy update after another, from the announcement to its end, as a state machine without threads or sockets.

    desired -> signature -> download -> hashes -> slot on disk -> self-test -> trial (canary) -> SUCCEEDED
                  |            |           |            |             |            |
               REJECTED     EXPIRED     REJECTED      FAILED        FAILED     ROLLED_BACK

Everything here may take long (disks, hashes, a self-test): it runs on the part's own thread (``policy_part``), one call
at a time. ``now`` is any monotonic time, s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from adaptsplit.bundle import Bundle
from adaptsplit.bundle_selftest import FailedSelfTest, self_test
from adaptsplit.controller import Controller, Observations, State
from adaptsplit.device_bridge.control import PolicyDesired, PolicyReported, parse_control
from adaptsplit.device_bridge.policy_reasons import Reason, RefusedUpdate, as_refused
from adaptsplit.device_bridge.policy_state import Rates, Result
from adaptsplit.device_bridge.policy_store import PolicyStore, version_of
from adaptsplit.device_bridge.policy_update import check_fits, check_size, split_update
from adaptsplit.errors import AdaptsplitError, MessageError
from adaptsplit.guard import BUDGET_SHARE
from adaptsplit.signing import Statement, canonical

ASKED_AT_ONCE = 2  # chunks: what a slow link still brings between two heartbeats
ASK_AGAIN_S, ASK_RARELY_S = 2.0, 30.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that passed its self-test: what the main loop needs to let it decide."""

    bundle: Bundle
    controller: Controller
    state: State


class Host(Protocol):
    """What an updater needs of the device around it; called on the updater's thread."""

    def say(self, reported: PolicyReported) -> None:
        """Publish a report."""
        ...

    def prepare(self, bundle: Bundle) -> Candidate:
        """Build a bundle's controller, in its guard, and let it make itself ready."""
        ...

    def ready(self, candidate: Candidate) -> None:
        """Let a candidate decide; its trial begins."""
        ...

    def recent(self) -> Observations:
        """Return (n, D) observations of late."""
        ...

    def before(self) -> Rates:
        """Return how the policy that decides has done of late."""
        ...


@dataclass(slots=True)
class Download:
    """An update that is on its way; ``missing`` are chunks that have not come, in order."""

    desired: PolicyDesired
    statement: Statement
    signature: bytes
    chunks: dict[int, bytes] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    ask_at: float = 0.0
    wait_s: float = ASK_AGAIN_S

    @property
    def count(self) -> int:
        """How many chunks there are."""
        return math.ceil(self.desired.size / self.desired.chunk_bytes)

    def missing(self) -> list[int]:
        """Return the first chunks that are to be asked for."""
        absent = (n for n in range(self.count) if n not in self.chunks)
        return [n for n, _ in zip(absent, range(ASKED_AT_ONCE), strict=False)]

    def take(self, sha256: str, number: int, data: bytes) -> bool:
        """Take a chunk; False for one that is not of this update, or is there already."""
        if sha256 != self.desired.sha256 or not 0 <= number < self.count or number in self.chunks:
            return False
        full, last = self.desired.chunk_bytes, number == self.count - 1
        if len(data) != (self.desired.size - number * full if last else full):
            return False
        self.chunks[number] = data
        return True


class PolicyUpdater:
    """The updates of one device. What is not in order ends as a report with its reason, never as an exception."""

    def __init__(self, store: PolicyStore, host: Host, active: Bundle) -> None:
        self._store, self._host, self._active = store, host, active
        self._download: Download | None = None
        self._candidate: Candidate | None = None
        self._waiting: bytes | None = None

    @property
    def active(self) -> Bundle:
        """The bundle that decides, on trial or not."""
        return self._active

    # ---- what comes in ----

    def desired(self, payload: bytes, now: float) -> None:
        """Take an announcement; an empty one withdraws an update that is still being fetched."""
        if self._store.state.trial is not None:
            self._waiting = payload
            return
        if not payload:
            self._download = None
            return
        try:
            content = parse_control(payload)[1]
        except MessageError as error:
            self._say(None, "REJECTED", reason=Reason.MALFORMED, detail=str(error)[:1000])
            return
        if isinstance(content, PolicyDesired):
            self._consider(content, now)

    def chunk(self, sha256: str, number: int, data: bytes, now: float) -> None:
        """Take a chunk that was asked for."""
        download = self._download
        if download is None or not download.take(sha256, number, data):
            return
        download.wait_s = ASK_AGAIN_S
        if len(download.chunks) == download.count:
            self._download = None
            self._install(download)
        elif all(n in download.chunks for n in download.asked):
            self._ask(download, now)

    def tick(self, now: float) -> None:
        """Ask again for what has not come, ever more rarely; give up on an update that has expired meanwhile."""
        self._store.flush()
        download = self._download
        if download is None or now < download.ask_at:
            return
        try:
            self._store.check(download.signature)
        except AdaptsplitError as error:
            self._download = None
            self._tell(_refusal(download.desired, error))
            return
        self._ask(download, now)
        download.wait_s = min(2.0 * download.wait_s, ASK_RARELY_S)

    def linked(self, now: float) -> None:
        """The connection is there (again): say where things stand, and go on asking."""
        if self._download is not None:
            self._download.wait_s = ASK_AGAIN_S
            self._ask(self._download, now)
        elif self._store.state.trial is not None:
            self._say(None, "IN_PROGRESS", stage="canary")
        elif self._store.state.last is not None:
            self._tell(self._store.state.last)

    def judged(self, reason: Reason | None, detail: str, now: float) -> None:
        """The trial is over: ``reason`` is None for a policy that stays. The main loop has acted on it already."""
        if reason is None:
            result = self._store.commit(self._active)
        else:
            result = self._store.roll_back(reason, detail)
            self._active = self._store.base
        self._candidate = None
        self._tell(result)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self.desired(waiting, now)

    def progress(self, share: float) -> None:
        """Say how far the trial is."""
        if self._store.state.trial is not None:
            self._say(None, "IN_PROGRESS", stage="canary", progress=share)

    # ---- from one state to the next ----

    def _consider(self, desired: PolicyDesired, now: float) -> None:
        last = self._store.state.last
        if last is not None and last.job == desired.job:
            self._tell(last)
            return
        if self._download is not None and self._download.desired == desired:
            self._ask(self._download, now)
            return
        former, self._download = self._download, None
        try:
            signature = _canonical(desired.signature)
            check_size(desired)
            if self._is_active(desired):
                self._tell(_result(desired, "SUCCEEDED"))
                return
            statement = self._store.check(signature).statement
        except Exception as error:
            self._tell(_refusal(desired, error))
            return
        self._say(desired, "QUEUED", version=statement.version)
        self._download = Download(desired, statement, signature)
        if former is not None and _same_bytes(former.desired, desired):
            self._download.chunks = former.chunks
        self._ask(self._download, now)

    def _is_active(self, desired: PolicyDesired) -> bool:
        """Whether it is what decides already, by the whole signed statement."""
        signed = self._active.signed
        return signed is not None and desired.signature.get("statement") == signed.content()

    def _ask(self, download: Download, now: float) -> None:
        download.asked = download.missing()
        download.ask_at = now + download.wait_s
        share = len(download.chunks) / download.count
        self._say(download.desired, "IN_PROGRESS", stage="download", progress=share, missing=download.asked)

    def _install(self, download: Download) -> None:
        desired = download.desired
        data = b"".join(download.chunks[n] for n in range(download.count))
        try:
            self._say(desired, "IN_PROGRESS", stage="verify")
            update = split_update(data, desired, download.statement, download.signature)
            check_fits(update.parsed, self._store.base)
            bundle = self._store.stage(update)
            self._say(desired, "IN_PROGRESS", stage="self-test")
            self._test(bundle)
            candidate = self._host.prepare(bundle)
            self._store.check(download.signature)
            self._store.begin(bundle, desired.job, self._host.before())
        except Exception as error:
            result = _refusal(desired, error)
            self._store.discard(result)
            self._tell(result)
            return
        self._active, self._candidate = bundle, candidate
        self._say(desired, "IN_PROGRESS", stage="canary")
        self._host.ready(candidate)

    def _test(self, bundle: Bundle) -> None:
        """Self-test, on the controller without its guard: that one would hide what is wrong."""
        context = bundle.context
        budget = BUDGET_SHARE * min(context.deadline_s, 1.0 / context.fps)
        golden = bundle.manifest.selftest
        self_test(bundle.controller, bundle.space, budget_s=budget, golden=golden, recent=self._host.recent())

    # ---- what goes out ----

    def _tell(self, result: Result) -> None:
        self._host.say(PolicyReported.model_validate({**result.model_dump(), "progress": 1.0, **self._what_decides()}))

    def _say(self, desired: PolicyDesired | None, status: str, **more: object) -> None:
        trial = self._store.state.trial
        about: dict[str, object] = {"job": "", "version": 0}
        if desired is not None:
            about = {"job": desired.job, "version": _version(desired), "sha256": desired.sha256}
        elif trial is not None:
            about = {"job": trial.job, "version": trial.version}
        self._host.say(PolicyReported.model_validate({**about, "status": status, **more, **self._what_decides()}))

    def _what_decides(self) -> dict[str, object]:
        return {"active_version": version_of(self._active), "active": self._active.digest}


def _canonical(signature: dict[str, Any]) -> bytes:
    try:
        return canonical(signature)
    except (ValueError, RecursionError) as error:  # numbers beyond a double's, nesting
        raise RefusedUpdate(Reason.MALFORMED, f"signature: {error}") from error


def _same_bytes(one: PolicyDesired, other: PolicyDesired) -> bool:
    return (one.sha256, one.size, one.chunk_bytes) == (other.sha256, other.size, other.chunk_bytes)


def _result(desired: PolicyDesired, status: str, reason: str = "", detail: str = "") -> Result:
    about = {"job": desired.job, "version": _version(desired)}
    return Result.model_validate({**about, "status": status, "reason": reason, "detail": detail[:1000]})


def _refusal(desired: PolicyDesired, error: Exception) -> Result:
    if isinstance(error, FailedSelfTest):
        error = RefusedUpdate(Reason.SELF_TEST, str(error))
    refused = as_refused(error)
    failed = refused.reason in (Reason.SELF_TEST, Reason.DISK_FULL, Reason.STORE, Reason.INTERNAL)
    return _result(desired, "FAILED" if failed else "REJECTED", refused.reason, str(refused))


def _version(desired: PolicyDesired) -> int:
    """Return the version that an announcement claims; 0 where it claims none."""
    statement = desired.signature.get("statement")
    version = statement.get("version") if isinstance(statement, dict) else None
    return version if isinstance(version, int) and 0 <= version < 1 << 53 else 0
