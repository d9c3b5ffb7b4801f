"""Results in the terminal: the table of controllers, and simulated against live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from adaptsplit.evaluation.headline import champion, featured, label
from adaptsplit.evaluation.live import LiveComparison, LiveRow
from adaptsplit.evaluation.report_tables import DASH, text_of, tolerance_text
from adaptsplit.evaluation.results import ControllerResult, ResultsDocument


@dataclass(frozen=True, slots=True)
class _Column:
    """A heading, its cells, and how late it is left out of a narrow table (0: never)."""

    heading: str
    cell: Callable[[ControllerResult], Text]
    drop: int = 0


def _number(metric: str, digits: int, scale: float = 1.0, percentile: str | None = None) -> Callable[..., Text]:
    return lambda row: Text(text_of(row.number(metric, percentile), digits, scale))


def console_table(document: ResultsDocument, width: int | None = None) -> Table:
    """Return the table static / rules / bandits / learned / oracles; a narrow ``width`` leaves columns out."""
    best, rows = champion(document), featured(document)
    columns = _fitting(document, rows, width)
    best_static = document.best_static
    caption = (
        f"best static: {best_static.hindsight.removeprefix('static:')} in hindsight, "
        f"{best_static.chosen_on_train.removeprefix('static:')} chosen on train; ± is half a 95 % interval"
    )
    title = f"{document.scenario}: {document.episodes} {document.split} episodes"
    table = _table(title, caption)
    table.add_column("controller", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    before = rows[0].kind
    for row in rows:
        if row.kind != before:
            table.add_section()
        before = row.kind
        style = "bold" if best and row.name == best.name else "dim" if row.kind == "oracle" else ""
        table.add_row(_name(document, row), *(column.cell(row) for column in columns), style=style)
    return table


def _name(document: ResultsDocument, row: ControllerResult) -> str:
    runs = f" x{row.runs}" if row.runs > 1 else ""
    return label(document, row.name).partition(" (")[0] + runs


def _fitting(document: ResultsDocument, rows: list[ControllerResult], width: int | None) -> list[_Column]:
    """Leave columns out, the least needed first, until the table fits; ``stale %`` where no controller ever skips."""
    columns = [
        _Column("reward", _number("reward", 3)),
        _Column("vs best static", _difference),
        _Column("quality", _number("quality", 3)),
        _Column("miss %", _number("miss_ratio", 1, 100)),
        _Column("fallb %", _number("fallback_ratio", 1, 100), drop=3),
        _Column("sent %", _number("offload_ratio", 1, 100), drop=1),
        _Column("stale %", _number("stale_ratio", 1, 100), drop=4),
        _Column("p50 ms", _number("answer_latency_ms", 0, 1, "p50"), drop=5),
        _Column("p95 ms", _number("answer_latency_ms", 0, 1, "p95")),
        _Column("mJ", _number("energy_mj", 0), drop=6),
        _Column("KiB", _number("bytes", 2, 1 / 1024), drop=2),
        _Column("gap %", _number("gap_closed", 0, 100)),
    ]
    if not any(row.number("stale_ratio") for row in rows):
        columns = [column for column in columns if column.heading != "stale %"]
    names = max(len(_name(document, row)) for row in rows)
    need = {c.heading: 1 + max(len(c.heading), *(len(c.cell(row)) for row in rows)) for c in columns}
    for column in sorted((c for c in columns if c.drop), key=lambda c: c.drop):
        if width is None or names + sum(need[c.heading] for c in columns) <= width:
            break
        columns.remove(column)
    return columns


def _difference(row: ControllerResult) -> Text:
    pair = row.paired.get("hindsight")
    value = None if pair is None or pair.reference == row.name else pair.difference["reward"]
    if value is None or value.value is None or value.low is None or value.high is None:
        return Text(DASH)
    half = (value.high - value.low) / 2
    colour = "green" if value.low > 0 else "red" if value.high < 0 else ""
    return Text(f"{value.value:+.3f} ±{half:.3f}", style=colour)


def live_table(live: LiveComparison) -> Table:
    """Return simulated and live numbers of each controller side by side (at most 80 columns wide)."""
    table = _table("simulated against live", f"{live.note}; ± is the standard deviation of one simulated run")
    table.add_column("", no_wrap=True)
    for heading in ("simulated", "live", "difference", "within"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = ""
    for row in live.rows:
        if row.controller != before:
            if before:
                table.add_section()
            table.add_row(Text(f"{row.controller} ({live.frames[row.controller]} frames)", style="bold"))
        before = row.controller
        table.add_row(*_live_cells(row))
    return table


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        caption=caption or None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0),
        collapse_padding=True,
        pad_edge=False,
    )


def _live_cells(row: LiveRow) -> list[str | Text]:
    digits, unit = row.column.digits, row.column.unit
    values = [row.simulated_text, DASH if np.isnan(row.live) else f"{row.live:.{digits}f}"]
    difference = DASH if np.isnan(row.difference) else f"{row.difference:+.{digits}f}"
    if row.column.relative and not np.isnan(row.relative):
        difference += f" ({100 * row.relative:+.1f} %)"
    promised = tolerance_text(row)
    verdict = {
        "within": Text(f"yes, {promised}", "green"),
        "outside": Text(f"no, {promised}", "red"),
        "unknown": Text(""),
    }[row.verdict]
    return [f"  {row.column.name} ({unit})" if unit else f"  {row.column.name}", *values, difference, verdict]
