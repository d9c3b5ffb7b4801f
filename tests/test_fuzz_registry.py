"""Every place that takes bytes from outside apart is reached by a target of fuzzing, or says here why not.

The places are found in the source: functions that call one of ``PRIMITIVES``. Whether a target reaches them is seen by
running it, so a new decoder anywhere in ``device_bridge`` (or in what it reads bundles, policies and containers with)
fails here until there is a target for it.
"""

from __future__ import annotations

import ast
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import pytest
from fuzz_targets import TARGETS
from fuzzing import Target, outcome, silent

ROOT = Path(__file__).resolve().parents[1]
PLACES: tuple[str, ...] = (
    "device_bridge/*.py",
    "adaptsplit/codecs/*.py",
    "agents/policy*.py",
    "agents/gate.py",
    "agents/online_file.py",
)
PLACES += tuple(f"adaptsplit/{name}.py" for name in ("config", "npz", "signing", "signing_keys", "bundle_manifest"))
PLACES += ("adaptsplit/recorded_run.py",)
PRIMITIVES = {
    *(
        "loads",
        "unpack",
        "unpack_from",
        "frombuffer",
        "from_bytes",
        "fromhex",
        "ZipFile",
        "load",
        "decode",
        "b64decode",
    ),
    *("load_pem_private_key", "load_pem_public_key", "load_pem_x509_certificate", "load_pem_x509_crl", "parse_buffer"),
    *("urlsplit", "parse_qsl", "read_text", "readline", "recv", "recvfrom", "get_single_data", "read_capped"),
    *("parse_control", "parse_message", "parse_observation", "parse_advice", "parse_signature", "parse_manifest"),
    *("parse_json", "parse_yaml", "read_yaml", "read_npz", "parse_policy", "parse_container", "decode_container"),
}
OURS = "of this machine: another process of ours writes it, or its operator"
ELSEWHERE: dict[str, str] = {
    "device_bridge/amqtt_broker.py": "a broker for desks; its decoders are amqtt's",
    "device_bridge/camera.py": "pictures; tests/test_camera.py",
    "device_bridge/broker.py": OURS,
    "device_bridge/conformance_probes.py": "a tool's own probes",
    "device_bridge/edge_load.py": "a load generator's own client",
    "device_bridge/live.py": OURS,
    "device_bridge/process.py": OURS,
}
"""Files that are left out, and why."""
WRITES = "decodes what it has just written itself"
THIN = "passes a file's or a socket's bytes to what a target reaches"
NOT_REACHED: dict[str, str] = {
    "adaptsplit/codecs/context_vector.py:_load": "machine code of numba's, not data",
    "adaptsplit/codecs/prior.py:register_priors": THIN,
    "adaptsplit/codecs/prior.py:PriorCodec.encode": WRITES,
    **{
        f"adaptsplit/codecs/{codec}.decode": THIN
        for codec in (
            *("features.py:UniformCodec", "grid_codec.py:GridCodec", "images.py:PillowCodec"),
            *("prior.py:PriorCodec", "slicer.py:SlicerCodec"),
        )
    },
    "adaptsplit/config.py:read_yaml": THIN,
    "adaptsplit/signing_keys.py:load_private": "the operator's own key; tests/test_signing.py",
    "agents/policy.py:load_policy": THIN,
    "agents/policy_file.py:write_policy": WRITES,
    "device_bridge/certificates.py:Authority.load": "the operator's own key; tests/test_live_security.py",
    "device_bridge/device.py:_barrier_by_pipe": OURS,
    "device_bridge/edge_tail.py:Tail._decoded": "needs networks; tests/test_live_edge.py",
    "device_bridge/edge_tail.py:Tail.warm_up": WRITES,
    "device_bridge/fast_lane.py:Waker.clear": "a byte that wakes, of this process",
    "device_bridge/host.py:wifi_dbm": "the kernel's file; tests/test_telemetry.py",
    "device_bridge/learner_state.py:save_learned": WRITES,
    "device_bridge/mavlink_links.py:TcpSource.read": THIN,
    "device_bridge/mavlink_links.py:UdpSource.read": THIN,
    "device_bridge/policy_sender.py:Parcel.of": "the operator's own update, loaded and verified before",
    "device_bridge/policy_update.py:Update.of_bundle": "the operator's own bundle, loaded and verified before",
    "device_bridge/secure_broker.py:_fill": "a template that is shipped",
    "device_bridge/shaper.py:_run.<locals>.read_commands": OURS,
    "device_bridge/telemetry.py:open_telemetry": THIN,
    "device_bridge/tls.py:TlsSocket.recv": "OpenSSL's",
    "device_bridge/tls.py:_load": "OpenSSL's; tests/test_live_security.py",
}
"""Functions that no target reaches, and why."""


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield (qualified name, node) of every function, without those inside of it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node
            yield from _functions(node, f"{prefix}{node.name}.<locals>.")
        else:
            yield from _functions(node, prefix)


def _calls(node: ast.AST) -> set[str]:
    """Return the last names of what a function calls itself."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(child, ast.Call):
            found.add(getattr(child.func, "attr", getattr(child.func, "id", "")))
        found |= _calls(child)
    return found


def sites() -> set[str]:
    """Return ``file:function`` of every place that takes bytes apart."""
    found = set()
    for file in sorted({file for place in PLACES for file in ROOT.glob(place)}):
        name = str(file.relative_to(ROOT))
        if name not in ELSEWHERE:
            functions = _functions(ast.parse(file.read_text(encoding="utf-8")))
            found |= {f"{name}:{function}" for function, node in functions if _calls(node) & PRIMITIVES}
    return found


def reached(target: Target, inputs: int = 60) -> set[str]:
    """Return ``file:function`` of all of ours that a target runs through."""
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            codes.add(frame.f_code)

    rng = random.Random("reach")
    mutated = [mutate(rng) for mutate in itertools.islice(itertools.cycle(target.mutators), inputs)]
    sys.setprofile(note)
    try:
        for data in [*target.whole, *mutated]:
            outcome(target, data)
    finally:
        sys.setprofile(None)
    return {f"{_shown(code.co_filename)}:{code.co_qualname}" for code in codes}


def _shown(file: str) -> str:
    path = Path(file).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else file


@pytest.fixture(scope="module")
def covered() -> set[str]:
    with silent():
        return set().union(*(reached(make()) for make in TARGETS.values()))


def test_every_decoder_is_a_target(covered: set[str]) -> None:
    found = sites()
    assert len(found) > 60
    missing = sorted(found - covered - set(NOT_REACHED))
    assert not missing, f"no target of tests/fuzz_targets.py reaches {missing}"


def test_exceptions_are_needed(covered: set[str]) -> None:
    assert not set(NOT_REACHED) & covered
    assert set(NOT_REACHED) <= sites()
    assert all((ROOT / name).is_file() for name in ELSEWHERE)


def test_a_new_decoder_would_be_seen() -> None:
    source = "class A:\n    def f(self, data):\n        def g():\n            pass\n        return json.loads(data)\n"
    assert [name for name, node in _functions(ast.parse(source)) if _calls(node) & PRIMITIVES] == ["A.f"]
