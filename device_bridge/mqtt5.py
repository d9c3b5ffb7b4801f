"""What MQTT 5 adds to a connection, as paho wants it; on 3.1.1 all of this is left out.

Every value here repeats what the payload says already, so a 3.1.1 broker loses nothing but the broker's own help:

* message expiry: the broker no longer delivers a command that is too old (the device judges it all the same);
* response topic and correlation data: any MQTT 5 tool can see which answer belongs to which command;
* content type and the user property ``schema``: what a payload is, without parsing it;
* reason codes: why the broker refused a message, a subscription or a connection.

Connections start clean, and their sessions end with them (no session expiry is asked for: MQTT 5.0, 3.1.2.11.2), so a
broker keeps nothing for later. A will delay would have no effect then (3.1.3.2.2), and topic aliases are not used (paho
sends them again after a reconnection to a broker that has forgotten them).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from adaptsplit.device_bridge.transport import Extras

log = logging.getLogger("adaptsplit.mqtt")

CONTENT_TYPE = "application/json"
MAX_HEADER_BYTES = 256  # of a PUBLISH beside topic and payload: fixed header, packet id, properties as set here
UNSUPPORTED = "Unsupported protocol version"  # CONNACK 0x84, or 1 of MQTT 3.1.1, as paho words them


class Negotiation:
    """Which version to speak: 5 until a broker says that it cannot, then 3.1.1 for the life of the connection object.

    A broker of 3.1.1 answers a bare CONNECT of MQTT 5 with "unsupported"; one with a will, whose layout differs, some
    misread and never answer (amqtt 0.12). So a connection that has a will asks with a bare CONNECT first, at the start
    and after an attempt that nobody answered.

    version: 5, or 4 (3.1.1). asking: the attempt at hand only asks. change: a new client is wanted, at once.
    """

    def __init__(self, mqtt5: bool, has_will: bool) -> None:
        self.version = 5 if mqtt5 else 4
        self.asking = mqtt5 and has_will
        self.change = False
        self.fell_back = False
        self._has_will = has_will
        self._answered = True

    def begins(self) -> None:
        """An attempt begins."""
        self._answered = False

    @property
    def answered(self) -> bool:
        """Whether the attempt at hand has had its CONNACK."""
        return self._answered

    def answer(self, reason: Any) -> bool:
        """Take the reason of a CONNACK; False when the connection is not to be used, but to be made anew."""
        self._answered = True
        if reason.is_failure and str(reason) == UNSUPPORTED and self.version == 5:
            self.version, self.asking, self.change, self.fell_back = 4, False, True, True
        elif self.asking and not reason.is_failure:
            self.asking, self.change = False, True
        return not self.change

    def ends(self) -> None:
        """The attempt has ended; if nobody answered, the next one asks."""
        if not self._answered and self.version == 5 and self._has_will and not self.asking:
            self.asking = self.change = True

    @property
    def paho_version(self) -> Any:
        """The version at hand, as paho names it."""
        return paho.MQTTv5 if self.version == 5 else paho.MQTTv311

    def connect_options(self) -> dict[str, Any]:
        """Return what ``connect`` takes besides: a clean start, always (3.1.1 says so when the client is made)."""
        return {"clean_start": True} if self.version == 5 else {}


def publish_properties(extras: Extras | None, version: int, packet: int = PacketTypes.PUBLISH) -> Any:
    """Return the properties of a PUBLISH or of a will (``PacketTypes.WILLMESSAGE``); None when there are none."""
    if extras is None or version != 5:
        return None
    properties: Any = Properties(packet)  # type: ignore[no-untyped-call]
    if extras.schema:
        properties.PayloadFormatIndicator = 1
        properties.ContentType = CONTENT_TYPE
        properties.UserProperty = ("schema", extras.schema)
    if extras.expiry_s is not None:
        properties.MessageExpiryInterval = max(math.ceil(extras.expiry_s), 1)
    if extras.response_topic:
        properties.ResponseTopic = extras.response_topic
    if extras.correlation:
        properties.CorrelationData = extras.correlation
    return properties


def will_properties(extras: Extras | None, version: int) -> Any:
    """Return the properties of a last will; None when there are none."""
    return publish_properties(extras, version, PacketTypes.WILLMESSAGE)


def largest_packet(properties: Any) -> float:
    """Return what the broker's CONNACK says of the largest packet that it takes, bytes (MQTT 5.0, 3.2.2.3.6)."""
    return float(getattr(properties, "MaximumPacketSize", math.inf))


def note_reason(counts: Counter[str], packet: str, reason: Any) -> None:
    """Count a failure that the broker names (``reason_puback_0x87``; MQTT 5.0, 2.4), and tell it the first time."""
    if not reason.is_failure:
        return
    name = f"reason_{packet}_{reason.value:#04x}"
    if not counts[name]:
        log.warning("the broker says %s (%s)", reason, name)
    counts[name] += 1
