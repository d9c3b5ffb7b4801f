"""Devices: compute boards, radios, airframes. Presets are data (``presets.yaml``); each number states its source.

>>> from adaptsplit.devices import compute_presets, radio_presets
>>> round(radio_presets.get("lte").transmit_power_w(1e6), 5)
1.72643
"""

from adaptsplit.devices.presets import (
    AirframePreset,
    ComputePreset,
    Preset,
    PresetFile,
    RadioPreset,
    airframe_presets,
    compute_presets,
    load_presets,
    radio_presets,
    scale_factor,
)

__all__ = [
    "AirframePreset",
    "ComputePreset",
    "Preset",
    "PresetFile",
    "RadioPreset",
    "airframe_presets",
    "compute_presets",
    "load_presets",
    "radio_presets",
    "scale_factor",
]
