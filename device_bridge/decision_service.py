"""The decision service: a controller at the edge decides for devices that are too small to run one.

It is a process of its own, ``adaptsplit decide``: ``python -m adaptsplit.device_bridge.decision_service``. Devices send
observations (``observe``) and hear decisions (``advice``); ``advice`` is the device's side, ``docs/fleet.md`` the page.
"""

from __future__ import annotations

import argparse
import json
import signal
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
from adaptsplit.device_bridge.tls import add_tls_options
from adaptsplit.device_bridge.topics import check_id, every_device
from adaptsplit.device_bridge.transport import BrokerAddress, secured


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
    ) -> None:
        self.session = DecisionSession(fleet, controller, space, window_s)
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
        """Answer what has come, disconnect."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=5.0)
        self._link.close()

    def summary(self) -> dict[str, int]:
        """Return the counts of what came and what became of it."""
        with self._changed:
            return dict(self.session.counts)

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
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    loaded = load_bundle(bundle)
    built = loaded.build([controller], 1)
    with DecisionServer(built, loaded.space, BrokerAddress.parse(broker), fleet, name, window_s) as server:
        server.wait_connected(30.0)
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
