"""The picture of simulated against live, and the page of a live A/B comparison."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from adaptsplit.evaluation import report_svg as svg
from adaptsplit.evaluation.live import LiveComparison
from adaptsplit.evaluation.live_ab import LiveAb
from adaptsplit.evaluation.report_style import CSS, PAGE
from adaptsplit.evaluation.report_tables import live_table

SHOWN = ("quality", "answer p50", "bytes", "fallback")
# metric of a live A/B, its heading, digits, factor
AB_COLUMNS = (
    ("reward", "reward", 4, 1.0),
    ("quality", "quality", 4, 1.0),
    ("answer_ms", "answer ms", 1, 1.0),
    ("miss", "miss %", 1, 100.0),
    ("fallback", "fallback %", 1, 100.0),
    ("energy_mj", "energy mJ", 1, 1.0),
    ("bytes", "B/frame", 0, 1.0),
)


def live_figure(live: LiveComparison) -> str:
    """Return pairs of bars per controller: quality, median latency, bytes, fallbacks."""
    names = live.controllers
    with svg.figure(10.5, 1.5 + 0.5 * len(names), 1, len(SHOWN)) as (drawn, axes):
        for ax, metric in zip(axes[0], SHOWN, strict=True):
            rows = {row.controller: row for row in live.rows if row.column.name == metric}
            places = np.arange(len(names))[::-1]
            simulated = np.nan_to_num([rows[name].simulated for name in names])
            measured = np.nan_to_num([rows[name].live for name in names])
            ax.barh(places + 0.19, simulated, height=0.34, color=svg.SKY, label="simulated")
            ax.barh(places - 0.19, measured, height=0.34, color=svg.VERMILION, label="live")
            unit = rows[names[0]].column.unit
            ax.set_title(f"{metric} ({unit})" if unit else metric, fontsize=10.5)
            ax.set_yticks(places, [name.removeprefix("static:") for name in names] if ax is axes[0, 0] else [])
            ax.grid(axis="y", visible=False)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9.5)
        return svg.to_svg(drawn, "simulated against live")


def ab_cells(found: LiveAb, index: int, link: str | None) -> list[str]:
    """Return one row of the A/B table: means of the first controller, and for the others the paired differences.

    A difference reads "first less this one", with its 95 % interval.
    """
    cells = []
    for metric, _, digits, factor in AB_COLUMNS:
        if index == 0:
            cells.append(f"{factor * found.means(metric, link)[0]:.{digits}f}")
        else:
            one = found.difference(metric, index, link)
            value, low, high = (factor * number for number in (one.value, one.low, one.high))
            cells.append(f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})")
    return cells


def ab_rows(found: LiveAb) -> list[tuple[str, str, list[str]]]:
    """Return (link, controller, cells) of the whole A/B table: all links first."""
    first = found.controllers[0]
    rows = []
    for link in (None, *found.links):
        for i, name in enumerate(found.controllers):
            title = first if i == 0 else f"{first} less {name}"
            rows.append((link or "all links", title, ab_cells(found, i, link)))
    return rows


def ab_note(found: LiveAb) -> str:
    """Say what was flown and how the intervals were made."""
    return (
        f"{found.frames} frames in {len(found.link)} cells of {found.block} frames, in each of which every controller "
        "decided once; differences are paired by cell. Intervals: 95 %, bootstrap over links, stretches and blocks (of "
        f"one link: stretches and blocks). {len(found.links)} links are few: the interval over all is a rough one."
    )


def ab_page(found: LiveAb, live: LiveComparison, title: str) -> str:
    """Return the page of a live A/B comparison as HTML text."""
    head = "".join(f"<th>{escape(column[1])}</th>" for column in AB_COLUMNS)
    body, before = [], ""
    for link, name, cells in ab_rows(found):
        group = ' class="group"' if link != before else ""
        shown, before = (link if link != before else ""), link
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(f'<tr{group}><td>{escape(shown)}</td><td class="l">{escape(name)}</td>{row}</tr>')
    table = (
        f'<div class="scroll"><table><caption>{escape(ab_note(found))}</caption><thead><tr><th>link</th>'
        f'<th class="l">controller</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )
    parts = (
        f"<h1>{escape(title)}</h1><h2>Live A/B in interleaved blocks</h2>{table}",
        f"<h2>Simulated against live</h2>{live_table(live)}",
        f'<div class="figures one"><figure class="wide"><div class="pan">{live_figure(live)}</div></figure></div>',
    )
    return PAGE.format(title=escape(title), css=CSS, body="\n".join(parts))


def write_ab_page(found: LiveAb, live: LiveComparison, title: str, path: Path) -> Path:
    """Write the page; MissingExtraError (extra ``report``) without matplotlib."""
    path.write_text(ab_page(found, live, title), encoding="utf-8")
    return path
