"""Compute boards, radios and airframes: named presets with their published source, and their energy in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from adaptsplit.config import Config, parse, read_yaml
from adaptsplit.errors import ConfigError
from adaptsplit.registry import Registry

_MEGA = 1e6
_JOULES_PER_WH = 3600.0


class Preset(Config):
    """What every preset has: an id, notes on how its numbers came about, and their source."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    notes: str = ""
    source: str = Field(min_length=1)


class ComputePreset(Preset):
    """A board: effective multiply-accumulates per second in convolutional networks, one image at a time; power (W).

    ``macs_per_s`` None means the host on which a profile was measured. ``scalar_slowdown`` is how many times longer
    one core takes than the profiling host's for code that is not a network: codecs, content signals, the decision.
    """

    macs_per_s: float | None = Field(gt=0)
    scalar_slowdown: float = Field(gt=0)
    idle_w: float = Field(ge=0)
    active_w: float = Field(ge=0)

    def compute_energy_j(self, busy_s: float) -> float:
        """Energy above idle of ``busy_s`` seconds of computing, J."""
        return (self.active_w - self.idle_w) * busy_s


class RadioPreset(Preset):
    """Uplink power of a radio, linear in the rate: P = alpha * rate + beta (W; rate in Mbit/s).

    After the last byte the radio stays at ``tail_w`` for ``tail_s`` seconds; waking it costs ``promotion_j``.
    """

    alpha_w_per_mbps: float = Field(ge=0)
    beta_w: float = Field(ge=0)
    tail_w: float = Field(ge=0)
    tail_s: float = Field(ge=0)
    promotion_j: float = Field(ge=0)

    def transmit_power_w(self, rate_bps: float) -> float:
        """Power while sending at ``rate_bps``, W."""
        return self.alpha_w_per_mbps * rate_bps / _MEGA + self.beta_w

    def transmit_energy_j(self, size_bytes: float, airtime_s: float) -> float:
        """Energy of sending ``size_bytes`` in ``airtime_s`` seconds, at whatever rates: alpha * Mbit + beta * s, J."""
        return self.alpha_w_per_mbps * 8 * size_bytes / _MEGA + self.beta_w * airtime_s

    @property
    def wake_energy_j(self) -> float:
        """Energy of one isolated transmission besides the sending: promotion and the whole tail, J."""
        return self.promotion_j + self.tail_w * self.tail_s


class AirframePreset(Preset):
    """A craft and its battery: level-flight power as a polynomial of speed (W, m/s) and capacity (Wh)."""

    level_power_w: tuple[float, ...] = Field(min_length=1)
    max_speed_m_per_s: float = Field(gt=0)
    battery_wh: float = Field(gt=0)

    @property
    def hover_w(self) -> float:
        """Power at zero speed, W."""
        return self.level_power_w[0]

    @property
    def battery_j(self) -> float:
        """Capacity, J."""
        return self.battery_wh * _JOULES_PER_WH

    def flight_power_w(self, speed_m_per_s: float) -> float:
        """Level-flight power, W; ConfigError outside the speeds that were measured."""
        if not 0 <= speed_m_per_s <= self.max_speed_m_per_s:
            raise ConfigError(f"speed {speed_m_per_s} m/s; {self.name} was measured from 0 to {self.max_speed_m_per_s}")
        return sum(factor * speed_m_per_s**i for i, factor in enumerate(self.level_power_w))

    def battery_fraction(self, start: float, seconds: float, extra_j: float = 0.0, speed_m_per_s: float = 0.0) -> float:
        """Battery left (0..1) after flying ``seconds`` and spending ``extra_j`` on compute and radio."""
        spent = self.flight_power_w(speed_m_per_s) * seconds + extra_j
        return max(0.0, start - spent / self.battery_j)


class PresetFile(Config):
    """The content of ``presets.yaml``."""

    compute: tuple[ComputePreset, ...]
    radio: tuple[RadioPreset, ...]
    airframe: tuple[AirframePreset, ...]


compute_presets: Registry[ComputePreset] = Registry("compute preset")
radio_presets: Registry[RadioPreset] = Registry("radio preset")
airframe_presets: Registry[AirframePreset] = Registry("airframe preset")

P = TypeVar("P", bound=Preset)


def scale_factor(profile_host_macs_per_s: float, preset: ComputePreset) -> float:
    """Factor from stage times measured on the profile's host to those MODELLED for ``preset``: host rate / preset rate.

    One number for all networks (codecs and signals have ``scalar_slowdown``): it ignores caches, threads and operators
    that suit one machine better than another, so scaled times are a stated model, never a measurement. ConfigError
    when the host's rate is not positive.
    """
    if not profile_host_macs_per_s > 0:
        raise ConfigError(f"host rate {profile_host_macs_per_s} MAC/s; expected > 0: measure the profile again")
    return 1.0 if preset.macs_per_s is None else profile_host_macs_per_s / preset.macs_per_s


def load_presets(path: Path) -> PresetFile:
    """Read a preset file; ConfigError names each fault."""
    return parse(PresetFile, read_yaml(path), str(path))


def _register(registry: Registry[P], presets: Sequence[P]) -> None:
    for preset in presets:
        registry.register(preset.name)(preset)


with resources.as_file(resources.files("adaptsplit.devices") / "presets.yaml") as _path:
    _shipped = load_presets(_path)
_register(compute_presets, _shipped.compute)
_register(radio_presets, _shipped.radio)
_register(airframe_presets, _shipped.airframe)
