"""The shared server: queueing theory, the exactness of ``wait_at``, batching, and the loop."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from numba import njit
from numba.extending import register_jitable

from adaptsplit.devices import server
from adaptsplit.devices.server import (
    ServerSpec,
    ServerTrace,
    UtilisationLevel,
    backlog_at,
    jobs_released,
    release_at,
    server_trace,
    wait_at,
    work_added,
    work_at,
)
from adaptsplit.errors import ConfigError


def _spec(
    *levels: tuple[float, float],
    distribution: Literal["exponential", "constant"] = "exponential",
    window: float = 0.0,
    marginal: float = 1.0,
) -> ServerSpec:
    utilisation = tuple(UtilisationLevel(utilisation=u, mean_s=s) for u, s in levels)
    return ServerSpec(
        utilisation=utilisation,
        job_s=0.02,
        distribution=distribution,
        batch_window_s=window,
        batch_marginal=marginal,
    )


def _mean_wait(trace: ServerTrace) -> float:
    """Time average of the background's workload, which is the mean wait of Poisson arrivals (they see averages)."""
    after, dt = trace.backlog_s[:-1], trace.dt_s
    area = np.where(after >= dt, after * dt - dt * dt / 2, after * after / 2)
    return float(area.sum() / (dt * len(after)))


@pytest.mark.parametrize(("distribution", "second_moment"), [("exponential", 2.0), ("constant", 1.0)])
@pytest.mark.parametrize("utilisation", [0.3, 0.6])
def test_mean_wait_is_that_of_pollaczek_and_khinchine(
    distribution: Literal["exponential", "constant"], second_moment: float, utilisation: float
) -> None:
    """E[W] = rho * E[S^2] / (2 * E[S] * (1 - rho)); standard error about 1 % over 8000 s, grid error under 1 %."""
    spec = _spec((utilisation, 1.0), distribution=distribution)
    found = np.mean([_mean_wait(server_trace(spec, seed, 4000.0, 0.0005)) for seed in (1, 2)])
    expected = utilisation * second_moment * spec.job_s / (2 * (1 - utilisation))
    assert found == pytest.approx(expected, rel=0.05)


def test_the_grid_moves_the_mean_wait_by_less_than_a_step() -> None:
    spec = _spec((0.6, 1.0))
    fine, coarse = (_mean_wait(server_trace(spec, 1, 1000.0, dt)) for dt in (0.0002, 0.002))
    assert coarse == pytest.approx(fine, abs=0.002)


def test_our_own_waits_equal_an_event_simulation() -> None:
    trace = server_trace(_spec((0.2, 3.0), (0.9, 2.0)), seed=7, duration_s=60.0)
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0.0, 150.0, 2000))  # two and a half rounds of the trace
    services = rng.exponential(0.02, times.size)
    expected = _event_simulation(trace, times, services)
    at, unfinished, waits = 0.0, float(trace.backlog_s[0]), []
    for t, service in zip(times.tolist(), services.tolist(), strict=True):
        wait = wait_at(trace.work_s, trace.backlog_s, trace.dt_s, at, unfinished, t)
        waits.append(wait)
        at, unfinished = t, wait + service
    assert waits == pytest.approx(expected, abs=1e-9)
    assert np.mean(np.array(waits) > 0) > 0.3
    alone = [backlog_at(trace.backlog_s, trace.dt_s, t) for t in times.tolist()]
    assert np.mean(np.array(waits) > np.array(alone) + 1e-6) > 0.3


def _event_simulation(trace: ServerTrace, times: np.ndarray, services: np.ndarray) -> list[float]:
    """Serve every arrival, background and ours, one after the other; return the waits of ours."""
    steps = len(trace.work_s) - 1
    events = [(0.0, 0, float(trace.backlog_s[0]))]
    for lap in range(3):
        for i in np.flatnonzero(np.diff(trace.work_s)) + 1:
            arrival = (lap * steps + int(i)) * trace.dt_s
            events.append((arrival, 0, float(trace.work_s[i] - trace.work_s[i - 1])))
    events += [(float(t), 1, float(s)) for t, s in zip(times, services, strict=True)]
    free, waits = 0.0, []
    for arrival, ours, service in sorted(events):
        begin = max(free, arrival)
        if ours:
            waits.append(begin - arrival)
        free = begin + service
    return waits


def test_without_jobs_of_ours_the_wait_is_the_background_alone() -> None:
    trace = server_trace(_spec((0.7, 1.0)), seed=2, duration_s=20.0)
    at, unfinished = 0.0, float(trace.backlog_s[0])
    for t in np.sort(np.random.default_rng(1).uniform(0, 60, 500)).tolist():
        unfinished = wait_at(trace.work_s, trace.backlog_s, trace.dt_s, at, unfinished, t)
        at = t
        assert unfinished == pytest.approx(backlog_at(trace.backlog_s, trace.dt_s, t), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_trace_loops(seed: int) -> None:
    trace = server_trace(_spec((0.9, 1.0)), seed, duration_s=10.0)
    assert trace.work_s.shape == trace.backlog_s.shape == trace.jobs.shape == (5001,)
    assert trace.work_s[0] == trace.jobs[0] == 0
    assert trace.backlog_s[0] == trace.backlog_s[-1]
    slow, work = [float(trace.backlog_s[0])], np.diff(trace.work_s)
    for arrived in work.tolist():
        slow.append(max(slow[-1] - trace.dt_s, 0.0) + arrived)
    assert trace.backlog_s == pytest.approx(slow, abs=1e-9)
    assert work_at(trace.work_s, trace.dt_s, 25.0) == pytest.approx(2 * trace.work_s[-1] + trace.work_s[2500])


def test_work_follows_the_levels() -> None:
    spec = _spec((0.1, 5.0), (0.5, 3.0), (0.8, 2.0))
    assert spec.mean_utilisation == pytest.approx(0.36)
    work = np.mean([server_trace(spec, seed, 2000.0, 0.01).work_s[-1] / 2000.0 for seed in range(5)])
    assert work == pytest.approx(0.36, rel=0.05)
    assert server_trace(_spec((0.0, 1.0)), 0, 1.0).work_s[-1] == 0.0


def test_constant_jobs_are_all_alike() -> None:
    trace = server_trace(_spec((0.5, 1.0), distribution="constant"), seed=0, duration_s=100.0)
    assert trace.work_s == pytest.approx(0.02 * trace.jobs)


def test_larger_batches_and_cheaper_members_mean_less_work() -> None:
    windows = [server_trace(_spec((0.8, 1.0), window=w, marginal=0.3), 3, 100.0).work_s[-1] for w in (0.01, 0.02, 0.04)]
    assert windows[0] > windows[1] > windows[2]
    margins = [server_trace(_spec((0.8, 1.0), window=0.04, marginal=m), 3, 100.0).work_s[-1] for m in (0, 0.3, 1)]
    assert margins[0] < margins[1] < margins[2]
    alone = server_trace(_spec((0.8, 1.0)), 3, 100.0)
    assert margins[2] == pytest.approx(alone.work_s[-1])


def test_a_batch_of_k_equal_jobs_takes_the_stated_time() -> None:
    spec = _spec((0.8, 1.0), distribution="constant", window=0.1, marginal=0.25)
    trace = server_trace(spec, 3, 100.0)
    sizes, members = np.diff(trace.work_s), np.diff(trace.jobs)
    there = members > 0
    assert there.sum() > 500
    assert sizes[there] == pytest.approx(0.02 * (1 + 0.25 * (members[there] - 1)))
    assert (np.flatnonzero(there) + 1).tolist() == [50 * round(i / 50) for i in np.flatnonzero(there) + 1]
    for k in (1, 2, 5):
        assert sum(work_added(0.02, 0.25, others) for others in range(k)) == pytest.approx(0.02 * (1 + 0.25 * (k - 1)))


def test_a_job_of_ours_waits_for_its_batch() -> None:
    assert release_at(0.013, 0.0) == 0.013
    assert release_at(0.013, 0.01) == pytest.approx(0.02)
    assert release_at(0.0, 0.01) == pytest.approx(0.01)
    trace = server_trace(_spec((0.8, 1.0), window=0.1, marginal=0.25), 3, 10.0)
    found = [jobs_released(trace.jobs, trace.dt_s, 0.1 * k) for k in range(1, 201)]
    assert sum(found) == 2 * trace.jobs[-1]
    assert max(found) > 3


def test_the_functions_compile_and_then_give_the_same_numbers() -> None:
    trace = server_trace(_spec((0.8, 1.0), window=0.1, marginal=0.25), 3, 10.0)
    arguments = {
        "work_at": (trace.work_s, trace.dt_s, 13.21),
        "backlog_at": (trace.backlog_s, trace.dt_s, 13.21),
        "wait_at": (trace.work_s, trace.backlog_s, trace.dt_s, 13.1, 0.07, 13.21),
        "release_at": (13.21, 0.1),
        "work_added": (0.02, 0.25, 3.0),
        "jobs_released": (trace.jobs, trace.dt_s, 13.3),
    }
    assert {function.__name__ for function in server.FUNCTIONS} == set(arguments)
    for function in server.FUNCTIONS:
        register_jitable(function)
    for function in server.FUNCTIONS:
        given = arguments[function.__name__]
        assert njit(function)(*given) == function(*given), function.__name__


def test_more_work_than_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lower utilisation, or draw a longer trace"):
        server_trace(_spec((1.5, 1.0)), 0, 20.0)


def test_windows_that_do_not_fit_the_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"whole number of steps"):
        server_trace(_spec((0.5, 1.0), window=0.003), 0, 20.0)
    with pytest.raises(ConfigError, match=r"whole number of steps"):
        server_trace(_spec((0.5, 1.0), window=0.6), 0, 20.0)
