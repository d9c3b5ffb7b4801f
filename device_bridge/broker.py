"""``adaptsplit broker``: Mosquitto where it is installed, else amqtt with two faults mended (``amqtt_broker``).

Both listen on the loopback interface only and need no password there; for any other address run a broker of your own
with users and TLS, and give its URL to ``edge`` and ``device``.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from adaptsplit.device_bridge.process import announce, run_main
from adaptsplit.errors import ConfigError, RunError

BACKENDS = ("auto", "mosquitto", "amqtt")
_CONFIG = """listener {port} {host}
allow_anonymous true
persistence false
set_tcp_nodelay true
max_queued_messages 1000
log_dest none
"""


def find_mosquitto() -> str | None:
    """Return the path of Mosquitto's program, or None (Debian keeps it outside a user's PATH)."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def check_loopback(host: str) -> str:
    """Return ``host`` if it is the loopback interface; ConfigError otherwise: the broker asks for no password."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return host
    if host == "localhost":
        return "127.0.0.1"
    raise ConfigError(
        f"broker host {host!r}: this broker asks for no password, so it listens on 127.0.0.1 only; for other hosts run "
        "Mosquitto with users and TLS, and pass its URL with --broker mqtts://USER:PASSWORD@HOST:PORT"
    )


class EmbeddedBroker:
    """A broker in a subprocess; a context manager.

    >>> with EmbeddedBroker() as broker:           # doctest: +SKIP
    ...     print(broker.url)
    """

    def __init__(self, port: int | None = None, backend: str = "auto", host: str = "127.0.0.1") -> None:
        if backend not in BACKENDS:
            raise ConfigError(f"broker backend {backend!r}; expected one of {', '.join(BACKENDS)}")
        self.host = check_loopback(host)
        self.port = free_port() if port is None else port
        program = find_mosquitto()
        if backend == "mosquitto" and program is None:
            raise RunError("Mosquitto is not installed; install it (apt install mosquitto), or use --backend amqtt")
        self.backend = backend if backend != "auto" else ("mosquitto" if program else "amqtt")
        self._folder = Path(tempfile.mkdtemp(prefix="adaptsplit-broker-"))
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"mqtt://{self.host}:{self.port}"

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, timeout_s: float = 15.0) -> None:
        """Start it and wait until it listens; RunError when it does not."""
        if _listening(self.host, self.port):
            raise RunError(f"port {self.port} is in use; choose another with --port")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + timeout_s
        while not _listening(self.host, self.port):
            if self._process.poll() is not None or time.monotonic() > until:
                said = (self._folder / "log").read_text(errors="replace").strip()[-500:]
                self.stop()
                raise RunError(f"{self.backend} does not listen on port {self.port}: {said or 'no message'}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, as a crash would end it; ``start`` brings it back on the same port."""
        self._end(kill=True)

    def stop(self) -> None:
        """End it."""
        self._end(kill=False)

    def wait(self) -> int:
        """Block until it ends; return its exit code."""
        return 0 if self._process is None else self._process.wait()

    def _command(self) -> list[str]:
        if self.backend == "amqtt":
            module = "adaptsplit.device_bridge.amqtt_broker"
            return [sys.executable, "-W", "ignore", "-m", module, self.host, str(self.port)]
        config = self._folder / "mosquitto.conf"
        config.write_text(_CONFIG.format(port=self.port, host=self.host), encoding="ascii")
        os.chmod(self._folder, 0o755)  # started as root, Mosquitto gives its rights away before it reads this
        return [str(self._program), "-c", str(config)]

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            (process.kill if kill else process.terminate)()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listening(host: str, port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex((host, port)) == 0


def serve(port: int = 1883, backend: str = "auto", host: str = "127.0.0.1") -> None:
    """Run a broker until SIGTERM or SIGINT."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with EmbeddedBroker(port, backend, host) as broker:
        announce({"ready": True, "role": "broker", "url": broker.url, "backend": broker.backend})
        with contextlib.suppress(KeyboardInterrupt):
            broker.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(
        prog="adaptsplit broker", description="run an MQTT broker on the loopback interface"
    )
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    options = parser.parse_args(arguments)
    return run_main(lambda: serve(options.port, options.backend, options.host))


if __name__ == "__main__":
    sys.exit(main())
