"""A TCP proxy that fails on demand: what a radio link does to a connection, without privileges, on any machine.

    with FaultProxy(("127.0.0.1", broker_port)) as proxy:
        device connects to proxy.url; then proxy.cut(), proxy.blackout(True), ...

It forwards in the order of arrival; delays, rates and blackouts hold for both ways. A blackout is half open: both ends
keep their connections, new ones are accepted, and no byte moves. A cut resets every connection (RST).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

READ_BYTES = 4096
SOCKET_BYTES = 16 * 1024
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s; close() then sends RST


class FaultProxy:
    """See the module's text. ``delay_s`` is one way; ``rate_bps`` None: no limit; ``slice_bytes``: small writes."""

    def __init__(
        self,
        target: tuple[str, int],
        *,
        delay_s: float = 0.0,
        rate_bps: float | None = None,
        slice_bytes: int | None = None,
        stall: Callable[[], float] = lambda: 0.0,
        host: str = "127.0.0.1",
    ) -> None:
        """``stall`` is asked before each piece for extra seconds: a lost packet's retransmission, say."""
        self.delay_s, self.rate_bps, self.slice_bytes, self.stall = delay_s, rate_bps, slice_bytes, stall
        self.target, self.host, self.port = target, host, 0
        self.accepted = self.forwarded = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faults", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open: asyncio.Event | None = None
        self._server: asyncio.Server | None = None
        self._free = 0.0

    @property
    def url(self) -> str:
        """Where devices connect."""
        beyond = "" if self.host == "127.0.0.1" else "?insecure=1"
        return f"mqtt://{self.host}:{self.port}{beyond}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *exception: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection; new ones are accepted at once."""
        self._do(self._reset())

    def blackout(self, on: bool) -> None:
        """Stop forwarding (connections stay), or go on."""
        assert self._open is not None
        self._loop.call_soon_threadsafe(self._open.clear if on else self._open.set)

    def black_for(self, seconds: float) -> tuple[float, float]:
        """Black out for a while; return its begin and end on the monotonic clock."""
        begun = time.monotonic()
        self.blackout(True)
        time.sleep(seconds)
        self.blackout(False)
        return begun, time.monotonic()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    async def _start(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._server = await asyncio.start_server(self._accept, self.host, 0, limit=READ_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reset(self) -> None:
        for writer in list(self._writers):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target, limit=READ_BYTES)
        except OSError:
            writer.transport.abort()
            return
        both = (writer, far_writer)
        for stream in both:
            self._writers.add(stream)
            sock = stream.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)
        tasks = [asyncio.ensure_future(part) for part in self._pumps(reader, far_writer, far_reader, writer)]
        self._tasks.update(tasks)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._tasks.difference_update(tasks)
            for stream in both:
                stream.transport.abort()
                self._writers.discard(stream)

    def _pumps(
        self,
        reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> list[Any]:
        parts = []
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
            parts += [self._read(source, pieces), self._write(pieces, sink)]
        return parts

    async def _read(self, source: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]]) -> None:
        while data := await source.read(self.slice_bytes or READ_BYTES):
            assert self._open is not None
            await self._open.wait()
            await pieces.put((self._due(len(data)), data))

    def _due(self, size: int) -> float:
        """When the last byte of a piece arrives: all connections share the rate."""
        now = time.monotonic()
        if self.rate_bps is not None:
            self._free = max(self._free, now) + 8.0 * size / self.rate_bps
            now = self._free
        return now + self.delay_s + self.stall()

    async def _write(self, pieces: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        assert self._open is not None
        while True:
            due, data = await pieces.get()
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
            await self._open.wait()
            sink.write(data)
            self.forwarded += len(data)
            await sink.drain()
