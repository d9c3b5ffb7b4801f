"""Effective network rates of the boards, computed again from the published tables that the presets cite.

    python -m adaptsplit.devices.derive DATA

prints one line per board; DATA holds the folders ``prof_opencv_zoo``, ``prof_ml_on_edge`` and ``prof_help_nb201``. A
test compares the presets with it. A rate is multiply-accumulates of a network over its published latency for one image;
a board's rate is the median over networks.
"""

from __future__ import annotations

import pickletools
import re
import sys
import zipfile
from pathlib import Path
from statistics import median

from adaptsplit.errors import DataError

GIGA = 1e9
OPENCV_MACS = {
    "image_classification_mobilenetv1_2022apr.onnx": 0.569e9,  # Howard et al. 2017, table 8
    "image_classification_mobilenetv2_2022apr.onnx": 0.300e9,  # Sandler et al. 2018, table 4
    "image_classification_ppresnet50_2022jan.onnx": 4.1e9,  # He et al. 2016 (ResNet-50: 3.8 to 4.1 by stride placement)
    "object_detection_yolox_2022nov.onnx": 13.4e9,  # Ge et al. 2021: YOLOX-S, 26.8 GFLOP at 640 x 640
}
SSD_MOBILENET_V2_MACS = 0.8e9  # Sandler et al. 2018, table 6

_OPENCV_SECTIONS = {  # board -> heading, and which of its blocks
    "raspberry-pi-4b": ("Raspberry Pi 4B", "CPU"),
    "jetson-nano": ("Jetson Nano B01", "GPU (CUDA-FP32)"),
    "jetson-orin-nano": ("Jetson Nano Orin", "GPU (CUDA-FP16)"),
    "server": ("Intel 12700K", "CPU"),
}
_EDGE_ROWS = {"raspberry-pi-3b-plus": "Raspberry Pi 3, Model B+", "raspberry-pi-5": "Raspberry Pi 5"}


def opencv_rates(text: str, board: str, block: str) -> dict[str, float]:
    """MAC/s of each network of ``OPENCV_MACS`` on a board, from the text of OpenCV Zoo's benchmark README (medians)."""
    section = re.split(r"^### ", _after(text, f"### {board}\n"), maxsplit=1, flags=re.MULTILINE)[0]
    listing = _after(section, f"{block}:").split("```", 2)[1]
    rates = {}
    for file, macs in OPENCV_MACS.items():
        found = re.search(rf"^\S+\s+(\S+)\s.*'{re.escape(file)}'", listing, re.MULTILINE)
        if not found:
            raise DataError(f"OpenCV Zoo table: {board}, {block}: no row for {file}; expected the file of May 2025")
        rates[file] = macs / (float(found[1]) / 1e3)
    return rates


def edge_rate(text: str, board: str) -> float:
    """MAC/s of SSD MobileNetV2 with TensorFlow Lite on a board, from the table of benchmarking-ml-on-the-edge."""
    found = re.search(rf"^\| {re.escape(board)} \| TensorFlow Lite \|[^|]*\| (\S+) \|", text, re.MULTILINE)
    if not found:
        raise DataError(f"benchmarking-ml-on-the-edge: no TensorFlow Lite row for {board}")
    return SSD_MOBILENET_V2_MACS / (float(found[1]) / 1e3)


def nas_latencies_ms(path: Path) -> list[float]:
    """Latencies (15625,) of the NAS-Bench-201 networks, ms: the floats of a stored list, read without unpickling."""
    with zipfile.ZipFile(path) as archive:
        stored = archive.read("archive/data.pkl")
    values = [float(value) for code, value, _ in pickletools.genops(stored) if code.name == "BINFLOAT" and value]
    if len(values) != 15625:
        raise DataError(f"{path}: {len(values)} latencies; expected 15625: take HELP's file as it is")
    return values


def nas_speed_ratio(fast: Path, slow: Path) -> float:
    """Median over the same 15625 networks of latency(slow) / latency(fast)."""
    return median(b / a for a, b in zip(nas_latencies_ms(fast), nas_latencies_ms(slow), strict=True))


def derived_rates(data: Path) -> dict[str, float]:
    """MAC/s of every board whose source is a table in ``data``."""
    opencv = (data / "prof_opencv_zoo/benchmark/README.md").read_text(encoding="utf-8")
    edge = (data / "prof_ml_on_edge/ORIGIN_README.md").read_text(encoding="utf-8")
    latency = data / "prof_help_nb201/data/nasbench201/latency"
    rates = {name: median(opencv_rates(opencv, *place).values()) for name, place in _OPENCV_SECTIONS.items()}
    rates |= {name: edge_rate(edge, row) for name, row in _EDGE_ROWS.items()}
    rates["phone"] = rates["raspberry-pi-4b"] * nas_speed_ratio(latency / "pixel3.pt", latency / "raspi4.pt")
    return rates


def _after(text: str, mark: str) -> str:
    head, found, tail = text.partition(mark)
    if not found:
        raise DataError(f"OpenCV Zoo table: {mark.strip()!r} is missing; expected the file of May 2025 ({len(head)} B)")
    return tail


if __name__ == "__main__":
    for _name, _rate in sorted(derived_rates(Path(sys.argv[1])).items()):
        print(f"{_name:22} {_rate / GIGA:8.2f} GMAC/s")
