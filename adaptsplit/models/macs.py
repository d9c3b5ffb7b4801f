"""Multiply-accumulates and parameters of a module, counted while it runs once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def count_macs(module: nn.Module, example: Tensor) -> tuple[int, tuple[int, ...]]:
    """Run ``module`` on one example (1, ...) and return (MACs of its convolutions and linear maps, output shape).

    Additions, poolings and activations are not counted, as is the custom.
    """
    total = 0

    def add(layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * _per_output(layer)

    handles = [m.register_forward_hook(add) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output: Tensor = module(example)
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return total, tuple(output.shape[1:])


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable numbers of ``module``."""
    return sum(parameter.numel() for parameter in module.parameters())


def _per_output(layer: nn.Module) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return 0
