"""Per-frame outcomes drawn so that the published aggregates hold on every profile, whatever its seed.

One latent *difficulty* per frame orders everything: of two codecs or cuts without exits, the one with the better
published quality is right wherever the other is. Counts are rounded to the nearest frame: shares hold within 1 / (2 N).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit.profiles.published.modelling import ExitModel
from adaptsplit.profiles.published.table import Exit
from adaptsplit.runtime.sessions import CONFIDENCE_STEPS

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

PERCEPTION_NOISE = 0.25
"""Assumed: standard deviation, in ranks / N, between a frame's difficulty and what a confidence shows of it."""


@dataclass(frozen=True, slots=True)
class Latent:
    """(N,) per frame: rank of difficulty (0 = easiest), rank of how easy it looks (0 = hardest), and noise."""

    difficulty: Ints
    apparent: Ints
    luck: Floats


def draw_latent(frames: int, rng: np.random.Generator) -> Latent:
    """Draw the latent variables of ``frames`` frames."""
    difficulty = rng.permutation(frames)
    looks = -difficulty / frames + PERCEPTION_NOISE * rng.standard_normal(frames)
    return Latent(difficulty, np.argsort(np.argsort(looks)), rng.logistic(size=frames))


def count_of(share: float, total: int) -> int:
    """Number of ``total`` frames nearest to ``share`` of them."""
    return int(np.floor(share * total + 0.5))


def right_everywhere(latent: Latent, quality: float) -> Bools:
    """(N,) right on the easiest ``quality`` * N frames."""
    return np.asarray(latent.difficulty < count_of(quality, len(latent.difficulty)))


def confidence_curve(latent: Latent, mean: float, floor: float) -> Floats:
    """(N,) confidence from ``floor`` to 1 that grows with how easy a frame looks and has the mean ``mean``.

    floor + (1 - floor) v^k with k chosen so that the integral over v is ``mean``; below ``floor`` it is constant.
    """
    steps = (latent.apparent + 0.5) / len(latent.apparent)
    return in_steps(_power(steps, floor, 1.0, mean))


@dataclass(frozen=True, slots=True)
class ExitDraw:
    """(N,) what an exit and the tail behind it do: confidence, whether the exit is right, whether it leaves."""

    confidence: Floats
    right: Bools
    leaves: Bools


def draw_exit(latent: Latent, rule: Exit, model: ExitModel, floor: float) -> ExitDraw:
    """Draw an exit: ``share`` of the frames (those that look easiest) reach its confidence level.

    On both sides of the level the mean confidence is the accuracy, so that the exit is calibrated.
    """
    frames = len(latent.apparent)
    leaving = count_of(rule.share, frames)
    order = np.argsort(latent.apparent)
    stay, leave = order[: frames - leaving], order[frames - leaving :]
    confidence = np.zeros(frames)
    step = 1.0 / CONFIDENCE_STEPS
    level = np.ceil(rule.confidence * CONFIDENCE_STEPS) * step
    confidence[leave] = np.maximum(in_steps(_power(_ranks(leave), rule.confidence, 1.0, model.above)), level)
    below = in_steps(_power(_ranks(stay), min(floor, model.below), rule.confidence, model.below))
    confidence[stay] = np.minimum(below, np.ceil(rule.confidence * CONFIDENCE_STEPS - 1.0) * step)
    right = np.zeros(frames, dtype=np.bool_)
    for group, accuracy in ((leave, model.above), (stay, model.below)):
        right[_likeliest(group, confidence, latent, count_of(accuracy, len(group)))] = True
    leaves = np.zeros(frames, dtype=np.bool_)
    leaves[leave] = True
    return ExitDraw(confidence, right, leaves)


def tail_behind(latent: Latent, drawn: ExitDraw, rule: Exit, quality: float) -> Bools:
    """(N,) whether the tail behind an exit is right: ``quality`` over all frames and ``overall`` with the exit.

    Within each group frames that the exit got right come first, then the easier ones.
    """
    frames, leaves = len(drawn.right), drawn.leaves
    total = count_of(quality, frames)
    stay = count_of(rule.overall, frames) - int((drawn.right & leaves).sum())
    stay = int(np.clip(stay, max(0, total - int(leaves.sum())), min(total, int((~leaves).sum()))))
    preference = latent.difficulty - frames * drawn.right.astype(np.int64)
    right = np.zeros(frames, dtype=np.bool_)
    for group, count in ((np.flatnonzero(~leaves), stay), (np.flatnonzero(leaves), total - stay)):
        right[group[np.argsort(preference[group])][:count]] = True
    return right


def in_steps(confidence: Floats) -> Floats:
    """Confidences rounded to the steps in which profiles store them."""
    return np.asarray(np.rint(np.clip(confidence, 0.0, 1.0) * CONFIDENCE_STEPS) / CONFIDENCE_STEPS)


def _ranks(group: Ints) -> Floats:
    return (np.arange(len(group)) + 0.5) / max(1, len(group))


def _power(steps: Floats, low: float, high: float, mean: float) -> Floats:
    """low + (high - low) v^k whose integral over v in 0..1 is ``mean`` (constant where ``mean`` <= ``low``)."""
    if mean <= low or high <= low:
        return np.full(len(steps), mean)
    return np.asarray(low + (high - low) * steps ** ((high - low) / (mean - low) - 1.0))


def _likeliest(group: Ints, confidence: Floats, latent: Latent, count: int) -> Ints:
    """``count`` frames of ``group``, drawn with odds near their confidence (logistic noise on the log-odds)."""
    odds = np.clip(confidence[group], 1e-6, 1.0 - 1e-6)
    score = np.log(odds / (1.0 - odds)) + latent.luck[group]
    return np.asarray(group[np.argsort(-score, kind="stable")][:count])
