"""The Mahimahi format: one line per packet that the link could have delivered."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from adaptsplit.errors import LinkError
from adaptsplit.links.readers import DEFAULT_RTT_S, LinkReader, fail, link_readers, read_bytes
from adaptsplit.links.trace import LinkTrace

PACKET_BITS = 1500 * 8
MAX_TIMESTAMP_MS = 24 * 3600 * 1000
DEFAULT_DT_S = 0.02

_WELL_FORMED = re.compile(rb"(?:[0-9]{1,9}[ \t]*\r?\n)*[0-9]{0,9}\s*")
_NUMBER = re.compile(rb"\s*[0-9]{1,9}\s*")


def read_mahimahi(
    path: Path, *, dt_s: float | None = None, rtt_s: float = DEFAULT_RTT_S, family: str | None = None
) -> list[LinkTrace]:
    """Read a Mahimahi trace (Netravali et al., "Mahimahi: Accurate Record-and-Replay for HTTP", USENIX ATC 2015).

    Each line is a time in whole ms at which one packet of 1500 bytes may cross; equal lines are several packets. The
    file is looped, its period is the last timestamp, and a packet at ``t`` belongs to the millisecond that ends at
    ``t``. Packets are counted per sample (20 ms by default). A file whose period is no multiple of the sample is
    unrolled until it is, if that takes at most ten seconds; otherwise its last sample is cut short and holds on.
    The format has no round-trip time and no loss: ``rtt_s`` is taken as a constant, loss as 0.

    Raises:
        LinkError: text, a negative or decreasing timestamp, no packet, more than a day, more than 64 MiB.
    """
    times = _timestamps(path)
    period = int(times[-1])
    bin_ms = round((dt_s or DEFAULT_DT_S) * 1000)
    if dt_s is not None and abs(dt_s * 1000 - bin_ms) > 1e-6:
        raise LinkError(f"{path}: sample length {dt_s} s; the format counts in ms, so give a whole number of them")
    loops = bin_ms // math.gcd(period, bin_ms)
    if loops * period > 10_000:
        loops = 1
    times = (times[None, :] + period * np.arange(loops)[:, None]).ravel()
    samples = -(-loops * period // bin_ms)
    packets = np.bincount(np.maximum(times - 1, 0) // bin_ms, minlength=samples).astype(np.float64)
    last_ms = loops * period - (samples - 1) * bin_ms
    capacity = packets * PACKET_BITS / (bin_ms / 1000)
    capacity[-1] *= bin_ms / last_ms
    unrolled = f", unrolled {loops} times" if loops > 1 else ""
    note = f"mahimahi {path.name}: packets of 1500 bytes per {bin_ms} ms{unrolled}; round trip taken as {rtt_s:g} s"
    flat = np.full(samples, rtt_s)
    name = family or "cellular"
    return [LinkTrace(path.stem, name, bin_ms / 1000, capacity, flat, np.zeros(samples), None, (note,))]


def _timestamps(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    data = read_bytes(path)
    if not _WELL_FORMED.fullmatch(data):
        _name_bad_line(path, data)
    times = np.array(data.split(), dtype=np.int64)
    falls = np.flatnonzero(np.diff(times) < 0)
    if falls.size:
        at = int(falls[0]) + 1
        fail(path, at + 1, int(times[at]), f"at least {int(times[at - 1])}: timestamps never decrease; sort the file")
    if times[-1] > MAX_TIMESTAMP_MS:
        fail(path, times.size, int(times[-1]), f"at most {MAX_TIMESTAMP_MS} ms (a day); cut the recording into parts")
    if times[-1] == 0:
        fail(path, times.size, 0, "a last timestamp above 0: it is the period of the loop")
    return times


def _name_bad_line(path: Path, data: bytes) -> None:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not _NUMBER.fullmatch(line):
            text = line.decode("utf-8", "replace").strip()
            if re.fullmatch(r"-\d+", text):
                fail(path, number, int(text[:20]), "a timestamp of at least 0; shift the recording to begin at 0")
            fail(path, number, text, "one whole number of milliseconds (mahimahi format); remove or mend the line")
    fail(path, 1, data[:20], "one whole number of milliseconds per line (mahimahi format)")


def _score(head: bytes) -> float:
    lines = [line for line in head.split(b"\n")[:-1] or [head] if line.strip()]
    share = sum(_NUMBER.fullmatch(line) is not None for line in lines) / max(1, len(lines))
    return 0.9 * share if share >= 0.5 else 0.0


MAHIMAHI = LinkReader(
    "mahimahi", "one integer per line: ms at which a 1500-byte packet may pass", read_mahimahi, _score
)
link_readers.register(MAHIMAHI.name)(MAHIMAHI)
