"""The learned entropy model: probabilities, integer tables, rate control, and the bytes of the real coder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from adaptsplit.codecs.prior import PriorCodec, PriorTable
from adaptsplit.errors import ConfigError
from adaptsplit.models.entropy import FactorisedPrior

SPREADS = torch.tensor([1.0, 0.5, 0.1])[:, None, None]
CENTRES = torch.tensor([0.0, 2.0, -1.0])[:, None, None]


def _features(generator: torch.Generator, count: int, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=generator) * SPREADS + CENTRES


@pytest.fixture(scope="module")
def trained() -> FactorisedPrior:
    """A prior of three Gaussian channels, its steps fixed at 4 per unit."""
    torch.set_num_threads(1)
    prior, generator = FactorisedPrior(3), torch.Generator().manual_seed(0)
    prior.log_gain.requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in prior.parameters() if p.requires_grad], lr=0.02)
    for _ in range(200):
        _, bits = prior.noisy(_features(generator, 8), generator)
        optimiser.zero_grad()
        bits.backward()
        optimiser.step()
    return prior


def gaussian_bits(spread: float) -> float:
    """Entropy of a Gaussian of ``spread`` steps, rounded, bits."""
    k = np.arange(-200, 201)
    edge = np.array([math.erf((v - 0.5) / spread / math.sqrt(2)) / 2 for v in [*k, 201]])
    mass = np.diff(edge)
    return float(-(mass * np.log2(np.maximum(mass, 1e-300))).sum())


def test_probabilities_of_all_integers_add_up_to_one() -> None:
    values = torch.arange(-400.0, 401.0).expand(2, -1).contiguous()
    fresh = FactorisedPrior(2)
    assert fresh.probability(values).sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    assert bool((fresh.logits(values).diff(dim=1) > 0).all())


def test_the_trained_rate_is_the_entropy_of_the_source(trained: FactorisedPrior) -> None:
    features = _features(torch.Generator().manual_seed(9), 1, 64)[0].numpy()
    table = trained.table()
    spent = table.bits(table.symbols(features)) / features.size
    expected = float(np.mean([gaussian_bits(4 * float(s)) for s in SPREADS.flatten()]))
    assert spent == pytest.approx(expected, rel=0.02)


def test_a_factor_of_two_costs_a_bit_and_halves_the_error(trained: FactorisedPrior) -> None:
    features = _features(torch.Generator().manual_seed(9), 1, 64)[0].numpy()
    spent, error = [], []
    for factor in (1.0, 2.0, 4.0):
        table = trained.table(factor)
        symbols = table.symbols(features)
        spent.append(table.bits(symbols) / features.size)
        error.append(float(np.abs(table.restore(symbols) - features).max()))
    assert np.diff(spent) == pytest.approx([0.95, 0.99], abs=0.06)
    assert error == pytest.approx([1 / 8, 1 / 16, 1 / 32], rel=0.02)
    with pytest.raises(ConfigError, match="factor 0"):
        trained.table(0.0)


def test_the_grid_of_training_is_that_of_the_tables(trained: FactorisedPrior) -> None:
    features = _features(torch.Generator().manual_seed(4), 1)
    table = trained.table(2.0)
    with torch.no_grad():
        rounded = trained.rounded(features, 2.0)[0].numpy()
    assert np.allclose(table.restore(table.symbols(features[0].numpy())), rounded, atol=1e-6)


def test_tables_are_whole_numbers_that_a_coder_can_use(trained: FactorisedPrior, tmp_path: Path) -> None:
    table = trained.table(0.5)
    assert table.cdf.dtype == np.uint32
    assert (table.cdf[:, 0] == 0).all()
    assert (table.cdf[:, -1] == 1 << 16).all()
    assert (np.diff(table.cdf.astype(np.int64), axis=1) >= 1).all()
    table.save(tmp_path / "prior-stem.npz")
    assert PriorTable.load(tmp_path / "prior-stem.npz").id == table.id
    assert trained.table(1.0).id != table.id


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_real_coder_spends_what_the_tables_say(trained: FactorisedPrior, factor: float) -> None:
    features = _features(torch.Generator().manual_seed(5), 1)[0].numpy()
    table = trained.table(factor)
    codec = PriorCodec(table)
    data = codec.encode(features)
    estimated = table.bits(table.symbols(features)) / 8
    assert estimated - 1 <= len(data) <= estimated * 1.002 + 32  # container, id of the tables, coder's last state
    assert np.array_equal(codec.decode(data), table.restore(table.symbols(features)))


def test_noise_is_one_step_wide_and_the_rate_is_differentiable() -> None:
    prior, generator = FactorisedPrior(3), torch.Generator().manual_seed(1)
    features = _features(generator, 4).requires_grad_()
    sent, bits = prior.noisy(features, generator)
    moved = ((sent - features) * prior.scale[:, None, None]).detach()
    assert float(moved.abs().max()) <= 0.5 + 1e-4
    assert float(moved.std()) == pytest.approx(1 / math.sqrt(12), rel=0.03)
    bits.backward()
    assert prior.log_gain.grad is not None
    assert bool((prior.log_gain.grad > 0).all()), "a finer grid costs more"
    assert features.grad is not None


@pytest.mark.parametrize("price", [0.001, 0.004])
def test_the_price_of_a_bit_sets_the_step_as_theory_says(price: float) -> None:
    """Steps of width d cost -log2 d bits more and err by d^2 / 12; the sum is least at d^2 = 6 price / ln 2."""
    prior, generator = FactorisedPrior(1), torch.Generator().manual_seed(2)
    optimiser = torch.optim.Adam(prior.parameters(), lr=0.03)
    for _ in range(180):
        features = torch.randn(4, 1, 16, 16, generator=generator)
        sent, bits = prior.noisy(features, generator)
        loss = price * bits + (sent - features).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    step = 1 / float(prior.scale.detach())
    assert step == pytest.approx(math.sqrt(6 * price / math.log(2)), rel=0.12)
