"""``adaptsplit broker``: Mosquitto where it is installed, else amqtt with two faults mended (``amqtt_broker``).

Both listen on the loopback interface only and need no password there. For any other address there is ``--secure DIR``:
Mosquitto with TLS, a client certificate for everybody, and topics by certificate (``secure_broker``).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
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
from adaptsplit.device_bridge.secure_broker import PORT, Fleet, reachable, write_configuration
from adaptsplit.device_bridge.tls import is_loopback
from adaptsplit.errors import ConfigError, MissingExtraError, RunError

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
    if is_loopback(host):
        return "127.0.0.1" if host == "localhost" else host
    raise ConfigError(
        f"broker host {host!r}: this broker asks for no password, so it listens on 127.0.0.1 only; for other hosts "
        "make certificates with `adaptsplit keys ca`, and start it with --secure DIR"
    )


class EmbeddedBroker:
    """A broker in a subprocess; a context manager.

    >>> with EmbeddedBroker() as broker:           # doctest: +SKIP
    ...     print(broker.url)
    """

    def __init__(
        self,
        port: int | None = None,
        backend: str = "auto",
        host: str = "127.0.0.1",
        *,
        secure: Path | None = None,
        plain_port: int | None = None,
        echo: bool = False,
    ) -> None:
        """Prepare a broker.

        Args:
            port: where it listens; None for a free port.
            backend: one of ``BACKENDS``.
            host: address to listen on; without ``secure`` the loopback interface only.
            secure: folder of certificates: TLS, client certificates and access lists (Mosquitto only).
            plain_port: with ``secure``: another listener on 127.0.0.1, without TLS, where everything is allowed.
            echo: whether the broker's log goes to standard error rather than into a file.

        Raises:
            ConfigError: unknown backend, a host that needs ``secure``, or a folder that cannot be used.
            RunError: Mosquitto is needed and not installed.
            MissingExtraError: amqtt is needed and not installed.
        """
        if backend not in BACKENDS:
            raise ConfigError(f"broker backend {backend!r}; expected one of {', '.join(BACKENDS)}")
        if plain_port is not None and secure is None:
            raise ConfigError("--plain-port is a second listener; it goes with --secure DIR")
        backend = _backend_for_tls(backend) if secure is not None else backend
        self.fleet = None if secure is None else Fleet.load(secure)
        self.plain_port = plain_port
        self.host = check_loopback(host) if secure is None else host
        self._echo = echo
        self.port = free_port() if port is None else port
        program = find_mosquitto()
        if backend == "mosquitto" and program is None:
            raise RunError("Mosquitto is not installed; install it (apt install mosquitto), or use --backend amqtt")
        self.backend = backend if backend != "auto" else ("mosquitto" if program else "amqtt")
        if self.backend == "amqtt":
            _check_amqtt()
        self._folder = Path(tempfile.mkdtemp(prefix="adaptsplit-broker-"))
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        if self.fleet is not None:
            return f"mqtts://{_in_url(reachable(self.fleet, self.host))}:{self.port}"
        return f"mqtt://{_in_url(self.host)}:{self.port}"

    def __enter__(self) -> EmbeddedBroker:
        try:
            self.start()
        except BaseException:  # also when the process is told to end just now
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, timeout_s: float = 15.0) -> None:
        """Start it and wait until it listens; RunError when it does not."""
        ports = [(self.host, self.port), *([("127.0.0.1", self.plain_port)] if self.plain_port is not None else [])]
        if taken := [port for host, port in ports if _listening(host, port)]:
            raise RunError(f"port {taken[0]} is in use; choose another with --port")
        with (self._folder / "log").open("ab") as log:
            out = None if self._echo else log
            self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=out)
        until = time.monotonic() + timeout_s
        while not all(_listening(host, port) for host, port in ports):
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
        if self.fleet is not None:
            made = write_configuration(self.fleet, self._folder, self.host, self.port, self.plain_port)
            return [str(self._program), "-c", str(made)]
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


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _check_amqtt() -> None:
    """MissingExtraError without amqtt, before a process is started that could not say so in one line."""
    if importlib.util.find_spec("amqtt") is None:
        raise MissingExtraError("Mosquitto (apt install mosquitto) or amqtt", "broker")


def _backend_for_tls(backend: str) -> str:
    if backend == "amqtt":
        raise ConfigError("--secure needs Mosquitto: amqtt takes clients without a certificate; leave --backend out")
    return "mosquitto"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listening(host: str, port: int) -> bool:
    """Tell whether something listens there; of all interfaces (0.0.0.0, ::) the loopback one is asked."""
    with contextlib.suppress(ValueError):
        if (address := ipaddress.ip_address(host)).is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


def serve(
    port: int | None = None,
    backend: str = "auto",
    host: str | None = None,
    *,
    secure: Path | None = None,
    plain_port: int | None = None,
) -> None:
    """Run a broker until SIGTERM or SIGINT; RunError when it ends by itself.

    ``port`` and ``host`` are by default 1883 on 127.0.0.1, and with ``secure`` 8883 on all interfaces.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    where = port if port is not None else (1883 if secure is None else PORT)
    host = host or ("127.0.0.1" if secure is None else "0.0.0.0")
    made = EmbeddedBroker(where, backend, host, secure=secure, plain_port=plain_port, echo=secure is not None)
    with contextlib.suppress(KeyboardInterrupt), made as broker:
        announce({"ready": True, "role": "broker", "url": broker.url, "backend": broker.backend})
        code = broker.wait()
        raise RunError(f"{broker.backend} has ended by itself ({_ending(code)}); start the broker again")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(
        prog="adaptsplit broker", description="run an MQTT broker on the loopback interface, or a secured one"
    )
    parser.add_argument("--port", type=int, help="1883, or 8883 with --secure")
    parser.add_argument("--host", help="127.0.0.1, or all interfaces with --secure")
    parser.add_argument("--secure", type=Path, help="folder of `adaptsplit keys ca`: TLS and client certificates")
    parser.add_argument("--plain-port", type=int, help="with --secure: a listener on 127.0.0.1 without TLS")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    options = parser.parse_args(arguments)
    o = options
    return run_main(lambda: serve(o.port, o.backend, o.host, secure=o.secure, plain_port=o.plain_port))


if __name__ == "__main__":
    sys.exit(main())
