"""A learned entropy model of a bottleneck: a factorised prior, trained with noise, kept as integer tables.

Each channel has a cumulative distribution c of its own, a small monotone network (Balle et al. 2018, "Variational image
compression with a scale hyperprior", appendix 6.1), as in Entropic Student (Matsubara et al., WACV 2022). A feature f
of a channel is sent as the integer round(f * scale), with a learned scale per channel. While training, rounding is
uniform noise of one step, and a value costs -log2(c(y + 1/2) - c(y - 1/2)) bits. Two knobs set the rate: the recipe's
``rate_weight`` while training, and ``factor`` at run time, which makes every step ``factor`` times finer.

``table`` turns the distributions into the integer tables of ``adaptsplit.codecs.prior``, which the codec, the device
and the server need; none of them needs torch.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from adaptsplit.codecs.prior import PriorTable
from adaptsplit.codecs.static_rans import TOTAL
from adaptsplit.errors import ConfigError

FILTERS = (3, 3, 3)
INITIAL_SPREAD = 10.0
"""Spread of the distributions at first, in steps, and the widths of their networks: as in the paper's appendix."""
INITIAL_GAIN = 4.0
"""Steps per standard deviation at first (ours): bottlenecks have unit variance per channel."""
MAX_SYMBOLS = 256
REACH = 4096
TAIL_MASS = 1e-5
MIN_PROBABILITY = 1e-9

Floats = NDArray[np.float64]


class FactorisedPrior(nn.Module):
    """The entropy model of a bottleneck of ``channels`` channels; maps features (n, C, H, W) to what their rate is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.full((channels,), math.log(INITIAL_GAIN)))
        widths = (1, *FILTERS, 1)
        spread = INITIAL_SPREAD ** (1 / (len(widths) - 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(widths):
            start = math.log(math.expm1(1 / spread / outputs))
            self.matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), start)))
            # Biases spread evenly rather than at random, so that a seed draws the same networks with and without prior.
            even = torch.linspace(-0.5, 0.5, outputs)[None, :, None] if outputs > 1 else torch.zeros(1, 1, 1)
            self.biases.append(nn.Parameter(even.repeat(channels, 1, 1)))
            self.factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))

    @property
    def scale(self) -> Tensor:
        """Steps per unit of feature, (C,)."""
        return self.log_gain.exp()

    def logits(self, values: Tensor) -> Tensor:
        """Return the logit of c at ``values`` (C, m), in steps."""
        x = values[:, None, :]
        last = len(self.matrices) - 1
        for index, (matrix, bias, factor) in enumerate(zip(self.matrices, self.biases, self.factors, strict=True)):
            x = functional.softplus(matrix) @ x + bias
            if index < last:
                x = x + torch.tanh(factor) * torch.tanh(x)
        return x[:, 0]

    def probability(self, values: Tensor, step: float = 1.0) -> Tensor:
        """Return the probability of the step around each of ``values`` (C, m): c(y + step/2) - c(y - step/2)."""
        low, high = self.logits(values - step / 2), self.logits(values + step / 2)
        # Both on the side where a sigmoid keeps its digits.
        sign = -torch.sign(low + high).detach()
        return (torch.sigmoid(sign * high) - torch.sigmoid(sign * low)).abs().clamp_min(MIN_PROBABILITY)

    def noisy(self, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return features (n, C, H, W) with the noise of one step, and their mean code length, bits per value."""
        scale = self.scale[:, None, None]
        noise = torch.rand(features.shape, generator=generator) - 0.5
        values = features * scale + noise
        flat = values.transpose(0, 1).flatten(1)
        return values / scale, -torch.log2(self.probability(flat)).mean()

    def rounded(self, features: Tensor, factor: float = 1.0) -> Tensor:
        """Return features (n, C, H, W) on the grid that is sent at ``factor``."""
        scale = self.scale[:, None, None] * factor
        return torch.round(features * scale) / scale

    @torch.no_grad()
    def table(self, factor: float = 1.0) -> PriorTable:
        """Return the integer tables at ``factor`` (> 0; 2 halves the step and adds about one bit per value)."""
        if not 0 < factor <= 64:
            raise ConfigError(f"factor {factor:g}; expected more than 0 and at most 64")
        codes = torch.arange(-REACH, REACH + 1, dtype=torch.float32)
        steps = codes.expand(len(self.log_gain), -1) / factor
        mass = self.probability(steps.contiguous(), 1.0 / factor).double().numpy()
        offset, cdf = _tables(mass)
        return PriorTable(offset, cdf, (self.scale * factor).float().numpy().copy())


def _tables(mass: Floats) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Turn probabilities (C, 2 REACH + 1) of the integers into offsets and cumulative frequencies of equal length."""
    share = mass.cumsum(1) / mass.sum(1, keepdims=True)
    low, high = (share > TAIL_MASS).argmax(1), (share >= 1 - TAIL_MASS).argmax(1)
    size = int(min(MAX_SYMBOLS, max(2, (high - low).max() + 1)))
    start = ((low + high + 1 - size) // 2).clip(0, mass.shape[1] - size)
    cdfs = [_integers(row[first : first + size]) for row, first in zip(mass, start, strict=True)]
    return (start - REACH).astype(np.int32), np.stack(cdfs)


def _integers(mass: Floats) -> NDArray[np.uint32]:
    """Return cumulative integer frequencies (L + 1,) from 0 to TOTAL, each symbol with at least 1."""
    spare = TOTAL - len(mass)
    edges = np.rint(np.concatenate([[0.0], mass.cumsum()]) / mass.sum() * spare) + np.arange(len(mass) + 1)
    cumulative: NDArray[np.uint32] = edges.astype(np.uint32)
    return cumulative
