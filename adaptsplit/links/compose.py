"""Link traces made from link traces: joined, interrupted, given another's round trip, or varied within their samples.

Pure functions; each adds one line of provenance. ``LinkTrace.slice``, ``scaled`` and ``with_rtt`` belong to the same
family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import LinkError
from adaptsplit.links.draws import Draws, ar1
from adaptsplit.links.recording import Recording
from adaptsplit.links.trace import MAX_SAMPLES, REPORTED, Array, LinkTrace

MAX_OUTAGES = 1_000_000


def splice(traces: Sequence[LinkTrace], name: str | None = None, family: str | None = None) -> LinkTrace:
    """Join traces end to end, in the order given.

    Args:
        traces: at least one. Where sample lengths differ, all are sampled at the shortest; means are kept.
        name: of the result; made from the parts' names when left out.
        family: of the result; that of the first part when left out.

    What a device reports (signal, SINR, altitude) is kept where every part has it.

    Raises:
        LinkError: no trace, or too many samples.

    >>> one = LinkTrace("a", "demo", 1.0, np.array([8.0]), np.array([0.1]), np.zeros(1))
    >>> splice([one, one.scaled(2.0)]).capacity_bps.tolist()
    [8.0, 16.0]
    """
    if not traces:
        raise LinkError("splice: no trace to join; give at least one")
    dt_s = min(trace.dt_s for trace in traces)
    counts = [max(1, round(trace.duration_s / dt_s)) for trace in traces]
    _check_count("splice", sum(counts))
    kept = [field for field in REPORTED if all(getattr(trace, field) is not None for trace in traces)]
    joined = {
        field: np.concatenate(
            [
                looped_mean(getattr(trace, field), trace.dt_s, dt_s, count)
                for trace, count in zip(traces, counts, strict=True)
            ]
        )
        for field in ("capacity_bps", "rtt_s", "loss", *kept)
    }
    names = [trace.name for trace in traces]
    label = "+".join(names) if len(names) <= 3 else f"{names[0]}+{len(names) - 1} more"
    lines = [f"part {k} ({trace.name}): {line}" for k, trace in enumerate(traces, 1) for line in trace.provenance]
    lines.append(f"splice of {len(traces)} parts, {sum(counts)} samples of {dt_s:g} s")
    return LinkTrace(name or label, family or traces[0].family, dt_s, provenance=tuple(lines), **joined)


def inject_outages(trace: LinkTrace, every_s: float, mean_s: float, seed: int) -> LinkTrace:
    """Take the capacity away now and then: an alternating renewal process, begun in its stationary state.

    Args:
        trace: what to interrupt.
        every_s: mean time with a link between outages, s, exponential.
        mean_s: mean length of an outage, s, exponential.
        seed: of the draws.

    A sample is without capacity where an outage covers its beginning, so the expected share of such samples is
    ``mean_s / (every_s + mean_s)`` at any sample length; an outage shorter than a sample may fall between two.

    Raises:
        LinkError: a time that is not above 0, or nothing left of the capacity.
    """
    for what, value in (("every_s", every_s), ("mean_s", mean_s)):
        if not (math.isfinite(value) and value > 0):
            raise LinkError(f"{trace.name}: outages with {what} = {value!r}, expected a finite time above 0 s")
    if trace.duration_s / (every_s + mean_s) > MAX_OUTAGES:
        raise LinkError(f"{trace.name}: outages every {every_s:g} s are more than {MAX_OUTAGES}; make them rarer")
    out = _out(trace, every_s, mean_s, _seeded(trace, seed))
    capacity = np.where(out, 0.0, trace.capacity_bps)
    if not capacity.any():
        raise LinkError(
            f"{trace.name}: outages of {mean_s:g} s every {every_s:g} s with seed {seed} leave no capacity; "
            "make them shorter or rarer, or take another seed"
        )
    note = (
        f"outages: every {every_s:g} s for {mean_s:g} s on average, seed {seed}; "
        f"{int(out.sum())} of {len(trace)} samples"
    )
    return replace(trace, capacity_bps=capacity, provenance=(*trace.provenance, note))


def rtt_from(trace: LinkTrace, other: Recording | LinkTrace) -> LinkTrace:
    """Give a trace the round-trip times of another recording, from its beginning on.

    They are averaged over the trace's samples (held where the other's samples are longer), and looped where the other
    is shorter.

    Raises:
        LinkError: the other recording has no round-trip times.
    """
    if isinstance(other, LinkTrace):
        found = other.rtt_s
    elif "rtt_s" in other.columns:
        found = other.columns["rtt_s"]
    else:
        raise LinkError(f"{other.name}: no round-trip times, only {', '.join(other.columns)}; name another recording")
    rtt = np.round(looped_mean(found, other.dt_s, trace.dt_s, len(trace)), 9)
    times = trace.duration_s / (found.size * other.dt_s)
    looped = f", looped {times:.1f} times" if times > 1 + 1e-9 else ""
    note = f"round-trip times of {other.name} ({found.size} samples of {other.dt_s:g} s{looped})"
    origin = (f"{other.name}: {line}" for line in other.provenance)
    return replace(trace, rtt_s=rtt, provenance=(*trace.provenance, note, *origin))


def jittered(trace: LinkTrace, dt_s: float, cv: float, correlation_s: float, seed: int) -> LinkTrace:
    """Vary the capacity within the samples of a coarse trace, keeping the mean over each of them.

    Args:
        trace: what to vary; every one of its samples becomes ``m = trace.dt_s / dt_s`` samples.
        dt_s: new sample length, s; a whole fraction of the old.
        cv: standard deviation over mean of the factors before they are normalised, above 0 and at most 3.
        correlation_s: time after which ln(factor) is forgotten, s; 0 for factors that do not depend on one another.
        seed: of the draws.

    The factors are ``exp`` of an AR(1) process, divided by their mean over each old sample. That takes away what they
    have in common within it: for small ``cv`` the spread left within a sample is ``cv sqrt(1 - v)``, where ``v`` is
    the variance of the mean of ``m`` values of the process. Capacities are whole bit/s but for the last new sample of
    each old one, which makes the sum exact. Other columns are held.

    Raises:
        LinkError: a value out of range, or ``dt_s`` that does not divide the old sample length.
    """
    parts = _parts(trace, dt_s)
    if not (0 < cv <= 3 and math.isfinite(correlation_s) and correlation_s >= 0):
        raise LinkError(
            f"{trace.name}: jitter with cv = {cv!r} and correlation_s = {correlation_s!r}, "
            "expected cv above 0, at most 3, and a time of at least 0 s"
        )
    _seeded(trace, seed)
    correlation = math.exp(-dt_s / correlation_s) if correlation_s > 0 else 0.0
    factors = np.exp(math.sqrt(math.log1p(cv**2)) * ar1(Draws(seed, 0), len(trace) * parts, correlation))
    capacity = _shared_out(trace.capacity_bps, factors.reshape(-1, parts))
    held: dict[str, Any] = {
        field: np.repeat(getattr(trace, field), parts)
        for field in ("rtt_s", "loss", *REPORTED)
        if getattr(trace, field) is not None
    }
    note = f"variation within {trace.dt_s:g} s: samples of {dt_s:g} s, cv {cv:g}, correlation {correlation_s:g} s"
    provenance = (*trace.provenance, f"{note}, seed {seed}")
    return replace(trace, dt_s=dt_s, capacity_bps=capacity, provenance=provenance, **held)


def looped_mean(values: Array, dt_s: float, new_dt_s: float, count: int) -> Array:
    """Sample a looped, piecewise constant signal anew.

    Args:
        values: (n,) samples of ``dt_s``, each held for its length.
        dt_s: length of a sample, s.
        new_dt_s: length of a sample of the result, s.
        count: samples of the result.

    Returns:
        (count,) the mean over each new sample, between the least and the greatest of ``values``.
    """
    if math.isclose(dt_s, new_dt_s, rel_tol=1e-9):
        same: Array = values[np.arange(count) % values.size]
        return same
    at = np.arange(count + 1) * (new_dt_s / dt_s)  # in samples of the old signal
    loops = np.floor(at / values.size + 1e-12)
    phase = np.clip(at - loops * values.size, 0, values.size)
    total = np.concatenate(([0.0], np.cumsum(values)))
    integral = loops * total[-1] + np.interp(phase, np.arange(values.size + 1), total)
    mean = np.diff(integral) * (dt_s / new_dt_s)
    # Differences of a long sum leave dust: it must neither turn an outage into a crawl nor leave the range.
    mean[np.abs(mean) < 1e-9 * float(np.abs(values).max())] = 0.0
    bounded: Array = np.clip(mean, values.min(), values.max())
    return bounded


def _out(trace: LinkTrace, every_s: float, mean_s: float, seed: int) -> NDArray[np.bool_]:
    """(H,) true where an outage covers the beginning of the sample."""
    draws = Draws(seed, 0)
    out = bool(draws.uniform(1)[0] < mean_s / (every_s + mean_s))
    flags = np.zeros(len(trace), dtype=np.bool_)
    begin = t = 0.0
    while begin < trace.duration_s:
        t += draws.exponential(mean_s if out else every_s)
        if out:
            flags[math.ceil(begin / trace.dt_s) : math.ceil(t / trace.dt_s)] = True
        begin, out = t, not out
    return flags


def _parts(trace: LinkTrace, dt_s: float) -> int:
    """How many new samples make an old one; LinkError unless at least two whole ones do."""
    parts = round(trace.dt_s / dt_s) if math.isfinite(dt_s) and dt_s > 0 else 0
    if parts < 2 or not math.isclose(parts * dt_s, trace.dt_s, rel_tol=1e-6):
        raise LinkError(
            f"{trace.name}: jitter in samples of {dt_s!r} s, expected a whole fraction of its samples of "
            f"{trace.dt_s:g} s, such as {trace.dt_s / 2:g} or {trace.dt_s / 10:g} s"
        )
    _check_count(trace.name, len(trace) * parts)
    return parts


def _shared_out(capacity: Array, factors: Array) -> Array:
    """(n m,) capacities in proportion to ``factors`` (n, m) whose mean over each row is ``capacity`` (n,)."""
    total = capacity * factors.shape[1]
    ends = np.cumsum(factors, axis=1) / factors.sum(axis=1, keepdims=True)
    # Whole numbers: the last bit of exp differs between processors, the trace must not.
    filled = np.minimum(np.rint(ends * total[:, None]), total[:, None])
    filled[:, -1] = total
    shared: Array = np.diff(filled, axis=1, prepend=0.0).ravel()
    return shared


def _seeded(trace: LinkTrace, seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise LinkError(f"{trace.name}: seed {seed!r}, expected a whole number, at least 0")
    return seed


def _check_count(name: str, count: int) -> None:
    if count > MAX_SAMPLES:
        raise LinkError(f"{name}: {count} samples, at most {MAX_SAMPLES}; shorten it, or choose longer samples")
