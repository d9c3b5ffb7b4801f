"""A grid of loss, delay and rate: a learned policy answers at least as many frames in time as the rule does.

Both decide in turn, in blocks, on the same flight. The grid runs through an unprivileged proxy everywhere, and through
the kernel (network namespace, token bucket, dropped packets) where root and tools are. A few cells run always; all 64
with ADAPTSPLIT_SOAK=1. There is no netem in the kernel of many containers, so delay is the proxy's in both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from faults import FaultProxy
from killing import clock, flying, host_was_slow
from namespace import Namespace, Unavailable
from numpy.typing import NDArray

from adaptsplit.agents.training import train
from adaptsplit.bundle import Bundle, export_bundle
from adaptsplit.device_bridge.live import LiveOptions, LiveSetup
from adaptsplit.device_bridge.process import _read_line
from adaptsplit.outcome import Path as Route
from adaptsplit.recorded_run import RecordedRun, read_run
from adaptsplit.scenario import load_scenario

LONG = os.environ.get("ADAPTSPLIT_SOAK") == "1"
RULE = "deadline"
BLOCK = 5
LOSS, DELAY_MS, RATE_MBPS = (0.0, 0.01, 0.05, 0.10), (5, 20, 50, 150), (0.2, 1.0, 5.0, 20.0)
RETRANSMISSION_S = 0.2  # Linux's least retransmission time-out; what a lost packet costs at the proxy


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid: share of packets lost, one-way delay (s), rate (bit/s)."""

    loss: float
    delay_s: float
    rate_bps: float


GRID = [Cell(loss, delay / 1e3, rate * 1e6) for loss, delay, rate in product(LOSS, DELAY_MS, RATE_MBPS)]
FEW = [Cell(0.0, 0.005, 5e6), Cell(0.05, 0.05, 1e6), Cell(0.10, 0.15, 0.2e6)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A policy that was trained for a few seconds: enough to be no rule, not enough to be good."""
    folder, scenario = tmp_path_factory.mktemp("grid"), load_scenario("flight-lte")
    train(scenario, "dqn", folder / "run", 20_000, seed=0, progress=False)
    return export_bundle(str(folder / "run"), scenario, folder / "bundle")


def table(run: RecordedRun, bundle: Bundle, bounds: list[tuple[Cell, float, float]]) -> list[dict[str, float]]:
    """Misses (those that the host's own slowness explains apart), remote answers and quality of both in each cell."""
    own, rows, excused = np.array(run.controllers), [], host_was_slow(run, bundle)
    for cell, begin, end in bounds:
        inside = (run.records["arrived_s"] >= begin + 0.3) & (run.records["arrived_s"] < end)
        row: dict[str, float] = {"loss": cell.loss, "delay_ms": 1e3 * cell.delay_s, "mbps": cell.rate_bps / 1e6}
        for label, chosen in (("rule", own == RULE), ("learned", own != RULE)):
            records, slow = run.records[inside & chosen], excused[inside & chosen]
            row |= {
                f"{label}_frames": len(records),
                f"{label}_miss": int((records["path"][~slow] == Route.MISS).sum()),
                f"{label}_host": int((records["path"][slow] == Route.MISS).sum()),
                f"{label}_remote": int((records["path"] == Route.REMOTE).sum()),
                f"{label}_quality": float(records["quality"].mean()) if len(records) else float("nan"),
            }
        rows.append(row)
    return rows


def check(run: RecordedRun, rows: list[dict[str, float]]) -> None:
    """Every frame has its record; the learned policy's misses are not above the rule's (one in 200 frames apart)."""
    assert run.records["frame"].tolist() == list(range(len(run.records)))
    assert min(min(row["rule_frames"], row["learned_frames"]) for row in rows) >= BLOCK
    learned, rule = (sum(row[f"{label}_miss"] for row in rows) for label in ("learned", "rule"))
    frames = sum(row["learned_frames"] for row in rows)
    assert learned <= rule + max(1, frames // 200), rows
    easiest = min(rows, key=lambda row: (row["loss"], row["delay_ms"], -row["mbps"]))
    assert easiest["rule_remote"] + easiest["learned_remote"] > 0, "nothing was answered remotely: no grid, a dead link"


def show(rows: list[dict[str, float]]) -> None:
    for row in rows:
        print(json.dumps(row))
    total = {
        key: sum(row[key] for row in rows) for key in rows[0] if key.endswith(("frames", "miss", "host", "remote"))
    }
    quality = {k: np.average([r[f"{k}_quality"] for r in rows]) for k in ("rule", "learned")}
    print(f"{len(rows)} cells: {total}, quality {quality}")


# ---- the proxy, everywhere ----------------------------------------------------------------------------------------


def through_proxy(bundle: Bundle, folder: Path, cells: list[Cell], seconds: float) -> list[dict[str, float]]:
    rng, bounds = np.random.default_rng(5), []
    loss = [0.0]

    def stall() -> float:
        return RETRANSMISSION_S if rng.random() < loss[0] else 0.0

    with (
        LiveSetup(bundle, None, folder, LiveOptions()) as setup,
        FaultProxy(("127.0.0.1", setup.broker.port), stall=stall) as proxy,
        flying(bundle, proxy.url, setup.log, [], ["bundle", RULE], BLOCK) as agent,
    ):
        for cell in cells:
            loss[0], proxy.delay_s, proxy.rate_bps = cell.loss, cell.delay_s, cell.rate_bps
            begin = clock(agent)
            time.sleep(seconds)
            bounds.append((cell, begin, clock(agent)))
        proxy.delay_s, proxy.rate_bps, loss[0] = 0.0, None, 0.0
        time.sleep(0.3)
    run = read_run(setup.log)
    rows = table(run, bundle, bounds)
    show(rows)
    check(run, rows)
    return rows


@pytest.mark.slow
def test_a_few_cells_through_the_proxy(bundle: Bundle, tmp_path: Path) -> None:
    through_proxy(bundle, tmp_path, FEW, 2.5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not LONG, reason="takes five minutes; set ADAPTSPLIT_SOAK=1")
def test_the_whole_grid_through_the_proxy(bundle: Bundle, tmp_path: Path) -> None:
    through_proxy(bundle, tmp_path, GRID, 2.5)


# ---- the kernel, where it can -------------------------------------------------------------------------------------


@pytest.fixture
def path() -> Iterator[Namespace]:
    try:
        namespace = Namespace()
        namespace.__enter__()
    except Unavailable as reason:
        pytest.skip(f"no network namespace here: {reason}")
    yield namespace
    namespace.__exit__(None, None, None)


def through_kernel(
    bundle: Bundle, folder: Path, path: Namespace, cells: list[Cell], seconds: float, after: Callable[[], float]
) -> list[dict[str, float]]:
    """As ``through_proxy``, the device in a namespace; ``after`` comes last, and says how long the path was away."""
    bounds: list[tuple[Cell, float, float]] = []
    with (
        LiveSetup(bundle, None, folder, LiveOptions()) as setup,
        FaultProxy(("127.0.0.1", setup.broker.port), host=path.host) as relay,
        _device(bundle, path, relay.url, folder) as device,
    ):
        try:
            t0 = _start(device)
            for cell in cells:
                path.rate(cell.rate_bps)
                path.loss(cell.loss)
                relay.delay_s = cell.delay_s
                begin = time.monotonic() - t0
                time.sleep(seconds)
                bounds.append((cell, begin, time.monotonic() - t0))
            path.rate(20e6)
            path.loss(0.0)
            relay.delay_s = 0.0
            black_at = time.monotonic() - t0
            black_s = after()
            time.sleep(5.5)
            device.terminate()  # runs to its end: every frame gets its record
            assert device.stdout is not None
            line = _read_line(device.stdout.fileno(), time.monotonic() + 40.0)
            assert line is not None, (folder / "device.err").read_text()[-500:]
        finally:
            device.kill()
    run = read_run(folder / "live.jsonl")
    rows = table(run, bundle, bounds)
    show(rows)
    check(run, rows)
    _check_black(run, host_was_slow(run, bundle), folder / "live.jsonl", black_at, black_s)
    return rows


def _device(bundle: Bundle, path: Namespace, url: str, folder: Path) -> subprocess.Popen[bytes]:
    arguments = ["--bundle", str(bundle.path), "--broker", url, "--controller", f"bundle,{RULE}", "--block", str(BLOCK)]
    arguments += ["--count", "0", "--log", str(folder / "live.jsonl"), "--barrier"]
    command = path.command(sys.executable, "-m", "adaptsplit.device_bridge.device", *arguments)
    with (folder / "device.err").open("wb") as errors:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)


def _start(device: subprocess.Popen[bytes]) -> float:
    """Start the frames; the monotonic clock is the same in every namespace."""
    assert device.stdin is not None
    assert device.stdout is not None
    assert _read_line(device.stdout.fileno(), time.monotonic() + 60.0) is not None, "the device does not get ready"
    at = time.monotonic() + 0.3
    device.stdin.write(json.dumps({"start": at}).encode() + b"\n")
    device.stdin.flush()
    return at


def _check_black(run: RecordedRun, slow: NDArray[np.bool_], log: Path, at: float, black_s: float) -> None:
    """While the path was away nothing came back, and every frame was answered by the device; then it is heard again."""
    arrived, route = run.records["arrived_s"], run.records["path"]
    inside = (arrived >= at + 0.3) & (arrived < at + black_s - 0.3)
    assert not (route[inside] == Route.REMOTE).any()
    assert (route[inside & ~slow] == Route.MISS).sum() <= 1
    beats = [row["heard_s"] for row in map(json.loads, log.read_text().splitlines()) if row.get("event") == "beat"]
    assert not any(at + 0.5 < heard < at + black_s for heard in beats)
    heard_again = min((heard - at - black_s for heard in beats if heard >= at + black_s), default=float("inf"))
    print(f"path away for {black_s} s; heard again after {heard_again:.2f} s")
    assert heard_again <= 5.0


@pytest.mark.slow
def test_a_few_cells_and_a_blackout_through_the_kernel(bundle: Bundle, tmp_path: Path, path: Namespace) -> None:
    def black() -> float:
        path.down(True)
        time.sleep(2.0)
        path.down(False)
        return 2.0

    through_kernel(bundle, tmp_path, path, FEW, 2.5, black)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not LONG, reason="takes five minutes; set ADAPTSPLIT_SOAK=1")
def test_the_whole_grid_through_the_kernel(bundle: Bundle, tmp_path: Path, path: Namespace) -> None:
    through_kernel(bundle, tmp_path, path, GRID, 2.5, lambda: 0.0)
