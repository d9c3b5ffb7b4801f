"""What a table says is fastest, computed from its numbers alone: no queue, no loss, no round trip.

Latency is Neurosurgeon's sum (ASPLOS 2017): device + coding + 8 bytes / uplink + decoding + server. Throughput is that
of a pipeline: 1 / the slowest of device, link and server (DADS, INFOCOM 2019, heavy load).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from adaptsplit.errors import ConfigError
from adaptsplit.profiles.published.build import INPUT, INPUT_CODEC, LOCAL
from adaptsplit.profiles.published.modelling import server_seconds
from adaptsplit.profiles.published.table import PublishedTable

Objective = Literal["latency", "throughput"]
Among = Literal["cuts", "all"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to answer a frame: branch and codec, and seconds on device, link and server."""

    branch: str
    codec: str
    device_s: float
    link_s: float
    server_s: float

    @property
    def latency_s(self) -> float:
        """Time of one frame alone, s."""
        return self.device_s + self.link_s + self.server_s

    @property
    def interval_s(self) -> float:
        """Time between answers when frames are pipelined, s."""
        return max(self.device_s, self.link_s, self.server_s)


def plans(table: PublishedTable, uplink_bps: float | None, among: Among = "all") -> Iterator[Plan]:
    """Yield ``local`` first, then the sent input, then every cut and codec (``cuts``: only these).

    ``uplink_bps`` None means that the network costs nothing; ConfigError unless it is positive.
    """
    if uplink_bps is not None and not uplink_bps > 0:
        raise ConfigError(f"uplink {uplink_bps} bit/s; expected > 0, or None for a network that costs nothing")
    per_byte = 0.0 if uplink_bps is None else 8.0 / uplink_bps
    if among == "all":
        yield Plan(LOCAL, "", table.local_s, 0.0, 0.0)
        yield Plan(INPUT, INPUT_CODEC, 0.0, per_byte * table.input_bytes, server_seconds(table, None))
    for cut in table.cuts:
        tail_s = server_seconds(table, cut)
        for codec in cut.codecs:
            device_s, link_s = cut.device_s + codec.encode_s, per_byte * codec.bytes
            yield Plan(cut.name, codec.name, device_s, link_s, tail_s + codec.decode_s)


def best_plan(
    table: PublishedTable, uplink_bps: float | None, objective: Objective = "latency", among: Among = "all"
) -> Plan:
    """Return the plan of least latency or shortest interval; of equals the first (``local`` before all others)."""
    every = plans(table, uplink_bps, among)
    return min(every, key=lambda plan: plan.latency_s if objective == "latency" else plan.interval_s)
