"""What the JSON documents of an evaluation have in common: their text, and how they are read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from adaptsplit.config import Config, parse_json
from adaptsplit.errors import DataError
from adaptsplit.files import write_whole


class Document(Config):
    """Base of results, diagnoses and leagues."""

    def to_json(self) -> str:
        """Return the document as JSON text (no NaN, no infinity)."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n"


D = TypeVar("D", bound=Document)


def read_document(model: type[D], path: str | Path, limit: int, expected: str, absent: str, damaged: str) -> D:
    """Read and check a document of at most ``limit`` bytes; DataError names file, fault and cure.

    ``expected`` names what the file should be; ``absent`` and ``damaged`` are the cures.
    """
    path = Path(path)
    try:
        if path.stat().st_size > limit:
            raise DataError(f"{path}: larger than {limit} bytes; expected {expected}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {absent}") from error
    return parse_json(model, data, str(path), damaged, DataError)


def write_document(document: Document, path: Path) -> None:
    """Write a document as a whole; a killed process leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, document.to_json().encode())
