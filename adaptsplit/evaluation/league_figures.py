"""The league's figures: ranks, duels, heat map, profiles, scenarios, ablations.

Each function returns one inline SVG, and with ``png`` writes the same picture there for the documentation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptsplit.evaluation import report_svg as svg
from adaptsplit.evaluation.league_document import Ablation, Duel, Group, League, ScenarioEntry, Standing
from adaptsplit.evaluation.league_rank import BEST_STATIC, INFORMED, INFORMED_0, TRAIN_STATIC
from adaptsplit.evaluation.league_text import removed_text
from adaptsplit.evaluation.results import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: dict[Group, str] = {
    "static": svg.GREY,
    "random": "#4d4d4d",
    "rule": svg.ORANGE,
    "published": svg.PURPLE,
    "bandit": svg.GREEN,
    "learned": svg.VERMILION,
    "oracle": svg.BLUE,
}
DARK, PALE = "#14171c", "#fdfdfb"  # text on cells whose colour is the same in every mode of the page
CLIP = 1.0
PNG_DPI = 110
SHORT = {BEST_STATIC: "best static", TRAIN_STATIC: "static from train", INFORMED_0: "informed(0)", INFORMED: "informed"}


def finish(drawn: Figure, title: str, png: Path | None) -> str:
    """Return the inline SVG; write the picture to ``png`` where one is named."""
    if png is not None:
        png.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(png, dpi=PNG_DPI, facecolor="white")
    return svg.to_svg(drawn, title)


def short(name: str) -> str:
    """Return how a controller is called in figures."""
    return SHORT.get(name, name)


def ranks(league: League, png: Path | None = None) -> str:
    """Mean rank and pooled gap closed of everybody, side by side, with 95 % intervals; oracles are not ranked."""
    rows = [row for row in league.table() if row.group != "oracle"][::-1]
    with svg.figure(10.5, 1.3 + 0.27 * max(4, len(rows)), 1, 2) as (drawn, axes):
        left, right = axes[0]
        for y, row in enumerate(rows):
            _interval(left, row.rank, y, COLOURS[row.group])
            _interval(right, row.gap_0, y, COLOURS[row.group], 100.0, floor=-200.0)
        left.set_yticks(range(len(rows)), [short(row.controller) for row in rows])
        right.set_yticks(range(len(rows)), [""] * len(rows))
        left.set_xlabel("mean rank over scenarios (1 is best)")
        right.set_xlabel("pooled gap closed to informed(0) (%)")
        right.axvline(0, color=svg.INK, linewidth=1)
        right.axvline(100, color=svg.BLUE, linewidth=1, linestyle=(0, (3, 2)))
        right.set_xlim(-205, 115)
        for ax in (left, right):
            ax.set_ylim(-0.7, len(rows) - 0.3)
            ax.grid(axis="y", visible=False)
        _legend(drawn, left, rows)
        return finish(drawn, "mean ranks and pooled gap closed", png)


def _legend(drawn: Figure, ax: Axes, rows: Sequence[Standing]) -> None:
    for group in dict.fromkeys(row.group for row in rows[::-1]):
        ax.plot([], [], "o", color=COLOURS[group], label=group)
    drawn.legend(loc="outside upper center", ncols=6, fontsize=9, handletextpad=0.2)


def _interval(
    ax: Axes,
    value: Estimate | None,
    y: float,
    colour: str,
    scale: float = 1.0,
    floor: float = -math.inf,
    size: float = 6,
) -> None:
    if value is None or value.value is None:
        return
    low, middle, high = (max(floor, scale * (v if v is not None else value.value)) for v in _three(value))
    ax.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    ax.plot([middle], [y], "o", color=colour, markersize=size)


def _three(value: Estimate) -> tuple[float | None, float | None, float | None]:
    return value.low, value.value, value.high


def duels(league: League, png: Path | None = None) -> str:
    """The learned agent of each scenario less the best static decision and the best published controller.

    Empty string without learned agents.
    """
    names = [entry.name for entry in _ordered(league) if any(duel.scenario == entry.name for duel in league.duels)][
        ::-1
    ]
    if not names:
        return ""
    with svg.figure(7.6, 1.3 + 0.42 * len(names)) as (drawn, axes):
        ax = axes[0, 0]
        ax.axvline(0, color=svg.INK, linewidth=1)
        for y, name in enumerate(names):
            for duel in league.duels:
                if duel.scenario == name:
                    _duel(ax, duel, y)
        paying = {entry.name for entry in league.scenarios if entry.pays}
        ax.set_yticks(range(len(names)), [name if name in paying else f"({name})" for name in names])
        ax.set_ylim(-0.7, len(names) - 0.3)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("learned agent less rival, reward per frame; in brackets: adapting does not pay")
        ax.plot([], [], "o", color=svg.GREY, label="rival: best static in hindsight")
        ax.plot([], [], "o", color=svg.PURPLE, label="rival: best published in hindsight")
        ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, fontsize=9.5)
        return finish(drawn, "the learned agent against the best static and published", png)


def _duel(ax: Axes, duel: Duel, y: float) -> None:
    colour = svg.GREY if duel.rival_kind == "static" else svg.PURPLE
    shift = 0.15 if duel.rival_kind == "static" else -0.15
    _interval(ax, duel.difference, y + shift, colour)


def _ordered(league: League) -> list[ScenarioEntry]:
    """Scenarios in which adapting pays first, each part by the size of the gap."""
    return sorted(league.scenarios, key=lambda e: (not e.pays, -((e.gap_0.value or 0.0) if e.gap_0 else 0.0)))


def heat_map(league: League, png: Path | None = None) -> str:
    """Normalised score of everybody on every scenario with a gap; others are grey."""
    rows = [row.controller for row in league.standings["all"]]
    order = {row.controller: i for i, row in enumerate(league.table())}
    rows.sort(key=lambda name: order.get(name, len(order)))
    entries = _ordered(league)
    values = np.array([[_cell(entry, name) for entry in entries] for name in rows])
    with svg.figure(max(9.0, 2.6 + 0.56 * len(entries)), 1.9 + 0.26 * len(rows)) as (drawn, axes):
        ax = axes[0, 0]
        ax.pcolormesh(np.clip(values, -CLIP, CLIP), cmap=_diverging(), vmin=-CLIP, vmax=CLIP, edgecolors=svg.PAPER)
        for y, x in np.ndindex(values.shape):
            if math.isfinite(values[y, x]):
                strong = values[y, x] > 0.7 or values[y, x] < -0.7
                text = f"{100 * values[y, x]:.0f}" if values[y, x] > -9.995 else "<-999"
                colour = PALE if strong else DARK
                ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7, color=colour)
        ax.set_xticks(np.arange(len(entries)) + 0.5, [e.name if e.pays else f"({e.name})" for e in entries])
        ax.set_yticks(np.arange(len(rows)) + 0.5, [short(name) for name in rows])
        ax.tick_params(axis="x", rotation=50, labelsize=8.5, length=0)
        ax.tick_params(axis="y", labelsize=9, length=0)
        for label in ax.get_xticklabels():
            label.set_ha("right")
            label.set_rotation_mode("anchor")
        ax.invert_yaxis()
        ax.grid(visible=False)
        ax.set_facecolor("#c9ccd2")
        return finish(drawn, "normalised score of every controller on every scenario", png)


def _cell(entry: ScenarioEntry, name: str) -> float:
    cell = entry.cells.get(name)
    if cell is None or cell.score is None or cell.score.value is None:
        return math.nan
    return cell.score.value


def _diverging() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("worse-better", [svg.VERMILION, "#f7f7f4", svg.BLUE])


def profiles(league: League, png: Path | None = None) -> str:
    """Share of scenario-episodes with at least each normalised score; empty string where no gap is defined."""
    curves = league.profiles.curves
    if not curves:
        return ""
    with svg.figure(8.2, 4.8) as (drawn, axes):
        ax = axes[0, 0]
        seen: dict[Group, int] = {}
        dashes: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.5, 1.4)), (0, (6, 1.5, 1.5, 1.5)))
        for curve in curves:
            dash = dashes[seen.get(curve.group, 0) % len(dashes)]
            seen[curve.group] = seen.get(curve.group, 0) + 1
            colour = COLOURS[curve.group]
            ax.plot(league.profiles.tau, curve.share, color=colour, linestyle=dash, label=short(curve.controller))
            if curve.group in ("learned", "oracle"):
                ax.fill_between(league.profiles.tau, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
        for place in (0.0, 1.0):
            ax.axvline(place, color=svg.MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        ax.set_xlim(league.profiles.tau[0], league.profiles.tau[-1])
        ax.set_ylim(0, 1)
        ax.set_xlabel("normalised score of an episode: 0 = best static in hindsight, 1 = informed(0) in the mean")
        ax.set_ylabel("share of episodes at or above")
        ax.legend(loc="upper right", fontsize=9, handlelength=2.4)
        return finish(drawn, "performance profiles", png)


def scenarios(league: League, png: Path | None = None, columns: int = 4) -> str:
    """Small multiples: on each scenario, the difference to the best static decision of those that matter."""
    entries = _ordered(league)
    count = min(columns, len(entries))
    lines = math.ceil(len(entries) / count)
    with svg.figure(1.2 + 2.7 * count, 0.3 + 2.05 * lines, lines, count) as (drawn, axes):
        for place, ax in enumerate(axes.ravel()):
            if place >= len(entries):
                ax.set_visible(False)
                continue
            _scenario(ax, entries[place], league)
        return finish(drawn, "difference to the best static decision on each scenario", png)


def _scenario(ax: Axes, entry: ScenarioEntry, league: League) -> None:
    groups = {row.controller: row.group for row in league.standings["all"]}
    roles = entry.roles
    named = [TRAIN_STATIC, roles.published, roles.bandit, *league.learned, INFORMED_0, INFORMED]
    names = [name for name in named if name is not None and name in entry.cells][::-1]
    for y, name in enumerate(names):
        _interval(ax, entry.cells[name].difference, y, COLOURS[groups[name]], floor=_floor(entry), size=4.5)
    ax.axvline(0, color=svg.INK, linewidth=0.9)
    ax.set_yticks(range(len(names)), [short(name) for name in names], fontsize=7.5)
    ax.tick_params(axis="x", labelsize=7.5)
    ax.locator_params(axis="x", nbins=4)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_title(entry.name if entry.pays else f"({entry.name})", fontsize=9)


def _floor(entry: ScenarioEntry) -> float:
    """How far below zero a difference is drawn: twice what the informed oracle gains, so that gains stay readable."""
    gain = 0.0 if entry.gap_inf is None else (entry.gap_inf.high or 0.0)
    return -max(2.0 * gain, 0.004)


def ablations(league: League, png: Path | None = None) -> str:
    """Reward lost by each ablation, one panel per scenario; empty string without any."""
    parts = league.ablations
    if not parts:
        return ""
    height = 1.0 + 0.3 * max(len(part.rows) for part in parts)
    with svg.figure(1.4 + 3.4 * len(parts), height, 1, len(parts)) as (drawn, axes):
        for ax, part in zip(axes[0], parts, strict=True):
            _ablation(ax, part)
        return finish(drawn, "reward lost by each ablation", png)


def _ablation(ax: Axes, part: Ablation) -> None:
    rows = part.rows[::-1]
    for y, row in enumerate(rows):
        _interval(ax, row.loss, y, svg.SKY if row.kind == "group" else svg.PURPLE)
    ax.set_yticks(range(len(rows)), [removed_text(row) for row in rows], fontsize=9)
    ax.axvline(0, color=svg.INK, linewidth=1)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=4)
    ax.set_title(f"{part.scenario} ({part.agent})", fontsize=10)
    ax.set_xlabel("reward lost per frame")
