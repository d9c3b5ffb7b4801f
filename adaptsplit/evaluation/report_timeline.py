"""The timeline of one episode: link, decisions as coloured bands, answers against the deadline, quality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.evaluation import report_svg as svg
from adaptsplit.evaluation.report_figures import ramp
from adaptsplit.evaluation.results import ResultsDocument
from adaptsplit.evaluation.timeline import Timeline
from adaptsplit.outcome import Outcomes, Path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATIOS = (1.5, 1.15, 1.5, 1.15)
BANDS = ("answered by", "threshold", "rate", "branch")


def draw_timeline(timeline: Timeline, document: ResultsDocument) -> str:
    """Return the picture as inline SVG; the first controller of ``timeline.outcomes`` is the one in bands."""
    with svg.figure(10.5, 8.2, 4, 1, ratios=RATIOS) as (drawn, axes):
        capacity, bands, latency, quality = axes[:, 0]
        name, outcomes = next(iter(timeline.outcomes.items()))
        end = document.frames_per_episode / document.fps
        draw_capacity(capacity, timeline)
        _bands(bands, outcomes, document, name)
        _latency(latency, outcomes, document, name)
        _quality(quality, timeline, document)
        for ax in axes[:, 0]:
            ax.set_xlim(0, end)
        for ax in (capacity, bands, latency):
            ax.tick_params(labelbottom=False)
        quality.set_xlabel("time in the episode (s)")
        return svg.to_svg(drawn, f"timeline of one episode of {name}")


def draw_capacity(ax: Axes, timeline: Timeline) -> None:
    """Draw the link's capacity (Mbit/s) during the episode."""
    rate = timeline.capacity_bps / 1e6
    ax.fill_between(timeline.time_s, rate, step="post", color=svg.SKY, alpha=0.35, linewidth=0)
    ax.step(timeline.time_s, rate, where="post", color=svg.BLUE, linewidth=1)
    ax.set_ylim(0, max(0.1, float(np.quantile(rate, 0.995)) * 1.15))
    ax.set_ylabel("Mbit/s")
    ax.set_title(f"Uplink capacity: {timeline.recording}", fontsize=10.5)


def _bands(ax: Axes, outcomes: Outcomes, document: ResultsDocument, name: str) -> None:
    """Four rows of colour, one cell per frame."""
    times = outcomes["arrived_s"]
    step = 1.0 / document.fps
    rows = [_path_colours(outcomes), *(_knob_colours(outcomes, document, knob) for knob in BANDS[1:])]
    for y, colours in enumerate(rows):
        ax.imshow(
            colours[None], extent=(times[0], times[-1] + step, y + 0.08, y + 0.92), aspect="auto", interpolation="none"
        )
    ax.set_ylim(0, len(BANDS))
    ax.set_yticks(np.arange(len(BANDS)) + 0.5, BANDS)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.set_title(f"Decisions of {name}", fontsize=10.5)
    _band_legend(ax, document, outcomes)


def _band_legend(ax: Axes, document: ResultsDocument, outcomes: Outcomes) -> None:
    from matplotlib.patches import Patch

    used = set(np.unique(outcomes["branch"]).tolist())
    branches = [
        Patch(color=svg.BRANCH_COLOURS[i % len(svg.BRANCH_COLOURS)], label=branch["name"])
        for i, branch in enumerate(document.space["branches"])
        if i in used
    ]
    met = {Path(int(code)).name.lower() for code in np.unique(outcomes["path"])}
    paths = [Patch(color=svg.PATH_COLOURS[p], label=svg.PATH_LABELS[p]) for p in svg.PATH_COLOURS if p in met]
    style: dict[str, Any] = {"fontsize": 9, "handlelength": 1.0, "alignment": "left", "borderaxespad": 0}
    first = ax.legend(handles=branches, loc="upper left", bbox_to_anchor=(1.01, 1.3), title="branch", **style)
    ax.add_artist(first)
    ax.legend(handles=paths, loc="upper left", bbox_to_anchor=(1.01, 0.3), title="answered by", **style)


def _path_colours(outcomes: Outcomes) -> NDArray[np.float64]:
    table = {int(Path[name.upper()]): _rgb(colour) for name, colour in svg.PATH_COLOURS.items()}
    return np.array([table[int(code)] for code in outcomes["path"]])


def _knob_colours(outcomes: Outcomes, document: ResultsDocument, knob: str) -> NDArray[np.float64]:
    """(F, 4) colours; a dropped frame, and a knob that had no effect on a frame, is left transparent."""
    none = (0.0, 0.0, 0.0, 0.0)
    if knob == "branch":
        colours = [_rgb(colour) for colour in svg.BRANCH_COLOURS]
        return np.array([none if b < 0 else colours[b % len(colours)] for b in outcomes["branch"]])
    alone = (outcomes["path"] == Path.LOCAL) | (outcomes["path"] == Path.STALE)
    if knob == "rate":
        count = max(len(branch["codecs"]) for branch in document.space["branches"])
        unused = (outcomes["sent_bytes"] == 0) | (outcomes["rate"] < 0)
        cells = zip(outcomes["rate"], unused, strict=True)
        return np.array([none if skip else (*ramp(int(r), count), 1.0) for r, skip in cells])
    rules = np.array([document.space["thresholds"], document.space["patience"]])
    taken = np.nan_to_num(np.array([outcomes["threshold"], outcomes["patience"]]))
    place = np.abs(rules[:, None, :] - taken[:, :, None]).sum(axis=0).argmin(axis=1)
    cells = zip(place, alone | (outcomes["branch"] < 0), strict=True)
    return np.array([none if skip else (*ramp(int(i), rules.shape[1]), 1.0) for i, skip in cells])


def _rgb(colour: str) -> tuple[float, float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue, 1.0


def _latency(ax: Axes, outcomes: Outcomes, document: ResultsDocument, name: str) -> None:
    deadline = document.deadline_ms
    times, latency = outcomes["arrived_s"], 1e3 * outcomes["answer_latency_s"]
    for path, colour in svg.PATH_COLOURS.items():
        rows = outcomes["path"] == Path[path.upper()]
        if path != "miss" and rows.any():
            ax.plot(times[rows], latency[rows], ".", color=colour, markersize=4.5)
    missed = outcomes["path"] == Path.MISS
    ax.plot(times[missed], np.full(int(missed.sum()), 1.08 * deadline), "x", color=svg.VERMILION, markersize=6)
    ax.axhline(deadline, color=svg.INK, linewidth=1, linestyle=(0, (2, 2)))
    ax.set_ylim(0, 1.16 * deadline)
    ax.set_ylabel("ms")
    ax.set_title(f"Answer latency of {name}, by who answered; the dashed line is the deadline", fontsize=10.5)


def _quality(ax: Axes, timeline: Timeline, document: ResultsDocument) -> None:
    width = max(1, round(document.fps))
    colours = (svg.VERMILION, svg.MUTED, svg.BLUE, svg.GREEN)
    for order, (name, outcomes) in enumerate(timeline.outcomes.items()):
        smooth = _running_mean(outcomes["quality"].astype(np.float64), width)
        text = f"best static ({name.removeprefix('static:')})" if name.startswith("static:") else name
        dash = "-" if order == 0 else (0, (4, 1.5))
        ax.plot(outcomes["arrived_s"], smooth, color=colours[order % 4], linewidth=1.6, linestyle=dash, label=text)
    ax.set_ylim(None, 1.02)
    ax.set_ylabel("quality")
    ax.set_title("Quality, mean over the last second", fontsize=10.5)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, borderaxespad=0)


def _running_mean(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    total = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return np.asarray((total[end] - total[start]) / (end - start), dtype=np.float64)
