"""Composition: what is kept exactly, what holds on average, what the provenance says."""

from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptsplit.errors import LinkError
from adaptsplit.links import LinkTrace
from adaptsplit.links import compose as compose_module
from adaptsplit.links.compose import inject_outages, jittered, looped_mean, rtt_from, splice
from adaptsplit.links.recording import Recording


def trace_of(capacity: Any, dt_s: float = 1.0, **changed: Any) -> LinkTrace:
    values = np.asarray(capacity, dtype=float)
    fields: dict[str, Any] = {
        "name": "t",
        "family": "test",
        "dt_s": dt_s,
        "capacity_bps": values,
        "rtt_s": np.full(values.size, 0.05),
        "loss": np.zeros(values.size),
        "provenance": ("by hand",),
    }
    return LinkTrace(**(fields | changed))


def probe(rtt: Any, dt_s: float = 1.0) -> Recording:
    return Recording("probe", "test", dt_s, {"rtt_s": np.asarray(rtt, dtype=float)}, ("pinged",))


def lengths(flags: np.ndarray) -> np.ndarray:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return edges[1::2] - edges[::2]


def test_splice_joins_end_to_end() -> None:
    first = trace_of([1, 2], signal_dbm=np.array([-80.0, -81.0]), altitude_m=np.array([1.0, 2.0]))
    second = trace_of([3], name="u", family="other", signal_dbm=np.array([-90.0]), rtt_s=np.array([0.2]))
    joined = splice([first, second, first])
    assert joined.capacity_bps.tolist() == [1, 2, 3, 1, 2]
    assert joined.rtt_s.tolist() == [0.05, 0.05, 0.2, 0.05, 0.05]
    assert joined.signal_dbm is not None
    assert joined.signal_dbm.tolist() == [-80, -81, -90, -80, -81]
    assert joined.altitude_m is None  # the second part has none
    assert (joined.name, joined.family, joined.dt_s) == ("t+u+t", "test", 1.0)
    assert joined.provenance[0] == "part 1 (t): by hand"
    assert joined.provenance[-1] == "splice of 3 parts, 5 samples of 1 s"
    assert splice([first] * 5).name == "t+4 more"
    assert splice([first], "one", "kind").name == "one"
    assert splice([first]).digest() == first.digest()


def test_splice_takes_the_shortest_sample_and_keeps_bits() -> None:
    fine, coarse = trace_of([8, 0, 4], 0.5), trace_of([6, 2], 1.0)
    joined = splice([coarse, fine])
    assert joined.dt_s == 0.5
    assert joined.capacity_bps.tolist() == [6, 6, 2, 2, 8, 0, 4]
    odd = splice([trace_of([6, 2, 0, 5], 0.3), trace_of([1], 0.2)])
    assert odd.capacity_bps.sum() * 0.2 == pytest.approx((6 + 2 + 5) * 0.3 + 0.2)
    assert odd.capacity_bps[3] == 0


def test_splice_refuses_nothing_and_too_much() -> None:
    with pytest.raises(LinkError, match="no trace to join"):
        splice([])
    with pytest.raises(LinkError, match="at most 5000000"):
        splice([trace_of([1] * 3000, 3600.0), trace_of([1], 0.001)])


@pytest.mark.parametrize(
    ("every", "mean", "dt"), [(8.0, 2.0, 0.1), (3.0, 1.0, 1.0), (5.0, 0.2, 0.5), (20.0, 60.0, 1.0)]
)
def test_outages_take_their_stationary_share(every: float, mean: float, dt: float) -> None:
    cycles = 6000
    trace = trace_of(np.full(round(cycles * (every + mean) / dt), 1e6), dt)
    out = inject_outages(trace, every, mean, 5).capacity_bps == 0
    share = mean / (every + mean)
    # The share of an alternating exponential process over n cycles: standard error sqrt(2 / n) u (1 - u).
    assert out.mean() == pytest.approx(share, abs=5 * math.sqrt(2 / cycles) * share * (1 - share))


def test_outages_last_and_come_as_stated() -> None:
    trace = trace_of(np.full(2_000_000, 1e6), 0.01)
    out = inject_outages(trace, 4.0, 1.0, 7).capacity_bps == 0
    found, between = lengths(out) * 0.01, lengths(~out) * 0.01
    assert found.mean() == pytest.approx(1.0, rel=0.06)
    assert found.std() == pytest.approx(1.0, rel=0.08)  # exponential
    assert between.mean() == pytest.approx(4.0, rel=0.06)
    starts = np.mean([inject_outages(trace_of([1e6] * 60), 3.0, 1.0, s).capacity_bps[0] == 0 for s in range(2000)])
    assert starts == pytest.approx(0.25, abs=0.04)  # begun in its stationary state


def test_outages_touch_nothing_else_and_are_told() -> None:
    trace = trace_of(np.arange(1.0, 501.0), signal_dbm=np.full(500, -80.0))
    cut = inject_outages(trace, 10.0, 3.0, 1)
    kept = cut.capacity_bps > 0
    assert np.array_equal(cut.capacity_bps[kept], trace.capacity_bps[kept])
    assert np.array_equal(cut.rtt_s, trace.rtt_s)
    assert cut.signal_dbm is not None
    assert cut.provenance[:-1] == trace.provenance
    assert f"seed 1; {500 - kept.sum()} of 500 samples" in cut.provenance[-1]
    assert cut.digest() == inject_outages(trace, 10.0, 3.0, 1).digest()
    assert cut.digest() != inject_outages(trace, 10.0, 3.0, 2).digest()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0, 1.0, 1), "every_s = 0.0, expected a finite time above 0 s"),
        ((1.0, math.inf, 1), "mean_s = inf"),
        ((1.0, 1.0, -1), "seed -1, expected a whole number"),
        ((1.0, 1.0, True), "seed True"),
        ((1e-9, 1e-9, 1), "more than 1000000; make them rarer"),
        ((0.001, 1e9, 1), "leave no capacity; make them shorter"),
    ],
)
def test_faulty_outages_are_named(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(LinkError, match=words):
        inject_outages(trace_of([1.0] * 10), *arguments)


def test_round_trips_are_held_averaged_looped_and_cut() -> None:
    trace = trace_of([1, 2, 3, 4], 1.0)
    assert rtt_from(trace, probe([0.1, 0.3])).rtt_s.tolist() == [0.1, 0.3, 0.1, 0.3]
    assert rtt_from(trace, probe([0.1, 0.3], 2.0)).rtt_s == pytest.approx([0.1, 0.1, 0.3, 0.3])
    assert rtt_from(trace, probe([0.1, 0.3], 0.5)).rtt_s == pytest.approx([0.2] * 4)
    assert rtt_from(trace, probe(np.arange(1, 10) / 10)).rtt_s == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # 1.5 s loop: 0.1 for 0.75 s, 0.3 for 0.75 s, looped under samples of 1 s.
    found = rtt_from(trace, probe([0.1, 0.3], 0.75)).rtt_s
    assert found == pytest.approx([0.15, 0.2, 0.25, 0.15])
    assert np.array_equal(rtt_from(trace, probe([0.1])).capacity_bps, trace.capacity_bps)


def test_round_trips_come_with_their_origin() -> None:
    given = rtt_from(trace_of([1, 2, 3]), probe([0.1, 0.2]))
    assert given.provenance == (
        "by hand",
        "round-trip times of probe (2 samples of 1 s, looped 1.5 times)",
        "probe: pinged",
    )
    other = trace_of([5, 5, 5], rtt_s=np.array([0.7, 0.8, 0.9]))
    assert rtt_from(trace_of([1, 2, 3]), other).rtt_s.tolist() == [0.7, 0.8, 0.9]
    with pytest.raises(LinkError, match="no round-trip times, only capacity_bps; name another recording"):
        rtt_from(trace_of([1]), Recording("c", "test", 1.0, {"capacity_bps": np.ones(2)}))


@given(
    capacity=st.lists(st.floats(0, 1e8, allow_subnormal=False), min_size=1, max_size=20).filter(any),
    parts=st.integers(2, 30),
    cv=st.floats(0.01, 3),
    correlation=st.floats(0, 10),
    seed=st.integers(0, 2**48),
)
@settings(deadline=None, max_examples=200)
def test_variation_keeps_the_mean_of_every_sample(
    capacity: list[float], parts: int, cv: float, correlation: float, seed: int
) -> None:
    trace = trace_of(capacity, 1.0)
    varied = jittered(trace, 1.0 / parts, cv, correlation, seed)
    assert len(varied) == parts * len(trace)
    assert varied.duration_s == pytest.approx(trace.duration_s)
    sums = [math.fsum(row) for row in varied.capacity_bps.reshape(-1, parts)]
    assert sums == pytest.approx((trace.capacity_bps * parts).tolist(), rel=1e-12)
    assert varied.capacity_bps.min() >= 0


def test_variation_of_whole_rates_keeps_bits_exactly() -> None:
    trace = trace_of([1e6, 0.0, 3_333_333.0] * 50)
    varied = jittered(trace, 0.05, 0.5, 0.2, 1)
    assert np.array_equal(varied.capacity_bps.reshape(-1, 20).sum(axis=1), trace.capacity_bps * 20)
    assert np.array_equal(varied.capacity_bps, np.rint(varied.capacity_bps))
    assert np.array_equal(varied.capacity_bps.reshape(-1, 20).any(axis=1), trace.capacity_bps > 0)  # outages stay


@pytest.mark.parametrize(("correlation", "parts"), [(0.0, 10), (0.1, 10), (0.3, 20)])
def test_variation_has_the_spread_its_docstring_says(correlation: float, parts: int) -> None:
    dt, cv = 1.0 / parts, 0.1
    varied = jittered(trace_of(np.full(4000, 1e6)), dt, cv, correlation, 3).capacity_bps / 1e6
    rho = math.exp(-dt / correlation) if correlation else 0.0
    lags = np.abs(np.subtract.outer(np.arange(parts), np.arange(parts)))
    of_mean = float((np.where(lags == 0, 1.0, rho**lags)).mean())
    assert varied.std() == pytest.approx(cv * math.sqrt(1 - of_mean), rel=0.03)


def test_variation_holds_the_other_columns_and_is_told() -> None:
    trace = trace_of([1e6, 2e6], rtt_s=np.array([0.1, 0.2]), altitude_m=np.array([5.0, 6.0]))
    varied = jittered(trace, 0.5, 0.3, 0.2, 1)
    assert varied.dt_s == 0.5
    assert varied.rtt_s.tolist() == [0.1, 0.1, 0.2, 0.2]
    assert varied.altitude_m is not None
    assert varied.altitude_m.tolist() == [5, 5, 6, 6]
    assert varied.provenance[-1] == "variation within 1 s: samples of 0.5 s, cv 0.3, correlation 0.2 s, seed 1"
    assert varied.digest() == jittered(trace, 0.5, 0.3, 0.2, 1).digest()
    assert varied.digest() != jittered(trace, 0.5, 0.3, 0.2, 2).digest()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.3, 0.2, 0.1, 1), "a whole fraction of its samples of 1 s, such as 0.5 or 0.1 s"),
        ((1.0, 0.2, 0.1, 1), "a whole fraction"),
        ((2.0, 0.2, 0.1, 1), "a whole fraction"),
        ((0.0, 0.2, 0.1, 1), "a whole fraction"),
        ((math.nan, 0.2, 0.1, 1), "a whole fraction"),
        ((1e-7, 0.2, 0.1, 1), "at most 5000000"),
        ((0.1, 0.0, 0.1, 1), "cv = 0.0"),
        ((0.1, 0.2, -1.0, 1), "correlation_s = -1.0"),
        ((0.1, 0.2, 0.1, -3), "seed -3"),
    ],
)
def test_faulty_variation_is_named(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(LinkError, match=words):
        jittered(trace_of([1.0] * 2), *arguments)


@given(
    values=st.lists(st.floats(0, 1e9, allow_subnormal=False), min_size=1, max_size=30),
    ratio=st.floats(0.05, 20),
    loops=st.integers(1, 4),
)
@settings(deadline=None, max_examples=200)
def test_sampling_anew_agrees_with_a_sum_over_fine_steps(values: list[float], ratio: float, loops: int) -> None:
    """Against the overlap of every old sample with every new one, added up without a cumulative sum."""
    count = max(1, int(loops * len(values) / ratio))
    found = looped_mean(np.array(values), 1.0, ratio, count)
    for i in (0, count // 2, count - 1):
        begin, end = i * ratio, (i + 1) * ratio
        total = 0.0
        for k in range(math.floor(begin), math.ceil(end) + 1):
            total += max(0.0, min(end, k + 1) - max(begin, k)) * values[k % len(values)]
        assert found[i] == pytest.approx(total / ratio, rel=1e-6, abs=1e-6 * max(values))


def test_the_examples_of_the_docstrings_hold() -> None:
    result = doctest.testmod(compose_module, extraglobs={"np": np})
    assert result.attempted > 0
    assert result.failed == 0
