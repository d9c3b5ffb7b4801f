"""The Mahimahi format: one line per packet that the link could have delivered."""

from __future__ import annotations

import io
import math
import re

import numpy as np
from numpy.typing import NDArray

from adaptsplit.errors import LinkError
from adaptsplit.links.container import Table
from adaptsplit.links.readers import LinkReader, link_readers
from adaptsplit.links.recording import Recording
from adaptsplit.links.trace import MAX_SAMPLES, Array

PACKET_BITS = 1500 * 8
MAX_TIMESTAMP_MS = 24 * 3600 * 1000
DEFAULT_DT_S = 0.02
MAX_UNROLLED_MS = 10_000

Times = NDArray[np.int64]

# Possessive: with plain quantifiers the matcher keeps a way back for each line, gigabytes for a file of 64 MiB.
_WELL_FORMED = re.compile(rb"(?:[0-9]{1,9}+[ \t]*+\r?\n)*+[0-9]{0,9}+\s*+")
_NUMBER = re.compile(rb"\s*[0-9]{1,9}\s*")


def read_mahimahi(table: Table, *, dt_s: float | None = None, family: str | None = None) -> list[Recording]:
    """Read a Mahimahi trace (Netravali et al., "Mahimahi: Accurate Record-and-Replay for HTTP", USENIX ATC 2015).

    Each line is a time in whole ms at which one packet of 1500 bytes may cross; equal lines are several packets. The
    file is looped, its period is the last timestamp, and a packet at ``t`` belongs to the millisecond that ends at
    ``t``. Packets are counted per sample (20 ms by default). A file whose period is no multiple of the sample is
    unrolled until it is, if that takes at most ten seconds; otherwise its last sample is cut short and holds on.
    The format has no round-trip time and no loss.

    Raises:
        LinkError: text, a negative or decreasing timestamp, no packet, more than a day, more than 64 MiB.
    """
    times = _timestamps(table)
    period = int(times[-1])
    bin_ms = round((dt_s or DEFAULT_DT_S) * 1000)
    if dt_s is not None and abs(dt_s * 1000 - bin_ms) > 1e-6:
        raise LinkError(
            f"{table.place}: sample length {dt_s} s; the format counts in ms, so give a whole number of them"
        )
    loops = bin_ms // math.gcd(period, bin_ms)
    if loops * period > MAX_UNROLLED_MS:
        loops = 1
    if loops * period > MAX_SAMPLES * bin_ms:
        raise LinkError(
            f"{table.place}: {loops * period} ms in samples of {bin_ms} ms are more than {MAX_SAMPLES}; "
            "choose a longer sample"
        )
    packets = _per_bin(times, period, bin_ms, loops)
    last_ms = loops * period - (packets.size - 1) * bin_ms
    capacity = packets * PACKET_BITS / (bin_ms / 1000)
    capacity[-1] *= bin_ms / last_ms
    unrolled = f", unrolled {loops} times" if loops > 1 else ""
    note = f"mahimahi {table.name}: packets of 1500 bytes per {bin_ms} ms{unrolled}"
    return [Recording(table.name, family or "cellular", bin_ms / 1000, {"capacity_bps": capacity}, (note,))]


def _per_bin(times: Times, period: int, bin_ms: int, loops: int) -> Array:
    """Packets per sample of the trace repeated ``loops`` times; counted once, since a line may be repeated often."""
    if loops == 1:
        return np.bincount(np.maximum(times - 1, 0) // bin_ms, minlength=-(-period // bin_ms)).astype(np.float64)
    per_ms = np.tile(np.bincount(np.maximum(times - 1, 0), minlength=period).astype(np.float64), loops)
    padded = np.zeros(-(-per_ms.size // bin_ms) * bin_ms)
    padded[: per_ms.size] = per_ms
    counted: Array = padded.reshape(-1, bin_ms).sum(axis=1)
    return counted


def _timestamps(table: Table) -> Times:
    if not _WELL_FORMED.fullmatch(table.data):
        _name_bad_line(table)
    # Not data.split(): 64 MiB of short lines would become gigabytes of objects.
    times = np.fromstring(table.data.decode("ascii"), dtype=np.int64, sep=" ")
    falls = np.flatnonzero(np.diff(times) < 0)
    if falls.size:
        at = int(falls[0]) + 1
        table.fail(at + 1, int(times[at]), f"at least {int(times[at - 1])}: timestamps never decrease; sort the file")
    if times[-1] > MAX_TIMESTAMP_MS:
        table.fail(times.size, int(times[-1]), f"at most {MAX_TIMESTAMP_MS} ms (a day); cut the recording into parts")
    if times[-1] == 0:
        table.fail(times.size, 0, "a last timestamp above 0: it is the period of the loop")
    return times


def _name_bad_line(table: Table) -> None:
    for number, line in enumerate(io.BytesIO(table.data), start=1):
        if not _NUMBER.fullmatch(line):
            text = line.decode("utf-8", "replace").strip()
            if re.fullmatch(r"-\d+", text):
                table.fail(number, int(text[:20]), "a timestamp of at least 0; shift the recording to begin at 0")
            table.fail(number, text, "one whole number of milliseconds (mahimahi format); remove or mend the line")
    table.fail(1, table.data[:20], "one whole number of milliseconds per line (mahimahi format)")


def _score(head: bytes) -> float:
    lines = [line for line in head.split(b"\n")[:-1] or [head] if line.strip()]
    share = sum(_NUMBER.fullmatch(line) is not None for line in lines) / max(1, len(lines))
    return 0.9 * share if share >= 0.5 else 0.0


MAHIMAHI = LinkReader(
    "mahimahi", "one integer per line: ms at which a 1500-byte packet may pass", read_mahimahi, _score
)
link_readers.register(MAHIMAHI.name)(MAHIMAHI)
