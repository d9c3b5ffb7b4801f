"""Recipe files: the shipped ones by name, the user's by path, and the bases that they build on."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from adaptsplit.config import parse, read_yaml
from adaptsplit.errors import ConfigError
from adaptsplit.models.recipe import Recipe
from adaptsplit.registry import did_you_mean

RECIPE_SUFFIX = ".yaml"
RECIPE_FOLDER = "recipes"
MAX_BASES = 4


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    folder = resources.files("adaptsplit.models") / RECIPE_FOLDER
    names = [entry.name for entry in folder.iterdir()]
    return sorted(name.removesuffix(RECIPE_SUFFIX) for name in names if name.endswith(RECIPE_SUFFIX))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return a shipped recipe by name, or the one in a YAML file; ConfigError names every fault.

    A file may name a ``base``, another recipe, whose values stand where it states none; lists are taken as a whole.
    """
    return parse(Recipe, _read(name_or_path, MAX_BASES), str(name_or_path))


def _read(name_or_path: str | Path, bases: int) -> dict[str, Any]:
    """Read a recipe's mapping over that of its base, and so on, at most ``bases`` deep."""
    path = _path(name_or_path)
    value = read_yaml(path)
    base = value.pop("base", None)
    if base is None:
        return value
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected a recipe's name or YAML file, found {base!r}")
    if bases == 0:
        raise ConfigError(f"{path}: base {base!r}: more than {MAX_BASES} bases deep; let no recipe be its own base")
    beside = path.parent / base
    return _merged(_read(beside if beside.suffix in (".yaml", ".yml") else base, bases - 1), value)


def _path(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return path
    known = recipe_names()
    if str(name_or_path) not in known:
        hint = did_you_mean(str(name_or_path), known)
        raise ConfigError(f"unknown recipe {str(name_or_path)!r}{hint} Known: {', '.join(known)}; or a YAML file.")
    return Path(str(resources.files("adaptsplit.models") / RECIPE_FOLDER / f"{name_or_path}{RECIPE_SUFFIX}"))


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: (base[key], value) for key, value in over.items() if key in base}
    nested = {k: _merged(a, b) for k, (a, b) in both.items() if isinstance(a, dict) and isinstance(b, dict)}
    return {**base, **over, **nested}
