"""Policies on a device's disk, and every way in which an update is refused: without a broker, without threads."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_cases import (
    NOW,
    FakeHost,
    announce,
    chunk_of,
    chunks_in,
    envelope,
    export_policy,
    signed_copy,
    trust_in,
    update_of,
)

from adaptsplit.bundle import load_bundle
from adaptsplit.bundle_selftest import FailedSelfTest, drawn, golden_episode, self_test
from adaptsplit.controller import Controller
from adaptsplit.device_bridge import policy_slots, policy_store
from adaptsplit.device_bridge.control import MAX_CONTROL_BYTES, PolicyDesired
from adaptsplit.device_bridge.policy_device import PolicySource, start_policy
from adaptsplit.device_bridge.policy_reasons import Reason
from adaptsplit.device_bridge.policy_state import Rates
from adaptsplit.device_bridge.policy_store import MAX_ATTEMPTS, Opened, PolicyStore, version_of
from adaptsplit.device_bridge.policy_update import CHUNK_BYTES, MAX_UPDATE_BYTES, Update
from adaptsplit.device_bridge.policy_updater import ASK_AGAIN_S, ASK_RARELY_S, PolicyUpdater
from adaptsplit.errors import ConfigError
from adaptsplit.fuzzing import json_of
from adaptsplit.signing import (
    MAX_SIGNATURE_BYTES,
    Refusal,
    RefusedBundle,
    Statement,
    decisions_hash,
    new_enough,
    sign_statement,
)
from adaptsplit.signing_keys import PrivateKey, load_private, make_keys


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, key: PrivateKey) -> Path:
    """A folder with the signed bundles ``v1`` to ``v4`` of two policies."""
    folder = tmp_path_factory.mktemp("made")
    for seed in (0, 1):
        export_policy(folder, seed)
    for number in (1, 2, 3, 4):
        signed_copy(folder / f"bundle-{number % 2}", folder / f"v{number}", key, number)
    return folder


OPEN: list[PolicyStore] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close every store that a test left open."""
    yield
    while OPEN:
        OPEN.pop().close()


class Device:
    """A store, its updater, and the host around them."""

    def __init__(self, folder: Path, factory: Path, key: PrivateKey, now: float = NOW) -> None:
        self.store = PolicyStore(folder, trust_in(key, now))
        OPEN.append(self.store)
        self.opened: Opened = self.store.open(factory)
        self.host = FakeHost()
        self.updater = PolicyUpdater(self.store, self.host, self.opened.bundle)

    @property
    def version(self) -> int:
        """Version of the bundle that decides."""
        return version_of(self.updater.active)

    def offer(self, update: Update, desired: PolicyDesired | None = None) -> tuple[str, str]:
        """Announce an update and send what is asked for; return (status, reason) of the last report."""
        desired = desired or announce(update)
        self.updater.desired(envelope(desired), 0.0)
        for number in range(chunks_in(update)):
            self.updater.chunk(desired.sha256, number, chunk_of(update, number), 0.0)
        return self.last

    @property
    def last(self) -> tuple[str, str]:
        """Status and reason of the last report."""
        return self.host.said[-1].status, self.host.said[-1].reason

    def close(self) -> None:
        """End in good order."""
        self.store.park()
        self.store.close()


@pytest.fixture
def device(tmp_path: Path, made: Path, key: PrivateKey) -> Device:
    return Device(tmp_path / "p", made / "v1", key)


def reopened(device: Device, made: Path, key: PrivateKey, now: float = NOW) -> Device:
    """Start again, as after the process was killed."""
    device.store.close()
    return Device(device.store.folder, made / "v1", key, now)


# ---- an update that is taken ----


def test_an_update_goes_through_its_stages_and_stays(device: Device, made: Path, key: PrivateKey) -> None:
    update = update_of(made / "v2")
    assert device.offer(update) == ("IN_PROGRESS", "")
    stages = [said.stage or said.status for said in device.host.said]
    assert list(dict.fromkeys(stages)) == ["QUEUED", "download", "verify", "self-test", "canary"]
    assert [n for said in device.host.said for n in said.missing] == list(range(chunks_in(update)))
    (candidate,) = device.host.candidates
    observation = drawn(3, 50)
    wanted = load_bundle(made / "v2").controller.act(observation, None)[0]
    assert np.array_equal(candidate.controller.act(observation, candidate.state)[0], wanted)
    device.updater.judged(None, "", 1.0)
    assert device.last == ("SUCCEEDED", "")
    again = reopened(device, made, key)
    assert (again.version, again.opened.fallback, again.opened.bundle.path.parent.name) == (2, None, "slots")
    assert again.opened.bundle.model_path != made / "v1" / "model"


def test_networks_are_shared_with_the_factory_bundle_or_copied(
    device: Device, made: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.offer(update_of(made / "v2"))
    slot = device.updater.active.path
    assert os.stat(slot / "model" / "model.json").st_ino == os.stat(made / "v1" / "model" / "model.json").st_ino
    device.updater.judged(None, "", 1.0)

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EXDEV, "other device")

    monkeypatch.setattr(os, "link", refuse)
    assert device.offer(update_of(made / "v3"), announce(update_of(made / "v3"), "3" * 32))[0] == "IN_PROGRESS"
    slot = device.updater.active.path
    assert os.stat(slot / "model" / "model.json").st_nlink == 1
    assert reopened(device, made, key).version == 3


def test_a_second_announcement_waits_for_the_end_of_a_trial(device: Device, made: Path) -> None:
    device.offer(update_of(made / "v2"))
    update = update_of(made / "v3")
    before = len(device.host.said)
    device.updater.desired(envelope(announce(update, "3" * 32)), 1.0)
    assert len(device.host.said) == before
    device.updater.judged(None, "", 2.0)
    assert [(said.status, said.version) for said in device.host.said[before:]] == [
        ("SUCCEEDED", 2),
        ("QUEUED", 3),
        ("IN_PROGRESS", 3),
    ]


def test_what_is_missing_is_asked_for_again_ever_more_rarely(device: Device, made: Path) -> None:
    update = update_of(made / "v2")
    desired = announce(update)
    device.updater.desired(envelope(desired), 0.0)
    asked, now = [], 0.0
    while now < 200.0:
        before = len(device.host.said)
        device.updater.tick(now)
        asked += [now] * (len(device.host.said) - before)
        now += 0.5
    gaps = np.diff(asked)
    assert (asked[0], gaps[0], gaps.max()) == (ASK_AGAIN_S, ASK_AGAIN_S, ASK_RARELY_S)
    assert device.host.said[-1].missing == [0, 1]
    device.updater.chunk(desired.sha256, 1, chunk_of(update, 1), now)
    device.updater.linked(now)
    assert device.host.said[-1].missing == [0, 2]
    for number, data in ((0, b"short"), (99, chunk_of(update, 0)), (1, chunk_of(update, 1))):
        device.updater.chunk(desired.sha256, number, data, now)
    device.updater.chunk("f" * 64, 0, chunk_of(update, 0), now)
    device.updater.linked(now)
    assert device.host.said[-1].missing == [0, 2]
    device.updater.desired(envelope(announce(update, "2" * 32)), now)  # announced anew: what has come stays
    assert device.host.said[-1].missing == [0, 2]
    device.updater.desired(b"", now)
    device.updater.chunk(desired.sha256, 0, chunk_of(update, 0), now)
    assert device.version == 1


# ---- refused, each with its code ----


def resigned(update: Update, key: PrivateKey, **changes: Any) -> Update:
    """Return an update whose statement says something else."""
    statement = json.loads(update.signature)["statement"] | changes
    return replace(update, signature=sign_statement(Statement(**statement), key))


def other_manifest(made: Path, key: PrivateKey, edit: Callable[[dict[str, Any]], object]) -> Update:
    """Return version 2 with another manifest, well signed: its hashes hold, what it says may not."""
    update = update_of(made / "v2")
    value = json.loads(update.manifest)
    edit(value)
    manifest = json.dumps(value).encode()
    files = {name: update.files.get(name, b"") for name in value["files"] if not name.startswith("model/")}
    decisions = decisions_hash(value["space"])
    changed = replace(update, manifest=manifest, files=files)
    return resigned(changed, key, manifest=hashlib.sha256(manifest).hexdigest(), decisions=decisions)


def other_policy(manifest: dict[str, Any]) -> None:
    manifest["files"]["policy.npz"]["sha256"] = "0" * 64


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str, Reason]] = {
    "networks": (lambda m: m["files"]["model/tail.onnx"].update(sha256="0" * 64), "REJECTED", Reason.WRONG_MODEL),
    "frame rate": (lambda m: m["context"].update(fps=77.0), "REJECTED", Reason.WRONG_SCHEMA),
    "deadline": (lambda m: m["context"].update(deadline_s=0.123), "REJECTED", Reason.WRONG_SCHEMA),
    "classes": (lambda m: m.update(classes=["a", "b"]), "REJECTED", Reason.WRONG_SCHEMA),
    "decisions": (
        lambda m: m["space"].update(thresholds=[0.0, 0.5], patience=[1.0, 1.0]),
        "REJECTED",
        Reason.WRONG_SCHEMA,
    ),
    "file": (other_policy, "REJECTED", Reason.BAD_HASH),
    "size of a file": (lambda m: m["files"]["policy.npz"].update(bytes=5), "REJECTED", Reason.BAD_HASH),
    "form": (lambda m: m.update(extra=1), "REJECTED", Reason.MALFORMED),
    "golden decisions": (
        lambda m: m["selftest"].update(decisions=[0] * len(m["selftest"]["decisions"])),
        "FAILED",
        Reason.SELF_TEST,
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_signed_manifest_that_does_not_fit_is_refused(case: str, device: Device, made: Path, key: PrivateKey) -> None:
    edit, status, reason = MANIFESTS[case]
    assert device.offer(other_manifest(made, key, edit)) == (status, reason)
    assert device.version == 1
    assert not list(device.store.slots.folder.iterdir())
    assert not (device.store.folder / "highest.json").read_text().count('"version": 2')
    assert device.offer(update_of(made / "v3"), announce(update_of(made / "v3"), "3" * 32)) == ("IN_PROGRESS", "")


STATEMENTS: dict[str, tuple[dict[str, Any], Reason]] = {
    "expired": ({"not_after": NOW - 61}, Reason.EXPIRED),
    "early": ({"issued": NOW + 61}, Reason.NOT_YET_VALID),
    "rollback": ({"version": 1}, Reason.NOT_NEWER),
    "observation": ({"observation": "0" * 16}, Reason.WRONG_SCHEMA),
    "decisions": ({"decisions": "0" * 16}, Reason.WRONG_SCHEMA),
    "library": ({"min_library": "99.0"}, Reason.LIBRARY_TOO_OLD),
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_a_statement_that_does_not_hold_is_refused_before_anything_is_fetched(
    case: str, device: Device, made: Path, key: PrivateKey
) -> None:
    changes, reason = STATEMENTS[case]
    device.updater.desired(envelope(announce(resigned(update_of(made / "v2"), key, **changes))), 0.0)
    assert device.last == ("REJECTED", reason)
    assert len(device.host.said) == 1
    assert device.host.said[0].detail


def test_wrong_keys_and_signatures_are_refused(device: Device, made: Path, key: PrivateKey, tmp_path: Path) -> None:
    update = update_of(made / "v2")
    stranger = load_private(make_keys(tmp_path, "stranger")[0])
    signature = json.loads(update.signature)
    cases: dict[Reason, dict[str, Any]] = {
        Reason.UNKNOWN_KEY: json.loads(resigned(update, stranger).signature),
        Reason.BAD_SIGNATURE: signature | {"statement": signature["statement"] | {"version": 3}},
        Reason.MALFORMED: signature | {"more": 1},
    }
    for reason, content in cases.items():
        device.updater.desired(envelope(announce(update, signature=content)), 0.0)
        assert device.last == ("REJECTED", reason)
    assert device.version == 1


def test_what_came_is_not_what_was_signed(device: Device, made: Path) -> None:
    update = update_of(made / "v2")
    data = bytearray(update.to_bytes())
    data[-1] ^= 1
    changed = replace(update, files={"policy.npz": bytes(data[len(update.manifest) :])})
    assert device.offer(changed, announce(update)) == ("REJECTED", Reason.BAD_HASH)
    assert device.offer(changed, announce(changed, "2" * 32)) == ("REJECTED", Reason.BAD_HASH)
    shifted = announce(update, "3" * 32, manifest_bytes=len(update.manifest) - 1)
    assert device.offer(update, shifted) == ("REJECTED", Reason.BAD_HASH)


def test_too_large_and_malformed(device: Device, made: Path) -> None:
    update = update_of(made / "v2")
    for changes in ({"size": MAX_UPDATE_BYTES + 1}, {"manifest_bytes": 1 << 30}):
        device.updater.desired(envelope(announce(update, **changes)), 0.0)
        assert device.last == ("REJECTED", Reason.TOO_LARGE)
    for payload in (b"{", b"[]", b"\xff", b"[" * 5000, bytes(MAX_CONTROL_BYTES + 1), envelope(announce(update))[:-9]):
        device.updater.desired(payload, 0.0)
        assert device.last == ("REJECTED", Reason.MALFORMED)
    assert MAX_SIGNATURE_BYTES < MAX_CONTROL_BYTES


def test_a_replay_is_told_how_it_ended_or_refused(device: Device, made: Path, key: PrivateKey) -> None:
    old, new = announce(update_of(made / "v2"), "2" * 32), announce(update_of(made / "v3"), "3" * 32)
    for desired, version in ((old, "v2"), (new, "v3")):
        device.offer(update_of(made / version), desired)
        device.updater.judged(None, "", 1.0)
    device.updater.desired(envelope(new), 2.0)
    assert (*device.last, device.host.said[-1].version) == ("SUCCEEDED", "", 3)
    device.updater.desired(envelope(old), 3.0)
    assert device.last == ("REJECTED", Reason.NOT_NEWER)
    device = reopened(device, made, key)
    device.updater.desired(envelope(old), 4.0)
    assert device.last == ("REJECTED", Reason.NOT_NEWER)
    device.updater.linked(5.0)
    assert (*device.last, device.host.said[-1].version) == ("SUCCEEDED", "", 3)


def test_an_update_that_expires_while_it_is_fetched_is_given_up(device: Device, made: Path, key: PrivateKey) -> None:
    times = [float(NOW)]
    device.store._trust = replace(device.store._trust, clock=lambda: times[0])
    update = resigned(update_of(made / "v2"), key, not_after=NOW + 100)
    device.updater.desired(envelope(announce(update)), 0.0)
    times[0] += 161
    device.updater.tick(10.0)
    assert device.last == ("REJECTED", Reason.EXPIRED)
    times[0] -= 161
    device.updater.desired(envelope(announce(update)), 20.0)
    times[0] += 161
    for number in range(chunks_in(update)):
        device.updater.chunk(announce(update).sha256, number, chunk_of(update, number), 20.0)
    assert device.last == ("REJECTED", Reason.EXPIRED)
    assert device.version == 1


MUTATIONS = 100_000 if os.environ.get("ADAPTSPLIT_FUZZ") == "full" else 2_000


@pytest.mark.timeout(900)
def test_mutated_announcements_and_chunks_change_nothing(device: Device, made: Path) -> None:
    """Each ends as a report, or in nothing: no exception, no other policy, nothing on the disk."""
    update, rng = update_of(made / "v2"), random.Random(11)
    whole = envelope(announce(update))
    mutate, seen = json_of(whole), set()
    for n in range(MUTATIONS):
        payload = mutate(rng)
        device.updater.desired(payload, float(n))
        device.updater.chunk(announce(update).sha256 if n % 2 else "x", rng.randrange(-2, 9), payload, float(n))
        seen |= {(said.status, said.reason) for said in device.host.said[-2:]}
        device.host.said = device.host.said[-2:]
    assert device.version == 1
    assert not list(device.store.slots.folder.iterdir())
    assert {("REJECTED", reason) for reason in ("MALFORMED", "BAD_SIGNATURE", "UNKNOWN_KEY", "TOO_LARGE")} <= seen
    assert device.offer(update, announce(update, "d" * 32)) == ("IN_PROGRESS", "")


# ---- rolled back ----


def test_a_policy_that_was_rolled_back_never_comes_back(device: Device, made: Path, key: PrivateKey) -> None:
    device.offer(update_of(made / "v3"))
    device.updater.judged(Reason.GUARD_TRIPS, "on purpose", 1.0)
    assert device.last == ("ROLLED_BACK", Reason.GUARD_TRIPS)
    assert device.version == 1
    assert not list(device.store.slots.folder.iterdir())
    for _ in range(2):
        for version in ("v3", "v2"):
            assert device.offer(update_of(made / version), announce(update_of(made / version), "2" * 32)) == (
                "REJECTED",
                Reason.NOT_NEWER,
            )
        device = reopened(device, made, key)
    shuffled = dict(reversed(json.loads(update_of(made / "v3").signature).items()))
    device.updater.desired(envelope(announce(update_of(made / "v3"), "5" * 32, signature=shuffled)), 0.0)
    assert device.last == ("REJECTED", Reason.NOT_NEWER)
    assert device.offer(update_of(made / "v4"), announce(update_of(made / "v4"), "4" * 32)) == ("IN_PROGRESS", "")


def test_a_policy_that_takes_the_process_with_it_is_rolled_back(device: Device, made: Path, key: PrivateKey) -> None:
    device.offer(update_of(made / "v2"))
    for _ in range(MAX_ATTEMPTS - 1):
        device = reopened(device, made, key)
        assert (device.version, version_of(device.opened.fallback)) == (2, 1) if device.opened.fallback else False
    device = reopened(device, made, key)
    assert (device.version, device.opened.fallback) == (1, None)
    device.updater.linked(0.0)
    assert device.last == ("ROLLED_BACK", Reason.BOOT)


def test_an_end_in_good_order_is_not_held_against_a_policy_on_trial(
    device: Device, made: Path, key: PrivateKey
) -> None:
    device.host.rates = Rates(trips=0.25)
    device.offer(update_of(made / "v2"))
    for _ in range(5):
        device.store.park()
        device = reopened(device, made, key)
        assert device.version == 2
        assert device.store.state.trial is not None
        assert device.store.state.trial.before.trips == 0.25
    device.updater.judged(None, "", 0.0)
    assert reopened(device, made, key).version == 2


# ---- damage, and disks ----


def committed(device: Device, made: Path, *versions: str) -> None:
    for number, version in enumerate(versions, 2):
        device.offer(update_of(made / version), announce(update_of(made / version), f"{number:032x}"))
        device.updater.judged(None, "", 0.0)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # the networks are shared: only this slot's name for them is spoilt
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["policy.npz", "manifest.json", "signature.json", "model/tail.onnx"])
def test_damage_of_a_slot_leads_to_the_one_before_and_then_to_the_factory_bundle(
    name: str, device: Device, made: Path, key: PrivateKey
) -> None:
    committed(device, made, "v2", "v3")
    spoil(device.updater.active.path / name)
    device = reopened(device, made, key)
    assert device.version == 2
    shutil.rmtree(device.updater.active.path)
    device = reopened(device, made, key)
    assert device.version == 1
    assert device.offer(update_of(made / "v3"), announce(update_of(made / "v3"), "9" * 32)) == ("IN_PROGRESS", "")


def test_a_factory_bundle_that_is_damaged_or_expired_stops_no_start_but_the_first(
    tmp_path: Path, made: Path, key: PrivateKey
) -> None:
    factory = tmp_path / "factory"
    shutil.copytree(made / "v1", factory)
    late = NOW + 400 * 86400
    with pytest.raises(RefusedBundle) as refused:
        Device(tmp_path / "p", factory, key, late)
    assert refused.value.code is Refusal.EXPIRED
    Device(tmp_path / "p", factory, key).close()
    device = Device(tmp_path / "p", factory, key, late)
    assert device.version == 1
    device.close()
    device = Device(tmp_path / "p", factory, key)
    committed(device, made, "v2")
    device.close()
    spoil(factory / "policy.npz")
    device = Device(tmp_path / "p", factory, key)
    assert device.version == 2
    device.close()
    shutil.rmtree(tmp_path / "p" / "slots")
    with pytest.raises(RefusedBundle, match=r"policy\.npz.*damaged"):
        Device(tmp_path / "p", factory, key)


def test_a_newer_factory_bundle_wins(device: Device, made: Path, key: PrivateKey) -> None:
    committed(device, made, "v2")
    device.store.close()
    device = Device(device.store.folder, made / "v4", key)
    assert (device.version, device.opened.bundle.path) == (4, made / "v4")
    assert device.offer(update_of(made / "v3")) == ("REJECTED", Reason.NOT_NEWER)
    device.store.close()
    assert Device(device.store.folder, made / "v4", key).version == 4


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 9000, b"null", b'{"current": "../../x"}', bytes(20_000)])
def test_a_damaged_state_leads_to_the_factory_bundle_and_forgets_no_version(
    content: bytes, device: Device, made: Path, key: PrivateKey
) -> None:
    committed(device, made, "v3")
    (device.store.folder / "state.json").write_bytes(content)
    device = reopened(device, made, key)
    assert device.version == 1
    assert device.offer(update_of(made / "v2")) == ("REJECTED", Reason.NOT_NEWER)


def test_a_damaged_memory_of_versions_takes_no_update_and_stops_no_start(
    device: Device, made: Path, key: PrivateKey
) -> None:
    committed(device, made, "v2")
    (device.store.folder / "highest.json").write_text("{")
    device = reopened(device, made, key)
    assert device.version == 2
    assert device.offer(update_of(made / "v3")) == ("FAILED", Reason.STORE)


@pytest.mark.parametrize("name", ["write_synced", "sync_folder", "write_whole", "link", "free"])
def test_a_full_disk_takes_no_update_and_the_old_policy_stays(
    name: str, device: Device, made: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    usage = shutil.disk_usage(device.store.folder)
    with monkeypatch.context() as patch:
        if name == "link":
            patch.setattr(os, "link", full)
        elif name == "free":
            patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
        else:
            patch.setattr(policy_store if name == "write_whole" else policy_slots, name, full)
        assert device.offer(update_of(made / "v2")) == ("FAILED", Reason.DISK_FULL)
        assert device.version == 1
        assert device.store.state.trial is None
        device = reopened(device, made, key)
        assert device.version == 1
    assert device.offer(update_of(made / "v2"), announce(update_of(made / "v2"), "7" * 32)) == ("IN_PROGRESS", "")


def test_the_end_of_a_trial_is_written_as_soon_as_the_disk_takes_it(
    device: Device, made: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    device.offer(update_of(made / "v2"))
    with monkeypatch.context() as patch:
        patch.setattr(policy_store, "write_whole", full)
        device.updater.judged(Reason.MISSES, "", 1.0)
        assert (device.version, device.last[0]) == (1, "ROLLED_BACK")
        device.updater.tick(2.0)
    device.updater.tick(3.0)
    assert reopened(device, made, key).version == 1


def test_a_real_full_disk(tmp_path: Path, made: Path, key: PrivateKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system of half a MiB, where this may be made: an update does not fit, and then nothing does."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=512k tmpfs {place} 2>/dev/null"):
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        device = Device(place / "p", made / "v1", key)
        assert device.offer(update_of(made / "v2")) == ("FAILED", Reason.DISK_FULL)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))  # type: ignore[attr-defined]
        assert device.offer(update_of(made / "v3"), announce(update_of(made / "v3"), "3" * 32)) == (
            "FAILED",
            Reason.DISK_FULL,
        )
        with contextlib.suppress(OSError):
            while True:
                (place / f"filler-{len(list(place.iterdir()))}").write_bytes(bytes(4096))
        device = reopened(device, made, key)
        assert device.version == 1
    finally:
        while OPEN:
            OPEN.pop().close()
        assert not os.system(f"umount {place}")


# ---- the start ----


def test_a_folder_serves_one_device_at_a_time(device: Device, made: Path, key: PrivateKey) -> None:
    with pytest.raises(ConfigError, match="in use by another device"):
        Device(device.store.folder, made / "v1", key)
    device.store.close()
    reopened(device, made, key).close()


def test_how_a_device_starts(made: Path, tmp_path: Path) -> None:
    assert "refused" in start_policy(PolicySource(made / "v1"), ["bundle"], None).updates
    with pytest.raises(ConfigError, match="--policies without --trust"):
        start_policy(PolicySource(made / "v1", policies=tmp_path / "p"), ["bundle"], None)


def test_learned_state_of_one_policy_is_not_given_to_another(
    device: Device, made: Path, key: PrivateKey, tmp_path: Path
) -> None:
    from adaptsplit.device_bridge.policy_part import learner_folder

    assert learner_folder(None, device.store, device.opened.bundle) is None
    assert learner_folder(tmp_path, device.store, device.opened.bundle) == tmp_path
    committed(device, made, "v2")
    active = device.updater.active
    assert learner_folder(tmp_path, device.store, active) == tmp_path / active.digest[:16]


# ---- the self-test ----


class Wrong:
    """A controller that fails its self-test in one of several ways."""

    name, learns = "wrong", False

    def __init__(self, how: str, good: Controller) -> None:
        self._how, self._good, self._calls = how, good, 0

    def init(self, n: int, rng: np.random.Generator) -> Any:
        """No state."""
        return None

    def learn(self, outcomes: Any, state: Any) -> Any:
        """Nothing."""
        return state

    def act(self, observation: Any, state: Any) -> tuple[Any, Any]:
        """Decide wrongly."""
        self._calls += 1
        decision = self._good.act(observation, state)[0]
        wrong = {
            "nan": np.full((1, 3), np.nan),
            "shape": np.zeros((2, 3), np.int64),
            "outside": np.full((1, 3), 99),
            "moody": np.array([[self._calls % 3 % 2, 0, 0]]),
        }
        if self._how == "raises":
            raise ValueError("boom")
        if self._how == "slow":
            time.sleep(0.001)
        return wrong.get(self._how, decision), state


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("nan", "float64"),
        ("shape", r"\(2, 3\)"),
        ("outside", "outside of"),
        ("moody", "otherwise on the same"),
        ("raises", "ValueError: boom"),
        ("slow", "99th percentile"),
    ],
)
def test_a_controller_that_cannot_run_fails_its_self_test(how: str, text: str, made: Path) -> None:
    bundle = load_bundle(made / "v1")
    with pytest.raises(FailedSelfTest, match=text):
        self_test(Wrong(how, bundle.controller), bundle.space, budget_s=0.0005 if how == "slow" else 1.0)


def test_the_golden_episode_travels_with_the_bundle(made: Path) -> None:
    bundle, other = load_bundle(made / "v1"), load_bundle(made / "v2")
    golden = bundle.manifest.selftest
    assert golden is not None
    assert golden == golden_episode(bundle.controller, bundle.space, "learned")
    assert len(set(golden.decisions)) > 3
    assert golden_episode(bundle.controller, bundle.space, "random") is None
    assert self_test(bundle.controller, bundle.space, budget_s=1.0, golden=golden) < 1.0
    with pytest.raises(FailedSelfTest, match="as exported"):
        self_test(other.controller, bundle.space, budget_s=1.0, golden=golden)


@pytest.mark.parametrize(
    ("wanted", "found", "enough"),
    [
        (None, "unknown", True),
        ("0.1", "0.1.0", True),
        ("0.1.1", "0.1.0", False),
        ("0.2", "0.10", True),
        ("1", "0.99.99", False),
        ("0.2", "0.2.0rc1", True),
        ("0.1", "unknown", False),
    ],
)
def test_versions_of_the_library_are_compared_as_numbers(wanted: str | None, found: str, enough: bool) -> None:
    assert new_enough(wanted, found) is enough


def test_chunks_fit_a_slow_link() -> None:
    assert CHUNK_BYTES * 8 / 1e6 < 0.2
