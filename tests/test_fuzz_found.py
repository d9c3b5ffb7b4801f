"""What fuzzing has found, each with its input: mended, and staying so."""

from __future__ import annotations

import io
import json
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fuzz_files import FILES, manifest_text, read_manifest, read_policy_file
from fuzz_frames import read_container
from fuzz_policies import SPACE, arrays_of, policies
from fuzz_yaml import read_scenario
from fuzzing import MESSAGE_S
from PIL import Image

from adaptsplit import fuzzing as fz
from adaptsplit.codecs import build_container
from adaptsplit.config import MAX_YAML_BYTES
from adaptsplit.device_bridge.control import MAX_CONTROL_BYTES, parse_control
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import AdaptsplitError

MOST_SECONDS = 2.0  # of processor time for one document; the slowest below take some milliseconds


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


def read_telemetry(data: bytes) -> None:
    FILES["telemetry"]().decode(data)


def trace_of_another_header() -> bytes:
    """A trace whose first member no longer begins as the zip's directory says."""
    data = FILES["trace"]().whole[0]
    return data[:1] + data[30:]


def live_log_of_a_large_number() -> bytes:
    return FILES["live-log"]().whole[0].replace(b'"branch": 0', b'"branch": ' + b"9" * 400, 1)


BIG_SPACE = {
    "branches": [{"name": f"b{i}", "kind": "split", "codecs": ["x"] * 90, "exit": None} for i in range(900)],
    "thresholds": [k / 100 for k in range(900)],
    "patience": [1.0] * 900,
}
FOUND: dict[str, tuple[Callable[[Any], object], Callable[[], Any], str]] = {
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
    "manifest-values": (
        read_manifest,
        lambda: manifest_saying(b'["a", "b"]', b"[" + b"1," * 400_000 + b"1]"),
        "more than 131072 values",
    ),  # two million took nine seconds and 1.2 GiB
    "yaml-twins": (read_scenario, lambda: b"a: {b: 1, c: 2, b: 3}", "the key 'b' stands twice"),  # the last one won
    "yaml-depth": (read_scenario, lambda: b"name: " + b"[" * 300, "more than 64 levels"),  # half a second
    "telemetry-period": (
        read_telemetry,
        lambda: b'{"signal_dbm":[-90],"dt_s":0}',
        "not a telemetry model",
    ),  # ZeroDivisionError at the first frame
    "telemetry-huge": (read_telemetry, lambda: b'{"signal_dbm":[%s]}' % (b"9" * 400), "too large"),  # OverflowError
    "trace-zip": (FILES["trace"]().decode, trace_of_another_header, "not a saved trace"),  # BadZipFile
    "live-log-integer": (FILES["live-log"]().decode, live_log_of_a_large_number, "line 2"),  # OverflowError
    "address-bracket": (BrokerAddress.parse, lambda: "mqtts://_::1]:8883", "expected mqtt://HOST:PORT"),  # ValueError
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


def control_of(kind: str, before: bytes, value: bytes, after: bytes) -> bytes:
    """A control message at the size cap, one mapping of which has a wrong value under each of thousands of keys."""
    head = b'{"schema":"adaptsplit.%s/1","seq":1,"session":"%s","ts":5,"mono":1.0,"data":' % (kind.encode(), b"0" * 32)
    room = (MAX_CONTROL_BYTES - len(head + before + after) - 2) // (len(value) + 8)
    return head + before + b",".join(b'"%4x":%s' % (k, value) for k in range(room)) + after + b"}"


@pytest.mark.parametrize(
    ("kind", "before", "value"),
    [("command", b'{"args":{', b"[]"), ("state", b'{"paths":{', b"[]"), ("edge", b'{"queues":{', b"{}")],
)
def test_a_control_message_of_many_faults_is_quick_work(kind: str, before: bytes, value: bytes) -> None:
    """75 ms and 19 MiB: pydantic made 28,000 faults, of which the first is told."""
    data = control_of(kind, before, value, b"}}")
    assert MAX_CONTROL_BYTES - 100 < len(data) <= MAX_CONTROL_BYTES
    took = []
    for _ in range(5):
        start = time.thread_time()
        with pytest.raises(AdaptsplitError, match="entries; at most 256"):
            parse_control(data)
        took.append(time.thread_time() - start)
    assert min(took) < MESSAGE_S
    tracemalloc.start()
    try:
        with pytest.raises(AdaptsplitError):
            parse_control(data)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


NASTY: dict[str, bytes] = {
    "lists": b"[" * MAX_CONTROL_BYTES,
    "objects": b'{"a":' * (MAX_CONTROL_BYTES // 5),
    "digits": b"1" * MAX_CONTROL_BYTES,
    "fraction": b'{"ts":0.' + b"1" * (MAX_CONTROL_BYTES - 9) + b"}",
    "exponent": b'{"ts":1e' + b"9" * (MAX_CONTROL_BYTES - 9) + b"}",
    "numbers": b"[" + b"1," * (MAX_CONTROL_BYTES // 2 - 2) + b"1]",
    "escapes": b'"' + b"\\u0041" * ((MAX_CONTROL_BYTES - 2) // 6) + b'"',
    "keys": b"{" + b",".join(b'"k%d":1' % k for k in range(6500)) + b"}",
}


@pytest.mark.parametrize("name", NASTY)
def test_the_largest_control_messages_are_quick_work(name: str) -> None:
    data = NASTY[name]
    assert 0.9 * MAX_CONTROL_BYTES < len(data) <= MAX_CONTROL_BYTES
    took = []
    for _ in range(5):
        start = time.thread_time()
        with pytest.raises(AdaptsplitError):
            parse_control(data)
        took.append(time.thread_time() - start)
    assert min(took) < MESSAGE_S


def test_yaml_of_any_size_is_bounded_work() -> None:
    flow = b"a: [" + b"x," * 500_000
    for data in (flow[:MAX_YAML_BYTES], b"[" * MAX_YAML_BYTES, b"a: " + b"1:" * 100_000):
        start = time.thread_time()
        with pytest.raises(AdaptsplitError):
            read_scenario(data)
        assert time.thread_time() - start < 5 * MOST_SECONDS
