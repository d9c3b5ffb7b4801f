"""The decision service: a controller at the edge decides for devices that are too small to run one.

It is a process of its own, ``adaptsplit decide``: ``python -m adaptsplit.device_bridge.decision_service``. Devices send
observations (``observe``) and hear decisions (``advice``); ``advice`` is the device's side, ``docs/fleet.md`` the page.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from adaptsplit.bundle import load_bundle
from adaptsplit.controller import Controller
from adaptsplit.decision import DecisionSpace
from adaptsplit.device_bridge.decision_session import WINDOW_S, DecisionSession
from adaptsplit.device_bridge.mqtt import MqttTransport
from adaptsplit.device_bridge.process import announce, new_session, run_main
from adaptsplit.device_bridge.rate_limit import RateLimit, limit_for
from adaptsplit.device_bridge.service import interruptible, stopping
from adaptsplit.device_bridge.tls import add_tls_options
from adaptsplit.device_bridge.topics import check_id, every_device
from adaptsplit.device_bridge.transport import BrokerAddress, secured

CLOSE_S = 2.0


class DecisionServer:
    """A running decision service; a context manager. Thread-safe."""

    def __init__(
        self,
        controller: Controller,
        space: DecisionSpace,
        broker: BrokerAddress,
        fleet: str = "default",
        name: str = "decide-1",
        window_s: float = WINDOW_S,
        *,
        limit: RateLimit | None = None,
    ) -> None:
        self.session = DecisionSession(fleet, controller, space, window_s, limit=limit)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._decide, name="decide", daemon=True)
        self._thread.start()
        unique = f"{check_id('service', name)}-{new_session().hex()[:8]}"
        self._link = MqttTransport(broker, unique, [every_device(fleet, "observe")], self._received)

    def __enter__(self) -> DecisionServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def wait_connected(self, timeout_s: float) -> None:
        """Block until connected; RunError after ``timeout_s``."""
        self._link.wait_connected(timeout_s)

    def close(self) -> None:
        """Answer what has come, disconnect. A controller that hangs holds nobody up for more than a few seconds."""
        self._closing = True
        if self._changed.acquire(timeout=CLOSE_S):
            self._changed.notify()
            self._changed.release()
        self._thread.join(timeout=CLOSE_S)
        self._link.close()

    def summary(self) -> dict[str, int]:
        """Return the counts of what came and what became of it."""
        free = self._changed.acquire(timeout=CLOSE_S)
        try:
            return dict(self.session.counts)
        finally:
            if free:
                self._changed.release()

    def _received(self, topic: str, payload: bytes) -> None:
        with self._changed:
            waited = self.session.due()
            self.session.received(topic, payload, time.monotonic())
            if self.session.due() < waited:
                self._changed.notify()

    def _decide(self) -> None:
        """Wait for a batch to close, decide, answer; until the end."""
        while True:
            with self._changed:
                while (left := self.session.due() - time.monotonic()) > 0.0 and not self._closing:
                    self._changed.wait(min(left, 1.0))
                replies = self.session.decide(time.monotonic())
                closing = self._closing
            for reply in replies:
                self._link.publish(reply.topic, reply.payload)
            if closing:
                return


def serve(
    bundle: Path,
    broker: str,
    fleet: str = "default",
    name: str = "decide-1",
    controller: str = "bundle",
    window_s: float = WINDOW_S,
) -> dict[str, int]:
    """Decide until SIGTERM or SIGINT; return the counts. ConfigError and BundleError for what cannot be used."""
    stop = threading.Event()
    with interruptible():  # a start that waits for a broker can be ended, too
        loaded = load_bundle(bundle)
        built = loaded.build([controller], 1)
        address, limit = BrokerAddress.parse(broker), limit_for(loaded.context.fps)
        with DecisionServer(built, loaded.space, address, fleet, name, window_s, limit=limit) as server:
            server.wait_connected(30.0)
            with stopping(stop.set):
                announce({"ready": True, "role": "decide", "controller": built.name})
                stop.wait()
        return server.summary()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; prints one JSON line when ready and one at its end."""
    parser = argparse.ArgumentParser(prog="adaptsplit decide", description="decide for devices that ask")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--controller", default="bundle")
    parser.add_argument("--broker", default="mqtt://127.0.0.1:1883")
    add_tls_options(parser)
    parser.add_argument("--fleet", default="default")
    parser.add_argument("--id", default="decide-1")
    parser.add_argument("--window-ms", type=float, default=WINDOW_S * 1e3)
    o = parser.parse_args(arguments)

    def body() -> None:
        broker = secured(o.broker, o.ca, o.cert, o.key, o.insecure).url
        counts = serve(o.bundle, broker, o.fleet, o.id, o.controller, o.window_ms / 1e3)
        print(json.dumps({"role": "decide", "counts": counts}), flush=True)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
