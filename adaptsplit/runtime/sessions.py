"""onnxruntime sessions with fixed thread counts, and the two small functions that turn logits into answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from adaptsplit.errors import ModelError
from adaptsplit.runtime.exits import Score

FloatArray = npt.NDArray[np.float32]
SILENT = 3
CONFIDENCE_STEPS = 4096
"""Confidences come in steps of 1/4096, the resolution of a profile: a threshold decides alike live and simulated."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer for one frame: per cell the class (16,) uint8 and probabilities (16, K), and the frame's confidence.

    The confidence is the mean over cells of the largest probability, the expected share of right cells; or of another
    score that the model folder names for its exits.
    """

    prediction: npt.NDArray[np.uint8]
    probabilities: FloatArray
    confidence: float


@dataclass(frozen=True, slots=True)
class HeadResult:
    """What a head gives: features (C, H, W) float32 to be sent, and the exit's answer, as in :class:`Answer`."""

    features: FloatArray
    exit_probabilities: FloatArray
    exit_confidence: float
    prediction: npt.NDArray[np.uint8]


def open_session(path: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return a CPU session for the ONNX file ``path``; ModelError when onnxruntime refuses it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise ModelError(f"{path}: onnxruntime cannot load it ({error}); make the model folder again") from error


def run_session(session: onnxruntime.InferenceSession, inputs: Mapping[str, FloatArray]) -> list[FloatArray]:
    """Run ``session``; ModelError names expected and given shapes when the inputs do not fit."""
    for need in session.get_inputs():
        given = inputs.get(need.name)
        if given is None or not _fits(given.shape, need.shape):
            shape = None if given is None else list(given.shape)
            raise ModelError(f"input {need.name!r} has shape {shape}, the model takes {list(need.shape)}")
    outputs: list[FloatArray] = session.run(None, dict(inputs))
    return outputs


def _fits(given: tuple[int, ...], need: Sequence[int | str | None]) -> bool:
    """Whether a shape is what the model takes; an axis without a number takes any."""
    pairs = zip(given, need, strict=False)
    return len(given) == len(need) and all(isinstance(b, str | None) or a == b for a, b in pairs)


def takes_batches(session: onnxruntime.InferenceSession) -> bool:
    """Whether the first axis of every input is free, so that several frames go through in one call."""
    return all(isinstance(need.shape[0], str | None) for need in session.get_inputs())


def softmax(logits: FloatArray, temperature: float = 1.0) -> FloatArray:
    """Return probabilities (..., K) of ``logits / temperature``."""
    scaled = (logits - logits.max(-1, keepdims=True)) / np.float32(temperature)
    exponentials = np.exp(scaled)
    result: FloatArray = exponentials / exponentials.sum(-1, keepdims=True)
    return result


def to_answer(logits: FloatArray, temperature: float = 1.0, score: Score | None = None) -> Answer:
    """Turn logits (16, K) into an :class:`Answer`, whose confidence is the mean of ``score``, where one is given."""
    probabilities = softmax(logits, temperature)
    cells = probabilities.max(-1) if score is None else score(probabilities)
    return Answer(
        prediction=probabilities.argmax(-1).astype(np.uint8),
        probabilities=probabilities,
        confidence=round(float(cells.mean()) * CONFIDENCE_STEPS) / CONFIDENCE_STEPS,
    )


def to_input(image: npt.NDArray[np.uint8], height: int, width: int) -> FloatArray:
    """Turn an RGB image (height, width, 3) uint8 into a model input (1, 3, height, width) float32 in [0, 1]."""
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise ModelError(
            f"image of shape {image.shape} and type {image.dtype}; the model takes ({height}, {width}, 3) uint8"
        )
    scaled = image.astype(np.float32) * np.float32(1 / 255)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))[None]
