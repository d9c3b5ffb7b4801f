"""What rules and bundles keep of a profile: a few means, small enough for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import ProfileError

LEVELS = 41
MAX_NUMBERS = 100_000

Array = NDArray[np.float64]

_DIMS = {
    "exit_quality": "B",
    "tail_quality": "BR",
    "payload_bytes": "BR",
    "head_s": "B",
    "encode_s": "BR",
    "tail_s": "BR",
    "signal_s": "",
    "levels": "L",
    "exit_ratio": "BL",
    "exit_quality_above": "BL",
    "exit_quality_below": "BL",
    "tail_quality_below": "BRL",
    "confidence_mean": "B",
    "retention": "",
}


@dataclass(frozen=True, slots=True)
class ProfileSummary:
    """Means over one split (policy-train). Times are medians on the measuring host, seconds, not scaled to a device.

    Missing rates repeat the branch's last one; ``local`` has the full model's quality and no bytes. At confidence level
    ``levels[l]``, ``exit_ratio`` is the share of frames whose exit confidence reaches it, ``exit_quality_above`` their
    mean exit quality, ``exit_quality_below`` and ``tail_quality_below`` the mean qualities of the others (the overall
    mean where there is none). ``retention`` is the share of cells whose answer is the same one frame later: what an
    answer that is used again keeps of its confidence per frame.
    """

    branches: tuple[str, ...]
    exit_quality: Array
    tail_quality: Array
    payload_bytes: Array
    head_s: Array
    encode_s: Array
    tail_s: Array
    signal_s: float
    levels: Array
    exit_ratio: Array
    exit_quality_above: Array
    exit_quality_below: Array
    tail_quality_below: Array
    confidence_mean: Array
    retention: float

    def __post_init__(self) -> None:
        tail = np.shape(self.tail_quality)
        sizes = {"B": len(self.branches), "R": tail[1] if len(tail) == 2 else 0, "L": np.size(self.levels)}
        for name, dims in _DIMS.items():
            value, shape = np.asarray(getattr(self, name)), tuple(sizes[dim] for dim in dims)
            if value.shape != shape or value.dtype.kind != "f" or not np.isfinite(value).all():
                raise ProfileError(f"profile summary: {name!r} is {value.dtype} {value.shape}; expected finite {shape}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form (numbers rounded to 6 significant digits); ``from_dict`` reads it."""
        return {"branches": list(self.branches), **{name: _rounded(getattr(self, name)) for name in _DIMS}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ProfileSummary:
        """Inverse of ``to_dict``; ProfileError for any other form."""
        wanted = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != wanted:
            found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise ProfileError(f"profile summary: found {found}; expected the keys {sorted(wanted)}")
        arrays = {name: _array(name, value[name]) for name in _DIMS}
        signal_s, retention = (float(arrays.pop(name).reshape(-1)[0]) for name in ("signal_s", "retention"))
        return cls(branches=_names(value["branches"]), signal_s=signal_s, retention=retention, **arrays)


def summarise(
    branches: tuple[str, ...],
    exit_quality: NDArray[Any],
    tail_quality: NDArray[Any],
    confidence: NDArray[Any],
    payload_bytes: NDArray[Any],
    times: Mapping[str, NDArray[np.float64]],
    retention: float,
) -> ProfileSummary:
    """Summarise (N, B) exit qualities and confidences, (N, B, R) tail qualities and bytes, and median stage times."""
    levels = np.linspace(0.0, 1.0, LEVELS)
    reached = confidence[:, :, None].astype(np.float64) >= levels - 1e-9
    return ProfileSummary(
        branches=branches,
        exit_quality=np.nanmean(exit_quality, axis=0, dtype=np.float64),
        tail_quality=np.nanmean(tail_quality, axis=0, dtype=np.float64),
        payload_bytes=payload_bytes.mean(axis=0, dtype=np.float64),
        head_s=times["head_s"],
        encode_s=times["encode_s"],
        tail_s=times["tail_s"],
        signal_s=float(times["signal_s"]),
        levels=levels,
        exit_ratio=reached.mean(axis=0),
        exit_quality_above=_mean_where(exit_quality, reached),
        exit_quality_below=_mean_where(exit_quality, ~reached),
        tail_quality_below=_mean_where(tail_quality, ~reached),
        confidence_mean=confidence.mean(axis=0, dtype=np.float64),
        retention=retention,
    )


def _mean_where(quality: NDArray[Any], chosen: NDArray[np.bool_]) -> Array:
    """Mean of (N, B[, R]) quality over the chosen (N, B, L) frames -> (B[, R], L); the overall mean where none is."""
    values, valid = np.nan_to_num(quality.astype(np.float64)), np.isfinite(quality)
    mask = chosen.astype(np.float64)
    form = "nb,nbl->bl" if quality.ndim == 2 else "nbr,nbl->brl"
    total, count = np.einsum(form, values, mask), np.einsum(form, valid.astype(np.float64), mask)
    overall = np.asarray(np.nanmean(quality, axis=0, dtype=np.float64))[..., None]
    return np.where(count > 0, total / np.maximum(count, 1), overall)


def _rounded(value: Array | float) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return [_rounded(item) for item in value.tolist()] if value.ndim < 2 else [_rounded(item) for item in value]


def _array(name: str, value: object) -> Array:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ProfileError(f"profile summary: {name!r} is not an array of numbers ({error})") from error
    if array.size > MAX_NUMBERS:
        raise ProfileError(f"profile summary: {name!r} has {array.size} numbers; at most {MAX_NUMBERS}")
    if array.size == 0 or (not _DIMS[name] and array.ndim):
        raise ProfileError(f"profile summary: {name!r} has shape {array.shape}; expected {_DIMS[name] or 'a number'}")
    return array


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ProfileError("profile summary: 'branches' is not a list of names")
    return tuple(value)
