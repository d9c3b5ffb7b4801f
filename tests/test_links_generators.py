"""Theory as test: stationary shares and loss, sojourns, autocorrelation, seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adaptsplit.errors import ConfigError
from adaptsplit.links import link_generators
from adaptsplit.links.draws import Draws, ar1
from adaptsplit.links.generators import GilbertElliottParameters, LteDroneParameters, MarkovParameters


def runs(flags: np.ndarray) -> np.ndarray:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("name", link_generators.names())
def test_every_generator_is_deterministic_and_lasts_as_long_as_asked(name: str) -> None:
    make = link_generators.get(name)
    trace = make(7, 12.0)
    assert trace.digest() == make(7, 12.0, {}).digest() == make(7, 12.0, make.parameters()).digest()
    assert trace.duration_s == pytest.approx(12.0)
    assert "seed 7" in trace.provenance[0]
    if name != "constant":
        assert trace.digest() != make(8, 12.0).digest()


@pytest.mark.parametrize("name", link_generators.names())
def test_every_generator_refuses_what_it_cannot_use(name: str) -> None:
    make = link_generators.get(name)
    for seed, duration in ((-1, 5.0), (1, 0.0), (1, float("nan")), (1, 1e12)):
        with pytest.raises(ConfigError, match=name):
            make(seed, duration)
    with pytest.raises(ConfigError, match="did you mean 'dt_s'"):
        make(1, 5.0, {"dt": 0.1})


def test_golden_digest_of_the_shipped_preset() -> None:
    """Scenarios name links by seed: the trace behind a seed must never change unseen."""
    trace = link_generators.get("lte-drone")(1, 60.0)
    assert trace.digest()[:16] == "cfb0591a50f8c8d7"


def test_gilbert_elliott_is_stationary() -> None:
    p = GilbertElliottParameters(mean_good_s=3.0, mean_bad_s=1.0, loss_good=0.01, loss_bad=0.2, dt_s=0.1)
    trace = link_generators.get("gilbert-elliott")(5, 20_000.0, p)
    good = trace.capacity_bps == p.good_bps
    # 20,000 s / 4 s per cycle = 5,000 cycles: the share's standard error is about 0.005.
    assert p.share_good == 0.75
    assert good.mean() == pytest.approx(0.75, abs=0.02)
    assert p.mean_loss == pytest.approx(0.0575)
    assert trace.loss.mean() == pytest.approx(p.mean_loss, rel=0.08)
    assert runs(good).mean() * p.dt_s == pytest.approx(3.0, rel=0.06)
    assert runs(~good).mean() * p.dt_s == pytest.approx(1.0, rel=0.06)


def test_gilbert_elliott_forgets_as_its_second_eigenvalue_says() -> None:
    p = GilbertElliottParameters(mean_good_s=2.0, mean_bad_s=1.0, dt_s=0.1)
    flags = link_generators.get("gilbert-elliott")(6, 20_000.0, p).capacity_bps == p.good_bps
    eigenvalue = 1 - p.dt_s / p.mean_good_s - p.dt_s / p.mean_bad_s
    for lag in (1, 5, 10):
        assert np.corrcoef(flags[:-lag], flags[lag:])[0, 1] == pytest.approx(eigenvalue**lag, abs=0.03)


@pytest.mark.parametrize("up", [0.4, 0.5, 0.6])
def test_markov_shares_follow_from_detailed_balance(up: float) -> None:
    p = MarkovParameters(
        levels_bps=(1e6, 2e6, 3e6, 4e6), mean_sojourn_s=0.5, up_probability=up, variation=0.0, outages_per_minute=0.0
    )
    capacity = link_generators.get("markov")(11, 20_000.0, p).capacity_bps
    shares = np.array([(capacity == level).mean() for level in p.levels_bps])
    assert p.shares.sum() == pytest.approx(1.0)
    assert shares == pytest.approx(p.shares, abs=0.03)


def test_markov_moves_to_neighbours_only() -> None:
    p = MarkovParameters(levels_bps=(1e6, 2e6, 3e6, 4e6), mean_sojourn_s=20.0, variation=0.0, outages_per_minute=0.0)
    steps = np.diff(link_generators.get("markov")(2, 4000.0, p).capacity_bps)
    assert set(np.unique(np.abs(steps))) == {0.0, 1e6}


def test_variation_keeps_the_mean_and_has_the_stated_correlation() -> None:
    p = MarkovParameters(levels_bps=(1e6,), variation=0.4, variation_s=0.2, outages_per_minute=0.0, dt_s=0.05)
    capacity = link_generators.get("markov")(3, 5000.0, p).capacity_bps
    logs = np.log(capacity)
    assert capacity.mean() == pytest.approx(1e6, rel=0.01)
    assert logs.std() == pytest.approx(0.4, rel=0.02)
    for lag in (1, 4, 8):
        expected = math.exp(-lag * 0.05 / 0.2)
        assert np.corrcoef(logs[:-lag], logs[lag:])[0, 1] == pytest.approx(expected, abs=0.02)


def test_outages_have_the_stated_rate_and_length() -> None:
    p = MarkovParameters(outages_per_minute=6.0, outage_min_s=0.5, outage_mean_s=1.0, outage_max_s=20.0)
    trace = link_generators.get("markov")(4, 20_000.0, p)
    lengths = runs(trace.capacity_bps == 0) * p.dt_s
    assert lengths.mean() == pytest.approx(1.0, rel=0.05)
    assert lengths.min() >= 0.45
    # One outage and the pause after it take 1 + 10 s on average.
    assert lengths.size == pytest.approx(20_000 / 11, rel=0.06)


def test_the_preset_keeps_to_the_recorded_range() -> None:
    """Figures stated in the docstring of LteDroneParameters, pooled over seeds 0 to 19."""
    traces = [link_generators.get("lte-drone")(seed, 300.0) for seed in range(20)]
    capacity = np.concatenate([trace.capacity_bps for trace in traces])
    seconds = capacity.reshape(-1, 20).mean(axis=1) / 1e6
    assert 1.0 <= np.median(seconds) <= 2.0
    assert 0.1 <= np.quantile(seconds, 0.05) <= 0.25
    assert 7.0 <= np.quantile(seconds, 0.95) <= 11.0
    positive = capacity[capacity > 0]
    assert positive.min() >= 5e4
    assert positive.max() <= 1.2e7
    rtt = np.concatenate([trace.rtt_s for trace in traces])
    assert rtt.min() >= 0.055
    assert rtt.max() <= 0.3
    slow = np.concatenate([trace.rtt_s[trace.capacity_bps < 5e5] for trace in traces])
    assert np.median(slow) > np.median(rtt)


def test_a_preset_is_only_other_defaults() -> None:
    record = LteDroneParameters()
    as_markov = MarkovParameters(**record.model_dump())
    preset, plain = link_generators.get("lte-drone"), link_generators.get("markov")
    assert preset(1, 30.0, record).digest() == plain(1, 30.0, as_markov).digest()


def test_draws_are_uniform_normal_and_independent_by_purpose() -> None:
    uniform = Draws(1, 0).uniform(100_000)
    assert 0 < uniform.min() < uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.005)
    normal = Draws(1, 0).normal(100_001)
    assert normal.size == 100_001
    assert (normal.mean(), normal.std()) == pytest.approx((0.0, 1.0), abs=0.015)
    assert np.mean(np.abs(normal) < 1.96) == pytest.approx(0.95, abs=0.005)
    assert abs(np.corrcoef(uniform, Draws(1, 1).uniform(100_000))[0, 1]) < 0.015


def test_an_autoregression_is_stationary_from_its_first_value() -> None:
    firsts = np.array([ar1(Draws(seed, 0), 3, 0.9) for seed in range(3000)])
    assert firsts.std(axis=0) == pytest.approx(np.ones(3), rel=0.05)
    assert np.corrcoef(firsts[:, 0], firsts[:, 2])[0, 1] == pytest.approx(0.81, abs=0.03)
