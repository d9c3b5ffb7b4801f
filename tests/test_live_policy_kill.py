"""A process that is killed while it updates its policy: the next start has a verified one, the old or the new.

Forty random instants here; two hundred with ADAPTSPLIT_FUZZ=full. Besides, every change of the disk that two updates
make is a point at which the process dies once (here: every ninth).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from policy_cases import export_policy, signed_copy

from adaptsplit.signing_keys import load_private, make_keys

FULL = os.environ.get("ADAPTSPLIT_FUZZ") == "full"
KILLS, STEP = (200, 1) if FULL else (40, 9)
KILLER = Path(__file__).with_name("policy_killer.py")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    make_keys(folder, "k")
    key = load_private(folder / "k.key")
    for number, name in enumerate(("factory", "a", "b"), 1):
        signed_copy(export_policy(folder / "made", number), folder / name, key, number)
    return folder


def run(folder: Path, rounds: int, *how: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(KILLER), str(folder), str(rounds), "7", *how]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(KILLER.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rounds: list[dict[str, Any]]) -> None:
    """After each death a verified policy decides: none that was dropped, none older than one that was kept."""
    kept = 1
    dropped: set[int] = set()
    for found in rounds:
        for line in found["told"]:
            what, version = line.split()
            if what == "kept":
                kept = int(version)
            if what == "dropped":
                dropped.add(int(version))
        base = found["version"] if found["fallback"] is None else found["fallback"]
        assert base >= kept, found
        assert found["version"] not in dropped, found
        assert found["version"] >= base, found
        kept = base


@pytest.mark.timeout(600)
def test_after_a_kill_at_a_random_instant_a_verified_policy_decides(parts: Path) -> None:
    rounds = run(parts, KILLS)
    assert len(rounds) == KILLS
    assert all(found["killed"] for found in rounds)
    assert max(found["version"] for found in rounds) > KILLS / 4
    assert len({len(found["told"]) for found in rounds}) > 2
    if KILLS >= 200:  # a few dozen may all fall elsewhere
        assert any(found["fallback"] is not None for found in rounds)
    check(rounds)


@pytest.mark.timeout(600)
def test_after_a_kill_before_any_change_of_the_disk_a_verified_policy_decides(parts: Path, tmp_path: Path) -> None:
    for name in ("factory", "a", "b", "k.key"):
        (tmp_path / name).symlink_to(parts / name)
    rounds = run(tmp_path, 400, str(STEP))
    assert len(rounds) > 60 / STEP
    assert [found["killed"] for found in rounds] == [True] * (len(rounds) - 1) + [False]
    check(rounds)
