"""``adaptsplit deploy``: a new policy for devices that fly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from adaptsplit.cli_base import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Ca, Cert, Fleet, Insecure, Json, Key, emit
from adaptsplit.errors import ConfigError

if TYPE_CHECKING:
    from adaptsplit.device_bridge.policy_rollout import Rollout
    from adaptsplit.device_bridge.policy_sender import Parcel, PolicySender


def deploy(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, signed by `adaptsplit keys sign`.")],
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    device: Annotated[list[str] | None, typer.Option("--device", help="Id of a device; may be repeated.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All devices that are online.")] = False,
    canary_devices: Annotated[
        int,
        typer.Option("--canary-devices", min=0, help="Devices that go first; the rest once they kept it (0: none)."),
    ] = 1,
    wait: Annotated[float, typer.Option("--wait", min=1, help="How long to serve and wait, s.")] = 300.0,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Send a signed policy to devices, and watch each verify, test and try it; exit code 1 unless all keep it."""
    from adaptsplit.device_bridge.identity import check_identity
    from adaptsplit.device_bridge.policy_sender import Parcel, PolicySender
    from adaptsplit.device_bridge.transport import secured

    if bool(device) == every:
        raise ConfigError("name the devices with --device ID, or take all that are online with --all")
    parcel = Parcel.of(bundle)
    with PolicySender(check_identity(secured(broker, ca, cert, key, insecure), fleet), fleet) as sender:
        devices = list(dict.fromkeys(device or sender.online()))
        if not devices:
            raise ConfigError(f"no device of fleet {fleet!r} is online; start one, or name it with --device")
        rollout = _roll_out(sender, parcel, devices, canary_devices, wait)
    for line in rollout.left_over(wait):
        typer.echo(line, err=True)
    if any(state.status == "PENDING" for state in rollout.states.values()):
        typer.echo("whoever is told later asks for the update: run this command again then", err=True)
    if as_json:
        rows = [state.row() for state in rollout.states.values()]
        emit({"version": parcel.statement.version, "succeeded": rollout.succeeded, "devices": rows})
    if not rollout.succeeded:
        raise typer.Exit(1)


def _roll_out(sender: PolicySender, parcel: Parcel, devices: list[str], canaries: int, wait_s: float) -> Rollout:
    from adaptsplit.device_bridge.policy_rollout import Rollout

    rollout = Rollout(parcel.announcement.job, parcel.chunks, devices, canaries)
    console = Console(stderr=True)
    if not console.is_terminal:
        sender.run(parcel, rollout, wait_s, plain_lines(lambda line: typer.echo(line, err=True)))
        return rollout
    with Live(_table(rollout), console=console, refresh_per_second=4) as live:
        sender.run(parcel, rollout, wait_s, lambda now: live.update(_table(now)))
        live.update(_table(rollout))
    return rollout


def plain_lines(write: Callable[[str], object]) -> Callable[[Rollout], None]:
    """Return what writes a line for every device whose status or stage has changed."""
    seen: dict[str, tuple[str, str]] = {}

    def show(rollout: Rollout) -> None:
        for name, state in rollout.states.items():
            if seen.get(name) != (state.status, state.stage):
                seen[name] = (state.status, state.stage)
                write(" ".join(part for part in (name, state.status, state.stage, state.reason, state.detail) if part))

    return show


def _table(rollout: Rollout) -> Table:
    table = Table("device", "status", "stage", "progress", "reason")
    for state in rollout.states.values():
        why = " ".join(part for part in (state.reason, state.detail) if part)
        table.add_row(state.device, state.status, state.stage, f"{state.progress:.0%}", why)
    return table
