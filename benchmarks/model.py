"""Cell accuracy of a model folder on frames that it has never seen, through onnxruntime: all cells, and pure ones.

    python benchmarks/model.py runs/eurosat/model --frames tiles:img_eurosat_rgb/eurosat_rgb_15000.tar --data DATA

``map_frames`` says what a pure cell is. Remote answers ("tail") use the branch's strongest codec but one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from map_frames import Image, Prediction, load_frames

from adaptsplit.codecs import get_codec
from adaptsplit.profiles import reference_branches
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder


def predictions(device: DeviceRuntime, edge: EdgeRuntime, image: Image) -> dict[str, Prediction]:
    """Return the answer (16,) of the full model, of every exit and of every branch's tail."""
    found = {"full": device.local(image).prediction}
    for branch in reference_branches():
        if branch.kind == "split":
            head, codec = device.head(branch.name, image), get_codec(branch.codecs[1])
            found[f"exit {branch.name}"] = head.prediction
            decoded = codec.decode(codec.encode(head.features))
            found[f"tail {branch.name}"] = edge.tail(branch.name, decoded).prediction
    return found


def measure(model: Path, frames: str, split: str, count: int, data: Path | None) -> dict[str, dict[str, float]]:
    """Return accuracy per answer: over all cells and over pure ones."""
    chosen = load_frames(frames, split, data, count)
    folder = ModelFolder.open(model)
    device, edge = DeviceRuntime(folder), EdgeRuntime(folder)
    answers: dict[str, list[Prediction]] = {}
    for image in chosen.images:
        for name, prediction in predictions(device, edge, image).items():
            answers.setdefault(name, []).append(prediction)
    found = {name: dict(zip(("all", "pure"), chosen.score(own), strict=True)) for name, own in answers.items()}
    return {**found, "share of pure cells": {"all": float(chosen.pure.mean()), "pure": 1.0}}


def main() -> None:
    """Print a table, or JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--frames", default="flight")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    found = measure(o.model, o.frames, o.split, o.count, o.data)
    if o.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'answer':<20}{'all cells':>10}{'pure':>8}")
    for name, row in found.items():
        print(f"{name:<20}{row['all']:>10.3f}{row['pure']:>8.3f}")


if __name__ == "__main__":
    main()
