"""The picture of simulated against live."""

from __future__ import annotations

import numpy as np

from adaptsplit.evaluation import report_svg as svg
from adaptsplit.evaluation.live import LiveComparison

SHOWN = ("quality", "answer p50", "bytes", "fallback")


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
