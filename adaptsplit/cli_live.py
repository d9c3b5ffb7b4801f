"""Commands that leave the simulator: bundle, broker, edge, device, and a flight held against the simulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from adaptsplit.cli_base import (
    DEFAULT_BROKER,
    DEFAULT_FLEET,
    Broker,
    Ca,
    Cert,
    Data,
    Fleet,
    Insecure,
    Json,
    Key,
    Out,
    Pace,
    Seed,
    Split,
    emit,
)
from adaptsplit.cli_deploy import MemoryOption, TrustOption
from adaptsplit.errors import ConfigError
from adaptsplit.scenario import data_directory, load_scenario

if TYPE_CHECKING:
    from adaptsplit.device_bridge.transport import BrokerAddress

Metrics = Annotated[
    str | None,
    typer.Option("--metrics", metavar="PORT|HOST:PORT", help="Serve Prometheus metrics (PORT: on 127.0.0.1)."),
]


def export(
    controller: Annotated[str, typer.Argument(metavar="RUN|AGENT", help="Run folder, or an agent's name.")],
    scenario: Annotated[str, typer.Option("--scenario", help="The scenario that it is for.")],
    out: Out,
    trained_range: Annotated[
        bool, typer.Option("--range/--no-range", help="Measure what a learned policy was trained in, for its guard.")
    ] = True,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a bundle: policy or rule, profile summary, networks and manifest with hashes; what a device runs."""
    from adaptsplit.bundle import export_bundle
    from adaptsplit.guard_range import range_for_export

    loaded = load_scenario(scenario, data)
    trained = range_for_export(controller, loaded) if trained_range else None
    bundle = export_bundle(controller, loaded, out, trained=trained)
    if as_json:
        emit({"bundle": str(out), "controller": bundle.controller.name})
    else:
        typer.echo(f"bundle {out}: controller {bundle.controller.name}, {len(bundle.space.table)} decisions")


def fly(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, from `adaptsplit export`.")],
    scenario: Annotated[str, typer.Option("--scenario", help="The scenario that it was made for.")],
    out: Out,
    against: Annotated[str, typer.Option("--against", help="AGENT[,AGENT...] that takes turns with it.")] = "deadline",
    split: Annotated[Split, typer.Option("--split", help="Whose frames and links.")] = Split.test,
    link: Annotated[int | None, typer.Option("--link", min=0, help="Which trace (default: a typical one).")] = None,
    offset_s: Annotated[float, typer.Option("--offset", min=0, help="Where in the trace to begin, s.")] = 0.0,
    block: Annotated[int, typer.Option("--block", min=1, help="Frames of one controller's block.")] = 25,
    links: Annotated[
        str | None, typer.Option("--links", help="N,N,...: a live A/B over these traces, the blocks rotated.")
    ] = None,
    stretches: Annotated[int, typer.Option("--stretches", min=1, help="With --links: episodes along each.")] = 1,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Fly one episode with broker, edge and device behind a shaped link, and hold it against the simulator.

    With --links: on each of these traces one flight per controller, so that each decides in every block once; paired
    differences with intervals, in ab.json and live.html.
    """
    from dataclasses import replace

    from adaptsplit.bundle import load_bundle
    from adaptsplit.evaluation.console import live_table
    from adaptsplit.evaluation.fidelity import compare_flight, typical_stretch

    loaded = load_scenario(scenario, data)
    if links is not None:
        if link is not None:
            raise ConfigError("--link and --links: give one of them")
        wanted = ("bundle", *(name.strip() for name in against.split(",")))
        from adaptsplit.cli_fidelity import fly_ab, numbers

        fly_ab(bundle, loaded, split.value, numbers("--links", links), wanted, out, block, stretches, offset_s, as_json)
        return
    stretch = replace(typical_stretch(loaded, split.value), offset_s=offset_s)
    traces = loaded.links(split.value)
    if link is not None and link >= len(traces):
        raise ConfigError(f"--link {link}: split {split.value!r} has traces 0 to {len(traces) - 1}")
    if link is not None:
        stretch = replace(stretch, link=link)
    names = ("bundle", *(name.strip() for name in against.split(",")))
    comparison = compare_flight(load_bundle(bundle), loaded, split.value, stretch, names, block=block, out=out)
    if as_json:
        rows = [(row.controller, row.column.name, row.simulated, row.live) for row in comparison.rows]
        keys = ("controller", "metric", "simulated", "live")
        emit([dict(zip(keys, (None if value != value else value for value in row), strict=True)) for row in rows])
    else:
        Console().print(live_table(comparison))


def broker(
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="TCP port (default: 1883; with --secure 8883).")
    ] = None,
    backend: Annotated[str, typer.Option("--backend", help="auto, mosquitto or amqtt.")] = "auto",
    secure: Annotated[
        Path | None,
        typer.Option("--secure", metavar="DIR", help="Folder of `keys ca`: TLS, client certificates, access lists."),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on (default: 127.0.0.1; with --secure all).")
    ] = None,
    plain_port: Annotated[
        int | None,
        typer.Option("--plain-port", min=1, max=65535, help="With --secure: also 127.0.0.1 without TLS, all allowed."),
    ] = None,
) -> None:
    """Run an MQTT broker on the loopback interface (Mosquitto if installed, else the embedded one), or with TLS."""
    from adaptsplit.device_bridge.broker import serve

    serve(port, backend, host, secure=secure, plain_port=plain_port)


def edge(
    bundle: Annotated[list[Path], typer.Option("--bundle", help="Bundle folder; several models by several --bundle.")],
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    identity: Annotated[str, typer.Option("--id", help="Name of this edge server.")] = "edge-1",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the networks.")] = 1,
    workers_group: Annotated[
        str | None,
        typer.Option("--workers-group", metavar="NAME", help="Share the devices with the edge servers of this group."),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", min=1, help="Largest batch (default: the largest that pays, measured).")
    ] = None,
    metrics: Metrics = None,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    insecure: Insecure = False,
) -> None:
    """Run the edge server: receives features, runs the tail, answers; SIGTERM drains it."""
    from adaptsplit.device_bridge.edge import serve

    url = _address(broker, ca, cert, key, insecure, fleet, identity, role="edge").url
    counts = serve(bundle, url, fleet, identity, threads, workers=workers_group, max_batch=max_batch, metrics=metrics)
    typer.echo(json.dumps(counts))


def decide(
    bundle: Annotated[Path, typer.Option("--bundle", help="Bundle folder.")],
    controller: Annotated[
        str, typer.Option("--controller", help="Who decides: bundle, or an agent's name.")
    ] = "bundle",
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    identity: Annotated[str, typer.Option("--id", help="Name of this service.")] = "decide-1",
    window_ms: Annotated[float, typer.Option("--window-ms", min=0, help="How long a batch gathers.")] = 2.0,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    insecure: Insecure = False,
) -> None:
    """Decide for devices that are too small to run a policy (`device --controller service`), until interrupted."""
    from adaptsplit.device_bridge.decision_service import serve

    url = _address(broker, ca, cert, key, insecure, fleet, None, role="edge").url
    typer.echo(json.dumps(serve(bundle, url, fleet, identity, controller, window_ms / 1e3)))


def device(
    bundle: Annotated[Path, typer.Option("--bundle", help="Bundle folder.")],
    frames: Annotated[
        str,
        typer.Option("--frames", help="flight, folder:PATH, tiles:PATH, camera:FILE, camera:0, camera:rtsp://..."),
    ] = "flight",
    broker: Broker = DEFAULT_BROKER,
    identity: Annotated[str, typer.Option("--id", help="Name of this device.")] = "device-1",
    fleet: Fleet = DEFAULT_FLEET,
    controller: Annotated[
        str, typer.Option("--controller", help="AGENT[,AGENT...]; several run in blocks.")
    ] = "bundle",
    pace: Annotated[
        Pace, typer.Option("--pace", help="Sleep each stage up to its modelled time, or not.")
    ] = Pace.profile,
    split: Annotated[str, typer.Option("--split", help="Split of the frame source.")] = "test",
    count: Annotated[int, typer.Option("--count", min=0, help="Frames; 0: as a service, until SIGTERM.")] = 300,
    first: Annotated[int, typer.Option("--first", min=0, help="Index of the first frame.")] = 0,
    block: Annotated[int, typer.Option("--block", min=1, help="Frames of one controller's block.")] = 50,
    telemetry: Annotated[
        str | None, typer.Option("--telemetry", help="host, mavlink:URL, a model's FILE.json, or several joined by +.")
    ] = None,
    metrics: Metrics = None,
    log: Annotated[Path | None, typer.Option("--log", help="Live log (JSON lines), one line per frame.")] = None,
    observations: Annotated[
        bool, typer.Option("--observations", help="Log what the controller saw, too (for `adaptsplit learn`).")
    ] = False,
    state: Annotated[
        Path | None, typer.Option("--state", help="Folder in which a learner keeps what it learned, over restarts.")
    ] = None,
    guard: Annotated[
        bool, typer.Option("--guard/--no-guard", help="Guard learned policies (off: experiments).")
    ] = True,
    trust: TrustOption = None,
    trust_memory: MemoryOption = None,
    policies: Annotated[
        Path | None, typer.Option("--policies", help="Folder of policies that come over the air; needs --trust.")
    ] = None,
    canary_frames: Annotated[
        int, typer.Option("--canary-frames", min=1, help="Decided frames that a new policy is on trial.")
    ] = 200,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    insecure: Insecure = False,
    data: Data = None,
    seed: Seed = 0,
) -> None:
    """Run a device: camera, decision, head, exit, codec and sender, with its own answer when the link fails."""
    from adaptsplit.device_bridge.device import DeviceOptions, metrics_parts, run_device
    from adaptsplit.device_bridge.policy_canary import CanaryLimits
    from adaptsplit.device_bridge.policy_device import PolicySource, start_policy
    from adaptsplit.device_bridge.telemetry import open_telemetry

    address = _address(broker, ca, cert, key, insecure, fleet, identity)
    controllers = [name.strip() for name in controller.split(",")]
    canary = CanaryLimits(frames=canary_frames)
    policy = start_policy(PolicySource(bundle, trust or (), trust_memory, policies, canary), controllers, state)
    typer.echo(f"bundle: {policy.bundle.assurance}; {policy.updates}", err=True)
    options = DeviceOptions(
        broker=address.url,
        fleet=fleet,
        device=identity,
        pace=pace.value,
        seed=seed,
        log=log,
        observations=observations,
        guard=guard,
        keep=policy.keep,
    )
    summary, _ = run_device(
        policy.bundle,
        frames,
        controllers,
        options,
        split=split,
        data=data_directory(data),
        first=first,
        count=count,
        block=block,
        telemetry=None if telemetry is None else open_telemetry(telemetry),
        parts=(policy.part, *metrics_parts(metrics)),
    )
    typer.echo(json.dumps(summary))


def _address(
    broker: str,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    insecure: bool,
    fleet: str,
    identity: str | None,
    role: str = "",
) -> BrokerAddress:
    """Return the broker's address, judged with its certificate, and say who connects: a start may have to wait."""
    from datetime import UTC, datetime

    from adaptsplit.device_bridge.identity import check_identity, date_note
    from adaptsplit.device_bridge.transport import secured

    address = check_identity(secured(broker, ca, cert, key, insecure), fleet, identity, role)
    if note := date_note(address, datetime.now(UTC)):
        typer.echo(note, err=True)
    typer.echo(f"{identity or 'decision service'} of fleet {fleet}: broker {address.shown}", err=True)
    return address
