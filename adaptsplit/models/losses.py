"""The joint training loss: full model, every exit, and every branch's remote answer on its share of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.layers import quantise
from adaptsplit.models.recipe import Augment, Noise, Recipe

UNLABELLED = -1


@dataclass(frozen=True, slots=True)
class StepResult:
    """Loss to be minimised, and the share of correct cells of the full model, the exits and the branches' tails."""

    loss: Tensor
    full: float
    exits: dict[str, float]
    tails: dict[str, float]


def prepare(images: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """Turn uint8 images (n, 256, 256, 3) into float (n, 3, 256, 256) in [0, 1], channels last, with changed colours."""
    x = images.permute(0, 3, 1, 2).float().div_(255.0)
    count = len(x)

    def factor(strength: float, *shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1) * strength

    x = x + factor(augment.brightness, count, 1, 1, 1)
    gain = (1 + factor(augment.contrast, count, 1, 1, 1)) * (1 + factor(augment.channels, count, 3, 1, 1))
    centre = x.mean((2, 3), keepdim=True)
    return ((x - centre) * gain + centre * (1 + factor(augment.channels, count, 3, 1, 1))).clamp(0.0, 1.0)


def noisy(features: Tensor, noise: Noise, generator: torch.Generator) -> Tensor:
    """Quantise features as a codec would, with a bit width drawn for this step, sometimes not at all."""
    draws = torch.rand(2, generator=generator)
    if float(draws[0]) < noise.none:
        return features
    low, high = noise.bits
    bits = int(torch.randint(low, high + 1, (1,), generator=generator))
    return quantise(features, bits, per_channel=float(draws[1]) < noise.per_channel)


def joint_step(
    model: SplitModel, image: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> StepResult:
    """Return the loss of one batch: image (n, 3, 256, 256), labels (n, 16).

    The tail runs once over the trunk's own maps and the decoders' maps together, so that its batch statistics hold for
    both. Branch ``b`` decodes every B-th frame; a random turn decides which, so that each branch sees all frames.
    """
    training = recipe.training
    maps = model.maps(image)
    names = list(model.branches)
    turn = int(torch.randint(len(names), (1,), generator=generator))
    order = [slice((i + turn) % len(names), None, len(names)) for i in range(len(names))]
    exits, decoded = {}, []
    for name, rows in zip(names, order, strict=True):
        branch = model.branch(name)
        at_cut = maps[branch.config.cut]
        exits[name] = branch.exit(_scale_gradient(at_cut, training.exit_gradient)).float()
        features = branch.encoder(at_cut).float()[rows]
        decoded.append(branch.decoder(noisy(features, recipe.noise, generator)))
    hidden = maps[names_last(maps)]
    answers = model.tail(torch.cat([hidden, *decoded])).float().split([len(hidden), *(len(d) for d in decoded)])
    full, tails = answers[0], dict(zip(names, answers[1:], strict=True))
    loss = _cross_entropy(full, labels, training.smoothing)
    for name, rows in zip(names, order, strict=True):
        exit_loss = _taught(exits[name], full, labels, recipe)
        tail_loss = _taught(tails[name], full[rows], labels[rows], recipe)
        loss = loss + (training.exit_weight * exit_loss + training.branch_weight * tail_loss) / len(names)
    right = {name: share_right(tails[name], labels[rows]) for name, rows in zip(names, order, strict=True)}
    return StepResult(loss, share_right(full, labels), {n: share_right(e, labels) for n, e in exits.items()}, right)


def names_last(maps: dict[str, Tensor]) -> str:
    """Return the name of the trunk's last map."""
    return list(maps)[-1]


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of labelled cells that are classified correctly (nan without any)."""
    known = labels != UNLABELLED
    right = (logits.detach().argmax(-1) == labels) & known
    return float(right.sum()) / int(known.sum()) if bool(known.any()) else float("nan")


def _scale_gradient(x: Tensor, share: float) -> Tensor:
    """Return ``x`` unchanged, of which only ``share`` of the gradient flows back."""
    return x.detach() if share == 0.0 else x * share + x.detach() * (1.0 - share)


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED, label_smoothing=smoothing
    )


def _taught(logits: Tensor, teacher: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Return cross-entropy plus distillation (Hinton et al. 2015) from the full model's answer."""
    loss = _cross_entropy(logits, labels, recipe.training.smoothing)
    if recipe.training.distil == 0.0:
        return loss
    target = functional.softmax(teacher.detach(), -1).flatten(0, 1)
    student = functional.log_softmax(logits, -1).flatten(0, 1)
    return loss + recipe.training.distil * functional.kl_div(student, target, reduction="batchmean")
