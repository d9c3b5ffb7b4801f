"""Radios: power while sending, price of a bit by signal strength, and the energy of the tail after the last byte.

The functions are plain scalar code, which the simulator may compile and a live device may call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Self

from pydantic import Field, model_validator

from adaptsplit.devices.base import MEGA, Preset


def interpolated(points_x: Sequence[float], points_y: Sequence[float], x: float) -> float:
    """Piecewise linear value at ``x``, constant beyond the ends; ``points_x`` ascend, equal lengths >= 1."""
    if x <= points_x[0]:
        return points_y[0]
    for i in range(1, len(points_x)):
        if x <= points_x[i]:
            share = (x - points_x[i - 1]) / (points_x[i] - points_x[i - 1])
            return points_y[i - 1] + share * (points_y[i] - points_y[i - 1])
    return points_y[len(points_y) - 1]


def gap_energy_j(gap_s: float, tail_w: float, tail_s: float, promotion_j: float) -> float:
    """Energy between two transmissions ``gap_s`` >= 0 apart, J: the tail while it lasts, then sleep and a promotion.

    The radio sleeps, and must be woken, only when the gap outlasts the tail. Sleeping costs nothing here (it is part of
    the board's idle power).
    """
    return tail_w * min(gap_s, tail_s) + (promotion_j if gap_s > tail_s else 0.0)


class RadioPreset(Preset):
    """Uplink power of a radio, linear in the rate: P = alpha * rate + beta (W; rate in Mbit/s).

    After the last byte the radio stays at ``tail_w`` for ``tail_s`` seconds; waking it costs ``promotion_j``. Where
    ``j_per_bit_at`` ((dBm, J/bit), ascending) is given, the price of a bit depends on the received signal power (RSRP)
    and replaces alpha, which must be its median, so that the linear form holds where the signal is unknown.
    """

    alpha_w_per_mbps: float = Field(ge=0)
    beta_w: float = Field(ge=0)
    tail_w: float = Field(ge=0)
    tail_s: float = Field(ge=0)
    promotion_j: float = Field(ge=0)
    j_per_bit_at: tuple[tuple[float, float], ...] = ()

    @model_validator(mode="after")
    def _table(self) -> Self:
        signal, price = [dbm for dbm, _ in self.j_per_bit_at], [joule for _, joule in self.j_per_bit_at]
        if any(right <= left for left, right in pairwise(signal)):
            raise ValueError(f"j_per_bit_at: signals {signal} dBm; expected ascending: sort the rows")
        if any(joule < 0 for joule in price):
            raise ValueError(f"j_per_bit_at: {min(price)} J/bit; expected >= 0")
        if price and not math.isclose(self.alpha_w_per_mbps, median(price) * MEGA, rel_tol=0.01):
            raise ValueError(
                f"alpha_w_per_mbps {self.alpha_w_per_mbps}; expected the table's median {median(price) * MEGA:.6g}"
            )
        return self

    def energy_per_bit(self, rsrp_dbm: float = math.nan) -> float:
        """Energy of one more bit at a received signal power, J, without beta; NaN (unknown) gives the table's median.

        Piecewise linear in dBm, constant beyond the table's ends; without a table it is alpha whatever the signal.
        """
        if math.isnan(rsrp_dbm) or not self.j_per_bit_at:
            return self.alpha_w_per_mbps / MEGA
        return interpolated([dbm for dbm, _ in self.j_per_bit_at], [joule for _, joule in self.j_per_bit_at], rsrp_dbm)

    def transmit_power_w(self, rate_bps: float, rsrp_dbm: float = math.nan) -> float:
        """Power while sending at ``rate_bps``, W."""
        return self.energy_per_bit(rsrp_dbm) * rate_bps + self.beta_w

    def transmit_energy_j(self, size_bytes: float, airtime_s: float, rsrp_dbm: float = math.nan) -> float:
        """Energy of sending ``size_bytes`` in ``airtime_s`` seconds at whatever rates: price * bits + beta * s, J."""
        return self.energy_per_bit(rsrp_dbm) * 8 * size_bytes + self.beta_w * airtime_s

    def sequence_energy_j(self, sends: Sequence[tuple[float, float, float]]) -> float:
        """Energy of a sequence of (start s, end s, bytes), J: waking, sending, every tail, the last one in full.

        The sends are in order and do not overlap. Closed form: promotion, the sends, ``gap_energy_j`` of each gap, and
        one whole tail.
        """
        if not sends:
            return 0.0
        sending = sum(self.transmit_energy_j(size, end - start) for start, end, size in sends)
        gaps = [after[0] - before[1] for before, after in pairwise(sends)]
        return self.wake_energy_j + sending + sum(map(self._gap_energy_j, gaps))

    def _gap_energy_j(self, gap_s: float) -> float:
        return gap_energy_j(gap_s, self.tail_w, self.tail_s, self.promotion_j)

    @property
    def wake_energy_j(self) -> float:
        """Energy of one isolated transmission besides the sending: promotion and the whole tail, J."""
        return self.promotion_j + self.tail_w * self.tail_s
