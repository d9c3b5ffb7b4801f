"""Accuracy against bytes on frames that the model has never seen: every branch and feature codec, and the image itself.

    python benchmarks/tradeoff.py runs/eurosat/model --frames tiles:img_eurosat_rgb/eurosat_rgb_15000.tar --data DATA
    ... --finetune 150 --write         # the full model fine-tuned on WebP frames of each quality; a figure for the docs

Features are answered by the branch's tail, WebP and JPEG frames by the full model. With ``--finetune`` the full model
goes on training for so many steps on WebP frames of one quality at a time (on the model-train split), and is then asked
on frames of that quality: what an engineer would do who sends small images instead. ``map_frames`` says what a pure
cell is. Bytes are whole containers, without the transport's header.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from map_frames import Image, MapFrames, Prediction, load_frames
from PIL import Image as Pillow
from rich.console import Console
from rich.table import Table

from adaptsplit.codecs import get_codec
from adaptsplit.frames import open_frames
from adaptsplit.frames.worldsource import WorldSource
from adaptsplit.models import load_recipe
from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.losses import prepare
from adaptsplit.models.recipe import Augment, Recipe
from adaptsplit.models.storage import load_model
from adaptsplit.models.stream import make_batch
from adaptsplit.runtime import DeviceRuntime, EdgeRuntime, ModelFolder

FEATURE_CODECS = tuple(f"q{bits}c-context" for bits in (2, 3, 4, 6))
IMAGE_QUALITIES = (1, 5, 10, 20, 30, 50, 75)
FINETUNED = (1, 3, 5, 10, 20)
LEARNING_RATE = 3e-4
FIGURE = Path(__file__).parents[1] / "docs" / "img" / "tradeoff-eurosat.png"


@dataclass(frozen=True, slots=True)
class Point:
    """One way to answer: mean bytes per frame, shares of right cells, and the device's share of the model's MACs."""

    way: str
    codec: str
    bytes: float
    accuracy: float
    pure: float
    head_macs: float


def branch_points(folder: ModelFolder, frames: MapFrames) -> Iterator[Point]:
    """Every branch with every feature codec, and its exit (no bytes)."""
    device, edge, card = DeviceRuntime(folder), EdgeRuntime(folder), folder.card
    for branch in card.branches:
        heads = [device.head(branch.name, image) for image in frames.images]
        share = branch.macs_head / card.macs_full
        exit_share = (branch.macs_head + branch.macs_exit) / card.macs_full
        yield Point(f"exit {branch.name}", "-", 0.0, *frames.score([h.prediction for h in heads]), exit_share)
        for name in FEATURE_CODECS:
            codec = get_codec(name)
            sent = [codec.encode(head.features) for head in heads]
            answers = [edge.tail(branch.name, codec.decode(data)).prediction for data in sent]
            yield Point(branch.name, name, float(np.mean([len(d) for d in sent])), *frames.score(list(answers)), share)


def compressed(image: Image, kind: str, quality: int) -> bytes:
    """Return the frame as JPEG (optimised tables), or as WebP at its slowest and smallest setting."""
    buffer = io.BytesIO()
    options = {"method": 6} if kind == "webp" else {"optimize": True}
    Pillow.fromarray(image).save(buffer, kind.upper(), quality=quality, **options)
    return buffer.getvalue()


def image_point(way: str, kind: str, quality: int, frames: MapFrames, answer: Callable[[Image], Prediction]) -> Point:
    """The image sent as JPEG or WebP, answered by ``answer``."""
    sent = [compressed(image, kind, quality) for image in frames.images]
    seen = [np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB")) for data in sent]
    size = float(np.mean([len(data) for data in sent]))
    return Point(way, f"{kind}-{quality}", size, *frames.score([answer(image) for image in seen]), 0.0)


def answer_of(model: SplitModel) -> Callable[[Image], Prediction]:
    """Return the torch model's answer to one image."""

    def answer(image: Image) -> Prediction:
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255.0
            return np.asarray(model(x)[0].argmax(-1).numpy())

    return answer


def finetune(
    folder: Path, recipe: Recipe, opener: functools.partial[WorldSource], quality: int, steps: int
) -> SplitModel:
    """Return the full model after ``steps`` steps on WebP frames of one quality."""
    changed = Augment(compress=1.0, quality=(quality, quality), webp=1.0)
    recipe = recipe.model_copy(update={"augment": changed})
    model, source = load_model(folder), opener()
    parameters = [p.requires_grad_(True) for p in model.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    cache: dict[int, object] = {}
    for step in range(steps):
        batch = make_batch(source, recipe, quality, step, cache)  # type: ignore[arg-type]
        image = prepare(torch.from_numpy(batch.images), recipe.augment, torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(image)
        labels = torch.from_numpy(batch.labels).long()
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        rate.step()
    return model.eval().requires_grad_(False)


def measure(o: argparse.Namespace) -> list[Point]:
    """Return every point; progress goes to standard error."""
    frames, folder = load_frames(o.frames, "test", o.data, o.count), ModelFolder.open(o.model)
    device = DeviceRuntime(folder)
    whole = frames.score([device.local(image).prediction for image in frames.images])
    points = [Point("full model", "-", 0.0, *whole, 1.0), *branch_points(folder, frames)]
    for quality in IMAGE_QUALITIES:
        for kind in ("webp", "jpeg"):
            points.append(image_point("image", kind, quality, frames, lambda image: device.local(image).prediction))
    opener = functools.partial(open_frames, o.frames, split="model-train", data=o.data)
    recipe = load_recipe("reference")
    for quality in FINETUNED if o.finetune else ():
        begun = time.monotonic()
        model = finetune(o.model, recipe, opener, quality, o.finetune)  # type: ignore[arg-type]
        points.append(image_point("image, fine-tuned", "webp", quality, frames, answer_of(model)))
        Console(stderr=True).print(f"webp-{quality}: {o.finetune} steps in {time.monotonic() - begun:.0f} s")
    return points


def draw(points: list[Point], path: Path) -> None:
    """Write the figure: accuracy on pure cells over bytes, one line for each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(points[0].pure, color="0.4", lw=1, ls=":", label="full model, uncompressed frame")
    for way in dict.fromkeys(point.way for point in points if point.bytes):
        for kind in dict.fromkeys(p.codec.split("-")[0] for p in points if p.way == way and p.way == "image") or ("",):
            own = [p for p in points if p.way == way and (p.codec.startswith(kind) if kind else True)]
            own.sort(key=lambda point: point.bytes)
            axes.plot([p.bytes for p in own], [p.pure for p in own], marker="o", ms=3.5, label=f"{way} {kind}".strip())
    axes.set(xscale="log", xlabel="bytes per frame (256 x 256)", ylabel="right answers, pure cells", ylim=(0.6, 1.0))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(0.0, 0.4))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print a table, or JSON with ``--json``; ``--write`` draws the figure of the docs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--frames", default="flight")
    parser.add_argument("--count", type=int, default=400, help="test frames")
    parser.add_argument("--finetune", type=int, default=0, help="training steps for each WebP quality (0: none)")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--write", action="store_true", help=f"draw docs/img/{FIGURE.name}")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    points = measure(o)
    if o.write:
        draw(points, FIGURE)
    if o.json:
        print(json.dumps([asdict(point) for point in points], indent=1))
        return
    table = Table("way", "codec", "bytes", "all cells", "pure cells", "MACs before sending")
    for p in points:
        table.add_row(p.way, p.codec, f"{p.bytes:.0f}", f"{p.accuracy:.3f}", f"{p.pure:.3f}", f"{p.head_macs:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
