"""The registry: entries that are promised by name, and that every controller is known without importing its module."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from adaptsplit.agents.build import BANDITS
from adaptsplit.agents.published_controllers import PUBLISHED
from adaptsplit.controller import controllers
from adaptsplit.registry import Registry

AGENTS = Path(__file__).resolve().parents[1] / "agents"


def module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a module that can be imported by ``name``; ``shapes`` in it is this file's registry."""
    (folder / f"{name}.py").write_text(f"from shapes_of_a_test import shapes\n{text}")
    (folder / "shapes_of_a_test.py").write_text(
        "from adaptsplit.registry import Registry\nshapes = Registry('shape')\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    for known in (name, "shapes_of_a_test"):
        monkeypatch.delitem(sys.modules, known, raising=False)


def test_what_a_module_registers_can_be_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, "squares", "shapes.register('square')(4)\nshapes.register('cube')(6)\n", monkeypatch)
    shapes: Registry[int] = importlib.import_module("shapes_of_a_test").shapes
    shapes.register_from("squares", "square", "cube")
    assert shapes.names() == ["cube", "square"]
    assert "squares" not in sys.modules
    assert (shapes.get("square"), shapes.get("cube")) == (4, 6)
    with pytest.raises(ValueError, match="shape 'cube' is already registered"):
        shapes.register("cube")(7)


def test_a_promise_that_is_not_kept_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module(tmp_path, "circles", "", monkeypatch)
    shapes: Registry[int] = importlib.import_module("shapes_of_a_test").shapes
    shapes.register_from("circles", "circle")
    for name in ("circle", "circle"):
        with pytest.raises(ValueError, match="shape 'circle': circles was to register it and does not"):
            shapes.get(name)
    with pytest.raises(ValueError, match="already registered"):
        shapes.register_from("squares", "circle")


def test_every_controller_is_known_before_its_module_is_imported() -> None:
    """A module that registers a name which nobody promised would be found only by who happens to import it."""
    known = set(controllers.names())
    registering = [path.stem for path in AGENTS.glob("*.py") if "controllers.register(" in path.read_text()]
    registering += [path.stem for path in AGENTS.glob("*.py") if "\n@published(" in path.read_text()]
    for name in registering:
        importlib.import_module(f"adaptsplit.agents.{name}")
    assert len(registering) > 10
    assert set(controllers.names()) == known
    assert all(callable(controllers.get(name)) for name in known)


def test_a_device_imports_no_controller_that_it_does_not_run() -> None:
    code = "import sys, adaptsplit.device_bridge.device; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    seldom = {f"adaptsplit.agents.{name}" for name in {*BANDITS.values(), *PUBLISHED.values(), "online"}}
    assert not seldom & set(loaded)
    assert "adaptsplit.agents.rules" in loaded
