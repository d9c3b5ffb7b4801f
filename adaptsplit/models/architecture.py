"""The split model: one trunk, several head branches with early exits, one shared tail.

image -> stem -> trunk stages -> hidden -> tail -> logits                       the full model
           |        |
           +--------+--> encoder -> features ~> decoder -> hidden -> tail       a branch, split by the radio link
                    +--> exit                                                   answered on the device
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from adaptsplit.errors import ConfigError
from adaptsplit.models.blocks import Classifier, make_decoder, make_stage, make_strided, make_tail
from adaptsplit.models.entropy import FactorisedPrior
from adaptsplit.models.layers import ConvUnit, ResidualBlock, quantise
from adaptsplit.models.macs import count_macs, count_parameters
from adaptsplit.models.recipe import IMAGE_SIZE, BranchConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class PartInfo:
    """What one part of the model is: output shape (C, H, W), multiply-accumulates per frame, parameters."""

    name: str
    shape: tuple[int, ...]
    macs: int
    parameters: int


class Exit(nn.Module):
    """An early exit on the device: a few convolutions or none, a classifier, a temperature that divides the logits.

    In a cascade ``link`` adds what the exit before it answered, and ``ensemble`` weighs the answers up to this one.
    """

    temperature: Tensor
    ensemble: Tensor

    def __init__(
        self, config: BranchConfig, cut: tuple[int, int], classes: int, *, folded: bool, before: int | None = None
    ) -> None:
        super().__init__()
        inputs, side = cut
        widths, size = config.exit, config.exit_size
        self.body = make_strided(inputs, widths, size, folded=folded)
        self.classifier = Classifier((inputs, *widths)[-1], side >> len(widths) if size == 3 else side, classes)
        self.register_buffer("temperature", torch.ones(()))
        self.link = nn.Linear(classes, classes) if before else None
        if before is not None:
            self.register_buffer("ensemble", torch.eye(before + 1)[before])

    def raw(self, x: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Map the trunk's map at the cut, and the raw logits of the exit before, to raw logits (n, 16, K)."""
        logits: Tensor = self.classifier(self.body(x))
        if self.link is None or earlier is None:
            return logits
        linked: Tensor = logits + self.link(earlier.detach().softmax(-1))
        return linked

    def forward(self, x: Tensor) -> Tensor:
        """Map the trunk's map at the cut to calibrated logits (n, 16, K) of this exit alone."""
        return self.raw(x) / self.temperature


class Branch(nn.Module):
    """Encoder to the bottleneck, early exit, and the server's decoder back to the trunk's last map.

    ``prior`` is the bottleneck's learned entropy model, ``tail`` this branch's own tail; None = not asked for.
    """

    tail_temperature: Tensor

    def __init__(
        self,
        config: BranchConfig,
        model: ModelConfig,
        cut: tuple[int, int],
        hidden: tuple[int, int],
        classes: int,
        *,
        folded: bool,
    ) -> None:
        super().__init__()
        self.config = config
        channels, side, _ = config.bottleneck
        width, cut_side = config.encoder[-1] if config.encoder else cut[0], cut[1]
        if cut_side >> len(config.encoder) != side or config.bottleneck[1] != config.bottleneck[2]:
            raise ConfigError(
                f"branch {config.name!r}: {len(config.encoder)} strides take side {cut_side} to "
                f"{cut_side >> len(config.encoder)}, but the bottleneck says {config.bottleneck[1:]}; make them agree"
            )
        strided = make_strided(cut[0], config.encoder, folded=folded)
        strided.extend(
            ResidualBlock(width, width, folded=folded, groups=model.head_groups) for _ in range(config.depth)
        )
        self.encoder = nn.Sequential(
            strided,
            ConvUnit(width, channels, 1, relu=False, affine=False, folded=folded),
        )
        before = [branch.name for branch in model.branches].index(config.name) if model.cascade else None
        self.exit = Exit(config, cut, classes, folded=folded, before=before)
        self.decoder = make_decoder(config, hidden, folded=folded)
        self.prior = FactorisedPrior(channels) if model.prior else None
        own = config.name in model.adapted_tails
        self.tail = make_tail(model.tail, *hidden, classes, folded=folded) if own else None
        self.register_buffer("tail_temperature", torch.ones(()))

    def coded(self, features: Tensor, bits: int) -> Tensor:
        """Return ``features`` as the server gets them: on the prior's grid, or of ``bits`` bits per channel's range."""
        return quantise(features, bits, per_channel=True) if self.prior is None else self.prior.rounded(features)


class SplitModel(nn.Module):
    """The reference family of split models; ``config`` gives widths, ``classes`` the labels.

    Maps an image (n, 3, 256, 256) float in [0, 1] to logits (n, 16, K). ``folded`` builds the inference form, in which
    batch norms are part of the convolutions. ``describe()`` lists the parts with shapes, MACs and parameters.
    """

    full_temperature: Tensor

    def __init__(self, config: ModelConfig, classes: tuple[str, ...], *, folded: bool = False) -> None:
        super().__init__()
        self.config, self.classes, self.folded = config, classes, folded
        self.stem = make_strided(3, config.stem, folded=folded)
        width, side = config.stem[-1], IMAGE_SIZE >> len(config.stem)
        cuts = {"stem": (width, side)}
        self.trunk = nn.ModuleDict()
        for stage in config.trunk:
            self.trunk[stage.name] = make_stage(stage, width, folded=folded, groups=config.head_groups)
            width, side = stage.width, side // stage.stride
            cuts[stage.name] = (width, side)
        self.cuts, self.hidden_shape = cuts, (width, side, side)
        count = len(classes)
        self.branches = nn.ModuleDict(
            {b.name: Branch(b, config, cuts[b.cut], (width, side), count, folded=folded) for b in config.branches}
        )
        self.tail = make_tail(config.tail, width, side, count, folded=folded)
        self.register_buffer("full_temperature", torch.ones(()))

    def branch(self, name: str) -> Branch:
        """Return the branch called ``name``."""
        return cast("Branch", self.branches[name])

    def tail_of(self, name: str) -> nn.Sequential:
        """Return the tail that answers for branch ``name``: its own, or the shared one."""
        own = self.branch(name).tail
        return self.tail if own is None else own

    def maps(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
        """Return the trunk's maps by cut name, up to and including ``until`` (default: all)."""
        x = self.stem((image - 0.5) / 0.25)
        found: dict[str, Tensor] = {"stem": x}
        for name, stage in self.trunk.items():
            if until in found:
                break
            x = stage(x)
            found[name] = x
        return found

    def hidden(self, image: Tensor) -> Tensor:
        """Return the trunk's last map, which is what the tail takes."""
        *_, last = self.maps(image).values()
        return last

    def forward(self, image: Tensor) -> Tensor:
        """Return the full model's logits (n, 16, K)."""
        logits: Tensor = self.tail(self.hidden(image))
        return logits

    def head(self, name: str, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return what branch ``name`` computes on the device: features (n, C, H, W) and exit logits (n, 16, K)."""
        branch = self.branch(name)
        maps = self.maps(image, self.deepest_cut(name))
        return branch.encoder(maps[branch.config.cut]), self.exit_answer(name, maps)

    def exits_upto(self, name: str) -> list[str]:
        """Return the branches whose exits the answer of ``name``'s exit needs, in order; in a cascade all before it."""
        names = list(self.branches)
        return names[: names.index(name) + 1] if self.config.cascade else [name]

    def deepest_cut(self, name: str) -> str:
        """Return the last cut that the head of ``name`` computes."""
        order = list(self.cuts)
        return max((self.branch(n).config.cut for n in self.exits_upto(name)), key=order.index)

    def exit_logits(self, maps: dict[str, Tensor], until: str | None = None) -> dict[str, Tensor]:
        """Return the calibrated logits of every exit by itself (up to ``until``), each linked to the one before."""
        found: dict[str, Tensor] = {}
        earlier: Tensor | None = None
        for name in self.branches if until is None else self.exits_upto(until):
            branch = self.branch(name)
            earlier = branch.exit.raw(maps[branch.config.cut], earlier if self.config.cascade else None)
            found[name] = earlier / branch.exit.temperature
        return found

    def exit_answer(self, name: str, maps: dict[str, Tensor]) -> Tensor:
        """Return what ``name``'s exit answers: its own logits, or those of the ensemble up to it (n, 16, K)."""
        own = self.exit_logits(maps, name)
        if not self.config.cascade:
            return own[name]
        logs = torch.stack([value.log_softmax(-1) for value in own.values()], -1)
        answer: Tensor = (logs * self.branch(name).exit.ensemble).sum(-1)
        return answer

    def remote(self, name: str, features: Tensor) -> Tensor:
        """Return the tail's logits (n, 16, K) for (dequantised) features of branch ``name``."""
        logits: Tensor = self.tail_of(name)(self.branch(name).decoder(features))
        return logits

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the modules of the four parts that a training stage can name: trunk, tail, bottlenecks, exits."""
        branches = [self.branch(name) for name in self.branches]
        coders: list[nn.Module] = [m for b in branches for m in (b.encoder, b.decoder, b.prior) if m is not None]
        tails: list[nn.Module] = [self.tail, *(b.tail for b in branches if b.tail is not None)]
        return {
            "trunk": [self.stem, self.trunk],
            "tail": tails,
            "bottlenecks": coders,
            "exits": [b.exit for b in branches],
        }

    def depth(self, name: str) -> int:
        """Return after how many trunk stages branch ``name`` leaves (0 = right after the stem)."""
        return list(self.cuts).index(self.branch(name).config.cut)

    def describe(self) -> list[PartInfo]:
        """Return every part with its output shape, MACs per frame and parameters, in order of execution."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return self._parts()
        finally:
            self.train(was_training)

    def _parts(self) -> list[PartInfo]:
        image = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        parts = [_info("stem", self.stem, image)]
        x = self.stem(image)
        at = {"stem": x}
        for name, stage in self.trunk.items():
            parts.append(_info(f"trunk.{name}", stage, x))
            x = at[name] = stage(x)
        parts.append(_info("tail", self.tail, x))
        for name in self.branches:
            branch = self.branch(name)
            cut = at[branch.config.cut]
            parts.append(_info(f"{name}.encoder", branch.encoder, cut))
            parts.append(_info(f"{name}.exit", branch.exit, cut))
            parts.append(_info(f"{name}.decoder", branch.decoder, torch.zeros(1, *branch.config.bottleneck)))
            if branch.tail is not None:
                parts.append(_info(f"{name}.tail", branch.tail, x))
        return parts


def _info(name: str, part: nn.Module, example: Tensor) -> PartInfo:
    macs, shape = count_macs(part, example)
    return PartInfo(name, shape, macs, count_parameters(part))
