"""Garbage in, an AdaptsplitError or a valid recording out, for every format and whatever stands in the file.

Deterministic mutations of a small valid file of every format: bytes flipped, cut, taken out, repeated and put in,
numbers replaced by huge ones, NaN and infinities, words by Unicode and control characters, JSON nested deeply, and the
same within zip and gzip, before and after packing. 20,000 mutations by default, 100,000 when the environment variable
ADAPTSPLIT_FUZZ is ``full``. Zip bombs have a test of their own in test_links_readers_recording.py.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import zipfile
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from adaptsplit.errors import AdaptsplitError
from adaptsplit.links import LinkTrace, Recording, describe, format_description, link_readers
from adaptsplit.links.readers import parse_recordings

MUTATIONS = 100_000 if os.environ.get("ADAPTSPLIT_FUZZ") == "full" else 20_000

UCC = (
    b"Timestamp,NetworkMode,RSRP,SNR,DL_bitrate,State,PINGAVG\n"
    b"2020.02.14_13.59.01,5G,-90,5.0,1000,D,80.0\n2020.02.14_13.59.01,LTE,-200,-,2000,D,-\n"
    b"2020.02.14_13.59.03,5G,-91,6.0,0,D,-\n2020.02.14_13.59.04,5G,-92,7.0,500,D,90.0\n"
)
STARLINK = b"timestamp_start_ul,upload\n" + b"".join(
    b"2024-04-19 16:23:%02d.000116224,%d.5\n" % (k, k % 5) for k in range(22)
)
PERAMA = b"".join(
    json.dumps({"timestamp": 1, "payload": {"phy": phy, "src_timestamp_ns": 500_000_000 * k}}).encode() + b"\n"
    for k, phy in enumerate(
        ["TX: 4294967000 bytes (9 packets)\n\tsignal: -60 dBm", "TX: 900 bytes", "Not connected.\n", "TX: 5 bytes"]
    )
)
IPERF3 = json.dumps(
    {
        "start": {"version": "iperf 3.16", "connecting_to": {}, "test_start": {"protocol": "UDP", "reverse": 0}},
        "intervals": [
            {
                "sum": {"start": k, "end": k + 1, "bits_per_second": 1e6, "omitted": False, "sender": True},
                "sum_bidir_reverse": {"start": k, "end": k + 1, "bits_per_second": 2e6, "lost_percent": 1},
            }
            for k in range(3)
        ],
        "end": {"streams": [{"sender": {"min_rtt": 20000}}]},
    }
).encode()
PING = b"PING h (192.0.2.1) 56(84) bytes of data.\n" + b"".join(
    b"[%d.5] 64 bytes from 192.0.2.1: icmp_seq=%d ttl=62 time=%d.1 ms\n" % (100 + k, k, 10 + k) for k in (1, 2, 4, 5)
)
LIVE = b'{"event": "run", "frame": 0, "detail": ""}\n' + b"".join(
    b'{"event": "beat", "frame": -1, "sent_s": %d.0, "heard_s": %d.05}\n'
    b'{"frame": %d, "arrived_s": %d.1, "controller": "c", '
    b'"times": {"sent_s": %d.2, "wire_bytes": %d, "acked_s": %d.3, "signal_dbm": -90}}\n'
    % (k, k, k, k, k, 300 + 100 * k, k)
    for k in range(4)
)
PING += b"no answer yet for icmp_seq=6\n\n--- h ping statistics ---\n6 packets transmitted, 4 received, time 5000ms\n"
CICV5G = b"pub_time(ms) sub_time(ms) delay(ms) sinr(db) rsrp(db)\n" + b"".join(
    b"%d 0 %d %d -90 7\n" % (1000 + 55 * k, 20 + k, k) for k in range(8)
)
SEEDS = {
    "mahimahi": b"".join(b"%d\n" % (3 * k) for k in range(40)),
    "pensieve": b"".join(b"%d.5 %d.25\n" % (k, k % 4) for k in range(12)),
    "csv": b"time_s,capacity_mbps,rtt_ms,loss_percent,rsrp_dbm,sinr_db,altitude_m\n"
    + b"".join(b"%d.%d,%d,50,1,-90,-,7\n" % (k, k % 3, k % 5) for k in range(8)),
    "starlink": STARLINK,
    "ucc5g": UCC,
    "perama": PERAMA,
    "nyu-mets": b"".join(b"%d.5,Mbits/sec\r\n" % k for k in range(8)) + b"3,bits/sec\r\n",
    "nyu-mets-log": b"".join(b"%d.6,9,0,%d,13,3,7.37,2100\r\n" % (k, 100 - k) for k in range(8)),
    "cicv5g": CICV5G,
    "iperf3": IPERF3,
    "live-log": LIVE,
    "ping": PING,
}
NUMBERS: tuple[bytes, ...] = (
    b"nan",
    b"inf",
    b"-inf",
    b"1e308",
    b"-1e308",
    b"1e-320",
    b"9" * 12,
    b"9" * 400,
    b"-1",
    b"0",
    b"-0",
    b"0x1f",
)
NUMBERS += (b"1e400", b"NaN", b"Infinity", b"1_0", b"4294967296", b"18446744073709551616", b"true", b"null", b'"5"')
WORDS: tuple[bytes, ...] = (
    b"\n",
    b"\r",
    b"\r\n",
    b",",
    b"-",
    b" ",
    b"\t",
    b"\0",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\\u0000",
    b"\xff",
)
WORDS += ("\u0663".encode(), "\u2028".encode(), "\U0001f681".encode(), b"\xef\xbb\xbf", b"PK\x03\x04", b"\x1f\x8b")
WORDS += (b"[" * 3000, b'{"a":' * 3000, b"," * 300, b'"' + b"x" * 5000, b"\n" * 300, b"\x85", b"\x1c")
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_LINE = re.compile(rb"[^\n]*\n")


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(zipfile.ZipInfo("a.csv", (2020, 1, 1, 0, 0, 0)), content)
    return buffer.getvalue()


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """``content`` after one to four mutations."""
    data = content
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(MUTATORS)(data, rng)
    return data


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(rng.choice((128, 256)))]) + data[at + 1 :]


def nudge(data: bytes, rng: random.Random) -> bytes:
    """Another number of about the same size: it parses, and what comes after parsing is met."""
    digits = bytes(rng.choice(b"0123456789") for _ in range(rng.randint(1, 3)))
    return _swap(_NUMBER, data, rng, digits + rng.choice((b"", b"", b".5", b"e2")))


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def take_out(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randint(1, 20) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at : at + rng.randint(1, 60)] * rng.choice((2, 2, 2, 50)) + data[at:]


def put_in(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(WORDS) + data[at:]


def renumber(data: bytes, rng: random.Random) -> bytes:
    return _swap(_NUMBER, data, rng, rng.choice(NUMBERS))


def swap_line(data: bytes, rng: random.Random) -> bytes:
    lines = _LINE.findall(data)
    return _swap(_LINE, data, rng, rng.choice(lines)) if lines else data


def _swap(pattern: re.Pattern[bytes], data: bytes, rng: random.Random, by: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    found = pattern.search(data, start) or pattern.search(data)
    return data if found is None else data[: found.start()] + by + data[found.end() :]


MUTATORS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(flip, flip, cut, take_out, repeat, put_in, renumber, renumber, nudge, nudge, nudge, swap_line, swap_line),
)


def outcome(data: bytes, reader: str | None) -> str:
    """What becomes of ``data``; anything but a recording, a trace or an AdaptsplitError is let through."""
    try:
        recordings = parse_recordings("some.file", data, reader)
        assert recordings
        assert all(isinstance(recording, Recording) and len(recording) >= 1 for recording in recordings)
        traces = [recording.trace() for recording in recordings if "capacity_bps" in recording.columns]
        assert all(isinstance(trace, LinkTrace) and np.isfinite(trace.capacity_bps).all() for trace in traces)
    except AdaptsplitError as error:
        return "refused" if str(error).isprintable() else f"a message to make the terminal do things: {error!r}"
    return "read"


def check(data: bytes, reader: str | None) -> str:
    try:
        result = outcome(data, reader)
        assert result in ("read", "refused"), result
        return result
    except Exception as error:
        shown = data if len(data) < 2000 else data[:1000] + b" ... " + data[-1000:]
        raise AssertionError(f"{type(error).__name__}: {error} for reader {reader} and {shown!r}") from error


def test_every_format_has_a_valid_seed() -> None:
    assert sorted(SEEDS) == link_readers.names()
    for name, content in SEEDS.items():
        for packed in (content, zipped(content), gzipped(content)):
            assert check(packed, None) == "read"
            assert check(packed, name) == "read"


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_garbage_is_refused_or_read(name: str) -> None:
    rng = random.Random(f"links {name}")
    content, others = SEEDS[name], link_readers.names()
    packed = [zipped(content), gzipped(content)]
    seen: Counter[str] = Counter()
    for k in range(MUTATIONS // len(SEEDS)):
        reader = (None, name, name, rng.choice(others))[k % 4]
        kind = rng.randrange(16)
        if kind == 0:
            data = mutated(rng.choice(packed), rng)
        elif kind == 1:
            data = rng.choice((zipped, gzipped))(mutated(content, rng))
        else:
            data = mutated(content, rng)
        seen[check(data, reader)] += 1
    assert seen["read"] > 0.02 * seen.total()  # mutations that break everything would test the first check only
    assert seen["refused"] > 0.2 * seen.total()


def test_descriptions_of_what_was_read_never_fail(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "file"
    rng = random.Random("describe")
    described = 0
    for k in range(MUTATIONS // 100):
        path.write_bytes(mutated(SEEDS[sorted(SEEDS)[k % len(SEEDS)]], rng))
        try:
            description = describe([path])
        except AdaptsplitError:
            continue
        json.dumps(description, allow_nan=False)
        assert len(format_description(description).splitlines()) >= 2
        described += 1
    assert described > 0.05 * MUTATIONS // 100
