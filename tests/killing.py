"""A device that lives through deaths of broker and edge: what happened, and when, on its own clock.

The device agent runs in this process (so that its threads and memory can be watched), broker and edge are processes of
their own. An operator gives it numbered commands all the while, each also twice, and old ones again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.bundle import Bundle
from adaptsplit.device_bridge.agent import DeviceAgent
from adaptsplit.device_bridge.camera import Camera, endless_order
from adaptsplit.device_bridge.commands import Commands
from adaptsplit.device_bridge.control import Command
from adaptsplit.device_bridge.device_options import DeviceOptions
from adaptsplit.device_bridge.live import LiveSetup
from adaptsplit.device_bridge.operator import Operator
from adaptsplit.device_bridge.parts import QuietPart
from adaptsplit.device_bridge.transport import BrokerAddress
from adaptsplit.errors import AdaptsplitError
from adaptsplit.frames import open_frames
from adaptsplit.recorded_run import RecordedRun

COMMAND_S = 0.2
TTL_S = 2.0
SLOW_S = 0.03
AFTER_SLOW = 3  # frames that can be overtaken by, or wait for, a slow one


@dataclass(frozen=True, slots=True)
class Change:
    """What the device knew from ``at`` (s since frame 0) on: its data connection, and whether an edge is there."""

    at: float
    link: bool
    edge: bool | None


class Watch(QuietPart):
    """Notes every change of what the device knows of its link."""

    name = "watch"

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._agent: DeviceAgent | None = None

    def started(self, agent: DeviceAgent) -> None:
        self._agent = agent

    def tick(self, now: float) -> None:
        assert self._agent is not None
        link = self._agent.counts["data_up"] > self._agent.counts["data_down"]
        known = Change(now, link, self._agent.session.edge_online)
        if not self.changes or (known.link, known.edge) != (self.changes[-1].link, self.changes[-1].edge):
            self.changes.append(known)


@dataclass(frozen=True, slots=True)
class Death:
    """One death: who, when, when it was back (listening, serving), s since the device's frame 0."""

    victim: str
    killed: float
    back: float
    threads: int
    rss_bytes: int


@dataclass(slots=True)
class Marks:
    """Commands as they were given and as they were applied (id -> wall clock, s)."""

    given: dict[str, float] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)
    applied: list[tuple[str, float]] = field(default_factory=list)

    def handle(self, agent: DeviceAgent, args: Any) -> dict[str, Any]:
        """The device's handler of ``mark``."""
        self.applied.append((str(args["id"]), time.time()))
        return {}


class Commander(threading.Thread):
    """Gives a command every 0.2 s, each twice; every fifth time one that was issued two minutes ago, too."""

    def __init__(self, operator: Operator, device: str, life: str, marks: Marks) -> None:
        super().__init__(name="commander", daemon=True)
        self._operator, self._device, self._life, self._marks = operator, device, life, marks
        self._over = threading.Event()
        self.failures: Counter[str] = Counter()

    def run(self) -> None:
        number = 0
        before: Command | None = None
        while not self._over.wait(COMMAND_S):
            number += 1
            try:
                command = self._mark(f"{number}", 0.0)
                self._marks.given[f"{number}"] = time.time()
                for one in (command, command, *([before] if before else [])):  # a repetition, and an older one
                    self._operator.send(self._device, "mark", one)
                if number % 5 == 0:
                    self._marks.stale.add(f"stale-{number}")
                    self._operator.send(self._device, "mark", self._mark(f"stale-{number}", 120.0))
                before = command
            except AdaptsplitError as error:
                self.failures[type(error).__name__] += 1

    def _mark(self, name: str, age_s: float) -> Command:
        made = self._operator.make(self._life, {"id": name}, TTL_S)
        return made.model_copy(update={"issued_ms": made.issued_ms - int(1e3 * age_s)})

    def stop(self) -> None:
        self._over.set()
        self.join(5.0)


@dataclass(frozen=True, slots=True)
class Story:
    """All of a run: deaths, changes, marks, thread names before and after, and the log with every frame."""

    deaths: tuple[Death, ...]
    changes: tuple[Change, ...]
    marks: Marks
    threads: tuple[list[str], list[str]]
    log: Path
    summary: dict[str, Any]


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def thread_names() -> list[str]:
    """Names of all threads of this process, without numbers that differ from life to life."""
    return sorted(thread.name for thread in threading.enumerate())


@contextlib.contextmanager
def flying(
    bundle: Bundle, url: str, log: Path, parts: list[QuietPart], controllers: list[str], block: int = 10
) -> Iterator[DeviceAgent]:
    """A device that flies on a thread of its own until the block ends."""
    source = open_frames("flight", split="test", seed=0, data=None)
    options = DeviceOptions(broker=url, log=log, service=True, drain_s=1.0)
    with (
        Camera(source, endless_order(source, 0), 50) as camera,
        DeviceAgent(bundle, camera, controllers, options, parts=parts, block=block) as agent,
    ):
        ended: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: ended.append(agent.run()), name="device", daemon=True)
        thread.start()
        while not agent.last_decided >= 0:
            time.sleep(0.01)
        try:
            yield agent
        finally:
            agent.stop()
            thread.join(10.0)
            assert ended, "the device's loop has died"


def host_was_slow(run: RecordedRun, bundle: Bundle) -> NDArray[np.bool_]:
    """Return (F,) frames that the host may have cost: its stages took 30 ms more than modelled, there or just before.

    A device that is paced to a board's times misses nothing of its own; a test host that is busy with other work does.
    """
    took = np.array([times.get("exit_s", np.nan) for times in run.times]) - run.records["decided_s"]
    modelled = bundle.answer_s[np.maximum(run.records["branch"], 0)]
    slow = took > modelled + SLOW_S
    near = np.convolve(slow, np.ones(AFTER_SLOW + 1))[: len(slow)] > 0
    return np.asarray(near | np.append(slow[1:], False))


def clock(agent: DeviceAgent) -> float:
    """Seconds since the device's frame 0."""
    return time.monotonic() - agent._t0


def tell(
    bundle: Bundle, setup: LiveSetup, seed: int, kills: int, wait_s: tuple[float, float], down_s: tuple[float, float]
) -> Story:
    """Kill broker or edge ``kills`` times at random instants of a flight, bring each back, and return the story."""
    rng, watch, marks, deaths = np.random.default_rng(seed), Watch(), Marks(), []
    parts: list[QuietPart] = [watch, Commands({"mark": marks.handle})]
    with flying(bundle, setup.broker.url, setup.log, parts, ["bundle"]) as agent:
        with Operator(BrokerAddress.parse(setup.broker.url), heals=False) as operator:
            life = operator.find("device-1").life
            commander = Commander(operator, "device-1", life, marks)
            commander.start()
            time.sleep(1.0)
            names = thread_names()
            for _ in range(kills):
                deaths.append(_kill(setup, agent, rng, wait_s, down_s))
            time.sleep(0.5)
            after = thread_names()
            commander.stop()
        summary = agent.summary()
    return Story(tuple(deaths), tuple(watch.changes), marks, (names, after), setup.log, summary)


def _kill(
    setup: LiveSetup,
    agent: DeviceAgent,
    rng: np.random.Generator,
    wait_s: tuple[float, float],
    down_s: tuple[float, float],
) -> Death:
    time.sleep(rng.uniform(*wait_s))
    victim = ("broker", "edge")[int(rng.integers(2))]
    killed = clock(agent)
    (setup.broker.kill if victim == "broker" else setup.kill_edge)()
    time.sleep(rng.uniform(*down_s))
    (setup.broker.start if victim == "broker" else setup.start_edge)()
    back = clock(agent)
    until = time.monotonic() + 20.0
    while not (agent.session.edge_online and agent.counts["data_up"] > agent.counts["data_down"]):
        assert time.monotonic() < until, f"{victim} is back for 20 s and the device has not noticed"
        time.sleep(0.01)
    return Death(victim, killed, back, threading.active_count(), rss_bytes())
