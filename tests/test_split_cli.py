"""``adaptsplit split`` on the command line: the table, the proof, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adaptsplit.cli import app
from adaptsplit.errors import AdaptsplitError
from adaptsplit.models.split_table import CutPoint

NETS = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def sized(width):
    return make()

def wrong():
    return 3

trained = make()
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with networks, importable from the working directory as from a terminal."""
    name = f"nets_{abs(hash(tmp_path)) % 10**9}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["split", *arguments], catch_exceptions=True)


def test_the_table_as_json(nets: str) -> None:
    done = run(f"{nets}:make", "--input", "3,16,16", "--device-macs", "1e6", "--json")
    document = json.loads(done.stdout)
    assert [p["name"] for p in document["points"] if not p["minor"]] == ["1", "2"]
    first = document["points"][1]
    assert (first["shape"], first["float_bytes"], first["head_macs"]) == ([4, 8, 8], 1024, 64 * 4 * 27)
    assert set(first) == {*CutPoint.__dataclass_fields__, "float_bytes"}
    assert [t["name"] for t in document["times"]] == ["input", "1", "2", "output"]
    assert document["best"]["latency"] == "input", "the network costs 7 ms on board, the image 1 ms on the link"


def test_the_table_for_readers(nets: str) -> None:
    shown = run(f"{nets}:trained", "--input", "3,16,16", "--all").stdout
    assert "0.01 M MACs, 122 parameters (torch.export)" in shown
    assert "4x8x8" in shown
    assert "--at auto: 1" in shown


def test_a_cut_is_proved(nets: str) -> None:
    assert "bit-equal to the whole" in run(f"{nets}:make", "--input", "3,16,16", "--at", "1").stdout
    document = json.loads(run(f"{nets}:make", "--input", "3,16,16", "--at", "1,2", "--json").stdout)
    assert document["cuts"] == ["1", "2"]
    assert document["proof"]["largest_difference"] == 0.0
    assert set(document["proof"]["paths"]) == {"1 > answer", "2 > answer", "1 > 2 > answer"}


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("make", "--input 3,16", "expected 3 numbers"),
        ("make", "--input a,b,c", "--input 'a,b,c': expected int numbers"),
        ("mak", "--input 3,16,16", "has no 'mak'; did you mean 'make'"),
        ("", "--input 3,16,16", "expected MODULE:FACTORY"),
        ("sized", "--input 3,16,16", "needs arguments (width)"),
        ("wrong", "--input 3,16,16", "gives int; expected a torch.nn.Module"),
        ("make", "--input 1,16,16", "does not take an image batch of shape (2, 1, 16, 16)"),
        ("make", "--input 3,16,16 --frames flight --out x", "need cuts"),
        ("make", "--input 3,16,16 --at 1 --out x", "go together"),
        ("make", "--input 3,16,16 --at 9", "has no cut '9'"),
        ("make", "--input 3,16,16 --at 1 --frames flight --out x --cells 3", "cells 3: expected 1"),
    ],
)
def test_mistakes_are_told_in_one_line(nets: str, factory: str, options: str, message: str) -> None:
    done = run(f"{nets}:{factory}" if factory else nets, *options.split())
    assert isinstance(done.exception, AdaptsplitError)
    assert done.exception.exit_code == 2
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_a_module_that_is_not_there(nets: str) -> None:
    Path("lame.py").write_text("import no_such_package\n")
    assert "no module 'nowhere'" in str(run("nowhere:make", "--input", "3,8,8").exception)
    assert "imports 'no_such_package'" in str(run("lame:make", "--input", "3,8,8").exception)


def test_the_command_says_that_it_runs_code() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "adaptsplit.cli", "split", "--help"], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0
    assert "THIS RUNS THAT CODE" in done.stdout
