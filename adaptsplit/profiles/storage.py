"""Profiles on disk: ``profile.json`` and a compressed ``profile-{split}.npz`` per split. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
from numpy.lib import format as npy

from adaptsplit.errors import NPZ_FAULTS, ConfigError, ProfileError
from adaptsplit.files import write_whole
from adaptsplit.profiles.arrays import NAMES, AnyArray
from adaptsplit.profiles.card import (
    CARD_FILE,
    BranchCard,
    Measured,
    ProfileCard,
    SplitCard,
    read_card,
    write_card,
)
from adaptsplit.profiles.profile import Profile
from adaptsplit.registry import did_you_mean
from adaptsplit.runtime.sessions import CONFIDENCE_STEPS

MAX_FILE_BYTES = 256 << 20
MAX_ARRAY_BYTES = 1 << 30

_CONFIDENCES = ("exit_confidence", "tail_confidence")
_CURE = "copy the folder again, or measure again with `adaptsplit profile`"


def save(profile: Profile, folder: Path) -> Path:
    """Write ``profile`` into ``folder`` beside other splits of the same model and branches.

    ProfileError when the folder holds a profile of another model or decision space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    branches = tuple(BranchCard(name=b.name, kind=b.kind, codecs=b.codecs, exit=b.exit) for b in profile.branches)
    fresh = ProfileCard(
        schema="adaptsplit.profile/1", classes=profile.classes, branches=branches, model=profile.model, splits={}
    )
    splits = dict(_splits_beside(folder, fresh))
    data = _to_bytes(profile)
    digest = hashlib.sha256(data).hexdigest()
    splits[profile.split] = SplitCard(**dict(profile.measured), sha256=digest)
    path = folder / f"profile-{profile.split}.npz"
    write_whole(path, data)
    write_card(folder, fresh.model_copy(update={"splits": splits}))
    return path


def load(folder: Path, split: str) -> Profile:
    """Read and verify one split; ProfileError says file, array, fault and cure."""
    card = read_card(folder)
    if split not in card.splits:
        known = ", ".join(sorted(card.splits)) or "none"
        hint = did_you_mean(split, card.splits)
        raise ProfileError(f"{folder / CARD_FILE}: no split {split!r}{hint} Measured: {known}.")
    path, entry = folder / f"profile-{split}.npz", card.splits[split]
    arrays = _from_bytes(_read(path, entry.sha256), path)
    try:
        return Profile(
            split=split,
            branches=tuple(branch.spec() for branch in card.branches),
            classes=card.classes,
            model=card.model,
            measured=Measured(**{name: getattr(entry, name) for name in Measured.model_fields}),
            **arrays,
        )
    except (ProfileError, ConfigError) as error:
        raise ProfileError(f"{path}: {error}; {_CURE}") from error


def _splits_beside(folder: Path, fresh: ProfileCard) -> dict[str, SplitCard]:
    """Splits that stand in ``folder`` already and belong to the same model, classes and branches."""
    if not (folder / CARD_FILE).exists():
        return {}
    old = read_card(folder)
    if (old.classes, old.branches, old.model.digest) != (fresh.classes, fresh.branches, fresh.model.digest):
        raise ProfileError(
            f"{folder}: holds a profile of another model or decision space ({old.model.name!r}, "
            f"{old.model.digest[:12]}...); write to another folder or remove this one"
        )
    return old.splits


def _to_bytes(profile: Profile) -> bytes:
    arrays = profile.arrays()
    for name in _CONFIDENCES:
        arrays[name] = np.rint(arrays[name] * CONFIDENCE_STEPS).astype(np.uint16)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            npy.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            # A fixed time stamp: the same profile gives the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, member.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _read(path: Path, sha256: str) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ProfileError(f"{path}: {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror}); {_CURE}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ProfileError(f"{path}: SHA-256 {found[:12]}..., {CARD_FILE} says {sha256[:12]}...: damaged; {_CURE}")
    return data


def _from_bytes(data: bytes, path: Path) -> dict[str, AnyArray]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = sorted(info.filename for info in archive.infolist())
            if found != sorted(f"{name}.npy" for name in NAMES):
                raise ProfileError(f"holds {', '.join(found)[:300]}; expected {', '.join(NAMES)}")
            if sum(info.file_size for info in archive.infolist()) > MAX_ARRAY_BYTES:
                raise ProfileError(f"unpacks to more than {MAX_ARRAY_BYTES} bytes")
            arrays = {name: _member(archive, name) for name in NAMES}
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}; {_CURE}") from error
    except NPZ_FAULTS as error:
        raise ProfileError(f"{path}: not an npz file of ours ({error}); {_CURE}") from error
    for name in _CONFIDENCES:
        if arrays[name].dtype != np.uint16:
            raise ProfileError(
                f"{path}: array {name!r} is {arrays[name].dtype}; stored confidences are uint16; {_CURE}"
            )
        arrays[name] = (arrays[name] / np.float32(CONFIDENCE_STEPS)).astype(np.float32)
    return arrays


def _member(archive: zipfile.ZipFile, name: str) -> AnyArray:
    """Read one array; its header must fit the member's size, so that a forged one allocates nothing."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as stream:
        version = npy.read_magic(stream)
        if version != (1, 0):
            raise ProfileError(f"array {name!r}: npy version {version}, expected (1, 0)")
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
        if dtype.hasobject or fortran or math.prod(shape) * dtype.itemsize != info.file_size - stream.tell():
            raise ProfileError(f"array {name!r}: header says {dtype} {shape}, the member has {info.file_size} bytes")
        raw = stream.read(math.prod(shape) * dtype.itemsize)
    return cast("AnyArray", np.frombuffer(raw, dtype=dtype).reshape(shape).copy())
