"""Damaged profile folders give a ProfileError or a profile that holds its own rules; nothing else.

A small published table is written as a PROFILE folder; then bytes of its card or of its arrays (packed and unpacked)
are flipped, cut, repeated or replaced, with the stored hash made right again so that the reader behind it is reached.
2,000 mutations by default, 20,000 when the environment variable ADAPTSPLIT_FUZZ is ``full``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from adaptsplit.errors import ProfileError
from adaptsplit.profiles import Profile
from adaptsplit.profiles.published import write_published

MUTATIONS = 20_000 if os.environ.get("ADAPTSPLIT_FUZZ") == "full" else 2_000
WORDS = (b"NaN", b"1e999", b"-1", b"null", b"[[[[", b'"\\ud800"', b"\x00", b"99999999999999999999")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published("branchynet-lenet", tmp_path_factory.mktemp("fuzz"), frames=16)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with one to four faults."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(out) + 1), rng.randint(1, 32)
        kind = rng.randrange(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = out[at : at + length]
        elif kind == 3:
            out[at : at + length] = rng.choice(WORDS)
        else:
            out[at : at + 4] = rng.randbytes(4)
        if not out:
            return b""
    return bytes(out)


def repacked(data: bytes, rng: random.Random) -> bytes:
    """Return an npz of which one array's bytes are damaged but whose container is whole."""
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    names = source.namelist()
    victim = rng.choice(names)
    with zipfile.ZipFile(target, "w") as packed:
        for name in names:
            inside = source.read(name)
            packed.writestr(name, mutated(inside, rng) if name == victim else inside)
    return target.getvalue()


def test_damaged_profiles_are_refused_or_valid(folder: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    card, arrays = (folder / "profile.json").read_bytes(), (folder / "profile-train.npz").read_bytes()
    refused = 0
    for number in range(MUTATIONS):
        card_bytes, array_bytes = card, arrays
        if number % 3 == 0:
            card_bytes = mutated(card, rng)
        else:
            array_bytes = mutated(arrays, rng) if number % 3 == 1 else repacked(arrays, rng)
            document = json.loads(card)
            document["splits"]["train"]["sha256"] = hashlib.sha256(array_bytes).hexdigest()
            card_bytes = json.dumps(document).encode()
        (tmp_path / "profile.json").write_bytes(card_bytes)
        (tmp_path / "profile-train.npz").write_bytes(array_bytes)
        try:
            profile = Profile.load(tmp_path, "train")
        except ProfileError:
            refused += 1
            continue
        quality = profile.exit_quality()
        assert np.all((quality >= 0) & (quality <= 1) | np.isnan(quality))
        assert np.isfinite(profile.head_s).all()
    assert refused > MUTATIONS // 2
