"""From a published table to a ``Profile`` that the simulator replays."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from adaptsplit.decision import BranchSpec
from adaptsplit.errors import ConfigError
from adaptsplit.profiles.arrays import CELLS, QUANTILES, AnyArray
from adaptsplit.profiles.card import Host, Measured, ModelRef
from adaptsplit.profiles.profile import Profile
from adaptsplit.profiles.published.modelling import exit_model, quantiles, server_seconds
from adaptsplit.profiles.published.sampling import (
    Bools,
    ExitDraw,
    Floats,
    Latent,
    confidence_curve,
    draw_exit,
    draw_latent,
    right_everywhere,
    tail_behind,
)
from adaptsplit.profiles.published.table import Codec, Cut, PublishedTable

T = TypeVar("T")

INPUT, LOCAL, INPUT_CODEC = "input", "local", "raw"
DEFAULT_FRAMES = 512
MIN_FRAMES, MAX_FRAMES = 16, 20_000
MAX_STAND_INS = 255
"""A profile stores classes as bytes: of a thousand classes, 255 stand-ins."""
NO_SHARPNESS, ALL_NEW = 0.5, 1.0
"""Content signals of a table without frames: they say nothing, and every frame differs wholly from the one before."""


@dataclass(frozen=True, slots=True)
class Truth:
    """(N,) stand-in class of each frame, and the two wrong classes that tails and exits answer when they are wrong."""

    label: NDArray[np.int64]
    tail_wrong: NDArray[np.int64]
    exit_wrong: NDArray[np.int64]


def to_profile(table: PublishedTable, split: str, frames: int = DEFAULT_FRAMES, seed: int = 0) -> Profile:
    """Return a profile of ``frames`` sampled frames whose aggregates are those of ``table``.

    Branches: ``input`` (the input is sent, no head), the cuts in the table's order, ``local``. One cell per frame: its
    label stands in cell 0, answers in all cells. A network without exits has exit confidence 0 and exits that are
    always wrong, so that a late frame is a wrong frame. Aggregates hold within 1 / (2 N) for every ``seed``; split and
    seed only change which frames are hard. Equal arguments give equal profiles.

    Raises:
        ConfigError: ``frames`` outside 16 to 20 000, or a negative ``seed``.
    """
    if not MIN_FRAMES <= frames <= MAX_FRAMES or seed < 0:
        raise ConfigError(f"frames {frames}, seed {seed}: expected {MIN_FRAMES} to {MAX_FRAMES} frames and a seed >= 0")
    rng = np.random.default_rng([seed, zlib.crc32(f"{table.name}/{split}".encode())])
    latent, truth = draw_latent(frames, rng), _truth(table, frames, rng)
    columns = [_input_column(table, latent), *(_column(table, cut, latent) for cut in table.cuts)]
    columns.append(_local_column(table, latent))
    return Profile(
        split=split,
        branches=tuple(column.branch for column in columns),
        classes=tuple(f"class-{i:03d}" for i in range(_stand_ins(table))),
        model=ModelRef(name=f"published:{table.name}", digest=table.digest, macs_full=table.macs_full),
        measured=_measured(table, frames, seed),
        **_frame_arrays(table, split, truth, seed),
        **_outcome_arrays(columns, truth),
        **_stage_arrays(columns),
    )


@dataclass(frozen=True, slots=True)
class _Column:
    """One branch: what it answers on each frame, (N,) per rate, and its stage times."""

    branch: BranchSpec
    exit_right: Bools
    exit_confidence: Floats
    exit_is_tail: bool
    tails: tuple[Bools, ...]
    tail_confidences: tuple[Floats, ...]
    payload: tuple[int, ...]
    head: NDArray[np.float32]
    encode: tuple[NDArray[np.float32], ...]
    tail: tuple[NDArray[np.float32], ...]


def _truth(table: PublishedTable, frames: int, rng: np.random.Generator) -> Truth:
    classes = _stand_ins(table)
    label = rng.integers(0, classes, frames)
    return Truth(label, (label + 1) % classes, (label + 2) % classes)


def _stand_ins(table: PublishedTable) -> int:
    """Number of stand-in classes; at least three, so that a wrong exit and a wrong tail can disagree."""
    return max(3, min(MAX_STAND_INS, table.classes))


def _input_column(table: PublishedTable, latent: Latent) -> _Column:
    codec = Codec(name=INPUT_CODEC, bytes=table.input_bytes)
    cut = Cut.model_construct(name=INPUT, device_s=0.0, server_s=None, macs_after=None, codecs=(codec,), exit=None)
    return _column(table, cut, latent, server_seconds(table, None))


def _column(table: PublishedTable, cut: Cut, latent: Latent, server_s: float | None = None) -> _Column:
    tail_s = server_seconds(table, cut) if server_s is None else server_s
    drawn, tails = _answers(table, cut, latent)
    return _Column(
        branch=BranchSpec(cut.name, "split", tuple(codec.name for codec in cut.codecs)),
        exit_right=drawn.right,
        exit_confidence=drawn.confidence,
        exit_is_tail=False,
        tails=tails,
        tail_confidences=tuple(_tail_confidence(table, latent, _quality(table, codec)) for codec in cut.codecs),
        payload=tuple(codec.bytes for codec in cut.codecs),
        head=quantiles(cut.device_s, table.spread),
        encode=tuple(quantiles(codec.encode_s, table.spread) for codec in cut.codecs),
        tail=tuple(quantiles(tail_s + codec.decode_s, table.spread) for codec in cut.codecs),
    )


def _answers(table: PublishedTable, cut: Cut, latent: Latent) -> tuple[ExitDraw, tuple[Bools, ...]]:
    """What the cut's exit and, per codec, its tail get right."""
    qualities = [_quality(table, codec) for codec in cut.codecs]
    if cut.exit is None:
        nothing = np.zeros(len(latent.difficulty))
        silent = ExitDraw(nothing, nothing > 0, nothing > 0)
        return silent, tuple(right_everywhere(latent, quality) for quality in qualities)
    rule = cut.exit
    drawn = draw_exit(latent, rule, exit_model(rule, table.classes), 1.0 / _stand_ins(table))
    return drawn, tuple(tail_behind(latent, drawn, rule, quality) for quality in qualities)


def _local_column(table: PublishedTable, latent: Latent) -> _Column:
    right = right_everywhere(latent, table.accuracy)
    confidence, zero = _tail_confidence(table, latent, table.accuracy), np.zeros(QUANTILES, np.float32)
    local_s = quantiles(table.local_s, table.spread)
    branch = BranchSpec(LOCAL, "local")
    return _Column(branch, right, confidence, True, (right,), (confidence,), (0,), local_s, (zero,), (zero,))


def _quality(table: PublishedTable, codec: Codec) -> float:
    return table.accuracy if codec.quality is None else codec.quality


def _tail_confidence(table: PublishedTable, latent: Latent, quality: float) -> Floats:
    return confidence_curve(latent, quality, 1.0 / _stand_ins(table))


def _frame_arrays(table: PublishedTable, split: str, truth: Truth, seed: int) -> dict[str, AnyArray]:
    frames = len(truth.label)
    labels = np.full((frames, CELLS), -1, np.int16)
    labels[:, 0] = truth.label
    names = (f"{table.digest}/{split}/{seed}/{i}".encode() for i in range(frames))
    hashes = b"".join(hashlib.sha256(name).digest()[:8] for name in names)
    return {
        "index": np.arange(frames, dtype=np.int32),
        "segment": np.zeros(frames, np.int32),
        "labels": labels,
        "sharpness": np.full(frames, NO_SHARPNESS, np.float32),
        "difference": np.full(frames, ALL_NEW, np.float32),
        "image_hash": np.frombuffer(hashes, np.uint8).reshape(frames, 8).copy(),
    }


def _outcome_arrays(columns: list[_Column], truth: Truth) -> dict[str, AnyArray]:
    rates = max(len(column.payload) for column in columns)
    exits = [
        _classes(column.exit_right, truth, truth.tail_wrong if column.exit_is_tail else truth.exit_wrong)
        for column in columns
    ]
    tails = [[_classes(right, truth, truth.tail_wrong) for right in _padded(c.tails, rates)] for c in columns]
    confidences = [_padded(column.tail_confidences, rates) for column in columns]
    payload = np.array([_padded(column.payload, rates) for column in columns], np.int32)
    return {
        "exit_prediction": np.stack(exits, axis=1),
        "exit_confidence": np.stack([column.exit_confidence for column in columns], axis=1).astype(np.float32),
        "tail_prediction": np.moveaxis(np.array(tails), 2, 0).copy(),
        "tail_confidence": np.moveaxis(np.array(confidences), 2, 0).astype(np.float32),
        "payload_bytes": np.repeat(payload[None], len(truth.label), axis=0),
    }


def _classes(right: Bools, truth: Truth, wrong: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(N, 16) the label where ``right``, else ``wrong``, in every cell."""
    answer = np.where(right, truth.label, wrong).astype(np.uint8)
    return np.repeat(answer[:, None], CELLS, axis=1)


def _stage_arrays(columns: list[_Column]) -> dict[str, AnyArray]:
    rates = max(len(column.payload) for column in columns)
    return {
        "head_s": np.stack([column.head for column in columns]),
        "encode_s": np.array([_padded(column.encode, rates) for column in columns], np.float32),
        "tail_s": np.array([_padded(column.tail, rates) for column in columns], np.float32),
        "signal_s": np.zeros(QUANTILES, np.float32),
    }


def _padded(values: tuple[T, ...], rates: int) -> list[T]:
    """``values`` with the last one repeated up to ``rates`` of them."""
    return [*values, *(values[-1:] * (rates - len(values)))]


def _measured(table: PublishedTable, frames: int, seed: int) -> Measured:
    """Provenance: the device's rate on this very network, so that a preset without a rate runs at scale 1."""
    host = Host(
        macs_per_s=table.macs_full / table.local_s,
        cpu=table.device.name,
        system="published table, not a measurement of this library",
        clock="wall",
        workers=1,
    )
    return Measured(frames=f"published:{table.name}", seed=seed, count=frames, date="", host=host, versions={})
