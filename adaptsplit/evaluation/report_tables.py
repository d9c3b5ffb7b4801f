"""The tables of the report, as HTML made from the document of results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import numpy as np

from adaptsplit.evaluation.headline import champion, featured, label
from adaptsplit.evaluation.live import LiveComparison, LiveRow
from adaptsplit.evaluation.report_svg import KIND_COLOURS
from adaptsplit.evaluation.results import ControllerResult, Estimate, ResultsDocument

DASH = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class SummaryColumn:
    """One column of the summary table: heading, explanation, and the text of a row's cell."""

    heading: str
    meaning: str
    text: Callable[[ControllerResult], str]


def text_of(value: float | None, digits: int, scale: float = 1.0) -> str:
    """Return a number with fixed digits, or a dash where it is undefined."""
    return DASH if value is None else f"{scale * value:.{digits}f}"


def _reward(row: ControllerResult) -> str:
    low, high = row.bounds("reward")
    return f"{text_of(row.number('reward'), 3)} <small>{text_of(low, 3)} to {text_of(high, 3)}</small>"


def _against(row: ControllerResult) -> str:
    pair = row.paired.get("hindsight")
    if pair is None or pair.reference == row.name:
        return DASH
    return signed(pair.difference["reward"])


def signed(value: Estimate, digits: int = 3) -> str:
    """Return a signed difference, green or red where its interval excludes zero (the sign says it too)."""
    if value.value is None or value.low is None or value.high is None:
        return DASH
    kind = "good" if value.low > 0 else "bad" if value.high < 0 else ""
    interval = f"{value.low:+.{digits}f} to {value.high:+.{digits}f}"
    return f'<span class="{kind}">{value.value:+.{digits}f}</span> <small>{interval}</small>'


def _simple(metric: str, digits: int, scale: float = 1.0, percentile: str | None = None) -> Callable[..., str]:
    return lambda row: text_of(row.number(metric, percentile), digits, scale)


SUMMARY = (
    SummaryColumn("reward", "objective per frame, with 95 % interval", _reward),
    SummaryColumn("vs best static", "paired difference to the best static decision in hindsight", _against),
    SummaryColumn("quality", "fraction of cells right", _simple("quality", 3)),
    SummaryColumn("miss %", "no answer by the deadline", _simple("miss_ratio", 1, 100)),
    SummaryColumn("fallback %", "meant for the edge, answered by the exit", _simple("fallback_ratio", 1, 100)),
    SummaryColumn("sent %", "frames sent to the edge", _simple("offload_ratio", 1, 100)),
    SummaryColumn("p50 ms", "median answer latency", _simple("answer_latency_ms", 0, 1, "p50")),
    SummaryColumn("p95 ms", "95th percentile of it", _simple("answer_latency_ms", 0, 1, "p95")),
    SummaryColumn("mJ", "device energy above idle per frame", _simple("energy_mj", 0)),
    SummaryColumn("KiB", "payload per frame", _simple("bytes", 2, 1 / 1024)),
    SummaryColumn("gap closed %", "share of the way to the informed oracle", _simple("gap_closed", 0, 100)),
)


def summary_table(document: ResultsDocument) -> str:
    """Return the main table: best static decisions, rules, bandits, learned controllers, oracles."""
    best = champion(document)
    head = "".join(f'<th title="{escape(column.meaning)}">{column.heading}</th>' for column in SUMMARY)
    body, before = [], ""
    for row in featured(document):
        classes = [row.kind, "top" if best and row.name == best.name else "", "group" if row.kind != before else ""]
        before = row.kind
        cells = "".join(f"<td>{column.text(row)}</td>" for column in SUMMARY)
        body.append(f'<tr class="{" ".join(filter(None, classes))}"><td>{_name(document, row)}</td>{cells}</tr>')
    caption = (
        f"{document.episodes} episodes of {document.frames_per_episode} frames; every controller sees the same links, "
        "frames and seeds. Small numbers are 95 % intervals."
    )
    return _table(f"<th>controller</th>{head}", body, caption)


def _name(document: ResultsDocument, row: ControllerResult) -> str:
    dot = f'<span class="dot" style="background:{KIND_COLOURS[row.kind]}"></span>'
    text, _, detail = label(document, row.name).partition(" (")
    small = [detail.removesuffix(")"), f"{row.runs} training runs" if row.runs > 1 else ""]
    under = ", ".join(part for part in small if part)
    return f"{dot}{escape(text)}" + (f"<small>{escape(under)}</small>" if under else "")


def _table(head: str, body: list[str], caption: str) -> str:
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def family_table(document: ResultsDocument) -> str:
    """Return reward and paired difference per link family."""
    families = list(document.families.items())
    head = "<th>controller</th>" + "".join(
        f'<th title="{f.recordings} recordings">{escape(name)}<br><small>{f.episodes} episodes</small></th>'
        f"<th>vs best static</th>"
        for name, f in families
    )
    body = []
    for row in featured(document):
        cells = []
        for _, family in families:
            found = next(item for item in family.controllers if item.controller == row.name)
            same = row.name == document.best_static.hindsight
            cells.append(
                f"<td>{text_of(found.reward.value, 3)}</td><td>{DASH if same else signed(found.difference)}</td>"
            )
        body.append(f"<tr><td>{_name(document, row)}</td>{''.join(cells)}</tr>")
    return _table(head, body, "Reward per frame by family of links; the reference is the best static decision overall.")


def static_table(document: ResultsDocument, count: int = 12) -> str:
    """Return the best rows of the static grid."""
    rows = document.of_kind("static")[:count]
    head = "<th>static decision</th>" + "".join(
        f"<th>{column.heading}</th>" for column in SUMMARY if column != SUMMARY[1]
    )
    body = [
        f"<tr><td>{escape(row.name.removeprefix('static:'))}</td>"
        + "".join(f"<td>{column.text(row)}</td>" for column in SUMMARY if column != SUMMARY[1])
        + "</tr>"
        for row in rows
    ]
    total = len(document.of_kind("static"))
    return _table(head, body, f"The best {len(rows)} of {total} static decisions: branch / rate / exit threshold.")


def live_table(live: LiveComparison) -> str:
    """Return simulated and live numbers side by side, with the difference and whether it is within tolerance."""
    head = (
        '<th>controller</th><th class="l">metric</th><th>simulated</th><th>live</th><th>difference</th><th>within</th>'
    )
    body, before = [], ""
    for row in live.rows:
        first = escape(row.controller) if row.controller != before else ""
        group = ' class="group"' if row.controller != before else ""
        before = row.controller
        body.append(f"<tr{group}><td>{first}</td>{_live_cells(row)}</tr>")
    frames = ", ".join(f"{name}: {count} frames" for name, count in live.frames.items())
    return _table(head, body, escape(f"{live.note} {frames}".strip()))


def _live_cells(row: LiveRow) -> str:
    digits, unit = row.column.digits, row.column.unit
    values = [row.simulated_text, DASH if np.isnan(row.live) else f"{row.live:.{digits}f}"]
    difference = DASH if np.isnan(row.difference) else f"{row.difference:+.{digits}f}"
    if row.column.relative and not np.isnan(row.relative):
        difference += f" <small>{100 * row.relative:+.1f} %</small>"
    mark = {"within": '<span class="good">yes</span>', "outside": '<span class="bad">no</span>', "unknown": ""}
    limit = tolerance_text(row) if row.verdict != "unknown" else ""
    cells = "".join(f"<td>{text}</td>" for text in (*values, difference))
    name = escape(f"{row.column.name} ({unit})" if unit else row.column.name)
    return f'<td class="l">{name}</td>{cells}<td>{mark[row.verdict]} <small>{limit}</small></td>'


def tolerance_text(row: LiveRow) -> str:
    """Return the promised tolerance, such as ``"±15 %"``; empty where none is promised."""
    if row.column.tolerance is None:
        return ""
    return f"±{100 * row.column.tolerance:g} %" if row.column.relative else f"±{row.column.tolerance:g}"
