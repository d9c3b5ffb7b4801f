"""Readers of published recordings: small files by hand, then every real file where the data are present."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from adaptsplit.errors import LinkError
from adaptsplit.links import Recording, read_recordings

UCC_HEADER = (
    "Timestamp,Longitude,Latitude,Speed,Operatorname,CellID,NetworkMode,RSRP,RSRQ,SNR,CQI,RSSI,DL_bitrate,UL_bitrate,"
    "State,PINGAVG,PINGMIN,PINGMAX,PINGSTDEV,PINGLOSS,CELLHEX,NODEHEX,LACHEX,RAWCELLID,NRxRSRP,NRxRSRQ\n"
)


def ucc_row(
    second: int, rate: str = "1000", rsrp: str = "-90", snr: str = "5.0", state: str = "D", ping: str = "-"
) -> str:
    return (
        f"2020.02.14_13.59.{second:02d},-8.3,51.9,0,B,2,5G,{rsrp},-12,{snr},10,-86,{rate},25,{state},"
        f"{ping},-,-,-,-,2,A81B,9CBA,11016962,-105.0,-15.0\n"
    )


def perama_row(time_ns: int, sent: int | None, signal: int = -60) -> str:
    phy = (
        "Not connected.\n"
        if sent is None
        else f"Connected to 58:11:22\n\tTX: {sent} bytes (9 packets)\n\tsignal: {signal} dBm\n"
    )
    return json.dumps({"datetime": "x", "timestamp": 1, "payload": {"phy": phy, "src_timestamp_ns": time_ns}}) + "\n"


def read_all(folder: Path, content: str, dt_s: float | None = None) -> list[Recording]:
    path = folder / "recording.dat"
    path.write_text(content, newline="")
    return read_recordings(path, dt_s=dt_s)


def read(folder: Path, content: str, dt_s: float | None = None) -> Recording:
    [recording] = read_all(folder, content, dt_s)
    return recording


def test_pensieve_rates_hold_since_the_row_before(tmp_path: Path) -> None:
    recording = read(tmp_path, "0.0\t9.9\n0.5 1.0\n1.0 2.0\n2.0 4.0\n")
    assert recording.dt_s == 0.5
    assert recording.columns["capacity_bps"].tolist() == [1e6, 2e6, 4e6, 4e6]
    assert "usually a downlink" in recording.provenance[0]


def test_ucc_takes_the_downlink_and_knows_what_is_missing(tmp_path: Path) -> None:
    rows = [
        ucc_row(1, "1000", "-200", "-", ping="80.0"),
        ucc_row(1, "3000", "-90", "4.0"),
        ucc_row(3, "500", "-92", "-", ping="120.0"),
        ucc_row(4, "0", "-94", "6.0"),
    ]
    recording = read(tmp_path, UCC_HEADER + "".join(rows))
    assert recording.dt_s == 1.0
    assert recording.columns["capacity_bps"].tolist() == [2e6, 2e6, 5e5, 0]
    assert recording.columns["signal_dbm"].tolist() == [-90, -90, -92, -94]
    assert recording.columns["sinr_db"] == pytest.approx([4, 4, np.nan, 6], nan_ok=True)
    assert recording.columns["rtt_s"].tolist() == pytest.approx([0.08, 0.08, 0.12, 0.12])
    assert recording.filled == 1
    assert "downlink (DL_bitrate)" in recording.provenance[0]
    assert "1 missing seconds" in recording.provenance[0]


def test_a_log_without_a_ping_has_no_round_trip(tmp_path: Path) -> None:
    assert "rtt_s" not in read(tmp_path, UCC_HEADER + ucc_row(1) + ucc_row(2)).columns


def test_a_video_log_is_refused_alone_and_left_out_of_a_zip(tmp_path: Path) -> None:
    video = UCC_HEADER + "".join(ucc_row(k, state="I" if k % 2 else "D") for k in range(10))
    with pytest.raises(LinkError, match=r"idle in 50 % of its rows, .* give a log of Download/"):
        read(tmp_path, video)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        packed.writestr("set/Download/B_1.2.csv", UCC_HEADER + ucc_row(1))
        packed.writestr("set/Netflix/B_3.4.csv", video)
        packed.writestr("__MACOSX/set/._B_1.2.csv", "x")
    [recording] = read_recordings(tmp_path / "set.zip")
    assert recording.name == "B_1.2"
    assert recording.provenance[-1].startswith("1 of 2 tables of the file left out")


def test_perama_counts_bytes_over_wraps_and_associations(tmp_path: Path) -> None:
    half = 500_000_000
    sent = [2**32 - 1000, 4000, 10_000, None, None, 600, 700, 200]
    rows = [perama_row(half * k, value, -50 - k) for k, value in enumerate(sent)]
    recording = read(tmp_path, "".join(rows))
    assert recording.dt_s == 0.5
    # wrap: 5000 bytes; then 6000; not connected twice; a new association from 0: 600; 100; a reset counts from 0: 200
    assert recording.columns["capacity_bps"].tolist() == [16 * n for n in (5000, 6000, 0, 0, 600, 100, 200)]
    assert recording.columns["signal_dbm"] == pytest.approx([-51, -52, np.nan, np.nan, -55, -56, -57], nan_ok=True)
    assert "not connected in 2 lines" in recording.provenance[0]


def test_nyu_rates_have_the_unit_of_their_line(tmp_path: Path) -> None:
    recording = read(tmp_path, "1.5,Mbits/sec\r\n512,Kbits/sec\r\n0,bits/sec\r\n")
    assert recording.columns["capacity_bps"].tolist() == [1.5e6, 512e3, 0]
    assert "downlink" in recording.provenance[0]


def test_nyu_logs_get_the_sign_of_their_signal_back(tmp_path: Path) -> None:
    rows = ["12.6,9,0,102,13,3,7.37,2100", "3.18,9,0,-95,-13,2147483647,6.51,2100", "0,11,0,0,16,3,8.5,-1"]
    recording = read(tmp_path, "\r\n".join(rows) + "\r\n")
    assert recording.columns["capacity_bps"].tolist() == [12.6e6, 3.18e6, 0]
    assert recording.columns["signal_dbm"] == pytest.approx([-102, -95, np.nan], nan_ok=True)
    assert "sign of the signal restored in 1 samples" in recording.provenance[0]


CICV_HEADER = (
    "pub_time(ms) sub_time(ms) delay(ms) utmX(m) utmY(m) heading(rad) velocity(m/s) cellid(db) sinr(db) rsrp(db)\n"
)


def test_cicv5g_has_round_trips_and_no_rate(tmp_path: Path) -> None:
    rows = ["1000 1028 28 1 2 3 4 5C42 10 -86 7 8\n", "1050 1090 40 1 2 3 4 5C42 11 -87 7 8\n"]
    recording = read(tmp_path, CICV_HEADER + "".join(rows))
    assert recording.dt_s == 0.05
    assert recording.columns["rtt_s"].tolist() == pytest.approx([0.028, 0.04])
    assert recording.columns["signal_dbm"].tolist() == [-86, -87]
    assert recording.columns["sinr_db"].tolist() == [10, 11]
    with pytest.raises(LinkError, match="only rtt_s, signal_dbm, sinr_db; use it as rtt_from"):
        recording.trace()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0 1\n1 2\n1 3\n", "line 3: found '1 s', expected a time after"),
        ("0 1\n1 2 3\n2 3\n", "line 2: found '1,2,3', expected 2 fields"),
        ("0 1\n1 -2\n2 3\n", "line 2: found '-2', expected a rate in Mbit/s"),
        ("0 1\n", "1 row, expected at least 2"),
        (UCC_HEADER, "0 rows of values"),
        (UCC_HEADER.replace("SNR", "XNR") + ucc_row(1), "expected the columns SNR of the UCC"),
        (UCC_HEADER + ucc_row(1, rate="fast"), "line 2: found 'fast', expected a rate in kbit/s"),
        (UCC_HEADER + ucc_row(1, rsrp="90"), "line 2: found '90', expected RSRP in dBm"),
        (UCC_HEADER + ucc_row(5) + ucc_row(4), "line 3: found '-1 s after the row before'"),
        (UCC_HEADER + ucc_row(5) + ucc_row(40), "line 3: found '35 s .* cut the recording there"),
        (UCC_HEADER + ucc_row(1).replace("2020.02", "2020.13"), "line 2: found '2020.13.14_13.59.01', expected a date"),
        (perama_row(0, 1), "1 line, expected at least 2"),
        (perama_row(5, 1) + perama_row(4, 2), "line 2: found '-1e-09 s after the line before'"),
        (perama_row(5, 1) + perama_row(6, 2), "line 2: found '1e-09 s .* expected 0.001 to 10 s"),
        (perama_row(0, 1) + perama_row(20_000_000_000, 2), "line 2: found '20 s .* cut the log there"),
        (perama_row(0, 1) + "{", "line 2: no valid JSON"),
        (perama_row(0, 1) + "[" * 60_000, "line 2: no valid JSON"),
        (perama_row(0, 1) + "1" * 70_000, "line 2: 70000 characters of JSON, at most 65536"),
        (perama_row(0, 1) + '{"payload": [1]}', "line 2: found a list of 1 as 'payload', expected a dict"),
        (perama_row(0, 1) + '{"payload": {"phy": "x", "src_timestamp_ns": true}}', "found True as 'src_timestamp_ns'"),
        (perama_row(0, 1) + '{"payload": {"phy": "x", "src_timestamp_ns": 9}}', "found no 'TX: ... bytes'"),
        ("1,Mbits/sec\n2,Mbits\n", "line 2: found 'Mbits', expected a unit: bits/sec"),
        ("1,Mbits/sec\n1,2,Mbits/sec\n", "line 2: found '1,2,Mbits/sec', expected 2 fields"),
        ("1,2,3,4,5,6,7,8\n1,2,3\n", "line 2: found '1,2,3', expected 8 fields"),
        ("1,2,3,-90,5,6,7,8\nnan,2,3,4,5,6,7,8\n", "line 2: found 'nan', expected a rate in Mbit/s"),
        (CICV_HEADER.replace("rsrp", "rsrq") + "1 2 3\n", r"expected the columns rsrp\(db\) of CICV5G"),
        (CICV_HEADER + "1 2 3\n", "line 2: found '1,2,3', expected at least 10 fields"),
        (
            CICV_HEADER + "1000 1 28 1 2 3 4 5 10 -86\n1000 1 28 1 2 3 4 5 10 -86\n",
            "line 3: found '1 s', expected a time",
        ),
    ],
)
def test_a_faulty_file_is_named_by_line(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(LinkError, match=words) as caught:
        read(tmp_path, content)
    assert "recording.dat" in str(caught.value)


@pytest.mark.parametrize("content", [UCC_HEADER + ucc_row(1), "1,Mbits/sec\n", "1,2,3,-90,5,6,7,8\n"])
def test_recordings_of_one_second_refuse_another_sample_length(tmp_path: Path, content: str) -> None:
    with pytest.raises(LinkError, match="these recordings have 1 s"):
        read(tmp_path, content, dt_s=0.5)


def test_all_real_ucc_logs(shared_data: Path) -> None:
    """21 downloads of 83 logs; rates and shares near those that the data's README states per row."""
    recordings = read_recordings(shared_data / "net_ucc5g" / "5G-production-dataset.zip")
    assert len(recordings) == 21
    capacity = np.concatenate([recording.columns["capacity_bps"] for recording in recordings]) / 1e6
    # the README's rows: 27591 of mean 27.6 and 15617 of mean 66.66 Mbit/s; here seconds, doubles averaged, gaps filled
    assert capacity.mean() == pytest.approx((27_591 * 27.6 + 15_617 * 66.66) / 43_208, rel=0.1)
    assert capacity.max() == pytest.approx(532.9, abs=0.1)
    rtt = np.concatenate([recording.columns["rtt_s"] for recording in recordings])
    assert (rtt.min(), rtt.max()) == pytest.approx((0.064, 0.889))
    assert all(recording.filled < 0.2 * len(recording) for recording in recordings)
    assert all("62 of 83 tables" in recording.provenance[-1] for recording in recordings)


def test_all_real_perama_runs(shared_data: Path) -> None:
    """23 runs; the bytes of a run are those of its counter, wraps and associations included."""
    files = sorted((shared_data / "net_wifi_perama_ul" / "logs").rglob("*_phy.json"))
    recordings = [recording for file in files for recording in read_recordings(file)]
    assert len(recordings) == len(files) == 23
    means = np.array([recording.columns["capacity_bps"].mean() for recording in recordings]) / 1e6
    assert (means.min(), means.max()) == pytest.approx((2.56, 634.3), abs=0.1)  # the README: from 2.6 to 634 Mbit/s
    signal = np.concatenate([recording.columns["signal_dbm"] for recording in recordings])
    assert np.nanmean(signal) == pytest.approx(-70.01, abs=0.05)  # as the README states
    away = [recording for recording in recordings if np.isnan(recording.columns["signal_dbm"]).any()]
    assert len(away) == 3
    for recording in away:
        assert recording.trace().statistics().longest_outage_s > 5.0


def test_all_real_nyu_traces(shared_data: Path) -> None:
    folder = shared_data / "net_nyu_mets"
    rates = [r for file in sorted((folder / "Sample_Traces").glob("*.csv")) for r in read_recordings(file)]
    assert sum(len(r) for r in rates) == 19_025  # all lines of the seven files
    logs = read_recordings(folder / "Multivariate_Dataset" / "dataset.zip")
    assert [r.name for r in logs] == ["BB16", "BB61txt", "BB62", "MM15", "TT7"]
    capacity = np.concatenate([r.columns["capacity_bps"] for r in logs])
    signal = np.concatenate([r.columns["signal_dbm"] for r in logs])
    assert capacity.size == 103_696
    assert capacity.mean() / 1e6 == pytest.approx(16.34, abs=0.01)  # as the README states, and so the next three
    assert (capacity == 0).mean() == pytest.approx(0.0876, abs=1e-4)
    assert signal.mean() == pytest.approx(-86.96, abs=0.01)
    assert (signal.min(), signal.max()) == (-131.0, -49.0)


def test_all_real_cicv5g_runs(shared_data: Path) -> None:
    files = sorted((shared_data / "net_cicv5g_rtt" / "data").rglob("*.txt"))
    recordings = [recording for file in files for recording in read_recordings(file)]
    assert len(recordings) == 15
    rtt = np.concatenate([recording.columns["rtt_s"] for recording in recordings])
    assert np.median(rtt) == pytest.approx(0.018, abs=1e-3)  # as the README states, and so the greatest
    assert rtt.max() == pytest.approx(34.052, abs=0.02)
    assert sum(recording.duration_s for recording in recordings) / 3600 == pytest.approx(0.42, abs=0.01)
    assert sum(recording.columns["rtt_s"].max() > 5 for recording in recordings) == 3  # the off-road stalls
