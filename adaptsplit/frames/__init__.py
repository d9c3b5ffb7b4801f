"""Frame sources: the embedded flight world, real labelled tiles, a folder of images."""

from adaptsplit.frames.base import (
    CELLS,
    FPS,
    GRID,
    SIZE,
    SPLITS,
    UNLABELLED,
    Frame,
    FrameSource,
    frame_sources,
    open_frames,
)
from adaptsplit.frames.signals import DIFFERENCE_BOUNDS, SHARPNESS_BOUNDS, difference, image_hash, sharpness

__all__ = [
    "CELLS",
    "DIFFERENCE_BOUNDS",
    "FPS",
    "GRID",
    "SHARPNESS_BOUNDS",
    "SIZE",
    "SPLITS",
    "UNLABELLED",
    "Frame",
    "FrameSource",
    "difference",
    "frame_sources",
    "image_hash",
    "open_frames",
    "sharpness",
]
