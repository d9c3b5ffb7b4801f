"""The device process: ``python -m adaptsplit.device_bridge.device``; the work is done by ``agent.DeviceAgent``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptsplit.bundle import Bundle, load_bundle
from adaptsplit.bundle_sign import trust_of
from adaptsplit.device_bridge.agent import PACES, DeviceAgent, DeviceOptions
from adaptsplit.device_bridge.camera import Camera, flight_order
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.device_bridge.process import announce, run_main
from adaptsplit.device_bridge.telemetry import Telemetry
from adaptsplit.device_bridge.tls import add_tls_options
from adaptsplit.device_bridge.transport import secured
from adaptsplit.errors import RunError
from adaptsplit.frames import open_frames

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
    telemetry: Telemetry | None = None,
    barrier: Barrier = lambda: None,
) -> tuple[dict[str, Any], LiveLog]:
    """Run a device over ``count`` frames of a source; ``barrier`` is called when it is ready and may set the start."""
    source = open_frames(frames, split=split, seed=frames_seed, data=data)
    order = flight_order(source, first, count)
    with (
        Camera(source, order) as camera,
        DeviceAgent(bundle, camera, controllers, options, block=block, telemetry=telemetry) as agent,
    ):
        return agent.run(barrier()), agent.log


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
    parser.add_argument("--count", type=int, default=300)
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
    parser.add_argument("--telemetry", type=Path, help="JSON file of a modelled battery and signal")
    parser.add_argument("--no-guard", action="store_true", help="run learned policies without their guard")
    parser.add_argument("--trust", type=Path, action="append", help="public key; only bundles signed by it are taken")
    parser.add_argument("--trust-memory", type=Path, help="file of the highest version taken")
    parser.add_argument("--barrier", action="store_true", help="wait for the start time on standard input")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; prints the summary as one JSON line at its end."""
    o = _parser().parse_args(arguments)

    def body() -> None:
        options = DeviceOptions(
            secured(o.broker, o.ca, o.cert, o.key, o.insecure).url,
            o.fleet,
            o.id,
            o.pace,
            o.seed,
            o.state_s,
            log=o.log,
            observations=o.observations,
            guard=not o.no_guard,
            keep=o.state,
        )
        summary, _ = run_device(
            load_bundle(o.bundle, trust_of(o.trust, o.trust_memory)),
            o.frames,
            [name.strip() for name in o.controller.split(",")],
            options,
            split=o.split,
            data=o.data,
            frames_seed=o.frames_seed,
            first=o.first,
            count=o.count,
            block=o.block,
            telemetry=None if o.telemetry is None else Telemetry.load(o.telemetry),
            barrier=_barrier_by_pipe if o.barrier else lambda: None,
        )
        print(json.dumps(summary), flush=True)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
