"""One registry class for every family: codecs, frame sources, link readers, devices, controllers, ...

Adding an entry is one file and one line:

    >>> from adaptsplit.registry import Registry
    >>> shapes = Registry[type]("shape")
    >>> @shapes.register("square")
    ... class Square: ...
    >>> shapes.get("square").__name__
    'Square'

An entry may be lazy (``"module:attribute"``, or a module that registers it), so that a family lists what needs heavy
packages, or is seldom asked for, without importing it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar, cast

from adaptsplit.errors import UnknownNameError

T = TypeVar("T")
E = TypeVar("E")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence: ``"; did you mean 'x'?"`` for the nearest known name, else a full stop."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else "."


class Registry(Generic[T]):
    """Named entries of one family. ``family`` is the singular used in error messages."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._entries: dict[str, T | str] = {}

    def register(self, name: str) -> Callable[[E], E]:
        """Return a decorator that registers the decorated thing under ``name`` (an error when it is taken)."""

        def add(entry: E) -> E:
            self._add(name, cast("T", entry))
            return entry

        return add

    def register_lazy(self, name: str, target: str) -> None:
        """Register ``"module:attribute"``, imported at the first ``get``."""
        self._add(name, target)

    def register_from(self, module: str, *names: str) -> None:
        """Register ``names`` as what ``module`` itself registers; it is imported at the first ``get`` of one."""
        for name in names:
            self._add(name, module)

    def _add(self, name: str, entry: T | str) -> None:
        kept_promise = name in self._entries and self._promised(name) and not isinstance(entry, str)
        if name in self._entries and not kept_promise:
            raise ValueError(f"{self.family} {name!r} is already registered; choose another name")
        self._entries[name] = entry

    def get(self, name: str) -> T:
        """Return the entry called ``name``; UnknownNameError names the nearest one."""
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            hint = did_you_mean(name, self._entries)
            raise UnknownNameError(f"unknown {self.family} {name!r}{hint} Known: {known}.")
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            imported = importlib.import_module(module)
            entry = cast("T", getattr(imported, attribute) if attribute else self._kept(name))
            self._entries[name] = entry
        return entry

    def _promised(self, name: str) -> bool:
        entry = self._entries[name]
        return isinstance(entry, str) and ":" not in entry

    def _kept(self, name: str) -> T:
        if self._promised(name):
            raise ValueError(f"{self.family} {name!r}: {self._entries[name]} was to register it and does not")
        return cast("T", self._entries[name])

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
