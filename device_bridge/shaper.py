"""A link in user space: a TCP proxy between device and broker that replays a recorded trace.

Towards the broker, bytes are served at the trace's capacity, one link for all connections: chunks of about 2 ms each,
in turn over the connections, so that a heartbeat does not wait behind a whole frame. Half the round trip is added each
way. A message of b bytes handed over at t arrives at ``clock.finish(t, 8 b) + rtt / 2``, the convention of the
simulator: the service of a chunk begins when the chunk before it ended or when its bytes were read, whichever is later,
in the trace's own time, so that a late wake-up of this process delays one chunk and not all that follow.

A lost packet delays its chunk, and what follows on its connection, by one round trip.

Time 0 of the trace is given by ``start`` (frame 0 of the device); before it, bytes pass unshaped. In an outage nothing
moves. Buffers are small and sockets have TCP_NODELAY. It runs as a process of its own::

    python -m adaptsplit.device_bridge.shaper --trace TRACE.npz --target-port 1883 --port 0

prints its port as a JSON line and reads ``{"start": MONOTONIC_SECONDS}`` from standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adaptsplit.device_bridge.process import announce, run_main
from adaptsplit.errors import NPZ_FAULTS, LinkError
from adaptsplit.links import LinkClock, LinkTrace

READ_BYTES = 4096
BUFFERED_BYTES = 32 * 1024
SOCKET_BYTES = 16 * 1024
CHUNK_S = 0.002
TIMER_S = 0.0005
PACKET_BYTES = 1400.0
MIN_CHUNK, MAX_CHUNK = 256, 8192


def save_trace(trace: LinkTrace, path: Path) -> None:
    """Write a trace for the shaper's process (arrays and names, no pickle)."""
    np.savez(
        path,
        dt_s=trace.dt_s,
        name=trace.name,
        family=trace.family,
        capacity_bps=trace.capacity_bps,
        rtt_s=trace.rtt_s,
        loss=trace.loss,
        signal_dbm=np.zeros(0) if trace.signal_dbm is None else trace.signal_dbm,
    )


def load_trace(path: Path) -> LinkTrace:
    """Inverse of ``save_trace``; LinkError when the file is not one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            signal = data["signal_dbm"] if data["signal_dbm"].size else None
            arrays = (data["capacity_bps"], data["rtt_s"], data["loss"])
            return LinkTrace(str(data["name"]), str(data["family"]), float(data["dt_s"]), *arrays, signal)
    except (*NPZ_FAULTS, KeyError, TypeError) as error:
        raise LinkError(f"{path}: not a saved trace ({error}); write it with save_trace") from error


class _Connection:
    """One device connection and its twin to the broker."""

    def __init__(self) -> None:
        self.out: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.held = 0
        self.room = asyncio.Event()
        self.room.set()
        self.last_delivery = 0.0


class Shaper:
    """The link of one device. ``clock`` is trace time; ``start_at`` the monotonic time of trace time 0."""

    def __init__(self, trace: LinkTrace, offset_s: float = 0.0) -> None:
        self.clock = LinkClock(trace, offset_s)
        self.start_at = math.inf
        self._loss, self._dt_s, self._offset_s = trace.loss.tolist(), trace.dt_s, offset_s
        self._rng = random.Random(0)
        self.bytes_up = 0
        self.bytes_down = 0
        self._connections: list[_Connection] = []
        self._turn = 0
        self._work = asyncio.Event()
        self._served_until = 0.0  # trace time
        self._link: asyncio.Task[None] | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def serve(self, target: tuple[str, int], port: int = 0) -> asyncio.Server:
        """Listen on 127.0.0.1 and pump until cancelled; returns the server (its port is the one to give devices)."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            pipe = asyncio.current_task()
            assert pipe is not None
            self._pipes.add(pipe)
            try:
                await self._pipe(reader, writer, target)
            finally:
                self._pipes.discard(pipe)

        self._link = asyncio.create_task(self._serve_link())
        return await asyncio.start_server(accept, "127.0.0.1", port, limit=READ_BYTES)

    async def close(self) -> None:
        """Stop serving; whatever is under way is lost."""
        for task in [task for task in (self._link, *self._pipes) if task is not None]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int]) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*target, limit=READ_BYTES)
        except OSError:
            writer.close()
            return
        for stream in (writer, far_writer):
            _tune(stream)
        connection = _Connection()
        self._connections.append(connection)
        back: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        parts = [
            asyncio.ensure_future(self._read_up(reader, connection)),
            asyncio.ensure_future(_write(connection.out, far_writer)),
            asyncio.ensure_future(self._read_down(far_reader, back)),
            asyncio.ensure_future(_write(back, writer)),
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            self._connections.remove(connection)
            for stream in (writer, far_writer):
                stream.transport.abort()  # what was under way on this connection is lost, as on a real link

    async def _read_up(self, reader: asyncio.StreamReader, connection: _Connection) -> None:
        while data := await reader.read(READ_BYTES):
            connection.waiting.append((time.monotonic(), data))
            connection.held += len(data)
            self._work.set()
            if connection.held >= BUFFERED_BYTES:
                connection.room.clear()
            await connection.room.wait()

    async def _read_down(self, reader: asyncio.StreamReader, back: asyncio.Queue[tuple[float, bytes]]) -> None:
        last = 0.0
        while data := await reader.read(READ_BYTES):
            self.bytes_down += len(data)
            now = time.monotonic()
            last = max(now + 0.5 * self._rtt(now), last)
            back.put_nowait((last, data))

    async def _serve_link(self) -> None:
        """Serve chunk after chunk, each until its end on the trace."""
        while True:
            connection = self._next_connection()
            if connection is None:
                self._work.clear()
                await self._work.wait()
                continue
            read_at, chunk = self._take(connection)
            end = self._serve_chunk(read_at, chunk)
            self.bytes_up += len(chunk)
            delay = 0.5 * self._rtt(end) + self._retransmission(end, len(chunk))
            connection.last_delivery = max(end + delay, connection.last_delivery)
            connection.out.put_nowait((connection.last_delivery, chunk))
            await _sleep_until(end)

    def _next_connection(self) -> _Connection | None:
        """The next connection in turn that has something to send."""
        ready = [c for c in self._connections if c.waiting]
        if not ready:
            return None
        self._turn += 1
        return ready[self._turn % len(ready)]

    def _take(self, connection: _Connection) -> tuple[float, bytes]:
        """Take one chunk, about CHUNK_S of the link's present capacity."""
        read_at, data = connection.waiting.popleft()
        size = self._chunk_bytes()
        if len(data) > size:
            connection.waiting.appendleft((read_at, data[size:]))
            data = data[:size]
        connection.held -= len(data)
        if connection.held < BUFFERED_BYTES:
            connection.room.set()
        return read_at, data

    def _chunk_bytes(self) -> int:
        now = time.monotonic()
        if now < self.start_at:
            return MAX_CHUNK
        capacity = self.clock.capacity(now - self.start_at)
        return int(min(max(capacity * CHUNK_S / 8.0, MIN_CHUNK), MAX_CHUNK))

    def _serve_chunk(self, read_at: float, chunk: bytes) -> float:
        """Return the monotonic time at which the link has served a chunk."""
        if read_at < self.start_at:
            return time.monotonic()
        begin = max(read_at - self.start_at, self._served_until)
        self._served_until = self.clock.finish(begin, 8.0 * len(chunk))
        return self.start_at + self._served_until

    def _retransmission(self, now: float, size: int) -> float:
        """One round trip when a packet of the chunk is lost (TCP repeats it), as in the simulator."""
        if now < self.start_at:
            return 0.0
        sample = int((now - self.start_at + self._offset_s) / self._dt_s) % len(self._loss)
        lost = self._rng.random() >= (1.0 - self._loss[sample]) ** (size / PACKET_BYTES)
        return self._rtt(now) if lost else 0.0

    def _rtt(self, now: float) -> float:
        return self.clock.rtt(max(now - self.start_at, 0.0) if math.isfinite(self.start_at) else 0.0)


async def _write(out: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    """Write each piece when it is due."""
    while True:
        due, data = await out.get()
        await _sleep_until(due)
        writer.write(data)
        await writer.drain()


async def _sleep_until(due: float) -> None:
    """Sleep to within half a millisecond either way (asyncio's timers are rounded up to whole milliseconds)."""
    while (left := due - time.monotonic()) > TIMER_S:
        await asyncio.sleep(min(left - TIMER_S, 1.0))


def _tune(stream: asyncio.StreamWriter) -> None:
    sock = stream.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)


async def _run(trace: LinkTrace, offset_s: float, target: tuple[str, int], port: int) -> None:
    shaper = Shaper(trace, offset_s)
    server = await shaper.serve(target, port)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def read_commands() -> None:
        for line in sys.stdin:
            shaper.start_at = float(json.loads(line)["start"])
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read_commands, daemon=True).start()
    announce({"ready": True, "role": "shaper", "port": server.sockets[0].getsockname()[1]})
    await ended.wait()
    print(json.dumps({"role": "shaper", "bytes_up": shaper.bytes_up, "bytes_down": shaper.bytes_down}), flush=True)
    server.close()
    await shaper.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; it ends when its standard input does."""
    parser = argparse.ArgumentParser(description="replay a link trace between a device and a broker")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--offset", type=float, default=0.0)
    parser.add_argument("--target-host", default="127.0.0.1")
    parser.add_argument("--target-port", type=int, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(arguments)
    target = (options.target_host, options.target_port)
    return run_main(lambda: asyncio.run(_run(load_trace(options.trace), options.offset, target, options.port)))


if __name__ == "__main__":
    sys.exit(main())
