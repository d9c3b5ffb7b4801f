"""The profile's prediction as a table: expected reward of every decision over goodput and time lost before sending.

``DecisionModel.expected`` takes 60 us for one frame; this takes a tenth and needs no profile summary, so it can travel
in a policy's file. It is a feature of the online learner, not a rule: an interpolation is good enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit import observation as obs
from adaptsplit.agents.prediction import MEMORY_S, RTT_TRUST, DecisionModel, FieldReader, nominal_observation
from adaptsplit.config import Config
from adaptsplit.errors import DataError

Floats = NDArray[np.float64]

GOODPUTS = 25  # points over the observation's range of goodput
LOST = 6  # points of time lost before sending, from none to the deadline
FIELDS = ("goodput", "goodput_known", "goodput_age", "rtt", "backlog", "server_time", "frame_wait")


class ViewScale(Config):
    """What the table's axes mean: ``deadline_s``, the priors of the scenario, and ``idle_s``, the shortest time in
    which a device prepares a message (a backlog that is shorter costs nothing).
    """

    deadline_s: float
    goodput_bps: float
    rtt_s: float
    server_s: float
    idle_s: float


@dataclass(frozen=True)
class View:
    """``table`` (25, 6, M) float32: expected reward by ln(goodput), lost time, decision."""

    table: NDArray[np.float32]
    scale: ViewScale

    def __post_init__(self) -> None:
        if self.table.ndim != 3 or self.table.shape[:2] != (GOODPUTS, LOST) or not np.isfinite(self.table).all():
            raise DataError(
                f"online view: a table of shape {self.table.shape}; expected finite ({GOODPUTS}, {LOST}, M); make the "
                "run again"
            )

    @classmethod
    def of(cls, model: DecisionModel) -> View:
        """Tabulate a model's predictions for an idle link that has just shown each goodput."""
        c = model.context
        scale = ViewScale(
            deadline_s=c.deadline_s,
            goodput_bps=c.goodput_bps,
            rtt_s=c.rtt_s,
            server_s=c.server_s,
            idle_s=float((model.signal + model.head + model.encode).min()),
        )
        grid = np.repeat(nominal_observation(c), GOODPUTS * LOST, axis=0)
        goodput, lost = np.meshgrid(np.linspace(0.0, 1.0, GOODPUTS), np.linspace(0.0, 1.0, LOST), indexing="ij")
        grid[:, obs.index("goodput")] = goodput.ravel()
        grid[:, obs.index("goodput_known")] = 1.0
        grid[:, obs.index("goodput_age")] = 0.0
        server = obs.FIELDS[obs.index("server_time")]
        seconds = np.clip(c.server_s + lost.ravel() * c.deadline_s, server.low, server.high)
        grid[:, obs.index("server_time")] = np.log(seconds / server.low) / np.log(server.high / server.low)
        expected = model.expected(grid.astype(np.float32))
        return cls(expected.reshape(GOODPUTS, LOST, -1).astype(np.float32), scale)

    @cached_property
    def _read(self) -> FieldReader:
        return FieldReader(FIELDS)

    @cached_property
    def _columns(self) -> NDArray[np.int64]:
        return np.array([obs.index(name) for name in FIELDS])

    @cached_property
    def _low(self) -> list[float]:
        """Lower bounds of ``FIELDS``, of logarithmic ones their logarithm."""
        fields = [obs.FIELDS[i] for i in self._columns]
        return [math.log(field.low) if field.scale == "log" else field.low for field in fields]

    @cached_property
    def _span(self) -> list[float]:
        fields = [obs.FIELDS[i] for i in self._columns]
        ends = [math.log(field.high) if field.scale == "log" else field.high for field in fields]
        return [high - low for high, low in zip(ends, self._low, strict=True)]

    @cached_property
    def _flat(self) -> Floats:
        return np.ascontiguousarray(self.table.reshape(GOODPUTS * LOST, -1), dtype=np.float64)

    @cached_property
    def _axes(self) -> tuple[float, float, float, float, float]:
        """ln of the lowest goodput, points per unit of ln, ln of the prior, points per second lost, prior round trip
        to the power that the estimate lacks.
        """
        s, field = self.scale, obs.FIELDS[0]
        per_unit = (GOODPUTS - 1) / math.log(field.high / field.low)
        trusted = s.rtt_s ** (1.0 - RTT_TRUST)
        return math.log(field.low), per_unit, math.log(s.goodput_bps), (LOST - 1) / s.deadline_s, trusted

    def _one(self, row: NDArray[Any]) -> Floats:
        """As ``__call__`` for one observation (D,), in plain numbers: half the time."""
        s = self.scale
        lowest, per_unit, prior, per_second, trusted = self._axes
        unit = row[self._columns].tolist()
        goodput, known, age, rtt, backlog, server, wait = (
            low + value * span for value, low, span in zip(unit, self._low, self._span, strict=True)
        )
        trust = math.exp(-math.exp(age) / MEMORY_S) if known > 0.5 else 0.0
        place = (trust * goodput + (1.0 - trust) * prior - lowest) * per_unit
        lost = wait + max(backlog - s.idle_s, 0.0)
        lost += math.exp(RTT_TRUST * rtt) * trusted - s.rtt_s + math.exp(server) - s.server_s
        low = min(max(int(place), 0), GOODPUTS - 2)
        part = min(max(place - low, 0.0), 1.0)
        first = low * LOST + min(max(round(lost * per_second), 0), LOST - 1)
        return np.asarray(((1.0 - part) * self._flat[first] + part * self._flat[first + LOST])[None])

    def __call__(self, observation: NDArray[Any]) -> Floats:
        """Return (n, M) expected rewards: linear between goodputs, at the nearest lost time.

        An old estimate of the goodput returns to the prior, and a round trip counts half, as in ``DecisionModel``.
        """
        if len(observation) == 1:
            return self._one(observation[0])
        s, field = self.scale, obs.FIELDS[0]
        goodput, known, age, rtt, backlog, server, wait = self._read(observation)
        trust = np.where(known > 0.5, np.exp(-age / MEMORY_S), 0.0)
        logarithm = trust * np.log(goodput) + (1.0 - trust) * np.log(s.goodput_bps)
        place = (logarithm - np.log(field.low)) * ((GOODPUTS - 1) / np.log(field.high / field.low))
        later = (rtt / s.rtt_s) ** RTT_TRUST * s.rtt_s - s.rtt_s + server - s.server_s
        lost = wait + np.maximum(backlog - s.idle_s, 0.0) + later
        step = np.clip(np.rint(lost * ((LOST - 1) / s.deadline_s)), 0, LOST - 1).astype(np.int64)
        low = np.clip(place.astype(np.int64), 0, GOODPUTS - 2)
        part = np.clip(place - low, 0.0, 1.0)[:, None]
        first = low * LOST + step
        return np.asarray((1.0 - part) * self._flat[first] + part * self._flat[first + LOST])
