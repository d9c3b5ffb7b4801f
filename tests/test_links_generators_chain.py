"""Chains given by a matrix or fitted to a trace: stationary shares, sojourns, autocorrelation; the constant link."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptsplit.config import parse
from adaptsplit.errors import ConfigError
from adaptsplit.links import LinkTrace, link_generators, read_links
from adaptsplit.links.chain import MarkovChain, fit_markov
from adaptsplit.links.compose import splice
from adaptsplit.links.generators import GilbertElliottParameters

BY_HAND = {
    "levels_bps": [0.0, 1e6, 5e6],
    "transition": [[0.8, 0.2, 0.0], [0.05, 0.85, 0.1], [0.0, 0.2, 0.8]],
    "variation": [0.0, 0.3, 0.2],
    "rtt_s": [0.3, 0.1, 0.05],
    "loss": [0.0, 0.01, 0.0],
    "dt_s": 0.5,
}


def chain(**changed: Any) -> MarkovChain:
    return parse(MarkovChain, BY_HAND | changed, "here")


def trace_of(capacity: np.ndarray, dt_s: float = 1.0, rtt: np.ndarray | None = None) -> LinkTrace:
    flat = np.full(capacity.size, 0.05)
    return LinkTrace("t", "test", dt_s, capacity, flat if rtt is None else rtt, 0 * flat)


def autocorrelation(values: np.ndarray, lag: int) -> float:
    dip = values - values.mean()
    return float((dip[:-lag] * dip[lag:]).sum() / (dip * dip).sum())


def lengths(flags: np.ndarray) -> np.ndarray:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return edges[1::2] - edges[::2]


def test_a_constant_link_is_constant() -> None:
    trace = link_generators.get("constant")(3, 7.5, {"capacity_bps": 3e6, "rtt_s": 0.07, "loss": 0.01, "dt_s": 0.5})
    assert len(trace) == 15
    assert {*trace.capacity_bps} == {3e6}
    assert {*trace.rtt_s} == {0.07}
    assert {*trace.loss} == {0.01}
    assert trace.digest() == link_generators.get("constant")(4, 7.5, BY_SEED).digest()


BY_SEED = {"capacity_bps": 3e6, "rtt_s": 0.07, "loss": 0.01, "dt_s": 0.5}


def test_loss_of_gilbert_elliott_comes_in_bursts_of_the_stated_length() -> None:
    p = GilbertElliottParameters(mean_good_s=4.0, mean_bad_s=0.5, loss_good=0.0, loss_bad=0.3, dt_s=0.1)
    trace = link_generators.get("gilbert-elliott")(9, 20_000.0, p)
    bursts = lengths(trace.loss > 0) * p.dt_s
    assert bursts.mean() == pytest.approx(0.5, rel=0.05)
    assert bursts.std() == pytest.approx(np.sqrt(1 - 0.2) * 0.5, rel=0.06)  # geometric: sqrt(1 - p) / p samples
    assert trace.loss.mean() == pytest.approx(p.mean_loss, rel=0.06)
    assert np.array_equal(trace.loss > 0, trace.rtt_s == p.rtt_bad_s)


def test_stationary_shares_by_hand() -> None:
    # Detailed balance: 0.2 a = 0.05 b and 0.1 b = 0.2 c, so a : b : c = 1 : 4 : 2.
    assert chain().shares == pytest.approx(np.array([1, 4, 2]) / 7)
    assert chain().mean_sojourn_s == pytest.approx([2.5, 0.5 / 0.15, 2.5])
    assert chain().mean_bps == pytest.approx((4e6 + 10e6) / 7)


def test_a_generated_chain_has_its_shares_sojourns_and_autocorrelation() -> None:
    p = chain()
    trace = link_generators.get("markov")(5, 100_000.0, BY_HAND)
    state = np.select([trace.rtt_s == 0.3, trace.rtt_s == 0.1], [0, 1], 2)
    assert np.bincount(state) / state.size == pytest.approx(p.shares, abs=0.012)
    for k in range(3):
        assert lengths(state == k).mean() * 0.5 == pytest.approx(p.mean_sojourn_s[k], rel=0.03)
        assert trace.capacity_bps[state == k].mean() == pytest.approx(p.levels_bps[k], rel=0.01, abs=1)
    logs = np.log(trace.capacity_bps[state == 1])
    assert logs.std() == pytest.approx(0.3, rel=0.02)
    assert trace.capacity_bps[state == 0].max() == 0
    lags = [1, 2, 5, 20]
    found = [autocorrelation(trace.capacity_bps, lag) for lag in lags]
    assert found == pytest.approx(p.autocorrelation(lags).tolist(), abs=0.02)
    assert p.autocorrelation([0]).tolist() == [1.0]
    assert set(trace.loss[state == 1]) == {0.01}
    assert np.abs(np.diff(state)).max() == 1


def test_two_states_forget_by_their_second_eigenvalue() -> None:
    p = MarkovChain(levels_bps=(1e6, 3e6), transition=((0.9, 0.1), (0.3, 0.7)))
    assert p.autocorrelation([1, 3, 7]) == pytest.approx(0.6 ** np.array([1, 3, 7]))


def test_a_fit_finds_the_chain_that_made_the_trace() -> None:
    """Two states, since quantiles then cut between the levels; the transition matrix within its standard error."""
    p = MarkovChain(levels_bps=(1e6, 4e6), transition=((0.9, 0.1), (0.1, 0.9)), rtt_s=(0.2, 0.05), dt_s=0.5)
    fitted = fit_markov(link_generators.get("markov")(3, 20_000.0, p), 2)
    assert fitted.levels_bps == (1e6, 4e6)
    assert np.array(fitted.transition) == pytest.approx(np.array(p.transition), abs=0.01)
    assert fitted.rtt_s == (0.2, 0.05)
    assert fitted.variation == (0.0, 0.0)
    assert fitted.dt_s == 0.5


def test_the_shares_of_a_fit_are_the_times_spent() -> None:
    capacity = np.concatenate((np.zeros(30), np.random.default_rng(0).gamma(2.0, 1e6, 470)))
    fitted = fit_markov(trace_of(capacity), 5)
    assert len(fitted.levels_bps) == 5
    assert fitted.levels_bps[0] == 0
    assert fitted.shares[0] == pytest.approx(30 / 500)
    assert fitted.shares[1:] == pytest.approx(np.full(4, 470 / 4 / 500), abs=1 / 500)
    assert fitted.mean_bps == pytest.approx(capacity.mean(), rel=1e-6)
    again = link_generators.get("markov")(1, 50_000.0, fitted).capacity_bps
    assert again.mean() == pytest.approx(capacity.mean(), rel=0.02)
    assert again.std() == pytest.approx(capacity.std(), rel=0.03)


def test_a_constant_trace_has_one_state_and_comes_back() -> None:
    fitted = fit_markov(trace_of(np.full(100, 2e6)), 6)
    assert fitted.levels_bps == (2e6,)
    assert fitted.transition == ((1.0,),)
    assert fitted.shares.tolist() == [1.0]
    assert np.isinf(fitted.mean_sojourn_s[0])
    with pytest.raises(ConfigError, match="constant"):
        fitted.autocorrelation([1])
    assert {*link_generators.get("markov")(1, 10.0, fitted).capacity_bps} == {2e6}
    assert fit_markov(trace_of(np.arange(1.0, 5.0)), 1).levels_bps == (2.0,)  # 2.5, to the even whole number
    assert len(fit_markov(trace_of(np.array([1e6, 1e6, 1e6, 3e6])), 6).levels_bps) == 2


def test_a_record_survives_json_and_makes_the_same_trace() -> None:
    fitted = fit_markov(link_generators.get("lte-drone")(1, 60.0), 6)
    document = json.loads(fitted.model_dump_json())
    again = parse(MarkovChain, document, "file")
    assert again == fitted
    make = link_generators.get("markov")
    assert make(2, 30.0, document).digest() == make(2, 30.0, fitted).digest()
    assert "fitted to lte-drone-1: 1200 samples of 0.05 s" in make(2, 30.0, document).provenance[0]


@pytest.mark.parametrize(
    ("name", "dt_s"),
    [
        ("net_mahimahi/traces/ATT-LTE-driving.up", 1.0),
        ("net_mahimahi/traces/TMobile-UMTS-driving.up", 1.0),
        ("net_mahimahi/traces/Verizon-EVDO-driving.up", 1.0),
        ("net_mahimahi/traces/TMobile-LTE-short.up", 0.5),
        ("net_starlink_autobahn/throughput.zip", None),
    ],
)
def test_a_fit_to_a_recording_keeps_what_its_docstring_says(shared_data: Path, name: str, dt_s: float | None) -> None:
    trace = splice(read_links(shared_data / name, dt_s=dt_s))
    for states, near, far in ((6, 0.14, 0.32), (12, 0.07, 0.23)):
        fitted = fit_markov(trace, states)
        assert len(fitted.levels_bps) == states
        assert fitted.mean_bps == pytest.approx(trace.capacity_bps.mean(), rel=1e-6)
        made = fitted.autocorrelation([1, 5])
        recorded = [autocorrelation(trace.capacity_bps, lag) for lag in (1, 5)]
        assert -0.02 <= recorded[0] - made[0] <= near
        assert 0 <= recorded[1] - made[1] <= far
        again = link_generators.get("markov")(3, 20_000 * fitted.dt_s, fitted)
        assert again.capacity_bps.mean() == pytest.approx(fitted.mean_bps, rel=0.04)
        assert again.capacity_bps.std() == pytest.approx(trace.capacity_bps.std(), rel=0.03)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"transition": [[1.0, 0.0, 0.0], [0.05, 0.85, 0.1], [0.0, 0.2, 0.8]]},
            "state 1 is never reached from state 0",
        ),
        ({"transition": [[0.8, 0.2], [0.2, 0.8]]}, "transition must have 3 rows of 3"),
        ({"transition": [[0.8, 0.1, 0.0], [0.05, 0.85, 0.1], [0.0, 0.2, 0.8]]}, "row 0 of transition sums to 0.9"),
        ({"transition": [[1.2, -0.2, 0.0], [0.05, 0.85, 0.1], [0.0, 0.2, 0.8]]}, "transition"),
        ({"levels_bps": [0, 0, 0]}, "levels_bps are all 0"),
        ({"rtt_s": [0.1, 0.2]}, "rtt_s has 2 values, expected 3"),
        ({"levls_bps": [1]}, "did you mean 'levels_bps'"),
    ],
)
def test_a_faulty_chain_is_named(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        link_generators.get("markov")(1, 5.0, BY_HAND | changed)


def test_a_chain_is_for_markov_alone() -> None:
    with pytest.raises(ConfigError, match="found MarkovChain, expected LteDroneParameters or a mapping"):
        link_generators.get("lte-drone")(1, 5.0, chain())
    with pytest.raises(ConfigError, match="0 states, expected 1 to 64"):
        fit_markov(trace_of(np.ones(3)), 0)
