"""The edge server: decodes what devices send, runs decoder and tail, answers.

It is a process of its own: ``python -m adaptsplit.device_bridge.edge``.

One MQTT connection carries data, a second one control (heartbeats, its own connection topic with a last will). Messages
are acknowledged on the network's thread; the tail runs on a worker thread, one frame at a time.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.bundle import load_bundle
from adaptsplit.codecs import decode_container
from adaptsplit.decision import BranchSpec, DecisionSpace
from adaptsplit.device_bridge.control import Connection, build_control
from adaptsplit.device_bridge.edge_session import EdgeAction, EdgeSession, Job, Reply, TailAnswer, Work
from adaptsplit.device_bridge.messages import FrameMessage
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.process import announce, new_session, run_main
from adaptsplit.device_bridge.tls import add_tls_options
from adaptsplit.device_bridge.topics import edge_connection, every_device
from adaptsplit.device_bridge.transport import BrokerAddress, Will, secured
from adaptsplit.errors import AdaptsplitError, CodecError, MessageError
from adaptsplit.runtime import Answer, EdgeRuntime, ModelFolder

log = logging.getLogger("adaptsplit.edge")


class Tail:
    """From a frame message to an answer, through the codec and onnxruntime."""

    def __init__(self, space: DecisionSpace, runtime: EdgeRuntime) -> None:
        self.space = space
        self._runtime = runtime

    def answer(self, message: FrameMessage) -> TailAnswer:
        """Decode and run; CodecError, MessageError or ModelError for what does not fit."""
        decoded = decode_container(message.container)
        answer = self._run(self.space.branches[message.branch], decoded)
        return TailAnswer(answer.prediction.tobytes(), min(max(answer.confidence, 0.0), 1.0))

    def _run(self, branch: BranchSpec, decoded: NDArray[Any]) -> Answer:
        image = decoded.dtype == np.uint8
        if branch.answers_alone or image != (branch.kind == "offload"):
            raise MessageError(f"branch {branch.name!r} ({branch.kind}) with {'an image' if image else 'features'}")
        return self._runtime.full(decoded) if image else self._runtime.tail(branch.name, decoded)


class EdgeServer:
    """A running edge server; a context manager. Thread-safe."""

    def __init__(self, tail: Tail, broker: BrokerAddress, fleet: str = "default", edge: str = "edge-1") -> None:
        self.session = EdgeSession(fleet, len(tail.space.branches))
        self._tail = tail
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._id, self._sequence = new_session(), 0
        self._topic = edge_connection(fleet, edge)
        self._worker = threading.Thread(target=self._work, name="tail", daemon=True)
        self._worker.start()
        unique = f"{edge}-{self._id.hex()[:8]}"
        self._links: set[str] = set()
        self._data = MqttTransport(
            broker, f"{unique}-data", [every_device(fleet, "up")], self._received, lambda up: self._link("data", up)
        )
        self._control = MqttTransport(
            broker,
            f"{unique}-control",
            [every_device(fleet, "heartbeat")],
            self._received,
            lambda up: self._link("control", up),
            will=Will(self._topic, self._connection("CONNECTION_BROKEN")),
        )

    def __enter__(self) -> EdgeServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def wait_connected(self, timeout_s: float) -> None:
        """Block until both connections stand; RunError after ``timeout_s``."""
        self._data.wait_connected(timeout_s)
        self._control.wait_connected(timeout_s)

    def close(self) -> None:
        """Say OFFLINE, disconnect, end the worker."""
        self._control.publish(self._topic, self._connection("OFFLINE"), qos=1, retain=True)
        self._data.close()
        self._control.close()
        self._jobs.put(None)
        self._worker.join(timeout=5.0)

    def summary(self) -> dict[str, int]:
        """Return the counts of what came and what became of it."""
        return dict(self.session.counts)

    def _connection(self, state: str) -> bytes:
        self._sequence += 1
        content = Connection.model_validate({"state": state})
        now = time.time(), time.monotonic()
        return build_control(
            content, seq=self._sequence, session=self._id, ts_ms=int(now[0] * 1e3), mono_ms=now[1] * 1e3
        )

    def _link(self, plane: str, up: bool) -> None:
        """Say ONLINE when both connections stand, so that nobody sends frames that nobody hears."""
        with self._lock:
            self._links = self._links | {plane} if up else self._links - {plane}
            if "control" in self._links:
                state = "ONLINE" if "data" in self._links else "OFFLINE"
                self._control.publish(self._topic, self._connection(state), qos=1, retain=True)

    def _received(self, topic: str, payload: bytes) -> None:
        with self._lock:
            self._do(self.session.received(topic, payload, time.monotonic()))

    def _do(self, actions: Sequence[EdgeAction]) -> None:
        for action in actions:
            if isinstance(action, Work):
                self._jobs.put(action.job)
            elif isinstance(action, Reply):
                (self._control if action.control else self._data).publish(action.topic, action.payload)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                answer = self._tail.answer(job.message)
            except Exception as error:  # whatever a device sent, the server goes on
                known = error if isinstance(error, AdaptsplitError) else CodecError(f"tail failed: {error!r}")
                log.warning("frame %d of %s refused: %s", job.message.frame, job.device, known)
                with self._lock:
                    self._do(self.session.refused(job, known, time.monotonic()))
                continue
            with self._lock:
                self._do(self.session.worked(job, answer, time.monotonic()))


def serve(
    bundle: Path,
    broker: str,
    fleet: str = "default",
    edge: str = "edge-1",
    threads: int = 1,
    *,
    attached: bool = False,
) -> dict[str, int]:
    """Serve until SIGTERM or SIGINT (``attached``: or the end of standard input); return the counts."""
    loaded = load_bundle(bundle)
    runtime = EdgeRuntime(ModelFolder.open(loaded.model_path), threads)
    runtime.warm_up()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with EdgeServer(Tail(loaded.space, runtime), BrokerAddress.parse(broker), fleet, edge) as server:
        server.wait_connected(30.0)
        if attached:
            threading.Thread(target=_stop_with_input, args=(stop,), daemon=True).start()
        announce({"ready": True, "role": "edge", "edge": edge})
        stop.wait()
        return server.summary()


def _stop_with_input(stop: threading.Event) -> None:
    """Stop when the parent process is gone, however it ended."""
    while os.read(0, 4096):
        continue
    stop.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; prints one JSON line when ready and one at its end."""
    parser = argparse.ArgumentParser(prog="adaptsplit edge", description="run the edge server of a bundle")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--broker", default="mqtt://127.0.0.1:1883")
    add_tls_options(parser)
    parser.add_argument("--fleet", default="default")
    parser.add_argument("--id", default="edge-1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--attached", action="store_true", help="end with standard input")
    options = parser.parse_args(arguments)

    def body() -> None:
        o = options
        broker = secured(o.broker, o.ca, o.cert, o.key, o.insecure).url
        counts = serve(o.bundle, broker, o.fleet, o.id, o.threads, attached=o.attached)
        print(json.dumps({"role": "edge", "counts": counts}), flush=True)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
