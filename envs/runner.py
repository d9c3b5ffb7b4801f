"""Run a controller over episodes: the same seeds give every controller the same links, frames and stage times."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.controller import Controller, State
from adaptsplit.envs.core import reset_row
from adaptsplit.envs.layout import LINK, LINK_OFFSET, ROW_FIRST, ROW_OFFSET, STATE_SIZE
from adaptsplit.envs.packed import pack
from adaptsplit.envs.simulator import Simulator, Stretch
from adaptsplit.envs.world import World
from adaptsplit.links import LinkTrace
from adaptsplit.outcome import Outcomes

Array = NDArray[Any]
EPISODE = np.dtype(
    [
        ("recording", "U64"),
        ("family", "U32"),
        ("offset_s", "f8"),
        ("segment", "i4"),
        ("first_frame", "i4"),
        ("flight", "i4"),
    ]
)
SEGMENT_S = 60.0


def run_episodes(
    world: World,
    controller: Controller,
    seeds: Array,
    *,
    batch: int = 512,
    seed: int = 0,
    stretch: Stretch | None = None,
) -> Outcomes:
    """Return outcomes (E, F), one record per frame of each of the E episodes.

    A controller that learns does so within its batch row, from outcomes delivered when they would have arrived; each
    episode starts it afresh. ``seed`` feeds the controller's own random numbers. ``stretch`` puts every episode on the
    same piece of link and frames (the seeds then draw stage times and losses only).
    """
    parts = []
    for start in range(0, len(seeds), batch):
        rng = np.random.default_rng([seed, start])
        parts.append(_run_batch(world, controller, seeds[start : start + batch], rng, stretch))
    outcomes = np.concatenate(parts)
    outcomes["env"] = np.arange(len(outcomes))[:, None]
    return outcomes


def _run_batch(
    world: World, controller: Controller, seeds: Array, rng: np.random.Generator, stretch: Stretch | None
) -> Outcomes:
    simulator = Simulator(world, len(seeds), keep_all=True)
    observations = simulator.reset(seeds)
    if stretch is not None:
        observations = simulator.place(stretch)
    state = controller.init(len(seeds), rng)
    delivery = Delivery(simulator)
    while not simulator.done.all():
        decisions, state = controller.act(observations, state)
        simulator.step(np.asarray(decisions, dtype=np.int64))
        if controller.learns:
            state = delivery.hand_out(controller, state)
    return simulator.outcomes()


class Delivery:
    """Hands each outcome to ``learn`` once, at the first decision at which the device would know it."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._delivered = np.zeros(simulator.logs.shape, dtype=np.bool_)

    def hand_out(self, controller: Controller, state: State) -> State:
        """Call ``learn`` with what has become known by now."""
        known = self.known()
        self._delivered |= known
        return controller.learn(self._simulator.logs[known], state) if known.any() else state

    def known(self) -> Array:
        """(n, F) bool: of a frame before the one at hand, known by now, not delivered yet."""
        simulator = self._simulator
        decided = np.arange(simulator.logs.shape[1])[None, :] < simulator.frame[:, None]
        return decided & (simulator.logs["known_s"] <= simulator.now[:, None]) & ~self._delivered


def episode_info(world: World, seeds: Array, traces: list[LinkTrace]) -> Array:
    """Return (E,) records: recording, family, offset, minute of the recording, first profile row, flight."""
    info = np.zeros(len(seeds), dtype=EPISODE)
    packed, state = pack(world), np.zeros(STATE_SIZE)
    for i, seed in enumerate(seeds):
        reset_row(packed, state, seed)
        trace = traces[int(state[LINK])]
        first = int(state[ROW_FIRST])
        flight = int(np.searchsorted(world.flight_first, first))
        segment = int(state[LINK_OFFSET] // SEGMENT_S)
        info[i] = (trace.name, trace.family, state[LINK_OFFSET], segment, first + int(state[ROW_OFFSET]), flight)
    return info
