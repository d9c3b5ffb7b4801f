"""The training loop: batches ahead, one cycle of the learning rate, averaged weights, log, progress, checkpoints."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adaptsplit.errors import ConfigError, ModelError, RunError
from adaptsplit.models.architecture import SplitModel
from adaptsplit.models.losses import StepResult, joint_step, prepare
from adaptsplit.models.recipe import Recipe, Training
from adaptsplit.models.stream import Batch, BatchStream, Opener

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "training.jsonl"
GRADIENT_CLIP = 2.0


@dataclass(slots=True)
class TrainingState:
    """Everything a run needs to go on: weights, their running average, the optimiser, the number of steps done."""

    model: SplitModel
    average: SplitModel
    optimiser: torch.optim.AdamW
    step: int


def learning_rate(training: Training, step: int) -> float:
    """Return the rate of ``step``: linear warm-up, then a cosine to zero (Smith 2018; Loshchilov & Hutter 2017)."""
    rise = max(1.0, training.warmup * training.steps)
    if step < rise:
        return training.lr * (step + 1) / rise
    done = (step - rise) / max(1.0, training.steps - rise)
    return training.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def new_state(recipe: Recipe, classes: tuple[str, ...], seed: int) -> TrainingState:
    """Return a fresh state with weights drawn from ``seed``, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SplitModel(recipe.model, classes)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).requires_grad_(False)
    return TrainingState(model, average, _optimiser(model, recipe.training), 0)


def train(
    recipe: Recipe,
    classes: tuple[str, ...],
    opener: Opener,
    out: Path,
    *,
    seed: int,
    progress: bool,
    stop_after: int | None = None,
) -> SplitModel:
    """Train to the end of the recipe and return the averaged model; a checkpoint in ``out`` is continued.

    Writes ``out/training.jsonl``. ``stop_after`` ends the run early after that step with a checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    state = new_state(recipe, classes, seed)
    _resume(state, out / CHECKPOINT_NAME, recipe, seed)
    last = recipe.training.steps if stop_after is None else min(stop_after, recipe.training.steps)
    with (
        BatchStream(opener, recipe, seed, state.step, last) as batches,
        _bar(progress) as bar,
        (out / LOG_NAME).open("a", encoding="utf-8") as log,
    ):
        task = bar.add_task(f"fit {recipe.name}", total=recipe.training.steps, completed=state.step, note="")
        started = time.monotonic()
        for batch in batches:
            result = train_step(state, batch, recipe, seed)
            if state.step % recipe.training.log_every == 0 or state.step == last:
                record = _record(state, result, recipe, time.monotonic() - started)
                log.write(json.dumps(record) + "\n")
                log.flush()
                bar.update(task, note=f"loss {record['loss']:.3f}  full {record['full']:.1%}")
            if state.step % recipe.training.checkpoint_every == 0 or state.step == last:
                _save(state, out / CHECKPOINT_NAME, recipe, seed)
            bar.update(task, completed=state.step)
    state.average.eval()
    return state.average


def train_step(state: TrainingState, batch: Batch, recipe: Recipe, seed: int) -> StepResult:
    """Do one optimiser step in place; every random draw comes from (seed, step)."""
    training = recipe.training
    generator = torch.Generator().manual_seed(seed * 1_000_003 + state.step)
    image = prepare(torch.from_numpy(batch.images), recipe.augment, generator)
    labels = torch.from_numpy(batch.labels).long()
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(training, state.step)
    state.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=training.bfloat16):
        result = joint_step(state.model, image, labels, recipe, generator)
    if not bool(torch.isfinite(result.loss)):
        raise RunError(f"the loss became {float(result.loss)} at step {state.step}; lower training.lr in the recipe")
    state.optimiser.zero_grad(set_to_none=True)
    result.loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), GRADIENT_CLIP)
    state.optimiser.step()
    state.step += 1
    _average(state, training.average)
    return result


def set_threads(threads: int | None) -> int:
    """Let torch use ``threads`` threads (default: every processor) and return the number."""
    count = threads or os.cpu_count() or 1
    torch.set_num_threads(count)
    return count


def _optimiser(model: SplitModel, training: Training) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.lr)


def _average(state: TrainingState, decay: float) -> None:
    """Move the averaged weights and batch statistics towards the current ones; early on the average is shorter."""
    weight = 1.0 - min(decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for mean, now in zip(state.average.state_dict().values(), state.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, weight)
            else:
                mean.copy_(now)


def _record(state: TrainingState, result: StepResult, recipe: Recipe, seconds: float) -> dict[str, Any]:
    return {
        "step": state.step,
        "loss": round(float(result.loss.detach()), 5),
        "lr": learning_rate(recipe.training, state.step - 1),
        "full": round(result.full, 4),
        "exits": {name: round(value, 4) for name, value in result.exits.items()},
        "tails": {name: round(value, 4) for name, value in result.tails.items()},
        "seconds": round(seconds, 2),
    }


def _bar(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


def _save(state: TrainingState, path: Path, recipe: Recipe, seed: int) -> None:
    content = {
        "recipe": recipe.digest(),
        "seed": seed,
        "step": state.step,
        "classes": list(state.model.classes),
        "model": state.model.state_dict(),
        "average": state.average.state_dict(),
        "optimiser": state.optimiser.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def _resume(state: TrainingState, path: Path, recipe: Recipe, seed: int) -> None:
    if not path.exists():
        return
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise ModelError(f"{path}: not a checkpoint of ours ({error}); delete it to train anew") from error
    expected = {"recipe": recipe.digest(), "seed": seed, "classes": list(state.model.classes)}
    for key, value in expected.items():
        if content.get(key) != value:
            raise ConfigError(
                f"{path}: made with {key} {content.get(key)!r}, this run has {value!r}; delete it or use another --out"
            )
    state.model.load_state_dict(content["model"])
    state.average.load_state_dict(content["average"])
    state.optimiser.load_state_dict(content["optimiser"])
    state.step = int(content["step"])
