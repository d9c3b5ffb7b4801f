"""What the tests of replays share: links made by hand, and simulated runs written down as a device would log them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from adaptsplit import estimators as est
from adaptsplit.bundle import Bundle
from adaptsplit.device_bridge.livelog import LiveLog
from adaptsplit.envs import World, build_world, episode_seeds, run_episodes
from adaptsplit.envs import compiled as rand
from adaptsplit.envs.link_table import build_table
from adaptsplit.envs.simulator import Stretch
from adaptsplit.envs.world import Stages
from adaptsplit.links import LinkClock, LinkTrace
from adaptsplit.outcome import Outcomes
from adaptsplit.outcome import Path as Path_
from adaptsplit.scenario import Scenario

STATIC = "static:shallow/0/0.95"


def trace(capacity_bps: np.ndarray[Any, Any], rtt_s: np.ndarray[Any, Any], dt_s: float = 0.1) -> LinkTrace:
    return LinkTrace("made", "demo", dt_s, capacity_bps, rtt_s, 0.0 * rtt_s)


def log_of_link(link: LinkTrace, seconds: float, sizes: tuple[int, ...] = (300, 900)) -> list[dict[str, Any]]:
    """What a device would log that sends ten messages a second over ``link``, by the link's own arithmetic."""
    clock, rows, free = LinkClock(link), [], 0.0
    for k in range(int(10 * seconds)):
        sent = 0.1 * k + 0.04
        if k % 10 == 0:
            heard = clock.finish(0.1 * k, 8.0 * est.HEARTBEAT_BYTES) + clock.rtt(0.1 * k)
            rows.append({"event": "beat", "frame": -1, "sent_s": 0.1 * k, "heard_s": heard})
        size = sizes[k % len(sizes)]
        free = clock.finish(max(sent, free), 8.0 * size)
        times = {"sent_s": sent, "wire_bytes": size, "acked_s": free + clock.rtt(free)}
        rows.append({"frame": k, "arrived_s": 0.1 * k, "controller": "c", "times": times})
    return [{"event": "run", "frame": 0, "detail": ""}, *rows]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def played(scenario: Scenario, bundle: Bundle) -> tuple[Outcomes, list[str], Stages]:
    """A run of two controllers in blocks of 25 in the simulator itself, which here stands for the live run."""
    world = build_world(scenario, "test", label_free=False)
    controller = bundle.build(["bundle", STATIC], 25)
    records = run_episodes(world, controller, episode_seeds(7, 1, "test"), stretch=Stretch(3, 10.0, 0, 0))[0]
    turn = np.maximum(np.cumsum(records["branch"] >= 0) - 1, 0) // 25 % 2
    return records, [("deadline", STATIC)[i] for i in turn], world.stages


def as_live(scenario: Scenario, bundle: Bundle, folder: Path) -> Path:
    """Write a simulated run as the log of a device: acknowledgements by the link's own arithmetic."""
    records, names, stages = played(scenario, bundle)
    link = scenario.links("test")[3]
    clock, free = LinkClock(link, 10.0), 0.0
    tail = float(np.median(stages.tail))
    folder.mkdir(parents=True)
    with LiveLog(folder / "live.jsonl") as log:
        log.begin({"controllers": ["bundle", STATIC], "bundle_controller": "deadline", "block": 25, "first": 0})
        for k in range(30):
            log.beat(float(k), clock.finish(float(k), 768.0) + clock.rtt(float(k)))
        for i, record in enumerate(records):
            busy = float(record["compute_j"]) / scenario.compute_w
            times = {"looked_s": record["decided_s"] + 0.002, "exit_s": record["decided_s"] + busy - 0.005}
            sent = times["free_s"] = float(record["decided_s"]) + busy
            if record["sent_bytes"]:
                wire = float(record["sent_bytes"]) + est.OVERHEAD_BYTES
                free = clock.finish(max(sent, free), 8.0 * wire)
                times |= {"sent_s": sent, "wire_bytes": wire, "acked_s": free + clock.rtt(free), "server_s": tail}
            log.add(names[i], records[i : i + 1], None, {k: float(v) for k, v in times.items()})
    return folder / "live.jsonl"


def as_live_exactly(scenario: Scenario, bundle: Bundle, folder: Path, link: LinkTrace) -> Path:
    """Write a simulated run over ``link`` (without loss) as a log that holds every draw and every delay of it.

    The simulator decides when it takes a frame up; a device that looks at that moment has its content signals later, in
    the time of its head.
    """
    world = build_world(scenario, "test", label_free=False)
    world = world._replace(links=build_table([link]))
    seeds, dt = episode_seeds(7, 1, "test"), world.constants.decision_s
    records = run_episodes(world, bundle.build(["bundle", STATIC], 25), seeds, stretch=Stretch(0, 0.0, 0, 0))[0]
    turn = np.maximum(np.cumsum(records["branch"] >= 0) - 1, 0) // 25 % 2
    clock, free = LinkClock(link), 0.0
    folder.mkdir(parents=True)
    with LiveLog(folder / "live.jsonl") as log:
        log.begin({"controllers": ["bundle", STATIC], "bundle_controller": "deadline", "block": 25, "first": 0})
        for k in range(30):
            log.beat(float(k), clock.finish(float(k), 8.0 * est.HEARTBEAT_BYTES) + clock.rtt(float(k)))
        for i, record in enumerate(records):
            times: dict[str, float] = {}
            if record["branch"] >= 0:
                looked, exit_s, encode, tail = _drawn(world, int(seeds[0]), record)
                decided = float(record["decided_s"])
                times = {"looked_s": decided, "exit_s": decided + looked + exit_s - dt}
                times["free_s"] = times["exit_s"] + (encode if record["path"] != Path_.EXIT else 0.0)
            if record["sent_bytes"]:
                wire, sent = float(record["sent_bytes"]) + est.OVERHEAD_BYTES, times["free_s"] + dt
                free = clock.finish(max(sent, free), 8.0 * wire)
                arrival = free + 0.5 * clock.rtt(free)
                times |= {"sent_s": sent, "wire_bytes": wire, "acked_s": arrival + 0.5 * clock.rtt(arrival)}
                times["server_s"] = tail
            log.add(("deadline", STATIC)[turn[i]], records[i : i + 1], None, times)
    return folder / "live.jsonl"


def _drawn(world: World, seed: int, record: Any) -> tuple[float, float, float, float]:
    """Decision and content signals, head, encoding and tail of a frame, by the simulator's own random numbers."""
    key = rand.key_of(np.uint64(seed), int(record["frame"]))
    branch, rate = int(record["branch"]), int(record["rate"])
    rows = {
        rand.SIGNAL: world.stages.signal,
        rand.HEAD: world.stages.head[world.exit_branch[branch]],
        rand.ENCODE: world.stages.encode[branch, rate],
        rand.TAIL: world.stages.tail[branch, rate],
    }
    levels = (np.arange(len(world.stages.signal)) + 0.5) / len(world.stages.signal)
    signal, head, encode, tail = (
        float(np.interp(rand.uniform_of(np.uint64(key), p), levels, row)) for p, row in rows.items()
    )
    return world.constants.decision_s + signal, head, encode, tail
