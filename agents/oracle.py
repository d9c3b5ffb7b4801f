"""Oracles: plans made on the simulator by somebody who knows more than any controller may.

* **clairvoyant** knows everything to come, labels too: beam search over the whole episode with the true outcomes.
* **informed(lookahead)** does not know labels. It plans on the quality to be expected given the confidences of the
  frame's exits and its content signals (least squares, fitted on policy-train), and knows link and frames for
  ``lookahead`` seconds; infinity is the whole episode. With 0 it knows the current capacity and the current frame only
  and takes the decision that is best in the mean over what followed at similar moments of the policy-train links.

Each plan is then played in the true world. ``rivals`` (what controllers did) compete with the searched plan under the
oracle's own knowledge, so that a clairvoyant is never below a controller that it was shown.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import NEVER_EXIT, DecisionSpace
from adaptsplit.devices.processes import active_power_factor
from adaptsplit.envs.bound import relaxed_bound
from adaptsplit.envs.core import reset_row
from adaptsplit.envs.expected import expected_world
from adaptsplit.envs.foresight import PAST_S, Moments, foresee, recent_background
from adaptsplit.envs.layout import STATE_SIZE
from adaptsplit.envs.link import bits_until
from adaptsplit.envs.packed import pack
from adaptsplit.envs.plan import SPAN, beam, recede, replay
from adaptsplit.envs.world import World
from adaptsplit.errors import UnknownNameError
from adaptsplit.outcome import OUTCOME, Outcomes
from adaptsplit.registry import did_you_mean

Array = NDArray[Any]
Progress = Callable[[int, int], None]

LOOKAHEAD_S = {
    "oracle-informed-0": 0.0,
    "oracle-informed-0.5": 0.5,
    "oracle-informed": math.inf,
    "oracle-clairvoyant": math.inf,
}
BEAM = 24
RECEDING_BEAM = 6
RECEDING_HORIZON_S = 1.0
HOLD_FRAMES = 3
MOMENT_S = 0.25
NO_MOMENTS = Moments(np.zeros((0, 3)), np.zeros((0, 2)), np.zeros((0, 2)))


def oracle_names() -> list[str]:
    """Return the names of all oracles."""
    return list(LOOKAHEAD_S)


def candidates_of(space: DecisionSpace, table: Array | None = None) -> Array:
    """Return candidates (C, 4) floats (branch, rate, threshold value, patience).

    Over the whole space an oracle needs no thresholds between always and never: it knows the confidence. ``table``
    (M, 3) indices restricts it (a knob frozen), then each row is a candidate as it is.
    """
    rows = space.table if table is None else table
    values = np.array(space.thresholds)[rows[:, 2]]
    if table is None:
        rows = rows[(values <= 0.0) | (values > 1.0) | space.answers_alone[rows[:, 0]]]
        values = np.array(space.thresholds)[rows[:, 2]]
    patience = np.array(space.patience)[rows[:, 2]]
    return np.column_stack([rows[:, :2], np.minimum(values, NEVER_EXIT), patience]).astype(np.float64)


def similar_moments(train: World) -> Array:
    """Return (M, 3) moments (capacity of the last half second, link, time) of the policy-train links, ascending."""
    packed, rows = pack(train), []
    for link in range(len(train.links.samples)):
        duration = train.links.samples[link] * train.links.dt_s[link]
        for time in np.arange(PAST_S, max(duration, 2 * PAST_S), MOMENT_S):
            bits = bits_until(packed, link, time) - bits_until(packed, link, time - PAST_S)
            rows.append((bits / PAST_S, link, time))
    return _ascending(np.array(rows, dtype=np.float64))


def similar_server(train: World) -> Array:
    """Return (M, 2) moments (recent background work, time) of the policy-train server, ascending."""
    if len(train.server.work_s) == 0:
        return np.zeros((0, 2))
    packed, duration = pack(train), (len(train.server.work_s) - 1) * train.server.dt_s
    times = np.arange(PAST_S, duration, MOMENT_S)
    return _ascending(np.column_stack([[recent_background(packed, time) for time in times], times]))


def similar_load(train: World) -> Array:
    """Return (M, 2) moments (load, time) of the policy-train board, ascending in load."""
    load = train.device.load
    return _ascending(np.column_stack([load, np.arange(len(load)) * train.device.load_dt_s]))


def _ascending(moments: Array) -> Array:
    return np.ascontiguousarray(moments[np.argsort(moments[:, 0], kind="stable")])


def plan(
    world: World,
    train: World,
    space: DecisionSpace,
    seeds: Array,
    name: str,
    *,
    table: Array | None = None,
    rivals: Sequence[Outcomes] = (),
    width: int | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """Return the outcomes (E, F) of the named oracle on the episodes ``seeds`` of ``world``.

    ``train`` is the policy-train world that expectations are fitted on; ``progress(done, total)`` is called after each
    episode. UnknownNameError for a name that is no oracle.
    """
    if name not in LOOKAHEAD_S:
        raise UnknownNameError(f"oracle {name!r}{did_you_mean(name, LOOKAHEAD_S)} Known: {', '.join(LOOKAHEAD_S)}.")
    imagined = world if name == "oracle-clairvoyant" else expected_world(world, train)
    lookahead, moments = LOOKAHEAD_S[name], NO_MOMENTS
    if lookahead == 0.0:
        board = imagined.device._replace(load=train.device.load)
        imagined = imagined._replace(links=train.links, server=train.server, device=board)
        moments = Moments(similar_moments(train), similar_server(train), similar_load(train))
    candidates, outcomes = candidates_of(space, table), np.zeros((len(seeds), world.constants.frames), dtype=OUTCOME)
    threads = min(os.cpu_count() or 1, len(seeds))
    done = iter(range(1, len(seeds) + 1))

    def work(first: int) -> None:
        searcher = _Searcher(world, imagined, candidates, lookahead, width, moments)
        for i in range(first, len(seeds), threads):
            searcher.run(seeds[i], outcomes[i], [rival[i] for rival in rivals])
            if progress is not None:
                progress(next(done), len(seeds))

    with ThreadPoolExecutor(threads, "adaptsplit-oracle") as pool:  # the compiled search lets go of the lock
        list(pool.map(work, range(threads)))
    outcomes["env"] = np.arange(len(seeds))[:, None]
    return outcomes


def bound(world: World, space: DecisionSpace, seeds: Array) -> Array:
    """Return the relaxed upper bound (E,) of the mean reward per frame of each episode."""
    links = world.links
    samples = [links.table[a : a + count, 2].min() for a, count in zip(links.first, links.samples, strict=True)]
    rtt = float(min(samples))
    state = np.zeros(STATE_SIZE)
    candidates = candidates_of(space)
    packed = pack(world)
    heat = world.device.thermal
    slowest = min(heat.minimum_clock, heat.hard_speed) if world.device.has_thermal else 1.0
    least_w = world.constants.compute_w * active_power_factor(slowest) / slowest
    values = [relaxed_bound(packed, state, seed, candidates, rtt, least_w) for seed in seeds]
    return np.array(values) / world.constants.frames


class _Searcher:
    """Buffers of the compiled search, and the choice between the searched plan and the rivals'."""

    def __init__(
        self,
        world: World,
        imagined: World,
        candidates: Array,
        lookahead: float,
        width: int | None,
        moments: Moments,
    ) -> None:
        self.world, self.imagined = pack(world), pack(imagined)
        self.candidates, self.lookahead, self.frames = candidates, lookahead, world.constants.frames
        c = world.constants
        whole = math.isinf(lookahead)
        self.width = width or (BEAM if whole else RECEDING_BEAM)
        self.horizon = c.frames if whole else max(2, round(max(lookahead, RECEDING_HORIZON_S) * c.fps))
        depth = math.ceil(c.deadline_s * c.fps) + 3
        self.planning_log = np.zeros(depth, dtype=OUTCOME)
        self.moments = moments
        self.state = np.zeros(STATE_SIZE)
        self.buffers = (
            np.zeros((SPAN, self.width, STATE_SIZE)),
            np.zeros((SPAN, self.width, depth), dtype=OUTCOME),
            np.zeros((SPAN, self.width)),
            np.zeros((SPAN, self.width, self.horizon), dtype=np.int64),
            np.zeros(SPAN, dtype=np.int64),
            np.zeros(STATE_SIZE),
            np.zeros(depth, dtype=OUTCOME),
            np.zeros(len(candidates), dtype=np.bool_),
            np.zeros(self.horizon, dtype=np.int64),
            np.zeros((len(candidates), 3)),
        )

    def run(self, seed: np.uint64, log: Outcomes, rivals: Sequence[Outcomes]) -> None:
        """Plan one episode and play it in the true world into ``log`` (F,)."""
        if math.isinf(self.lookahead):
            reset_row(self.imagined, self.state, seed)
            beam(
                self.imagined,
                self.state,
                self.planning_log,
                seed,
                self.candidates,
                self.frames,
                math.inf,
                self.width,
                self.buffers,
            )
            chosen = self.buffers[8]
            searched = np.where(chosen[:, None] >= 0, self.candidates[chosen], -1.0)
            replay(self.world, self.state, log, seed, self._best(seed, log, searched, rivals))
            return
        if self.lookahead == 0.0:
            foresee(
                self.world,
                self.imagined,
                self.state,
                log,
                seed,
                self.candidates,
                self.moments,
                HOLD_FRAMES,
                self.planning_log,
                self.buffers,
            )
            return
        recede(
            self.world,
            self.imagined,
            self.state,
            log,
            seed,
            self.candidates,
            self.lookahead,
            self.horizon,
            self.width,
            self.planning_log,
            self.buffers,
        )

    def _best(self, seed: np.uint64, log: Outcomes, searched: Array, rivals: Sequence[Outcomes]) -> Array:
        plans = [searched, *(_plan_of(rival) for rival in rivals)]
        values = [replay(self.imagined, self.state, log, seed, each) for each in plans]
        return plans[int(np.argmax(values))]


def _plan_of(outcomes: Outcomes) -> Array:
    taken = np.column_stack([outcomes[name] for name in ("branch", "rate", "threshold", "patience")]).astype(np.float64)
    return np.where(outcomes["branch"][:, None] >= 0, taken, -1.0)
