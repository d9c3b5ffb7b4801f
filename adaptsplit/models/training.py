"""The training loop: batches ahead, stages, averaged weights, log, progress, checkpoints.

Every stage has its own optimiser and one cycle of the learning rate, and starts from the averaged weights of the one
before.
"""

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
from adaptsplit.models.events import EventWriter
from adaptsplit.models.layers import filters_rounded
from adaptsplit.models.losses import StepResult, joint_step, prepare
from adaptsplit.models.recipe import Recipe, Stage, Training
from adaptsplit.models.stream import Batch, BatchStream, Opener

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "training.jsonl"
EVENT_FOLDER = "tensorboard"
GRADIENT_CLIP = 2.0


@dataclass(slots=True)
class TrainingState:
    """Everything a run needs to go on: weights, their running average, the optimiser, the number of steps done.

    ``teacher`` is the frozen copy that the present stage learns from, where it has one.
    """

    model: SplitModel
    average: SplitModel
    optimiser: torch.optim.AdamW
    step: int
    teacher: SplitModel | None = None


@dataclass(frozen=True, slots=True)
class StageRun:
    """A stage and where it lies: steps ``start`` .. ``stop - 1`` of the run."""

    stage: Stage
    start: int
    stop: int


def learning_rate(training: Training, step: int) -> float:
    """Return the rate of ``step``: linear warm-up, then a cosine to zero (Smith 2018; Loshchilov & Hutter 2017)."""
    rise = max(1.0, training.warmup * training.steps)
    if step < rise:
        return training.lr * (step + 1) / rise
    done = (step - rise) / max(1.0, training.steps - rise)
    return training.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def stage_at(recipe: Recipe, step: int) -> StageRun:
    """Return the stage that ``step`` belongs to (the last one for the step after the end)."""
    plan = recipe.plan()
    stops = [start for start, _ in plan[1:]] + [recipe.training.steps]
    runs = [StageRun(stage, start, stop) for (start, stage), stop in zip(plan, stops, strict=True)]
    return next((run for run in runs if step < run.stop), runs[-1])


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
    tensorboard: bool = False,
) -> SplitModel:
    """Train to the end of the recipe and return the averaged model; a checkpoint in ``out`` is continued.

    Writes ``out/training.jsonl``, and events to ``out/tensorboard`` where asked. ``stop_after`` ends the run early
    after that step with a checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    state = new_state(recipe, classes, seed)
    _resume(state, out / CHECKPOINT_NAME, recipe, seed)
    last = recipe.training.steps if stop_after is None else min(stop_after, recipe.training.steps)
    with (
        BatchStream(opener, recipe, seed, state.step, last) as batches,
        _bar(progress) as bar,
        (out / LOG_NAME).open("a", encoding="utf-8") as log,
        EventWriter(out / EVENT_FOLDER if tensorboard else None) as events,
    ):
        task = bar.add_task(f"fit {recipe.name}", total=recipe.training.steps, completed=state.step, note="")
        started = time.monotonic()
        for batch in batches:
            result = train_step(state, batch, recipe, seed)
            if state.step % recipe.training.log_every == 0 or state.step == last:
                record = _record(state, result, recipe, time.monotonic() - started)
                log.write(json.dumps(record) + "\n")
                log.flush()
                events.write(record)
                bar.update(task, note=f"{record['stage']}: loss {record['loss']:.3f}  full {record['full']:.1%}")
            if state.step % recipe.training.checkpoint_every == 0 or state.step == last:
                _save(state, out / CHECKPOINT_NAME, recipe, seed)
            bar.update(task, completed=state.step)
    state.average.eval()
    return state.average


def train_step(state: TrainingState, batch: Batch, recipe: Recipe, seed: int) -> StepResult:
    """Do one optimiser step in place; every random draw comes from (seed, step)."""
    training, run = recipe.training, stage_at(recipe, state.step)
    if state.step == run.start:
        begin_stage(state, run, training)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + state.step)
    image = prepare(torch.from_numpy(batch.images), recipe.augment, generator)
    labels = torch.from_numpy(batch.labels).long()
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(cycle(training, run), state.step - run.start)
    set_learning(state.model, run.stage.train)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=training.bfloat16),
        filters_rounded(state.model, recipe.noise.weights, generator),
    ):
        result = joint_step(state.model, image, labels, recipe, generator, run.stage, state.teacher)
    if not bool(torch.isfinite(result.loss)):
        raise RunError(f"the loss became {float(result.loss)} at step {state.step}; lower training.lr in the recipe")
    state.optimiser.zero_grad(set_to_none=True)
    result.loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), GRADIENT_CLIP)
    state.optimiser.step()
    state.step += 1
    _average(state, training.average, state.step - run.start)
    return result


def cycle(training: Training, run: StageRun) -> Training:
    """Return ``training`` with the steps and the learning rate of one stage."""
    return training.model_copy(update={"steps": run.stop - run.start, "lr": run.stage.lr or training.lr})


def begin_stage(state: TrainingState, run: StageRun, training: Training) -> None:
    """Go on from the averaged weights with a fresh optimiser, and freeze a teacher where the stage has one."""
    if run.start:
        state.model.load_state_dict(state.average.state_dict())
        state.optimiser = _optimiser(state.model, training)
    state.teacher = copy.deepcopy(state.average).eval() if run.stage.teacher == "frozen" else None


def set_learning(model: SplitModel, parts: tuple[str, ...]) -> None:
    """Let ``parts`` learn; the rest keeps its weights and batch statistics."""
    model.train()
    for part, modules in model.parts().items():
        for module in modules:
            module.train(part in parts).requires_grad_(part in parts)


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


def _average(state: TrainingState, decay: float, steps: int) -> None:
    """Move the averaged weights and batch statistics towards the current ones; early in a stage it is shorter."""
    weight = 1.0 - min(decay, (1 + steps) / (10 + steps))
    with torch.no_grad():
        for mean, now in zip(state.average.state_dict().values(), state.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, weight)
            else:
                mean.copy_(now)


def _record(state: TrainingState, result: StepResult, recipe: Recipe, seconds: float) -> dict[str, Any]:
    run = stage_at(recipe, state.step - 1)
    return {
        "step": state.step,
        "stage": run.stage.name,
        "loss": round(float(result.loss.detach()), 5),
        "lr": learning_rate(cycle(recipe.training, run), state.step - 1 - run.start),
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
        "teacher": None if state.teacher is None else state.teacher.state_dict(),
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
    if content.get("teacher") is not None:
        state.teacher = copy.deepcopy(state.average).eval()
        state.teacher.load_state_dict(content["teacher"])
