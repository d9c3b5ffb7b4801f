"""``adaptsplit fit``: train, calibrate, export; the whole way from a recipe to a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adaptsplit.errors import ConfigError
from adaptsplit.frames.base import open_frames
from adaptsplit.models.calibration import calibrate
from adaptsplit.models.int8 import export_int8
from adaptsplit.models.recipe import Recipe
from adaptsplit.models.recipe_files import load_recipe
from adaptsplit.models.storage import export, for_inference
from adaptsplit.models.training import CHECKPOINT_NAME, set_threads, train
from adaptsplit.runtime.folder import MODEL_FILE, ModelFolder


@dataclass(frozen=True, slots=True)
class FitResult:
    """A finished model folder and its cell accuracies on the calibration split (full, per exit, per 4-bit tail)."""

    folder: Path
    accuracy: dict[str, float]
    ece_before: dict[str, float]
    ece_after: dict[str, float]


def fit(
    recipe: Recipe | str | Path,
    frames: str,
    out: str | Path,
    *,
    seed: int = 0,
    frames_seed: int = 0,
    data: Path | None = None,
    progress: bool = True,
    threads: int | None = None,
    tensorboard: bool = False,
    int8: bool = False,
) -> FitResult:
    """Train ``recipe`` on the model-train split of ``frames``, calibrate on its calibration split, write ``out``.

    ``recipe`` is a shipped name, a YAML file or a Recipe; ``frames`` a source such as ``flight`` or ``tiles:PATH``
    (relative to ``data``). A run that was cut off goes on from its checkpoint in ``out``. ``threads`` defaults to
    every processor. ``tensorboard`` writes events to ``out/tensorboard``; ``int8`` adds 8-bit graphs, calibrated on the
    calibration split, which a runtime takes when told to. ConfigError when ``out`` holds a finished model.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(out)
    if (folder / MODEL_FILE).exists():
        raise ConfigError(f"{folder}: holds a finished model already; give another --out or delete it")
    set_threads(threads)
    opener = partial(open_frames, frames, split="model-train", seed=frames_seed, data=data)
    calibration_source = open_frames(frames, split="calibration", seed=frames_seed, data=data)
    classes = tuple(calibration_source.classes)
    if len(classes) < 2:
        raise ConfigError(f"frames {frames!r} have {len(classes)} classes; training needs at least 2 labelled ones")
    averaged = train(chosen, classes, opener, folder, seed=seed, progress=progress, tensorboard=tensorboard)
    model = for_inference(averaged)
    report = calibrate(model, calibration_source, chosen.calibration)
    answers = report["answers"]
    accuracy = {name: round(values["accuracy"], 4) for name, values in answers.items()}
    training = {
        "recipe": chosen.name,
        "recipe_sha256": chosen.digest(),
        "steps": chosen.training.steps,
        "seed": seed,
        "frames": frames,
        "frames_seed": frames_seed,
        "accuracy": accuracy,
    }
    export(model, folder, name=_name(frames), training=training, calibration=report)
    if int8:
        export_int8(folder, calibration_source)
    ModelFolder.open(folder)
    (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
    before = {name: values["ece_before"] for name, values in answers.items()}
    return FitResult(folder, accuracy, before, {name: values["ece_after"] for name, values in answers.items()})


def _name(frames: str) -> str:
    kind, _, argument = frames.partition(":")
    return f"{kind}-{Path(argument).stem}" if argument else kind
