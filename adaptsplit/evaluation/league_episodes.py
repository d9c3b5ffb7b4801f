"""``episodes.npz``: what each controller did in each episode, compactly, so that a league needs no second evaluation.

Letters: E episodes, R rows (one per controller, of a learned agent one per training run).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import NPZ_FAULTS, DataError
from adaptsplit.evaluation.analysis import Scored
from adaptsplit.evaluation.results import KINDS
from adaptsplit.files import write_whole

Floats = NDArray[np.float64]

METRICS = ("reward", "quality", "bytes", "energy_mj")
LABELS = ("recording", "segment", "family")
MAX_FILE_BYTES = 256 << 20
CURE = "delete it and run adaptsplit league again"


@dataclass(frozen=True, slots=True)
class Episodes:
    """Values per episode. ``owner`` (R,) is each row's place in ``names``; ``values`` (R, E) f4 by metric.

    ``recording``, ``segment``, ``family``: (E,) labels, as the bootstrap draws them.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    owner: NDArray[np.int64]
    values: dict[str, NDArray[np.float32]]
    recording: NDArray[Any]
    segment: NDArray[Any]
    family: NDArray[Any]

    def __post_init__(self) -> None:
        rows, episodes = len(self.owner), len(self.recording)
        fits = all(self.values[name].shape == (rows, episodes) for name in METRICS if name in self.values)
        labels = all(len(getattr(self, name)) == episodes for name in LABELS)
        owners = set(self.owner.tolist()) == set(range(len(self.names)))
        if set(self.values) != set(METRICS) or not (fits and labels and owners and episodes):
            raise DataError(f"episodes: {rows} rows of {episodes} episodes do not fit their names and labels; {CURE}")
        if len(self.kinds) != len(self.names) or not set(self.kinds) <= set(KINDS):
            raise DataError(f"episodes: kinds {sorted(set(self.kinds))}; expected one of {KINDS} for each name; {CURE}")

    def of(self, name: str, metric: str = "reward") -> Floats:
        """Return (E,) values of a controller, (S, E) of S training runs; DataError for an unknown name."""
        if name not in self.names:
            raise DataError(f"no episodes of {name!r}; known: {', '.join(self.names)}")
        found = self.values[metric][self.owner == self.names.index(name)].astype(np.float64)
        return np.asarray(found[0] if len(found) == 1 else found)

    def of_kind(self, kind: str) -> list[str]:
        """Return the names of one kind, in order."""
        return [name for name, own in zip(self.names, self.kinds, strict=True) if own == kind]

    def runs(self, name: str) -> int:
        """Return how many training runs a name pools."""
        return int((self.owner == self.names.index(name)).sum())


def from_scored(scored: Sequence[Scored], info: NDArray[Any]) -> Episodes:
    """Return the record of an evaluation; ``info`` (E,) as ``envs.episode_info`` gives it."""
    owner = np.array([i for i, item in enumerate(scored) for _ in item.tables], dtype=np.int64)
    values = {
        metric: np.stack([table.means[metric] for item in scored for table in item.tables]).astype(np.float32)
        for metric in METRICS
    }
    labels = (np.asarray(info[name]) for name in LABELS)
    return Episodes(tuple(item.name for item in scored), tuple(item.kind for item in scored), owner, values, *labels)


def write_episodes(episodes: Episodes, path: Path) -> None:
    """Write ``episodes.npz`` (atomically, compressed)."""
    arrays: dict[str, NDArray[Any]] = {f"value_{name}": values for name, values in episodes.values.items()}
    arrays |= {name: getattr(episodes, name) for name in LABELS}
    arrays |= {"names": np.array(episodes.names), "kinds": np.array(episodes.kinds), "owner": episodes.owner}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_whole(path, buffer.getvalue())


def read_episodes(path: Path) -> Episodes:
    """Read ``episodes.npz``; DataError says what is wrong with it. Nothing in the file is executed."""
    try:
        arrays = _arrays(path)
        values = {name: np.asarray(arrays.pop(f"value_{name}"), dtype=np.float32) for name in METRICS}
        labels = [arrays.pop(name) for name in LABELS]
        names, kinds = (tuple(str(text) for text in arrays.pop(key).tolist()) for key in ("names", "kinds"))
        owner = np.asarray(arrays.pop("owner"), dtype=np.int64)
    except NPZ_FAULTS as error:
        raise DataError(f"{path}: not the episodes of a league ({error}); {CURE}") from error
    if arrays:
        raise DataError(f"{path}: unknown arrays {sorted(arrays)}; {CURE}")
    return Episodes(names, kinds, owner, values, *labels)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size} bytes; at most {MAX_FILE_BYTES}")
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
