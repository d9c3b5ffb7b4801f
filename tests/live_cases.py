"""What several tests of the live side share: a device's birth message, and the tiny model of tests/test_live.py."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from adaptsplit.device_bridge.control import Birth

BIRTH = Birth(
    library="0",
    bundle="b",
    controllers=["c"],
    observation="o",
    branches=["b"],
    classes=["k"],
    fps=1,
    deadline_s=1,
    window=2,
)


def live_parts() -> ModuleType:
    """Return tests/test_live.py as a module: its ``bundle`` fixture, ``make_model`` and what goes with it."""
    spec = importlib.util.spec_from_file_location("live_parts", Path(__file__).with_name("test_live.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def until(done: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until ``done`` says yes; False when it has not within ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.01)
    return done()
