"""Frames: what the camera sees. A source is opened by a short text: ``flight``, ``tiles:PATH``, ``folder:PATH``,
``camera:FILE``.

    >>> from adaptsplit.frames import open_frames
    >>> source = open_frames("flight", split="test")
    >>> source.frame(0).image.shape
    (256, 256, 3)

Random access is deterministic: the same (source, split, seed, index) gives the same pixels whatever was read before.
Adding a source is one file and one ``register_lazy`` line below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import ConfigError
from adaptsplit.frames.signals import Image
from adaptsplit.registry import Registry, did_you_mean

SPLITS = ("model-train", "calibration", "train", "validation", "test")
"""``train`` is policy-train without its held-out part, ``validation`` that part. All five are disjoint."""

SIZE = 256
"""Side of every frame, pixels."""
GRID = 4
"""Cells along a side; cells are row-major, 16 per frame, 64 x 64 pixels each."""
CELLS = GRID * GRID
UNLABELLED = -1
FPS = 10.0
"""Frames per second at which the camera of ``flight`` and ``tiles`` moves."""

Labels = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image: ``image`` (256, 256, 3) uint8 RGB, ``labels`` (16,) int16 class per cell (-1 = unlabelled)."""

    image: Image
    labels: Labels
    index: int
    segment: int


class FrameSource(Protocol):
    """Frames of one split, in order of time within each segment."""

    @property
    def name(self) -> str:
        """The text that opens this source."""

    @property
    def split(self) -> str:
        """The split that these frames belong to."""

    @property
    def classes(self) -> list[str]:
        """Class names; a label is an index into them."""

    @property
    def segments(self) -> list[tuple[int, int]]:
        """Contiguous flights as (first frame, number of frames)."""

    def __len__(self) -> int:
        """Number of frames."""

    def frame(self, index: int) -> Frame:
        """Return frame ``index`` (0 <= index < len; IndexError otherwise)."""

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Image, Labels]:
        """Return ``count`` training frames drawn by ``rng``: (count, 256, 256, 3) uint8 and (count, 16) int16."""


class SourceFactory(Protocol):
    """What is registered: opens the source that the part after the colon names."""

    def __call__(self, argument: str, *, split: str, seed: int, data: Path | None) -> FrameSource: ...


frame_sources: Registry[SourceFactory] = Registry("frame source")
frame_sources.register_lazy("flight", "adaptsplit.frames.flight:open_flight")
frame_sources.register_lazy("tiles", "adaptsplit.frames.tiles:open_tiles")
frame_sources.register_lazy("folder", "adaptsplit.frames.folder:open_folder")
frame_sources.register_lazy("camera", "adaptsplit.frames.video:open_camera")


def open_frames(source: str, *, split: str, seed: int = 0, data: Path | None = None) -> FrameSource:
    """Open ``NAME`` or ``NAME:PATH``.

    A relative PATH is looked for under ``data`` (when given), then under the working directory. ``seed`` names the
    family of worlds and flights; ConfigError for a bad split or path, UnknownNameError for a bad name.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}{did_you_mean(split, SPLITS)} Known: {', '.join(SPLITS)}.")
    if seed < 0:
        raise ConfigError(f"frames seed {seed} is negative; give 0 or more")
    name, _, argument = source.partition(":")
    return frame_sources.get(name)(argument, split=split, seed=seed, data=data)


def find_path(argument: str, *, source: str, data: Path | None) -> Path:
    """Return the existing path that ``argument`` means; ConfigError lists the places looked at."""
    if not argument:
        raise ConfigError(f"frames {source!r} needs a path; write {source}:PATH")
    places = _places(Path(argument).expanduser(), data)
    for place in places:
        if place.exists():
            return place
    looked = " and ".join(str(place) for place in places)
    what = "a recording, or a number for a camera" if source == "camera" else "a folder or tar of images"
    raise ConfigError(f"frames {source}:{argument}: nothing at {looked}; give the path of {what}")


def _places(path: Path, data: Path | None) -> Sequence[Path]:
    if path.is_absolute() or data is None:
        return (path,)
    return (data / path, path)


def generator(seed: int, split: str, segment: int, purpose: int) -> np.random.Generator:
    """Return the generator of one purpose of one segment; different arguments give independent streams."""
    key = np.random.SeedSequence([seed, SPLITS.index(split), segment, purpose])
    return np.random.Generator(np.random.PCG64(key))


def check_index(index: int, length: int) -> None:
    """Raise IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"frame {index} is outside 0..{length - 1}")
