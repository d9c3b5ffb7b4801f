"""Devices: compute boards, radios, airframes. Presets are data (``presets.yaml``); each number states its source.

>>> from adaptsplit.devices import compute_presets, radio_presets
>>> round(radio_presets.get("lte").transmit_power_w(1e6), 5)
1.72643
"""

from adaptsplit.devices.airframe import AirframePreset, RotaryWing
from adaptsplit.devices.base import Preset
from adaptsplit.devices.compute import ComputePreset, ThermalPreset, kept_spread, scale_factor, scaling_note
from adaptsplit.devices.presets import (
    PresetFile,
    airframe_presets,
    compute_presets,
    load_presets,
    radio_presets,
)
from adaptsplit.devices.radio import RadioPreset

__all__ = [
    "AirframePreset",
    "ComputePreset",
    "Preset",
    "PresetFile",
    "RadioPreset",
    "RotaryWing",
    "ThermalPreset",
    "airframe_presets",
    "compute_presets",
    "kept_spread",
    "load_presets",
    "radio_presets",
    "scale_factor",
    "scaling_note",
]
