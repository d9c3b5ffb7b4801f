"""The test that a policy must pass on the device itself before it may decide: it runs, legally, in time, as exported.

A bundle may carry a *golden episode* (``selftest`` in its manifest): the seed of drawn observations and what the
controller decided on them on the machine that exported it. The device runs the same observations, what it saw itself
lately, and the corners of the observation space. Nothing here looks at how good the decisions are.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adaptsplit import observation as obs
from adaptsplit.config import Config
from adaptsplit.controller import Controller, Observations
from adaptsplit.decision import DecisionSpace
from adaptsplit.errors import AdaptsplitError, BundleError
from adaptsplit.guard_time import CallError, Overrun, TimeBox
from adaptsplit.testing import extreme_observations

GOLDEN_SEED = 2026
GOLDEN_COUNT = 128
MAX_GOLDEN = 1024
MAX_ROWS = 1 << 16
MIN_AGREEMENT = 0.98  # of the golden decisions: float32 sums differ between processors, and near ties turn (assumption)
LATE_QUANTILE = 0.99
TEST_S = 20.0  # for one episode; a policy that hangs ends here (assumption)


class SelfTest(Config):
    """A golden episode: rows of the decision space's table, one for each of the observations drawn from ``seed``."""

    seed: int = Field(ge=0, lt=1 << 32)
    decisions: tuple[int, ...] = Field(min_length=1, max_length=MAX_GOLDEN)


class FailedSelfTest(BundleError):
    """A controller that did not pass its self-test; the message says what it did."""


def drawn(seed: int, count: int) -> Observations:
    """Return (count, D) observations, uniform in 0..1: the same on every machine (PCG64)."""
    return np.random.default_rng(seed).random((count, obs.SIZE), dtype=np.float32)


def golden_episode(controller: Controller, space: DecisionSpace, kind: str) -> SelfTest | None:
    """Return the golden episode of a controller; None for one that draws or learns, whose decisions are not fixed."""
    if kind == "random" or controller.learns:
        return None
    decisions, _ = _episode(controller, space, drawn(GOLDEN_SEED, GOLDEN_COUNT))
    return SelfTest(seed=GOLDEN_SEED, decisions=tuple(_rows(space, decisions).tolist()))


def self_test(
    controller: Controller,
    space: DecisionSpace,
    *,
    budget_s: float,
    golden: SelfTest | None = None,
    recent: Observations | None = None,
) -> float:
    """Run a controller on golden, recent and extreme observations; return its 99th percentile of time, s.

    FailedSelfTest when it raises, hangs, decides outside of the space, decides otherwise the second time or than the
    golden episode says, or takes longer than ``budget_s`` at the 99th percentile. ``recent`` is (n, D); rows that are
    not finite are left out. Runs in a thread of its own and blocks for up to 40 s.
    """
    seen = np.zeros((0, obs.SIZE), np.float32) if recent is None else recent[np.isfinite(recent).all(axis=1)]
    first = drawn(golden.seed, len(golden.decisions)) if golden is not None else drawn(GOLDEN_SEED, GOLDEN_COUNT)
    shown = np.concatenate([first, seen.astype(np.float32), extreme_observations()])
    (decisions, times), (again, more) = (_boxed(controller, space, shown) for _ in range(2))
    if not np.array_equal(decisions, again):
        raise FailedSelfTest(f"controller {controller.name!r} decides otherwise on the same observations; train again")
    if golden is not None:
        _compare(controller.name, _rows(space, decisions[: len(first)]), np.array(golden.decisions))
    late = min(float(np.quantile(run, LATE_QUANTILE)) for run in (times, more))  # of a busy device, the calmer run
    if late > budget_s:
        raise FailedSelfTest(
            f"controller {controller.name!r} takes {late * 1e3:.2f} ms at the 99th percentile; the budget here is "
            f"{budget_s * 1e3:.2f} ms: take a smaller policy"
        )
    return late


def _compare(name: str, found: NDArray[np.int64], expected: NDArray[np.int64]) -> None:
    agreement = float(np.mean(found == expected))
    if agreement < MIN_AGREEMENT:
        raise FailedSelfTest(
            f"controller {name!r} decides as exported on {agreement:.1%} of {len(expected)} observations; expected "
            f"{MIN_AGREEMENT:.0%}: export it again, with the version of adaptsplit that runs here"
        )


def _boxed(controller: Controller, space: DecisionSpace, shown: Observations) -> tuple[NDArray[np.int64], list[float]]:
    box: TimeBox[tuple[NDArray[np.int64], list[float]]] = TimeBox(TEST_S)
    try:
        return box.call(lambda: _episode(controller, space, shown))
    except Overrun as error:
        raise FailedSelfTest(f"controller {controller.name!r} did not end its self-test in {TEST_S:g} s") from error
    except CallError as error:
        raise FailedSelfTest(f"controller {controller.name!r} failed in its self-test: {error}") from error
    finally:
        box.close()


def _episode(
    controller: Controller, space: DecisionSpace, shown: Observations
) -> tuple[NDArray[np.int64], list[float]]:
    """Decide on (n, D) observations in order, as a device does; return (n, 3) decisions and n times, s."""
    state = controller.init(1, np.random.default_rng(GOLDEN_SEED))
    decisions, times = np.zeros((len(shown), 3), np.int64), []
    for i, row in enumerate(shown):
        begun = time.perf_counter()
        chosen, state = controller.act(row[None].copy(), state)
        times.append(time.perf_counter() - begun)
        decisions[i] = _legal(np.asarray(chosen), space)
    return decisions, times


def _legal(chosen: NDArray[np.int64], space: DecisionSpace) -> NDArray[np.int64]:
    if chosen.shape != (1, 3) or chosen.dtype.kind not in "iu":
        raise AdaptsplitError(f"decided {chosen.dtype} {chosen.shape}; expected (1, 3) whole numbers")
    if not ((chosen >= 0) & (chosen < np.array(space.shape))).all():
        raise AdaptsplitError(f"decided {chosen[0].tolist()}, outside of {space.shape}")
    return np.asarray(space.canonical(chosen)[0])


def _rows(space: DecisionSpace, decisions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows (n,) of the table that canonical decisions (n, 3) are."""
    codes = np.ravel_multi_index(tuple(decisions.T), space.shape)
    return np.asarray(np.searchsorted(space.codes, codes), dtype=np.int64)
