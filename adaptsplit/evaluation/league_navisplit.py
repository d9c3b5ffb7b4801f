"""NaviSplit's headline on our data: bytes saved at no loss of quality.

Against the cheapest static decision whose quality is within 0.2 points of the best static quality, NaviSplit (2024)
reports 95 % less data at 0.3 points more accuracy, on its own drone data. A point is 0.01 of quality.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adaptsplit.evaluation import league_document as doc
from adaptsplit.evaluation import statistics as stats
from adaptsplit.evaluation.analysis import estimate
from adaptsplit.evaluation.league_episodes import Episodes
from adaptsplit.evaluation.league_rank import Contest, summarise
from adaptsplit.evaluation.statistics import Interval, Resamples

Floats = NDArray[np.float64]

SCENARIO = "eurosat-uplinks"
TOLERANCE = 0.002
SAVED = 0.95
GROUPS = ("learned", "published", "bandit", "rule", "oracle")


def reference(episodes: Episodes, tolerance: float = TOLERANCE) -> tuple[str, str]:
    """Return (static decision of the best quality, cheapest in bytes within ``tolerance`` of that quality)."""
    statics = episodes.of_kind("static")
    quality = np.array([episodes.of(name, "quality").mean() for name in statics])
    cost = np.array([episodes.of(name, "bytes").mean() for name in statics])
    cost = np.where(quality >= quality.max() - tolerance - 1e-9, cost, np.inf)
    return statics[int(quality.argmax())], statics[int(cost.argmin())]


def bytes_saved(mine: Floats, theirs: Floats, resamples: Resamples) -> Interval | None:
    """Return 1 - mean bytes / mean bytes of the reference; None where that one sends nothing."""
    whole = stats.draws_of(theirs, resamples)
    if not (theirs.mean() > 0 and (whole > 0).all()):
        return None
    return summarise(1.0 - float(mine.mean() / theirs.mean()), 1.0 - stats.draws_of(mine, resamples) / whole)


def compare(contest: Contest, bounds: Sequence[doc.NaviBound] = (), tolerance: float = TOLERANCE) -> doc.NaviSplit:
    """Compare everybody with the reference: learned agents first, then the others by bytes saved, oracles last."""
    best, cheapest = reference(contest.episodes, tolerance)
    rows = [_row(contest, player, cheapest) for player in contest.groups if contest.group(player) in GROUPS]
    return doc.NaviSplit(
        scenario=contest.name,
        best_quality=best,
        reference=cheapest,
        tolerance=tolerance,
        reference_bytes=float(contest.episodes.of(cheapest, "bytes").mean()),
        reference_quality=float(contest.episodes.of(cheapest, "quality").mean()),
        rows=tuple(sorted(rows, key=_order)),
        bounds=tuple(bounds),
    )


def _row(contest: Contest, player: str, cheapest: str) -> doc.NaviRow:
    mine = {name: contest.values(player, name) for name in ("bytes", "quality")}
    theirs = {name: contest.episodes.of(cheapest, name) for name in ("bytes", "quality")}
    saved = bytes_saved(mine["bytes"], theirs["bytes"], contest.resamples)
    quality = stats.paired(mine["quality"], theirs["quality"], contest.resamples)
    return doc.NaviRow(
        controller=player,
        group=contest.group(player),
        bytes=float(mine["bytes"].mean()),
        quality=float(mine["quality"].mean()),
        bytes_saved=None if saved is None else estimate(saved),
        quality_difference=estimate(quality),
        reached=saved is not None and saved.value >= SAVED and quality.value >= 0.0,
    )


def _order(row: doc.NaviRow) -> tuple[int, float]:
    place = {"learned": 0, "oracle": 2}.get(row.group, 1)
    return place, -((row.bytes_saved.value or 0.0) if row.bytes_saved is not None else 0.0)


def sentence(found: doc.NaviSplit, groups: Sequence[str] = ("learned", "oracle")) -> str:
    """Return the finding in plain words."""
    base = (
        f"On {found.scenario} the cheapest static decision within {100 * found.tolerance:g} points of the best static "
        f"quality is {found.reference.removeprefix('static:')} ({found.reference_bytes:.0f} bytes per frame, quality "
        f"{found.reference_quality:.3f})."
    )
    parts = []
    for row in found.rows:
        if row.group in groups and row.bytes_saved is not None and row.bytes_saved.value is not None:
            points = 100 * (row.quality_difference.value or 0.0)
            parts.append(f"{row.controller} sends {_less(row.bytes_saved.value)} at {points:+.2f} points")
    told = [base, *([f"{'; '.join(parts)}."] if parts else [])]
    return " ".join([*told, *_limits(found)])


def _less(saved: float) -> str:
    return f"{100 * saved:.0f} % less" if saved >= 0 else f"{1 - saved:.1f} times as much"


def _limits(found: doc.NaviSplit) -> list[str]:
    """What is possible at all: the oracles that pay for bytes alone."""
    known = [(each.oracle, each.bytes_saved.value or 0.0) for each in found.bounds if each.bytes_saved is not None]
    if not known:
        return []
    parts = [f"{name} sends {_less(saved)} at that quality" for name, saved in known]
    possible = "so it is possible here" if max(saved for _, saved in known) >= SAVED else "so nobody can do it here"
    return [f"An oracle that pays for bytes alone: {', '.join(parts)}. The headline asks for 95 %, {possible}."]
