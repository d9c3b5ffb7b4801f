"""Small networks of known families, with seeded random weights: what users bring, in miniature.

Written for these tests after the papers named; every network maps (n, 3, side, side) to (n, classes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainNet(nn.Module):
    """A plain CNN with functional activations and pooling, as tutorials write it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 16, 3, padding=1)
        self.conv3, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1((x - 0.5) / 0.25)), 4)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x)).mean((2, 3))
        out: Tensor = self.fc(x.view(x.shape[0], -1))
        return out


def vgg(classes: int) -> nn.Sequential:
    """VGG (Simonyan and Zisserman 2015): one chain of convolutions, poolings, dropout and linear maps."""
    layers: list[nn.Module] = []
    for a, b in ((3, 8), (8, 16), (16, 16)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, classes)]
    return nn.Sequential(*layers, *head)


class Residual(nn.Module):
    """A basic residual block (He et al. 2016), with additions and ReLUs in place."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.short(x)
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """A residual network of three stages."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.maxpool = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(8, 8, 1), Residual(8, 8, 1))
        self.layer2 = nn.Sequential(Residual(8, 16, 2), Residual(16, 16, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


class Inverted(nn.Module):
    """An inverted residual with a linear bottleneck (Sandler et al. 2018)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        inner = inputs * 4
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner)),
            *(nn.ReLU6(inplace=True), nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)),
        )
        self.adds = stride == 1 and inputs == width

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x) if self.adds else self.body(x)
        return out


def mobilenet(classes: int) -> nn.Sequential:
    """MobileNetV2 in miniature."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
    blocks = nn.Sequential(Inverted(8, 8, 1), Inverted(8, 12, 2), Inverted(12, 12, 1), Inverted(12, 16, 2))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


class EncoderBlock(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """A ViT with a class token and learnt positions."""

    def __init__(self, classes: int, side: int, patch: int = 8, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, 2) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x)[:, 0])
        return out


class DenseBlock(nn.Module):
    """Every layer reads all before it (Huang et al. 2017), kept as a list as the usual code does."""

    def __init__(self, inputs: int, growth: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, growth, 3, padding=1))
            for w in range(inputs, inputs + growth * count, growth)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        out: Tensor = torch.cat(maps, 1)
        return out


class DenseNet(nn.Module):
    """Two dense blocks with a transition."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.block1 = nn.Conv2d(3, 8, 3, 2, 1), DenseBlock(8, 4, 3)
        self.transition = nn.Sequential(nn.Conv2d(20, 8, 1), nn.AvgPool2d(2))
        self.block2, self.norm, self.fc = DenseBlock(8, 4, 2), nn.BatchNorm2d(16), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.block2(self.transition(self.block1(self.stem(x)))))
        out: Tensor = self.fc(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))
        return out


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then a channel MLP in channels-last order (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        out: Tensor = x + y.permute(0, 3, 1, 2)
        return out


def convnext(classes: int) -> nn.Sequential:
    """ConvNeXt in miniature."""
    body = (nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8), nn.Conv2d(8, 16, 2, 2), ConvNeXtBlock(16))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "plain": PlainNet,
    "vgg": vgg,
    "resnet": ResNet,
    "mobilenet": mobilenet,
    "vit": VisionTransformer,
    "densenet": DenseNet,
    "convnext": convnext,
}


def network(family: str, classes: int = 4, side: int = 32, seed: int = 0) -> nn.Module:
    """Return one network in inference mode, its weights and batch norm statistics drawn from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        more: dict[str, Any] = {"side": side} if family == "vit" else {}
        model = FAMILIES[family](classes, **more)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None
                assert part.running_var is not None
                nn.init.normal_(part.running_mean, 0.0, 0.1)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
                nn.init.uniform_(part.weight, 0.5, 1.5)
    return model.eval()
