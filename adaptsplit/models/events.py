"""Tensorboard events of a training run, written only where they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptsplit.errors import MissingExtraError


class EventWriter:
    """Context manager that writes log records as scalars to ``folder``; with None it does nothing.

    MissingExtraError when tensorboard is not installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "train") from error
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of ``record`` (with ``step``); nested mappings become ``outer/inner``."""
        if self._writer is None:
            return
        for name, value in record.items():
            nested = value.items() if isinstance(value, Mapping) else [("", value)]
            for inner, number in nested:
                if isinstance(number, int | float) and name != "step":
                    self._writer.add_scalar(f"{name}/{inner}".rstrip("/"), number, record["step"])
