"""What a device adds to its head's own time, and what its process takes to start and weighs.

    python benchmarks/device.py                             # half a minute, with the deadline rule's bundle
    python benchmarks/device.py --bundle runs/flight/bundle

Broker and edge server are processes of their own on the loopback interface; the device runs in this one, without
pacing (``--pace native``), at the scenario's frame rate. "Added" is the time from the moment that a frame is taken up
until its message is handed to the link (content signals, observation, decision, codec, hand-overs between threads),
less what the head's and the exit's network took for that very frame. Starting is measured in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.bundle import Bundle, export_bundle, load_bundle
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.device import run_device
from adaptsplit.device_bridge.device_options import DeviceOptions
from adaptsplit.device_bridge.process import Child
from adaptsplit.recorded_run import read_run
from adaptsplit.runtime import DeviceRuntime, HeadResult
from adaptsplit.scenario import load_scenario

FIRST = 10  # frames left out: the run's first ones
START = """
import os, resource, sys, time
begun = time.perf_counter()
{body}
took = time.perf_counter() - begun
usage = resource.getrusage(resource.RUSAGE_SELF)
pages = int(open("/proc/self/statm").read().split()[1])
print(took, usage.ru_utime + usage.ru_stime, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
"""
STARTS = {
    "python alone": "",
    "numpy, onnxruntime, paho": "import numpy, onnxruntime, paho.mqtt.client",
    "the device's modules": "import adaptsplit.device_bridge.device",
    "policy loaded and called": (
        "import numpy as np, adaptsplit.device_bridge.device\n"
        "from adaptsplit.bundle import load_bundle\n"
        "bundle = load_bundle(sys.argv[1]); policy = bundle.build(['bundle'], 1)\n"
        "from adaptsplit import observation\n"
        "policy.act(np.zeros((1, observation.SIZE), np.float32), policy.init(1, np.random.default_rng(0)))"
    ),
}


# ---- added to the head -----------------------------------------------------------------------------------------------


@contextmanager
def timed_heads() -> Iterator[list[float]]:
    """Note how long each call of a head (and its exit) takes, s."""
    times: list[float] = []
    plain = DeviceRuntime.head

    def timed(runtime: DeviceRuntime, name: str, image: NDArray[np.uint8]) -> HeadResult:
        begun = time.perf_counter()
        result = plain(runtime, name, image)
        times.append(time.perf_counter() - begun)
        return result

    DeviceRuntime.head = timed  # type: ignore[method-assign]
    try:
        yield times
    finally:
        DeviceRuntime.head = plain  # type: ignore[method-assign]


def added(bundle: Bundle, controller: str, guard: bool, count: int, folder: Path) -> dict[str, float]:
    """Return quantiles of what is added to a frame that is sent, ms, and the median of its head's own time, ms."""
    log = folder / f"{controller.partition(':')[0]}-{guard}.jsonl"
    with (
        EmbeddedBroker() as broker,
        Child("edge", ["--bundle", str(bundle.path), "--broker", broker.url], folder / "edge.log") as edge,
        timed_heads() as heads,
    ):
        edge.read(30.0)
        options = DeviceOptions(broker.url, pace="native", state_s=0.0, log=log, guard=guard)
        run_device(bundle, "flight", [controller], options, count=count)
    run = read_run(log)
    ran = [k for k, times in enumerate(run.times) if "exit_s" in times]
    own = dict(zip(ran, heads[-len(ran) :], strict=True))  # the calls before these warmed up
    sent = [k for k in ran[FIRST:] if "sent_s" in run.times[k]]
    whole = {k: run.times[k]["sent_s"] - float(run.records["decided_s"][k]) for k in sent}
    p10, p50, p99 = np.quantile([whole[k] - own[k] for k in sent], (0.1, 0.5, 0.99)) * 1e3
    head = statistics.median(own[k] for k in sent) * 1e3
    return {"sent": float(len(sent)), "head_ms": head, "p10_ms": float(p10), "p50_ms": float(p50), "p99_ms": float(p99)}


# ---- starting --------------------------------------------------------------------------------------------------------


def starts(bundle: Path, turns: int) -> dict[str, dict[str, float]]:
    """Return wall and CPU time (s) and resident memory (MiB) of each way to start, medians over interleaved turns."""
    rows: dict[str, list[list[float]]] = {name: [] for name in STARTS}
    for _ in range(turns):
        for name, body in STARTS.items():
            code = START.format(body=body)
            done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
            rows[name].append([float(number) for number in done.stdout.split()])
    medians = {name: np.median(np.array(found), axis=0).tolist() for name, found in rows.items()}
    return {name: dict(zip(("wall_s", "cpu_s", "rss_mib"), row, strict=True)) for name, row in medians.items()}


# ---- the report ------------------------------------------------------------------------------------------------------


def measure(path: Path | None, count: int, turns: int) -> dict[str, Any]:
    """Return everything, as a JSON-able document."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if path is None:
            path = export_bundle("deadline", load_scenario("flight-lte"), folder / "bundle").path
        bundle = load_bundle(path)
        first = next(branch for branch in bundle.space.branches if branch.kind == "split")
        static = f"static:{first.name}/1/1.01"
        found = {
            f"{first.name}, always sent": added(bundle, static, False, count, folder),
            f"{bundle.controller.name}": added(bundle, "bundle", False, count, folder),
            f"{bundle.controller.name}, in the guard": added(bundle, "bundle", True, count, folder),
        }
        return {"added": found, "starts": starts(path, turns)}


def show(found: dict[str, Any]) -> None:
    """Print the document as tables."""
    print("| added to the head, until the message is handed over | frames sent | head ms | p10 ms | p50 ms | p99 ms |")
    print("| :-- | --: | --: | --: | --: | --: |")
    for name, row in found["added"].items():
        times = " | ".join(f"{row[key]:.2f}" for key in ("head_ms", "p10_ms", "p50_ms", "p99_ms"))
        print(f"| {name} | {row['sent']:.0f} | {times} |")
    print("\n| started in a process of its own | wall s | CPU s | resident MiB |\n| :-- | --: | --: | --: |")
    for name, row in found["starts"].items():
        print(f"| {name} | {row['wall_s']:.2f} | {row['cpu_s']:.2f} | {row['rss_mib']:.0f} |")


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="whose policy and networks (default: the deadline rule's)")
    parser.add_argument("--frames", type=int, default=150, help="per controller")
    parser.add_argument("--turns", type=int, default=5, help="processes started of each kind")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    found = measure(o.bundle, o.frames, o.turns)
    print(json.dumps(found, indent=2)) if o.json else show(found)


if __name__ == "__main__":
    main()
