"""Targets of fuzzing: files. Bundles, signatures, keys, policies, logs, and what a device keeps for itself."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_policies import CONTEXT, POLICIES, SPACE, arrays_of, make_summary, policies, scratch
from fuzzing import FILE_S, Target
from numpy.typing import NDArray

from adaptsplit import fuzzing as fz
from adaptsplit import observation as obs
from adaptsplit.agents.build import build_controller
from adaptsplit.agents.policy import parse_policy
from adaptsplit.bundle import _build
from adaptsplit.bundle_manifest import parse_manifest
from adaptsplit.device_bridge import mavlink
from adaptsplit.device_bridge.certificates import load_certificate, load_revoked
from adaptsplit.device_bridge.learner_state import leaves_of, load_learned, save_learned
from adaptsplit.device_bridge.mavlink_links import Address
from adaptsplit.device_bridge.metrics import parse_where
from adaptsplit.device_bridge.policy_store import PolicyStore
from adaptsplit.device_bridge.shaper import load_trace, save_trace
from adaptsplit.device_bridge.telemetry import Telemetry
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import ConfigError
from adaptsplit.links import LinkTrace
from adaptsplit.npz import read_npz
from adaptsplit.outcome import OUTCOME, to_rows
from adaptsplit.recorded_run import read_run
from adaptsplit.signing import Statement, parse_signature, sign_statement
from adaptsplit.signing_keys import PrivateKey, load_public, make_keys

BIG = 32 << 20


# ---- bundles --------------------------------------------------------------------------------------------------------


def signature() -> Target:
    """The signature file of a bundle."""
    zeros = {"manifest": "0" * 64, "observation": "0" * 16, "decisions": "0" * 16}
    text = sign_statement(
        Statement(name="n", version=1, issued=1, not_after=2, **zeros), PrivateKey.from_private_bytes(bytes(32))
    )

    def read(data: bytes) -> None:
        assert parse_signature(data, "f").statement.to_bytes().isascii()

    return Target([text], [fz.json_of(text)], read)


def manifest_text() -> bytes:
    """Return the manifest of a bundle with a static controller."""
    stages = {"head_s": [[0.1, 0.2]] * 2, "encode_s": [[[0.1, 0.2]] * 2] * 2, "signal_s": [0.1, 0.2]}
    value = {name: "x" for name in ("name", "created", "library", "scenario", "device", "frames")}
    return json.dumps(
        {"schema": "adaptsplit.bundle/1", **value, "observation": obs.schema_hash(), "space": SPACE.to_dict()}
        | {"controller": {"kind": "static", "name": "s", "source": "static:stem/0/0.8"}, "classes": ["a", "b"]}
        | {"context": CONTEXT.model_dump(), "stages": stages, "summary": make_summary().to_dict(), "trained": None}
        | {"files": {"model/model.json": {"sha256": "0" * 64, "bytes": 5}}}
    ).encode()


def read_manifest(data: bytes) -> None:
    """Build what a manifest describes."""
    bundle = _build(Path("bundle"), parse_manifest(data, Path("manifest.json")), "0" * 64)
    assert np.isfinite(bundle.stages.head_s).all()


def manifest() -> Target:
    """The manifest of a bundle."""
    text = manifest_text()
    return Target([text], [fz.json_of(text)], lambda data: parse_manifest(data, Path("manifest.json")))


def bundle() -> Target:
    """All that is built of a manifest: space, summary, times, controller."""
    text = manifest_text()
    return Target([text], [fz.json_of(text)], read_manifest, 5_000)


# ---- arrays ---------------------------------------------------------------------------------------------------------


def npz() -> Target:
    """The reader of npz files, on two arrays of some numbers."""
    arrays: dict[str, NDArray[Any]] = {
        "meta": np.frombuffer(b'{"a":1}', np.uint8),
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    members = {f"{key}.npy": fz.npy_bytes(array) for key, array in arrays.items()}

    def read(data: bytes) -> None:
        try:
            found = read_npz(data, 1 << 16, 4)
        except ValueError as error:  # its callers say where, in an error of ours
            raise ConfigError(ascii(str(error))) from error
        assert sum(array.nbytes for array in found.values()) <= 1 << 16

    return Target([fz.zip_bytes(members)], [fz.npz_of(arrays)], read, 10_000, most_bytes=BIG)


def read_policy_file(data: bytes) -> None:
    """Read a policy and let it decide once: whatever its weights are, the decision is legal."""
    policy = parse_policy(data, "policy.npz")
    rows = np.full((1, obs.SIZE), 0.5, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # finite weights of 1e30: what they decide is still a decision
        decision, _ = policy.act(rows, policy.init(1, np.random.default_rng(0)))
    assert (policy.space.table == decision).all(axis=1).any()


def policy(name: str) -> Target:
    """A policy file of one schema."""
    data = policies()[name]
    return Target([data], [fz.npz_of(arrays_of(data))], read_policy_file, 1_000, FILE_S, BIG)


def learner() -> Target:
    """What a learner keeps from one start to the next."""
    controller = build_controller("kl-ucb", SPACE, make_summary(), CONTEXT)
    state = controller.init(1, np.random.default_rng(0))
    place = scratch() / "learned.npz"
    save_learned(place, "kl-ucb", state)
    data = place.read_bytes()

    def read(content: bytes) -> None:
        place.write_bytes(content)
        found = dict(leaves_of(load_learned(place, "kl-ucb", state)))
        assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in leaves_of(state)}

    return Target([data], [fz.npz_of(arrays_of(data))], read, 1_000, FILE_S, BIG)


def trace() -> Target:
    """A link trace as the shaper takes it."""
    place = scratch() / "trace.npz"
    save_trace(LinkTrace("t", "lte", 0.1, np.full(4, 1e6), np.full(4, 0.05), np.zeros(4), None), place)
    data = place.read_bytes()
    return Target([data], [fz.bytes_of(data)], _from_file("trace.npz", load_trace), 2_000, FILE_S, BIG)


# ---- text -----------------------------------------------------------------------------------------------------------


def telemetry() -> Target:
    """The model of a battery."""
    text = b'{"capacity_j":100.0,"start":0.5,"base_w":1.0,"dt_s":0.1,"signal_dbm":[-90.0,-91.5]}'

    def load(place: Path) -> None:
        Telemetry.load(place).read(1.0)

    return Target([text], [fz.json_of(text)], _from_file("telemetry.json", load), 5_000)


def store_state() -> Target:
    """What a device keeps about its policies. A damaged state is told in the log: here that is a refusal."""
    text = json.dumps(
        {"schema": "adaptsplit.policy-store/1", "current": "0" * 64, "previous": None, "refused": 3}
        | {"trial": {"slot": "1" * 64, "job": "1" * 32, "version": 2, "attempts": 1, "before": {}}, "last": None}
    ).encode()
    store = PolicyStore.__new__(PolicyStore)
    store.folder = scratch()

    def read(data: bytes) -> None:
        (store.folder / "state.json").write_bytes(data)
        state, damaged = store._read_state()
        assert (state is None) == damaged
        if damaged:
            raise ConfigError("damaged")

    return Target([text], [fz.json_of(text)], read, 5_000)


def live_log() -> Target:
    """A live log: a line of a run, two frames, an event."""
    row = {**next(iter(to_rows(np.zeros(1, OUTCOME)))), "controller": "c", "times": {"sent_s": 0.2, "wire_bytes": 300}}
    frames = [json.dumps({**row, "frame": k}).encode() + b"\n" for k in range(2)]
    text = b"".join([b'{"event": "run", "frame": 0, "detail": ""}\n', *frames])
    lines = text.splitlines(keepends=True)
    inner = [fz.json_of(line.strip()) for line in lines]

    def mutate(rng: random.Random) -> bytes:
        at = rng.randrange(len(lines))
        return b"".join([*lines[:at], inner[at](rng), b"\n", *lines[at + 1 :]])

    def load(place: Path) -> None:
        with np.errstate(over="ignore"):  # 1e308 in a column of float32 is infinite there
            read_run(place)

    return Target([text], [mutate], _from_file("run.jsonl", load), 2_000)


def address() -> Target:
    """Addresses of brokers, vehicles and metrics, as a person writes them."""
    whole = (
        b"mqtts://u:p@[::1]:8883?ca=ca.crt&cert=a.crt&key=a.key",
        b"udp:127.0.0.1:14550",
        b"127.0.0.1:9100",
        b"udp:h:1?radio=sik&system=1&stale=5",
    )
    readers: tuple[Callable[[str], object], ...] = (BrokerAddress.parse, Address.parse, parse_where, _vehicle)

    def read(data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        faults = []
        for reader in readers:
            try:
                reader(text)
            except ConfigError as error:
                faults.append(error)
        if len(faults) == len(readers):
            raise faults[0]

    return Target(whole, [fz.bytes_of(data) for data in whole], read, 20_000, printable=False)


def _vehicle(text: str) -> object:
    return mavlink._options(text.partition("?")[2] or text)


def pem() -> Target:
    """Files of keys and certificates in PEM form."""
    folder = scratch() / "keys"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    _, public = make_keys(folder, "k")
    text = public.read_bytes()
    readers = itertools.cycle((load_public, load_certificate, load_public, load_revoked))

    def load(place: Path) -> None:
        (load_public if place.read_bytes() == text else next(readers))(place)

    return Target([text], [fz.bytes_of(text)], _from_file("k.pem", load), 5_000, most_bytes=4 << 20)


def _from_file(name: str, load: Callable[[Path], object]) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        place = scratch() / name
        place.write_bytes(data)
        load(place)

    return read


FILES: dict[str, Callable[[], Target]] = {
    "signature": signature,
    "manifest": manifest,
    "bundle": bundle,
    "npz": npz,
    **{f"policy-{name}": functools.partial(policy, name) for name in POLICIES},
    "learner": learner,
    "trace": trace,
    "telemetry": telemetry,
    "store-state": store_state,
    "live-log": live_log,
    "address": address,
    "pem": pem,
}
