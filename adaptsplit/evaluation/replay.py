"""A live run played again in the simulator: its link, its stage times, the same frames and the same controllers.

The link is what acknowledgements and heartbeats of the log tell of it (``adaptsplit.links.livelog``, ``replay_link``).
``replay`` lets the controllers decide, with stage times drawn anew: from the log where it holds enough of them, else
from the profile. With the very times of every frame it is ``adaptsplit.evaluation.replay_paired``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.bundle import Bundle
from adaptsplit.controller import Controller
from adaptsplit.envs import World, build_world, episode_seeds, run_episodes
from adaptsplit.envs.exogenous import NOTHING
from adaptsplit.envs.link_table import build_table
from adaptsplit.envs.simulator import Stretch
from adaptsplit.envs.world import Stages
from adaptsplit.errors import DataError
from adaptsplit.evaluation.replay_link import end_s, read_log_link, read_own_link, sample_s
from adaptsplit.guard_monitors import GuardLimits
from adaptsplit.links import LinkTrace
from adaptsplit.links.livelog import DEFAULT_DT_S
from adaptsplit.outcome import Outcomes
from adaptsplit.recorded_run import RecordedRun, read_run
from adaptsplit.scenario import Scenario

Array = NDArray[np.float64]

LEAST_ROWS = 20  # measured times of one branch (and rate) that make a row of quantiles
DEFAULT_BATTERY = 0.8


@dataclass(frozen=True, slots=True)
class Rows:
    """Stage times for the simulator, and how many rows of each stage the log gave (the rest are the profile's)."""

    stages: Stages
    measured: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Replay:
    """A log made ready to be played again: the stretch (the link from its start), what was read, and two worlds.

    ``world`` has the link as any recording is read, ``own`` has it with every delay of the log (``replay_link``).
    """

    run: RecordedRun
    link: LinkTrace
    rows: Rows
    world: World
    own: World
    stretch: Stretch


def prepare(log: Path, scenario: Scenario, split: str) -> Replay:
    """Read a live log and lay out its world; DataError or LinkError for a log that cannot be replayed.

    The links' samples (50 ms of ``link``, 1 ms of ``own``) are longer for long runs: ``replay_link.sample_s``.
    """
    run = read_run(log, observations=True)
    if not len(run.records) or not (run.records["branch"] >= 0).any():
        raise DataError(f"{log}: no frame was decided on, so there is nothing to replay; fly again")
    if int(run.records["frame"][0]) != 0 or len(run.records) <= int(run.records["frame"][-1]):
        raise DataError(f"{log}: {len(run.records)} frames, not all from 0 on; only the log of a whole run is replayed")
    link = read_log_link(log, sample_s(end_s(run), DEFAULT_DT_S))
    world = without_processes(build_world(scenario, split, label_free=False))
    rows = stage_rows(run, world.stages, float(run.description.get("decision_s") or world.constants.decision_s))
    frames = int(run.records["frame"].max()) + 1
    world = world._replace(
        links=build_table([link]), stages=rows.stages, constants=world.constants._replace(frames=frames)
    )
    own = world._replace(links=build_table([read_own_link(log, run)]))
    return Replay(run, link, rows, world, own, _stretch(run, scenario, split))


def without_processes(world: World) -> World:
    """Return a world whose server and board have no other work and no heat: the log's own times hold what there was."""
    server = world.server._replace(work_s=NOTHING, backlog_s=NOTHING, jobs=NOTHING, batch_window_s=0.0)
    return world._replace(server=server, device=world.device._replace(load=NOTHING, has_thermal=False))


def _stretch(run: RecordedRun, scenario: Scenario, split: str) -> Stretch:
    """The whole of the link, and the frames that were flown; DataError when they are not the split's."""
    first = int(run.description.get("first", 0))
    profile = scenario.profile(split)
    found = np.flatnonzero(profile.index == first)
    if not found.size:
        raise DataError(f"frame {first} is not in the {split} profile of {scenario.name}; name the split by --split")
    row = int(found[0])
    flight = max(i for i, (begin, _) in enumerate(profile.segments) if begin <= row)
    battery = (run.description.get("battery") or {}).get("start")
    start = DEFAULT_BATTERY if battery is None else float(battery)
    return Stretch(0, 0.0, flight, row - profile.segments[flight][0], battery=start)


def replay(replayed: Replay, bundle: Bundle, names: Sequence[str], block: int, repeats: int) -> Outcomes:
    """Let the controllers decide anew, with stage times drawn anew; return (repeats, F) records."""
    controller, seeds = guarded(bundle, names, block), episode_seeds(0, repeats, "test")
    return run_episodes(replayed.world, controller, seeds, stretch=replayed.stretch, batch=1)


def guarded(bundle: Bundle, names: Sequence[str], block: int) -> Controller:
    """Return the controllers in turn, guarded as on the device but without its clock."""
    return bundle.build(names, block, guard=True, limits=GuardLimits(inline=True))


def stage_rows(run: RecordedRun, modelled: Stages, decision_s: float) -> Rows:
    """Replace stage times by the log's own where a branch (and rate) has at least 20 of them.

    Content signals: until ``looked_s``, less the decision's charge. Head and exit: until ``exit_s`` (the live decision
    is in it). Encoding: until ``free_s``. Server: residence less queueing, as the results report. All are quantiles at
    the levels of ``modelled`` (B, R, Q).
    """
    found = _durations(run, decision_s)
    stages, measured = modelled, {}
    for name, table in modelled._asdict().items():
        filled, count = _filled(np.array(table, dtype=np.float64), found[name])
        stages = stages._replace(**{name: filled})
        measured[name] = count
    return Rows(stages, measured)


def _durations(run: RecordedRun, decision_s: float) -> dict[str, dict[tuple[int, ...], list[float]]]:
    """Measured times of each stage by branch and rate (as the stage's table is indexed)."""
    found: dict[str, dict[tuple[int, ...], list[float]]] = {name: {} for name in Stages._fields}

    def note(name: str, key: tuple[int, ...], value: Any) -> None:
        if value == value:
            found[name].setdefault(key, []).append(max(float(value), 0.0))

    for record, times in zip(run.records, run.times, strict=True):
        branch, rate = int(record["branch"]), int(record["rate"])
        looked, exited = times.get("looked_s", np.nan), times.get("exit_s", np.nan)
        note("signal", (), looked - record["decided_s"] - decision_s)
        note("head", (branch,), exited - looked)
        if times.get("free_s", np.nan) > exited:
            note("encode", (branch, rate), times["free_s"] - exited)
        note("tail", (branch, rate), times.get("server_s", np.nan) - times.get("queue_s", np.nan))
    return found


def _filled(table: Array, found: Mapping[tuple[int, ...], list[float]]) -> tuple[Array, int]:
    levels = (np.arange(table.shape[-1]) + 0.5) / table.shape[-1]
    rows = {key: values for key, values in found.items() if len(values) >= LEAST_ROWS}
    for key, values in rows.items():
        table[key] = np.quantile(values, levels)
    return np.ascontiguousarray(table), len(rows)
