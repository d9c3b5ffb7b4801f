"""What `adaptsplit fleet list` shows: one table of devices, one of edge servers, made to fit 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, JustifyMethod
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from adaptsplit.device_bridge.fleet_view import FleetView, Member

DEVICE_COLUMNS = ("id", "is", "by", "controller", "decision", "frame", "Mbit/s", "rtt ms", "edge", "age s")
EDGE_COLUMNS = ("id", "is", "frames", "answered", "dropped", "refused", "waiting", "age s")
NUMBERS = ("frame", "Mbit/s", "rtt ms", "age s", "frames", "answered", "dropped", "refused", "waiting")
WHOLE = ("id", "is", "by")  # never cut and never folded: one must be able to type them
PIPE_COLUMNS = 200  # where nobody's terminal says how wide it is, lines stay whole


def show_fleet(view: FleetView, now: float) -> None:
    """Print both tables; ``now`` is the listener's monotonic clock, s."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    console.print(fleet_tables(view, now))
    if not view.members:
        console.print(f"nobody was heard in fleet {view.fleet!r}: is --fleet right, and may this client listen?")


def fleet_tables(view: FleetView, now: float) -> Group:
    """Return the tables of the devices and of the edge servers; what was not heard of a member stays empty."""
    devices = _table(f"fleet {view.fleet}: {_count(view.devices, 'device')}", DEVICE_COLUMNS)
    for member in view.devices:
        _add(devices, member.name, member.presence or "unknown", *_device(member, now))
    edges = _table(_count(view.edges, "edge server"), EDGE_COLUMNS)
    for member in view.edges:
        _add(edges, member.name.partition("/")[2], member.presence or "unknown", *_edge(member, now))
    return Group(devices, edges)


def _add(table: Table, *cells: str) -> None:
    """Add a row as plain text: what devices say of themselves may look like rich's markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _count(members: Sequence[Member], what: str) -> str:
    there = sum(member.connection == "ONLINE" for member in members)
    return f"{len(members)} {what}{'' if len(members) == 1 else 's'}, {there} online"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        whole = column in WHOLE or column in NUMBERS
        side: JustifyMethod = "right" if column in NUMBERS else "left"
        table.add_column(column, justify=side, no_wrap=whole, overflow="fold")
    return table


def _device(member: Member, now: float) -> list[str]:
    state = member.state
    if state is None:
        controllers = ", ".join(member.birth.controllers) if member.birth is not None else ""
        return ["", controllers, *[""] * 6]
    link = [f"{state.goodput_bps / 1e6:.2f}", f"{state.rtt_s * 1e3:.0f}", ", ".join(state.edges) or state.edge]
    return [state.mode, state.controller, state.decision, str(state.frame), *link, _age(member, now)]


def _edge(member: Member, now: float) -> list[str]:
    told = member.edge
    if told is None:
        return [""] * 6
    counts = told.counts
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped"))
    numbers = [counts.get("frames", 0), counts.get("answered", 0), dropped, counts.get("refused", 0)]
    waiting = sum(queue.waiting for queue in told.queues.values())
    return [*(str(number) for number in (*numbers, waiting)), _age(member, now)]


def _age(member: Member, now: float) -> str:
    return f"{now - member.state_at:.1f}"
