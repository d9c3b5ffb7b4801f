"""Every decoder of bytes from outside: damaged input gives an AdaptsplitError or a valid result, in bounded work.

Targets: messages of both planes, containers of every family of codecs, prior tables, signature, manifest, YAML, every
schema of ``policy.npz``, what a learner kept. Seeds come from our own encoders; mutations are deterministic
(``adaptsplit.fuzzing``). ``Target.inputs`` is what fits the suite's time at the decoder's measured speed: 10^5 would
take minutes where a document is parsed in a millisecond. ADAPTSPLIT_FUZZ=full takes 10^6 of each, ADAPTSPLIT_FUZZ=<n>
takes n. Whatever was found stands in ``FOUND``.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from adaptsplit import fuzzing as fz
from adaptsplit import observation as obs
from adaptsplit.agents import ControllerContext, PolicyController, PolicyNet
from adaptsplit.agents.base import RewardWeights
from adaptsplit.agents.build import build_controller
from adaptsplit.agents.gate import INPUTS, Branching, GateController
from adaptsplit.agents.online import build_online
from adaptsplit.agents.online_state import OnlineParameters
from adaptsplit.agents.policy import PARSERS, parse_policy
from adaptsplit.agents.policy_cautious import CautiousController
from adaptsplit.agents.policy_lookup import LookupController
from adaptsplit.agents.policy_recurrent import RecurrentNet, RecurrentPolicyController
from adaptsplit.agents.policy_tree import TreeController, tree_of
from adaptsplit.agents.static import StaticController
from adaptsplit.bundle import _build
from adaptsplit.bundle_manifest import parse_manifest
from adaptsplit.codecs import (
    PriorTable,
    build_container,
    decode_container,
    fit_prior,
    get_codec,
    parse_container,
    register_prior,
)
from adaptsplit.codecs.container import FIRST_IMAGE_KIND
from adaptsplit.config import MAX_YAML_BYTES, parse, parse_yaml
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.device_bridge.control import Birth, Connection, Event, State, build_control, parse_control
from adaptsplit.device_bridge.learner_state import leaves_of, load_learned, save_learned
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Heartbeat, Result, Status, parse_message
from adaptsplit.errors import AdaptsplitError
from adaptsplit.profiles import ProfileSummary
from adaptsplit.scenario import ScenarioFile
from adaptsplit.signing import Statement, parse_signature, sign_statement
from adaptsplit.signing_keys import PrivateKey

MODE = os.environ.get("ADAPTSPLIT_FUZZ", "")
MOST_SECONDS = 2.0  # of processor time for one input; the slowest whole document takes some milliseconds
MOST_BYTES = 160 << 20  # while one input is decoded; a container may state 2^22 values or 2^23 pixels
SESSION = bytes(range(16))
SPACE = DecisionSpace(
    (BranchSpec("stem", "split", ("q2c-zstd", "q4c-zstd")), BranchSpec("off", "offload", ("webp-10",), exit="stem")),
    (0.0, 0.8, 1.01),
)
CONTEXT = ControllerContext(
    fps=10, deadline_s=0.25, goodput_bps=2e6, rtt_s=0.06, server_s=0.01, compute_w=2.5, weights=RewardWeights()
)


@dataclass(frozen=True)
class Target:
    """A decoder: mutators of valid documents, what reads one (and checks what it gives), how many inputs by default."""

    whole: Sequence[bytes]
    mutators: Sequence[fz.Mutator]
    decode: Callable[[bytes], object]
    inputs: int
    printable: bool = True


# ---- seeds and decoders -------------------------------------------------------------------------------------------


def sealed(body: bytes) -> bytes:
    return body + struct.pack(">I", zlib.crc32(body))


def read_message(data: bytes) -> None:
    assert parse_message(data).to_bytes() == data


def message_target() -> Target:
    codec: Any = get_codec("q4c-zstd")
    container = codec.encode(np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 4, 4))
    frame = FrameMessage(SESSION, 7, 300, 2, 3, 5_000_001, 180_000, container).to_bytes()
    results = (
        Result(SESSION, 7, 300, 0.012, 0.002, 0.75, Status.DONE, bytes(range(16))),
        Result(SESSION, 8, 301, 0.3, 0.3, 0.0, Status.DROPPED, b""),
    )
    short = (Ack(SESSION, 7, 300), *results, Heartbeat(SESSION, 4, 4_000_000), Heartbeat(SESSION, 4, 1, reply=True))
    whole = [message.to_bytes() for message in short]
    mutators = [fz.sealed_of(data[:-4], sealed) for data in whole]
    head = len(frame) - len(container)
    mutators.append(fz.sealed_of(frame[: head - 4], sealed, container))
    return Target([*whole, frame], mutators, read_message, 100_000)


def control_target() -> Target:
    contents = (
        Connection(state="ONLINE"),
        Event(kind="link", detail="up"),
        State(
            frame=1,
            controller="c",
            decision="stem/0/0",
            goodput_bps=1e6,
            rtt_s=0.1,
            unacked=0,
            edge="online",
            paths={"exit": 2},
        ),
        Birth(
            library="1",
            bundle="b",
            controllers=["a"],
            observation="0",
            branches=["s"],
            classes=["x"],
            fps=10,
            deadline_s=0.2,
            window=2,
        ),
    )
    whole = [build_control(content, seq=1, session=SESSION, ts_ms=5, mono_ms=1.0) for content in contents]
    return Target(whole, [fz.json_of(text) for text in whole], parse_control, 100_000)


def read_container(data: bytes) -> None:
    shape = parse_container(data).shape
    decoded = decode_container(data)
    assert decoded.shape == (shape if decoded.dtype == np.float32 else (*shape, 3))
    assert np.isfinite(decoded).all()


@functools.lru_cache
def prior() -> PriorTable:
    return fit_prior(np.stack([FEATURES, 2 * FEATURES, -FEATURES]), 8)


def codec_target(family: str) -> Target:
    """Containers of one family of codecs: of small maps where half of all values is 0, or of an image."""
    chosen: list[Any] = [register_prior(prior()) if name == "prior" else get_codec(name) for name in CODECS[family]]
    values: Any = PICTURE if family in ("webp", "jpeg") else FEATURES.clip(0, None)
    whole: list[bytes] = [codec.encode(values) for codec in chosen]
    mutators = [fz.sealed_of(data[:-4], sealed) for data in whole]
    mutators += [functools.partial(_other_container, data) for data in whole]
    if family == "prior":  # every payload but those of an encoder is refused: some are of one, of any features
        mutators.append(lambda rng: chosen[0].encode(np.full((3, 2, 2), rng.gauss(0, 9), np.float32)))
    return Target(whole, mutators, read_container, 10_000)


def prior_table_target() -> Target:
    place = scratch() / "prior.npz"
    prior().save(place)
    data = place.read_bytes()

    def read(content: bytes) -> None:
        table = PriorTable.parse(content, "prior.npz")
        assert np.isfinite(table.restore(table.symbols(np.full((len(table.scale), 1, 1), 1e4, np.float32)))).all()

    return Target([data], [fz.bytes_of(data), functools.partial(_other_table, arrays_of(data))], read, 4_000)


def _other_table(arrays: dict[str, NDArray[Any]], rng: random.Random) -> bytes:
    """A prior table one array of which has another type, shape or number."""
    name = rng.choice(sorted(arrays))
    changed = {**arrays, name: fz.other_array(arrays[name], rng)}
    return fz.zip_bytes({f"{key}.npy": fz.npy_bytes(value) for key, value in changed.items()})


def _other_container(data: bytes, rng: random.Random) -> bytes:
    """A container that is whole, of another payload, shape, codec or form byte."""
    found, kind = parse_container(data), rng.randrange(4)
    form = rng.randrange(256) if kind == 0 else found.form
    codec = rng.randrange(FIRST_IMAGE_KIND) if kind == 1 and found.kind < FIRST_IMAGE_KIND else found.kind
    shape = tuple(max(1, size + rng.choice((0, 0, -1, 1, 7, 30))) for size in found.shape) if kind == 2 else found.shape
    return build_container(codec, form, shape, fz.damaged(found.payload, rng) if kind else found.payload)


def signature_target() -> Target:
    key = PrivateKey.from_private_bytes(bytes(32))
    statement = Statement(
        manifest="0" * 64, name="n", version=1, issued=1, not_after=2, observation="0" * 16, decisions="0" * 16
    )
    text = sign_statement(statement, key)

    def read(data: bytes) -> None:
        assert parse_signature(data, "f").statement.to_bytes().isascii()

    return Target([text], [fz.json_of(text)], read, 20_000)


def make_summary() -> ProfileSummary:
    levels, quality = np.linspace(0.0, 1.0, 3), np.full((2, 2), 0.9)
    per_level = np.full((2, 3), 0.8)
    return ProfileSummary(
        branches=("stem", "off"),
        exit_quality=np.full(2, 0.8),
        tail_quality=quality,
        payload_bytes=quality * 1e3,
        head_s=np.full(2, 0.02),
        encode_s=quality * 0.004,
        tail_s=quality * 0.01,
        signal_s=0.001,
        levels=levels,
        exit_ratio=per_level,
        exit_quality_above=per_level,
        exit_quality_below=per_level,
        tail_quality_below=np.full((2, 2, 3), 0.7),
        confidence_mean=np.full(2, 0.8),
        retention=0.9,
    )


def manifest_text() -> bytes:
    stages = {"head_s": [[0.1, 0.2]] * 2, "encode_s": [[[0.1, 0.2]] * 2] * 2, "signal_s": [0.1, 0.2]}
    value = {name: "x" for name in ("name", "created", "library", "scenario", "device", "frames")}
    return json.dumps(
        {"schema": "adaptsplit.bundle/1", **value, "observation": obs.schema_hash(), "space": SPACE.to_dict()}
        | {"controller": {"kind": "static", "name": "s", "source": "static:stem/0/0.8"}, "classes": ["a", "b"]}
        | {"context": CONTEXT.model_dump(), "stages": stages, "summary": make_summary().to_dict(), "trained": None}
        | {"files": {"model/model.json": {"sha256": "0" * 64, "bytes": 5}}}
    ).encode()


def read_manifest(data: bytes) -> None:
    bundle = _build(Path("bundle"), parse_manifest(data, Path("manifest.json")), "0" * 64)
    assert np.isfinite(bundle.stages.head_s).all()


def manifest_target() -> Target:
    text = manifest_text()
    return Target([text], [fz.json_of(text)], read_manifest, 6_000)


def scenario_text() -> bytes:
    text = (Path(__file__).parents[1] / "adaptsplit" / "scenarios" / "flight-lte.yaml").read_text()
    return yaml.safe_dump(yaml.safe_load(text)).encode()


def read_scenario(data: bytes) -> None:
    parse(ScenarioFile, parse_yaml(data, "a.yaml"), "a.yaml")


def yaml_target() -> Target:
    text = scenario_text()
    return Target([text], [fz.yaml_of(text)], read_scenario, 400)


@functools.lru_cache
def policies() -> dict[str, bytes]:
    """A policy file of every schema."""
    rng, rows = np.random.default_rng(0), len(SPACE.table)

    def layers(*sizes: int) -> tuple[tuple[NDArray[Any], NDArray[Any]], ...]:
        return tuple((rng.normal(size=p).astype(np.float32), np.zeros(p[1], np.float32)) for p in pairwise(sizes))

    network = PolicyController("p", SPACE, PolicyNet(layers(obs.SIZE, 8, rows), "tanh", "flat"))
    ((weight, bias),) = layers(obs.SIZE + 4, 16)
    cell = RecurrentNet(weight, bias, PolicyNet(layers(4, rows), "relu", "flat"))
    tree = tree_of(np.array([2, -1, -1]), np.array([0.5, 0, 0]), np.array([1, -1, -1]), np.array([2, -1, -1]))
    gate = Branching(SPACE, np.array([1, 0]))
    made: dict[str, Any] = {
        "policy": network,
        "recurrent": RecurrentPolicyController("r", SPACE, cell),
        "tree": TreeController("t", SPACE, tree, np.array([-1, 0, 1])),
        "lookup": LookupController("l", SPACE, [1, 3], [np.array([0.5]), np.array([0.2, 0.4])], np.arange(6) % rows),
        "online": build_online("o", network, make_summary(), CONTEXT, OnlineParameters()),
        "gate": GateController("g", StaticController(SPACE, SPACE.parse("stem/1/0.8")), gate, layers(INPUTS, 4, 1)),
        "gate-network": GateController("g", network, gate, layers(INPUTS, 4, 1)),
    }
    values = tuple(PolicyNet(layers(obs.SIZE, 8, rows), "relu", "flat") for _ in range(2))
    made["cautious"] = CautiousController("c", SPACE, values, 0, 1.0)
    return {name: _saved(controller.save) for name, controller in made.items()}


def _saved(save: Callable[[Path], object]) -> bytes:
    place = scratch() / "seed.npz"
    save(place)
    return place.read_bytes()


@functools.lru_cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="adaptsplit-fuzz-")  # removed with the process


def scratch() -> Path:
    return Path(_folder().name)


def read_policy_file(data: bytes) -> None:
    policy = parse_policy(data, "policy.npz")
    rows = np.full((1, obs.SIZE), 0.5, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # finite weights of 1e30: what they decide is still a decision
        decision, _ = policy.act(rows, policy.init(1, np.random.default_rng(0)))
    assert (policy.space.table == decision).all(axis=1).any()


def policy_target(name: str) -> Target:
    data = policies()[name]
    return Target([data], [fz.npz_of(arrays_of(data))], read_policy_file, 600)


def arrays_of(data: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(data)) as archive:
        return {key: archive[key] for key in archive.files}


def learner_target() -> Target:
    controller = build_controller("kl-ucb", SPACE, make_summary(), CONTEXT)
    state = controller.init(1, np.random.default_rng(0))
    place = scratch() / "learned.npz"
    save_learned(place, "kl-ucb", state)
    data = place.read_bytes()

    def read(content: bytes) -> None:
        place.write_bytes(content)
        found = dict(leaves_of(load_learned(place, "kl-ucb", state)))
        assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in leaves_of(state)}

    return Target([data], [fz.npz_of(arrays_of(data))], read, 600)


FEATURES = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
PICTURE = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
CODECS: dict[str, list[str]] = {
    **{how: [f"q{bits}{share}-{how}" for bits in (2, 3, 8) for share in "tc"] for how in ("zstd", "fast")},
    "context": ["q2c-context", "q4t-context", "q6c-context", "q8t-context"],
    "rle": ["q2t-rle", "q4c-rle", "q8t-rle"],
    "rans": ["q2t-rans", "q3c-rans", "q4t-rans"],
    "slicer": ["slicer-k25-d10", "slicer-k50-d20", "slicer-k100-d30"],
    "prior": ["prior"],
    "webp": ["webp-50"],
    "jpeg": ["jpeg-50"],
}
POLICIES = ("policy", "recurrent", "tree", "lookup", "online", "gate", "gate-network", "cautious")
TARGETS: dict[str, Callable[[], Target]] = {
    "message": message_target,
    "control": control_target,
    **{f"codec-{family}": functools.partial(codec_target, family) for family in CODECS},
    "prior-table": prior_table_target,
    "signature": signature_target,
    "manifest": manifest_target,
    "yaml": yaml_target,
    "learner": learner_target,
    **{f"policy-{name}": functools.partial(policy_target, name) for name in POLICIES},
}


# ---- the harness --------------------------------------------------------------------------------------------------


def outcome(target: Target, data: bytes) -> str:
    """What becomes of ``data``: "read" or "refused"; an AssertionError that shows it for anything else."""
    start = time.thread_time()
    try:
        target.decode(data)
        result = "read"
    except AdaptsplitError as error:
        text = str(error)
        assert len(text) < 10_000, (len(text), data[:500])
        assert not target.printable or text.replace("\n", "").isprintable(), (text, data[:2000])
        result = "refused"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} for {data[:3000]!r}") from error
    assert time.thread_time() - start < MOST_SECONDS, data[:3000]
    return result


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_or_read(name: str) -> None:
    target = TARGETS[name]()
    rng, seen = random.Random(f"fuzz {name}"), Counter[str]()
    for data in target.whole:
        assert outcome(target, data) == "read"
    inputs = 1_000_000 if MODE == "full" else int(MODE or target.inputs)
    for k in range(inputs):
        seen[outcome(target, target.mutators[k % len(target.mutators)](rng))] += 1
    assert seen["refused"] > 0.2 * inputs
    assert seen["read"] > 0.005 * inputs  # mutations that break everything would test the first check only


@pytest.mark.parametrize("name", TARGETS)
def test_memory_is_bounded(name: str) -> None:
    target, rng = TARGETS[name](), random.Random(f"memory {name}")
    tracemalloc.start()
    try:
        for k in range(100):
            data = target.mutators[k % len(target.mutators)](rng)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            outcome(target, data)
            assert tracemalloc.get_traced_memory()[1] - before < MOST_BYTES, data[:1000]
    finally:
        tracemalloc.stop()


def test_every_schema_of_policies_is_a_target() -> None:
    schemas = {json.loads(arrays_of(data)["meta"].tobytes())["schema"] for data in policies().values()}
    assert schemas == set(PARSERS)


# ---- what was found ------------------------------------------------------------------------------------------------


def bomb_of_aliases() -> bytes:
    """Ten lines that stand for 10^9 values: one ``repr`` of them filled the memory."""
    lines = ["name:", " - &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f" - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(lines).encode()


def bomb_of_merges() -> bytes:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 10)]
    return "\n".join(lines).encode()


def jpeg_of_many_scans() -> bytes:
    """40 KiB that libjpeg worked on for nine seconds: each scan of ten bytes is an image of zeros."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2048, 4096, 3), np.uint8)).save(buffer, "JPEG", quality=50)
    head = buffer.getvalue().split(b"\xff\xda")[0]
    scan = [b"\xff\xda\0\x08\x01" + bytes((part, 0 if part == 1 else 0x11, 0, 63, 0)) for part in (1, 2, 3)]
    return build_container(0x21, 50, (2048, 4096), head + scan[0] * 4000 + scan[1] + scan[2] + b"\xff\xd9")


def directory_of_many() -> bytes:
    """16 MiB of zip directory: four seconds before anything was counted."""
    entry = b"PK\1\2" + bytes(24) + b"\1" + bytes(17) + b"a"
    count = 300_000
    return entry * count + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, len(entry) * count, 0, 0)


def policy_with(name: str = "policy", **members: bytes | None) -> bytes:
    """A policy file with other members, or without those that are None; ``meta`` is changed by a JSON object."""
    arrays = {f"{key}.npy": fz.npy_bytes(array) for key, array in arrays_of(policies()[name]).items()}
    changed = arrays | {f"{key}.npy": value for key, value in members.items() if value is not None}
    return fz.zip_bytes({key: value for key, value in changed.items() if members.get(key[:-4], b"") is not None})


def policy_saying(name: str, old: bytes, new: bytes) -> bytes:
    meta = arrays_of(policies()[name])["meta"].tobytes()
    assert old in meta
    return policy_with(name, meta=fz.npy_bytes(np.frombuffer(meta.replace(old, new, 1), np.uint8)))


def manifest_saying(old: bytes, new: bytes) -> bytes:
    assert old in manifest_text()
    return manifest_text().replace(old, new, 1)


BIG_SPACE = {
    "branches": [{"name": f"b{i}", "kind": "split", "codecs": ["x"] * 90, "exit": None} for i in range(900)],
    "thresholds": [k / 100 for k in range(900)],
    "patience": [1.0] * 900,
}
FOUND: dict[str, tuple[Callable[[bytes], object], Callable[[], bytes], str]] = {
    # name: (decoder, input, what the error says). Where a remark names it: what happened before. The others were
    # refused by luck (by numpy's allocator, say), accepted, or are the neighbours of such a case.
    "yaml-empty-int": (read_scenario, lambda: b'a: !!int ""', "not valid YAML"),  # IndexError
    "yaml-empty-float": (read_scenario, lambda: b"a: !!float '_'", "not valid YAML"),  # IndexError
    "yaml-bool": (read_scenario, lambda: b"a: !!bool foo", "not valid YAML"),  # KeyError
    "yaml-timestamp": (read_scenario, lambda: b"a: !!timestamp foo", "not valid YAML"),  # AttributeError
    "yaml-long-int": (read_scenario, lambda: b"name: 0x" + b"f" * 5000, "more than 60 digits"),  # ValueError of repr
    "yaml-aliases": (read_scenario, bomb_of_aliases, "more than 20000 values"),  # memory
    "yaml-merges": (read_scenario, bomb_of_merges, "more than 20000 values"),  # memory
    "yaml-own-alias": (read_scenario, lambda: b"name: &a [*a]", "what it stands in"),
    "yaml-escape": (read_scenario, lambda: b'"\\e[2J": 1', r"\\x1b\[2J: unknown key"),  # moved the cursor
    "yaml-many-faults": (read_scenario, lambda: b"".join(b"k%d: 1\n" % k for k in range(900)), "and 8.. more"),
    "jpeg-scans": (read_container, jpeg_of_many_scans, "one scan"),  # nine seconds
    "npz-directory": (read_policy_file, directory_of_many, "zip directory"),  # four seconds
    "npz-no-array": (read_policy_file, lambda: policy_with(meta=b"{}"), "without the header"),  # AttributeError
    "npz-claims": (read_policy_file, lambda: policy_with(w0=fz.npy_claiming("(99999999999,)")), "bytes for an array"),
    "npz-overflow": (read_policy_file, lambda: policy_with(w0=fz.npy_claiming(f"({1 << 70},)")), "bytes for an array"),
    "npz-negative": (read_policy_file, lambda: policy_with(w0=fz.npy_claiming("(-1,)")), "without the header"),
    "npz-lzma": (
        read_policy_file,
        lambda: fz.zip_bytes({"meta.npy": fz.npy_bytes(np.zeros(9))}, zipfile.ZIP_LZMA),
        "neither by deflate",
    ),
    "policy-threshold-nan": (read_policy_file, lambda: policy_saying("tree", b"0.8", b"NaN"), "NaN is not a number"),
    "policy-threshold-inf": (read_policy_file, lambda: policy_saying("tree", b"1.01", b"1e999"), "finite"),
    "policy-threshold-huge": (read_policy_file, lambda: policy_saying("tree", b"1.01", b"9" * 400), "too large"),
    "gate-order-huge": (read_policy_file, lambda: policy_saying("gate", b"[1, 0]", b"[1, %d]" % 10**30), "not a gate"),
    "online-scale": (
        read_policy_file,
        lambda: policy_saying("online", b'"goodput_bps": 2000000.0', b'"goodput_bps": 0'),
        "goodput_bps 0",
    ),  # ValueError when it decided
    "manifest-space": (
        read_manifest,
        lambda: manifest_saying(json.dumps(SPACE.to_dict()).encode(), json.dumps(BIG_SPACE).encode()),
        "more than 65536",
    ),  # no cap: whoever asked for its table made one of 1.7 GB
    "manifest-inf": (read_manifest, lambda: manifest_saying(b"1.01", b"1e999"), "beyond the numbers"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(name: str) -> None:
    decode, make, says = FOUND[name]
    data = make()
    tracemalloc.start()
    start = time.thread_time()
    try:
        with pytest.raises(AdaptsplitError, match=says):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert time.thread_time() - start < MOST_SECONDS


def test_yaml_of_any_size_is_bounded_work() -> None:
    flow = b"a: [" + b"x," * 500_000
    for data in (flow[:MAX_YAML_BYTES], b"[" * MAX_YAML_BYTES, b"a: " + b"1:" * 100_000):
        start = time.thread_time()
        with pytest.raises(AdaptsplitError):
            read_scenario(data)
        assert time.thread_time() - start < 5 * MOST_SECONDS
