"""Calibration: one temperature per answer (Guo et al. 2017), expected calibration error and reliability tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adaptsplit.frames.base import FrameSource
from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.exits import fit_cascade, fit_correctness
from adaptsplit.models.recipe import Calibration
from adaptsplit.runtime.exits import TINY, softmax64

BINS = 15
LOG_RANGE = (-3.0, 3.0)
EVALUATION_BATCH = 16

Logits = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram: cells with a confidence in [low, low + 1/15)."""

    low: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted temperature and what it changed, on the cells it was fitted on."""

    temperature: float
    accuracy: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    reliability_before: tuple[Bin, ...]
    reliability_after: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Raw logits (cells, K) of every answer over some frames, and labels (cells,): full, per exit, per tail."""

    labels: Labels
    full: Logits
    exits: dict[str, Logits]
    tails: dict[str, Logits]


def nll(logits: Logits, labels: Labels, temperature: float) -> float:
    """Return the mean negative log-likelihood, nats per cell."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    right = scaled[np.arange(len(labels)), labels]
    return float((np.log(np.exp(scaled).sum(-1)) - right).mean())


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature in [e^-3, e^3] that minimises the NLL (golden-section search; unimodal in log T)."""
    low, high = LOG_RANGE
    ratio = (5**0.5 - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if nll(logits, labels, float(np.exp(left))) < nll(logits, labels, float(np.exp(right))):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def reliability(logits: Logits, labels: Labels, temperature: float) -> tuple[Bin, ...]:
    """Return the 15 bins of the reliability diagram; an empty bin has nan nowhere but zeros."""
    scaled = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    confidence = (scaled / scaled.sum(-1, keepdims=True)).max(-1)
    right = logits.argmax(-1) == labels
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    bins = []
    for i in range(BINS):
        inside = place == i
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (0.0, 0.0)
        bins.append(Bin(round(i / BINS, 4), count, round(means[0], 5), round(means[1], 5)))
    return tuple(bins)


def expected_calibration_error(bins: tuple[Bin, ...]) -> float:
    """Return the ECE: mean gap between confidence and accuracy, weighted by cells (Naeini et al. 2015)."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / max(1, total)


def fit_answer(logits: Logits, labels: Labels) -> Fitted:
    """Fit one answer's temperature and report calibration before and after."""
    temperature = fit_temperature(logits, labels)
    before, after = reliability(logits, labels, 1.0), reliability(logits, labels, temperature)
    return Fitted(
        temperature=temperature,
        accuracy=float((logits.argmax(-1) == labels).mean()),
        nll_before=nll(logits, labels, 1.0),
        nll_after=nll(logits, labels, temperature),
        ece_before=expected_calibration_error(before),
        ece_after=expected_calibration_error(after),
        reliability_before=before,
        reliability_after=after,
    )


def collect(model: SplitModel, source: FrameSource, count: int, bits: int) -> Outputs:
    """Run ``count`` frames, spread evenly over ``source``, through every answer; tails see ``bits``-bit features."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(np.int64))
    labels, full = [], []
    exits: dict[str, list[Logits]] = {name: [] for name in model.branches}
    tails: dict[str, list[Logits]] = {name: [] for name in model.branches}
    model.eval()
    for start in range(0, len(chosen), EVALUATION_BATCH):
        frames = [source.frame(int(i)) for i in chosen[start : start + EVALUATION_BATCH]]
        truth = np.stack([frame.labels for frame in frames]).astype(np.int64).reshape(-1)
        known = truth >= 0
        image = torch.from_numpy(np.stack([frame.image for frame in frames])).permute(0, 3, 1, 2).float() / 255
        labels.append(truth[known])
        with torch.no_grad():
            maps = model.maps(image)
            full.append(_cells(model.tail(maps[list(maps)[-1]]), known))
            alone = model.exit_logits(maps)
            for name in model.branches:
                branch = model.branch(name)
                at_cut = maps[branch.config.cut]
                features = branch.coded(branch.encoder(at_cut), bits)
                exits[name].append(_cells(alone[name], known))
                tails[name].append(_cells(model.remote(name, features), known))
    return Outputs(
        np.concatenate(labels),
        np.concatenate(full),
        {name: np.concatenate(parts) for name, parts in exits.items()},
        {name: np.concatenate(parts) for name, parts in tails.items()},
    )


def calibrate(model: SplitModel, source: FrameSource, settings: Calibration) -> dict[str, Any]:
    """Fit every temperature of ``model`` in place on ``source`` and return the report for ``model.json``.

    With a ``score`` other than the confidence, ``scores`` of the report holds every exit's ``ScoreCard``.
    """
    for buffer in _temperatures(model).values():
        buffer.fill_(1.0)
    outputs = collect(model, source, settings.frames, settings.bits)
    logits = {"full": outputs.full}
    logits |= {f"exit:{name}": value for name, value in outputs.exits.items()}
    logits |= {f"tail:{name}": value for name, value in outputs.tails.items()}
    fitted = {name: fit_answer(value, outputs.labels) for name, value in logits.items()}
    for name, buffer in _temperatures(model).items():
        buffer.fill_(fitted[name].temperature)
    answers = {name: asdict(value) for name, value in fitted.items()}
    report = {"split": source.split, "cells": len(outputs.labels), "bits": settings.bits, "answers": answers}
    if model.config.cascade:
        report["ensembles"] = _fit_ensembles(model, outputs)
    if settings.score == "confidence":
        return report
    return report | {"scores": {name: _score(model, settings, outputs, name, fitted) for name in model.branches}}


def _fit_ensembles(model: SplitModel, outputs: Outputs) -> dict[str, list[float]]:
    """Fit the weights of a cascade's ensembles in place, on calibrated answers; returns them by branch.

    Without biases: they would learn how frequent the classes are on the calibration split.
    """
    exits = [model.branch(name).exit for name in model.branches]
    logits = zip(outputs.exits.values(), exits, strict=True)
    probabilities = np.stack([softmax64(value / float(part.temperature)) for value, part in logits])
    fitted = fit_cascade(probabilities, outputs.labels, bias=False)
    for part, weights in zip(exits, fitted.weights, strict=True):
        part.ensemble.copy_(torch.tensor(weights))
    return {name: list(weights) for name, weights in zip(model.branches, fitted.weights, strict=True)}


def _score(
    model: SplitModel, settings: Calibration, outputs: Outputs, name: str, fitted: dict[str, Fitted]
) -> dict[str, Any]:
    """Return the ``ScoreCard`` of one exit: what its threshold will be compared with."""
    if settings.score == "entropy":
        return {"kind": "entropy"}
    names = model.exits_upto(name)
    alone = np.stack([softmax64(outputs.exits[n] / fitted[f"exit:{n}"].temperature) for n in names])
    weights = model.branch(name).exit.ensemble.double().numpy() if model.config.cascade else np.ones(1)
    probabilities = softmax64(np.tensordot(weights, np.log(np.maximum(alone, TINY)), axes=1))
    found = fit_correctness(probabilities, probabilities.argmax(-1) == outputs.labels)
    return {"kind": "correctness", "weights": list(found.weights), "bias": found.bias}


def _temperatures(model: SplitModel) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {"full": model.full_temperature}
    for name in model.branches:
        found[f"exit:{name}"] = model.branch(name).exit.temperature
        found[f"tail:{name}"] = model.branch(name).tail_temperature
    return found


def _cells(logits: Tensor, known: npt.NDArray[np.bool_]) -> Logits:
    flat: Logits = logits.flatten(0, 1).double().numpy()[known]
    return flat
