"""Compare a fresh measurement with a stored profile, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import ProfileError
from adaptsplit.profiles.arrays import AnyArray
from adaptsplit.profiles.profile import Profile

MIN_AGREEMENT = 0.99
MAX_BYTES_DIFFERENCE = 0.01


@dataclass(frozen=True, slots=True)
class Difference:
    """One compared quantity. ``limit`` None: only reported (times depend on the host). ``ok`` is the verdict."""

    name: str
    value: float
    limit: float | None
    ok: bool
    meaning: str

    def __str__(self) -> str:
        verdict = "" if self.limit is None else f" (limit {self.limit:g}): {'ok' if self.ok else 'DIFFERS'}"
        return f"{self.name}: {self.value:.4f}{verdict} - {self.meaning}"


def compare(shipped: Profile, fresh: Profile) -> list[Difference]:
    """Compare the frames of ``fresh`` with the same frames (by index) of ``shipped``.

    Checked: image hashes are equal; predictions of exits and tails agree on >= 99 % of cells at every branch and rate;
    mean bytes differ by <= 1 % at every branch and rate. Times are ratios fresh / shipped, reported only.
    ProfileError when the two have other branches, or ``fresh`` has frames that ``shipped`` lacks.
    """
    if shipped.branches != fresh.branches or shipped.classes != fresh.classes:
        raise ProfileError("the two profiles have different branches or classes; measure with the same decision space")
    rows = _matching_rows(shipped, fresh)
    same = (shipped.image_hash[rows] == fresh.image_hash).all(axis=1).mean()
    exits = (shipped.exit_prediction[rows] == fresh.exit_prediction).mean(axis=(0, 2)).min()
    tails = (shipped.tail_prediction[rows] == fresh.tail_prediction).mean(axis=(0, 3)).min()
    old = shipped.payload_bytes[rows].mean(axis=0)
    size = (np.abs(fresh.payload_bytes.mean(axis=0) - old) / np.maximum(old, 1)).max()
    return [
        _at_least("image hashes", same, 1.0, "share of frames with the same pixels"),
        _at_least("exit agreement", exits, MIN_AGREEMENT, "share of cells with the same answer, worst branch"),
        _at_least("tail agreement", tails, MIN_AGREEMENT, "share of cells with the same answer, worst branch and rate"),
        Difference(
            "bytes",
            float(size),
            MAX_BYTES_DIFFERENCE,
            bool(size <= MAX_BYTES_DIFFERENCE),
            "relative, worst mean payload",
        ),
        *_time_ratios(shipped, fresh),
    ]


def _at_least(name: str, value: float, limit: float, meaning: str) -> Difference:
    return Difference(name, float(value), limit, bool(value >= limit), meaning)


def _matching_rows(shipped: Profile, fresh: Profile) -> NDArray[np.intp]:
    order = np.argsort(shipped.index, kind="stable")
    places = np.searchsorted(shipped.index, fresh.index, sorter=order)
    rows = order[np.minimum(places, len(shipped) - 1)]
    if np.any(shipped.index[rows] != fresh.index):
        missing = int(fresh.index[shipped.index[rows] != fresh.index][0])
        raise ProfileError(f"frame {missing} was measured anew, but the shipped profile does not have it")
    return rows


def _time_ratios(shipped: Profile, fresh: Profile) -> list[Difference]:
    found = []
    for name in ("head_s", "encode_s", "tail_s", "signal_s"):
        ratio = _median_ratio(shipped.arrays()[name], fresh.arrays()[name])
        found.append(Difference(f"{name} ratio", ratio, None, True, "median time here / on the shipped profile's host"))
    return found


def _median_ratio(old: AnyArray, new: AnyArray) -> float:
    """Median over branches and rates of the ratio of median times; stages that do not exist (0 s) are left out."""
    before, after = np.median(old, axis=-1).ravel(), np.median(new, axis=-1).ravel()
    exists = (before > 0) & (after > 0)
    return float(np.median(after[exists] / before[exists])) if exists.any() else 1.0
