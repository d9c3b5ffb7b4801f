"""The model folder: ``model.json`` and the ONNX files that it lists with their SHA-256."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from adaptsplit.config import Config, parse_json
from adaptsplit.errors import CodecError, ModelError
from adaptsplit.runtime.exits import STATISTICS, Correctness, Score, entropy_score

MODEL_FILE = "model.json"
MAX_CARD_BYTES = 4 << 20
MAX_FILE_BYTES = 256 << 20

Precision = Literal["float", "int8"]
Count = Annotated[int, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0.0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
BranchName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,23}$")]


class InputCard(Config):
    """Image size, pixels."""

    height: Annotated[int, Field(ge=1, le=8192)]
    width: Annotated[int, Field(ge=1, le=8192)]


class ScoreCard(Config):
    """What the exit's threshold is compared with, where it is not the mean largest probability."""

    kind: Literal["entropy", "correctness"]
    weights: tuple[float, ...] = ()
    bias: float = 0.0

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        expected = len(STATISTICS) if self.kind == "correctness" else 0
        if len(self.weights) != expected:
            raise ValueError(f"score {self.kind!r} has {len(self.weights)} weights; expected {expected}")
        return self

    def score(self) -> Score:
        """Return the function from probabilities (..., K) to scores (...)."""
        return entropy_score if self.kind == "entropy" else Correctness(self.weights, self.bias)


class BranchCard(Config):
    """One head branch. ``temperature`` is inside the exit's ONNX already, ``tail_temperature`` is not."""

    name: BranchName
    depth: Count
    cut: str
    bottleneck: tuple[int, int, int]
    macs_head: Count
    macs_exit: Count
    macs_decoder: Count
    temperature: Temperature
    tail_temperature: Temperature
    exit_score: ScoreCard | None = None


class FullCard(Config):
    """The full model: MACs of trunk and tail, temperature of its answer."""

    macs_features: Count
    macs_tail: Count
    temperature: Temperature


class ModelCard(Config):
    """The content of ``model.json``.

    ``precision`` is what a runtime takes that is not told: the float graphs, or the 8-bit ones beside them, whose
    measured accuracy and time ``int8`` reports.
    """

    schema_: Literal["adaptsplit.model/1"] = Field(alias="schema")
    name: str
    classes: tuple[str, ...] = Field(min_length=2, max_length=255)
    input: InputCard
    cells: tuple[int, int]
    branches: tuple[BranchCard, ...] = Field(min_length=1)
    full: FullCard
    params: Count
    training: dict[str, Any]
    calibration: dict[str, Any]
    precision: Precision = "float"
    int8: dict[str, Any] | None = None
    files: dict[FileName, Sha256]
    training_files: dict[FileName, Sha256] = Field(default_factory=dict)

    @property
    def macs_full(self) -> int:
        """MACs of the full model, per frame."""
        return self.full.macs_features + self.full.macs_tail

    def branch(self, name: str) -> BranchCard:
        """Return the card of branch ``name``; ModelError lists the known ones."""
        for card in self.branches:
            if card.name == name:
                return card
        known = ", ".join(card.name for card in self.branches)
        raise ModelError(f"model {self.name!r} has no branch {name!r}; its branches are {known}")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A verified model folder. ``digest`` (SHA-256 of model.json, which lists all hashes) identifies the model."""

    path: Path
    card: ModelCard
    digest: str

    @staticmethod
    def open(path: str | Path) -> ModelFolder:
        """Read and verify a model folder; ModelError names the file at fault and the cure.

        Codecs of learned entropy models in the folder are known by their names from then on.
        """
        folder = Path(path)
        data = _read(folder / MODEL_FILE, MAX_CARD_BYTES)
        card = _card(data, folder / MODEL_FILE)
        missing = [name for name in _needed(card) if name not in card.files]
        if missing:
            raise ModelError(f"{folder / MODEL_FILE}: lists no file {missing[0]!r}; make the model folder again")
        for name, expected in card.files.items():
            check_file(folder / name, expected)
        _make_priors_known(folder, card)
        return ModelFolder(folder, card, hashlib.sha256(data).hexdigest())

    def graph(self, name: str, precision: Precision | None = None) -> Path:
        """Return the path of ONNX file ``name`` in ``precision`` (default: the model's own); ModelError when absent."""
        wanted = precision or self.card.precision
        if wanted == "float":
            return self.file(name)
        if int8_name(name) not in self.card.files:
            raise ModelError(f"{self.path}: no 8-bit graphs; make them with adaptsplit.models.int8.export_int8")
        return self.file(int8_name(name))

    def prior_codecs(self, branch: str) -> tuple[str, ...]:
        """Return the names of the codecs of ``branch``'s learned entropy model, fewest bytes first; () without one."""
        start = f"prior-{self.card.branch(branch).name}-"
        files = [name for name in self.card.files if name.startswith(start) and name.endswith(".npz")]
        if not files:
            return ()
        from adaptsplit.codecs.prior import PriorTable

        tables = [PriorTable.load(self.path / name) for name in files]
        return tuple(f"prior-{table.id}" for table in sorted(tables, key=lambda table: float(table.scale.sum())))

    def file(self, name: str) -> Path:
        """Return the path of a listed file; ModelError when it is not listed."""
        if name not in self.card.files:
            raise ModelError(f"{self.path}: {name!r} is not a file of this model")
        return self.path / name


def int8_name(name: str) -> str:
    """Return the name of the 8-bit version of ONNX file ``name``: ``head-stem.int8.onnx`` of ``head-stem.onnx``."""
    return f"{name.removesuffix('.onnx')}.int8.onnx"


def check_file(path: Path, expected: str) -> None:
    """Raise ModelError unless the file's SHA-256 is ``expected``."""
    found = hashlib.sha256(_read(path, MAX_FILE_BYTES)).hexdigest()
    if found != expected:
        raise ModelError(
            f"{path}: SHA-256 {found[:12]}..., but {MODEL_FILE} says {expected[:12]}...; the file is damaged or "
            "belongs to another model: copy the folder again, or run `adaptsplit fit` again"
        )


def _make_priors_known(folder: Path, card: ModelCard) -> None:
    """Register the codecs of the learned entropy models that the folder lists (``prior-BRANCH-RATE.npz``)."""
    files = [name for name in card.files if name.startswith("prior-") and name.endswith(".npz")]
    if not files:
        return
    from adaptsplit.codecs.prior import PriorTable, register_prior

    for name in files:
        try:
            register_prior(PriorTable.load(folder / name))
        except CodecError as error:
            raise ModelError(str(error)) from error


def _needed(card: ModelCard) -> list[str]:
    heads = [f"{kind}-{branch.name}.onnx" for branch in card.branches for kind in ("head", "decoder")]
    return [*heads, "trunk.onnx", "tail.onnx"]


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise ModelError(f"{path}: {path.stat().st_size} bytes; at most {limit} are read")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); a model folder is what `adaptsplit fit` writes"
        ) from error


def _card(data: bytes, path: Path) -> ModelCard:
    return parse_json(ModelCard, data, str(path), "copy the folder again", ModelError)
