"""The arrays of a profile: name, type, shape, range. Validation, storage and documentation read this one table.

Letters: N frames, B branches, R rates, K classes, Q quantile levels; 16 cells per frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import ProfileError

CELLS = 16
QUANTILES = 32
LEVELS = (np.arange(QUANTILES) + 0.5) / QUANTILES
"""Probabilities of the stored stage-time quantiles: 1/64, 3/64, ..., 63/64."""
MAX_FRAMES = 200_000
MAX_STAGE_S = 600.0

AnyArray = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array: ``dims`` in the letters of this module, inclusive bounds (``"K"`` = the largest class index)."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    low: float
    high: float | str
    meaning: str


SPECS = (
    ArraySpec("index", "int32", ("N",), 0, 2**31 - 1, "frame index in the source"),
    ArraySpec("segment", "int32", ("N",), 0, 2**31 - 1, "flight that the frame belongs to"),
    ArraySpec("labels", "int16", ("N", "16"), -1, "K", "class of each cell, -1 = unlabelled"),
    ArraySpec("sharpness", "float32", ("N",), 0, 1, "content signal of the frame"),
    ArraySpec("difference", "float32", ("N",), 0, 1, "content signal against the frame before"),
    ArraySpec("image_hash", "uint8", ("N", "8"), 0, 255, "first 8 bytes of the pixels' SHA-256"),
    ArraySpec("exit_prediction", "uint8", ("N", "B", "16"), 0, "K", "exit's class of each cell"),
    ArraySpec("exit_confidence", "float32", ("N", "B"), 0, 1, "exit's confidence, mean over cells"),
    ArraySpec("tail_prediction", "uint8", ("N", "B", "R", "16"), 0, "K", "tail's class of each cell"),
    ArraySpec("tail_confidence", "float32", ("N", "B", "R"), 0, 1, "tail's confidence, mean over cells"),
    ArraySpec("payload_bytes", "int32", ("N", "B", "R"), 0, 2**24, "container's length"),
    ArraySpec("head_s", "float32", ("B", "Q"), 0, MAX_STAGE_S, "head and exit (local: the full model), seconds"),
    ArraySpec("encode_s", "float32", ("B", "R", "Q"), 0, MAX_STAGE_S, "codec's encoder, seconds"),
    ArraySpec("tail_s", "float32", ("B", "R", "Q"), 0, MAX_STAGE_S, "codec's decoder, model decoder and tail, seconds"),
    ArraySpec("signal_s", "float32", ("Q",), 0, MAX_STAGE_S, "both content signals, seconds"),
)
NAMES = tuple(spec.name for spec in SPECS)
QUANTILE_ARRAYS = ("head_s", "encode_s", "tail_s", "signal_s")


def check_arrays(arrays: dict[str, AnyArray], branches: int, rates: int, classes: int) -> None:
    """Check types, shapes, finiteness and ranges; ProfileError names array, value met and expectation."""
    frames = len(arrays["labels"]) if arrays["labels"].ndim else 0
    if not 0 < frames <= MAX_FRAMES:
        raise ProfileError(f"array 'labels' has {frames} frames; expected 1 to {MAX_FRAMES}")
    sizes = {"N": frames, "B": branches, "R": rates, "Q": QUANTILES}
    for spec in SPECS:
        _check_array(spec, arrays[spec.name], sizes, classes)
    for name in QUANTILE_ARRAYS:
        if np.any(np.diff(arrays[name], axis=-1) < 0):
            raise ProfileError(f"array {name!r}: quantiles must ascend")


def _check_array(spec: ArraySpec, array: AnyArray, sizes: dict[str, int], classes: int) -> None:
    shape = tuple(sizes.get(dim) or int(dim) for dim in spec.dims)
    if array.shape != shape or array.dtype != np.dtype(spec.dtype):
        dims = ", ".join(spec.dims)
        raise ProfileError(
            f"array {spec.name!r} is {array.dtype} {array.shape}; expected {spec.dtype} {shape} = ({dims})"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ProfileError(f"array {spec.name!r} contains NaN or infinity; expected finite numbers")
    high = classes - 1 if isinstance(spec.high, str) else spec.high
    if array.min() < spec.low or array.max() > high:
        found = f"{array.min()} to {array.max()}"
        raise ProfileError(f"array {spec.name!r} ranges from {found}; expected {spec.low:g} to {high:g}")
