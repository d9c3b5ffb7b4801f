"""Results in the terminal: the table of controllers, and simulated against live."""

from __future__ import annotations

import numpy as np
from rich.table import Table
from rich.text import Text

from adaptsplit.evaluation.headline import champion, featured, label
from adaptsplit.evaluation.live import LiveComparison, LiveRow
from adaptsplit.evaluation.report_tables import DASH, text_of, tolerance_text
from adaptsplit.evaluation.results import ControllerResult, ResultsDocument

_COLUMNS = (
    "reward",
    "vs best static",
    "quality",
    "miss %",
    "fallb %",
    "sent %",
    "p50 ms",
    "p95 ms",
    "mJ",
    "KiB",
    "gap %",
)


def console_table(document: ResultsDocument) -> Table:
    """Return the table static / rules / bandits / learned / oracles."""
    table = Table(title=f"{document.scenario}: {document.episodes} {document.split} episodes", title_justify="left")
    table.add_column("controller", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    best, before = champion(document), ""
    for row in featured(document):
        if before and row.kind != before:
            table.add_section()
        before = row.kind
        style = "bold" if best and row.name == best.name else "dim" if row.kind == "oracle" else ""
        runs = f" ({row.runs} runs)" if row.runs > 1 else ""
        table.add_row(label(document, row.name) + runs, *_cells(row), style=style)
    return table


def _cells(row: ControllerResult) -> list[str | Text]:
    return [
        text_of(row.number("reward"), 3),
        _difference(row),
        text_of(row.number("quality"), 3),
        text_of(row.number("miss_ratio"), 1, 100),
        text_of(row.number("fallback_ratio"), 1, 100),
        text_of(row.number("offload_ratio"), 1, 100),
        text_of(row.number("answer_latency_ms", "p50"), 0),
        text_of(row.number("answer_latency_ms", "p95"), 0),
        text_of(row.number("energy_mj"), 0),
        text_of(row.number("bytes"), 2, 1 / 1024),
        text_of(row.number("gap_closed"), 0, 100),
    ]


def _difference(row: ControllerResult) -> Text:
    pair = row.paired.get("hindsight")
    value = None if pair is None or pair.reference == row.name else pair.difference["reward"]
    if value is None or value.value is None or value.low is None or value.high is None:
        return Text(DASH)
    half = (value.high - value.low) / 2
    colour = "green" if value.low > 0 else "red" if value.high < 0 else ""
    return Text(f"{value.value:+.3f} ±{half:.3f}", style=colour)


def live_table(live: LiveComparison) -> Table:
    """Return simulated and live numbers of each controller side by side."""
    table = Table(title="simulated against live", title_justify="left", caption=live.note or None)
    table.add_column("controller", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for heading in ("simulated", "live", "difference", "promised", "within"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = ""
    for row in live.rows:
        if before and row.controller != before:
            table.add_section()
        first = "" if row.controller == before else f"{row.controller} ({live.frames[row.controller]} frames)"
        before = row.controller
        table.add_row(first, *_live_cells(row))
    return table


def _live_cells(row: LiveRow) -> list[str | Text]:
    digits, unit = row.column.digits, row.column.unit
    values = [DASH if np.isnan(v) else f"{v:.{digits}f}" for v in (row.simulated, row.live)]
    difference = DASH if np.isnan(row.difference) else f"{row.difference:+.{digits}f}"
    if row.column.relative and not np.isnan(row.relative):
        difference += f" ({100 * row.relative:+.1f} %)"
    verdict = {"within": Text("yes", "green"), "outside": Text("no", "red"), "unknown": Text("")}[row.verdict]
    return [
        f"{row.column.name} ({unit})" if unit else row.column.name,
        *values,
        difference,
        tolerance_text(row),
        verdict,
    ]
