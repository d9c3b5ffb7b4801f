"""How a device runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptsplit.errors import ConfigError

PACES = ("profile", "native")
KEPT_RECORDS = 1024  # of a service: the newest records in memory


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How a device runs.

    pace: ``profile`` sleeps each stage up to its modelled time on the named board, ``native`` does not.
    state_s: period of the state topic, s (0: off). edge_wait_s: how long to wait for an edge server before the start.
    drain_s: how long to wait for late results after the last frame. log: the live log; with ``observations`` in it.
    guard: whether everything learned runs inside a ``GuardedController`` (off for experiments only).
    keep: the folder in which a controller that learns keeps what it learned, over restarts.
    service: a run without end: it begins without a broker if need be, the log is rotated (``log_bytes``), and what is
    kept in memory does not grow.
    """

    broker: str = "mqtt://127.0.0.1:1883"
    fleet: str = "default"
    device: str = "device-1"
    pace: str = "profile"
    seed: int = 0
    state_s: float = 5.0
    edge_wait_s: float = 10.0
    connect_s: float = 15.0
    drain_s: float = 10.0
    log: Path | None = None
    observations: bool = False
    guard: bool = True
    keep: Path | None = None
    service: bool = False
    log_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.pace not in PACES:
            raise ConfigError(f"pace {self.pace!r}; expected one of {', '.join(PACES)}")

    @property
    def log_bounds(self) -> tuple[int | None, int | None]:
        """Bytes of the log file and records in memory after which the oldest go; None: all are kept."""
        return (self.log_bytes, KEPT_RECORDS) if self.service else (None, None)
