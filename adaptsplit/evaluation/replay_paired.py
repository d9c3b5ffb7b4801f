"""A live run played again frame by frame, with the very stage times that each frame had: the controllers decide anew.

Live and simulated run share everything that was chance: the delays of link and host (``replay_link``), the stage times
(``replay_times``), and the instant at which a frame was taken up. What differs between them is then the simulator's
doing: estimates, observations, decisions, the sender, payloads, qualities; near ties are not tipped by another draw.
The core is the simulator's compiled one, untouched; before each step the stage tables of its world hold the times of
the frame at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.bundle import Bundle
from adaptsplit.controller import Controller, Decisions, Observations
from adaptsplit.envs import episode_seeds
from adaptsplit.envs.core import look
from adaptsplit.envs.layout import NOW
from adaptsplit.envs.packed import ENCODE, HEAD, SIGNAL, TAIL
from adaptsplit.envs.runner import Delivery
from adaptsplit.envs.sender import deliver
from adaptsplit.envs.simulator import Simulator
from adaptsplit.evaluation.replay import Replay, guarded
from adaptsplit.evaluation.replay_times import FrameTimes, frame_times
from adaptsplit.outcome import Outcomes
from adaptsplit.recorded_run import Seen

Array = NDArray[np.float64]

PLACES = {"head": HEAD, "encode": ENCODE, "tail": TAIL, "signal": SIGNAL}


@dataclass(frozen=True, slots=True)
class Played:
    """Records (repeats, F), and what was observed on each frame of the first of them, by frame (D,)."""

    outcomes: Outcomes
    observed: Mapping[int, Seen]


class Player:
    """One device of the replay: ``observe`` what it sees of the frame at hand, then ``step``."""

    def __init__(self, replayed: Replay, times: FrameTimes, seed: int) -> None:
        self._times, self._modelled = times, replayed.own.stages
        self.simulator = Simulator(replayed.own, 1, keep_all=True)
        self.simulator.reset(episode_seeds(seed, 1, "test"))
        self._taken_up = self.simulator.place(replayed.stretch)
        self._tables = _tables(self.simulator)

    @property
    def frame(self) -> int:
        """The frame at hand."""
        return int(self.simulator.frame[0])

    def observe(self) -> Observations:
        """Return (1, D) what the device knows when it takes the frame up, as late as the live device was at that.

        A frame that the live device never looked at is seen as soon as the device is free, as in any simulation.
        """
        late = self._times.late[self.frame]
        if math.isnan(late):
            return self._taken_up
        s = self.simulator
        state, raw, seen = s.states[0].copy(), np.zeros(obs.SIZE), np.zeros((1, obs.SIZE), dtype=np.float32)
        deliver(s.packed, state, s.seeds[0], s.logs[0].copy(), state[NOW] + late, math.inf)
        state[NOW] += late
        look(s.packed, state, raw)
        obs.normalise(raw, seen[0])
        return seen

    def step(self, decisions: Decisions) -> None:
        """Take decisions (1, 3) on the frame at hand, which has its own stage times."""
        frame, decision_s = self.frame, self.simulator.world.constants.decision_s
        times = self._times
        own = {"head": times.head[frame], "encode": times.encode[frame], "tail": times.tail[frame]}
        own["signal"] = np.maximum(times.looked[frame] - decision_s, 0.0)
        for name, table in self._tables.items():
            value = np.asarray(own[name])[..., None]
            table[...] = np.where(np.isnan(value), getattr(self._modelled, name), value)
        self._taken_up, _, _ = self.simulator.step(decisions)


def _tables(simulator: Simulator) -> dict[str, Array]:
    """Views of the stage tables in a simulator's packed world, by their names in ``Stages``."""
    packed, found = simulator.packed, {}
    for name, place in PLACES.items():
        shape = np.shape(getattr(simulator.world.stages, name))
        begin = int(packed.i8[place])
        found[name] = packed.f8[begin : begin + math.prod(shape)].reshape(shape)
    return found


def replay_paired(replayed: Replay, bundle: Bundle, names: Sequence[str], block: int, repeats: int) -> Played:
    """Let the controllers decide anew, guarded as on the device but without its clock, frame by frame as it was live.

    The repeats differ only in what the log does not tell: stages of frames that were decided otherwise.
    """
    times, controller = frame_times(replayed.run, replayed.own), guarded(bundle, names, block)
    return _together([_played(Player(replayed, times, seed), controller) for seed in range(repeats)])


def replay_decisions(replayed: Replay, repeats: int) -> Played:
    """Take on each frame the decision that was taken live, on one that was overtaken live that of the frame before."""
    times, decided = frame_times(replayed.run, replayed.own), _decided(replayed)
    runs = []
    for seed in range(repeats):
        player = Player(replayed, times, seed)
        while not player.simulator.done.all():
            player.step(decided[player.frame][None])
        runs.append(Played(player.simulator.outcomes(), {}))
    return _together(runs)


def _together(runs: Sequence[Played]) -> Played:
    outcomes = np.concatenate([run.outcomes for run in runs])
    outcomes["env"] = np.arange(len(runs))[:, None]
    return Played(outcomes, runs[0].observed)


def _played(player: Player, controller: Controller) -> Played:
    simulator = player.simulator
    observed: dict[int, Seen] = {}
    state, delivery = controller.init(1, np.random.default_rng([0, 0])), Delivery(simulator)
    while not simulator.done.all():
        seen = player.observe()
        observed[player.frame] = np.array(seen[0])
        decisions, state = controller.act(seen, state)
        player.step(np.asarray(decisions, dtype=np.int64))
        if controller.learns:
            state = delivery.hand_out(controller, state)
    return Played(simulator.outcomes(), observed)


def _decided(replayed: Replay) -> NDArray[np.int64]:
    """(F, 3) the decisions of the log, its exit rules as indices."""
    records, world = replayed.run.records, replayed.own
    wanted = np.stack([records["threshold"], records["patience"]], axis=1).astype(np.float64)
    rules = np.stack([world.thresholds, world.patience], axis=1)
    rule = np.abs(np.nan_to_num(wanted)[:, None, :] - rules[None]).max(axis=2).argmin(axis=1)
    found = np.stack([records["branch"], records["rate"], rule], axis=1).astype(np.int64)
    known = np.maximum.accumulate(np.where(records["branch"] >= 0, np.arange(len(found)), -1))
    first = int(np.argmax(records["branch"] >= 0))
    return np.asarray(found[np.where(known < 0, first, known)])
