"""An edge server that other devices use too: its background work as a trace, and the wait that a job of ours meets.

Other devices' jobs arrive as a Poisson process whose rate follows a Markov chain of utilisation levels; the server
works first come, first served. Only the background is drawn in advance; ``wait_at`` lays our own jobs over it exactly.
``server_trace`` is numpy; the functions in ``FUNCTIONS`` are plain scalar code, which the simulator compiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit.config import Config
from adaptsplit.devices.modulation import Array, exponentials, samples_in, sojourns
from adaptsplit.errors import ConfigError
from adaptsplit.links.draws import Draws

_LEVELS, _ARRIVALS, _SIZES = 311, 312, 313  # purposes of random numbers: none of the link generators uses them


class UtilisationLevel(Config):
    """Background work offered per second (s/s; above 1 the queue grows), and the mean time that it lasts, s."""

    utilisation: float = Field(ge=0, le=10)
    mean_s: float = Field(gt=0)


class ServerSpec(Config):
    """The background of a shared server; the values are a scenario's choice.

    ``utilisation``: levels of offered work, each for an exponential time. ``job_s``: mean service time of another
    device's job, s, with the given ``distribution``. With ``batch_window_s`` > 0 the server collects jobs in windows of
    that length and releases each window's batch at its end; a batch of k equal jobs takes
    ``job * (1 + batch_marginal * (k - 1))``, one of unequal jobs the longest plus ``batch_marginal`` times the others.
    """

    utilisation: tuple[UtilisationLevel, ...] = Field(min_length=1)
    job_s: float = Field(gt=0)
    distribution: Literal["exponential", "constant"] = "exponential"
    batch_window_s: float = Field(default=0.0, ge=0)
    batch_marginal: float = Field(default=1.0, ge=0, le=1)

    @property
    def mean_utilisation(self) -> float:
        """Long-run offered work per second, before batching saves any."""
        total = sum(level.mean_s for level in self.utilisation)
        return sum(level.utilisation * level.mean_s for level in self.utilisation) / total


@dataclass(frozen=True, slots=True)
class ServerTrace:
    """Background of one server at the H + 1 instants i * ``dt_s``; it repeats after H steps.

    ``work_s`` (H+1,): work that has arrived, cumulative, s of server time, 0 at first. ``backlog_s`` (H+1,): unfinished
    background work at that instant, arrivals of the instant included; the last equals the first. ``jobs`` (H+1,):
    cumulative number of background jobs. Work and jobs jump at grid instants only.
    """

    dt_s: float
    work_s: Array
    backlog_s: Array
    jobs: NDArray[np.int64]


def server_trace(spec: ServerSpec, seed: int, duration_s: float, dt_s: float = 0.002) -> ServerTrace:
    """Draw the background of ``duration_s`` seconds on a grid of ``dt_s``.

    A job arrives at the first grid instant at or after its drawn time (a batch, after its window's end), so waits are
    exact for the trace and within about ``dt_s`` for the drawn process. ConfigError when duration, window and step are
    not multiples of one another, or when more work arrives than the server can do in ``duration_s``: then no backlog
    would close the loop.
    """
    steps = samples_in(duration_s, dt_s)
    release, work, jobs = _released(spec, *_arrivals(spec, seed, duration_s), duration_s, dt_s)
    slot = np.clip(np.ceil(release / dt_s - 1e-6).astype(np.int64), 1, steps)
    work_s: Array = np.cumsum(np.bincount(slot, weights=work, minlength=steps + 1), dtype=np.float64)
    counts = np.cumsum(np.bincount(slot, weights=jobs, minlength=steps + 1)).astype(np.int64)
    if work_s[-1] > duration_s:
        raise ConfigError(
            f"server: {work_s[-1]:.4g} s of background work in {duration_s} s (seed {seed}); expected less work than"
            " time: lower utilisation, or draw a longer trace"
        )
    return ServerTrace(dt_s, work_s, _closed(work_s, dt_s), counts)


def _arrivals(spec: ServerSpec, seed: int, duration_s: float) -> tuple[Array, Array]:
    """Arrival times (n,) and service times (n,): unit-rate exponentials through the inverse of the summed rate."""
    starts, states = sojourns(Draws(seed, _LEVELS), [level.mean_s for level in spec.utilisation], duration_s)
    rates = np.array([level.utilisation / spec.job_s for level in spec.utilisation])[states]
    edges = np.append(starts, duration_s)
    expected = np.concatenate(([0.0], np.cumsum(rates * np.diff(edges))))
    total = float(expected[-1])
    gaps = exponentials(Draws(seed, _ARRIVALS), int(total + 10.0 * math.sqrt(total)) + 20)
    events = np.cumsum(gaps)
    times = np.interp(events[events < total], expected, edges)
    if spec.distribution == "constant":
        return times, np.full(len(times), spec.job_s)
    return times, spec.job_s * exponentials(Draws(seed, _SIZES), len(times))


def _released(
    spec: ServerSpec, times: Array, sizes: Array, duration_s: float, dt_s: float
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Instants at which jobs or batches join the queue, the work of each, and its number of jobs."""
    if spec.batch_window_s == 0.0 or len(times) == 0:
        return times, sizes, np.ones(len(times), dtype=np.int64)
    samples_in(spec.batch_window_s, dt_s)
    last = samples_in(duration_s, spec.batch_window_s) - 1
    window = np.minimum((times / spec.batch_window_s).astype(np.int64), last)
    number, first, counts = np.unique(window, return_index=True, return_counts=True)
    longest, total = np.maximum.reduceat(sizes, first), np.add.reduceat(sizes, first)
    return (number + 1) * spec.batch_window_s, longest + spec.batch_marginal * (total - longest), counts


def _closed(work_s: Array, dt_s: float) -> Array:
    """Backlog (H+1,) of the repeated trace: Lindley's recursion on the grid, twice round.

    backlog[i+1] = max(backlog[i] - dt, 0) + arrivals[i+1]. As at most one round's time of work arrives in a round, the
    second round ends with what it began with.
    """
    time_s = dt_s * np.arange(len(work_s))
    free = work_s - time_s
    just_before = np.append(0.0, work_s[:-1] - time_s[1:])  # left limits; the first entry is the round's start
    just_before[0] = just_before[1:].min() - free[-1]  # minus the backlog with which the first round ends
    backlog: Array = free - np.minimum.accumulate(just_before)
    backlog[-1] = backlog[0]
    return backlog


def work_at(work_s: Array, dt_s: float, t: float) -> float:
    """Background work that has arrived by ``t`` >= 0, s of server time; the trace repeats."""
    step = int(t / dt_s + 1e-6)  # a release time may round to just below its grid instant
    steps = len(work_s) - 1
    lap = step // steps
    return float(lap * work_s[steps] + work_s[step - lap * steps])


def backlog_at(backlog_s: Array, dt_s: float, t: float) -> float:
    """Unfinished work at ``t`` >= 0 if none of our jobs had come, s: W(t) = max(backlog[i] - (t - t_i), 0)."""
    step = int(t / dt_s + 1e-6)  # a release time may round to just below its grid instant
    return float(max(backlog_s[step % (len(backlog_s) - 1)] - (t - step * dt_s), 0.0))


def wait_at(work_s: Array, backlog_s: Array, dt_s: float, t_prev: float, v_prev: float, t: float) -> float:
    """Wait of a job of ours that arrives at ``t`` >= ``t_prev``, s: the unfinished work V(t) that it finds.

    ``v_prev`` = V(``t_prev``) includes our own job of that moment; start with V(0) = ``backlog_s[0]``. After serving,
    V(t) + service is the next ``v_prev``. None of our jobs may arrive between the two times::

        V(t) = max(V(t_prev) + work(t) - work(t_prev) - (t - t_prev), W(t))

    Proof. With x(s) = work(s) - s, a queue that starts with v at t_prev holds the larger of v + x(t) - x(t_prev) and
    max over t_prev <= s <= t of x(t) - x(s-) (Lindley 1952, unrolled), and W(t) is the same with W(t_prev) for v. As
    V(t_prev) >= W(t_prev), taking the larger of V's first term and W(t) adds nothing that V's own maximum lacks.
    """
    arrived = work_at(work_s, dt_s, t) - work_at(work_s, dt_s, t_prev)
    return max(v_prev + arrived - (t - t_prev), backlog_at(backlog_s, dt_s, t))


def release_at(t: float, batch_window_s: float) -> float:
    """When a job that arrives at ``t`` joins the queue, s: at its window's end, or at once without batching."""
    if batch_window_s <= 0.0:
        return t
    return (math.floor(t / batch_window_s) + 1.0) * batch_window_s


def work_added(service_s: float, batch_marginal: float, others: float) -> float:
    """Work that a job of ours adds to a batch that already has ``others`` jobs (its whole service to an empty one), s.

    The marginal cost of one more equal job: ``service * (1 + marginal * others)`` minus the same with one job fewer.
    """
    return service_s if others <= 0.0 else batch_marginal * service_s


def jobs_released(jobs: NDArray[np.int64], dt_s: float, t: float) -> int:
    """Return how many background jobs join the queue at the grid instant nearest to ``t`` (the batch's others)."""
    steps = len(jobs) - 1
    step = round(t / dt_s) % steps
    if step == 0:
        step = steps
    return int(jobs[step] - jobs[step - 1])


FUNCTIONS: tuple[Callable[..., Any], ...] = (work_at, backlog_at, wait_at, release_at, work_added, jobs_released)
