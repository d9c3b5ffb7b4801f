"""Training recipes: the architecture and every number of a training run, as strict YAML."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from adaptsplit.config import Config, parse, read_yaml
from adaptsplit.errors import ConfigError
from adaptsplit.registry import did_you_mean

IMAGE_SIZE = 256
CELLS = 4
RECIPE_SUFFIX = ".yaml"

Positive = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=16, le=4096, multiple_of=16)]
"""Channels of a hidden map. oneDNN's float32 backward pass of torch 2.13 corrupts memory for maps of 8 channels."""
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class StageConfig(Config):
    """A run of residual blocks of one width; the first block takes the stride."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,23}$")]
    width: Width
    blocks: Annotated[int, Field(ge=1, le=8)]
    stride: Annotated[int, Field(ge=1, le=2)]


class BranchConfig(Config):
    """A head branch: where it leaves the trunk, what it sends, its exit and its decoder.

    ``cut`` names the trunk stage after which the branch leaves; ``bottleneck`` is (C, H, W). Each width of ``encoder``
    is one 3x3 convolution of stride 2, before the 1x1 convolution to C channels. Each width of ``exit`` is one
    convolution of size ``exit_size`` (3: stride 2; 1: stride 1) before the exit's linear map; none = that map alone.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,23}$")]
    cut: str
    bottleneck: tuple[Positive, Positive, Positive]
    encoder: tuple[Width, ...]
    exit: tuple[Width, ...]
    exit_size: Literal[1, 3] = 3
    decoder: Width


class ModelConfig(Config):
    """Widths of the split model. ``stem`` are two 3x3 convolutions of stride 2; ``trunk`` and ``tail`` are stages."""

    stem: tuple[Width, Width]
    trunk: tuple[StageConfig, ...] = Field(min_length=1)
    tail: tuple[StageConfig, ...] = Field(min_length=1)
    branches: tuple[BranchConfig, ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        cuts = ["stem", *(stage.name for stage in self.trunk)]
        for branch in self.branches:
            if branch.cut not in cuts:
                raise ValueError(f"branch {branch.name!r} leaves after {branch.cut!r}; stages are {', '.join(cuts)}")
        names = [branch.name for branch in self.branches]
        if len(set(names)) != len(names) or len(set(cuts)) != len(cuts):
            raise ValueError("each branch and each stage needs a name of its own")
        return self


class Noise(Config):
    """Quantisation in the bottleneck while training: bit width drawn uniformly from ``bits`` (inclusive)."""

    bits: tuple[Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]] = (2, 8)
    per_channel: Probability = 0.5
    none: Probability = 0.1


class Augment(Config):
    """Changes to the training frames; strengths are fractions of full scale."""

    turns: bool = True
    brightness: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    contrast: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    channels: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    compress: Probability = 0.4
    quality: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (20, 95)
    webp: Probability = 0.5


class Training(Config):
    """Optimiser and schedule: AdamW, one cycle of the learning rate, exponential average of the weights.

    ``exit_gradient`` is the share of the exits' gradient that reaches the trunk. 0 keeps the trunk for the full model
    and makes the exits what a cheap classifier can read from it (internal classifiers of Kaya et al. 2019).
    """

    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    batch: Annotated[int, Field(ge=4, le=1024)]
    lr: Annotated[float, Field(gt=0.0, le=1.0)]
    warmup: Probability = 0.1
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.998
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    exit_weight: Annotated[float, Field(ge=0.0)] = 1.0
    exit_gradient: Probability = 0.0
    branch_weight: Annotated[float, Field(ge=0.0)] = 1.0
    distil: Annotated[float, Field(ge=0.0)] = 0.5
    bfloat16: bool = True
    reuse: Annotated[int, Field(ge=1, le=8)] = 2
    background: bool = True
    checkpoint_every: Positive = 200
    log_every: Positive = 20


class Calibration(Config):
    """How many frames fit the temperatures, and how many of the split after them check the accuracies."""

    frames: Annotated[int, Field(ge=1, le=100_000)] = 512
    bits: Annotated[int, Field(ge=1, le=16)] = 4


class Recipe(Config):
    """A whole training run; ``digest`` identifies it in a model folder and in a checkpoint."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,47}$")]
    model: ModelConfig
    noise: Noise = Noise()
    augment: Augment = Augment()
    training: Training
    calibration: Calibration = Calibration()

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of this recipe, hex."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    folder = resources.files("adaptsplit.models")
    return sorted(entry.name.removesuffix(RECIPE_SUFFIX) for entry in folder.iterdir() if _is_recipe(entry.name))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return a shipped recipe by name, or the one in a YAML file; ConfigError names every fault."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        known = recipe_names()
        if str(name_or_path) not in known:
            hint = did_you_mean(str(name_or_path), known)
            raise ConfigError(f"unknown recipe {str(name_or_path)!r}{hint} Known: {', '.join(known)}; or a YAML file.")
        path = Path(str(resources.files("adaptsplit.models") / f"{name_or_path}{RECIPE_SUFFIX}"))
    return parse(Recipe, read_yaml(path), str(path))


def _is_recipe(name: str) -> bool:
    return name.endswith(RECIPE_SUFFIX)
