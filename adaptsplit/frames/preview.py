"""A picture of a frame source for people: frames with a border per cell in its class's colour."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from adaptsplit.errors import ConfigError
from adaptsplit.frames.base import CELLS, GRID, SIZE, Frame, FrameSource

_COLUMNS = 6
_CELL = SIZE // GRID
_LEGEND = 22


def contact_sheet(source: FrameSource, path: Path, count: int = 24) -> None:
    """Write a PNG of ``count`` frames spread evenly over the source; unlabelled cells get no border.

    ConfigError when there is no frame or ``count`` is not positive.
    """
    if count < 1 or len(source) < 1:
        raise ConfigError(f"a contact sheet needs a frame at least, found {len(source)} frames and count {count}")
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    rows = -(-len(chosen) // _COLUMNS)
    sheet = Pillow.new("RGB", (_COLUMNS * (SIZE + 4), rows * (SIZE + 4) + _LEGEND), (16, 16, 16))
    for place, index in enumerate(chosen.tolist()):
        row, column = divmod(place, _COLUMNS)
        picture = _with_borders(source.frame(index), len(source.classes))
        sheet.paste(picture, (column * (SIZE + 4) + 2, row * (SIZE + 4) + 2))
    _write_legend(sheet, source.classes)
    sheet.save(path, format="PNG")


def class_colour(label: int, classes: int) -> tuple[int, int, int]:
    """Return the RGB border colour of a class."""
    red, green, blue = colorsys.hsv_to_rgb(label / max(1, classes), 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _with_borders(frame: Frame, classes: int) -> Pillow.Image:
    picture = Pillow.fromarray(frame.image)
    pen = ImageDraw.Draw(picture)
    for cell in range(CELLS):
        label = int(frame.labels[cell])
        if label < 0:
            continue
        top, left = (_CELL * k for k in divmod(cell, GRID))
        pen.rectangle((left + 1, top + 1, left + _CELL - 2, top + _CELL - 2), outline=class_colour(label, classes))
    return picture


def _write_legend(sheet: Pillow.Image, classes: list[str]) -> None:
    pen = ImageDraw.Draw(sheet)
    pitch = sheet.width // max(1, len(classes))
    for label, name in enumerate(classes):
        left, top = label * pitch + 6, sheet.height - _LEGEND + 5
        pen.rectangle((left, top, left + 12, top + 12), fill=class_colour(label, len(classes)))
        pen.text((left + 18, top), name[: max(1, pitch // 7)], fill=(230, 230, 230))
