"""Statistics and pictures of link traces, for people: ``adaptsplit links describe FILE...``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit.errors import ConfigError, MissingExtraError, RunError
from adaptsplit.links.readers import read_links
from adaptsplit.links.trace import LinkTrace

BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 32
_HEADER = ("name", "family", "s", "mean", "p5", "p50", "p95", "zero %", "outage s", "rtt ms", "loss %", "capacity")


def describe(paths: Sequence[Path | str], reader: str | None = None) -> dict[str, Any]:
    """Return the statistics of every trace of the files, ready for JSON; LinkError as ``read_links`` raises it."""
    traces = [(str(path), trace) for path in paths for trace in read_links(path, reader)]
    return {"schema": "adaptsplit.links/1", "links": [{"file": file, **_row(trace)} for file, trace in traces]}


def rows(description: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return header and cells of a description as text; capacity in Mbit/s over 1 s bins."""
    return [_HEADER, *(_cells(link) for link in description["links"])]


def format_description(description: dict[str, Any]) -> str:
    """Return a description as a plain table; capacity in Mbit/s over 1 s bins."""
    table = rows(description)
    widths = [max(len(row[k]) for row in table) for k in range(len(_HEADER))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k in (0, 1, len(_HEADER) - 1) else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def sparkline(trace: LinkTrace, width: int = SPARK_WIDTH) -> str:
    """Return mean capacity over ``width`` equal parts as bars, the tallest at the greatest; a space is no capacity."""
    width = min(width, len(trace))
    edges = np.linspace(0, len(trace), width + 1).astype(int)
    means = [float(trace.capacity_bps[a:b].mean()) for a, b in pairwise(edges)]
    top = max(means)
    return "".join(" " if mean == 0 else BARS[min(int(mean / top * len(BARS)), len(BARS) - 1)] for mean in means)


def plot(traces: Sequence[LinkTrace], path: Path | str) -> Path:
    """Draw capacity over time, one panel per trace, as SVG or PNG; needs the extra ``report``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: no trace, more than 40, or another file ending.
        RunError: the picture cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".svg", ".png"):
        raise ConfigError(f"{path}: ending {path.suffix!r}, expected .svg or .png")
    if not 1 <= len(traces) <= 40:
        raise ConfigError(f"{len(traces)} traces to plot, expected 1 to 40; choose some of them")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    figure = Figure(figsize=(9, 0.6 + 1.3 * len(traces)), layout="constrained")
    panels = figure.subplots(len(traces), 1, squeeze=False)[:, 0]
    for axes, trace in zip(panels, traces, strict=True):
        per_bin = min(max(1, round(0.2 / trace.dt_s)), len(trace))
        mean = trace.capacity_bps[: len(trace) // per_bin * per_bin].reshape(-1, per_bin).mean(axis=1) / 1e6
        axes.fill_between(np.arange(mean.size) * per_bin * trace.dt_s, mean, step="post", linewidth=0, alpha=0.75)
        axes.set(ylabel="Mbit/s", xlim=(0, trace.duration_s), ylim=(0, None))
        axes.set_title(f"{trace.name} ({trace.family})", loc="left", fontsize="small")
    panels[-1].set_xlabel("time, s")
    try:
        figure.savefig(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    return path


def _row(trace: LinkTrace) -> dict[str, Any]:
    return {
        "name": trace.name,
        "family": trace.family,
        "dt_s": trace.dt_s,
        "samples": len(trace),
        **trace.statistics().as_dict(),
        "digest": trace.digest(),
        "provenance": list(trace.provenance),
        "sparkline": sparkline(trace),
    }


def _cells(link: dict[str, Any]) -> tuple[str, ...]:
    capacities = [f"{link[key] / 1e6:.2f}" for key in ("mean_bps", "p5_bps", "p50_bps", "p95_bps")]
    return (
        link["name"],
        link["family"],
        f"{link['duration_s']:.0f}",
        *capacities,
        f"{100 * link['zero_fraction']:.1f}",
        f"{link['longest_outage_s']:.1f}",
        f"{1000 * link['rtt_p50_s']:.0f}",
        f"{100 * link['loss_mean']:.1f}",
        link["sparkline"],
    )
