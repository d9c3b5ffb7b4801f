"""Device presets: figures against their sources, energy in closed form, strict files."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

import pytest

from adaptsplit.devices import airframe_presets, compute_presets, load_presets, radio_presets, scale_factor
from adaptsplit.errors import ConfigError, UnknownNameError

GIGA_MACS = {
    "image_classification_mobilenetv1_2022apr.onnx": 0.569,
    "image_classification_mobilenetv2_2022apr.onnx": 0.300,
    "image_classification_ppresnet50_2022jan.onnx": 4.1,
    "object_detection_yolox_2022nov.onnx": 13.4,
}


def test_presets_state_their_source() -> None:
    for registry in (compute_presets, radio_presets, airframe_presets):
        for name in registry.names():
            preset = registry.get(name)
            assert preset.name == name
            assert preset.source
            assert preset.notes


def test_lte_sends_one_megabit_per_second_at_1726_mw() -> None:
    assert radio_presets.get("lte").transmit_power_w(1e6) * 1e3 == pytest.approx(1726.43)


@pytest.mark.parametrize(
    ("name", "rate", "expected"), [("lte", 5e6, 0.70e-6), ("wifi", 1e6, 0.42e-6), ("3g", 1e6, 1.69e-6)]
)
def test_energy_per_bit_is_the_published_one(name: str, rate: float, expected: float) -> None:
    radio = radio_presets.get(name)
    size = 1000.0
    energy = radio.transmit_energy_j(size, 8 * size / rate)
    assert energy / (8 * size) == pytest.approx(expected, rel=0.01)
    assert energy == pytest.approx(radio.transmit_power_w(rate) * 8 * size / rate)


def test_transmit_energy_does_not_depend_on_how_the_rate_varies() -> None:
    radio = radio_presets.get("lte")
    in_parts = radio.transmit_energy_j(300, 0.010) + radio.transmit_energy_j(700, 0.002)
    assert radio.transmit_energy_j(1000, 0.012) == pytest.approx(in_parts)


def test_an_isolated_lte_transfer_wakes_the_radio_for_12_6_joules() -> None:
    assert radio_presets.get("lte").wake_energy_j == pytest.approx(12.6, abs=0.05)


def test_raspberry_pi_4_rate_is_the_median_of_its_table(shared_data: Path) -> None:
    text = (shared_data / "prof_opencv_zoo/benchmark/README.md").read_text()
    section = text.split("### Raspberry Pi 4B", 1)[1].split("###", 1)[0]
    rates = []
    for file, giga in GIGA_MACS.items():
        found = re.search(rf"^\S+\s+(\S+)\s.*'{re.escape(file)}'", section, re.MULTILINE)
        assert found, file
        rates.append(giga * 1e9 / (float(found[1]) / 1e3))
    assert compute_presets.get("raspberry-pi-4b").macs_per_s == pytest.approx(median(rates), rel=0.01)


def test_scaling_a_profile() -> None:
    board = compute_presets.get("raspberry-pi-4b")
    assert scale_factor(17e9, board) == pytest.approx(2.0)
    assert scale_factor(17e9, compute_presets.get("edge-server")) == 1.0
    assert scale_factor(17e9, compute_presets.get("raspberry-pi-3b-plus")) > scale_factor(17e9, board)
    with pytest.raises(ConfigError, match="measure the profile again"):
        scale_factor(0.0, board)


def test_compute_energy_is_above_idle() -> None:
    assert compute_presets.get("raspberry-pi-4b").compute_energy_j(0.5) == pytest.approx(1.7)


def test_battery_drains_with_flight_and_with_work() -> None:
    iris = airframe_presets.get("3dr-iris")
    assert iris.hover_w == pytest.approx(221.3, abs=0.1)
    assert iris.flight_power_w(8.0) == pytest.approx(206, abs=1)
    assert iris.battery_j == pytest.approx(5.1 * 11.1 * 3600, rel=1e-3)
    assert iris.battery_fraction(1.0, iris.battery_j / iris.hover_w / 2) == pytest.approx(0.5)
    assert iris.battery_fraction(1.0, 60, extra_j=300) < iris.battery_fraction(1.0, 60)
    assert iris.battery_fraction(0.01, 1e6) == 0.0
    with pytest.raises(ConfigError, match="0 to 15"):
        iris.flight_power_w(30.0)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="raspberry-pi-4b"):
        compute_presets.get("raspberry-pi-4")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("alpha_w_per_mbps: -1", "radio.0.alpha_w_per_mbps"),
        ("alpha_w_per_mbps: .nan", "radio.0.alpha_w_per_mbps"),
        ("alpha: 1", "unknown key"),
        ("alpha_w_per_mbps: fast", "radio.0.alpha_w_per_mbps"),
    ],
)
def test_bad_preset_files_are_refused(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "presets.yaml"
    radio = f"{{name: x, source: s, beta_w: 1, tail_w: 0, tail_s: 0, promotion_j: 0, {line}}}"
    file.write_text(f"compute: []\nairframe: []\nradio: [{radio}]\n")
    with pytest.raises(ConfigError, match=message):
        load_presets(file)
