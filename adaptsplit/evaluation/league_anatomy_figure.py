"""The anatomy as stacked bars: for each state of the link one bar per controller, for branch, rate, rule and answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptsplit.evaluation import report_svg as svg
from adaptsplit.evaluation.league_anatomy import CONDITIONS
from adaptsplit.evaluation.league_document import Anatomy
from adaptsplit.evaluation.league_figures import finish, short
from adaptsplit.evaluation.report_figures import ramp

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"branch": "head branch", "rate": "rate (0 strongest)", "threshold": "exit rule", "path": "answered by"}
TITLES = {
    "low": "low goodput",
    "middle": "middle",
    "high": "high goodput",
    "drop": "after a drop",
    "return": "after its return",
}
_PATHS = ("exit", "local", "remote", "fallback_passed", "fallback_late", "stale", "miss")


def draw_anatomy(anatomy: Anatomy, png: Path | None = None) -> str:
    """Return the picture of one scenario as SVG."""
    places = _places(anatomy)
    with svg.figure(12.5, 1.6 + 0.21 * len(places), 1, len(PANELS)) as (drawn, axes):
        for ax, group in zip(axes[0], PANELS, strict=True):
            _panel(ax, anatomy, group, places)
        axes[0, 0].set_yticks([y for y, _, _ in places], [_label(anatomy, row, name) for _, row, name in places])
        return finish(drawn, f"anatomy of the decisions on {anatomy.scenario}", png)


def _places(anatomy: Anatomy) -> list[tuple[float, int, str]]:
    """(height, row, condition) of every bar, conditions apart from each other."""
    places, y = [], 0.0
    for name in CONDITIONS:
        for row in range(len(anatomy.rows)):
            places.append((y, row, name))
            y -= 1.0
        y -= 0.8
    return places


def _label(anatomy: Anatomy, row: int, name: str) -> str:
    own = short(anatomy.rows[row].controller)
    return f"{TITLES[name]}:  {own}" if row == 0 else own


def _panel(ax: Axes, anatomy: Anatomy, group: str, places: Sequence[tuple[float, int, str]]) -> None:
    keys = _keys(anatomy, group)
    for place, key in enumerate(keys):
        widths, lefts = [], []
        for _, row, name in places:
            shares = anatomy.rows[row].conditions[name].shares.get(group, {})
            lefts.append(100 * sum(shares.get(other, 0.0) for other in keys[:place]))
            widths.append(100 * shares.get(key, 0.0))
        colour, text = _style(group, key, place, len(keys))
        ax.barh([y for y, _, _ in places], widths, left=lefts, height=0.82, color=colour, label=text)
    ax.set_title(PANELS[group], fontsize=10)
    ax.set_xlim(0, 100)
    ax.set_ylim(places[-1][0] - 0.7, 0.7)
    ax.grid(visible=False)
    ax.tick_params(labelleft=ax.get_subplotspec().is_first_col(), labelsize=8.5, length=0)  # type: ignore[union-attr]
    ax.set_xlabel("% of frames" if group == "path" else "% of decided frames", fontsize=9)
    columns = 1 if group == "path" else 2
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=columns, fontsize=8, handlelength=1.0)


def _keys(anatomy: Anatomy, group: str) -> list[str]:
    """Values of one group that occur, in their order."""
    every = [condition.shares.get(group, {}) for row in anatomy.rows for condition in row.conditions.values()]
    known = list(dict.fromkeys(key for shares in every for key in shares))
    ordered = list(_PATHS) if group == "path" else known
    return [key for key in ordered if any(shares.get(key, 0.0) > 0 for shares in every)]


def _style(group: str, key: str, place: int, count: int) -> tuple[Any, str]:
    if group == "path":
        return svg.PATH_COLOURS[key], svg.PATH_LABELS[key]
    if group == "branch":
        return svg.BRANCH_COLOURS[place % len(svg.BRANCH_COLOURS)], key
    return ramp(place, count), key
