"""One episode of the informed oracle: its decisions as coloured bands under the link's capacity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import MissingExtraError
from adaptsplit.evaluation import report_svg as svg
from adaptsplit.evaluation.report_figures import ramp
from adaptsplit.evaluation.report_timeline import draw_capacity
from adaptsplit.evaluation.timeline import Timeline
from adaptsplit.outcome import Outcomes
from adaptsplit.outcome import Path as Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour = tuple[float, float, float]
WHITE: Colour = (1.0, 1.0, 1.0)
STALE = "#4d4d4d"
COLOURS: Mapping[str, str] = {"stale": STALE, **svg.PATH_COLOURS}
LABELS: Mapping[str, str] = {"stale": "earlier answer, skipped", **svg.PATH_LABELS}
BANDS = ("answered by", "rate", "branch")


def write_timeline(timeline: Timeline, space: DecisionSpace, fps: float, path: Path) -> Path | None:
    """Write the picture (PNG or SVG by the ending) and return ``path``; None where matplotlib is not installed."""
    outcomes = next(iter(timeline.outcomes.values()))
    try:
        with svg.figure(9.0, 4.2, 2, 1, ratios=(1.2, 1.0)) as (drawn, axes):
            draw_capacity(axes[0, 0], timeline)
            _bands(axes[1, 0], outcomes, space, fps)
            for ax in axes[:, 0]:
                ax.set_xlim(0, len(outcomes) / fps)
            axes[0, 0].tick_params(labelbottom=False)
            axes[1, 0].set_xlabel("time in the episode (s)")
            drawn.savefig(path, dpi=110, facecolor="white")
    except MissingExtraError:
        return None
    return path


def _bands(ax: Axes, outcomes: Outcomes, space: DecisionSpace, fps: float) -> None:
    end = len(outcomes) / fps
    rows = (_answer_colours(outcomes), _rate_colours(outcomes, space), _branch_colours(outcomes))
    for y, colours in enumerate(rows):
        ax.imshow(colours[None], extent=(0, end, y + 0.08, y + 0.92), aspect="auto", interpolation="none")
    ax.set_ylim(0, len(BANDS))
    ax.set_yticks(np.arange(len(BANDS)) + 0.5, BANDS)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.set_title("Decisions of informed(inf); the rate is paler for stronger compression", fontsize=10.5)
    _legends(ax, outcomes, space)


def _legends(ax: Axes, outcomes: Outcomes, space: DecisionSpace) -> None:
    from matplotlib.patches import Patch

    used = sorted({int(branch) for branch in outcomes["branch"]} - {-1})
    branches = [Patch(color=_branch(i), label=space.branches[i].name) for i in used]
    met = {Answer(int(code)).name.lower() for code in np.unique(outcomes["path"])}
    answers = [Patch(color=COLOURS[name], label=LABELS[name]) for name in COLOURS if name in met]
    style: dict[str, Any] = {"fontsize": 9, "handlelength": 1.0, "alignment": "left", "borderaxespad": 0}
    first = ax.legend(handles=branches, loc="upper left", bbox_to_anchor=(1.01, 2.3), title="branch", **style)
    ax.add_artist(first)
    ax.legend(handles=answers, loc="upper left", bbox_to_anchor=(1.01, 1.0), title="answered by", **style)


def _branch(index: int) -> str:
    return svg.BRANCH_COLOURS[index % len(svg.BRANCH_COLOURS)]


def _rgb(colour: str) -> Colour:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _branch_colours(outcomes: Outcomes) -> NDArray[np.float64]:
    """(F, 3) colours; a dropped frame is white."""
    return np.array([WHITE if b < 0 else _rgb(_branch(int(b))) for b in outcomes["branch"]])


def _rate_colours(outcomes: Outcomes, space: DecisionSpace) -> NDArray[np.float64]:
    """(F, 3) colours; white where nothing was sent."""
    count = space.shape[1]
    sent = outcomes["sent_bytes"] > 0
    return np.array([ramp(int(r), count) if s else WHITE for r, s in zip(outcomes["rate"], sent, strict=True)])


def _answer_colours(outcomes: Outcomes) -> NDArray[np.float64]:
    return np.array([_rgb(COLOURS[Answer(int(code)).name.lower()]) for code in outcomes["path"]])
