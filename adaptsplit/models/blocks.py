"""Runs of layers that the split model is made of: strided convolutions, stages, tail, decoder, classifier."""

from __future__ import annotations

import math

from torch import Tensor, nn

from adaptsplit.errors import ConfigError
from adaptsplit.models.layers import ConvUnit, Grow, ResidualBlock
from adaptsplit.models.recipe import CELLS, BranchConfig, StageConfig


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


def make_strided(inputs: int, widths: tuple[int, ...], size: int = 3, *, folded: bool) -> nn.Sequential:
    ins = (inputs, *widths)[: len(widths)]
    stride = 2 if size == 3 else 1
    return nn.Sequential(*(ConvUnit(a, b, size, stride, folded=folded) for a, b in zip(ins, widths, strict=True)))


def make_stage(config: StageConfig, inputs: int, *, folded: bool, groups: int = 1) -> nn.Sequential:
    first = ResidualBlock(inputs, config.width, config.stride, folded=folded, groups=groups)
    rest = (ResidualBlock(config.width, config.width, folded=folded, groups=groups) for _ in range(config.blocks - 1))
    return nn.Sequential(first, *rest)


def make_tail(stages: tuple[StageConfig, ...], width: int, side: int, classes: int, *, folded: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for stage in stages:
        layers.append(make_stage(stage, width, folded=folded))
        width, side = stage.width, side // stage.stride
    return nn.Sequential(*layers, Classifier(width, side, classes))


def make_decoder(config: BranchConfig, hidden: tuple[int, int], *, folded: bool) -> nn.Sequential:
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
