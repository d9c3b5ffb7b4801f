"""The decoder of symbols under tables that do not change: plain Python on integers, compiled by ``context_compile``.

The encoder is ``context_kernel.write``, which knows intervals only; both share state, words and scale.
"""

from __future__ import annotations

from adaptsplit.codecs.context_kernel import SCALE_BITS, STATE_LOW, STATE_WORDS, Ints

_MASK = (1 << SCALE_BITS) - 1


def read_static(words: Ints, at: int, which: Ints, count: int, tables: Ints, width: int, out: Ints) -> bool:
    """Fill ``out`` with ``count`` symbols, the i-th under row ``which[i]`` of ``tables``; False for damaged words.

    A row is ``width`` + 1 cumulative frequencies from 0 to 2**16 that do not descend. ``at`` is the number of words, at
    least three; words that end early repeat the first one, so work is bounded by ``count`` alone.
    """
    at -= STATE_WORDS
    state = words[at] | words[at + 1] << 16 | words[at + 2] << 32
    if state < STATE_LOW or state >= STATE_LOW << 16:
        return False
    for i in range(count):
        row, slot = which[i], state & _MASK
        low, high = 0, width
        while high - low > 1:
            middle = (low + high) >> 1
            if tables[row][middle] <= slot:
                low = middle
            else:
                high = middle
        out[i] = low
        start = tables[row][low]
        state = (tables[row][low + 1] - start) * (state >> SCALE_BITS) + slot - start
        if state < STATE_LOW:
            at -= 1
            state = state << 16 | words[max(at, 0)]
    return bool(at == 0 and state == STATE_LOW)
