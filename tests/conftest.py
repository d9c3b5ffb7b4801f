"""Shared fixtures. Tests that need recorded data skip, saying so, where it is absent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from adaptsplit.signing_keys import PrivateKey

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PrivateKey:
    """Return a new key that signs bundles."""
    from adaptsplit.signing_keys import load_private, make_keys

    return load_private(make_keys(tmp_path_factory.mktemp("keys"), "k")[0])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the directory of recorded data: ADAPTSPLIT_DATA, or ../shared/data beside the project."""
    named = os.environ.get("ADAPTSPLIT_DATA")
    place = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (place / "README.md").is_file():
        pytest.skip(f"recorded data not found at {place}; name its directory by ADAPTSPLIT_DATA")
    return place
