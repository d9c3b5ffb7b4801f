"""The decision space that is measured: of the reference model, and of any model folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptsplit.codecs import feature_codecs, image_codecs
from adaptsplit.decision import BranchSpec
from adaptsplit.errors import ConfigError
from adaptsplit.profiles.card import MAX_RATES
from adaptsplit.registry import Registry
from adaptsplit.runtime import ModelFolder

SPLIT_CODECS = ("q2c-zstd", "q3c-zstd", "q4c-zstd", "q6c-zstd")
IMAGE_CODECS = ("webp-10", "webp-30", "webp-50", "webp-75", "jpeg-75")
PRIOR = "prior"
"""Stands for the codecs of a branch's own learned entropy model, whose names differ from branch to branch."""


def reference_branches(
    split: tuple[str, ...] = ("stem", "shallow", "mid", "deep"), *, fallback: str | None = None
) -> tuple[BranchSpec, ...]:
    """Split branches (cheapest first), ``offload`` with the exit of ``fallback`` (default: the first), ``local``."""
    heads = tuple(BranchSpec(name, "split", SPLIT_CODECS) for name in split)
    return _with_whole_model(heads, IMAGE_CODECS, fallback)


def folder_branches(
    folder: ModelFolder, codecs: Sequence[str] = (), images: Sequence[str] = ()
) -> tuple[BranchSpec, ...]:
    """Return the decision space of a model folder: split branches, ``offload`` with the first one's exit, ``local``.

    ``codecs`` are the rates of every split branch, strongest compression first; ``prior`` stands for the codecs of the
    branch's own learned entropy model. Empty: those if the folder holds them, else ``SPLIT_CODECS``. ``images`` are the
    rates of ``offload``; empty: ``IMAGE_CODECS``.

    Raises:
        UnknownNameError: a codec that is not known; the nearest name is named.
        ConfigError: a codec that is named twice, more than ``MAX_RATES``, ``prior`` for a branch without one.
    """
    heads = tuple(
        BranchSpec(card.name, "split", _split_codecs(folder, card.name, codecs)) for card in folder.card.branches
    )
    return _with_whole_model(heads, _checked(images or IMAGE_CODECS, image_codecs, "offload"), None)


def _with_whole_model(
    heads: tuple[BranchSpec, ...], images: tuple[str, ...], fallback: str | None
) -> tuple[BranchSpec, ...]:
    offload = BranchSpec("offload", "offload", images, exit=fallback or heads[0].name)
    return (*heads, offload, BranchSpec("local", "local"))


def _split_codecs(folder: ModelFolder, branch: str, codecs: Sequence[str]) -> tuple[str, ...]:
    own = folder.prior_codecs(branch)
    if not codecs:
        return own or SPLIT_CODECS
    if PRIOR in codecs and not own:
        raise ConfigError(
            f"{folder.path}: branch {branch!r} has no learned entropy model, so no codec {PRIOR!r}; leave it out, or "
            "train with `prior: true` in the recipe"
        )
    named = [name for codec in codecs for name in (own if codec == PRIOR else (codec,))]
    return _checked(named, feature_codecs, branch)


def _checked(names: Sequence[str], registry: Registry[Any], branch: str) -> tuple[str, ...]:
    for name in names:
        registry.get(name)
    if len(names) > MAX_RATES or len(set(names)) != len(names):
        raise ConfigError(
            f"branch {branch!r}: codecs {','.join(names)}; expected at most {MAX_RATES}, each once, strongest first"
        )
    return tuple(names)
