"""A picture of recordings and link traces: one panel per column, as SVG or PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptsplit.errors import ConfigError, MissingExtraError, RunError
from adaptsplit.links.recording import Recording
from adaptsplit.links.trace import Array, LinkTrace, binned_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 60
POINTS = 1500  # a panel is some 800 pixels wide: more points would only hide each other
MIN_BIN_S = 0.2
LOG_SPREAD = 20.0  # greatest over median, from which a round trip is drawn on a logarithmic scale
# column -> (label, factor)
_PANELS = {
    "capacity_bps": ("Mbit/s", 1e-6),
    "rtt_s": ("RTT, ms", 1e3),
    "loss": ("loss, %", 1e2),
    "signal_dbm": ("signal, dBm", 1.0),
    "sinr_db": ("SINR, dB", 1.0),
    "altitude_m": ("altitude, m", 1.0),
}


def plot(items: Sequence[Recording | LinkTrace], path: Path | str) -> Path:
    """Draw recordings or traces over time, one panel per column of each, as SVG or PNG; needs the extra ``report``.

    A recording shows each column it has. A trace shows its capacity, its round trip and loss where they vary, and
    what the device reports where it does. Capacity is a filled area of means over at least 0.2 s. The other columns
    show their means as a line, with the range from least to greatest as a band.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: nothing to draw, more than 60 panels, or another file ending.
        RunError: the picture cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".svg", ".png"):
        raise ConfigError(f"{path}: ending {path.suffix!r}, expected .svg or .png")
    panels = [(item, name, values) for item in items for name, values in _drawn(item).items()]
    if not 1 <= len(panels) <= MAX_PANELS:
        raise ConfigError(
            f"{len(items)} links with {len(panels)} panels to plot, expected 1 to {MAX_PANELS}; choose some"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    figure = Figure(figsize=(9, 0.6 + 1.35 * len(panels)), layout="constrained")
    axes_of = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    titled = None
    for axes, (item, name, values) in zip(axes_of, panels, strict=True):
        _draw(axes, name, values, item.dt_s)
        if item is not titled:
            axes.set_title(f"{item.name} ({item.family})", loc="left", fontsize="small")
            titled = item
    for axes, (item, *_), below in zip(axes_of, panels, [*panels[1:], None], strict=True):
        if below is None or below[0] is not item:
            axes.set_xlabel("time, s", fontsize="small")
        else:
            axes.tick_params(labelbottom=False)
    figure.align_ylabels()
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    try:
        figure.savefig(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    return path


def _drawn(item: Recording | LinkTrace) -> dict[str, Array]:
    """The columns to draw, by name."""
    if isinstance(item, Recording):
        return dict(item.columns)
    drawn: dict[str, Array] = {"capacity_bps": item.capacity_bps}
    drawn |= {name: values for name in ("rtt_s", "loss") if np.ptp(values := getattr(item, name)) > 0}
    reported = ((name, getattr(item, name)) for name in ("signal_dbm", "sinr_db", "altitude_m"))
    return drawn | {name: values for name, values in reported if values is not None}


def _draw(axes: Axes, name: str, values: Array, dt_s: float) -> None:
    label, factor = _PANELS[name]
    duration = values.size * dt_s
    scaled = values * factor
    if name == "capacity_bps":
        per_bin, mean = binned_mean(scaled, dt_s, max(MIN_BIN_S, duration / POINTS))
        axes.fill_between(_time(mean, per_bin * dt_s), _closed(mean), step="post", linewidth=0, alpha=0.75)
        axes.set_ylim(0, None)
    else:
        _draw_band(axes, scaled, dt_s, duration)
        if name == "rtt_s" and float(scaled.max()) > LOG_SPREAD * float(np.median(scaled)) > 0:
            axes.set_yscale("log")
    axes.set_ylabel(label, fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.set_xlim(0, duration)


def _draw_band(axes: Axes, values: Array, dt_s: float, duration: float) -> None:
    """Mean of each bin as a line, least to greatest as a band; unknown samples leave a gap."""
    per_bin = max(1, round(duration / POINTS / dt_s))
    padded = np.append(values, np.full(-values.size % per_bin, np.nan)).reshape(-1, per_bin)
    known = ~np.isnan(padded)
    count = known.sum(axis=1)
    total = np.where(known, padded, 0.0).sum(axis=1)
    mean = np.divide(total, count, out=np.full(count.size, np.nan), where=count > 0)
    low = np.where(count > 0, np.where(known, padded, np.inf).min(axis=1), np.nan)
    high = np.where(count > 0, np.where(known, padded, -np.inf).max(axis=1), np.nan)
    time = _time(mean, per_bin * dt_s)
    axes.fill_between(time, _closed(low), _closed(high), step="post", linewidth=0, alpha=0.25)
    axes.step(time, _closed(mean), where="post", linewidth=0.8)


def _time(bins: Array, bin_s: float) -> Array:
    """Edges of the bins, s: one more than bins, so that the last one is drawn to its end."""
    edges: Array = bin_s * np.arange(bins.size + 1, dtype=np.float64)
    return edges


def _closed(values: Array) -> Array:
    return np.append(values, values[-1])
