"""The entropy coders' kernels, compiled where numba is installed and as plain Python elsewhere: the same functions.

numba is imported at the first use, not with the package: a device that never uses these coders stays light.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from adaptsplit.codecs import context_kernel, static_kernel
from adaptsplit.codecs.context_kernel import STATE_WORDS, Ints
from adaptsplit.codecs.context_tables import COARSE_BITS, ContextTables, fresh_tables
from adaptsplit.codecs.packing import Codes
from adaptsplit.errors import CodecError

_HELPERS = ("spatial_row", "cross_row", "below", "below_one", "rate_of")
_KERNELS: dict[str, Callable[..., Any]] = {
    "model": context_kernel.model,
    "write": context_kernel.write,
    "read": context_kernel.read,
    "read_static": static_kernel.read_static,
}
Words = NDArray[np.int64]


def is_compiled() -> bool:
    """Whether numba is here, so that the context coder is fast enough to encode with."""
    return importlib.util.find_spec("numba") is not None


def intervals(codes: Codes, shape: tuple[int, int, int], bits: int, *, compiled: bool | None = None) -> Words:
    """Run the models over (n,) codes of ``bits`` bits: ``start << 17 | frequency`` (of 2**16) of every coded symbol.

    The model's own code length is the sum of ``16 - log2(frequency)`` bits. ``compiled`` forces (True) or forbids
    (False) numba; by default it is used where installed.
    """
    area, fine_bits = shape[1] * shape[2], max(0, bits - COARSE_BITS)
    high = np.concatenate([np.zeros(area, np.int64), (codes >> fine_bits).astype(np.int64)])
    fine = codes.astype(np.int64) & ((1 << fine_bits) - 1)
    out = np.zeros(codes.size * (2 if fine_bits else 1), np.int64)
    tables = fresh_tables(bits, shape[0])
    arguments = (high, fine, np.array((*shape, bits)), *_parts(tables), out)
    run_kernel("model", arguments, compiled)
    return out


def to_words(coded: Words, *, compiled: bool | None = None) -> Words:
    """Entropy-code the intervals of ``intervals``: 16-bit words, the last of them below 256."""
    words = np.zeros(coded.size + STATE_WORDS, np.int64)
    used = run_kernel("write", (coded, coded.size, words), compiled)
    return words[:used]


def from_words(words: Words, shape: tuple[int, int, int], bits: int, *, compiled: bool | None = None) -> Codes:
    """Inverse of ``intervals`` and ``to_words``: (n,) codes; CodecError when no codes give these words."""
    area, fine_bits = shape[1] * shape[2], max(0, bits - COARSE_BITS)
    high, fine = np.zeros((shape[0] + 1) * area, np.int64), np.zeros(shape[0] * area, np.int64)
    tables = fresh_tables(bits, shape[0])
    arguments = (words, words.size, np.array((*shape, bits)), *_parts(tables), high, fine)
    if not run_kernel("read", arguments, compiled):
        raise CodecError("context-coded values do not end where the payload does: not written by us")
    return cast("Codes", (high[area:] << fine_bits | fine).astype(np.uint8))


def _parts(tables: ContextTables) -> tuple[NDArray[Any], ...]:
    return tables.rows, tables.counts, tables.rates, tables.targets


def run_kernel(name: str, arguments: tuple[Any, ...], compiled: bool | None) -> Any:
    """Call a kernel with arrays; without numba with lists, ten times faster there, whose content is copied back."""
    if is_compiled() if compiled is None else compiled:
        return _compiled_kernels()[name](*arguments)
    lists = [a.tolist() if isinstance(a, np.ndarray) else a for a in arguments]
    result = _KERNELS[name](*lists)
    for array, content in zip(arguments, lists, strict=True):
        if isinstance(array, np.ndarray):
            array[...] = content
    return result


@lru_cache(maxsize=1)
def _compiled_kernels() -> dict[str, Callable[..., Ints]]:
    from numba import njit
    from numba.extending import register_jitable

    from adaptsplit.codecs.context_vector import use_vectors

    for name in _HELPERS:
        register_jitable(getattr(context_kernel, name))
    use_vectors()
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True}
    try:
        return {name: njit(cache=True, **options)(kernel) for name, kernel in _KERNELS.items()}
    except RuntimeError:  # no directory to keep machine code in
        return {name: njit(**options)(kernel) for name, kernel in _KERNELS.items()}
