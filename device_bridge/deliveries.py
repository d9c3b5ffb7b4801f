"""What comes in on a connection: which messages count, and whom they are told to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from adaptsplit.device_bridge.transport import OnDetail, OnMessage, topic_matches

log = logging.getLogger("adaptsplit.mqtt")

MAX_TOPICS = 4096


class Deliveries:
    """Messages of the topics that match ``filters`` go to ``on_message``, all others are counted (``not_subscribed``).

    Of retained messages those that match ``live`` are dropped and counted (``retained_dropped``): commands. An
    exception of a callback is counted (``callback_errors``) and logged: in paho it would end the network's thread.
    """

    def __init__(
        self,
        filters: Sequence[str],
        live: Sequence[str],
        on_message: OnMessage,
        on_detail: OnDetail | None,
        counts: Counter[str],
    ) -> None:
        self._filters, self._live = tuple(filters), tuple(live)
        self._on_message, self._on_detail = on_message, on_detail
        self._counts = counts
        self._known: dict[bytes, str] = {}  # topics that have passed the filters

    def by_paho(self, client: Any, userdata: Any, message: Any) -> None:
        """Paho's callback: at QoS 1, or retained."""
        try:
            self._take(message.topic, message.payload, message.qos, bool(message.retain))
        except Exception:
            self._failed()

    def beside_paho(self, topic: bytes, payload: bytes) -> None:
        """The fast lane's callback: at QoS 0, not retained."""
        try:
            name = self._known.get(topic)
            if name is None or self._on_detail is not None:
                self._take(topic.decode(), payload, 0, False)
            else:
                self._on_message(name, payload)
        except Exception:
            self._failed()

    def _take(self, topic: str, payload: bytes, qos: int, retained: bool) -> None:
        if not any(topic_matches(pattern, topic) for pattern in self._filters):
            self._counts["not_subscribed"] += 1  # amqtt sends a new client every retained message
            return
        if self._on_detail is not None:
            self._on_detail(topic, payload, qos, retained)
        if retained and any(topic_matches(pattern, topic) for pattern in self._live):
            self._counts["retained_dropped"] += 1
            return
        if len(self._known) < MAX_TOPICS:
            self._known[topic.encode()] = topic
        self._on_message(topic, payload)

    def _failed(self) -> None:
        self._counts["callback_errors"] += 1
        log.exception("callback failed")
