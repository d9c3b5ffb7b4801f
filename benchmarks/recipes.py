"""Train one split model by every shipped recipe on the same budget, and compare what comes out.

    python benchmarks/recipes.py [--quick] [--json] [--steps 260] [--seeds 1] [--recipes ce,kd,...]
    python benchmarks/recipes.py --frames tiles:img_eurosat_rgb/eurosat_rgb_15000.tar --data DATA

The model is a small relative of the shipped one (MODEL below). All recipes see the same frames in the same order: a
pool drawn once from the model-train split. Accuracies are shares of right cells on frames of the test split; branches
answer from 4-bit features (from the learned grid where the recipe has an entropy model). Bytes are those of the
container that is sent. Recipes that begin with the same stage share it; its time counts for each.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptsplit.codecs import get_codec
from adaptsplit.codecs.prior import PriorCodec
from adaptsplit.frames import Frame, open_frames
from adaptsplit.frames.pool import FramePool
from adaptsplit.models import Recipe, load_recipe
from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.recipe import ModelConfig
from adaptsplit.models.storage import for_inference
from adaptsplit.models.stream import BatchStream
from adaptsplit.models.training import TrainingState, new_state, stage_at, train_step

RECIPES = (
    *("ce", "kd", "reconstruction", "hnd", "ghnd", "staged"),
    *("exits-joint", "exits-separate", "exits-distilled", "qat", "entropic", "reference"),
)
MODEL: dict[str, Any] = {
    "stem": [16, 16],
    "trunk": [
        {"name": "shallow", "width": 16, "blocks": 1, "stride": 1},
        {"name": "mid", "width": 32, "blocks": 1, "stride": 2},
    ],
    "tail": [
        {"name": "context", "width": 32, "blocks": 1, "stride": 2},
        {"name": "summary", "width": 48, "blocks": 1, "stride": 2},
    ],
    "branches": [
        {"name": "stem", "cut": "stem", "bottleneck": [8, 16, 16], "encoder": [16, 16], "exit": [16], "decoder": 16},
        {
            "name": "shallow",
            "cut": "shallow",
            "bottleneck": [8, 16, 16],
            "encoder": [16, 16],
            "exit": [16],
            "decoder": 16,
        },
        {"name": "mid", "cut": "mid", "bottleneck": [4, 16, 16], "encoder": [16], "exit": [], "decoder": 16},
        {"name": "deep", "cut": "mid", "bottleneck": [4, 8, 8], "encoder": [16, 16], "exit": [16], "decoder": 16},
    ],
}
CODEC = "q4c-zstd"


@dataclass(frozen=True, slots=True)
class Row:
    """One recipe and seed: shares of right cells, payload bytes by branch, CPU seconds of training."""

    recipe: str
    seed: int
    full: float
    branches: dict[str, float]
    exits: dict[str, float]
    payload_bytes: dict[str, float]
    seconds: float


def small(name: str, steps: int, batch: int) -> Recipe:
    """Return recipe ``name`` for the small model and the common budget."""
    recipe = load_recipe(name)
    model = ModelConfig.model_validate(MODEL | {"prior": recipe.model.prior})
    budget = {"steps": steps, "batch": batch, "lr": 0.006, "average": 0.98, "background": False, "reuse": 1}
    training = recipe.training.model_copy(update=budget)
    augment = recipe.augment.model_copy(update={"compress": 0.0})
    return recipe.model_copy(update={"model": model, "training": training, "augment": augment})


class Trainer:
    """Trains recipes on one pool and keeps first stages that several recipes share."""

    def __init__(self, pool: FramePool) -> None:
        self._pool = pool
        self._begun: dict[str, tuple[TrainingState, float]] = {}

    def train(self, recipe: Recipe, seed: int) -> tuple[SplitModel, float]:
        """Return the averaged model and the CPU seconds it took, shared stages included."""
        first = stage_at(recipe, 0)
        same = recipe.model_copy(update={"name": "same", "stages": (first.stage.model_copy(update={"share": 1.0}),)})
        key = f"{same.digest()} {first.stop} {seed}"
        if key not in self._begun:
            state = new_state(recipe, tuple(self._pool.classes), seed)
            self._begun[key] = (state, self._steps(state, recipe, seed, first.stop))
        state, seconds = copy.deepcopy(self._begun[key])
        seconds += self._steps(state, recipe, seed, recipe.training.steps)
        return state.average.eval(), seconds

    def _steps(self, state: TrainingState, recipe: Recipe, seed: int, stop: int) -> float:
        start = time.process_time()
        with BatchStream(lambda: self._pool, recipe, seed, state.step, stop) as batches:
            for batch in batches:
                train_step(state, batch, recipe, seed)
        return time.process_time() - start


def score(model: SplitModel, frames: list[Frame]) -> dict[str, dict[str, float]]:
    """Return accuracy of the full model, the exits and the branches, and the branches' bytes."""
    priors = {name: model.branch(name).prior for name in model.branches}
    codecs = {n: get_codec(CODEC) if prior is None else PriorCodec(prior.table()) for n, prior in priors.items()}
    found: dict[str, list[float]] = {}
    for frame in frames:
        image = torch.from_numpy(frame.image).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            found.setdefault("full", []).append(_right(model(image), frame))
            for name in model.branches:
                features, exit_logits = model.head(name, image)
                used = codecs[name]
                data = used.encode(features[0].numpy())
                sent = torch.from_numpy(used.decode(data))[None]
                found.setdefault(f"exits:{name}", []).append(_right(exit_logits, frame))
                found.setdefault(f"branches:{name}", []).append(_right(model.remote(name, sent), frame))
                found.setdefault(f"payload_bytes:{name}", []).append(float(len(data)))
    grouped: dict[str, dict[str, float]] = {}
    for key, values in found.items():
        group, _, name = key.partition(":")
        grouped.setdefault(group, {})[name] = round(float(np.mean(values)), 4)
    return grouped


def _right(logits: torch.Tensor, frame: Frame) -> float:
    known = frame.labels >= 0
    return float((logits[0].argmax(-1).numpy() == frame.labels)[known].mean())


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table; means over branches, and over seeds."""
    lines = ["| recipe | full model | branches | `stem` branch | exits | bytes | CPU s |", "| --- |" + " --: |" * 6]
    for name in dict.fromkeys(row.recipe for row in rows):
        same = [row for row in rows if row.recipe == name]
        mean = [
            np.mean([row.full for row in same]),
            np.mean([list(row.branches.values()) for row in same]),
            np.mean([row.branches["stem"] for row in same]),
            np.mean([list(row.exits.values()) for row in same]),
        ]
        size = np.mean([list(row.payload_bytes.values()) for row in same])
        seconds = np.mean([row.seconds for row in same])
        shares = " | ".join(f"{100 * value:.1f} %" for value in mean)
        lines.append(f"| `{name}` | {shares} | {size:.0f} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps: proves that it works, says nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", default="flight")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--pool", type=int, default=1500, help="training frames in all")
    parser.add_argument("--check", type=int, default=256, help="test frames")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    o = parser.parse_args()
    if o.quick:
        o.steps, o.batch, o.pool, o.check = 8, 8, 16, 8
    torch.set_num_threads(1)
    trainer = Trainer(FramePool.drawn(open_frames(o.frames, split="model-train", data=o.data), o.pool))
    test = open_frames(o.frames, split="test", data=o.data)
    checks = [test.frame(int(i)) for i in np.unique(np.linspace(0, len(test) - 1, o.check).astype(int))]
    rows = []
    for seed in range(o.seeds):
        for name in o.recipes.split(","):
            model, seconds = trainer.train(small(name, o.steps, o.batch), seed)
            found = score(for_inference(model), checks)
            parts = (found["branches"], found["exits"], found["payload_bytes"])
            rows.append(Row(name, seed, found["full"][""], *parts, round(seconds, 1)))
            if not o.json:
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    if o.json:
        budget = {"frames": o.frames, "steps": o.steps, "batch": o.batch, "pool": o.pool, "check": o.check}
        print(json.dumps({"budget": budget, "codec": CODEC, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        print("\n" + table(rows))


if __name__ == "__main__":
    main()
