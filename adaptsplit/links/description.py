"""Statistics and pictures of recordings and link traces, for people: ``adaptsplit links describe FILE...``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit.links.picture import plot as plot
from adaptsplit.links.readers import read_recordings
from adaptsplit.links.recording import Recording
from adaptsplit.links.trace import BOUNDS, Array, LinkTrace, binned_mean, longest_run

BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 32
BIN_S = 1.0
_HEADER = (
    *("name", "family", "s", "dt ms", "mean", "p5", "p50", "p95", "zero %", "outage s", "rtt ms", "p95 ms"),
    *("loss %", "signal dBm", "sinr dB", "alt m", "filled %", "shape"),
)
_LEFT = {"name", "family", "shape"}
_SHAPED_BY = ("capacity_bps", "rtt_s", "signal_dbm", "sinr_db", "altitude_m", "loss")


def describe(paths: Sequence[Path | str], reader: str | None = None) -> dict[str, Any]:
    """Return the statistics of every recording of the files, ready for JSON.

    Each entry of ``links`` has ``file``, ``name``, ``family``, ``dt_s``, ``samples``, ``duration_s``, ``columns``,
    ``filled`` (samples that repeat an earlier one), ``provenance``, ``shaped_by`` and ``sparkline``, and what
    ``statistics`` gives. ``digest`` is that of the link trace it makes with the default round trip, null where it
    makes none. LinkError as ``read_recordings`` raises it.
    """
    recordings = [(str(path), recording) for path in paths for recording in read_recordings(path, reader)]
    return {"schema": "adaptsplit.links/1", "links": [{"file": file, **_row(item)} for file, item in recordings]}


def describe_traces(traces: Sequence[LinkTrace]) -> dict[str, Any]:
    """Return the statistics of link traces that are built already, in the form of ``describe`` without files."""
    return {"schema": "adaptsplit.links/1", "links": [_row(trace) for trace in traces]}


def statistics(item: Recording | LinkTrace) -> dict[str, float | None]:
    """Return figures of each column, in SI units; None where the column is absent or wholly unknown.

    Capacity: mean over all samples, quantiles and zero share over bins of 1 s, the longest run of samples at zero (s).
    Round trip and signal, SINR, altitude: quantiles over the known samples. Loss: mean.
    """
    columns = columns_of(item)
    figures: dict[str, float | None] = dict.fromkeys(
        ("mean_bps", "p5_bps", "p50_bps", "p95_bps", "zero_fraction", "longest_outage_s")
    )
    if "capacity_bps" in columns:
        figures |= _capacity(columns["capacity_bps"], item.dt_s)
    for column, name in (("rtt_s", "rtt_{}_s"), ("signal_dbm", "signal_{}_dbm"), ("sinr_db", "sinr_{}_db")):
        figures |= _quantiles(columns.get(column), name)
    figures |= _quantiles(columns.get("altitude_m"), "altitude_{}_m")
    figures["loss_mean"] = float(columns["loss"].mean()) if "loss" in columns else None
    return figures


def _capacity(capacity: Array, dt_s: float) -> dict[str, float | None]:
    _, binned = binned_mean(capacity, dt_s, BIN_S)
    p5, p50, p95 = (float(x) for x in np.quantile(binned, (0.05, 0.5, 0.95)))
    return {
        "mean_bps": float(capacity.mean()),
        "p5_bps": p5,
        "p50_bps": p50,
        "p95_bps": p95,
        "zero_fraction": float((binned == 0).mean()),
        "longest_outage_s": longest_run(capacity == 0) * dt_s,
    }


def _quantiles(values: Array | None, name: str) -> dict[str, float | None]:
    known = None if values is None else values[~np.isnan(values)]
    return {
        name.format(f"p{percent}"): None if known is None or not known.size else float(np.percentile(known, percent))
        for percent in (5, 50, 95)
    }


def columns_of(item: Recording | LinkTrace) -> Mapping[str, Array]:
    """Return the columns that a recording or a trace has, in the order of ``BOUNDS``."""
    if isinstance(item, Recording):
        return item.columns
    found = {name: getattr(item, name) for name in BOUNDS}
    return {name: values for name, values in found.items() if values is not None}


def rows(description: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return header and cells of a description as text; capacity in Mbit/s over 1 s bins, medians of the others.

    A column that no entry has is left out.
    """
    table = [_cells(link) for link in description["links"]]
    used = [k for k, name in enumerate(_HEADER) if name in _LEFT or any(row[k] for row in table)]
    return [tuple(row[k] for k in used) for row in (_HEADER, *table)]


def format_description(description: dict[str, Any]) -> str:
    """Return a description as a plain table; see ``rows``."""
    table = rows(description)
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    left = [name in _LEFT for name in table[0]]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in table
    )


def made_by(description: dict[str, Any]) -> str:
    """Return how the first entry of each family was made, where more than one step made it; "" where none was."""
    first: dict[str, dict[str, Any]] = {}
    for link in description["links"]:
        first.setdefault(link["family"], link)
    several = [link for link in first.values() if len(link["provenance"]) > 1]
    return "\n".join(f"{link['name']}: {step}" for link in several for step in link["provenance"])


def sparkline(item: Recording | LinkTrace, width: int = SPARK_WIDTH) -> str:
    """Return a column's mean over ``width`` equal parts as bars.

    The column is the capacity, or else the first there is of round trip, signal, SINR, altitude and loss. The tallest
    bar is the greatest mean. Bars of capacity, round trip and loss begin at zero (a space), others at the least mean;
    a part without any known sample is a space too.
    """
    name = _shaped_by(item)
    values = columns_of(item)[name]
    edges = np.linspace(0, values.size, min(width, values.size) + 1).astype(int)
    means = np.array([_known_mean(values[a:b]) for a, b in pairwise(edges)])
    if np.isnan(means).all():
        return " " * means.size
    low = 0.0 if name in ("capacity_bps", "rtt_s", "loss") else float(np.nanmin(means))
    span = float(np.nanmax(means)) - low
    return "".join(_bar(mean, low, span, empty=low == 0.0) for mean in means.tolist())


def _bar(mean: float, low: float, span: float, *, empty: bool) -> str:
    if np.isnan(mean) or (empty and mean == 0):
        return " "
    return BARS[min(int((mean - low) / span * len(BARS)), len(BARS) - 1)] if span > 0 else BARS[-1]


def _known_mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _shaped_by(item: Recording | LinkTrace) -> str:
    columns = columns_of(item)
    return next(name for name in _SHAPED_BY if name in columns)


def _row(item: Recording | LinkTrace) -> dict[str, Any]:
    return {
        "name": item.name,
        "family": item.family,
        "dt_s": item.dt_s,
        "samples": len(item),
        "duration_s": item.duration_s,
        "columns": list(columns_of(item)),
        **statistics(item),
        "filled": item.filled if isinstance(item, Recording) else 0,
        "digest": _digest(item),
        "provenance": list(item.provenance),
        "shaped_by": _shaped_by(item),
        "sparkline": sparkline(item),
    }


def _digest(item: Recording | LinkTrace) -> str | None:
    if isinstance(item, LinkTrace):
        return item.digest()
    capacity = item.columns.get("capacity_bps")
    return item.trace().digest() if capacity is not None and capacity.any() else None


def _cells(link: dict[str, Any]) -> tuple[str, ...]:
    shape = link["sparkline"] if link["shaped_by"] == "capacity_bps" else f"{link['sparkline']} ({link['shaped_by']})"
    return (
        link["name"],
        link["family"],
        f"{link['duration_s']:.0f}",
        f"{1000 * link['dt_s']:.0f}",
        *(_cell(link[key], 1e-6, 2) for key in ("mean_bps", "p5_bps", "p50_bps", "p95_bps")),
        _cell(link["zero_fraction"], 100, 1),
        _cell(link["longest_outage_s"], 1, 1),
        _cell(link["rtt_p50_s"], 1000, 0),
        _cell(link["rtt_p95_s"], 1000, 0),
        _cell(link["loss_mean"], 100, 1),
        _cell(link["signal_p50_dbm"], 1, 0),
        _cell(link["sinr_p50_db"], 1, 0),
        _cell(link["altitude_p50_m"], 1, 0),
        f"{100 * link['filled'] / link['samples']:.1f}" if link["filled"] else "",
        shape,
    )


def _cell(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"
