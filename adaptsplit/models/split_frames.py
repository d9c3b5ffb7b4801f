"""Between frames and a network of the user's: 256 x 256 camera frames in, maps for the codecs out.

A frame is answered as a whole (``cells`` 1: it is scaled to the network's input, and its one answer stands for all 16
cells) or cell by cell (``cells`` 4: the network sees each 64 x 64 cell, scaled, as one image of a batch of 16).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptsplit.errors import ConfigError
from adaptsplit.frames.base import GRID, SIZE, FrameSource

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
PER_SEGMENT = 50  # frames that one segment gives before the next is opened


@dataclass(frozen=True, slots=True)
class View:
    """How a network sees a frame: its input (C, H, W), cells along a side (1 or 4), and the normalisation of [0, 1].

    ``mean`` and ``std`` are per channel: the network is given ``(pixel - mean) / std``. ConfigError for other forms.
    """

    shape: tuple[int, int, int]
    cells: int = 1
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        channels = self.shape[0]
        if self.cells not in (1, GRID):
            raise ConfigError(f"cells {self.cells}: expected 1 (one answer per frame) or {GRID} (one per cell)")
        if channels not in (1, 3):
            raise ConfigError(
                f"input {self.shape}: frames have 3 channels (or 1, grey); wrap the network to take those"
            )
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise ConfigError(f"{name} {numbers}: expected 1 or {channels} numbers, one per channel")
        if min(self.std) <= 0:
            raise ConfigError(f"std {self.std}: expected numbers above 0")

    @property
    def images(self) -> int:
        """Images that the network sees per frame: 1 or 16."""
        return self.cells * self.cells


class Eye(nn.Module):
    """Frames (n, 3, 256, 256) in [0, 1] -> network inputs (n * images, C, H, W); frame by frame, cells row-major."""

    mean: Tensor
    std: Tensor

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view
        self.register_buffer("mean", torch.tensor(view.mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(view.std).reshape(1, -1, 1, 1))
        self.register_buffer("grey", torch.tensor(GREY).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return what the network is given."""
        channels, height, width = self.view.shape
        x = image
        if channels == 1:
            x = (x * self.get_buffer("grey")).sum(1, keepdim=True)
        side = SIZE // self.view.cells
        if self.view.cells > 1:
            x = x.reshape(-1, channels, self.view.cells, side, self.view.cells, side)
            x = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side, side)
        return (scaled(x, side, height, width) - self.mean) / self.std


def scaled(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """Scale square maps (n, C, side, side): averages of whole pixels first, then bilinear for what is left."""
    down = max(1, side // height), max(1, side // width)
    if max(down) > 1:
        x = F.avg_pool2d(x, down)
    if (side // down[0], side // down[1]) == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


class ToMap(nn.Module):
    """Tensors at a cut of one frame's images (images, *shape) -> one map (1, C, H, W) for the codecs.

    Maps (C, h, w) of 16 cells are laid out as the frame is: (C, 4 h, 4 w). Tokens (T, D) become D channels of a row
    per image. Vectors (D,) become D channels of 4 x 4 cells, or one row. What has other dimensions becomes rows.
    """

    def __init__(self, shape: Sequence[int], cells: int) -> None:
        super().__init__()
        self.shape, self.cells = tuple(shape), cells

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of the map."""
        cells, images = self.cells, self.cells**2
        if len(self.shape) == 3:
            return self.shape[0], cells * self.shape[1], cells * self.shape[2]
        if len(self.shape) == 2:
            return self.shape[1], images, self.shape[0]
        if len(self.shape) == 1 and cells > 1:
            return self.shape[0], cells, cells
        return 1, images, math.prod(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map."""
        if len(self.shape) == 3:
            x = x.reshape(self.cells, self.cells, *self.shape).permute(2, 0, 3, 1, 4)
        elif len(self.shape) == 2:
            x = x.permute(2, 0, 1)
        elif len(self.shape) == 1 and self.cells > 1:
            x = x.transpose(0, 1)
        return x.reshape(1, *self.size)


class FromMap(nn.Module):
    """The inverse of :class:`ToMap`: (1, C, H, W) -> (images, *shape)."""

    def __init__(self, shape: Sequence[int], cells: int) -> None:
        super().__init__()
        self.shape, self.cells = tuple(shape), cells

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensors of one frame's images."""
        images = self.cells**2
        if len(self.shape) == 3:
            channels, height, width = self.shape
            x = x.reshape(channels, self.cells, height, self.cells, width).permute(1, 3, 0, 2, 4)
        elif len(self.shape) == 2:
            x = x.reshape(self.shape[1], images, self.shape[0]).permute(1, 2, 0)
        elif len(self.shape) == 1 and self.cells > 1:
            x = x.reshape(self.shape[0], images).transpose(0, 1)
        return x.reshape(images, *self.shape)


@dataclass(frozen=True, slots=True)
class Pictures:
    """Labelled frames: ``images`` (n, 256, 256, 3) uint8 and ``labels`` (n, 16) int64, -1 = unlabelled."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    @property
    def mixed(self) -> float:
        """Share of the frames whose cells have more than one label."""
        known = np.where(self.labels < 0, self.labels.max(1, keepdims=True), self.labels)
        return float((known.min(1) != known.max(1)).mean())


def gather(source: FrameSource, count: int) -> Pictures:
    """Return ``count`` frames (or all), spread evenly over as few segments as hold them at 50 frames each."""
    wanted = min(max(1, -(-count // PER_SEGMENT)), len(source.segments))
    chosen = np.unique(np.linspace(0, len(source.segments) - 1, wanted).astype(int))
    places = np.concatenate([np.arange(start, start + n) for start, n in (source.segments[i] for i in chosen)])
    indices = places[np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).astype(int))]
    frames = [source.frame(int(index)) for index in indices]
    labels = np.stack([frame.labels for frame in frames]).astype(np.int64)
    if (labels < 0).all():
        raise ConfigError(
            f"frames {source.name!r} carry no labels; exits are fitted on labelled frames (CLASS/FILE.jpg)"
        )
    return Pictures(np.stack([frame.image for frame in frames]), labels)
