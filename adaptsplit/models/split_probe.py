"""Exits for a network that has none: a linear probe on what a head gives (Alain and Bengio 2017), per cut.

A probe reads the mean of each channel (of a map over its places, of tokens over the tokens) and is one linear map to
the classes. It is fitted by regularised logistic regression, which has one optimum, so no seed and no schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RIDGE = 1e-3
"""Weight decay of a probe on standardised inputs, per example. Assumed; the optimum is flat around it."""
ITERATIONS = 200
SPREAD_FLOOR = 0.02
"""A channel counts as varying by at least this share of the liveliest one (assumed). Weights stay small enough that the
rounding of another runtime does not show: with 1e-4, onnxruntime's answer differed from torch's behind a LayerNorm."""
ROUNDING = 1e-5
"""Variation below this share of the largest value is rounding of float32 (2^-23 per operation)."""


def pooled(x: Tensor) -> Tensor:
    """Return the mean of each channel: (n, C, H, W) -> (n, C), tokens (n, T, D) -> (n, D), (n, D) as it is.

    (n, C, 1) is taken as a pooled vector, not as C tokens of one number.
    """
    if x.ndim == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.ndim == 3 and x.shape[2] > 1 else x.flatten(1)


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted linear map: logits = x @ weight.T + bias, for x (n, D); ``weight`` (K, D), ``bias`` (K,) float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (n, K)."""
        return F.linear(x, self.weight, self.bias)

    @property
    def macs(self) -> int:
        """MACs per example."""
        return self.weight.numel()


class ProbeExit(nn.Module):
    """A probe with its temperature, as a module: tensors at a cut (n, *shape) -> calibrated logits (n, K)."""

    def __init__(self, probe: Probe, temperature: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", probe.weight / temperature)
        self.register_buffer("bias", probe.bias / temperature)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return F.linear(pooled(x), self.get_buffer("weight"), self.get_buffer("bias"))


def fit_probe(inputs: Tensor, shares: Tensor, scale: float = 0.0, ridge: float = RIDGE) -> Probe:
    """Fit a probe on ``inputs`` (n, D) to the classes' ``shares`` (n, K), rows of which sum to 1.

    Inputs are standardised for the fit, and the map is folded back, so that the result takes raw inputs. ``scale`` is
    the largest number that they are means of: what varies by its rounding only carries nothing.
    """
    x = inputs.detach().double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = spread.clamp_min(SPREAD_FLOOR * float(spread.max()))
    if float(spread.max()) <= ROUNDING * max(scale, float(x.abs().max())):
        spread = torch.full_like(spread, torch.inf)  # what varies is rounding: answer with the classes' shares
    x, y = (x - mean) / spread, shares.detach().double()
    weight = torch.zeros(y.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), y) + ridge * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    folded = weight.detach() / spread
    return Probe(folded.float(), (bias.detach() - folded @ mean).float())
