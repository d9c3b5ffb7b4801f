"""The live path beside its floors: raw TCP, bare paho, our frame round trip; decisions; frames/s of one edge process.

    python benchmarks/live.py                          # about a minute and a half
    python benchmarks/live.py --quick --json           # some 20 seconds, noisier
    python benchmarks/live.py --bundle runs/flight/bundle

Everything in one run on one machine: device, edge (or echo) and broker are processes of their own on the loopback
interface. Round trips carry 5 KB up and 64 B (ours: acknowledgement and result) back; contestants take turns in blocks,
so that a busy moment hits all of them. Compare ratios, not absolute figures.

"frames/s" is a closed loop: each of the light devices sends its next frame when the last one is answered. "CPU us per
frame" is what the edge process itself spent (user and system), so 1e6 / that is what one core could do if generator and
broker had others; it depends far less on what else runs on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from numpy.typing import NDArray
from paho.mqtt.enums import CallbackAPIVersion

from adaptsplit import estimators as est
from adaptsplit import observation as obs
from adaptsplit.bundle import Bundle, export_bundle, load_bundle
from adaptsplit.codecs import get_codec
from adaptsplit.codecs.container import build_container
from adaptsplit.device_bridge.batching import BatchTimes, TailQueue
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.decider import Decider
from adaptsplit.device_bridge.edge import EdgeServer
from adaptsplit.device_bridge.edge_link import SharedTransport
from adaptsplit.device_bridge.edge_load import RawClient
from adaptsplit.device_bridge.edge_session import Lane, TailAnswer
from adaptsplit.device_bridge.edge_tail import open_tails
from adaptsplit.device_bridge.messages import FrameMessage, Result, Status, parse_message
from adaptsplit.device_bridge.mqtt import tune_socket
from adaptsplit.device_bridge.topics import DeviceTopics
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import AdaptsplitError
from adaptsplit.scenario import load_scenario

UP_BYTES, DOWN_BYTES = 5000, 64
EMPTY = b"emptytai"
RAW = build_container(1, 0, (1, 1, UP_BYTES - 70), bytes(UP_BYTES - 70))  # never decoded: the tail is empty
TOPICS = DeviceTopics("default", "d")


class EmptyTail:
    """Answers at once, without a look: what remains is the path."""

    model = EMPTY

    def answers(self, messages: Sequence[FrameMessage]) -> list[TailAnswer | AdaptsplitError]:
        """Return the same answer for each."""
        return [TailAnswer(bytes(16), 0.5) for _ in messages]

    def lane(self, max_batch: int | None = None) -> Lane:
        """Return a queue with a time that was measured, as a real tail's has."""
        times = BatchTimes()
        times.note(0, 1, 1e-6)
        return Lane(6, TailQueue(1024, 1 << 26, times=times))


# ---- the other side, in processes of its own -------------------------------------------------------------------------


def serve_tcp() -> None:
    """Answer every UP_BYTES with DOWN_BYTES."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        connection, _ = server.accept()
        tune_socket(connection)
        while read_exactly(connection, UP_BYTES):
            connection.sendall(bytes(DOWN_BYTES))


def read_exactly(connection: socket.socket, size: int) -> bool:
    """Read ``size`` bytes; False at the end."""
    while size:
        data = connection.recv(size)
        if not data:
            return False
        size -= len(data)
    return True


def bare_client(port: int, name: str, topic: str, qos: int, heard: Callable[[], object]) -> Any:
    """Return a connected paho client with TCP_NODELAY and nothing of ours; its loop runs."""
    client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv311)
    ready = threading.Event()
    client.on_socket_open = lambda c, u, sock: tune_socket(sock)
    client.on_connect = lambda c, u, f, r, p: c.subscribe(topic, qos)
    client.on_subscribe = lambda c, u, m, r, p: ready.set()
    client.on_message = lambda c, u, message: heard()
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert ready.wait(10.0)
    return client


def serve_echo(port: int) -> None:
    """Answer messages on ``echo/0`` and ``echo/1`` at that quality of service."""
    clients = [
        bare_client(port, f"echo{q}", f"echo/{q}", q, lambda q=q: clients[q].publish(f"back/{q}", bytes(DOWN_BYTES), q))
        for q in (0, 1)
    ]
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.read()


def serve_edge(port: int, bundle: Path | None) -> None:
    """Run an edge server, with an empty tail or a bundle's."""
    tails = [EmptyTail()] if bundle is None else open_tails([bundle])
    with EdgeServer(tails, BrokerAddress("127.0.0.1", port)) as server:
        server.wait_connected(20.0)
        print(json.dumps({"ready": True, "model": tails[0].model.hex()}), flush=True)
        sys.stdin.read()


@contextmanager
def other_side(*arguments: object) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run this file in another role; yield its process id and its first line."""
    command = [sys.executable, __file__, *(str(part) for part in arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        yield process.pid, json.loads(process.stdout.readline())
    finally:
        process.communicate(timeout=20.0)


# ---- round trips -----------------------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """Something that makes round trips; ``times`` in s."""

    name: str
    trip: Callable[[], None]
    close: Callable[[], object]
    times: list[float] = field(default_factory=list)

    def turn(self, count: int) -> None:
        """Make ``count`` round trips."""
        for _ in range(count):
            begun = time.perf_counter()
            self.trip()
            self.times.append(time.perf_counter() - begun)


def tcp(port: int) -> Contestant:
    """Raw TCP with TCP_NODELAY."""
    connection = socket.create_connection(("127.0.0.1", port))
    tune_socket(connection)

    def trip() -> None:
        connection.sendall(bytes(UP_BYTES))
        read_exactly(connection, DOWN_BYTES)

    return Contestant("raw TCP", trip, connection.close)


def bare(port: int, qos: int) -> Contestant:
    """Paho alone: publish, wait for the echo."""
    back = threading.Event()
    client = bare_client(port, f"device{qos}", f"back/{qos}", qos, back.set)

    def trip() -> None:
        back.clear()
        client.publish(f"echo/{qos}", bytes(UP_BYTES), qos)
        assert back.wait(5.0)

    def close() -> None:
        client.disconnect()
        client.loop_stop()

    return Contestant(f"paho, QoS {qos}", trip, close)


def ours(port: int) -> Contestant:
    """A frame to an edge server with an empty tail: acknowledged, queued, answered, parsed."""
    back, sequence, session = threading.Event(), iter(range(10**9)), os.urandom(16)

    def heard(topic: str, payload: bytes) -> None:
        if isinstance(parse_message(payload), Result):
            back.set()

    link = SharedTransport(BrokerAddress("127.0.0.1", port), "ours", [TOPICS.leaf("down")], heard, mqtt5=False)
    link.wait_connected(10.0)

    def trip() -> None:
        back.clear()
        k = next(sequence)
        link.publish(TOPICS.leaf("up"), FrameMessage(session, k, k, 0, 0, 0, 10**6, RAW, EMPTY).to_bytes())
        assert back.wait(5.0)

    return Contestant("our frame, empty tail", trip, link.close)


def round_trips(port: int, turns: int, count: int) -> dict[str, dict[str, float]]:
    """Return p50 and p99 (ms) of each contestant, and the ratio of its p50 to bare paho's at QoS 0."""
    with (
        other_side("--role", "tcp") as (_, at),
        other_side("--role", "echo", "--port", port),
        other_side("--role", "edge", "--port", port),
    ):
        all_of_them = [tcp(at["port"]), bare(port, 0), bare(port, 1), ours(port)]
        for contestant in all_of_them:
            contestant.turn(50)
            contestant.times.clear()
        for _ in range(turns):
            for contestant in all_of_them:
                contestant.turn(count)
        for contestant in all_of_them:
            contestant.close()
    rows = {contestant.name: quantiles(contestant.times, 1e3) for contestant in all_of_them}
    floor = rows["paho, QoS 0"]
    return {
        name: {**row, "ratio": row["p50"] / floor["p50"], "ratio_p10": row["p10"] / floor["p10"]}
        for name, row in rows.items()
    }


def quantiles(times: Sequence[float], scale: float) -> dict[str, float]:
    """Return p10 (least disturbed by whatever else runs), p50 and p99 in the unit of ``scale``."""
    p10, p50, p99 = np.quantile(times, (0.1, 0.5, 0.99)) * scale
    return {"p10": float(p10), "p50": float(p50), "p99": float(p99)}


# ---- decisions -------------------------------------------------------------------------------------------------------


def decisions(bundle: Bundle, count: int) -> dict[str, dict[str, float]]:
    """Return p50 and p99 (us) of building the observation, of the policy, of both, and of both inside the guard."""
    tracker = np.zeros(est.TRACKER_SIZE)
    est.start(tracker, 1e6, 0.05, 0.02)
    plain, guarded = bundle.build(["bundle"], 1), Decider(bundle.build(["bundle"], 1, guard=True), bundle.space, 0)
    state = plain.init(1, np.random.default_rng(0))

    def observe(k: int) -> NDArray[np.float32]:
        return obs.observation_row(tracker, 0.5 + 1e-6 * k, 0.001, 0.0, 0.3, 0.1 + 1e-6 * (k % 1000))

    def both(k: int) -> None:
        plain.act(observe(k)[None], state)

    def in_guard(k: int) -> None:
        guarded.decide(observe(k))

    out = observe(0)

    calls = {"observation": observe, "policy": lambda k: plain.act(out[None], state), "both": both}
    calls["both, in the guard"] = in_guard
    return {name: quantiles(timed(call, count), 1e6) for name, call in calls.items()}


def timed(call: Callable[[int], object], count: int) -> list[float]:
    """Return the times of ``count`` calls, after some to warm up."""
    times = []
    for k in range(count + 200):
        begun = time.perf_counter()
        call(k)
        times.append(time.perf_counter() - begun)
    return times[200:]


# ---- frames per second -----------------------------------------------------------------------------------------------


async def one_device(
    port: int, name: str, wire: tuple[bytes, bytes], until: float, seen: list[tuple[float, int]]
) -> None:
    """Send a frame, wait for its result, and so on; notes (latency, status)."""
    model, container = wire
    topics, session, sequence = DeviceTopics("default", name), os.urandom(16), 0
    client = await RawClient.connect("127.0.0.1", port, name, [topics.leaf("down")])
    while time.monotonic() < until:
        frame = FrameMessage(session, sequence, sequence, 0, 1, 0, 10**6, container, model)
        begun = time.monotonic()
        client.publish(topics.leaf("up"), frame.to_bytes())
        while not isinstance(found := parse_message((await client.message())[1]), Result):
            pass
        seen.append((time.monotonic() - begun, int(found.status)))
        sequence += 1
    await client.close()


def closed_loop(port: int, pid: int, wire: tuple[bytes, bytes], devices: int, seconds: float) -> dict[str, float]:
    """Return what one edge process sustains: frames/s answered, latency (ms), its CPU time per frame (us)."""
    seen: list[tuple[float, int]] = []

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(one_device(port, f"load-{i}", wire, until, seen) for i in range(devices)))

    own, cpu, begun = time.process_time(), cpu_s(pid), time.monotonic()
    asyncio.run(run())
    took = time.monotonic() - begun
    done = [latency for latency, status in seen if status == Status.DONE]
    spent = (cpu_s(pid) - cpu) / len(seen)
    found = {"devices": devices, "frames_per_s": len(done) / took, "answered": len(done) / len(seen)}
    found |= {f"{name}_ms": value for name, value in quantiles(done, 1e3).items()}
    found |= {"cpu_us_per_frame": spent * 1e6, "devices_at_30_hz_per_core": 1.0 / spent / 30.0}
    return found | {"edge_cpu": spent * len(seen) / took, "generator_cpu": (time.process_time() - own) / took}


def cpu_s(pid: int) -> float:
    """Return user and system time of a process, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tail_alone_s(bundle: Path, container: bytes) -> float:
    """Return the CPU time of decoding and answering one frame, with nothing around it, s."""
    (tail,) = open_tails([bundle])
    frames = [FrameMessage(bytes(16), 0, 0, 0, 1, 0, 10**6, container)]
    tail.answers(frames)
    times = []
    for _ in range(100):
        begun = time.process_time()
        tail.answers(frames)
        times.append(time.process_time() - begun)
    return statistics.median(times)


def throughput(port: int, bundle: Bundle, seconds: float) -> dict[str, dict[str, float]]:
    """Return ``closed_loop`` for an empty and for the bundle's real tail."""
    found = {}
    with other_side("--role", "edge", "--port", port) as (pid, _):
        found["empty tail"] = closed_loop(port, pid, (EMPTY, RAW), 64, seconds)
    branch = bundle.space.branches[0]
    shape = next(
        card for card in open_tails([bundle.path])[0]._runtime.folder.card.branches if card.name == branch.name
    )
    features = np.random.default_rng(0).normal(0, 1, shape.bottleneck).astype(np.float32)
    container = get_codec(branch.codecs[1]).encode(features)
    with other_side("--role", "edge", "--port", port, "--bundle", bundle.path) as (pid, said):
        row = closed_loop(port, pid, (bytes.fromhex(said["model"]), container), 16, seconds)
    alone = tail_alone_s(bundle.path, container)
    found["real tail"] = row | {"tail_alone_us": alone * 1e6, "share_of_tail": alone * 1e6 / row["cpu_us_per_frame"]}
    return found


# ---- the report ------------------------------------------------------------------------------------------------------


def measure(path: Path | None, quick: bool) -> dict[str, Any]:
    """Return everything, as a JSON-able document."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker() as broker:
        if path is None:
            bundle = export_bundle("deadline", load_scenario("flight-lte"), Path(folder) / "bundle")
        else:
            bundle = load_bundle(path)
        return {
            "broker": broker.backend,
            "controller": bundle.controller.name,
            "load_before": os.getloadavg()[0],
            "round_trips_ms": round_trips(broker.port, 3 if quick else 10, 100 if quick else 300),
            "decisions_us": decisions(bundle, 2000 if quick else 20_000),
            "throughput": throughput(broker.port, bundle, 4.0 if quick else 15.0),
        }


def show(found: dict[str, Any]) -> None:
    """Print the document as tables."""
    print(
        f"broker {found['broker']}, controller {found['controller']}, load before the run {found['load_before']:.1f}\n"
    )
    print("| round trip, 5 KB | p10 ms | p50 ms | p99 ms | against bare paho QoS 0, p10 | p50 |")
    print("| :-- | --: | --: | --: | --: | --: |")
    for name, row in found["round_trips_ms"].items():
        times = f"{row['p10']:.3f} | {row['p50']:.3f} | {row['p99']:.3f}"
        print(f"| {name} | {times} | {row['ratio_p10']:.2f} | {row['ratio']:.2f} |")
    print("\n| decision | p10 us | p50 us | p99 us |\n| :-- | --: | --: | --: |")
    for name, row in found["decisions_us"].items():
        print(f"| {name} | {row['p10']:.1f} | {row['p50']:.1f} | {row['p99']:.1f} |")
    keys = list(found["throughput"]["real tail"])
    print("\n| one edge process | empty tail | real tail |\n| :-- | --: | --: |")
    for key in keys:
        cells = [f"{row[key]:.4g}" if key in row else "" for row in found["throughput"].values()]
        print(f"| {key} | {' | '.join(cells)} |")


def main() -> None:
    """Run a role, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", type=Path, help="whose policy and networks (default: the deadline rule's, made anew)"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=("tcp", "echo", "edge"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.role == "tcp":
        serve_tcp()
    elif o.role == "echo":
        serve_echo(o.port)
    elif o.role == "edge":
        serve_edge(o.port, o.bundle)
    else:
        found = measure(o.bundle, o.quick)
        print(json.dumps(found, indent=2)) if o.json else show(found)


if __name__ == "__main__":
    main()
