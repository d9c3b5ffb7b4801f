"""Files that are written whole or not at all, and files that are never overwritten."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from adaptsplit.files import write_new, write_whole


def full(*arguments: Any) -> None:
    raise OSError(28, "No space left on device")


class Short:
    """A file that takes half of what is written, as a full disk does."""

    def __init__(self, descriptor: int, mode: str) -> None:
        self._file = open(descriptor, mode)  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> Short:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        full()


@pytest.mark.parametrize(("step", "durable"), [("fsync", True), ("replace", False), ("replace", True)])
def test_a_write_that_fails_leaves_the_old_file_and_no_draft(
    step: str, durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "f"
    write_whole(place, b"old", durable=durable)
    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(OSError, match="No space"):
        write_whole(place, b"new", durable=durable)
    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [place]


def test_what_cannot_be_begun_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "f", b"new")
    with pytest.raises(FileNotFoundError):
        write_new(tmp_path / "none" / "f", b"new", 0o600)


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX only")
def test_a_durable_write_syncs_the_file_and_then_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(stat.S_ISDIR(os.fstat(number).st_mode)))
    write_whole(tmp_path / "f", b"x")
    assert synced == []
    write_whole(tmp_path / "f", b"x", durable=True)
    assert synced == [False, True]


def test_a_new_file_that_was_not_finished_can_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "key"
    with monkeypatch.context() as disk:
        disk.setattr(os, "fdopen", Short)
        with pytest.raises(OSError, match="No space"):
            write_new(place, b"secret", 0o600)
    assert not place.exists()
    write_new(place, b"secret", 0o600)
    assert place.read_bytes() == b"secret"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600 or os.name != "posix"


def test_a_file_that_is_there_is_never_overwritten_nor_removed(tmp_path: Path) -> None:
    place = tmp_path / "key"
    place.write_bytes(b"older")
    with pytest.raises(FileExistsError):
        write_new(place, b"new", 0o600)
    assert place.read_bytes() == b"older"
