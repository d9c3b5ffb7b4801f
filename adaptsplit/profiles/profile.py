"""The profile: a table of measured outcomes of a real split model under real codecs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import SKIP, BranchSpec, DecisionSpace
from adaptsplit.errors import ConfigError, ProfileError
from adaptsplit.profiles.arrays import NAMES, SPECS, AnyArray, check_arrays
from adaptsplit.profiles.card import Measured, ModelRef
from adaptsplit.profiles.summary import ProfileSummary, summarise

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured outcomes of one split: N frames x B branches x R rates; stage times as Q = 32 quantiles (seconds).

    The arrays, their types and ranges stand in ``adaptsplit.profiles.arrays.SPECS``; ProfileError names a violation.
    ``offload`` carries its fallback's exit answer and head time. ``local`` carries the full model's answer as exit and
    tail, its time as ``head_s``, no bytes. A branch with fewer than R rates repeats its last one. Times are those of
    the measuring host; ``host_macs_per_s`` scales them to a device preset (``adaptsplit.devices.scale_factor``).
    Quality, agreement and summaries are derived by the methods, never stored.
    """

    split: str
    branches: tuple[BranchSpec, ...]
    classes: tuple[str, ...]
    model: ModelRef
    measured: Measured
    index: NDArray[np.int32]
    segment: NDArray[np.int32]
    labels: NDArray[np.int16]
    sharpness: Floats
    difference: Floats
    image_hash: NDArray[np.uint8]
    exit_prediction: NDArray[np.uint8]
    exit_confidence: Floats
    tail_prediction: NDArray[np.uint8]
    tail_confidence: Floats
    payload_bytes: NDArray[np.int32]
    head_s: Floats
    encode_s: Floats
    tail_s: Floats
    signal_s: Floats

    def __post_init__(self) -> None:
        try:
            space = self.space()
        except ConfigError as error:
            raise ProfileError(f"branches: {error}") from error
        check_arrays(self.arrays(), *space.shape[:2], len(self.classes))
        for array in self.arrays().values():
            array.flags.writeable = False

    def __len__(self) -> int:
        """Number of frames N."""
        return len(self.labels)

    def arrays(self) -> dict[str, AnyArray]:
        """Every array by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in NAMES}

    def space(self, thresholds: Sequence[float] | None = None) -> DecisionSpace:
        """The decision space over this profile's branches and ``thresholds`` (default: the library's)."""
        return DecisionSpace(self.branches) if thresholds is None else DecisionSpace(self.branches, tuple(thresholds))

    @property
    def host_macs_per_s(self) -> float:
        """Effective MAC rate of the measuring host on this very model."""
        return self.measured.host.macs_per_s

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Runs of consecutive frames of one flight as (first row, number of rows)."""
        breaks = (np.diff(self.segment) != 0) | (np.diff(self.index) != 1)
        starts = [0, *(int(i) + 1 for i in np.flatnonzero(breaks))]
        return [(a, b - a) for a, b in zip(starts, [*starts[1:], len(self)], strict=True)]

    def exit_quality(self) -> Floats:
        """(N, B) fraction of labelled cells that the exit gets right; NaN for a frame without labels."""
        return _fraction(self.exit_prediction == self.labels[:, None], self.labels[:, None] >= 0)

    def tail_quality(self) -> Floats:
        """(N, B, R) fraction of labelled cells that the tail gets right; NaN for a frame without labels."""
        labels = self.labels[:, None, None]
        return _fraction(self.tail_prediction == labels, labels >= 0)

    def agreement(self) -> Floats:
        """(N, B, R) fraction of cells on which exit and tail agree."""
        same = self.exit_prediction[:, :, None] == self.tail_prediction
        agreement: Floats = same.mean(axis=-1, dtype=np.float32)
        return agreement

    def select(self, names: Sequence[str]) -> Profile:
        """The profile of some branches only, in the order of ``names``; R shrinks to what they need.

        ProfileError for an unknown name, or an ``offload`` without its fallback's branch.
        """
        known = [branch.name for branch in self.branches]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ProfileError(f"no branch {unknown[:1] or names}; this profile has {', '.join(known)}")
        rows = [known.index(name) for name in names]
        branches = tuple(self.branches[b] for b in rows)
        rates = max(1, *(len(branch.codecs) for branch in branches))
        arrays = {spec.name: _select(spec.dims, self.arrays()[spec.name], rows, rates) for spec in SPECS}
        return Profile(self.split, branches, self.classes, self.model, self.measured, **arrays)

    def summary(self) -> ProfileSummary:
        """What rule controllers need (``ProfileSummary``); measured on this split, so take policy-train's."""
        tail, exits = self.tail_quality(), self.exit_quality()
        if np.isnan(exits).all():
            tail, exits = self.tail_confidence, self.exit_confidence
        times = {
            name: np.median(self.arrays()[name], axis=-1).astype(np.float64)
            for name in ("head_s", "encode_s", "tail_s", "signal_s")
        }
        names = tuple(branch.name for branch in self.branches)
        return summarise(names, exits, tail, self.exit_confidence, self.payload_bytes, times, self.retention())

    def retention(self) -> float:
        """Share of cells whose best remote answer is the same one frame later (1 when no frame follows another)."""
        answers, follows = self._best_answers(), self._follows()
        return float((answers[1:] == answers[:-1])[follows[1:]].mean()) if follows.any() else 1.0

    def with_skip(self) -> Profile:
        """The profile with one more branch, ``skip``: the best remote answer of the frame before, at no cost.

        It stands for an answer that is one frame old, for summaries and rules; the simulator replays the answer that is
        really held. The first frame of a segment has its own answer.
        """
        before = np.where(self._follows(), np.arange(len(self)) - 1, np.arange(len(self)))
        b, r = self._best()
        answer, confidence = self.tail_prediction[before, b, r], self.tail_confidence[before, b, r] * self.retention()
        arrays = dict(self.arrays())
        filled = {"exit_prediction": answer, "exit_confidence": confidence}
        filled |= {"tail_prediction": answer[:, None], "tail_confidence": confidence[:, None]}
        for spec in SPECS:
            if "B" in spec.dims:
                arrays[spec.name] = _appended(arrays[spec.name], spec.dims.index("B"), filled.get(spec.name))
        branches = (*self.branches, BranchSpec(SKIP, "skip"))
        return Profile(self.split, branches, self.classes, self.model, self.measured, **arrays)

    def _best(self) -> tuple[int, int]:
        """Branch and rate of the remote answers with the highest mean confidence."""
        confidence = self.tail_confidence.mean(axis=0, dtype=np.float64)
        b, r = np.unravel_index(int(confidence.argmax()), confidence.shape)
        return int(b), int(r)

    def _best_answers(self) -> AnyArray:
        b, r = self._best()
        return self.tail_prediction[:, b, r]

    def _follows(self) -> NDArray[np.bool_]:
        """(N,) whether the row before holds the frame before."""
        first = [start for start, _ in self.segments]
        follows = np.ones(len(self), dtype=np.bool_)
        follows[first] = False
        return follows

    def describe(self) -> str:
        """A text table for people: branch x rate with bytes, quality and stage times."""
        from adaptsplit.profiles.describe import describe

        return describe(self)

    def save(self, folder: Path | str) -> Path:
        """Write ``profile-{split}.npz`` and add the split to ``profile.json``; returns the npz file's path."""
        from adaptsplit.profiles.storage import save

        return save(self, Path(folder))

    @staticmethod
    def load(folder: Path | str, split: str) -> Profile:
        """Read and verify one split of a PROFILE folder; ProfileError says file, array, fault and cure."""
        from adaptsplit.profiles.storage import load

        return load(Path(folder), split)


def _appended(array: AnyArray, axis: int, values: AnyArray | None) -> AnyArray:
    """One more entry along ``axis``: ``values`` (broadcast), or zeros."""
    shape = list(array.shape)
    shape[axis] = 1
    more = np.zeros(shape, dtype=array.dtype)
    if values is not None:
        more[...] = np.expand_dims(values, axis)
    return np.concatenate([array, more], axis=axis)


def _select(dims: tuple[str, ...], array: AnyArray, rows: list[int], rates: int) -> AnyArray:
    if "B" in dims:
        array = np.take(array, rows, axis=dims.index("B"))
    if "R" in dims:
        array = np.take(array, range(rates), axis=dims.index("R"))
    return array


def _fraction(right: NDArray[np.bool_], counted: NDArray[np.bool_]) -> Floats:
    """Mean of ``right`` over the counted cells of the last axis; NaN where none is counted."""
    counts = counted.sum(axis=-1, dtype=np.float32)
    hits = (right & counted).sum(axis=-1, dtype=np.float32)
    return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan).astype(np.float32)
