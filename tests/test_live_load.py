"""Soak: a hundred light devices at 10 Hz on a real broker and a real edge process; nothing is lost, nothing grows.

Runs for 10 s. ADAPTSPLIT_SOAK_S=60 (or 3600) makes it longer; ADAPTSPLIT_SOAK_REPORT names a file for the figures::

    ADAPTSPLIT_SOAK_S=3600 python -m pytest -s -o timeout=4000 tests/test_live_load.py
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_live import bundle as tiny_bundle  # a fixture: the tiny model with its bundle

from adaptsplit.bundle import Bundle
from adaptsplit.codecs import get_codec
from adaptsplit.decision import Decision
from adaptsplit.device_bridge.actions import SessionConfig
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.edge_load import LightDevice, fly_all
from adaptsplit.device_bridge.messages import model_id
from adaptsplit.device_bridge.process import Child
from adaptsplit.outcome import Path as Route
from adaptsplit.runtime import ModelFolder

bundle = tiny_bundle
DEVICES, FPS, DEADLINE_S = 100, 10.0, 0.25
SOAK_S = float(os.environ.get("ADAPTSPLIT_SOAK_S", "10"))
SETTLE_S = 4.0  # connections, first messages, caches: growth is counted from here
needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")


@dataclass
class Watch:
    """Samples memory (MiB), file descriptors and threads of a process twice a second."""

    pid: int
    times: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def sample(self) -> None:
        folder = Path("/proc") / str(self.pid)
        self.times.append(time.monotonic())
        self.memory.append(int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.descriptors.append(len(list((folder / "fd").iterdir())))
        self.threads.append(len(list((folder / "task").iterdir())))

    def settled(self) -> np.ndarray:
        """Which samples count: from the end of the settling to a second before the devices leave."""
        t = np.array(self.times)
        return (t >= t[0] + SETTLE_S) & (t <= t[-1] - 1.5)

    def growth_mib_per_h(self) -> float:
        """Slope of the memory over the run."""
        chosen = self.settled()
        slope: float = np.polyfit(np.array(self.times)[chosen], np.array(self.memory)[chosen], 1)[0]
        return slope * 3600.0

    def grown_mib(self) -> float:
        """Median memory of the last quarter of the run less that of the first."""
        memory = np.array(self.memory)[self.settled()]
        quarter = max(len(memory) // 4, 1)
        return float(np.median(memory[-quarter:]) - np.median(memory[:quarter]))

    def quarters_mib(self) -> list[float]:
        """Median memory of each quarter of the run."""
        parts = np.array_split(np.array(self.memory)[self.settled()], 4)
        return [round(float(np.median(part)), 3) for part in parts]


def watched(watches: dict[str, Watch], body: Callable[[], None]) -> None:
    """Run ``body`` in this thread while another one samples the processes."""
    done = threading.Event()

    def sampling() -> None:
        while not done.wait(0.5):
            for watch in watches.values():
                watch.sample()

    thread = threading.Thread(target=sampling)
    thread.start()
    try:
        body()
    finally:
        done.set()
        thread.join()


def fleet_of(bundle: Bundle, frames: int) -> list[LightDevice]:
    """Devices that send every frame, evenly spread over the frame period."""
    shape = ModelFolder.open(bundle.model_path).card.branch("stem").bottleneck
    features = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    container = get_codec("q8t-zstd").encode(features)
    model = model_id(ModelFolder.open(bundle.model_path).digest, bundle.space)
    always = len(bundle.space.thresholds) - 1
    devices = []
    for i in range(DEVICES):
        config = SessionConfig(i.to_bytes(16, "big"), bundle.space, FPS, DEADLINE_S, frames=frames)
        decision = Decision(0, 1, always)
        shift = i / DEVICES / FPS
        devices.append(LightDevice(f"light-{i}", config, decision, container, model=model, offset_s=shift))
    return devices


@needs_proc
def test_a_hundred_devices_for_a_while(bundle: Bundle, tmp_path: Path) -> None:
    frames = round(SOAK_S * FPS)
    devices = fleet_of(bundle, frames)
    with EmbeddedBroker() as broker:
        arguments = ["--bundle", str(bundle.path), "--broker", broker.url, "--attached"]
        with Child("edge", arguments, tmp_path / "edge.log") as edge:
            edge.read(60.0)
            assert broker._process is not None
            watches = {"edge": Watch(edge.process.pid), "broker": Watch(broker._process.pid)}
            watched(watches, lambda: asyncio.run(fly_all(devices, "127.0.0.1", broker.port)))
            edge.process.terminate()
            counts = edge.read(10.0)["counts"]
            assert edge.process.wait(10.0) == 0
    report = told(devices, watches, counts)
    print(json.dumps(report, indent=1))
    if name := os.environ.get("ADAPTSPLIT_SOAK_REPORT"):
        Path(name).write_text(json.dumps(report, indent=1))

    for device in devices:
        assert sorted(int(record["frame"][0]) for record in device.records) == list(range(frames)), device.name
    assert report["sent"] == report["results"] == counts["frames"], "every frame that was sent got its result"
    assert sum(report["paths"].values()) == DEVICES * frames
    if report["load"] <= 0.5 * (os.cpu_count() or 1):  # else other programs had the machine, and deadlines are theirs
        assert report["paths"]["REMOTE"] >= 0.99 * DEVICES * frames, report
        assert report["p99_ms"] <= DEADLINE_S * 1e3
    assert counts.get("malformed", 0) == counts.get("repeated", 0) == counts.get("refused", 0) == 0
    for name, watch in watches.items():
        chosen = watch.settled()
        for what in (watch.descriptors, watch.threads):
            assert len(set(np.array(what)[chosen].tolist())) == 1, (name, "descriptors or threads come and go")
        assert watch.grown_mib() < 2.0, (name, report)
        if SOAK_S >= 600:
            assert watch.growth_mib_per_h() < 1.0, (name, report)


def told(devices: list[LightDevice], watches: dict[str, Watch], counts: dict[str, int]) -> dict[str, Any]:
    """Return the figures of a run."""
    latencies = np.concatenate([device.latencies for device in devices]) * 1e3
    seen: Counter[str] = sum((device.counts for device in devices), Counter())
    paths = Counter(Route(int(record["path"][0])).name for device in devices for record in device.records)
    p50, p99, p999 = np.quantile(latencies, (0.5, 0.99, 0.999))
    return {
        "seconds": SOAK_S,
        "devices": DEVICES,
        "sent": seen["sent"],
        "results": sum(count for key, count in seen.items() if key.startswith("result_")),
        "paths": dict(paths),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "p999_ms": round(float(p999), 2),
        "max_ms": round(float(latencies.max()), 2),
        "load": os.getloadavg()[0],
        "lag_p99_ms": round(float(np.quantile(np.concatenate([device.lags for device in devices]), 0.99)) * 1e3, 2),
        "edge": counts,
        "memory_mib": {
            name: [round(watch.memory[0], 1), round(watch.memory[-1], 1)] for name, watch in watches.items()
        },
        "grown_mib": {name: round(watch.grown_mib(), 3) for name, watch in watches.items()},
        "growth_mib_per_h": {name: round(watch.growth_mib_per_h(), 2) for name, watch in watches.items()},
        "descriptors": {name: [min(w.descriptors), max(w.descriptors)] for name, w in watches.items()},
    }
