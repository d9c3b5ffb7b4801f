"""iperf3 and ping: what everybody can measure with two programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptsplit.errors import LinkError
from adaptsplit.links import Recording, read_recordings


def read_all(folder: Path, content: str | dict[str, Any], dt_s: float | None = None) -> list[Recording]:
    path = folder / "probe.log"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_recordings(path, dt_s=dt_s)


def total(start: float, end: float, bps: float, sender: bool | None, **more: Any) -> dict[str, Any]:
    said = {} if sender is None else {"sender": sender}
    return {"start": start, "end": end, "bits_per_second": bps, "omitted": False, **said, **more}


def iperf(*intervals: dict[str, Any], server: bool = False, **test: Any) -> dict[str, Any]:
    start = {"version": "iperf 3.16", "test_start": {"protocol": "TCP", "reverse": 0} | test}
    start["accepted_connection" if server else "connecting_to"] = {"host": "192.0.2.1", "port": 5201}
    return {"start": start, "intervals": list(intervals), "end": {}}


def test_an_upload_is_the_senders_sum(tmp_path: Path) -> None:
    intervals = [{"streams": [], "sum": total(k, k + 1, 1e6 * (k + 1), True)} for k in range(3)]
    [recording] = read_all(tmp_path, iperf(*intervals))
    assert recording.name == "probe up"
    assert recording.dt_s == 1.0
    assert recording.columns["capacity_bps"].tolist() == [1e6, 2e6, 3e6]
    assert list(recording.columns) == ["capacity_bps"]
    assert "client to server (up), sender's sums in 3 intervals" in recording.provenance[0]


def test_both_directions_are_named_and_the_receiver_is_believed(tmp_path: Path) -> None:
    client = iperf({"sum": total(0, 1, 8e6, True), "sum_bidir_reverse": total(0, 1, 5e6, False)})
    up, down = read_all(tmp_path, client)
    assert [(r.name, r.columns["capacity_bps"][0]) for r in (up, down)] == [("probe up", 8e6), ("probe down", 5e6)]
    assert "sender's sums" in up.provenance[0]
    assert "receiver's sums" in down.provenance[0]
    server = iperf(
        {"sum": total(0, 1, 7e6, False), "sum_bidir_reverse": total(0, 1, 6e6, True)},
        server=True,
    )
    up, down = read_all(tmp_path, client | {"server_output_json": server})
    assert up.columns["capacity_bps"][0] == 7e6
    assert "receiver's sums" in up.provenance[0]
    assert down.columns["capacity_bps"][0] == 5e6
    up, down = read_all(tmp_path, server)
    assert [up.columns["capacity_bps"][0], down.columns["capacity_bps"][0]] == [7e6, 6e6]


@pytest.mark.parametrize(
    ("reverse", "server", "name"), [(0, False, "up"), (1, False, "down"), (0, True, "up"), (1, True, "down")]
)
def test_old_versions_do_not_say_who_sent(tmp_path: Path, reverse: int, server: bool, name: str) -> None:
    [recording] = read_all(tmp_path, iperf({"sum": total(0, 1, 1e6, None)}, server=server, reverse=reverse))
    assert recording.name == f"probe {name}"
    assert ("receiver" in recording.provenance[0]) is (bool(reverse) is not server)


def test_omitted_and_cut_intervals_do_not_count(tmp_path: Path) -> None:
    first = total(0, 1, 9e6, True) | {"omitted": True}
    rows = [first, total(0, 1, 1e6, True), total(1, 2, 3e6, True), total(2, 2.001, 9e9, True)]
    [recording] = read_all(tmp_path, iperf(*({"sum": row} for row in rows)))
    assert recording.columns["capacity_bps"].tolist() == [1e6, 3e6]
    [coarse] = read_all(tmp_path, iperf(*({"sum": row} for row in rows)), dt_s=2.0)
    assert coarse.columns["capacity_bps"].tolist() == [2e6]


def test_the_least_round_trip_is_taken_and_udp_loss_is_read(tmp_path: Path) -> None:
    tcp = iperf({"sum": total(0, 1, 1e6, True)}) | {
        "end": {"streams": [{"sender": {"min_rtt": 23_000, "mean_rtt": 90_000}}, {"sender": {"min_rtt": 21_000}}]}
    }
    [recording] = read_all(tmp_path, tcp)
    assert recording.columns["rtt_s"].tolist() == pytest.approx([0.021])
    rows = [total(0, 1, 1e6, False, lost_percent=25), total(1, 2, 0, False, lost_percent=100)]
    [down] = read_all(tmp_path, iperf(*({"sum": row} for row in rows), protocol="UDP", reverse=1))
    assert down.columns["loss"].tolist() == [0.25, 0.99]
    assert "UDP at a target rate" in down.provenance[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (iperf() | {"error": "unable to connect"}, "no interval was measured; iperf3 says 'unable to connect'"),
        (iperf({"sum": total(0, 1, -1, True)}), "interval 0, sum: found -1 as 'bits_per_second', expected a number"),
        (iperf({"sum": total(0, 1, 1, True)}, {"sum": total(2, 1, 1, True)}), "interval 1, sum: from 2 s to 1 s"),
        (
            iperf({"sum": total(0, 1, 1, True)}, {"sum": total(0, 1, 1, True)}),
            "interval 1: begins at 0 s, before the end",
        ),
        ({"start": {"test_start": 1}, "intervals": 5}, "found 5 as 'intervals', expected a list"),
        ('{"start": {"test_start"', "no valid JSON"),
        ('{"test_start": NaN}', "NaN is no JSON number"),
        ('{"test_start": ' + "[" * 100_000, "no valid JSON"),
        ('{"test_start": ' + "9" * 5000 + "}", "no valid JSON"),
    ],
)
def test_faulty_iperf_output_is_refused(tmp_path: Path, content: str | dict[str, Any], words: str) -> None:
    with pytest.raises(LinkError, match=words) as caught:
        read_all(tmp_path, content)
    assert "probe.log" in str(caught.value)


def reply(seq: int, ms: float, at: float | None = None) -> str:
    stamp = "" if at is None else f"[{at:.6f}] "
    return f"{stamp}64 bytes from 192.0.2.1: icmp_seq={seq} ttl=62 time={ms} ms\n"


PING = "PING 192.0.2.1 (192.0.2.1) 56(84) bytes of data.\n"


def test_plain_ping_takes_its_interval_from_the_summary(tmp_path: Path) -> None:
    end = "\n--- 192.0.2.1 ping statistics ---\n4 packets transmitted, 3 received, 25% packet loss, time 1500ms\n"
    [recording] = read_all(tmp_path, PING + reply(1, 10) + reply(2, 20) + reply(4, 40) + end + "rtt min/avg = 1/2 ms\n")
    assert recording.dt_s == 0.5
    assert recording.columns["rtt_s"].tolist() == [0.01, 0.02, 0.02, 0.04]
    assert recording.columns["loss"].tolist() == [0.25] * 4
    assert recording.filled == 1
    assert "4 probes, 1 lost; interval 0.5 s of the summary" in recording.provenance[0]
    [assumed] = read_all(tmp_path, PING + reply(1, 10) + reply(2, 20))
    assert assumed.dt_s == 1.0
    assert "assumed" in assumed.provenance[0]


def test_timestamps_are_of_arrival_and_sending_is_what_counts(tmp_path: Path) -> None:
    """Probes every 0.2 s; the second reply takes 0.5 s and comes after the third."""
    text = PING + reply(1, 100, 10.1) + reply(3, 100, 10.5) + reply(2, 500, 10.7) + reply(4, 100, 10.7)
    [recording] = read_all(tmp_path, text)
    assert recording.dt_s == 0.2
    assert recording.columns["rtt_s"] == pytest.approx([0.1, 0.5, 0.1, 0.1])
    assert "interval 0.2 s of the timestamps" in recording.provenance[0]


def test_a_real_failover_loses_fifteen_of_forty(tmp_path: Path) -> None:
    """ping -D -O -i 0.2 -c 40, as a published course shows it: 14 to 28 unanswered, 37.5 % lost by ping's own count."""
    answered = [seq for seq in range(1, 41) if not 14 <= seq <= 28]
    lines = [reply(seq, 0.1, 1790629864.2 + 0.204 * (seq - 1)) for seq in answered]
    lines[13:13] = [f"[1790629867.06] no answer yet for icmp_seq={seq}\n" for seq in range(14, 29)]
    end = "\n--- 192.0.2.21 ping statistics ---\n40 packets transmitted, 25 received, 37.5% packet loss, time 7954ms\n"
    [recording] = read_all(tmp_path, PING + "".join(lines) + end)
    assert "40 probes, 15 lost; interval 0.204 s of the timestamps" in recording.provenance[0]
    loss = recording.columns["loss"]
    assert loss.size == 40
    assert loss.max() == pytest.approx(0.75)  # 15 of the 20 around the middle of the gap
    assert loss[0] == 0.0
    assert loss.mean() == pytest.approx(0.375, abs=0.02)


def test_an_answer_after_no_answer_yet_is_not_lost_and_a_second_reply_is_left_out(tmp_path: Path) -> None:
    text = PING + "no answer yet for icmp_seq=1\n" + reply(1, 1500) + reply(2, 30)
    text += reply(2, 99).rstrip() + " (DUP!)\n" + "From 192.0.2.9 icmp_seq=3 Destination Host Unreachable\n"
    [recording] = read_all(tmp_path, text)
    assert recording.columns["rtt_s"].tolist() == [1.5, 0.03, 0.03]
    assert "3 probes, 1 lost" in recording.provenance[0]


def test_sequence_numbers_wrap(tmp_path: Path) -> None:
    [recording] = read_all(tmp_path, "".join(reply(seq, 10) for seq in (65534, 65535, 0, 1)))
    assert "4 probes, 0 lost" in recording.provenance[0]
    assert not recording.columns["loss"].any()


def test_loss_is_a_share_of_many_probes_and_never_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kept = [seq for seq in range(1, 2001) if rng.random() > 0.1]
    [recording] = read_all(tmp_path, PING + "".join(reply(seq, 10) for seq in kept))
    lost = 1 - len(kept) / len(recording)
    assert recording.columns["loss"].mean() == pytest.approx(lost, abs=0.005)
    [outage] = read_all(tmp_path, PING + reply(1, 10) + reply(100, 10))
    assert outage.columns["loss"].max() == 0.99


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PING, "no reply in the log"),
        (PING + reply(1, 10) + "hello\n", "line 3: found 'hello', expected a line as ping on Linux prints it"),
        (PING + reply(1, 10) + PING + reply(1, 10), "line 3: found 'PING .*, expected one run of ping per file"),
        (PING + reply(70_000, 10), "line 2: found 'icmp_seq 70000', expected 0 to 65535"),
        (PING + reply(1, 700_000), "line 2: found '700000 ms', expected a round trip of at most 600 s"),
        (PING + reply(1, 10, 5.0) + reply(2, 10, 4.0), "line 3: found 'a timestamp that falls'"),
        (
            PING + reply(1, 10) + "900000000 packets transmitted, 1 received, 0% packet loss, time 1ms\n",
            "900000000 probes",
        ),
    ],
)
def test_a_faulty_ping_log_is_named_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(LinkError, match=words) as caught:
        read_all(tmp_path, text)
    assert "probe.log" in str(caught.value)
