"""The presets as Markdown tables, for docs/devices.md."""

from __future__ import annotations

from collections.abc import Sequence

from adaptsplit.devices.airframe import AirframePreset
from adaptsplit.devices.base import Preset
from adaptsplit.devices.compute import ComputePreset
from adaptsplit.devices.presets import airframe_presets, compute_presets, radio_presets
from adaptsplit.devices.radio import RadioPreset

_COMPUTE = ("preset", "GMAC/s", "other code", "idle W", "active W", "lowest clock", "K/W", "time constant s", "limits")
_RADIO = ("preset", "W per Mbit/s", "W while sending", "tail W", "tail s", "promotion J", "uJ/bit at dBm")
_AIRFRAME = ("preset", "hover W", "W at half speed", "top speed m/s", "battery Wh", "hover min")


def markdown_tables() -> str:
    """Return the tables of all presets, then their notes and sources, as Markdown without a heading above level 2."""
    compute = [compute_presets.get(name) for name in compute_presets.names()]
    radio = [radio_presets.get(name) for name in radio_presets.names()]
    airframe = [airframe_presets.get(name) for name in airframe_presets.names()]
    return "\n\n".join(
        (
            "## Compute boards",
            _table(_COMPUTE, [_compute_row(preset) for preset in compute]),
            _notes(compute),
            "## Radios",
            _table(_RADIO, [_radio_row(preset) for preset in radio]),
            _notes(radio),
            "## Craft",
            _table(_AIRFRAME, [_airframe_row(preset) for preset in airframe]),
            _notes(airframe),
        )
    )


def _compute_row(preset: ComputePreset) -> list[str]:
    rate = "profile's host" if preset.macs_per_s is None else _number(preset.macs_per_s / 1e9)
    row = [rate, f"x {_number(preset.scalar_slowdown)}", _number(preset.idle_w), _number(preset.active_w)]
    row.append(_number(preset.minimum_clock))
    if preset.thermal is None:
        return [f"`{preset.name}`", *row, "", "", ""]
    heat = preset.thermal
    limits = f"{heat.soft_c:g} degC: x {heat.soft_speed:g}, {heat.hard_c:g} degC: x {heat.hard_speed:g}"
    return [f"`{preset.name}`", *row, _number(heat.k_per_w), _number(heat.tau_s), limits]


def _radio_row(preset: RadioPreset) -> list[str]:
    prices = ", ".join(f"{joule * 1e6:g} at {dbm:g}" for dbm, joule in preset.j_per_bit_at)
    numbers = (preset.alpha_w_per_mbps, preset.beta_w, preset.tail_w, preset.tail_s, preset.promotion_j)
    return [f"`{preset.name}`", *map(_number, numbers), prices]


def _airframe_row(preset: AirframePreset) -> list[str]:
    half = preset.flight_power_w(preset.max_speed_m_per_s / 2)
    numbers = (preset.hover_w, half, preset.max_speed_m_per_s, preset.battery_wh, preset.time_aloft_s(1.0) / 60)
    return [f"`{preset.name}`", *map(_number, numbers)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _notes(presets: Sequence[Preset]) -> str:
    return "\n".join(f"- `{preset.name}`: {_sentence(preset.notes)} *Source*: {preset.source}." for preset in presets)


def _sentence(text: str) -> str:
    return text.strip().rstrip(".") + "."


def _number(value: float) -> str:
    return f"{value:.4g}"
