"""Mahimahi, CSV and Starlink readers, and detection: by hand and on the real recordings."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import adaptsplit.links.container as container
from adaptsplit.errors import LinkError, UnknownNameError
from adaptsplit.links import LinkTrace, link_readers, read_links, read_recordings
from adaptsplit.links.readers import parse_recordings

HEADER = "timestamp_start_dl,download,timestamp_start_ul,timestamp_end_ul,upload\n"


def starlink_table(segments: tuple[int, ...] = (30, 25, 5), pause_s: int = 10) -> str:
    lines, second = [HEADER], 0
    for length in segments:
        for k in range(length):
            minute, rest = divmod(second, 60)
            stamp = f"2024-04-19 16:{minute:02d}:{rest:02d}.000116224"
            lines.append(f"{stamp},17.5,{stamp},{stamp},{float(k % 7)}\n")
            second += 1
        second += pause_s
    return "".join(lines)


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(f"{name}.csv", text)
    return buffer.getvalue()


def read(folder: Path, content: str | bytes, reader: str | None = None, **options: float) -> list[LinkTrace]:
    path = folder / "recording.dat"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_links(path, reader, dt_s=options.get("dt_s"), rtt_s=options.get("rtt_s", 0.05))


def test_mahimahi_by_hand(tmp_path: Path) -> None:
    [trace] = read(tmp_path, "1\n1\n20\n21\n60\n", rtt_s=0.08)
    assert trace.dt_s == 0.02
    assert trace.capacity_bps.tolist() == [3 * 6e5, 6e5, 6e5]  # packets of 12,000 bits per 20 ms
    assert trace.rtt_s.tolist() == [0.08] * 3
    assert "round trip taken as 0.08 s" in trace.provenance


def test_a_mahimahi_file_of_one_line_is_a_steady_link(tmp_path: Path) -> None:
    [trace] = read(tmp_path, "1")
    assert trace.capacity_bps.tolist() == [12e6]
    [trace] = read(tmp_path, "3\n7\n")  # two packets every 7 ms, for ever
    assert trace.statistics().mean_bps == pytest.approx(2 * 12_000 / 0.007)
    assert trace.duration_s == pytest.approx(0.14)


def test_mahimahi_keeps_every_packet_at_any_sample_length(tmp_path: Path) -> None:
    lines = np.cumsum(np.random.default_rng(0).integers(0, 9, 3000))
    content = "".join(f"{t}\n" for t in lines)
    for dt_ms in (1, 20, 100):
        [trace] = read(tmp_path, content, dt_s=dt_ms / 1000)
        assert trace.capacity_bps[:-1].sum() * trace.dt_s <= 3000 * 12_000
        assert trace.statistics().mean_bps == pytest.approx(3000 * 12_000 / (lines[-1] / 1000), rel=0.02)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("10\n20\nhello\n30\n", r"line 3: found 'hello', expected one whole number"),
        ("text\n20\n25\n30\n", "line 1: found 'text'"),
        ("10\n-5\n20\n", "line 2: found -5, expected a timestamp of at least 0"),
        ("10\n20\n15\n", "line 3: found 15, expected at least 20"),
        ("10\n1.5\n20\n", "line 2: found '1.5'"),
        ("10\n\n20\n", "line 2: found ''"),
        ("0\n0\n", "line 2: found 0, expected a last timestamp above 0"),
        ("10\n999999999\n", "at most 86400000"),
        ("10\n99999999999999999999\n", "line 2"),
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        (b"10\n\xff\xfe\n20\n", "line 2"),
    ],
)
def test_a_faulty_mahimahi_file_is_named_by_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(LinkError, match=words):
        read(tmp_path, content)


def test_many_short_lines_take_little_memory() -> None:
    content = b"1\n" * 500_000 + b"500\n"
    tracemalloc.start()
    try:
        with pytest.raises(LinkError, match="at least 501"):
            parse_recordings("many", content + b"501\n400\n")
        assert tracemalloc.get_traced_memory()[1] < 30e6  # 7 GB for a file of 64 MiB where the matcher keeps ways back
    finally:
        tracemalloc.stop()


def test_csv_by_hand(tmp_path: Path) -> None:
    [trace] = read(
        tmp_path, "time_s,capacity_mbps,rtt_ms,loss_percent,signal_dbm,#note\n0,1,50,0,-90,x\n1,2,60,1,-95,\n"
    )
    assert trace.dt_s == 1.0
    assert trace.capacity_bps.tolist() == [1e6, 2e6]
    assert trace.rtt_s.tolist() == [0.05, 0.06]
    assert trace.loss.tolist() == [0.0, 0.01]
    assert trace.signal_dbm is not None
    assert trace.signal_dbm.tolist() == [-90.0, -95.0]


def test_irregular_rows_hold_until_the_next_and_keep_their_bits(tmp_path: Path) -> None:
    content = "timestamp_ms,capacity_kbps\n1000,100\n1100,0\n1400,200\n1600,400\n"
    [trace] = read(tmp_path, content, dt_s=0.1)
    assert trace.capacity_bps == pytest.approx([1e5, 0, 0, 0, 2e5, 2e5, 4e5, 4e5])
    assert (trace.capacity_bps == 0).sum() == 3
    [coarse] = read(tmp_path, content, dt_s=0.4)
    assert coarse.capacity_bps.sum() * 0.4 == pytest.approx(trace.capacity_bps.sum() * 0.1)
    [jittery] = read(tmp_path, "time_s,capacity_bps\n0,8\n1.01,0\n1.99,8\n3,8\n")
    assert jittery.dt_s == pytest.approx(0.2, rel=0.02)


def test_a_csv_holds_any_mix_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "flight.csv"
    path.write_text(
        "time_s,capacity_mbps,rtt_ms,loss_percent,rsrp_dbm,sinr_db,altitude_m\n"
        "0,1,50,0,-90,12,\n"
        "1,2,60,1,-95,nan,30\n"
        "2,0,70,2,-,9,40\n"
    )
    [recording] = read_recordings(path)
    assert list(recording.columns) == ["capacity_bps", "rtt_s", "loss", "signal_dbm", "sinr_db", "altitude_m"]
    assert recording.columns["rtt_s"].tolist() == [0.05, 0.06, 0.07]
    assert np.isnan(recording.columns["signal_dbm"]).tolist() == [False, False, True]
    trace = recording.trace()
    assert trace.signal_dbm is not None
    assert trace.signal_dbm.tolist() == [-90.0, -95.0, -95.0]
    assert trace.sinr_db is not None
    assert trace.sinr_db.tolist() == [12.0, 12.0, 9.0]
    assert trace.altitude_m is not None
    assert trace.altitude_m.tolist() == [30.0, 30.0, 40.0]
    assert trace.provenance[-1] == "unknown samples of signal_dbm, sinr_db, altitude_m repeat the last known one"


def test_unknown_fields_of_irregular_rows_stay_unknown(tmp_path: Path) -> None:
    path = tmp_path / "signal.csv"
    path.write_text("time_ms,rtt_ms,sinr_db\n0,10,4\n100,20,-\n300,30,8\n500,40,2\n")
    [recording] = read_recordings(path, dt_s=0.1)
    assert recording.columns["rtt_s"] == pytest.approx([0.01, 0.02, 0.02, 0.03, 0.03, 0.04, 0.04])
    assert recording.columns["sinr_db"] == pytest.approx([4, np.nan, np.nan, 8, 8, 2, 2], nan_ok=True)
    [coarse] = read_recordings(path, dt_s=0.2)  # a sample that is half known is the mean of that half
    assert coarse.columns["sinr_db"] == pytest.approx([4, 8, 5, 2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("time_s,capcity_mbps\n0,1\n", "line 1: found 'capcity_mbps', .*did you mean 'capacity_mbps'"),
        ("time_s,#x\n0,1\n", "expected a column beside the time: capacity_bps or"),
        ("time_s,rtt_ms\n0,1\n", "recording: this recording has only rtt_s; use it as rtt_from of another link"),
        ("time_s,sinr_db\n0,1\n", "this recording has only sinr_db; it cannot serve as a link"),
        ("time_s,signal_dbm,rsrp_dbm\n0,1,1\n", "one column of signal_dbm only"),
        ("time_s,capacity_bps,rtt_s\n0,1,\n", "line 2: found '', expected a finite number"),
        ("capacity_bps,rtt_ms\n0,1\n", "expected a column of time"),
        ("time_s,time_ms,capacity_bps\n0,0,1\n", "one column of time only"),
        ("time_s,capacity_bps\n0,1\n1,fast\n", "line 3: found 'fast', expected a finite number"),
        ("time_s,capacity_bps\n0,1\n1,nan\n", "line 3: found 'nan'"),
        ("time_s,capacity_bps\n0,1\n0,2\n", "line 3: found '0 s', expected a time after"),
        ("time_s,capacity_bps\n0,1\n1\n", "line 3: found '1', expected 2 fields"),
        ("time_s,capacity_bps\n0,1\n1,-4\n", r"capacity_bps\[1\] is -4"),
        ("time_s,capacity_bps,loss\n0,1,0\n1,4,7\n", r"loss\[1\] is 7"),
        ("time_s,capacity_bps\n0,0\n1,0\n", "capacity is zero in all"),
        ("time_s,capacity_bps\n", "0 rows of values"),
        ("time_s,capacity_bps\n0,1\n1,1\n99999999999,1\n", "wrong timestamp"),
    ],
)
def test_a_faulty_csv_is_named_by_line(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(LinkError, match=words):
        read(tmp_path, content)


def test_starlink_is_cut_at_gaps_and_short_segments_are_left_out(tmp_path: Path) -> None:
    for content in (starlink_table(), zipped(throughput=starlink_table())):
        traces = read(tmp_path, content)
        assert [(trace.name, len(trace)) for trace in traces] == [("starlink#0", 30), ("starlink#1", 25)]
        assert traces[0].capacity_bps[:8].tolist() == [1e6 * (k % 7) for k in range(8)]
        assert "1 segments below 20 s" in traces[0].provenance[0]


def test_a_bad_zip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = zipped(throughput=starlink_table())
    with pytest.raises(LinkError, match=r"recording.dat \(a.csv\): the content is none of the known"):
        read(tmp_path, zipped(a="x", b="y"))
    with pytest.raises(LinkError, match="damaged"):
        read(tmp_path, good[: len(good) // 2])
    with pytest.raises(LinkError, match=r"line 1: found 'a,b', expected columns timestamp_start_ul and upload"):
        read(tmp_path, zipped(throughput="a,b\n1,2\n"), "starlink")
    monkeypatch.setattr(container, "MAX_UNPACKED_BYTES", 100)  # a small bomb for a small cap
    with pytest.raises(LinkError, match="more than 100 bytes when unpacked"):
        read(tmp_path, good)


def test_formats_are_found_by_content_and_named_when_not(tmp_path: Path) -> None:
    with pytest.raises(LinkError) as caught:
        read(tmp_path, "the quick brown fox\n")
    assert all(name in str(caught.value) for name in link_readers.names())
    with pytest.raises(UnknownNameError, match="did you mean 'mahimahi'"):
        read(tmp_path, "1\n", reader="mahimahy")
    with pytest.raises(LinkError, match="no such file"):
        read_links(tmp_path / "absent")
    with pytest.raises(LinkError, match="no such file"):
        read_links(tmp_path)
    with pytest.raises(LinkError, match=r"cannot be read|no such file"):
        read_links("a\0b")
    with pytest.raises(LinkError, match="sample length"):
        read(tmp_path, "1\n", dt_s=float("nan"))


def test_a_file_that_is_too_big_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 10)
    with pytest.raises(LinkError, match="more than the 10 bytes that are read"):
        read(tmp_path, "100000\n200000\n")


def test_the_six_recorded_uplinks(shared_data: Path) -> None:
    """Means and shares of idle seconds as the data's own README states them."""
    stated = {
        "ATT-LTE-driving-2016": (1.91, 0.0333),
        "ATT-LTE-driving": (0.83, 0.0929),
        "TMobile-LTE-short": (13.32, 0.0),
        "TMobile-UMTS-driving": (0.94, 0.029),
        "Verizon-EVDO-driving": (0.84, 0.0282),
        "Verizon-LTE-short": (5.95, 0.0071),
    }
    for name, (mean, zero) in stated.items():
        [trace] = read_links(shared_data / "net_mahimahi" / "traces" / f"{name}.up")
        figures = trace.statistics()
        assert figures.mean_bps / 1e6 == pytest.approx(mean, abs=0.01)
        assert figures.zero_fraction == pytest.approx(zero, abs=0.002)


def test_the_recorded_starlink_segments(shared_data: Path) -> None:
    traces = read_links(shared_data / "net_starlink_autobahn" / "throughput.zip")
    assert len(traces) == 71  # of 73; two are shorter than 20 s
    assert len({trace.digest() for trace in traces}) == 71
    seconds = np.concatenate([trace.capacity_bps for trace in traces])
    assert seconds.size == pytest.approx(4846, abs=20)
    assert seconds.mean() / 1e6 == pytest.approx(15.62, abs=0.1)
    assert (seconds == 0).mean() == pytest.approx(0.0597, abs=0.002)
