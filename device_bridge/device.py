"""The device process: ``python -m adaptsplit.device_bridge.device``; the work is done by ``agent.DeviceAgent``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptsplit.bundle import Bundle
from adaptsplit.config import parse
from adaptsplit.device_bridge.advice import AdvicePart
from adaptsplit.device_bridge.agent import DeviceAgent
from adaptsplit.device_bridge.camera import AHEAD, AHEAD_ENDLESS, Camera, ShotSource, endless_order, flight_order
from adaptsplit.device_bridge.commands import Commands
from adaptsplit.device_bridge.decision_report import DecisionReport
from adaptsplit.device_bridge.device_options import PACES, DeviceOptions
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.device_bridge.parts import DevicePart
from adaptsplit.device_bridge.policy_canary import CanaryLimits
from adaptsplit.device_bridge.policy_device import PolicySource, start_policy
from adaptsplit.device_bridge.process import announce, run_main
from adaptsplit.device_bridge.service import Notifier, ServicePart, interruptible, stopping
from adaptsplit.device_bridge.telemetry import TelemetrySource, open_telemetry
from adaptsplit.device_bridge.tls import add_tls_options
from adaptsplit.device_bridge.transport import secured
from adaptsplit.errors import RunError
from adaptsplit.frames import open_frames
from adaptsplit.frames.capture import is_live

__all__ = ["DeviceAgent", "DeviceOptions", "main", "run_device"]

Barrier = Callable[[], float | None]


def run_device(
    bundle: Bundle,
    frames: str,
    controllers: Sequence[str],
    options: DeviceOptions,
    *,
    split: str = "test",
    data: Path | None = None,
    frames_seed: int = 0,
    first: int = 0,
    count: int = 300,
    block: int = 50,
    telemetry: TelemetrySource | None = None,
    barrier: Barrier = lambda: None,
    parts: Sequence[DevicePart] = (),
) -> tuple[dict[str, Any], LiveLog]:
    """Run a device over ``count`` frames of a source; ``barrier`` is called when it is ready and may set the start.

    ``frames`` is a frame source, or a camera (``adaptsplit.frames.capture``). A ``count`` of 0 runs as a service:
    without end, with a rotated log, and also when there is no broker yet. ``telemetry`` is closed. SIGTERM and SIGINT
    end any run in good order: no new frame, at most ``agent.END_S`` for those under way, OFFLINE, the summary.

    Every device takes commands, and reports its decisions as often as its state; ``parts`` come besides.
    """
    reports = (DecisionReport(max(options.state_s, 1.0)),) if options.state_s else ()
    parts = (Commands(), AdvicePart(), *reports, *parts)
    if Notifier().there:
        parts = (*parts, ServicePart())
    if count == 0:
        options = replace(options, service=True)
    period_s = 1.0 / bundle.context.fps
    with (
        interruptible(),
        contextlib.nullcontext() if telemetry is None else contextlib.closing(telemetry),
        _camera(frames, count, period_s, split=split, seed=frames_seed, data=data, first=first) as camera,
        DeviceAgent(bundle, camera, controllers, options, block=block, telemetry=telemetry, parts=parts) as agent,
    ):
        start = barrier()
        with stopping(agent.stop):
            return agent.run(start), agent.log


@contextlib.contextmanager
def _camera(
    frames: str, count: int, period_s: float, *, split: str, seed: int, data: Path | None, first: int
) -> Iterator[ShotSource]:
    """Open what the device sees: a camera, or a source rendered ahead; ``count`` 0 is without end."""
    if is_live(frames):
        from adaptsplit.device_bridge.live_camera import LiveCamera
        from adaptsplit.frames.capture import Capture

        with LiveCamera(Capture(frames.partition(":")[2], period_s), count or None, period_s) as live:
            yield live
        return
    source = open_frames(frames, split=split, seed=seed, data=data)
    order = flight_order(source, first, count) if count else endless_order(source, first)
    with Camera(source, order, AHEAD if count else AHEAD_ENDLESS) as camera:
        yield camera


def metrics_parts(where: str | None) -> tuple[DevicePart, ...]:
    """Return the part that serves metrics on ``PORT`` or ``HOST:PORT``, if one is wanted; it listens at once."""
    if where is None:
        return ()
    from adaptsplit.device_bridge.metrics import MetricsPart

    return (MetricsPart(where),)


def _barrier_by_pipe() -> float:
    """Tell the parent that we are ready, and read from it when to start."""
    announce({"ready": True, "role": "device"})
    line = sys.stdin.readline()
    if not line:
        raise RunError("the parent process ended before the start")
    return float(json.loads(line)["start"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adaptsplit device", description="run a device of a bundle")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--broker", default="mqtt://127.0.0.1:1883")
    add_tls_options(parser)
    parser.add_argument("--frames", default="flight")
    parser.add_argument("--split", default="test")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames-seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=300, help="frames; 0: as a service, until SIGTERM")
    parser.add_argument("--controller", default="bundle", help="one or more, with commas between: interleaved")
    parser.add_argument("--block", type=int, default=50)
    parser.add_argument("--pace", choices=PACES, default="profile")
    parser.add_argument("--id", default="device-1")
    parser.add_argument("--fleet", default="default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--observations", action="store_true")
    parser.add_argument("--state", type=Path, help="folder in which a learner keeps what it learned")
    parser.add_argument("--state-s", type=float, default=5.0)
    parser.add_argument("--telemetry", help="host, mavlink:URL, a model's FILE.json, or several joined by +")
    parser.add_argument("--connect-s", type=float, default=15.0, help="how long to wait for the broker, s")
    parser.add_argument("--edge-wait-s", type=float, default=10.0, help="how long to wait for an edge server, s")
    parser.add_argument("--metrics", metavar="PORT|HOST:PORT", help="serve Prometheus metrics (PORT: on 127.0.0.1)")
    parser.add_argument("--no-guard", action="store_true", help="run learned policies without their guard")
    parser.add_argument("--trust", type=Path, action="append", help="public key; only bundles signed by it are taken")
    parser.add_argument("--trust-memory", type=Path, help="file of the highest version taken")
    parser.add_argument("--policies", type=Path, help="folder of policies that came over the air; needs --trust")
    parser.add_argument("--canary-frames", type=int, default=200, help="decided frames that a new policy is on trial")
    parser.add_argument("--barrier", action="store_true", help="wait for the start time on standard input")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; prints the summary as one JSON line at its end."""
    o = _parser().parse_args(arguments)

    def body() -> None:
        broker = secured(o.broker, o.ca, o.cert, o.key, o.insecure).url  # before the bundle: unsafe is refused first
        controllers = [name.strip() for name in o.controller.split(",")]
        canary = parse(CanaryLimits, {"frames": o.canary_frames}, "--canary-frames")
        source = PolicySource(o.bundle, o.trust or (), o.trust_memory, o.policies, canary)
        policy = start_policy(source, controllers, o.state)
        options = DeviceOptions(
            broker,
            o.fleet,
            o.id,
            o.pace,
            o.seed,
            o.state_s,
            o.edge_wait_s,
            o.connect_s,
            log=o.log,
            observations=o.observations,
            guard=not o.no_guard,
            keep=policy.keep,
        )
        summary, _ = run_device(
            policy.bundle,
            o.frames,
            controllers,
            options,
            split=o.split,
            data=o.data,
            frames_seed=o.frames_seed,
            first=o.first,
            count=o.count,
            block=o.block,
            telemetry=None if o.telemetry is None else open_telemetry(o.telemetry),
            barrier=_barrier_by_pipe if o.barrier else lambda: None,
            parts=(policy.part, *metrics_parts(o.metrics)),
        )
        print(json.dumps(summary), flush=True)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
