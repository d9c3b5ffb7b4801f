"""A live run on one machine: broker, edge, shaper and device as processes of their own, on 127.0.0.1.

``run_live`` is what the demo and the fidelity report call; ``LiveSetup`` gives tests a handle on each process.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adaptsplit.bundle import Bundle
from adaptsplit.device_bridge.broker import EmbeddedBroker
from adaptsplit.device_bridge.process import Child
from adaptsplit.device_bridge.shaper import save_trace
from adaptsplit.device_bridge.telemetry import Telemetry
from adaptsplit.links import LinkTrace
from adaptsplit.outcome import Outcomes
from adaptsplit.recorded_run import read_live_log

START_MARGIN_S = 0.3


@dataclass(frozen=True, slots=True)
class LiveFrames:
    """Which frames the device sees: ``count`` of ``source`` from ``first`` on, looping within its flight."""

    source: str = "flight"
    split: str = "test"
    seed: int = 0
    data: Path | None = None
    first: int = 0
    count: int = 300

    def arguments(self) -> list[str]:
        """Return the device's command-line options."""
        chosen = {"--frames": self.source, "--split": self.split, "--frames-seed": self.seed}
        chosen |= {"--first": self.first, "--count": self.count}
        if self.data is not None:
            chosen["--data"] = str(self.data.resolve())
        return [str(part) for pair in chosen.items() for part in pair]


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How a live run is made. ``offset_s`` is where in the trace frame 0 lies; ``backend`` chooses the broker.

    secure: folder of certificates (``broker``, ``edge-1``, ``device-1``; the broker's for 127.0.0.1); None for no TLS.
    """

    offset_s: float = 0.0
    block: int = 50
    pace: str = "profile"
    seed: int = 0
    backend: str = "auto"
    state_s: float = 5.0
    observations: bool = False
    secure: Path | None = None

    def tls(self, name: str) -> list[str]:
        """Return the command-line options of TLS for the holder ``name``."""
        if self.secure is None:
            return []
        paths = {"--ca": "ca.crt", "--cert": f"{name}.crt", "--key": f"{name}.key"}
        return [part for option, file in paths.items() for part in (option, str(self.secure / file))]


@dataclass(frozen=True, slots=True)
class LiveRun:
    """What a live run gave: outcome records and summaries of the processes (those that lived to tell)."""

    outcomes: dict[str, Outcomes]
    log: Path
    device: dict[str, Any]
    edge: dict[str, Any] = field(default_factory=dict)
    shaper: dict[str, Any] = field(default_factory=dict)
    backend: str = ""


class LiveSetup:
    """Broker, edge and (with a trace) shaper, started; the device is started by ``device``. A context manager."""

    def __init__(self, bundle: Bundle, trace: LinkTrace | None, folder: Path, options: LiveOptions) -> None:
        self.bundle = bundle
        self.folder = folder
        self.options = options
        self.broker = EmbeddedBroker(backend=options.backend, secure=options.secure)
        self.edge: Child | None = None
        self.shaper: Child | None = None
        self._trace = trace
        self._stack = ExitStack()

    def __enter__(self) -> LiveSetup:
        with ExitStack() as stack:
            stack.callback(self._end)
            stack.enter_context(self.broker)
            self.start_edge()
            if self._trace is not None:
                self._start_shaper(self._trace)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        for child in (self.edge, self.shaper):
            if child is not None:
                child.stop()

    def start_edge(self, timeout_s: float = 60.0) -> None:
        """Start the edge server (again) and wait until it serves."""
        arguments = ["--bundle", str(self.bundle.path), "--broker", self.broker.url, "--attached"]
        arguments += self.options.tls("edge-1")
        self.edge = Child("edge", arguments, self.folder / "edge.log")
        if timeout_s > 0:
            self.edge.read(timeout_s)

    def kill_edge(self) -> None:
        """SIGKILL the edge server."""
        if self.edge is not None:
            self.edge.kill()
            self.edge = None

    def _start_shaper(self, trace: LinkTrace) -> None:
        path = self.folder / "trace.npz"
        save_trace(trace, path)
        arguments = ["--trace", str(path), "--offset", repr(self.options.offset_s)]
        self.shaper = Child("shaper", [*arguments, "--target-port", str(self.broker.port)], self.folder / "shaper.log")
        self._shaped_port = int(self.shaper.read(30.0)["port"])

    @property
    def device_url(self) -> str:
        """The broker as the device sees it: through the shaper, if there is one."""
        scheme = "mqtt" if self.options.secure is None else "mqtts"
        return self.broker.url if self.shaper is None else f"{scheme}://127.0.0.1:{self._shaped_port}"

    def device(self, frames: LiveFrames, controllers: Sequence[str], telemetry: Telemetry | None = None) -> Child:
        """Start a device, wait until it is ready, and start frames and trace at the same instant."""
        o = self.options
        arguments = ["--bundle", str(self.bundle.path), "--broker", self.device_url, *frames.arguments()]
        arguments += ["--controller", ",".join(controllers), "--block", str(o.block), "--pace", o.pace]
        arguments += ["--seed", str(o.seed), "--log", str(self.log), "--state-s", repr(o.state_s), "--barrier"]
        arguments += o.tls("device-1")
        arguments += ["--observations"] if o.observations else []
        if telemetry is not None:
            telemetry.save(self.folder / "telemetry.json")
            arguments += ["--telemetry", str(self.folder / "telemetry.json")]
        child = Child("device", arguments, self.folder / "device.log")
        try:
            child.read(120.0)
        except BaseException:
            child.stop()
            raise
        start = {"start": time.monotonic() + START_MARGIN_S}
        if self.shaper is not None:
            self.shaper.write(start)
        child.write(start)
        return child

    @property
    def log(self) -> Path:
        """The device's live log."""
        return self.folder / "live.jsonl"

    def summaries(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """End edge and shaper; return their last words ({} where one had been killed)."""
        edge: dict[str, Any] = {}
        shaper: dict[str, Any] = {}
        if self.edge is not None:
            self.edge.process.terminate()
            edge = self.edge.read(10.0)
        if self.shaper is not None and self.shaper.process.stdin is not None:
            self.shaper.process.stdin.close()
            shaper = self.shaper.read(10.0)
        return edge, shaper


def run_live(
    bundle: Bundle,
    frames: LiveFrames,
    trace: LinkTrace | None,
    controllers: Sequence[str] = ("bundle",),
    options: LiveOptions | None = None,
    *,
    telemetry: Telemetry | None = None,
    out: Path | None = None,
    during: Callable[[LiveSetup], None] | None = None,
) -> LiveRun:
    """Run a device over a shaped link and return what became of every frame.

    Args:
        bundle: the loaded bundle; its own controller is called ``bundle``.
        frames: the frames.
        trace: the link; None for the bare loopback interface.
        controllers: names; several run interleaved in blocks.
        telemetry: modelled battery; None leaves it unknown to the controller. The signal power is the trace's.
        out: folder for the live log, the summaries and the processes' logs; None for a temporary one.
        during: called once after the start, with the processes at hand (tests kill and restart them).
    """
    options = options or LiveOptions()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptsplit-live-")))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            folder = out
        telemetry = _with_signal(telemetry, trace, options.offset_s)
        setup = stack.enter_context(LiveSetup(bundle, trace, folder, options))
        device = stack.enter_context(setup.device(frames, controllers, telemetry))
        if during is not None:
            during(setup)
        summary = device.read(frames.count / bundle.context.fps + 60.0)
        edge, shaper = setup.summaries()
        run = LiveRun(read_live_log(setup.log), setup.log, summary, edge, shaper, setup.broker.backend)
        summaries = {"device": summary, "edge": edge, "shaper": shaper, "broker": run.backend}
        (folder / "summary.json").write_text(json.dumps(summaries, indent=1), encoding="utf-8")
        return run


def _with_signal(telemetry: Telemetry | None, trace: LinkTrace | None, offset_s: float) -> Telemetry | None:
    """Add the trace's signal power, as the simulator reports it, where ``telemetry`` has none."""
    if trace is None or trace.signal_dbm is None or (telemetry is not None and telemetry.signal_dbm):
        return telemetry
    return replace(telemetry or Telemetry(), signal_dbm=trace.signal_dbm.tolist(), dt_s=trace.dt_s, offset_s=offset_s)
