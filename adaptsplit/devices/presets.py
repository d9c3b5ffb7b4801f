"""The shipped presets: ``presets.yaml`` read once, checked, and registered by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TypeVar

from adaptsplit.config import Config, parse, read_yaml
from adaptsplit.devices.airframe import AirframePreset
from adaptsplit.devices.base import Preset
from adaptsplit.devices.compute import ComputePreset
from adaptsplit.devices.radio import RadioPreset
from adaptsplit.registry import Registry


class PresetFile(Config):
    """The content of ``presets.yaml``."""

    compute: tuple[ComputePreset, ...]
    radio: tuple[RadioPreset, ...]
    airframe: tuple[AirframePreset, ...]


compute_presets: Registry[ComputePreset] = Registry("compute preset")
radio_presets: Registry[RadioPreset] = Registry("radio preset")
airframe_presets: Registry[AirframePreset] = Registry("airframe preset")

P = TypeVar("P", bound=Preset)


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
