"""The figures of the report that show all controllers at once. Each function returns one inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adaptsplit.evaluation import report_svg as svg
from adaptsplit.evaluation.analysis import Results
from adaptsplit.evaluation.headline import featured
from adaptsplit.evaluation.metrics import bin_latency_s
from adaptsplit.evaluation.results import ControllerResult, Estimate, ResultsDocument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Point = tuple[float, float]


def pareto(document: ResultsDocument, metric: str, percentile: str | None, axis: str, scale: float = 1.0) -> str:
    """Quality over a cost: the static grid as dots by branch, its Pareto front, controllers as labelled markers."""
    with svg.figure(6.4, 5.0) as (drawn, axes):
        ax = axes[0, 0]
        statics = document.of_kind("static")
        points = [_point(row, metric, percentile, scale) for row in statics]
        for order, branch in enumerate(document.space["branches"]):
            own = [p for row, p in zip(statics, points, strict=True) if _branch(row) == branch["name"] and p]
            if own:
                colour = svg.BRANCH_COLOURS[order % len(svg.BRANCH_COLOURS)]
                ax.scatter(*zip(*own, strict=True), s=22, color=colour, alpha=0.75, linewidths=0, label=branch["name"])
        front = _front([point for point in points if point])
        ax.plot(*front.T, color=svg.MUTED, linewidth=1.2, drawstyle="steps-post", label="front of the static grid")
        _mark(ax, document, metric, percentile, scale)
        ax.set_xlabel(axis)
        ax.set_ylabel("quality (fraction of cells right)")
        svg.legend_below(ax, 4)
        return svg.to_svg(drawn, f"quality over {axis}")


def _branch(row: ControllerResult) -> str:
    return row.name.removeprefix("static:").split("/")[0]


def _point(row: ControllerResult, metric: str, percentile: str | None, scale: float) -> Point | None:
    cost, quality = row.number(metric, percentile), row.number("quality")
    return None if cost is None or quality is None else (scale * cost, quality)


def _front(points: Sequence[Point]) -> Floats:
    """Points that no other beats in both: cheapest first, each better than all that are cheaper."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


def _mark(ax: Axes, document: ResultsDocument, metric: str, percentile: str | None, scale: float) -> None:
    rows = [row for row in featured(document) if _point(row, metric, percentile, scale)]
    marks: list[_Mark] = []
    for row, (colour, marker, _) in zip(rows, svg.styles([row.kind for row in rows]), strict=True):
        x, y = _point(row, metric, percentile, scale) or (0.0, 0.0)
        size = 190 if marker == "*" else 85
        ax.scatter([x], [y], s=size, color=colour, marker=marker, edgecolors=svg.INK, linewidths=0.9, zorder=5)
        marks.append(_Mark(x, y, _short(document, row.name), colour, marker))
    low, high = ax.get_ylim()
    _labels(ax, marks, low, high)


def _short(document: ResultsDocument, name: str) -> str:
    best = document.best_static
    if name == best.hindsight:
        return "best static"
    if name == best.chosen_on_train:
        return "static from train"
    return name


class _Mark(NamedTuple):
    x: float
    y: float
    name: str
    colour: str
    marker: str


def _labels(ax: Axes, marks: Sequence[_Mark], low: float, high: float) -> None:
    """Write names in a column at the right edge, in the order of height, each with a faint line to its marker."""
    gap = (high - low) / 17
    ordered = sorted(marks, key=lambda mark: mark.y)
    heights: list[float] = []
    for mark in ordered:
        heights.append(max(mark.y, heights[-1] + gap) if heights else mark.y)
    shift = max(0.0, heights[-1] - (high - gap / 2)) if heights else 0.0
    left, right = ax.get_xlim()
    edge = right + 0.05 * (right - left)
    for mark, height in zip(ordered, heights, strict=True):
        y = height - shift
        ax.plot([mark.x, edge], [mark.y, y], color=svg.MUTED, linewidth=0.5, alpha=0.55, clip_on=False, zorder=1)
        ax.plot([edge], [y], mark.marker, color=mark.colour, markersize=7, markeredgecolor=svg.INK, clip_on=False)
        ax.annotate(
            mark.name, (edge, y), (8, 0), textcoords="offset points", va="center", fontsize=9.5, annotation_clip=False
        )
    ax.set_xlim(left, right)
    ax.set_ylim(low, high)


def latency_cdf(results: Results, which: str, title: str) -> str:
    """Cumulative share of frames answered (``answer``) or of results that came (``remote``) over latency."""
    document = results.document
    with svg.figure(6.4, 4.6) as (drawn, axes):
        ax = axes[0, 0]
        rows = [row for row in featured(document) if any(row.shares["path"].values())]
        deadline = document.deadline_ms
        frames = document.episodes * document.frames_per_episode
        latency = 1e3 * bin_latency_s()
        for row, (colour, _, dash) in zip(rows, svg.styles([row.kind for row in rows]), strict=True):
            counts = np.sum([getattr(t, which).counts.sum(axis=0) for t in results.find(row.name).tables], axis=0)
            total = frames * row.runs if which == "answer" else counts.sum()
            if counts.sum():
                share = np.cumsum(counts) / total
                ax.plot(latency[:-1], share[:-1], color=colour, linestyle=dash, label=_short(document, row.name))
        limit = deadline * (1.12 if which == "answer" else 2.6)
        ax.axvline(deadline, color=svg.INK, linewidth=1, linestyle=(0, (2, 2)))
        ax.annotate("deadline", (deadline, 0.02), xytext=(-4, 0), textcoords="offset points", ha="right", fontsize=9.5)
        ax.set_xlim(0, limit)
        ax.set_ylim(0, 1.01)
        ax.set_xlabel(f"{title} (ms)")
        ax.set_ylabel("share of all frames" if which == "answer" else "share of sent frames")
        svg.legend_below(ax, 3)
        return svg.to_svg(drawn, f"distribution of {title}")


def forest(document: ResultsDocument) -> str:
    """Paired difference of reward to both best static decisions, with 95 % intervals."""
    rows = [row for row in featured(document) if row.name != document.best_static.hindsight][::-1]
    with svg.figure(7.2, 1.3 + 0.42 * max(1, len(rows))) as (drawn, axes):
        ax = axes[0, 0]
        ax.axvline(0, color=svg.INK, linewidth=1)
        for y, row in enumerate(rows):
            colour = svg.KIND_COLOURS[row.kind]
            _interval(ax, row.paired["hindsight"].difference["reward"], y + 0.13, colour, colour)
            _interval(ax, row.paired["chosen_on_train"].difference["reward"], y - 0.17, colour, svg.PAPER)
        ax.set_yticks(range(len(rows)), [_short(document, row.name) for row in rows])
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("difference of reward per frame, on the same episodes")
        ax.plot([], [], "o", color=svg.MUTED, label="to the best static in hindsight")
        ax.plot([], [], "o", color=svg.MUTED, markerfacecolor=svg.PAPER, label="to the best static from train")
        ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=9.5)
        return svg.to_svg(drawn, "paired differences of reward to the best static decisions")


def _interval(ax: Axes, value: Estimate, y: float, colour: str, fill: str) -> None:
    if value.value is None or value.low is None or value.high is None:
        return
    ax.plot([value.low, value.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    ax.plot([value.value], [y], "o", color=colour, markersize=6.5, markerfacecolor=fill, markeredgewidth=1.5)


def gap_closed(document: ResultsDocument) -> str:
    """Gap closed against both informed oracles, with 95 % intervals; empty string where it is undefined throughout."""
    rows = [row for row in document.of_kind("rule", "bandit", "learned") if _closed(row)][::-1]
    if not rows:
        return ""
    with svg.figure(7.2, 1.4 + 0.45 * len(rows)) as (drawn, axes):
        ax = axes[0, 0]
        for y, row in enumerate(rows):
            for metric, shift, solid in (("gap_closed", 0.18, True), ("gap_closed_0", -0.18, False)):
                _bar(ax, row, metric, y + shift, solid)
        ax.set_yticks(range(len(rows)), [row.name for row in rows])
        ax.axvline(0, color=svg.INK, linewidth=1)
        ax.axvline(100, color=svg.BLUE, linewidth=1, linestyle=(0, (3, 2)))
        worst = min(min(100 * (row.number(metric) or 0.0) for metric in ("gap_closed", "gap_closed_0")) for row in rows)
        ax.set_xlim(max(worst * 1.1, -120) if worst < 0 else 0, 112)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("gap closed (%): 0 = best static in hindsight, 100 = oracle")
        from matplotlib.patches import Patch

        handles = [
            Patch(color=svg.MUTED, label="to the informed oracle"),
            Patch(facecolor="none", edgecolor=svg.MUTED, label="to the oracle that knows only the present"),
        ]
        ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=9.5)
        return svg.to_svg(drawn, "gap closed")


def _closed(row: ControllerResult) -> bool:
    return row.number("gap_closed") is not None or row.number("gap_closed_0") is not None


def _bar(ax: Axes, row: ControllerResult, metric: str, y: float, solid: bool) -> None:
    value = row.number(metric)
    if value is None:
        return
    colour = svg.KIND_COLOURS[row.kind]
    ax.barh(y, 100 * value, height=0.32, color=colour if solid else "none", edgecolor=colour, linewidth=1.4)
    low, high = row.bounds(metric)
    if low is not None and high is not None:
        ax.plot([100 * low, 100 * high], [y, y], color=svg.INK, linewidth=1.3)
    right = max(value, 0.0 if high is None else high, 0.0)
    ax.annotate(f"{100 * value:.0f}", (100 * right, y), (5, 0), textcoords="offset points", va="center", fontsize=9)


def knobs(document: ResultsDocument) -> str:
    """What each knob is worth, and the oracle's reward with it frozen at each value."""
    assert document.knobs is not None
    found = document.knobs
    with svg.figure(10.5, 3.3, 1, 2) as (drawn, axes):
        ax, detail = axes[0]
        for y, knob in enumerate(found.knobs[::-1]):
            ax.barh(y, knob.worth.value or 0.0, height=0.5, color=_knob_colour(knob.knob))
            if knob.worth.low is not None and knob.worth.high is not None:
                ax.plot([knob.worth.low, knob.worth.high], [y, y], color=svg.INK, linewidth=1.3)
        ax.set_yticks(range(len(found.knobs)), [knob.knob for knob in found.knobs[::-1]])
        ax.axvline(0, color=svg.INK, linewidth=1)
        ax.set_title("reward lost by freezing it")
        ax.grid(axis="y", visible=False)
        ticks: list[str] = []
        for y, knob in enumerate(found.knobs[::-1]):
            values = list(knob.by_value.values())
            detail.scatter(values, [y] * len(values), s=36, color=_knob_colour(knob.knob), alpha=0.65, linewidths=0)
            detail.annotate(
                knob.best_value, (knob.frozen_reward, y), (0, 9), textcoords="offset points", ha="center", fontsize=9.5
            )
            ticks.append(knob.knob)
        detail.axvline(found.all_knobs_reward, color=svg.BLUE, linestyle=(0, (3, 2)), linewidth=1.2)
        detail.set_yticks(range(len(ticks)), [""] * len(ticks))
        detail.set_ylim(-0.5, len(ticks) - 0.3)
        detail.set_title("reward when frozen at each value")
        for axis in (ax, detail):
            axis.locator_params(axis="x", nbins=5)
        detail.grid(axis="y", visible=False)
        return svg.to_svg(drawn, "worth of each knob")


def _knob_colour(knob: str) -> str:
    return {"branch": svg.SKY, "rate": svg.PURPLE, "threshold": svg.GREEN}[knob]


def shares(document: ResultsDocument, group: str, title: str) -> str:
    """Stacked shares per controller: which branch it chose, or how its frames were answered."""
    rows = featured(document)[::-1]
    names = [name for name in _order(document, group) if any(row.shares[group].get(name, 0.0) for row in rows)]
    with svg.figure(6.4, 1.3 + 0.36 * len(rows)) as (drawn, axes):
        ax = axes[0, 0]
        left = np.zeros(len(rows))
        for name in names:
            width = 100 * np.array([row.shares[group].get(name, 0.0) for row in rows])
            colour, text = _share_style(document, group, name)
            ax.barh(range(len(rows)), width, left=left, height=0.72, color=colour, label=text)
            left += width
        ax.set_yticks(range(len(rows)), [_short(document, row.name) for row in rows])
        ax.set_xlim(0, 100)
        ax.grid(visible=False)
        ax.set_xlabel(title)
        ax.legend(loc="lower center", bbox_to_anchor=(0.35, 1.0), ncols=3, fontsize=9, handlelength=1.1)
        return svg.to_svg(drawn, title)


def _order(document: ResultsDocument, group: str) -> list[str]:
    if group == "path":
        return list(svg.PATH_COLOURS)
    return list(featured(document)[0].shares[group])


def _share_style(document: ResultsDocument, group: str, name: str) -> tuple[Any, str]:
    if group == "path":
        return svg.PATH_COLOURS[name], svg.PATH_LABELS[name]
    order = _order(document, group)
    place = order.index(name)
    if group == "branch":
        return svg.BRANCH_COLOURS[place % len(svg.BRANCH_COLOURS)], name
    return ramp(place, len(order)), f"{group} {name}"


def ramp(place: int, count: int) -> tuple[float, float, float]:
    """Return the ``place``-th of ``count`` steps from pale to deep (a single hue, so the order reads in grey too)."""
    depth = (place + 1) / max(1, count)
    pale, deep = np.array([0.86, 0.80, 0.90]), np.array([0.36, 0.10, 0.42])
    red, green, blue = pale + depth * (deep - pale)
    return float(red), float(green), float(blue)
