"""The HTTP server of metrics: a few connections at once, whatever comes; needs the extra ``device``."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import OrderedDict
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from adaptsplit.config import printable
from adaptsplit.errors import ConfigError, MissingExtraError

MAX_SCRAPES = 8  # connections at once
SILENT_S = 5.0


class MetricsServer:
    """An HTTP server of metrics on ``PORT`` or ``HOST:PORT``; ConfigError when it cannot be opened.

    ``port`` is the real one (0 takes a free one).
    """

    def __init__(self, where: str) -> None:
        try:
            import prometheus_client
        except ImportError as missing:
            raise MissingExtraError("prometheus-client", "device") from missing
        host, port = parse_where(where)
        self.registry: Any = prometheus_client.CollectorRegistry()
        try:
            self._server = _Scrapes(host, port)
        except OSError as error:
            raise ConfigError(f"metrics on {host}:{port}: {error}; name another port with --metrics") from error
        self._server.set_app(prometheus_client.make_wsgi_app(self.registry))
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    @property
    def pushed_out(self) -> int:
        """How many connections were cut for newer ones."""
        return self._server.pushed_out

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2.0)


class _Quiet(WSGIRequestHandler):
    """A request that does not come within ``timeout`` of its last byte is given up; nothing is logged."""

    timeout = SILENT_S

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


class _Scrapes(ThreadingMixIn, WSGIServer):
    """A thread for each connection, of which there are a few at most: for one more the oldest is cut.

    So whoever holds connections open (slowly, or by the hundred) neither takes the process's threads and files nor
    keeps a scrape from getting through.
    """

    daemon_threads = True
    request_queue_size = 128  # of connections that are not taken up yet; the default of 5 makes a scrape wait a second

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.pushed_out = 0
        self._open: OrderedDict[int, socket.socket] = OrderedDict()
        self._guard = threading.Lock()
        super().__init__((host, port), _Quiet)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection."""
        with self._guard:
            self._open[id(request)] = request
            oldest = next(iter(self._open.values())) if len(self._open) > MAX_SCRAPES else None
        if oldest is not None:
            self.pushed_out += 1
            self._forget(oldest)
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread ends, and closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        self._forget(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a connection that was cut is no fault."""

    def _forget(self, request: socket.socket) -> None:
        with self._guard:
            self._open.pop(id(request), None)


def parse_where(text: str) -> tuple[str, int]:
    """Return (host, port) of ``PORT`` (loopback) or ``HOST:PORT``; ConfigError for anything else."""
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or (":" in text and not host):
        raise ConfigError(f"metrics address {printable(text)!r}; expected PORT (127.0.0.1) or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)
