"""Broker, edge, shaper and device as real processes: real sockets, real onnxruntime sessions, real frames."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from adaptsplit import estimators as est
from adaptsplit import observation
from adaptsplit.bundle import Bundle, export_bundle
from adaptsplit.decision import BranchSpec
from adaptsplit.device_bridge.broker import EmbeddedBroker, find_mosquitto, free_port
from adaptsplit.device_bridge.control import Connection, build_control
from adaptsplit.device_bridge.live import LiveFrames, LiveOptions, LiveSetup, run_live
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.device_bridge.messages import Ack, FrameMessage, Heartbeat, Result, Status
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.shaper import Shaper, load_trace, save_trace
from adaptsplit.device_bridge.telemetry import Telemetry
from adaptsplit.device_bridge.topics import DeviceTopics, edge_connection
from adaptsplit.device_bridge.transport import BrokerAddress, MemoryHub, Will
from adaptsplit.errors import ConfigError, DataError, LinkError, RunError
from adaptsplit.frames import open_frames
from adaptsplit.links import LinkClock, LinkTrace
from adaptsplit.outcome import Path as Route
from adaptsplit.outcome import empty
from adaptsplit.profiles import FrameSpec, measure
from adaptsplit.recorded_run import read_live_log
from adaptsplit.scenario import load_scenario

BRANCHES = (
    BranchSpec("stem", "split", ("q2c-zstd", "q8t-zstd")),
    BranchSpec("offload", "offload", ("webp-10", "jpeg-75"), exit="stem"),
    BranchSpec("local", "local"),
)
BACKENDS = [
    pytest.param("mosquitto", marks=pytest.mark.skipif(not find_mosquitto(), reason="Mosquitto is not installed")),
    "amqtt",
]
FPS = 20.0


def steady(bps: float, rtt_s: float) -> LinkTrace:
    return LinkTrace("steady", "demo", 0.1, np.full(10, bps), np.full(10, rtt_s), np.zeros(10))


# ---- a tiny real model and its bundle -----------------------------------------------------------------------------


def graph(path: Path, name: str, shape: tuple[int, ...], channels: int, outputs: dict[str, int], pool: int) -> None:
    """Pooling and a 1x1 convolution; an output with K > 0 is reduced to (1, 16, K) logits."""
    rng = np.random.default_rng(len(path.name))
    nodes, weights, results = [], [], []
    x = name
    if pool > 1:
        nodes.append(helper.make_node("AveragePool", [x], ["p"], kernel_shape=[pool, pool], strides=[pool, pool]))
        x = "p"

    def mixed(source: str, size: tuple[int, int], out: str) -> None:
        kernel = rng.normal(0, 4, (size[1], size[0], 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel - kernel.mean(axis=1, keepdims=True), f"{out}_w"))
        nodes.append(helper.make_node("Conv", [source, f"{out}_w"], [out], kernel_shape=[1, 1]))

    inner = next((out for out, classes in outputs.items() if not classes), "inner")
    mixed(x, (shape[0], channels), inner)
    for out, classes in outputs.items():
        result: list[int] = [1, channels, 16, 16]
        if classes:
            nodes.append(helper.make_node("AveragePool", [inner], ["c"], kernel_shape=[4, 4], strides=[4, 4]))
            mixed("c", (channels, classes), "s")
            weights.append(numpy_helper.from_array(np.array([1, classes, 16], np.int64), "shape"))
            nodes.append(helper.make_node("Reshape", ["s", "shape"], ["r"]))
            nodes.append(helper.make_node("Transpose", ["r"], [out], perm=[0, 2, 1]))
            result = [1, 16, classes]
        results.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, result))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape])]
    made = helper.make_graph(nodes, "g", inputs, results, weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def make_model(folder: Path, classes: list[str]) -> Path:
    folder.mkdir(parents=True)
    k = len(classes)
    graph(folder / "head-stem.onnx", "image", (3, 256, 256), 5, {"features": 0, "exit_logits": k}, 16)
    graph(folder / "decoder-stem.onnx", "features", (5, 16, 16), 6, {"hidden": 0}, 1)
    graph(folder / "trunk.onnx", "image", (3, 256, 256), 6, {"hidden": 0}, 16)
    graph(folder / "tail.onnx", "hidden", (6, 16, 16), 6, {"logits": k}, 1)
    macs = {"macs_head": 10**7, "macs_exit": 1, "macs_decoder": 2}
    branch = {"name": "stem", "depth": 0, "cut": "x", "bottleneck": [5, 16, 16], "temperature": 1.0, **macs}
    card = {"schema": "adaptsplit.model/1", "name": "tiny", "classes": classes, "cells": [4, 4], "params": 1}
    card |= {"input": {"height": 256, "width": 256}, "branches": [{**branch, "tail_temperature": 1.5}]}
    card |= {"full": {"macs_features": 4 * 10**6, "macs_tail": 960, "temperature": 1.2}}
    card |= {"training": {}, "calibration": {}}
    card |= {"files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.onnx"))}}
    (folder / "model.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("live")
    model = make_model(root / "profile" / "model", open_frames("flight", split="test").classes)
    for split in ("train", "validation", "test"):
        spec = FrameSpec("flight", split, seed=0)
        measure(model, spec, BRANCHES, frames=[0, 1, 2], workers=1, date="2026-01-02").save(root / "profile")
    link = {"kind": "generate", "generator": "constant", "duration_s": 10, "family": "demo"}
    links = {split: [{**link, "seeds": [seed]}] for seed, split in enumerate(("train", "validation", "test"))}
    value: dict[str, Any] = {"name": "tiny", "description": "tiny", "profile": str(root / "profile")}
    value |= {"frames": "flight", "fps": FPS, "deadline_s": 0.25, "episode_s": 10, "links": links}
    value |= {"skip": True, "patience": [0.15, 1.0]}
    value |= {"device": {"compute": "raspberry-pi-4b", "radio": "lte", "battery_wh": 60}}
    value |= {"priors": {"goodput_bps": 1e6, "rtt_s": 0.05, "server_s": 0.01}, "objective": {"quality": 1}}
    return export_bundle("static:stem/1/1.01", load_scenario(value), root / "bundle")


# ---- live runs ----------------------------------------------------------------------------------------------------


def test_a_shaped_link_delivers_what_and_when_the_trace_says(bundle: Bundle, tmp_path: Path) -> None:
    """2 Mbit/s, 40 ms: every byte arrives, every frame is answered, and the median latency is the computed one."""
    trace = steady(2e6, 0.04)
    frames = LiveFrames(count=60, first=100)
    run = run_live(bundle, frames, trace, ["bundle"], LiveOptions(observations=True), out=tmp_path / "out")
    (name, log), *others = run.outcomes.items()
    assert name == "static:stem/1/1.01"
    assert not others
    assert log["frame"].tolist() == list(range(60))
    remote = log[log["path"] == Route.REMOTE]
    assert len(remote) >= 55
    assert run.edge["counts"]["bytes"] == log["sent_bytes"].sum()
    assert run.edge["counts"]["frames"] == run.edge["counts"]["answered"] == (log["sent_bytes"] > 0).sum()
    overhead = run.shaper["bytes_up"] - log["sent_bytes"].sum()
    assert overhead < 60 * est.OVERHEAD_BYTES + 4000  # birth, states and heartbeats of both connections

    clock = LinkClock(trace)
    handed = log["decided_s"] + log["compute_j"] / bundle.context.compute_w
    arrived = [clock.finish(t, 8.0 * (b + est.OVERHEAD_BYTES)) for t, b in zip(handed, log["sent_bytes"], strict=True)]
    server = run.edge["counts"]["residence_us"] / run.edge["counts"]["answered"] / 1e6
    computed = np.median(np.array(arrived) + 0.04 + server - log["arrived_s"])
    assert np.median(remote["remote_latency_s"]) == pytest.approx(computed, rel=0.15)
    assert np.isfinite(log["quality"]).all()
    assert log["radio_j"].min() > 0

    lines = [json.loads(line) for line in (tmp_path / "out" / "live.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "event" not in line]
    assert all(len(line["observation"]) == observation.SIZE and line["controller"] == name for line in lines)


def test_skipped_frames_are_answered_with_what_is_held_and_short_patience_ends_early(
    bundle: Bundle, tmp_path: Path
) -> None:
    """In turn: skip, send with patience 0.15 (37.5 ms), skip, send with patience 1; a result takes about 80 ms.

    So the first skip finds the late result of the hasty frame three frames ago, the second one its exit's answer.
    """
    skip, hasty, patient = "static:skip/0/0", "static:stem/1/1.01@0.15", "static:stem/1/1.01"
    trace, options = steady(2e6, 0.07), LiveOptions(block=1)
    run = run_live(bundle, LiveFrames(count=80), trace, [skip, hasty, skip, patient], options, out=tmp_path / "out")
    skipped, short, long = (run.outcomes[name] for name in (skip, hasty, patient))
    assert sum(len(log) for log in run.outcomes.values()) == 80
    assert (long["path"] == Route.REMOTE).mean() > 0.8
    assert (short["path"] == Route.FALLBACK_LATE).mean() > 0.8
    assert np.median(short["answer_latency_s"]) == pytest.approx(0.0375, abs=1e-4)
    assert np.nanmedian(short["remote_latency_s"]) > 0.07
    assert skipped["path"][0] == Route.MISS
    assert (skipped["path"] == Route.STALE).mean() > 0.9
    stale = skipped[skipped["path"] == Route.STALE]
    assert not stale["sent_bytes"].any()
    assert np.isfinite(stale["quality"]).all()
    fallbacks = {row["frame"]: row["confidence"] for row in short[short["path"] == Route.FALLBACK_LATE]}
    kept = [row["confidence"] / fallbacks[row["frame"] - 1] for row in stale if row["frame"] - 1 in fallbacks]
    assert len(kept) > 10
    assert np.median(kept) == pytest.approx(bundle.summary.retention, rel=1e-5)
    took = stale["arrived_s"] + stale["answer_latency_s"] - stale["decided_s"]
    assert took == pytest.approx(stale["compute_j"] / bundle.context.compute_w, abs=1e-5)
    assert np.median(stale["compute_j"]) < 0.5 * np.median(short["compute_j"])


def test_broker_and_edge_die_at_random_instants_and_no_frame_is_lost(bundle: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng()
    waits = rng.uniform(0.3, 0.9, 4)

    def murder(setup: LiveSetup) -> None:
        time.sleep(waits[0])
        setup.kill_edge()
        time.sleep(waits[1])
        setup.start_edge(timeout_s=0)
        time.sleep(1.5 + waits[2])
        setup.broker.kill()
        time.sleep(waits[3])
        setup.broker.start()

    frames = LiveFrames(count=200)
    run = run_live(bundle, frames, steady(5e6, 0.02), options=LiveOptions(), out=tmp_path / "out", during=murder)
    (log,) = run.outcomes.values()
    assert log["frame"].tolist() == list(range(200)), waits
    remote = log["path"] == Route.REMOTE
    assert remote[:5].any(), waits
    assert remote[-30:].mean() > 0.5, (waits, run.device)
    assert (log["path"] == Route.FALLBACK_PASSED).any()
    assert (log["path"] == Route.MISS).sum() < 40, (waits, run.device)
    assert run.device["session"]["edge_offline"] >= 1
    assert run.device["device"]["data_down"] >= 1
    assert (log["answer_latency_s"][log["path"] != Route.MISS] <= 0.2501).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_garbage_on_every_topic_is_counted_and_dropped(bundle: Bundle, tmp_path: Path, backend: str) -> None:
    """Interleaved controllers on the bare loopback interface, while a stranger publishes to every topic."""
    topics = DeviceTopics("default", "device-1")
    other, session = DeviceTopics("default", "stranger"), bytes(16)
    will = build_control(Connection(state="CONNECTION_BROKEN"), seq=0, session=session, ts_ms=0, mono_ms=0.0)
    frame = FrameMessage(session, 0, 0, 0, 0, 0, 10**6, b"AS\x01garbage garbage").to_bytes()
    payloads = [b"", b"\x00" * 40, b"AB\x01\x01", b'{"schema": NaN}', b"[" * 2000, frame, will, bytes(300_000)]
    payloads += [Ack(session, 0, 0).to_bytes(), Heartbeat(session, 0, 0).to_bytes()]
    payloads += [Result(session, 0, 0, 1.0, 0.5, 0.5, Status.DONE, b"1" * 16).to_bytes()]
    leaves = ("up", "down", "heartbeat", "heartbeat/reply", "connection", "birth", "state", "event", "other")
    where = [t.leaf(leaf) for leaf in leaves for t in (topics, other)]
    where += [edge_connection("default", name) for name in ("edge-1", "edge-2")]

    def shout(setup: LiveSetup) -> None:
        stranger = MqttTransport(BrokerAddress.parse(setup.broker.url), "stranger", [], lambda topic, payload: None)
        stranger.wait_connected(5.0)
        for topic in where:
            for payload in payloads:
                stranger.publish(topic, payload)
                time.sleep(0.002)
        stranger.close()

    controllers = ["static:stem/0/1.01", "static:offload/1/1.01", "static:local/0/0"]
    options = LiveOptions(backend=backend, block=20, state_s=0.5)
    run = run_live(bundle, LiveFrames(count=80), None, controllers, options, out=tmp_path / "out", during=shout)
    assert run.backend == backend
    assert list(run.outcomes) == controllers
    rows = np.concatenate(list(run.outcomes.values()))
    assert sorted(rows["frame"].tolist()) == list(range(80))
    for log, route in zip(run.outcomes.values(), (Route.REMOTE, Route.REMOTE, Route.LOCAL), strict=True):
        assert (log["path"] == route).mean() > 0.8
    assert run.device["device"]["malformed"] >= 10
    assert run.device["session"]["foreign_session"] >= 3
    assert run.edge["counts"]["malformed"] >= 10
    assert run.edge["counts"]["refused"] >= 1
    assert run.device["transport"]["data"].get("callback_errors", 0) == 0


# ---- the brokers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_round_trip_takes_no_nagle_and_survives_a_restart(backend: str) -> None:
    """5 KB at QoS 0 and an application-level reply: far below the 40 ms that Nagle's algorithm costs."""
    with EmbeddedBroker(backend=backend) as broker:
        address, answered = BrokerAddress.parse(broker.url), threading.Event()
        edge = MqttTransport(
            address, "edge", ["up"], lambda topic, payload: edge.publish("down", payload[:32]) and None
        )
        device = MqttTransport(address, "device", ["down"], lambda topic, payload: answered.set())
        for client in (edge, device):
            client.wait_connected(10.0)
        time.sleep(0.3)
        times = [_round_trip(device, answered) for _ in range(60)]
        assert np.median(times) < 0.010
        broker.kill()
        time.sleep(0.2)
        assert not device.publish("up", b"x")
        broker.start()
        for client in (edge, device):
            client.wait_connected(8.0)
        time.sleep(0.3)
        assert _round_trip(device, answered) < 1.0
        for client in (edge, device):
            client.close()


def _round_trip(device: MqttTransport, answered: threading.Event) -> float:
    answered.clear()
    begun = time.perf_counter()
    device.publish("up", bytes(5000))
    assert answered.wait(2.0)
    return time.perf_counter() - begun


def test_the_embedded_broker_closes_silent_and_doubled_clients() -> None:
    """The two faults of amqtt that are mended: wills of silent clients, and takeover of a client id."""
    with EmbeddedBroker(backend="amqtt") as broker:
        heard: dict[str, float] = {}
        watch = MqttTransport(
            BrokerAddress.parse(broker.url), "w", ["t/#"], lambda t, p: heard.update({t: time.monotonic()})
        )
        watch.wait_connected(10.0)
        time.sleep(0.3)
        begun = time.monotonic()
        with (
            _raw_client(broker.port, b"silent", 1, b"t/silent"),
            _raw_client(broker.port, b"twin", 60, b"t/twin") as old,
            _raw_client(broker.port, b"twin", 60, b"t/later"),
        ):
            assert old.recv(1) == b""
            while "t/silent" not in heard and time.monotonic() < begun + 8.0:
                time.sleep(0.05)
        assert 1.0 < heard["t/silent"] - begun < 6.0
        assert "t/twin" in heard
        watch.close()


def _raw_client(port: int, client_id: bytes, keepalive: int, will: bytes) -> socket.socket:
    """Connect by hand, and then say nothing more."""

    def text(value: bytes) -> bytes:
        return struct.pack(">H", len(value)) + value

    client = socket.create_connection(("127.0.0.1", port), timeout=5.0)
    flags = 0b00101110  # clean session; a will at QoS 1, retained
    body = text(b"MQTT") + bytes([4, flags]) + struct.pack(">H", keepalive)
    body += text(client_id) + text(will) + text(b"gone")
    client.sendall(bytes([0x10, len(body)]) + body)
    assert client.recv(4) == b"\x20\x02\x00\x00"
    return client


def test_the_broker_stays_on_the_loopback_interface() -> None:
    for host in ("0.0.0.0", "192.168.1.1", "example.org"):
        with pytest.raises(ConfigError, match="asks for no password"):
            EmbeddedBroker(host=host)
    with pytest.raises(ConfigError, match="expected one of"):
        EmbeddedBroker(backend="other")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RunError, match="choose another with --port"):
            EmbeddedBroker(port=taken.getsockname()[1]).start()


@pytest.mark.parametrize("after_s", [0.6, 1.2, 5.0])
def test_the_broker_ends_with_its_child_when_it_is_told_to(after_s: float, tmp_path: Path) -> None:
    """SIGTERM while it starts, and later: nothing listens any more, and no folder is left."""
    port = free_port()
    command = [sys.executable, "-m", "adaptsplit.device_bridge.broker", "--backend", "amqtt", "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL)
    time.sleep(after_s)
    process.terminate()
    process.wait(15.0)
    assert not list(tmp_path.glob("adaptsplit-broker-*"))
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
        pass


def test_callbacks_that_raise_do_not_end_the_connection() -> None:
    with EmbeddedBroker() as broker:
        seen: list[bytes] = []

        def fragile(topic: str, payload: bytes) -> None:
            seen.append(payload)
            raise ValueError("boom")

        client = MqttTransport(BrokerAddress.parse(broker.url), "c", ["t"], fragile)
        client.wait_connected(10.0)
        time.sleep(0.2)
        for i in range(5):
            client.publish("t", bytes([i]))
        until = time.monotonic() + 3.0
        while len(seen) < 5 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(seen) == 5
        assert client.counts["callback_errors"] == 5
        client.close()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["edge", "--bundle", "/nowhere"], 2, "adaptsplit export"),
        (["device", "--bundle", "BUNDLE", "--controller", "static:stem/9/0.8"], 2, "has rates 0, 1"),
        (["device", "--bundle", "BUNDLE", "--first", "999999"], 2, "has frames 0 to"),
        (["broker", "--host", "0.0.0.0"], 2, "asks for no password"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(bundle: Bundle, arguments: list[str], code: int, says: str) -> None:
    module, *rest = [str(bundle.path) if part == "BUNDLE" else part for part in arguments]
    command = [sys.executable, "-m", f"adaptsplit.device_bridge.{module}", *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_broker_is_named() -> None:
    port = free_port()
    client = MqttTransport(BrokerAddress("127.0.0.1", port), "c", [], lambda topic, payload: None)
    with pytest.raises(RunError, match=f"adaptsplit broker --port {port}"):
        client.wait_connected(0.2)
    client.close()


# ---- the shaper ---------------------------------------------------------------------------------------------------


def shaped(trace: LinkTrace, offset_s: float, send: Callable[[Any, Any], Any]) -> list[tuple[int, float, int]]:
    """Run ``send(open, start)`` against a shaper; return (connection, arrival in trace time, bytes) at the far end."""

    async def body() -> list[tuple[int, float, int]]:
        arrivals: list[tuple[int, float, int]] = []
        numbers = iter(range(100))

        async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            number = next(numbers)
            while data := await reader.read(65536):
                arrivals.append((number, time.monotonic() - shaper.start_at, len(data)))
            writer.close()

        server = await asyncio.start_server(far, "127.0.0.1", 0)
        shaper = Shaper(trace, offset_s)
        front = await shaper.serve(server.sockets[0].getsockname()[:2])
        port = front.sockets[0].getsockname()[1]
        writers = []
        for _ in range(2):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            await asyncio.sleep(0.05)
        shaper.start_at = time.monotonic() + 0.05
        await asyncio.sleep(0.05)
        await send(writers, lambda: time.monotonic() - shaper.start_at)
        for writer in writers:
            writer.close()
        await shaper.close()
        front.close()
        server.close()
        return arrivals

    return asyncio.run(body())


def test_the_shaper_is_the_link_clock() -> None:
    """Messages of several sizes over a varying link with an outage: each ends at finish(t, 8 b) + rtt / 2."""
    rng = np.random.default_rng(3)
    capacity = rng.uniform(0.5e6, 4e6, 20)
    capacity[6:9] = 0.0
    trace = LinkTrace("t", "demo", 0.1, capacity, np.full(20, 0.03), np.zeros(20))
    clock, sent = LinkClock(trace, 1.25), []

    async def send(writers: list[asyncio.StreamWriter], now: Callable[[], float]) -> None:
        for size in (3000, 12_000, 700, 9000, 4000, 20_000):
            sent.append((now(), size))
            writers[0].write(bytes(size))
            await asyncio.sleep(0.15)
        await asyncio.sleep(0.6)

    arrivals = shaped(trace, 1.25, send)
    free, total, errors = 0.0, 0, []
    for t, size in sent:
        free = clock.finish(max(t, free), 8.0 * size)
        total += size
        got = np.cumsum([n for _, _, n in arrivals])
        arrived = arrivals[int(np.searchsorted(got, total))][1]
        errors.append(arrived - (free + 0.5 * clock.rtt(free)))
    assert sum(n for _, _, n in arrivals) == total
    assert np.median(np.abs(errors)) < 0.004, errors
    assert max(errors) < 0.03, errors


def test_a_heartbeat_does_not_wait_behind_a_frame() -> None:
    async def send(writers: list[asyncio.StreamWriter], now: Callable[[], float]) -> None:
        writers[0].write(bytes(25_000))
        await asyncio.sleep(0.05)
        writers[1].write(bytes(80))
        await asyncio.sleep(0.5)

    arrivals = shaped(steady(5e5, 0.02), 0.0, send)
    beat = next(t for number, t, _ in arrivals if number == 1)
    assert beat < 0.12
    assert max(t for number, t, _ in arrivals if number == 0) > 0.35


def test_a_trace_survives_the_file(tmp_path: Path) -> None:
    trace = replace(steady(1e6, 0.05), signal_dbm=np.linspace(-110, -80, 10))
    for one in (trace, steady(1e6, 0.05)):
        save_trace(one, tmp_path / "t.npz")
        assert load_trace(tmp_path / "t.npz").digest() == one.digest()
    (tmp_path / "bad.npz").write_bytes(b"PK not a zip")
    with pytest.raises(LinkError, match="not a saved trace"):
        load_trace(tmp_path / "bad.npz")


# ---- small parts --------------------------------------------------------------------------------------------------


def test_memory_transport_publishes_wills_and_retains() -> None:
    hub = MemoryHub(delay_s=0.1)
    seen: list[tuple[str, bytes]] = []
    mortal = hub.connect([], lambda topic, payload: None, Will("will", b"gone"))
    mortal.publish("a", b"1", retain=True)
    mortal.break_off()
    assert not mortal.publish("a", b"2")
    hub.connect(["#"], lambda topic, payload: seen.append((topic, payload)))
    assert hub.next_delivery() == pytest.approx(0.1)
    hub.run_until(1.0)
    assert seen == [("a", b"1"), ("will", b"gone")]


def test_telemetry_models_battery_and_signal(tmp_path: Path) -> None:
    model = Telemetry(1000.0, 0.5, 2.0, [-90.0, -80.0], dt_s=1.0, offset_s=0.5)
    model.spend(100.0)
    battery, load, temperature, signal = model.read(10.7)
    assert battery == pytest.approx(0.5 - (21.4 + 100) / 1000)
    assert (math.isnan(load), math.isnan(temperature), signal) == (True, True, -80.0)
    model.save(tmp_path / "t.json")
    assert Telemetry.load(tmp_path / "t.json").read(0.0)[0] == 0.5
    assert all(math.isnan(value) for value in Telemetry().read(1.0))
    (tmp_path / "t.json").write_text("[1]")
    with pytest.raises(ConfigError, match="not a telemetry model"):
        Telemetry.load(tmp_path / "t.json")


@pytest.fixture
def live_log(tmp_path: Path) -> Path:
    rows = empty(3)
    rows["frame"], rows["path"] = [0, 1, 2], Route.REMOTE
    with LiveLog(tmp_path / "log.jsonl") as log:
        for i in (1, 0, 2):
            log.add("b" if i else "a", rows[i : i + 1], None)
        with pytest.raises(ValueError, match="ended twice"):
            log.add("a", rows[:1], None)
    return tmp_path / "log.jsonl"


def test_the_live_log_is_read_back(live_log: Path) -> None:
    outcomes = read_live_log(live_log)
    assert {name: rows["frame"].tolist() for name, rows in outcomes.items()} == {"a": [0], "b": [1, 2]}
    live_log.write_text(live_log.read_text() + "{}\n")
    with pytest.raises(DataError, match="line 4"):
        read_live_log(live_log)
