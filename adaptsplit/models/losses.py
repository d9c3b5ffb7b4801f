"""The training loss: full model, every exit, and every branch's remote answer on its share of the batch.

A stage of the recipe weighs the terms; what has no weight is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.layers import quantise
from adaptsplit.models.recipe import Augment, Noise, Recipe, Stage

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


@dataclass(frozen=True, slots=True)
class Aims:
    """What a stage's distillation aims at: the full model's logits and the maps of trunk and tail (no gradient)."""

    logits: Tensor
    hidden: Tensor
    deep: list[Tensor]

    def rows(self, rows: slice) -> Aims:
        """Return the aims of some frames."""
        return Aims(self.logits[rows], self.hidden[rows], [value[rows] for value in self.deep])


@dataclass(frozen=True, slots=True)
class Sent:
    """What the branches sent: their rows of the batch, decoded maps, and bits per value under the learned priors."""

    rows: dict[str, slice]
    decoded: dict[str, Tensor]
    bits: dict[str, Tensor]


def joint_step(
    model: SplitModel,
    image: Tensor,
    labels: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    stage: Stage | None = None,
    teacher: SplitModel | None = None,
) -> StepResult:
    """Return the loss of one batch: image (n, 3, 256, 256), labels (n, 16); ``stage`` is settled, default the first.

    The tail runs once over the trunk's own maps and the decoders' maps together, so that its batch statistics hold for
    both. Branch ``b`` decodes every B-th frame; a random turn decides which, so that each branch sees all frames.
    """
    stage = stage or recipe.plan()[0][1]
    maps = model.maps(image)
    hidden = maps[names_last(maps)]
    sent = _send(model, maps, recipe, stage, generator)
    exits = _exits(model, maps, stage)
    own, remote = _answers(model, hidden, sent, stage)
    aims = own if teacher is None else _frozen(teacher, image)
    loss = _own_loss(own, aims, labels, stage, recipe, teaching=teacher is not None)
    for name, rows in sent.rows.items():
        parts = _exit_loss(exits.get(name), aims, labels, stage, recipe)
        if name in sent.decoded:
            parts = parts + _remote_loss(name, sent, remote, aims.rows(rows), labels[rows], stage, recipe)
        loss = loss + parts / len(sent.rows)
    right = {name: share_right(remote[name].logits, labels[sent.rows[name]]) for name in remote}
    return StepResult(
        loss, share_right(own.logits, labels), {n: share_right(e, labels) for n, e in exits.items()}, right
    )


def _send(model: SplitModel, maps: dict[str, Tensor], recipe: Recipe, stage: Stage, generator: torch.Generator) -> Sent:
    names = list(model.branches)
    turn = int(torch.randint(len(names), (1,), generator=generator))
    sent = Sent({name: slice((i + turn) % len(names), None, len(names)) for i, name in enumerate(names)}, {}, {})
    if not (stage.branch_weight or stage.hidden_weight or stage.deep_weight or stage.rate_weight):
        return sent
    for name, rows in sent.rows.items():
        branch = model.branch(name)
        features = branch.encoder(maps[branch.config.cut]).float()[rows]
        if branch.prior is None:
            features = noisy(features, recipe.noise, generator)
        else:
            features, sent.bits[name] = branch.prior.noisy(features, generator)
        sent.decoded[name] = branch.decoder(features)
    return sent


def _exits(model: SplitModel, maps: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
    if not stage.exit_weight:
        return {}
    scaled = {name: _scale_gradient(value, stage.exit_gradient or 0.0) for name, value in maps.items()}
    return {name: logits.float() for name, logits in model.exit_logits(scaled).items()}


def _answers(model: SplitModel, hidden: Tensor, sent: Sent, stage: Stage) -> tuple[Aims, dict[str, Aims]]:
    """Run the tails: the full model's maps and answer, and those of every branch whose answer has a weight."""
    asked = sent.decoded if stage.branch_weight or stage.deep_weight else {}
    shared = {name: value for name, value in asked.items() if model.branch(name).tail is None}
    sizes = [len(hidden), *(len(value) for value in shared.values())]
    *deep, logits = _tail_maps(model.tail, torch.cat([hidden, *shared.values()]))
    answers = torch.split(logits.float(), sizes)
    maps = [torch.split(value, sizes) for value in deep]
    found = [Aims(answer, hidden, [value[i] for value in maps]) for i, answer in enumerate(answers)]
    remote = dict(zip(shared, found[1:], strict=True))
    for name in asked.keys() - shared.keys():
        *deep, logits = _tail_maps(model.tail_of(name), asked[name])
        remote[name] = Aims(logits.float(), hidden, deep)
    return found[0], remote


def _tail_maps(tail: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Return the maps after every stage of ``tail``, and last the logits."""
    maps = []
    for part in tail:
        x = part(x)
        maps.append(x)
    return maps


@torch.no_grad()
def _frozen(teacher: SplitModel, image: Tensor) -> Aims:
    hidden = teacher.hidden(image)
    *deep, logits = _tail_maps(teacher.tail, hidden)
    return Aims(logits.float(), hidden, deep)


def _own_loss(own: Aims, aims: Aims, labels: Tensor, stage: Stage, recipe: Recipe, *, teaching: bool) -> Tensor:
    """Loss of the full model: labels, and what a frozen teacher gives."""
    loss = own.logits.new_zeros(())
    if stage.full_weight:
        distil = (stage.distil or 0.0) if teaching else 0.0
        loss = stage.full_weight * _taught(own.logits, aims.logits, labels, recipe, distil, stage.temperature)
    return loss + _map_loss(own.hidden, own, aims, stage) if teaching else loss


def _exit_loss(logits: Tensor | None, aims: Aims, labels: Tensor, stage: Stage, recipe: Recipe) -> Tensor:
    if logits is None:
        return aims.logits.new_zeros(())
    taught = _taught(logits, aims.logits, labels, recipe, stage.exit_distil or 0.0, stage.temperature)
    return (stage.exit_weight or 0.0) * taught


def _remote_loss(
    name: str, sent: Sent, remote: dict[str, Aims], aims: Aims, labels: Tensor, stage: Stage, recipe: Recipe
) -> Tensor:
    loss = _map_loss(sent.decoded[name], remote.get(name), aims, stage)
    if stage.branch_weight:
        distil = stage.distil or 0.0
        taught = _taught(remote[name].logits, aims.logits, labels, recipe, distil, stage.temperature)
        loss = loss + stage.branch_weight * taught
    if stage.rate_weight and name in sent.bits:
        loss = loss + stage.rate_weight * sent.bits[name]
    return loss


def _map_loss(hidden: Tensor, answer: Aims | None, aims: Aims, stage: Stage) -> Tensor:
    loss = aims.logits.new_zeros(())
    if stage.hidden_weight:
        loss = loss + stage.hidden_weight * _distance(hidden, aims.hidden)
    if stage.deep_weight and answer is not None:
        pairs = zip(answer.deep, aims.deep, strict=True)
        loss = loss + stage.deep_weight * torch.stack([_distance(a, b) for a, b in pairs]).sum()
    return loss


def _distance(found: Tensor, aim: Tensor) -> Tensor:
    """Mean squared error relative to the aim's variance: 1 is what a constant map would get."""
    target = aim.detach().float()
    return functional.mse_loss(found.float(), target) / target.var().clamp_min(1e-6)


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


def _taught(
    logits: Tensor, teacher: Tensor, labels: Tensor, recipe: Recipe, distil: float, temperature: float = 1.0
) -> Tensor:
    """Return cross-entropy plus ``distil`` times the divergence from ``teacher``'s answer (Hinton et al. 2015).

    A temperature T softens both answers; T squared keeps the size of the gradients.
    """
    loss = _cross_entropy(logits, labels, recipe.training.smoothing)
    if distil == 0.0:
        return loss
    target = functional.softmax(teacher.detach() / temperature, -1).flatten(0, 1)
    student = functional.log_softmax(logits / temperature, -1).flatten(0, 1)
    return loss + distil * temperature**2 * functional.kl_div(student, target, reduction="batchmean")
