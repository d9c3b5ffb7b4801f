"""Training recipes: the architecture and every number of a training run, as strict YAML."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from adaptsplit.config import Config

IMAGE_SIZE = 256
CELLS = 4
MIN_GROUP = 16
"""Channels of a group of a sparse convolution, at least: the limit of ``Width``, for the same reason."""
LATER: dict[str, Any] = {
    "stages": [],
    "depth": 0,
    "head_groups": 1,
    "cascade": False,
    "prior": False,
    "adapted_tails": [],
    "rate_weight": 0.0,
    "score": "confidence",
    "weights": 0.0,
}
"""Options that came after the first release, with what they meant before: at these values the digest leaves them out,
so that a recipe keeps its digest, by which checkpoints and model folders know it."""

Positive = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=16, le=4096, multiple_of=16)]
"""Channels of a hidden map. oneDNN's float32 backward pass of torch 2.13 corrupts memory for maps of 8 channels."""
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
Part = Literal["trunk", "tail", "bottlenecks", "exits"]
PARTS: tuple[Part, ...] = ("trunk", "tail", "bottlenecks", "exits")


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
    ``depth`` adds that many residual blocks of stride 1 to the encoder, before its last convolution.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,23}$")]
    cut: str
    bottleneck: tuple[Positive, Positive, Positive]
    encoder: tuple[Width, ...]
    exit: tuple[Width, ...]
    exit_size: Literal[1, 3] = 3
    decoder: Width
    depth: Annotated[int, Field(ge=0, le=4)] = 0


class ModelConfig(Config):
    """Widths of the split model. ``stem`` are two 3x3 convolutions of stride 2; ``trunk`` and ``tail`` are stages.

    ``head_groups`` > 1 makes the head sparse before training (predefined sparsity, Dey et al. 2019): every 3x3
    convolution of trunk and encoders that keeps width and size sees 1 / head_groups of its inputs, interleaved.
    ``prior`` gives every bottleneck a learned entropy model (``adaptsplit.models.entropy``). ``cascade`` makes the
    exits Zero Time Waste's (Wolczyk et al. 2021): each sees the answer of the one before, and answers together with all
    before it. Branches in ``adapted_tails`` have a tail of their own; all others share one.
    """

    stem: tuple[Width, Width]
    trunk: tuple[StageConfig, ...] = Field(min_length=1)
    tail: tuple[StageConfig, ...] = Field(min_length=1)
    branches: tuple[BranchConfig, ...] = Field(min_length=1, max_length=16)
    head_groups: Literal[1, 2, 4] = 1
    prior: bool = False
    cascade: bool = False
    adapted_tails: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        cuts = ["stem", *(stage.name for stage in self.trunk)]
        for branch in self.branches:
            if branch.cut not in cuts:
                raise ValueError(f"branch {branch.name!r} leaves after {branch.cut!r}; stages are {', '.join(cuts)}")
        names = [branch.name for branch in self.branches]
        if len(set(names)) != len(names) or len(set(cuts)) != len(cuts):
            raise ValueError("each branch and each stage needs a name of its own")
        unknown = sorted(set(self.adapted_tails) - set(names))
        if unknown:
            raise ValueError(f"adapted_tails names {unknown[0]!r}; branches are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        widths = [stage.width for stage in self.trunk] + [w for b in self.branches if b.depth for w in b.encoder[-1:]]
        narrow = [width for width in widths if width // self.head_groups < MIN_GROUP or width % self.head_groups]
        if self.head_groups > 1 and narrow:
            raise ValueError(
                f"head_groups {self.head_groups} splits a width of {narrow[0]}; each group needs {MIN_GROUP} channels"
            )
        return self


class Noise(Config):
    """Quantisation while training: the bottleneck's bit width is drawn uniformly from ``bits`` (inclusive).

    ``per_channel`` and ``none`` are the shares of steps with one range per channel, and without quantisation.
    ``weights`` is the share of filters that a step rounds to 8 bits (Quant-Noise, Fan et al. 2021), for an int8 export.
    """

    bits: tuple[Annotated[int, Field(ge=1, le=16)], Annotated[int, Field(ge=1, le=16)]] = (2, 8)
    per_channel: Probability = 0.5
    none: Probability = 0.1
    weights: Probability = 0.0


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
    and makes the exits what a cheap classifier can read from it (internal classifiers of Kaya et al. 2019). ``distil``
    weighs the divergence of exits and remote answers from the full model's (Hinton et al. 2015); ``rate_weight`` the
    bits per value under the learned entropy model. A stage may change the weights for its part of the run.
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
    rate_weight: Annotated[float, Field(ge=0.0)] = 0.0
    bfloat16: bool = True
    reuse: Annotated[int, Field(ge=1, le=8)] = 2
    background: bool = True
    checkpoint_every: Positive = 200
    log_every: Positive = 20


class Stage(Config):
    """One part of a run: which parts learn, from which losses. The learning rate starts anew, from averaged weights.

    ``share`` is its part of the steps. ``train`` names the parts that learn; the others stand still, batch statistics
    included. The full model's answer and maps are what ``distil``, ``hidden_weight`` and ``deep_weight`` aim at: its
    own of this step (``teacher: self``), or those of a copy that is frozen when the stage begins (``frozen``).
    ``hidden_weight`` weighs the squared error of a branch's decoded map against the trunk's last map (reconstruction;
    head-network distillation, Matsubara et al. 2019), ``deep_weight`` that of the maps after each stage of the tail
    (its generalisation, Matsubara & Levorato 2021); both relative to the aim's variance. ``temperature`` softens both
    sides of ``distil``. A weight that is left out is that of ``training``; ``exit_distil`` left out is ``distil``.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,23}$")]
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    train: tuple[Part, ...] = Field(default=PARTS, min_length=1)
    teacher: Literal["self", "frozen"] = "self"
    full_weight: Weight = 1.0
    branch_weight: Weight | None = None
    exit_weight: Weight | None = None
    exit_gradient: Probability | None = None
    distil: Weight | None = None
    exit_distil: Weight | None = None
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    hidden_weight: Weight = 0.0
    deep_weight: Weight = 0.0
    rate_weight: Weight | None = None
    lr: Annotated[float, Field(gt=0.0, le=1.0)] | None = None

    def settled(self, training: Training) -> Stage:
        """Return this stage with everything that it leaves out filled in from ``training``."""
        names = ("branch_weight", "exit_weight", "exit_gradient", "distil", "rate_weight", "lr")
        filled: dict[str, Any] = {n: getattr(training, n) for n in names if getattr(self, n) is None}
        if self.exit_distil is None:
            filled["exit_distil"] = filled.get("distil", self.distil)
        return self.model_copy(update=filled)


class Calibration(Config):
    """How many frames fit the temperatures, and how many of the split after them check the accuracies.

    ``score`` is what an exit's threshold is compared with: the mean largest probability, one minus the normalised
    entropy (BranchyNet), or a correctness that is learned on the calibration frames.
    """

    frames: Annotated[int, Field(ge=1, le=100_000)] = 512
    bits: Annotated[int, Field(ge=1, le=16)] = 4
    score: Literal["confidence", "entropy", "correctness"] = "confidence"


class Recipe(Config):
    """A whole training run; ``digest`` identifies it in a model folder and in a checkpoint.

    Without ``stages`` the run is one stage in which everything learns at once.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,47}$")]
    model: ModelConfig
    noise: Noise = Noise()
    augment: Augment = Augment()
    training: Training
    stages: tuple[Stage, ...] = Field(default=(), max_length=8)
    calibration: Calibration = Calibration()

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        total = sum(stage.share for stage in self.stages)
        if self.stages and abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares of the stages add up to {total:g}; they must add up to 1")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("each training stage needs a name of its own")
        if len(self.stages) > self.training.steps:
            raise ValueError(f"{len(self.stages)} stages in {self.training.steps} steps; each needs at least one")
        return self

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of this recipe, hex."""
        text = json.dumps(_without_later(self.model_dump(mode="json")), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def plan(self) -> list[tuple[int, Stage]]:
        """Return (first step, settled stage) of every stage, in order; a recipe without stages has one, ``all``."""
        stages = self.stages or (Stage(name="all"),)
        steps = self.training.steps
        starts, done = [0], 0.0
        for left, stage in zip(range(len(stages) - 1, 0, -1), stages, strict=False):
            done += stage.share
            starts.append(min(max(round(done * steps), starts[-1] + 1), steps - left))
        return [(start, stage.settled(self.training)) for start, stage in zip(starts, stages, strict=True)]


def _without_later(value: Any) -> Any:
    """Return ``value`` without the options of ``LATER`` that are at their first meaning."""
    if isinstance(value, dict):
        return {k: _without_later(v) for k, v in value.items() if not (k in LATER and v == LATER[k])}
    return [_without_later(v) for v in value] if isinstance(value, list) else value
