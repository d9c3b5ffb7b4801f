"""Building blocks: convolution units that fold their batch norm, residual blocks, the differentiable quantiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights


class ConvUnit(nn.Module):
    """Convolution, batch norm, optional ReLU. ``folded`` builds the inference form: bias instead of batch norm.

    ``affine=False`` leaves the output at zero mean and unit variance per channel, which a quantiser likes.
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
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=folded)
        self.norm: nn.Module = nn.Identity() if folded else nn.BatchNorm2d(outputs, affine=affine)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, H, W) to (n, outputs, H / stride, W / stride)."""
        y: Tensor = self.norm(self.conv(x))
        return functional.relu(y, inplace=True) if self.relu else y

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
    """Two 3x3 convolutions around a shortcut (He et al. 2016); a 1x1 shortcut where width or stride changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, folded: bool = False) -> None:
        super().__init__()
        self.first = ConvUnit(inputs, outputs, 3, stride, folded=folded)
        self.second = ConvUnit(outputs, outputs, relu=False, folded=folded)
        changes = inputs != outputs or stride != 1
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
