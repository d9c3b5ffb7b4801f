"""Recordings, archives, and the way from timed rows to uniform samples."""

from __future__ import annotations

import doctest
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adaptsplit.links.columns as columns_module
import adaptsplit.links.container as container
import adaptsplit.links.recording as recording_module
from adaptsplit.errors import LinkError
from adaptsplit.links import Recording, read_links, read_recordings
from adaptsplit.links.container import Table
from adaptsplit.links.recording import last_known
from adaptsplit.links.sampling import hold, per_second

NAN = float("nan")


def recording_of(columns: dict[str, Any], dt_s: float = 1.0, **changed: Any) -> Recording:
    arrays = {name: np.array(values, dtype=float) for name, values in columns.items()}
    fields: dict[str, Any] = {"name": "r", "family": "test", "dt_s": dt_s, "columns": arrays}
    return Recording(**(fields | changed))


def test_a_recording_becomes_a_trace_and_says_what_it_took() -> None:
    recording = recording_of({"signal_dbm": [NAN, -90, NAN], "capacity_bps": [1, 2, 0]}, provenance=("by hand",))
    trace = recording.trace(rtt_s=0.08)
    assert trace.capacity_bps.tolist() == [1, 2, 0]
    assert trace.rtt_s.tolist() == [0.08] * 3
    assert trace.loss.tolist() == [0.0] * 3
    assert trace.signal_dbm is not None
    assert trace.signal_dbm.tolist() == [-90.0] * 3
    assert trace.sinr_db is None
    assert trace.provenance == (
        "by hand",
        "round trip taken as 0.08 s",
        "unknown samples of signal_dbm repeat the last known one",
    )


def test_what_is_recorded_is_not_replaced() -> None:
    trace = recording_of({"capacity_bps": [1, 2], "rtt_s": [0.1, 0.2], "loss": [0, 0.5], "altitude_m": [5, 6]}).trace(9)
    assert trace.rtt_s.tolist() == [0.1, 0.2]
    assert trace.loss.tolist() == [0.0, 0.5]
    assert trace.altitude_m is not None
    assert trace.altitude_m.tolist() == [5.0, 6.0]
    assert trace.provenance == ()


def test_a_column_that_is_wholly_unknown_is_left_out_of_the_trace() -> None:
    assert recording_of({"capacity_bps": [1, 2], "sinr_db": [NAN, NAN]}).trace().sinr_db is None
    assert last_known(np.array([NAN])) is None


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "expected at least one of capacity_bps, rtt_s"),
        ({"capcity_bps": [1]}, r"columns \['capcity_bps'\]"),
        ({"capacity_bps": [1, 2], "rtt_s": [0.1]}, "columns of different lengths"),
        ({"capacity_bps": [1, NAN]}, r"capacity_bps\[1\] is nan"),
        ({"rtt_s": [0.1, NAN]}, r"rtt_s\[1\] is nan"),
        ({"loss": [0.1, 1.0]}, r"loss\[1\] is 1"),
        ({"sinr_db": [0.1, 1e9]}, r"sinr_db\[1\] is 1e\+09, expected -100 to 100"),
        ({"signal_dbm": []}, "shape"),
    ],
)
def test_a_recording_that_cannot_be_used_is_refused(columns: dict[str, Any], words: str) -> None:
    with pytest.raises(LinkError, match=words):
        recording_of(columns)


def test_a_recording_owns_its_columns() -> None:
    values = np.array([1.0, 2.0])
    columns = {"rtt_s": values}
    recording = Recording("r", "test", 1.0, columns)
    values[0] = 9.0
    columns["loss"] = values
    assert recording.columns["rtt_s"].tolist() == [1.0, 2.0]
    assert list(recording.columns) == ["rtt_s"]
    with pytest.raises(TypeError):
        recording.columns["loss"] = values  # type: ignore[index]
    with pytest.raises(LinkError, match="name and a family"):
        recording_of({"rtt_s": [1]}, name="")
    with pytest.raises(LinkError, match="dt_s is nan"):
        recording_of({"rtt_s": [1]}, dt_s=NAN)


def test_a_recording_without_capacity_says_what_it_is_good_for() -> None:
    with pytest.raises(LinkError, match="only rtt_s, loss; use it as rtt_from of another link"):
        recording_of({"rtt_s": [0.1], "loss": [0.0]}).trace()


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name.replace("__", "/").replace("_", "."), content)
    return buffer.getvalue()


def rows(rate: float) -> bytes:
    return f"time_s,capacity_mbps\n0,{rate}\n1,{rate}\n".encode()


def test_every_table_of_an_archive_is_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "logs.bin"
    path.write_bytes(archive(b_csv=rows(2), a_csv=gzip.compress(rows(1)), _hidden=b"x", d__b_csv=rows(3)))
    recordings = read_recordings(path)
    assert [(r.name, r.columns["capacity_bps"][0] / 1e6) for r in recordings] == [
        ("a", 1),
        ("b.csv", 2),
        ("d/b.csv", 3),
    ]
    path.write_bytes(gzip.compress(rows(4)))
    assert read_links(path)[0].capacity_bps[0] == 4e6


def test_archives_are_bounded_before_they_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb"
    bomb = b"0" * (container.MAX_UNPACKED_BYTES + 1)
    for content in (gzip.compress(bomb), archive(a_csv=bomb)):
        assert len(content) < 200_000
        path.write_bytes(content)
        with pytest.raises(LinkError, match="more than 67108864 bytes when unpacked"):
            read_recordings(path)
    halves = archive(a=bomb[: len(bomb) // 2 + 1], b=bomb[: len(bomb) // 2 + 1])  # the limit is for all together
    path.write_bytes(halves)
    with pytest.raises(LinkError, match="when unpacked"):
        read_recordings(path)
    monkeypatch.setattr(container, "MAX_TABLES", 2)
    path.write_bytes(archive(a=b"1", b=b"1", c=b"1"))
    with pytest.raises(LinkError, match="3 files in the zip, at most 2"):
        read_recordings(path)


def test_archives_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("a.csv", rows(1))
    nested = archive(a_csv=gzip.compress(gzip.compress(rows(1), mtime=0), mtime=0))  # the time may be a newline
    for content, words in (
        (buffer.getvalue(), "packed by method 14; pack it by deflate"),
        (archive(), "cannot be read|none of the known"),
        (archive(_x=b"1"), "holds no table"),
        (gzip.compress(rows(1))[:-6], "damaged or not supported"),
        (archive(a_csv=rows(1))[:-30], "damaged or not supported"),
        (nested, "not text in UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(LinkError, match=words):
            read_recordings(path)


def test_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns_module, "MAX_ROWS", 2)
    path = tmp_path / "rows.csv"
    path.write_text("time_s,capacity_bps\n0,1\n1,1\n2,1\n")
    with pytest.raises(LinkError, match="more than 2 rows; cut the recording"):
        read_recordings(path)


def test_hold_keeps_totals_and_gaps() -> None:
    start, values = np.array([0.0, 1.0, 1.5]), np.array([2.0, 0.0, 4.0])
    assert hold("x", start, 2.0, values, 0.5).tolist() == [2, 2, 0, 4]
    assert hold("x", start, 2.0, values, 1.0).tolist() == [2, 2]
    assert hold("x", start, 2.0, np.array([2.0, NAN, 4.0]), 1.0).tolist() == [2, 4]
    assert np.isnan(hold("x", start, 2.0, np.full(3, NAN), 1.0)).all()
    with pytest.raises(LinkError, match=r"x: 1e\+12 s in samples of 0\.001 s are .* wrong timestamp"):
        hold("x", np.array([0.0]), 1e12, np.array([1.0]), 0.001)


def test_seconds_that_repeat_are_averaged_and_missing_ones_repeat() -> None:
    table = Table("f.csv", "f", b"")
    lines, seconds = np.arange(2.0, 7.0), np.array([10.0, 10.0, 11.0, 14.0, 14.0])
    columns, filled = per_second(table, lines, seconds, {"a": np.array([1, 3, 5, NAN, 9.0])})
    assert columns["a"].tolist() == [2, 5, 5, 5, 9]
    assert filled == 2
    with pytest.raises(LinkError, match=r"f\.csv, line 3: found '-1 s after the row before', expected 0 to 10 s"):
        per_second(table, lines[:2], np.array([5.0, 4.0]), {"a": np.zeros(2)})


def test_the_examples_of_the_docstrings_hold() -> None:
    result = doctest.testmod(recording_module, extraglobs={"np": np})
    assert result.attempted > 0
    assert result.failed == 0
