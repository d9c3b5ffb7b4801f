"""The edge server: decodes what devices send, runs decoder and tail, answers. ``docs/fleet.md`` is its page.

It is a process of its own: ``python -m adaptsplit.device_bridge.edge``.

One MQTT connection carries data, a second one control (heartbeats, its own connection topic with a last will). Messages
are acknowledged on the network's thread; each model's tail runs on a worker thread of its own, one batch at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from adaptsplit.device_bridge.batching import TailQueue
from adaptsplit.device_bridge.control import EdgeQueue, EdgeState
from adaptsplit.device_bridge.edge_link import EdgeLink
from adaptsplit.device_bridge.edge_session import EdgeAction, EdgeSession, Lane, Reply, TailAnswer, Work
from adaptsplit.device_bridge.edge_tail import Tail, open_tails
from adaptsplit.device_bridge.messages import FrameMessage
from adaptsplit.device_bridge.process import announce, run_main
from adaptsplit.device_bridge.rate_limit import RateLimit, limit_for
from adaptsplit.device_bridge.service import interruptible, stopping
from adaptsplit.device_bridge.tls import add_tls_options
from adaptsplit.device_bridge.transport import BrokerAddress, secured
from adaptsplit.errors import AdaptsplitError, ConfigError

__all__ = ["EdgeServer", "Serving", "Tail", "main", "serve"]

log = logging.getLogger("adaptsplit.edge")

CONNECT_S = 30.0
DRAIN_S = 2.0
GRACE_S = 0.25  # after OFFLINE: what devices had sent before they heard it is still answered
POLL_S = 0.005
SHORT_S = 0.0002  # handing a batch to a worker and its answer back took 0.1 to 0.3 ms (benchmarks/live.py)
STATE_S = 1.0


class Serving(Protocol):
    """What an edge server runs for one model: ``edge_tail.Tail``, or a stand-in of a test or a benchmark."""

    model: bytes

    def answers(self, messages: Sequence[FrameMessage]) -> list[TailAnswer | AdaptsplitError]:
        """Answer a batch of one branch, an error in the place of what does not fit; must not raise."""
        ...

    def lane(self, max_batch: int | None = None) -> Lane:
        """Return the queue."""
        ...


class EdgeServer:
    """A running edge server for one or more models; a context manager. Thread-safe.

    workers: the group of edge processes that share the devices' messages; None: this one hears everything.
    max_batch: the largest batch; None: measured at the start. limit: how much one device may send; None: no limit.
    """

    def __init__(
        self,
        tails: Sequence[Serving],
        broker: BrokerAddress,
        fleet: str = "default",
        edge: str = "edge-1",
        *,
        workers: str | None = None,
        max_batch: int | None = None,
        limit: RateLimit | None = None,
    ) -> None:
        if not tails:
            raise ConfigError("an edge server without a model; name at least one --bundle")
        self.session = EdgeSession(fleet, lanes={tail.model: tail.lane(max_batch) for tail in tails}, limit=limit)
        self._lock = threading.Lock()
        self._draining = False
        self._jobs: dict[bytes, queue.SimpleQueue[Work | None]] = {tail.model: queue.SimpleQueue() for tail in tails}
        self._tails = {tail.model: tail for tail in tails}
        self._workers = [threading.Thread(target=self._work, args=(jobs,), daemon=True) for jobs in self._jobs.values()]
        for worker in self._workers:
            worker.start()
        with self._lock:  # what comes before the constructor has returned waits
            self._link = EdgeLink(broker, fleet, edge, self._received, workers)

    def __enter__(self) -> EdgeServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def wait_connected(self, timeout_s: float) -> None:
        """Block until both connections stand; RunError after ``timeout_s``, or when the broker shares nothing."""
        self._link.wait_connected(timeout_s)

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Leave the group, finish what is queued, say OFFLINE, answer what is under way; whether all was answered.

        One that serves alone goes on taking frames until its queue is empty for a moment: devices give up what they
        have sent once they hear OFFLINE.
        """
        self._draining = True
        self.report()
        self._link.leave_group()
        until = time.monotonic() + timeout_s
        while not (idle := self._idle()) and time.monotonic() < until:
            time.sleep(POLL_S)
        self._link.offline()
        time.sleep(GRACE_S)
        return idle and self._idle()

    def close(self) -> None:
        """Say OFFLINE, disconnect, end the workers."""
        self._link.offline()
        self._link.close()
        for jobs in self._jobs.values():
            jobs.put(None)
        for worker in self._workers:
            worker.join(timeout=5.0)

    def report(self) -> None:
        """Publish the queues and the counts, ``_edge/{edge}/state``."""
        with self._lock:
            now = time.monotonic()
            queues = {model.hex(): queue_state(lane.queue, now) for model, lane in self.session.lanes.items()}
            counts = dict(self.session.counts)
        self._link.state(EdgeState(queues=queues, counts=counts, workers=self._link.group, draining=self._draining))

    def summary(self) -> dict[str, int]:
        """Return the counts of what came and what became of it."""
        with self._lock:
            return dict(self.session.counts)

    def _idle(self) -> bool:
        with self._lock:
            return self.session.idle

    def _received(self, topic: str, payload: bytes) -> None:
        with self._lock:
            self._do(self.session.received(topic, payload, time.monotonic()))

    def _do(self, actions: Sequence[EdgeAction]) -> None:
        """Do what the session asks; the lock is held."""
        waiting = deque(actions)
        while waiting:
            action = waiting.popleft()
            if isinstance(action, Reply):
                self._link.publish(action.topic, action.payload, control=action.control)
            elif self._short(action):
                waiting += self.session.finished(action, self._answers(action), time.monotonic())
            else:
                self._jobs[action.model].put(action)

    def _short(self, work: Work) -> bool:
        """Whether a batch is known to take less than handing it to another thread would."""
        times = self.session.lanes[work.model].queue.times
        return 0.0 < times.predict(work.job.message.branch, len(work.jobs)) < SHORT_S

    def _answers(self, work: Work) -> list[TailAnswer | AdaptsplitError]:
        answers = self._tails[work.model].answers([job.message for job in work.jobs])
        for job, answer in zip(work.jobs, answers, strict=True):
            if isinstance(answer, AdaptsplitError):
                log.warning("frame %d of %s refused: %s", job.message.frame, job.device, answer)
        return answers

    def _work(self, jobs: queue.SimpleQueue[Work | None]) -> None:
        while (work := jobs.get()) is not None:
            answers = self._answers(work)
            with self._lock:
                self._do(self.session.finished(work, answers, time.monotonic()))


def queue_state(jobs: TailQueue, now: float) -> EdgeQueue:
    """Return what is told of a queue."""
    return EdgeQueue(waiting=len(jobs), wait_s=jobs.wait_s(now), max_batch=jobs.max_batch)


def serve(
    bundles: Path | Sequence[Path],
    broker: str,
    fleet: str = "default",
    edge: str = "edge-1",
    threads: int = 1,
    *,
    workers: str | None = None,
    max_batch: int | None = None,
    attached: bool = False,
    metrics: str | None = None,
) -> dict[str, int]:
    """Serve until SIGTERM or SIGINT (``attached``: or the end of standard input), drain, and return the counts.

    ``metrics`` (``PORT`` or ``HOST:PORT``) serves the counts to Prometheus as well.
    """
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(interruptible())  # a start that waits for a broker can be ended, too
        tails = open_tails([bundles] if isinstance(bundles, Path) else bundles, threads)
        address = BrokerAddress.parse(broker)
        limit = limit_for(max(tail.fps for tail in tails))
        serving: list[EdgeServer] = []
        # Before the connection: a server that cannot serve its metrics must not push out another one of its id.
        stack.enter_context(_exporter(lambda: serving[0].summary() if serving else {}, metrics))
        made = EdgeServer(tails, address, fleet, edge, workers=workers, max_batch=max_batch, limit=limit)
        server = stack.enter_context(made)
        serving.append(server)
        server.wait_connected(CONNECT_S)
        stack.enter_context(stopping(stop.set))
        if attached:
            threading.Thread(target=_stop_with_input, args=(stop,), daemon=True).start()
        models = {tail.model.hex(): server.session.lanes[tail.model].queue.max_batch for tail in tails}
        announce({"ready": True, "role": "edge", "edge": edge, "models": models})
        while not stop.wait(STATE_S):
            server.report()
        server.drain()
        return server.summary()


def _exporter(read: Callable[[], Mapping[str, float]], where: str | None) -> contextlib.AbstractContextManager[object]:
    if where is None:
        return contextlib.nullcontext()
    from adaptsplit.device_bridge.metrics import EdgeMetrics

    return contextlib.closing(EdgeMetrics(where, read))


def _stop_with_input(stop: threading.Event) -> None:
    """Stop when the parent process is gone, however it ended."""
    while os.read(0, 4096):
        continue
    stop.set()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adaptsplit edge", description="run the edge server of one or more bundles")
    parser.add_argument("--bundle", type=Path, required=True, action="append", help="may be given several times")
    parser.add_argument("--broker", default="mqtt://127.0.0.1:1883")
    add_tls_options(parser)
    parser.add_argument("--fleet", default="default")
    parser.add_argument("--id", default="edge-1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers-group", help="name of a group of edge processes that share the devices' messages")
    parser.add_argument("--metrics", metavar="PORT|HOST:PORT", help="serve Prometheus metrics (PORT: on 127.0.0.1)")
    parser.add_argument("--max-batch", type=int, help="largest batch (default: the largest that pays, measured)")
    parser.add_argument("--attached", action="store_true", help="end with standard input")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; prints one JSON line when ready and one at its end."""
    o = _parser().parse_args(arguments)

    def body() -> None:
        broker = secured(o.broker, o.ca, o.cert, o.key, o.insecure).url
        options = {"workers": o.workers_group, "max_batch": o.max_batch}
        counts = serve(o.bundle, broker, o.fleet, o.id, o.threads, **options, attached=o.attached, metrics=o.metrics)
        print(json.dumps({"role": "edge", "counts": counts}), flush=True)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
