"""The sim-to-live gap and the live A/B comparison in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adaptsplit.evaluation.console import live_table
from adaptsplit.evaluation.live import LiveComparison
from adaptsplit.evaluation.live_ab import LiveAb
from adaptsplit.evaluation.report_live import AB_COLUMNS, ab_note, ab_rows
from adaptsplit.evaluation.sim_to_live import NOT_MODELLED, SimToLive


def print_sim_to_live(found: SimToLive, console: Console) -> None:
    """Print the table, the verdicts with their intervals, what was measured of causes, and what is not modelled."""
    console.print(live_table(found.anew))
    console.print(escape(found.link), highlight=False)
    console.print("The run as a whole, live less simulated (95 %: bootstrap of blocks of 10 frames):", style="bold")
    for line in found.verdicts():
        console.print(f"  {escape(line)}", highlight=False)
    console.print("Why:", style="bold")
    for line in found.explanations():
        console.print(f"  - {escape(line)}", highlight=False)
    console.print(f"the run is {'inside every' if found.inside else 'outside a'} tolerance", style="bold")
    console.print("Not modelled:", style="bold")
    for line in NOT_MODELLED:
        console.print(f"  - {escape(line)}", highlight=False)


def print_live_ab(found: LiveAb, live: LiveComparison, console: Console) -> None:
    """Print means and paired differences, over all links and by link, and simulated against live."""
    table = Table(
        title="live A/B", title_justify="left", caption=ab_note(found), caption_justify="left", box=SIMPLE_HEAD
    )
    for heading in ("link", "controller"):
        table.add_column(heading, overflow="fold")
    for _, heading, _, _ in AB_COLUMNS[:4]:
        table.add_column(heading, justify="right")
    before = ""
    for link, name, cells in ab_rows(found):
        if before not in ("", link):
            table.add_section()
        table.add_row(escape(link if link != before else ""), escape(name), *cells[:4])
        before = link
    console.print(table)
    console.print(live_table(live))
