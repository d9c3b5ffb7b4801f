"""Building blocks: convolution units that fold their batch norm, residual blocks, the differentiable quantiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights


class ConvUnit(nn.Module):
    """Convolution, batch norm, optional ReLU. ``folded`` builds the inference form: bias instead of batch norm.

    ``affine=False`` leaves the output at zero mean and unit variance per channel, which a quantiser likes. With
    ``groups`` > 1 an output sees every ``groups``-th input channel only: a sparsity that is fixed before training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        stride: int = 1,
        *,
        relu: bool = True,
        affine: bool = True,
        folded: bool = False,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=folded, groups=groups)
        self.norm: nn.Module = nn.Identity() if folded else nn.BatchNorm2d(outputs, affine=affine)
        self.relu, self.groups = relu, groups
        self.weight_noise: tuple[float, torch.Generator] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, H, W) to (n, outputs, H / stride, W / stride)."""
        if self.groups > 1:
            x = _interleaved(x, self.groups)
        y: Tensor = self.norm(self.conv(x) if self.weight_noise is None else self._noisy(x))
        return functional.relu(y, inplace=True) if self.relu else y

    def _noisy(self, x: Tensor) -> Tensor:
        assert self.weight_noise is not None
        conv = self.conv
        weight = round_some_filters(conv.weight, *self.weight_noise)
        return functional.conv2d(x, weight, conv.bias, conv.stride, conv.padding, groups=self.groups)

    def fold(self) -> None:
        """Put the batch norm's running statistics into the convolution; a second call does nothing."""
        norm = self.norm
        if not isinstance(norm, nn.BatchNorm2d):
            return
        if norm.running_mean is None or norm.running_var is None:
            raise RuntimeError("a batch norm without running statistics cannot be folded")
        weight, bias = fuse_conv_bn_weights(
            self.conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.conv.weight, self.conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        self.norm = nn.Identity()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016); a 1x1 shortcut where width or stride changes.

    ``groups`` makes those convolutions sparse that keep width and size.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, folded: bool = False, groups: int = 1) -> None:
        super().__init__()
        changes = inputs != outputs or stride != 1
        self.first = ConvUnit(inputs, outputs, 3, stride, folded=folded, groups=1 if changes else groups)
        self.second = ConvUnit(outputs, outputs, relu=False, folded=folded, groups=groups)
        self.shortcut: nn.Module = (
            ConvUnit(inputs, outputs, 1, stride, relu=False, folded=folded) if changes else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, H, W) to (n, outputs, H / stride, W / stride)."""
        return functional.relu(self.second(self.first(x)) + self.shortcut(x))


class Grow(nn.Module):
    """Double height and width by a 1x1 convolution and a pixel shuffle (Shi et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, *, relu: bool, folded: bool = False) -> None:
        super().__init__()
        self.unit = ConvUnit(inputs, 4 * outputs, 1, relu=relu, folded=folded)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, H, W) to (n, outputs, 2 H, 2 W)."""
        return functional.pixel_shuffle(self.unit(x), 2)


def fold_all(module: nn.Module) -> None:
    """Fold every batch norm of ``module`` in place, for inference."""
    for part in module.modules():
        if isinstance(part, ConvUnit):
            part.fold()


@contextmanager
def filters_rounded(module: nn.Module, share: float, generator: torch.Generator) -> Iterator[None]:
    """Within the block, every convolution that learns rounds ``share`` of its filters to 8 bits anew at each call."""
    units = [p for p in module.modules() if isinstance(p, ConvUnit) and p.conv.weight.requires_grad] if share else []
    for unit in units:
        unit.weight_noise = (share, generator)
    try:
        yield
    finally:
        for unit in units:
            unit.weight_noise = None


def round_some_filters(weight: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return ``weight`` (O, I, h, w) with about ``share`` of its O filters rounded to 255 levels; gradients pass.

    Quant-Noise (Fan et al. 2021): the rest of the filters keeps an unbiased gradient.
    """
    step = (weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127).clamp_min(1e-12)
    rounded = torch.round(weight.detach() / step) * step
    chosen = torch.rand(len(weight), 1, 1, 1, generator=generator) < share
    return weight + torch.where(chosen, rounded - weight.detach(), 0.0)


def _interleaved(x: Tensor, groups: int) -> Tensor:
    """Reorder channels so that group g of what follows sees the channels g, g + groups, ... (Zhang et al. 2018)."""
    n, channels, height, width = x.shape
    return x.reshape(n, channels // groups, groups, height, width).transpose(1, 2).reshape(n, channels, height, width)


def quantise(features: Tensor, bits: int, *, per_channel: bool) -> Tensor:
    """Round ``features`` (n, C, H, W) to ``2**bits`` levels between minimum and maximum, per frame or per channel.

    The gradient passes straight through (Bengio et al. 2013). This is the training stand-in for the feature codecs.
    """
    dims = (2, 3) if per_channel else (1, 2, 3)
    low = features.amin(dims, keepdim=True)
    step = ((features.amax(dims, keepdim=True) - low) / (2**bits - 1)).clamp_min(1e-6)
    rounded = torch.round((features - low) / step) * step + low
    passed: Tensor = features + (rounded - features).detach()
    return passed
