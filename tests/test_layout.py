"""The layout's guards: nothing vanishes from the wheel, layers hold, the base install stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from adaptsplit.bundle import export_bundle
from adaptsplit.scenario import load_scenario

ROOT = Path(__file__).resolve().parents[1]
TOP = {"envs", "agents", "device_bridge"}
HEAVY = {
    "torch",
    "gymnasium",
    "stable_baselines3",
    "numba",
    "matplotlib",
    "amqtt",
    "onnx",
    "safetensors",
    "sklearn",
    "optuna",
    "ray",
}
LAYERS = [
    {
        *("decision", "observation", "outcome", "estimators", "controller", "errors", "registry", "config", "files"),
        *("npz", "recorded_run", "yaml_text"),
    },
    {"codecs", "runtime", "links", "devices", "frames"},
    {"models", "profiles"},
    {"objective", "scenario"},
    {"bundle"},
]


def _folders() -> dict[str, Path]:
    found = {}
    for top in ("adaptsplit", *sorted(TOP)):
        for init in (ROOT / top).glob("**/__init__.py"):
            if any(part.is_symlink() for part in [init.parent, *init.parents]):
                continue
            parts = init.parent.relative_to(ROOT).parts
            name = ".".join(parts if parts[0] == "adaptsplit" else ("adaptsplit", *parts))
            found[name] = init.parent
    return found


def _modules() -> dict[str, Path]:
    return {
        f"{package}.{file.stem}" if file.stem != "__init__" else package: file
        for package, folder in _folders().items()
        for file in folder.glob("*.py")
    }


def _imports(file: Path, *, top_level_only: bool) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_folder_is_listed_in_pyproject() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(_folders()), "a package that is not listed vanishes from the wheel"


@pytest.mark.parametrize("name", sorted(TOP))
def test_links_point_to_the_top_folders(name: str) -> None:
    link = ROOT / "adaptsplit" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name


def _layer(module: str) -> int | None:
    part = module.split(".")[1] if "." in module else ""
    return next((i for i, names in enumerate(LAYERS) if part in names), None)


def test_lower_layers_do_not_import_higher_ones() -> None:
    faults = []
    for module, file in _modules().items():
        layer = _layer(module)
        if layer is None:
            continue
        # The bundle, on top, holds a policy; nothing below knows agents.
        upper = {*TOP, "evaluation", "demo", "cli"} - ({"agents"} if LAYERS[layer] == {"bundle"} else set())
        for name in _imports(file, top_level_only=False):
            if not name.startswith("adaptsplit."):
                continue
            other = _layer(name)
            above = other is None and name.split(".")[1] in upper
            if above or (other is not None and other > layer):
                faults.append(f"{module} imports {name}")
    assert not faults


def test_device_bridge_imports_nothing_heavy() -> None:
    for module, file in _modules().items():
        if module.startswith("adaptsplit.device_bridge"):
            assert not {n.split(".")[0] for n in _imports(file, top_level_only=False)} & (HEAVY - {"amqtt"}), module


LIGHT = [
    "adaptsplit",
    "adaptsplit.agents",
    "adaptsplit.bundle",
    "adaptsplit.cli",
    "adaptsplit.device_bridge.device",
    "adaptsplit.device_bridge.edge",
    "adaptsplit.scenario",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(m.split('.')[0] for m in sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


NOT_ON_A_DEVICE = {
    *("typer", "rich", "yaml", "PIL", "cryptography", "scipy", "pandas", "asyncio", "unittest", "pytest"),
    *("cv2", "psutil", "prometheus_client", "pymavlink"),  # extras, by the options that need them
}
MAX_DEVICE_MIB = 80  # a policy, numpy, onnxruntime and paho; measured: 75 (x86-64, Python 3.11)
DEVICE_STARTS = """
import sys, adaptsplit.device_bridge.device
from adaptsplit.bundle import load_bundle
bundle = load_bundle(sys.argv[1])
bundle.build(["bundle"], 50, guard=True)
print(" ".join(sorted(set(name.split(".")[0] for name in sys.modules))))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_a_device_starts_with_what_it_runs_and_no_more(tmp_path: Path) -> None:
    """A device that is given a bundle with a rule, unsigned, and has neither TLS nor a camera of its own."""
    bundle = export_bundle("deadline", load_scenario("flight-lte"), tmp_path / "bundle").path
    command = [sys.executable, "-c", DEVICE_STARTS, str(bundle)]
    modules, resident = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert not (HEAVY | NOT_ON_A_DEVICE) & set(modules.split())
    assert {"numpy", "onnxruntime", "paho"} <= set(modules.split())
    assert int(resident) / 1024 <= MAX_DEVICE_MIB


def test_generated_documentation_is_current() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from make_tables import TABLES, with_table  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    for name in TABLES:
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert with_table(name, page) == page, "run: python docs/make_tables.py"
