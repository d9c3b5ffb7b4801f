"""The split model: one trunk, several head branches with early exits, one shared tail.

image -> stem -> trunk stages -> hidden -> tail -> logits                       the full model
           |        |
           +--------+--> encoder -> features ~> decoder -> hidden -> tail       a branch, split by the radio link
                    +--> exit                                                   answered on the device
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from adaptsplit.errors import ConfigError
from adaptsplit.models.layers import ConvUnit, Grow, ResidualBlock
from adaptsplit.models.macs import count_macs, count_parameters
from adaptsplit.models.recipe import CELLS, IMAGE_SIZE, BranchConfig, ModelConfig, StageConfig


@dataclass(frozen=True, slots=True)
class PartInfo:
    """What one part of the model is: output shape (C, H, W), multiply-accumulates per frame, parameters."""

    name: str
    shape: tuple[int, ...]
    macs: int
    parameters: int


class Classifier(nn.Module):
    """Average over each of the 4x4 cells, then one linear map: (n, C, H, W) -> (n, 16, K), cells row-major."""

    def __init__(self, width: int, side: int, classes: int) -> None:
        super().__init__()
        if side % CELLS:
            raise ConfigError(f"a map of side {side} does not divide into {CELLS}x{CELLS} cells; use fewer strides")
        self.pool = nn.AvgPool2d(side // CELLS)
        self.linear = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every cell."""
        logits: Tensor = self.linear(self.pool(x))
        return logits.flatten(2).transpose(1, 2)


class Exit(nn.Module):
    """An early exit on the device: a few convolutions or none, a classifier, a temperature that divides the logits."""

    temperature: Tensor

    def __init__(self, config: BranchConfig, cut: tuple[int, int], classes: int, *, folded: bool) -> None:
        super().__init__()
        inputs, side = cut
        widths, size = config.exit, config.exit_size
        self.body = _strided(inputs, widths, size, folded=folded)
        self.classifier = Classifier((inputs, *widths)[-1], side >> len(widths) if size == 3 else side, classes)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map the trunk's map at the cut to calibrated logits (n, 16, K)."""
        logits: Tensor = self.classifier(self.body(x))
        return logits / self.temperature


class Branch(nn.Module):
    """Encoder to the bottleneck, early exit, and the server's decoder back to the trunk's last map."""

    tail_temperature: Tensor

    def __init__(
        self, config: BranchConfig, cut: tuple[int, int], hidden: tuple[int, int], classes: int, *, folded: bool
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
        self.encoder = nn.Sequential(
            _strided(cut[0], config.encoder, folded=folded),
            ConvUnit(width, channels, 1, relu=False, affine=False, folded=folded),
        )
        self.exit = Exit(config, cut, classes, folded=folded)
        self.decoder = _decoder(config, hidden, folded=folded)
        self.register_buffer("tail_temperature", torch.ones(()))


class SplitModel(nn.Module):
    """The reference family of split models; ``config`` gives widths, ``classes`` the labels.

    Maps an image (n, 3, 256, 256) float in [0, 1] to logits (n, 16, K). ``folded`` builds the inference form, in which
    batch norms are part of the convolutions. ``describe()`` lists the parts with shapes, MACs and parameters.
    """

    full_temperature: Tensor

    def __init__(self, config: ModelConfig, classes: tuple[str, ...], *, folded: bool = False) -> None:
        super().__init__()
        self.config, self.classes, self.folded = config, classes, folded
        self.stem = _strided(3, config.stem, folded=folded)
        width, side = config.stem[-1], IMAGE_SIZE >> len(config.stem)
        cuts = {"stem": (width, side)}
        self.trunk = nn.ModuleDict()
        for stage in config.trunk:
            self.trunk[stage.name] = _stage(stage, width, folded=folded)
            width, side = stage.width, side // stage.stride
            cuts[stage.name] = (width, side)
        self.cuts, self.hidden_shape = cuts, (width, side, side)
        count = len(classes)
        self.branches = nn.ModuleDict(
            {b.name: Branch(b, cuts[b.cut], (width, side), count, folded=folded) for b in config.branches}
        )
        self.tail = _tail(config.tail, width, side, count, folded=folded)
        self.register_buffer("full_temperature", torch.ones(()))

    def branch(self, name: str) -> Branch:
        """Return the branch called ``name``."""
        return cast("Branch", self.branches[name])

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
        at_cut = self.maps(image, branch.config.cut)[branch.config.cut]
        return branch.encoder(at_cut), branch.exit(at_cut)

    def remote(self, name: str, features: Tensor) -> Tensor:
        """Return the tail's logits (n, 16, K) for (dequantised) features of branch ``name``."""
        logits: Tensor = self.tail(self.branch(name).decoder(features))
        return logits

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
        return parts


def _info(name: str, part: nn.Module, example: Tensor) -> PartInfo:
    macs, shape = count_macs(part, example)
    return PartInfo(name, shape, macs, count_parameters(part))


def _strided(inputs: int, widths: tuple[int, ...], size: int = 3, *, folded: bool) -> nn.Sequential:
    ins = (inputs, *widths)[: len(widths)]
    stride = 2 if size == 3 else 1
    return nn.Sequential(*(ConvUnit(a, b, size, stride, folded=folded) for a, b in zip(ins, widths, strict=True)))


def _stage(config: StageConfig, inputs: int, *, folded: bool) -> nn.Sequential:
    first = ResidualBlock(inputs, config.width, config.stride, folded=folded)
    rest = (ResidualBlock(config.width, config.width, folded=folded) for _ in range(config.blocks - 1))
    return nn.Sequential(first, *rest)


def _tail(stages: tuple[StageConfig, ...], width: int, side: int, classes: int, *, folded: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stage in stages:
        layers.append(_stage(stage, width, folded=folded))
        width, side = stage.width, side // stage.stride
    return nn.Sequential(*layers, Classifier(width, side, classes))


def _decoder(config: BranchConfig, hidden: tuple[int, int], *, folded: bool) -> nn.Sequential:
    channels, side, _ = config.bottleneck
    doublings = math.log2(hidden[1] / side)
    if doublings < 1 or doublings != int(doublings):
        raise ConfigError(
            f"branch {config.name!r}: side {side} does not double to {hidden[1]}; use a power of two less"
        )
    width = config.decoder
    layers: list[nn.Module] = [ConvUnit(channels, width, folded=folded)]
    layers += [Grow(width, width, relu=True, folded=folded) for _ in range(int(doublings) - 1)]
    layers += [ResidualBlock(width, width, folded=folded), Grow(width, hidden[0], relu=True, folded=folded)]
    return nn.Sequential(*layers)
