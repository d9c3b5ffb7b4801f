"""What a decoder of bytes from outside must hold under damaged input, and how that is measured.

A ``Target`` is one decoder with valid documents, mutators of them (``adaptsplit.fuzzing``) and its caps. The targets
themselves are in ``fuzz_parsers``, ``fuzz_sessions`` and ``fuzz_updates`` (what a socket brings), ``fuzz_frames``
(containers), ``fuzz_yaml`` and ``fuzz_files``; ``fuzz_targets.TARGETS`` has them all. Inputs follow from a seed, so
every failure can be played again.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import random
import struct
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from adaptsplit.errors import AdaptsplitError
from adaptsplit.fuzzing import Mutator

MESSAGE_S = 0.010  # of processor time for one message, whatever it is
FILE_S = 0.200  # for a file, which a person hands over
SESSION = bytes(range(16))
_SLOWEST = 5  # inputs that are measured again: one slow run may be the machine's doing


@dataclass(frozen=True)
class Target:
    """A decoder: valid documents, mutators, what reads one (and checks what it gives), and its caps.

    decode: returns for what it takes, raises an AdaptsplitError for what it refuses. inputs: how many in the ordinary
    suite. most_s: of processor time for one input. most_bytes: allocated while one input is decoded. printable: errors
    have no characters that move a terminal's cursor. read: the share of inputs, at least, that is taken: mutations that
    break everything would test the first check only.
    """

    whole: Sequence[bytes]
    mutators: Sequence[Mutator]
    decode: Callable[[bytes], object]
    inputs: int = 100_000
    most_s: float = MESSAGE_S
    most_bytes: int = 1 << 20
    printable: bool = True
    read: float = 0.005


@dataclass(frozen=True, slots=True)
class Run:
    """What became of many inputs: how many were read and refused, and the slowest of them with its time, s."""

    seen: Counter[str]
    worst_s: float
    worst: bytes


def outcome(target: Target, data: bytes) -> str:
    """Return what becomes of ``data``, "read" or "refused"; an AssertionError that shows it for anything else."""
    try:
        target.decode(data)
        return "read"
    except AdaptsplitError as error:
        text = str(error)
        assert len(text) < 10_000, (len(text), data[:500])
        assert not target.printable or text.isprintable() or text.replace("\n", "").isprintable(), (text, data[:2000])
        return "refused"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} for {data[:3000]!r}") from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Let nothing be logged: a refusal is worth a line, a million are not."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@silent()
def fuzz(target: Target, seed: str, inputs: int) -> Run:
    """Decode ``inputs`` mutated documents that follow from ``seed``."""
    rng, seen, slowest = random.Random(seed), Counter[str](), list[tuple[float, int, bytes]]()
    mutators = itertools.cycle(target.mutators)
    for number in range(inputs):
        data = next(mutators)(rng)
        start = time.thread_time()
        seen[outcome(target, data)] += 1
        took = time.thread_time() - start
        if len(slowest) < _SLOWEST:
            heapq.heappush(slowest, (took, number, data))
        elif took > slowest[0][0]:
            heapq.heapreplace(slowest, (took, number, data))
    measured = [(seconds(target, data), data) for _, _, data in slowest]
    worst_s, worst = max(measured, default=(0.0, b""))
    return Run(seen, worst_s, worst)


@silent()
def seconds(target: Target, data: bytes, times: int = 5) -> float:
    """Return the processor time that ``data`` takes, s: the least of several runs."""
    found = []
    for _ in range(times):
        start = time.thread_time()
        outcome(target, data)
        found.append(time.thread_time() - start)
    return min(found)


@silent()
def peak_bytes(target: Target, seed: str, inputs: int) -> int:
    """Return the most that decoding one of ``inputs`` mutated documents allocates, bytes.

    The smaller of two measurements of each: a first import, or a thread of an earlier test, is not the decoder's.
    """
    rng, most = random.Random(seed), 0
    tracemalloc.start()
    try:
        for mutate in itertools.islice(itertools.cycle(target.mutators), inputs):
            data = mutate(rng)
            if (first := _allocated(target, data)) > most:
                most = max(most, min(first, _allocated(target, data)))
    finally:
        tracemalloc.stop()
    return most


def _allocated(target: Target, data: bytes) -> int:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    outcome(target, data)
    return tracemalloc.get_traced_memory()[1] - before


def sealed(body: bytes) -> bytes:
    """Return ``body`` with the CRC-32 that our binary layouts end with."""
    return body + struct.pack(">I", zlib.crc32(body))
