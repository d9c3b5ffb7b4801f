"""The tables that ship with the package, by name."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path

from adaptsplit.errors import ConfigError, UnknownNameError
from adaptsplit.profiles.profile import Profile
from adaptsplit.profiles.published.build import DEFAULT_FRAMES, to_profile
from adaptsplit.profiles.published.table import PublishedTable, load_table
from adaptsplit.registry import did_you_mean

PREFIX = "published:"
SEEDS = {"train": 0, "validation": 1, "test": 2}
"""Seed of each split: the same aggregates, other frames."""


def published_names() -> list[str]:
    """Return the names of the shipped tables, sorted."""
    return sorted(item.name.removesuffix(".yaml") for item in _folder().iterdir() if item.name.endswith(".yaml"))


@lru_cache(maxsize=64)
def published_table(name: str) -> PublishedTable:
    """Return a shipped table (``published:`` before the name is allowed); UnknownNameError names the nearest one."""
    bare, known = name.removeprefix(PREFIX), published_names()
    if bare not in known:
        raise UnknownNameError(f"published table {bare!r}: none{did_you_mean(bare, known)} Known: {', '.join(known)}.")
    return load_table(_folder() / f"{bare}.yaml")


@lru_cache(maxsize=32)
def published_profile(name: str, split: str) -> Profile:
    """Return the sampled profile of a shipped table for "train", "validation" or "test" (512 frames, cached).

    A scenario names it ``profile: published:NAME``. ConfigError for another split, UnknownNameError for another name.
    """
    if split not in SEEDS:
        raise ConfigError(f"split {split!r}{did_you_mean(split, SEEDS)} Expected one of {', '.join(SEEDS)}.")
    return to_profile(published_table(name), split, DEFAULT_FRAMES, SEEDS[split])


def write_published(name: str, folder: Path, frames: int = DEFAULT_FRAMES) -> Path:
    """Write all three splits as a PROFILE folder ``folder``; returns it."""
    for split, seed in SEEDS.items():
        to_profile(published_table(name), split, frames, seed).save(folder)
    return folder


def no_network(name: str) -> ConfigError:
    """Return the error for whoever needs the network of a published table: it has none, only its numbers."""
    return ConfigError(
        f"profile {name!r} is a table from the literature: numbers without a network, to simulate, train and evaluate "
        "on, not to export or fly; measure a model with: adaptsplit profile MODEL --frames SRC --out PROFILE"
    )


def _folder() -> Path:
    return Path(str(resources.files("adaptsplit.profiles.published"))) / "tables"
