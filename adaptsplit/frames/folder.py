"""``folder:PATH``: any folder of pictures, as one segment in the order of their names.

A folder of class folders gives labels (all 16 cells of a picture get its folder's class); a flat folder gives none.
Such a folder has no splits: every split shows all of it, so keep apart what must be apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adaptsplit.errors import DataError
from adaptsplit.frames.base import CELLS, SIZE, UNLABELLED, Frame, Labels, check_index, find_path
from adaptsplit.frames.pictures import MAX_IMAGE_BYTES, decode_picture, is_picture, read_file, to_square
from adaptsplit.frames.signals import Image


def open_folder(argument: str, *, split: str, seed: int, data: Path | None) -> FolderSource:
    """Open the folder at PATH; nothing is random about it, so ``seed`` has no effect."""
    del seed
    root = find_path(argument, source="folder", data=data)
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give the folder that holds the pictures")
    return FolderSource(f"folder:{argument}", root, split)


class FolderSource:
    """Pictures of a folder, each cut to its middle square and resized to 256 x 256; see ``FrameSource``."""

    def __init__(self, name: str, root: Path, split: str) -> None:
        self.name = name
        self.split = split
        self.classes, self._files = _list_pictures(root)
        self.segments = [(0, len(self._files))]

    def __len__(self) -> int:
        return len(self._files)

    def frame(self, index: int) -> Frame:
        """Return picture ``index`` in order of names; DataError when it cannot be read."""
        check_index(index, len(self))
        path, label = self._files[index]
        picture = decode_picture(read_file(path, MAX_IMAGE_BYTES), str(path))
        return Frame(to_square(picture, SIZE), np.full(CELLS, label, dtype=np.int16), index, 0)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Image, Labels]:
        """Return ``count`` pictures drawn at random, half of them mirrored: (count, 256, 256, 3), (count, 16)."""
        images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
        labels = np.empty((count, CELLS), dtype=np.int16)
        for k in range(count):
            frame = self.frame(int(rng.integers(len(self))))
            images[k] = frame.image[:, ::-1] if rng.random() < 0.5 else frame.image
            labels[k] = frame.labels
        return images, labels


def _list_pictures(root: Path) -> tuple[list[str], list[tuple[Path, int]]]:
    """Return class names and (file, label) in order; DataError when there is no picture or the two kinds are mixed."""
    flat = _pictures(root)
    folders = [place for place in sorted(root.iterdir()) if place.is_dir() and _pictures(place)]
    if flat and folders:
        raise DataError(f"{root}: pictures both beside and inside folders; use a flat folder, or class folders only")
    if flat:
        return [], [(path, UNLABELLED) for path in flat]
    if not folders:
        raise DataError(f"{root}: no pictures (jpg, png, webp, bmp) in it or in its folders")
    labelled = [(path, label) for label, folder in enumerate(folders) for path in _pictures(folder)]
    return [folder.name for folder in folders], labelled


def _pictures(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_file() and is_picture(path.name))
