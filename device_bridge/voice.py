"""Whoever speaks on the control plane: one session, and for each topic a number that rises by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from adaptsplit.device_bridge.control import Data, build_control, schema_name
from adaptsplit.device_bridge.transport import Extras

Send = Callable[[bytes, Extras], bool]
"""(payload, what MQTT 5 may carry beside it) -> whether it left."""


class Voice:
    """Puts contents into envelopes; thread-safe.

    A number is spent only on a message that left, so a gap that a listener sees is a loss on the way.

    >>> from adaptsplit.device_bridge.control import Event, parse_control
    >>> voice, heard = Voice(bytes(16)), []
    >>> def send(payload, extras):
    ...     heard.append(parse_control(payload)[0].seq)
    ...     return len(heard) != 2  # the second one does not leave
    >>> [voice.say("t", Event(kind="link", detail="up"), send) for _ in range(3)], heard
    ([True, False, True], [1, 2, 2])
    """

    def __init__(self, session: bytes) -> None:
        self.session = session
        self._lock = threading.Lock()
        self._said: dict[str, int] = {}

    def say(self, topic: str, data: Data, send: Send, extras: Extras | None = None) -> bool:
        """Wrap ``data`` with the topic's next number and hand it to ``send``; return whether it left."""
        name = schema_name(data)
        extras = Extras(name) if extras is None else extras
        with self._lock:
            sequence = self._said.get(topic, 0) + 1
            left = send(self._wrap(data, sequence), extras)
            if left:
                self._said[topic] = sequence
            return left

    def will(self, data: Data) -> tuple[bytes, Extras]:
        """Return the last will's payload and extras; its number is 0, since nobody knows when it will be said."""
        return self._wrap(data, 0), Extras(schema_name(data))

    def _wrap(self, data: Data, sequence: int) -> bytes:
        utc, mono = time.time(), time.monotonic()
        return build_control(data, seq=sequence, session=self.session, ts_ms=int(utc * 1e3), mono_ms=mono * 1e3)
