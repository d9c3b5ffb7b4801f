"""amqtt with two faults of 0.12 mended: ``python -m adaptsplit.device_bridge.amqtt_broker HOST PORT``.

* A client that falls silent is never noticed (``handle_read_timeout`` does nothing): here its connection is closed and
  its last will published.
* A second client with the same id leaves the first one connected: here the older connection is closed.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from adaptsplit.errors import MissingExtraError

try:
    from amqtt.broker import Broker
    from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
except ImportError as missing:
    raise MissingExtraError("amqtt", "broker") from missing


def _close_silent(handler: Any) -> None:
    waiter = handler._disconnect_waiter
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class MendedBroker(Broker):  # type: ignore[misc]
    """amqtt's broker, closing the older of two connections with one client id."""

    async def _delete_session(self, client_id: str) -> None:
        old_session, old_handler = self._sessions.get(client_id, (None, None))
        if old_session is not None and old_session.transitions.state == "connected":
            _close_silent(old_handler)
            await asyncio.sleep(0)
        await super()._delete_session(client_id)


async def serve(host: str, port: int) -> None:
    """Run the broker until cancelled."""
    BrokerProtocolHandler.handle_read_timeout = _close_silent
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
        "timeout_disconnect_delay": 2,
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = MendedBroker(config)
    await broker.start()
    try:
        await asyncio.Event().wait()
    finally:
        await broker.shutdown()


def main() -> int:
    """Entry point of the process."""
    try:
        asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
