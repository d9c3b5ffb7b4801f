"""Figures as inline SVG that follow the page's colours: helpers over matplotlib, which is imported when first needed.

Colours of text and lines are written as CSS variables of the page, so one picture serves light, dark and print; data
colours are those of Okabe and Ito (2008), which people with any colour vision can tell apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adaptsplit.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1b1e24", "#5b6270", "#d7dbe2", "#fdfdfb"

ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GREY = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#e6d736",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
    "#8d939e",
)
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    PAPER: "var(--card)",
    BLUE: "var(--blue)",
}
BRANCH_COLOURS = (SKY, BLUE, GREEN, PURPLE, ORANGE, GREY, YELLOW, VERMILION)
KIND_COLOURS = {"static": GREY, "rule": ORANGE, "bandit": GREEN, "learned": VERMILION, "oracle": BLUE}
KIND_MARKERS = {"static": "DdP", "rule": "os8ph", "bandit": "^v<>", "learned": "*PXH", "oracle": "oDsp"}
PATH_COLOURS: Mapping[str, str] = {
    "remote": BLUE,
    "exit": GREEN,
    "local": PURPLE,
    "fallback_passed": YELLOW,
    "fallback_late": ORANGE,
    "miss": VERMILION,
    "stale": "#4d4d4d",
}
PATH_LABELS: Mapping[str, str] = {
    "remote": "edge, in time",
    "exit": "exit, confident",
    "local": "full model on device",
    "fallback_passed": "exit, passed over by the sender",
    "fallback_late": "exit, edge too late",
    "miss": "no answer",
    "stale": "earlier answer, skipped",
}

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "adaptsplit",
}


@contextmanager
def figure(
    width: float, height: float, rows: int = 1, columns: int = 1, *, ratios: Sequence[float] | None = None
) -> Iterator[tuple[Figure, Any]]:
    """Yield (figure, array of axes) in the report's style; sizes in inches. MissingExtraError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(drawn)
        axes = drawn.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": ratios} if ratios else {})
        yield drawn, axes


def to_svg(drawn: Figure, title: str) -> str:
    """Return an inline ``<svg>`` element: no header, no metadata, no address of any kind, colours as variables."""
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\sxmlns(:xlink)?=\"[^\"]*\"", "", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", rf'\1 role="img" aria-label="{title}"', text, count=1)
    text = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"\n\s*", "\n", text)


def legend_below(axes: Axes, columns: int = 3) -> None:
    """Put the legend under the axes, in columns; nothing where no line has a label."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=columns, fontsize=9.5, handlelength=1.6)


def marker_of(kind: str, order: int) -> str:
    """Return the marker of the ``order``-th controller of a kind."""
    shapes = KIND_MARKERS[kind]
    return shapes[order % len(shapes)]


def styles(kinds: Sequence[str]) -> list[tuple[str, str, Any]]:
    """Return (colour, marker, dash pattern) for controllers listed by kind; those of one kind differ by the latter."""
    seen: dict[str, int] = {}
    dashes: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.5, 1.4)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))
    result = []
    for kind in kinds:
        order = seen.get(kind, 0)
        seen[kind] = order + 1
        result.append((KIND_COLOURS[kind], marker_of(kind, order), dashes[order % len(dashes)]))
    return result
