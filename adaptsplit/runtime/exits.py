"""Early-exit rules on plain numpy: what an exit's answer is worth, and at which exit a frame stops.

Letters: E exits in order of depth, n frames, K classes. A score takes probabilities (..., K) to numbers (...) in
[0, 1]: more is surer. Where a frame has several cells, its score is their mean. A frame stops at the first exit whose
score reaches that exit's threshold; the last exit always answers.

- ``confidence``: the largest probability.
- ``entropy_score``: one minus the entropy over log K. BranchyNet (Teerapittayanon et al., ICPR 2016) stops below an
  entropy T; that is a score of at least 1 - T / log K.
- ``Correctness``: a learned probability of being right, from four statistics of the answer (those of JEI-DNN,
  ICLR 2024).
- ``Cascade``: Zero Time Waste's ensemble (Wolczyk et al., NeurIPS 2021): an exit answers with all exits up to it.
- ``patience_stops``: PABEE (Zhou et al., NeurIPS 2020): stop when enough exits in a row have said the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Score = Callable[[NDArray[np.floating]], Floats]
"""From probabilities (..., K) to scores (...) in [0, 1]."""
TINY = 1e-12
SHARPENED = 2.0
"""Power of the sharpened entropy among the statistics (ours; JEI-DNN takes the entropy of powered probabilities)."""
STATISTICS = ("largest", "entropy", "margin", "sharpened entropy")


def confidence(probabilities: NDArray[np.floating]) -> Floats:
    """Return the largest probability (...) of probabilities (..., K)."""
    score: Floats = probabilities.max(-1).astype(np.float64)
    return score


def entropy_score(probabilities: NDArray[np.floating]) -> Floats:
    """Return 1 - entropy / log K (...) of probabilities (..., K): 1 for certainty, 0 for a flat answer."""
    score = 1.0 - _entropy(probabilities.astype(np.float64)) / np.log(probabilities.shape[-1])
    clipped: Floats = score.clip(0.0, 1.0)
    return clipped


def statistics(probabilities: NDArray[np.floating]) -> Floats:
    """Return the ``STATISTICS`` (..., 4) of probabilities (..., K); entropies are normalised to [0, 1]."""
    p = probabilities.astype(np.float64)
    ordered = np.sort(p, axis=-1)
    sharp = p**SHARPENED
    sharp /= np.maximum(sharp.sum(-1, keepdims=True), TINY)
    top = np.log(p.shape[-1])
    margin = ordered[..., -1] - ordered[..., -2]
    return np.stack([ordered[..., -1], _entropy(p) / top, margin, _entropy(sharp) / top], axis=-1)


@dataclass(frozen=True, slots=True)
class Correctness:
    """A logistic regression on the statistics: the probability that an answer is right.

    ``weights`` has one number per entry of ``STATISTICS``. The mean over a frame's cells is the expected share of
    right ones.
    """

    weights: tuple[float, ...]
    bias: float

    def __call__(self, probabilities: NDArray[np.floating]) -> Floats:
        """Return the score (...) of probabilities (..., K)."""
        logit = statistics(probabilities) @ np.asarray(self.weights) + self.bias
        score: Floats = 1.0 / (1.0 + np.exp(-logit.clip(-50.0, 50.0)))
        return score


@dataclass(frozen=True, slots=True)
class Cascade:
    """Zero Time Waste's ensemble: exit e answers softmax(sum over m <= e of weights[e][m] log p_m + bias[e]).

    ``weights`` holds e + 1 numbers for exit e, ``bias`` (E, K). Equal weights that add up to 1 and no bias are the
    geometric mean (:func:`geometric`).
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[tuple[float, ...], ...]

    def __call__(self, probabilities: NDArray[np.floating]) -> Floats:
        """Return the ensembles' probabilities, of the shape (E, ..., K) of the exits' own."""
        if len(probabilities) != len(self.weights):
            raise ConfigError(f"probabilities of {len(probabilities)} exits; this cascade has {len(self.weights)}")
        logs = np.log(np.maximum(probabilities.astype(np.float64), TINY))
        answers = [
            softmax64(np.tensordot(np.asarray(w), logs[: len(w)], axes=1) + np.asarray(b))
            for w, b in zip(self.weights, self.bias, strict=True)
        ]
        return np.stack(answers)


def geometric(exits: int, classes: int) -> Cascade:
    """Return the cascade of plain geometric means."""
    weights = tuple(tuple(1.0 / (e + 1) for _ in range(e + 1)) for e in range(exits))
    return Cascade(weights, tuple((0.0,) * classes for _ in range(exits)))


def threshold_stops(scores: NDArray[np.floating], thresholds: NDArray[np.floating] | tuple[float, ...]) -> Ints:
    """Return the exit (n,) at which each frame stops, of scores (E, n) and thresholds (E - 1,)."""
    limits = np.asarray(thresholds, np.float64)
    if limits.shape != (len(scores) - 1,):
        raise ConfigError(f"{limits.size} thresholds for {len(scores)} exits; give one for each but the last")
    reached = np.concatenate([scores[:-1] >= limits[:, None], np.ones((1, scores.shape[1]), bool)])
    stops: Ints = reached.argmax(0)
    return stops


def patience_stops(predictions: NDArray[np.integer], patience: int, agreement: float = 1.0) -> Ints:
    """Return the exit (n,) at which each frame stops by patience: predictions (E, n) or (E, n, cells).

    A frame stops when ``patience`` exits in a row said the same as the one before them, on at least the share
    ``agreement`` of its cells; else at the last exit.
    """
    if patience < 1:
        raise ConfigError(f"patience {patience}; expected 1 or more")
    same = (predictions[1:] == predictions[:-1]).reshape(len(predictions) - 1, predictions.shape[1], -1)
    agrees = same.mean(-1) >= agreement
    run = np.zeros(predictions.shape[1], np.int64)
    stops = np.full(predictions.shape[1], len(predictions) - 1, np.int64)
    for exit_index, agree in enumerate(agrees, start=1):
        run = np.where(agree, run + 1, 0)
        stops = np.where((run >= patience) & (stops > exit_index), exit_index, stops)
    return stops


def softmax64(logits: Floats) -> Floats:
    """Return the softmax over the last axis, float64."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    result: Floats = powers / powers.sum(-1, keepdims=True)
    return result


def _entropy(p: Floats) -> Floats:
    result: Floats = -(p * np.log(np.maximum(p, TINY))).sum(-1)
    return result
