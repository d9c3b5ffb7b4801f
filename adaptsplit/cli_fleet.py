"""Commands for a running fleet: who is there, commands to devices, and whether it keeps the contract."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adaptsplit.cli_base import DEFAULT_BROKER, DEFAULT_FLEET, Broker, Ca, Cert, Fleet, Insecure, Json, Key, emit
from adaptsplit.cli_fleet_tables import show_fleet
from adaptsplit.errors import ConfigError

if TYPE_CHECKING:
    from adaptsplit.device_bridge.conformance import Verdict
    from adaptsplit.device_bridge.fleet_view import Member

COMMANDS = "ping, rebirth, report, controller (--arg name=NAME), pause-learning or resume-learning."

fleet_app = typer.Typer(help="A running fleet: who is there, and commands to devices.", no_args_is_help=True)


@fleet_app.command("list")
def fleet_list(
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    seconds: Annotated[
        float,
        typer.Option("--seconds", min=0.1, help="How long to listen at most: a device tells its state every 5 s."),
    ] = 6.0,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """List devices and edge servers with what they say of themselves. Only listens, until all have told their state."""
    from adaptsplit.device_bridge.identity import check_identity
    from adaptsplit.device_bridge.operator import Operator
    from adaptsplit.device_bridge.transport import secured

    with Operator(check_identity(secured(broker, ca, cert, key, insecure), fleet), fleet, heals=False) as operator:
        view = operator.listen(seconds, all_told=True)
    if as_json:
        emit([_row(member) for member in (*view.devices, *view.edges)])
    else:
        show_fleet(view, time.monotonic())


def _row(member: Member) -> dict[str, Any]:
    return {
        "id": member.name,
        "connection": member.connection,
        "presence": member.presence,
        "life": member.life,
        "birth": None if member.birth is None else member.birth.model_dump(),
        "state": None if member.state is None else member.state.model_dump(),
        "state_age_s": None if member.state is None else round(time.monotonic() - member.state_at, 1),
        "decision": None if member.decision is None else member.decision.model_dump(),
        "gaps": member.gaps,
    }


@fleet_app.command("cmd")
def fleet_cmd(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Id of the device.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help=COMMANDS)],
    arg: Annotated[list[str] | None, typer.Option("--arg", metavar="KEY=VALUE", help="Argument; repeat it.")] = None,
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="How long to wait for the reply, s.")] = 10.0,
    ttl_s: Annotated[float, typer.Option("--ttl", min=0.1, max=300, help="How long the command holds, s.")] = 5.0,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Give a device a command and print its reply; exit code 1 unless it was done."""
    from adaptsplit.device_bridge.identity import check_identity
    from adaptsplit.device_bridge.operator import Operator
    from adaptsplit.device_bridge.transport import secured

    values = dict(_argument(text) for text in arg or [])
    with Operator(check_identity(secured(broker, ca, cert, key, insecure), fleet), fleet, heals=False) as operator:
        reply = operator.command(device, name, values, ttl_s=ttl_s, timeout_s=timeout_s)
    if as_json:
        emit(reply.model_dump())
    else:
        typer.echo(f"{device}: {reply.status}{f' ({reply.reason})' if reply.reason else ''}")
        if reply.data:
            emit(reply.data)
    if reply.status != "DONE":
        raise typer.Exit(1)


@fleet_app.command("watch")
def fleet_watch(
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.1, help="End after this (default: never).")
    ] = None,
    heal: Annotated[
        bool, typer.Option("--heal/--no-heal", help="Ask for a rebirth when messages are missing (needs an operator).")
    ] = True,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    insecure: Insecure = False,
) -> None:
    """Print a line for each change of presence, each event and each gap, until it is interrupted."""
    from adaptsplit.device_bridge.identity import check_identity
    from adaptsplit.device_bridge.operator import Operator
    from adaptsplit.device_bridge.transport import secured

    until = time.monotonic() + (float("inf") if seconds is None else seconds)
    with Operator(check_identity(secured(broker, ca, cert, key, insecure), fleet), fleet, heals=heal) as operator:
        while time.monotonic() < until:
            for line in operator.news():
                typer.echo(f"{datetime.now(UTC):%H:%M:%SZ} {line}")
            time.sleep(0.1)


def _argument(text: str) -> tuple[str, bool | int | float | str]:
    """Read KEY=VALUE; a value is a number or true or false where it reads as one, else text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--arg {text!r}; expected KEY=VALUE")
    try:
        read = json.loads(value)
    except ValueError:
        return name, value
    return name, read if isinstance(read, bool | int | float) else value


def conformance(
    broker: Broker = DEFAULT_BROKER,
    fleet: Fleet = DEFAULT_FLEET,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="Device to probe; repeat it (default: all that are there).")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1.0, help="How long to listen.")] = 10.0,
    passive: Annotated[bool, typer.Option("--passive", help="Only listen: give no commands, send no frames.")] = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Check a running fleet against the numbered rules of docs/contract.md; exit code 1 when one is violated."""
    from adaptsplit.device_bridge.conformance import examine
    from adaptsplit.device_bridge.identity import check_identity
    from adaptsplit.device_bridge.transport import secured

    address = check_identity(secured(broker, ca, cert, key, insecure), fleet)
    verdicts = examine(address, fleet, seconds, device or (), probe=not passive)
    if as_json:
        emit([{**asdict(one.rule), "status": one.status, "seen": one.seen, "faults": one.faults} for one in verdicts])
    else:
        Console().print(_verdicts(verdicts))
    if any(one.faults for one in verdicts):
        raise typer.Exit(1)


def _verdicts(verdicts: list[Verdict]) -> Table:
    counts = {status: sum(one.status == status for one in verdicts) for status in ("held", "violated", "not seen")}
    table = Table(title=", ".join(f"{count} {status}" for status, count in counts.items()))
    for column in ("rule", "who", "status", "seen", "what"):
        table.add_column(column, justify="right" if column == "seen" else "left")
    for one in verdicts:
        what = "\n".join([one.rule.text, *one.faults])
        table.add_row(one.rule.id, one.rule.profile, one.status, str(one.seen), Text(what))
    return table
