"""A profile as a text table."""

from __future__ import annotations

import numpy as np

from adaptsplit.profiles.profile import Profile

_HEADER = (
    "branch",
    "rate",
    "codec",
    "bytes p50",
    "p95",
    "quality",
    "exit",
    "head ms",
    "p95",
    "encode ms",
    "tail ms",
    "p95",
)


def describe(profile: Profile) -> str:
    """Return provenance lines and one row per branch and rate; times are those of the measuring host."""
    host = profile.measured.host
    lines = [
        f"profile of {profile.model.name!r} on {profile.measured.frames} ({profile.split}): {len(profile)} frames, "
        f"{len(profile.classes)} classes, model {profile.model.digest[:12]}",
        f"host {host.cpu}: {host.macs_per_s / 1e9:.2f} GMAC/s, {profile.measured.date or 'no date'}; "
        f"signals {1e3 * _p50(profile.signal_s):.2f} ms",
    ]
    return "\n".join([*lines, "", *_table([_HEADER, *_rows(profile)])])


def _rows(profile: Profile) -> list[tuple[str, ...]]:
    exits, tails = _means(profile)
    rows = []
    for b, branch in enumerate(profile.branches):
        for r, codec in enumerate(branch.codecs or ("-",)):
            sizes = np.quantile(profile.payload_bytes[:, b, r], (0.5, 0.95))
            head, tail = profile.head_s[b], profile.tail_s[b, r]
            times = (_p50(head), _p95(head), _p50(profile.encode_s[b, r]), _p50(tail), _p95(tail))
            means = (f"{sizes[0]:.0f}", f"{sizes[1]:.0f}", f"{tails[b, r]:.4f}", f"{exits[b]:.4f}")
            rows.append((branch.name, str(r), codec, *means, *(f"{1e3 * time:.2f}" for time in times)))
    return rows


def _means(profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Mean exit (B,) and tail (B, R) quality; NaN without labels."""
    exits, tails = profile.exit_quality(), profile.tail_quality()
    labelled = ~np.isnan(exits[:, 0])
    if not labelled.any():
        return np.full(exits.shape[1], np.nan), np.full(tails.shape[1:], np.nan)
    return exits[labelled].mean(axis=0, dtype=np.float64), tails[labelled].mean(axis=0, dtype=np.float64)


def _p50(quantiles: np.ndarray) -> float:
    return float(np.median(quantiles))


def _p95(quantiles: np.ndarray) -> float:
    return float(np.quantile(quantiles, 0.95))


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if k in (0, 2) else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
