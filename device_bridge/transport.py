"""How messages travel: a small protocol that session code needs, and an in-memory form of it for tests."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from adaptsplit.device_bridge.tls import check_address
from adaptsplit.device_bridge.topics import topic_matches
from adaptsplit.errors import ConfigError

__all__ = ["BrokerAddress", "Extras", "MemoryHub", "MemoryTransport", "Transport", "Will", "secured", "topic_matches"]

OnMessage = Callable[[str, bytes], None]
OnLink = Callable[[bool], None]
OnDetail = Callable[[str, bytes, int, bool], None]
"""(topic, payload, quality of service, delivered because it was retained)."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens; parsed from ``mqtt://[user:password@]host[:port]`` or ``mqtts://...`` (TLS).

    Files of TLS may follow: ``mqtts://host?ca=ca.crt&cert=device-1.crt&key=device-1.key``; so may ``?insecure=1``,
    which allows ``mqtt://`` beyond the loopback interface.
    """

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        files = [path for path in (self.ca, self.cert, self.key) if path is not None]
        if files and not self.tls:
            raise ConfigError(f"broker mqtt://{self.host}: {files[0]} is for TLS; write mqtts://{self.host}")
        if self.insecure and self.tls:
            raise ConfigError(f"broker mqtts://{self.host}: TLS is always checked; leave --insecure out")

    @classmethod
    def parse(cls, url: str) -> BrokerAddress:
        """Parse a URL; ConfigError says what was expected."""
        said = _LOGIN.sub(lambda found: f"{found[1] or ''}***@", url)
        try:
            parts = urlsplit(url if "://" in url else f"mqtt://{url}")
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"broker {said!r}: expected mqtt://HOST:PORT, the port a number up to 65535") from error
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError(f"broker {said!r}: expected mqtt://HOST:PORT, such as mqtt://127.0.0.1:1883")
        tls = parts.scheme == "mqtts"
        user, password = (unquote(text) if text else None for text in (parts.username, parts.password))
        options = _query(said, parts.query)
        ca, cert, key = (Path(options[name]) if name in options else None for name in _FILES)
        port = port or (8883 if tls else 1883)
        return cls(parts.hostname, port, user, password, tls, ca, cert, key, "insecure" in options)

    @property
    def url(self) -> str:
        """The URL that parses to this address, the password in it."""
        login = ":".join(quote(text, safe="") for text in (self.user, self.password) if text is not None)
        host = f"[{self.host}]" if ":" in self.host else self.host
        options = {name: str(path) for name in _FILES if (path := getattr(self, name)) is not None}
        query = urlencode(options | ({"insecure": "1"} if self.insecure else {}))
        scheme = "mqtts" if self.tls else "mqtt"
        return f"{scheme}://{login}{'@' if login else ''}{host}:{self.port}{'?' if query else ''}{query}"

    @property
    def shown(self) -> str:
        """Where it is, for messages: without user, password and files."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


_FILES = ("ca", "cert", "key")
_LOGIN = re.compile(r"^(\w+://)?.*@", re.DOTALL)  # what no error may show


def _query(url: str, query: str) -> dict[str, str]:
    """Return what of ca, cert, key and ``insecure=1`` a URL's query says; ConfigError for anything else in it."""
    try:
        options = dict(parse_qsl(query, strict_parsing=bool(query), max_num_fields=4))
    except ValueError as error:
        raise ConfigError(f"broker {url!r}: {error}; expected ?ca=FILE&cert=FILE&key=FILE") from error
    for name, value in options.items():
        if name not in _FILES and (name, value) != ("insecure", "1"):
            raise ConfigError(f"broker {url!r}: {name}={value} in the query; expected ca, cert, key, or insecure=1")
    return options


def secured(url: str, ca: Path | None, cert: Path | None, key: Path | None, insecure: bool) -> BrokerAddress:
    """Return the address of ``url`` with what the options --ca, --cert, --key and --insecure add; ConfigError."""
    address = BrokerAddress.parse(url)
    ca, cert, key = ca or address.ca, cert or address.cert, key or address.key
    return check_address(replace(address, ca=ca, cert=cert, key=key, insecure=insecure or address.insecure))


def no_connection(broker: BrokerAddress, why: str, closed_early: bool) -> str:
    """Return what to say when there is no connection: ``why`` if it is known, and the cure."""
    port = broker.port
    where = broker.shown
    if why:
        return f"no MQTT connection to {where}: {why}; check the broker's name, --ca, --cert and --key, and the clock"
    if closed_early and not broker.tls:
        return (
            f"{where} closes the connection; does it want TLS (mqtts://{broker.host}:{port} and --ca, --cert, --key)?"
        )
    if closed_early:
        return f"{where} closes the connection; does it take this client's certificate, and speak MQTT and TLS there?"
    secure = "--secure DIR " if broker.tls else ""
    return f"no MQTT broker answers at {where}; start one with: adaptsplit broker {secure}--port {port}"


@dataclass(frozen=True, slots=True)
class Extras:
    """What MQTT 5 can carry beside a payload (MQTT 5.0, 3.3.2.3); left out on 3.1.1, so the payload says it, too.

    schema: name of the payload's schema (a user property; the content type is then JSON). expiry_s: after how long the
    broker no longer delivers. response_topic, correlation: of a request.
    """

    schema: str = ""
    expiry_s: float | None = None
    response_topic: str = ""
    correlation: bytes = b""


@dataclass(frozen=True, slots=True)
class Will:
    """The last will: what the broker publishes (QoS 1, retained) when the connection breaks."""

    topic: str
    payload: bytes
    extras: Extras | None = None


class Transport(Protocol):
    """One connection. Callbacks run on the transport's thread, must return soon, and may raise without harm."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, extras: Extras | None = None
    ) -> bool:
        """Hand a message over; False when it cannot leave now (nothing is queued for later)."""
        ...

    def close(self) -> None:
        """Disconnect cleanly (the last will is not published)."""
        ...


class MemoryHub:
    """A broker in memory with a constant one-way delay and a clock that the test moves.

    >>> hub = MemoryHub(delay_s=0.5)
    >>> seen = []
    >>> link = hub.connect(["a/+"], lambda topic, payload: seen.append((topic, payload)))
    >>> link.publish("a/b", b"x")
    True
    >>> hub.run_until(0.4); seen
    []
    >>> hub.run_until(0.5); seen
    [('a/b', b'x')]
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        self.now = 0.0
        self.delay_s = delay_s
        self._clients: list[MemoryTransport] = []
        self._queue: list[tuple[float, int, MemoryTransport, str, bytes]] = []
        self._retained: dict[str, bytes] = {}
        self._order = itertools.count()

    def connect(self, filters: list[str], on_message: OnMessage, will: Will | None = None) -> MemoryTransport:
        """Return a connected client that is subscribed to ``filters``."""
        client = MemoryTransport(self, filters, on_message, will)
        self._clients.append(client)
        for topic, payload in self._retained.items():
            self._post(client, topic, payload)
        return client

    def publish(self, topic: str, payload: bytes, retain: bool) -> None:
        """Deliver to every subscriber after the delay."""
        if retain:
            self._retained[topic] = payload
        for client in self._clients:
            self._post(client, topic, payload)

    def drop(self, client: MemoryTransport, *, clean: bool) -> None:
        """Remove a client; its will is published when it was not closed cleanly."""
        if client in self._clients:
            self._clients.remove(client)
            if client.will is not None and not clean:
                self.publish(client.will.topic, client.will.payload, retain=True)

    def run_until(self, now: float) -> None:
        """Deliver everything due up to ``now``, in order of time, and set the clock."""
        while self._queue and self._queue[0][0] <= now:
            self.now, _, client, topic, payload = heapq.heappop(self._queue)
            if client in self._clients:
                client.on_message(topic, payload)
        self.now = now

    def next_delivery(self) -> float:
        """Return when the next message is due (infinity: none is under way)."""
        return self._queue[0][0] if self._queue else float("inf")

    def _post(self, client: MemoryTransport, topic: str, payload: bytes) -> None:
        if any(topic_matches(pattern, topic) for pattern in client.filters):
            heapq.heappush(self._queue, (self.now + self.delay_s, next(self._order), client, topic, payload))


class MemoryTransport:
    """One client of a ``MemoryHub``."""

    def __init__(self, hub: MemoryHub, filters: list[str], on_message: OnMessage, will: Will | None) -> None:
        self.filters = filters
        self.on_message = on_message
        self.will = will
        self._hub = hub
        self._open = True

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, extras: Extras | None = None
    ) -> bool:
        """Deliver through the hub; False once closed."""
        if self._open:
            self._hub.publish(topic, payload, retain)
        return self._open

    def close(self) -> None:
        """Leave without a will."""
        self._open = False
        self._hub.drop(self, clean=True)

    def break_off(self) -> None:
        """Leave as a killed process does: the will is published."""
        self._open = False
        self._hub.drop(self, clean=False)
